r"""Trends: does the score rise with the level (depth, noise, dose), replicate by replicate?

Each replicate has one score per level, in order. Its Kendall tau says whether it rises; the signs over replicates are
then judged like any other comparison. Page's L tests all replicates at once and is printed beside it.

Source: Page, *Ordered hypotheses for multiple treatments*, JASA 58 (1963); Kendall, *A new measure of rank
correlation*, Biometrika 30 (1938).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from torchstone.bench.statistics._samples import as_array, average_ranks
from torchstone.bench.statistics.sequential import Decision, decide

__all__ = ["TrendTest", "trend_test"]


@dataclass(frozen=True, eq=False)
class TrendTest:
    """Whether scores rise over ordered levels.

    Args:
        tau: Kendall's tau of every replicate (tau-a: tied pairs count 0).
        decision: the judgement on its signs, for a number of replicates fixed in advance.
        page_l: Page's L.
        page_p: its one-sided p-value (normal approximation).
    """

    tau: Float[np.ndarray, " n"]
    decision: Decision
    page_l: float
    page_p: float


def trend_test(scores: Any, *, gamma: float = 0.75, alpha: float = 0.05) -> TrendTest:
    r"""Test whether the score rises from level to level; negate the scores to ask whether it falls.

    .. math:: \tau_i = \frac{2}{k (k - 1)} \sum_{j < l} \operatorname{sign}(s_{il} - s_{ij}), \qquad
        L = \sum_j j \sum_i \operatorname{rank}_i(s_{ij})

    Shapes:
        ``scores``: (replicates, levels), levels in order.

    Cost:
        O(replicates x levels^2).

    Raises:
        ValueError: if there are fewer than 2 replicates or levels, or a score is NaN or infinite.

    Source:
        Page 1963; Kendall 1938.

    Example:
        >>> result = trend_test([[1, 2, 3]] * 5 + [[1, 3, 2]])
        >>> print(result.decision.verdict, result.tau.round(2)[-1], result.page_l)
        reproduced 0.33 83.0
    """
    x = as_array("scores", scores)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"scores must have shape (replicates, levels) with at least 2 levels, but have {x.shape}")
    n, k = x.shape
    above = np.triu_indices(k, 1)
    tau = np.sign(x[:, above[1]] - x[:, above[0]]).mean(axis=1)
    ranks = np.stack([average_ranks(row) for row in x])
    level = float((ranks.sum(axis=0) * np.arange(1, k + 1)).sum())
    mean, variance = n * k * (k + 1) ** 2 / 4, n * k**2 * (k + 1) * (k**2 - 1) / 144
    page_p = math.erfc((level - mean) / math.sqrt(2 * variance)) / 2
    return TrendTest(tau, decide((np.sign(tau) + 1) / 2, n_max=n, gamma=gamma, alpha=alpha, fixed=True), level, page_p)
