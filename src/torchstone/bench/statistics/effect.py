r"""How large the difference between two arms is: description beside the verdict, in the units of the score.

Scores come as strata: one pair of 1-D samples (a, b) per data set. Every number is computed per data set and averaged,
every bootstrap resamples the data sets one by one.

Source: Cohen, *Statistical Power Analysis for the Behavioral Sciences*, 1988 (d); Cliff, *Dominance statistics*,
Psychol. Bull. 114 (1993) (delta).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from torchstone.bench.statistics._samples import average_ranks
from torchstone.bench.statistics.intervals import resampled_means

__all__ = ["Effect", "Strata", "average", "effect_size", "resampled_differences", "share_of_pairs", "welch_error"]

Strata = Sequence[tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]]


@dataclass(frozen=True)
class Effect:
    """How large a difference is; with several data sets each number is the mean of theirs.

    Args:
        mean_difference: mean of a minus mean of b.
        mean_difference_ci: its percentile bootstrap interval.
        d: paired, mean over standard deviation of the differences (d_z); unpaired, over the pooled one.
        cliffs_delta: 2 P - 1, with P over all pairs of runs whether or not they are paired.
        ratio: geometric mean of a over that of b; NaN unless asked for.
        ratio_ci: its percentile bootstrap interval.
    """

    mean_difference: float
    mean_difference_ci: tuple[float, float]
    d: float
    cliffs_delta: float
    ratio: float = math.nan
    ratio_ci: tuple[float, float] = (math.nan, math.nan)


def effect_size(strata: Strata, *, paired: bool, ratio: bool = False, alpha: float = 0.05, seed: int = 0) -> Effect:
    """Differences, standardised differences and, on request, the ratio between the two samples of every stratum."""
    value, ratio_ci = math.nan, (math.nan, math.nan)
    if ratio:
        logs = [(np.log(a), np.log(b)) for a, b in strata]
        low, high = _ends(resampled_differences(logs, paired=paired, seed=seed), alpha)
        value, ratio_ci = math.exp(_mean_difference(logs)), (math.exp(low), math.exp(high))
    return Effect(
        mean_difference=_mean_difference(strata),
        mean_difference_ci=_ends(resampled_differences(strata, paired=paired, seed=seed), alpha),
        d=average([_standardised(a, b, paired) for a, b in strata]),
        cliffs_delta=2 * average([share_of_pairs(a, b) for a, b in strata]) - 1,
        ratio=value,
        ratio_ci=ratio_ci,
    )


def resampled_differences(strata: Strata, *, paired: bool, seed: int = 0) -> Float[np.ndarray, " draws"]:
    """Bootstrap distribution of the mean difference: paired resamples replicates, unpaired each arm."""
    draws = []
    for i, (a, b) in enumerate(strata):
        if paired:
            draws.append(resampled_means(a - b, seed=seed + i))
        else:
            other = seed + len(strata) + i
            draws.append(resampled_means(a, seed=seed + i) - resampled_means(b, seed=other))
    return np.mean(draws, axis=0)


def share_of_pairs(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """P(A > B) over all n m pairs of runs, by ranks: U / (n m)."""
    ranks = average_ranks(np.concatenate([a, b]))[: a.size]
    return float((ranks.sum() - a.size * (a.size + 1) / 2) / (a.size * b.size))


def welch_error(strata: Strata, *, paired: bool) -> tuple[float, float]:
    """Standard error of the mean difference and its degrees of freedom (Welch-Satterthwaite)."""
    samples = [a - b for a, b in strata] if paired else [sample for pair in strata for sample in pair]
    squares = [float(sample.var(ddof=1)) / sample.size for sample in samples]
    total = math.fsum(squares)
    weights = math.fsum(square**2 / (sample.size - 1) for square, sample in zip(squares, samples, strict=True))
    return math.sqrt(total) / len(strata), (total**2 / weights if weights else math.inf)


def average(values: Sequence[float]) -> float:
    """Mean over data sets."""
    return sum(values) / len(values)


def _mean_difference(strata: Strata) -> float:
    return average([float(a.mean() - b.mean()) for a, b in strata])


def _ends(draws: Float[np.ndarray, " draws"], alpha: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def _standardised(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], paired: bool) -> float:
    """Difference of means in standard deviations; infinite where nothing varies but the means."""
    difference = float(a.mean() - b.mean())
    if paired:
        spread = float((a - b).std(ddof=1))
    else:
        squares = float(((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum())
        spread = math.sqrt(squares / (a.size + b.size - 2))
    if spread > 1e-12 * abs(difference):  # smaller is rounding
        return difference / spread
    return math.copysign(math.inf, difference) if difference else 0.0
