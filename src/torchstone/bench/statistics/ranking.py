r"""Ranking k methods: mean ranks, who beats whom how often, which differences are real, and how stable the order is.

Methods are ranked within blocks. For a statement about one data set the blocks are replicates; across data sets they
are the data sets themselves, with each method's mean over replicates (seeds times data sets are not independent
blocks). Methods that no corrected pairwise test tells apart form cliques, the bars of a rank diagram; the tests look
at two methods at a time, so a pair's result does not depend on the others in the pool.

Source: Demsar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 7 (2006); Benavoli, Corani and
Mangili, *Should we really use post-hoc tests based on mean-ranks?*, JMLR 17 (2016); Bouthillier, Laurent and Vincent,
*Unreproducible research is reproducible*, ICML 2019 (stability of a single-run ranking).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from torchstone._checks import check_float, check_int
from torchstone.bench.statistics._samples import as_array
from torchstone.bench.statistics.intervals import resampled_means
from torchstone.bench.statistics.multiplicity import adjust
from torchstone.bench.statistics.significance import signed_rank_test

__all__ = ["Ranking", "RankingInstability", "critical_difference", "friedman", "rank_methods", "ranking_instability"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Methods in the order of their mean rank, best first; every array follows that order.

    Args:
        methods: names.
        blocks: replicates, or data sets.
        mean_rank: mean rank, 1 is best; ties share theirs.
        mean_rank_ci: its percentile bootstrap interval, one row per method.
        first: share of blocks in which the method ranks first; a shared first place counts in parts.
        outperforms: entry (i, j) is P(method i beats method j).
        friedman: chi-squared statistic of "all methods rank alike".
        friedman_p: its p-value.
        iman_davenport: the less conservative F statistic of the same.
        iman_davenport_p: its p-value.
        pairwise_p: signed-rank p-values, adjusted by Holm over all pairs.
        cliques: maximal runs of neighbours in the order that no adjusted test tells apart.
        alpha: error rate of intervals and cliques.
    """

    methods: tuple[str, ...]
    blocks: int
    mean_rank: Float[np.ndarray, " k"]
    mean_rank_ci: Float[np.ndarray, "k 2"]
    first: Float[np.ndarray, " k"]
    outperforms: Float[np.ndarray, "k k"]
    friedman: float
    friedman_p: float
    iman_davenport: float
    iman_davenport_p: float
    pairwise_p: Float[np.ndarray, "k k"]
    cliques: tuple[tuple[str, ...], ...]
    alpha: float


def rank_methods(scores: Any, *, names: Sequence[str] | None = None, alpha: float = 0.05, seed: int = 0) -> Ranking:
    """Rank k methods over n blocks; higher scores are better.

    Args:
        scores: array, tensor or nested list of shape (k, n); a mapping from name to n scores; or a pandas table,
            long (one score per line) or wide (one column per method), read by
            :func:`torchstone.bench.statistics.score_table.from_frame`.
        names: names of the methods, for arrays.
        alpha: error rate of intervals and cliques.
        seed: of the bootstrap of the mean ranks.

    Shapes:
        (k, n) with k and n at least 2.

    Cost:
        O(k^2 n) for the ranks, one exact signed-rank test (0.2 ms at 29 blocks) per pair.

    Raises:
        ValueError: if a score is NaN or infinite, methods differ in length, or there are fewer than 2 of either.

    Source:
        Module docstring.

    Example:
        >>> ranking = rank_methods({"a": [3, 5, 4, 9], "b": [1, 2, 3, 4], "c": [2, 6, 1, 3]})
        >>> ranking.methods, ranking.mean_rank, ranking.first
        (('a', 'c', 'b'), array([1.25, 2.25, 2.5 ]), array([0.75, 0.25, 0.  ]))
    """
    check_float("alpha", alpha, 0, 1, open_low=True, open_high=True)
    labels, x = _blocks(scores, names)
    ranks = _ranks(x)
    order = np.argsort(ranks.mean(axis=0), kind="stable")
    labels, x, ranks = [labels[i] for i in order], x[:, order], ranks[:, order]
    n, k = ranks.shape
    resampled = resampled_means(ranks, seed=seed)
    leads = ranks == ranks.min(axis=1, keepdims=True)
    spread = float(ranks.var(axis=1).mean())
    chi2, chi2_p, f, f_p = friedman(ranks.mean(axis=0), n, spread=spread)
    outperforms, pairwise_p = np.full((k, k), 0.5), np.ones((k, k))
    pairs = list(combinations(range(k), 2))
    p_values = adjust([signed_rank_test(x[:, i] - x[:, j]) for i, j in pairs])
    for (i, j), p in zip(pairs, p_values, strict=True):
        share = float((np.sign(x[:, i] - x[:, j]).mean() + 1) / 2)
        outperforms[i, j], outperforms[j, i] = share, 1 - share
        pairwise_p[i, j] = pairwise_p[j, i] = p
    return Ranking(
        methods=tuple(labels),
        blocks=n,
        mean_rank=ranks.mean(axis=0),
        mean_rank_ci=np.quantile(resampled, [alpha / 2, 1 - alpha / 2], axis=0).T,
        first=(leads / leads.sum(axis=1, keepdims=True)).mean(axis=0),
        outperforms=outperforms,
        friedman=chi2,
        friedman_p=chi2_p,
        iman_davenport=f,
        iman_davenport_p=f_p,
        pairwise_p=pairwise_p,
        cliques=_cliques(labels, pairwise_p > alpha),
        alpha=alpha,
    )


def friedman(
    mean_ranks: Sequence[float] | Float[np.ndarray, " k"], blocks: int, *, spread: float | None = None
) -> tuple[float, float, float, float]:
    r"""Friedman's test that k methods rank alike, and Iman and Davenport's F: (chi2, p, F, p).

    .. math:: \chi^2 = \frac{n (k - 1)}{k} \, \frac{\sum_j (R_j - \frac{k+1}{2})^2}{s^2}, \qquad
        F = \frac{(n - 1) \chi^2}{n (k - 1) - \chi^2}

    with n blocks and :math:`s^2` the variance of the ranks within a block, (k^2 - 1) / 12 where there are no ties.

    Args:
        mean_ranks: mean rank of each method, :math:`R_j`.
        blocks: n.
        spread: :math:`s^2`, averaged over blocks; by default that of untied ranks.

    Shapes:
        ``mean_ranks``: (k,).

    Cost:
        O(k).

    Raises:
        ValueError: if there are fewer than 2 methods or blocks.

    Source:
        Demsar 2006, section 3.2.2; Iman and Davenport 1980.

    Example:
        >>> [round(x, 2) for x in friedman([3.143, 2.000, 2.893, 1.964], 14)]
        [9.28, 0.03, 3.69, 0.02]
    """
    from scipy.special import chdtrc, fdtrc

    k, n = len(mean_ranks), check_int("blocks", blocks, 2)
    check_int("the number of methods", k, 2)
    spread = (k * k - 1) / 12 if spread is None else spread
    squares = math.fsum((rank - (k + 1) / 2) ** 2 for rank in mean_ranks)
    chi2 = n * (k - 1) / k * squares / spread if spread else 0.0
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 else math.inf
    f_p = float(fdtrc(k - 1, (k - 1) * (n - 1), f)) if math.isfinite(f) else 0.0
    return chi2, float(chdtrc(k - 1, chi2)), f, f_p


def critical_difference(methods: int, blocks: int, *, alpha: float = 0.05) -> float:
    r"""Nemenyi's critical difference of mean ranks, for comparison with published rank diagrams only.

    .. math:: CD = q_\alpha \sqrt{\frac{k (k + 1)}{6 n}}

    Whether two methods differ by it depends on which others are in the pool; :func:`rank_methods` does not use it.

    Cost:
        One quantile of the studentised range, about 10 ms.

    Raises:
        ValueError: if there are fewer than 2 methods or 1 block.

    Source:
        Demsar 2006, section 3.2.2.

    Example:
        >>> round(critical_difference(4, 14), 2)
        1.25
    """
    from scipy.stats import studentized_range

    k, n = check_int("methods", methods, 2), check_int("blocks", blocks, 1)
    check_float("alpha", alpha, 0, 1, open_low=True, open_high=True)
    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2)
    return q * math.sqrt(k * (k + 1) / (6 * n))


@dataclass(frozen=True, eq=False)
class RankingInstability:
    """How much a ranking from one run per method differs from the ranking of the means.

    Args:
        methods: names, in the order of the means, best first.
        same_order: share of single-run rankings that equal it.
        same_best: share whose best method is its best.
        rank_variance: variance of each method's single-run rank.
    """

    methods: tuple[str, ...]
    same_order: float
    same_best: float
    rank_variance: Float[np.ndarray, " k"]


def ranking_instability(
    scores: Any, *, names: Sequence[str] | None = None, draws: int = 20_000, seed: int = 0
) -> RankingInstability:
    """Draw one run of each method, rank them, repeat: how often does a ranking without replicates go wrong?

    Methods may have different numbers of runs; runs that score alike are ordered by lot.

    Args:
        scores: as for :func:`rank_methods`, but rows may differ in length.
        names: names of the methods, for arrays.
        draws: repetitions.
        seed: of the draws.

    Shapes:
        k rows of at least 2 scores.

    Cost:
        O(draws x k log k).

    Raises:
        ValueError: if a score is NaN or infinite, or there are fewer than 2 methods or runs.

    Source:
        Bouthillier et al. 2019, section 4.

    Example:
        >>> ranking_instability({"a": [2, 3], "b": [0, 1]}).same_order
        1.0
    """
    check_int("draws", draws, 1)
    labels, rows = _rows(scores, names)
    order = sorted(range(len(rows)), key=lambda i: -float(rows[i].mean()))
    rng = np.random.default_rng(seed)
    runs = np.stack([rows[i][rng.integers(rows[i].size, size=draws)] for i in order], axis=1)
    ranking = np.lexsort((rng.random(runs.shape), -runs), axis=1)  # who is first, second, ...
    positions = np.arange(len(rows))
    ranks = np.empty_like(ranking)
    np.put_along_axis(ranks, ranking, np.broadcast_to(positions, ranking.shape), axis=1)
    return RankingInstability(
        methods=tuple(labels[i] for i in order),
        same_order=float((ranking == positions).all(axis=1).mean()),
        same_best=float((ranking[:, 0] == 0).mean()),
        rank_variance=ranks.var(axis=0),
    )


def _rows(scores: Any, names: Sequence[str] | None) -> tuple[list[str], list[Float[np.ndarray, " n"]]]:
    """Names and one checked 1-D array per method."""
    if hasattr(scores, "columns"):
        from torchstone.bench.statistics.score_table import from_frame

        scores = from_frame(scores).blocks()
    if isinstance(scores, Mapping):
        if names is not None:
            raise ValueError("names are those of the mapping: leave out the argument")
        labels, values = [str(name) for name in scores], list(scores.values())
    else:
        values = list(scores)
        labels = [str(name) for name in names] if names is not None else [str(i) for i in range(len(values))]
    if len(labels) != len(values) or len(set(labels)) != len(labels):
        raise ValueError(f"names must be {len(values)} different names, one per method, but are {labels}")
    if len(values) < 2:
        raise ValueError(f"ranking needs at least 2 methods, and there is {len(values)}")
    rows = [as_array(label, value) for label, value in zip(labels, values, strict=True)]
    if any(row.ndim != 1 for row in rows):
        raise ValueError("scores must have shape (methods, blocks)")
    return labels, rows


def _blocks(scores: Any, names: Sequence[str] | None) -> tuple[list[str], Float[np.ndarray, "n k"]]:
    labels, rows = _rows(scores, names)
    sizes = {label: row.size for label, row in zip(labels, rows, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"every method needs a score in every block, but the methods have {sizes}")
    return labels, np.stack(rows, axis=1)


def _ranks(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Rank of each method within each block, 1 for the highest score; equal scores share the mean of their ranks."""
    ranks = np.empty_like(x)
    for j in range(x.shape[1]):
        mine = x[:, [j]]
        ranks[:, j] = 0.5 + (x > mine).sum(axis=1) + (x == mine).sum(axis=1) / 2
    return ranks


def _cliques(labels: Sequence[str], alike: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """Maximal runs of two or more neighbours all of whose pairs are alike."""
    cliques: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(labels)):
        end = start + 1
        while end < len(labels) and alike[start:end, end].all():
            end += 1
        if end - start > 1 and end > reached:
            cliques.append(tuple(labels[start:end]))
            reached = end
    return tuple(cliques)
