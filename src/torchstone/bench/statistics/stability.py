r"""Do two orders of methods agree, and how much is an order worth that rests on one run of each method?

Source: Bouthillier, Laurent and Vincent, *Unreproducible research is reproducible*, ICML 2019; Kendall, *A new measure
of rank correlation*, Biometrika 30 (1938).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from torchstone.bench.statistics._samples import method_rows
from torchstone.bench.statistics.effect import share_of_pairs

__all__ = ["RankingInstability", "kendall_tau", "ranking_instability"]


def kendall_tau(a: Sequence[float] | Float[np.ndarray, " k"], b: Sequence[float] | Float[np.ndarray, " k"]) -> float:
    r"""Agreement of two orders of the same k methods, from -1 (reversed) to 1 (the same).

    .. math:: \tau = \binom k2^{-1} \sum_{i < j} \operatorname{sign}(a_i - a_j) \operatorname{sign}(b_i - b_j)

    A pair that is tied in either of them counts 0 (tau-a). Without ties, (1 - tau) / 2 is the share of the pairs that
    change places.

    Shapes:
        ``a`` and ``b``: (k,).

    Cost:
        O(k^2).

    Raises:
        ValueError: if the lengths differ, there are fewer than 2 methods, or a score is NaN.

    Source:
        Kendall 1938.

    Example:
        >>> kendall_tau([3, 2, 1], [3, 1, 2]), kendall_tau([1, 2], [2, 1])
        (0.3333333333333333, -1.0)
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.ndim != 1 or x.shape != y.shape or x.size < 2 or np.isnan(x).any() or np.isnan(y).any():
        raise ValueError(f"a and b must be scores of the same methods, at least 2, but have {x.shape} and {y.shape}")
    above = np.triu_indices(x.size, 1)
    return float((np.sign(x[:, None] - x) * np.sign(y[:, None] - y))[above].mean())


@dataclass(frozen=True, eq=False)
class RankingInstability:
    """How much a ranking from one run per method differs from the ranking of the means.

    Args:
        methods: names, in the order of the means, best first.
        same_order: probability that a single-run ranking equals it.
        same_best: probability that the best of single runs is its best.
        agreement: expected Kendall tau of a single-run ranking with it.
        rank_variance: variance of each method's single-run rank.
    """

    methods: tuple[str, ...]
    same_order: float
    same_best: float
    agreement: float
    rank_variance: Float[np.ndarray, " k"]


def ranking_instability(scores: Any, *, names: Sequence[str] | None = None) -> RankingInstability:
    """Draw one run of each method and rank them: how often does a ranking without replicates go wrong?

    Exact, as if drawn for ever: no chance is left in the numbers. Methods may have different numbers of runs; runs that
    score alike are ordered by lot, methods whose means are alike as they come.

    Args:
        scores: as for :func:`rank_methods`, but rows may differ in length.
        names: names of the methods, for arrays.

    Shapes:
        k rows of at least 2 scores.

    Cost:
        O(k^3 n log n) for k methods with n runs each; about 1 ms for 8 methods with 10 runs.

    Raises:
        ValueError: if a score is NaN or infinite, or there are fewer than 2 methods or runs.

    Source:
        Bouthillier et al. 2019, section 4, where 20 000 rankings are drawn.

    Example:
        >>> ranking_instability({"a": [2, 4], "b": [1, 3]}).same_order
        0.75
    """
    labels, rows = method_rows(scores, names)
    order = sorted(range(len(rows)), key=lambda i: -float(rows[i].mean()))
    rows = [np.sort(rows[i]) for i in order]
    best, variance = _single_run_ranks(rows)
    pairs = combinations(rows, 2)  # the first of a pair has the higher mean
    return RankingInstability(
        methods=tuple(labels[i] for i in order),
        same_order=_chance_of_order(rows),
        same_best=best,
        agreement=float(np.mean([2 * share_of_pairs(x, y) - 1 for x, y in pairs])),
        rank_variance=variance,
    )


def _chance_of_order(rows: Sequence[Float[np.ndarray, " n"]]) -> float:
    """Probability that one run of each comes out in descending order; m equal ones in a row do so once in m! lots.

    ``mass[m, v]`` is that of the methods so far being in order, the last m + 1 of them at value v.
    """
    values = np.unique(np.concatenate(rows))
    k = len(rows)
    mass = np.zeros((k, values.size))
    for place, row in enumerate(rows):
        chance = np.bincount(np.searchsorted(values, row), minlength=values.size) / row.size
        moved = np.zeros_like(mass)
        if place:
            moved[1:] = mass[:-1] * chance / np.arange(2, k + 1)[:, None]
            reached = mass.sum(axis=0)
            moved[0] = chance * (reached.sum() - np.cumsum(reached))  # the one before has a higher value
        else:
            moved[0] = chance
        mass = moved
    return float(mass.sum())


def _single_run_ranks(rows: Sequence[Float[np.ndarray, " n"]]) -> tuple[float, Float[np.ndarray, " k"]]:
    """Probability that the first method ranks first, and the variance of each method's rank.

    Given a method's run and its lot u in [0, 1], each other method is ahead of it independently, with probability
    P(higher) + u P(equal). Both results are then polynomials in u, which Gauss' rule integrates exactly.
    """
    k = len(rows)
    nodes, weights = np.polynomial.legendre.leggauss(k // 2 + 1)
    lots, weights = (nodes + 1) / 2, weights / 2
    first, variance = 0.0, np.empty(k)
    for i, row in enumerate(rows):
        ahead = np.stack([_chance_ahead(other, row, lots) for j, other in enumerate(rows) if j != i])
        rank = ahead.sum(axis=0)
        spread = (ahead * (1 - ahead)).sum(axis=0) + (rank - (rank @ weights).mean()) ** 2
        variance[i] = (spread @ weights).mean()
        if i == 0:
            first = float(((1 - ahead).prod(axis=0) @ weights).mean())
    return first, variance


def _chance_ahead(
    other: Float[np.ndarray, " m"], row: Float[np.ndarray, " n"], lots: Float[np.ndarray, " u"]
) -> Float[np.ndarray, "n u"]:
    """Probability that a run of ``other`` (sorted) ranks ahead of each run of ``row``, for each lot of the latter."""
    below, up_to = (np.searchsorted(other, row, side=side) / other.size for side in ("left", "right"))
    return 1 - up_to[:, None] + lots * (up_to - below)[:, None]
