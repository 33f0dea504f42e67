r"""Ranking k methods: mean ranks, who beats whom how often, and which differences are real.

Methods are ranked within blocks. For a statement about one data set the blocks are replicates; across data sets they
are the data sets themselves, with each method's mean over replicates (seeds times data sets are not independent
blocks). Methods that no corrected pairwise test tells apart form cliques, the bars of a rank diagram; the tests look
at two methods at a time, so a pair's result does not depend on the others in the pool.

Source: Demsar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 7 (2006); Benavoli, Corani and
Mangili, *Should we really use post-hoc tests based on mean-ranks?*, JMLR 17 (2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from torchstone._checks import check_float, check_int
from torchstone.bench.statistics._samples import method_rows
from torchstone.bench.statistics.intervals import resampled_means
from torchstone.bench.statistics.multiplicity import adjust
from torchstone.bench.statistics.significance import signed_rank_test

__all__ = ["Ranking", "critical_difference", "friedman", "rank_methods"]


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


def _blocks(scores: Any, names: Sequence[str] | None) -> tuple[list[str], Float[np.ndarray, "n k"]]:
    labels, rows = method_rows(scores, names)
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
