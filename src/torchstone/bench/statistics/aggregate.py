r"""One number for many data sets: interquartile mean, optimality gap and performance profile, with intervals.

For normalised scores (comparable between data sets, e.g. accuracies or scores relative to a reference) on five data
sets or more. All runs of all data sets enter; the bootstrap resamples the runs of each data set on its own.

Source: Agarwal et al., *Deep reinforcement learning at the edge of the statistical precipice*, NeurIPS 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from torchstone._checks import check_float, check_int
from torchstone.bench.statistics._samples import as_array

__all__ = ["Aggregate", "aggregate_scores", "performance_profile"]


@dataclass(frozen=True)
class Aggregate:
    """Robust summaries of one method over many data sets.

    Args:
        iqm: interquartile mean, the mean of the middle half of all runs.
        iqm_ci: its stratified percentile bootstrap interval.
        optimality_gap: mean amount by which runs fall short of the target; lower is better.
        optimality_gap_ci: its interval.
        mean: mean of all runs.
        median: median over data sets of their means.
    """

    iqm: float
    iqm_ci: tuple[float, float]
    optimality_gap: float
    optimality_gap_ci: tuple[float, float]
    mean: float
    median: float


def aggregate_scores(
    scores: Any, *, target: float = 1.0, alpha: float = 0.05, draws: int = 2_000, seed: int = 0
) -> Aggregate:
    r"""Interquartile mean and optimality gap of one method over runs and data sets.

    .. math:: \text{gap} = \operatorname{mean}_{id} \max(0, \text{target} - s_{id})

    Args:
        scores: normalised scores; higher is better.
        target: the score that counts as solved.
        alpha: error rate of the intervals.
        draws: bootstrap resamples.
        seed: of the bootstrap.

    Shapes:
        ``scores``: (replicates, data sets), at least 2 replicates.

    Cost:
        O(draws x n log n) for n scores in all.

    Raises:
        ValueError: if ``scores`` is not 2-D, a score is NaN or infinite, or there are fewer than 2 replicates.

    Source:
        Agarwal et al. 2021, section 4.

    Example:
        >>> summary = aggregate_scores([[0.0, 0.5], [0.6, 1.1]])
        >>> summary.iqm, round(summary.optimality_gap, 3)
        (0.55, 0.475)
    """
    x = _check(scores)
    check_float("alpha", alpha, 0, 1, open_low=True, open_high=True)
    check_int("draws", draws, 1)
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(x), size=(draws, *x.shape))
    resampled = np.take_along_axis(x[None], picked, axis=1).reshape(draws, -1)
    ends = [alpha / 2, 1 - alpha / 2]
    iqm, gap = np.quantile(_iqm(resampled), ends), np.quantile(_gap(resampled, target), ends)
    flat = x.reshape(1, -1)
    return Aggregate(
        iqm=float(_iqm(flat)[0]),
        iqm_ci=(float(iqm[0]), float(iqm[1])),
        optimality_gap=float(_gap(flat, target)[0]),
        optimality_gap_ci=(float(gap[0]), float(gap[1])),
        mean=float(x.mean()),
        median=float(np.median(x.mean(axis=0))),
    )


def performance_profile(scores: Any, thresholds: Any) -> Float[np.ndarray, " t"]:
    r"""Share of runs that score above each threshold, averaged over data sets.

    .. math:: F(\tau) = \frac1D \sum_d \frac1n \sum_i 1[s_{id} > \tau]

    Shapes:
        ``scores``: (replicates, data sets); ``thresholds``: (t,); returns (t,).

    Cost:
        O(n log n + t log n) for n scores in all.

    Raises:
        ValueError: as for :func:`aggregate_scores`.

    Source:
        Agarwal et al. 2021, section 4.2.

    Example:
        >>> performance_profile([[0.0, 0.5], [0.6, 1.1]], [0.0, 0.55, 2.0])
        array([0.75, 0.5 , 0.  ])
    """
    x = np.sort(_check(scores), axis=None)
    return 1 - np.searchsorted(x, np.asarray(thresholds, float), side="right") / x.size


def _check(scores: Any) -> Float[np.ndarray, "n datasets"]:
    x = as_array("scores", scores)
    if x.ndim != 2:
        raise ValueError(f"scores must have shape (replicates, data sets), but have {x.shape}")
    return x


def _iqm(x: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
    cut = math.floor(x.shape[1] / 4)
    return np.sort(x, axis=1)[:, cut : x.shape[1] - cut].mean(axis=1)


def _gap(x: Float[np.ndarray, "draws n"], target: float) -> Float[np.ndarray, " draws"]:
    return np.maximum(target - x, 0).mean(axis=1)
