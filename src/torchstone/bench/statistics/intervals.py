r"""Percentile bootstrap intervals, by closed form where there is one.

The probability that one arm beats another is a mean of scores w in [0, 1] that are almost always multiples of 1/2
(win, tie, loss), or of a small fraction where data sets are averaged. Resampling n of them with replacement and adding
up gives the n-fold convolution of their histogram, so its quantiles need no drawing: without ties they are those of
Binomial(n, k/n)/n. Only differences of means and unpaired samples are drawn, all resamples in one array operation.

Source: Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 13 and 14.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from torchstone._checks import check_float, check_one_of

__all__ = ["RESAMPLES", "mean_interval", "percentile_interval", "rank_interval", "resampled_means"]

RESAMPLES = 10_000
_CHUNK = 1_000_000  # numbers held at a time while resampling
_SMALLEST_PART = 40  # scores are looked for among the multiples of 1/1, 1/2, ..., 1/40


def percentile_interval(*w: ArrayLike, alpha: float = 0.05, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean score, exact (as if resampled for ever).

    With several arguments (data sets), each is resampled on its own and their means are averaged.

    Shapes:
        Each ``w``: (replicates,) with values in [0, 1]; returns (low, high).

    Cost:
        One FFT of length replicates x denominator x data sets. Scores on no common grid up to 1/40, and data sets of
        unequal size, are drawn instead.

    Raises:
        ValueError: if a sample is empty or ``alpha`` lies outside (0, 1).

    Example:
        >>> low, high = percentile_interval([1] * 20 + [0] * 9)
        >>> round(29 * low), round(29 * high)
        (15, 25)
    """
    check_float("alpha", alpha, 0, 1, open_low=True, open_high=True)
    strata = [np.asarray(scores, float) for scores in w]
    n = strata[0].size if strata else 0
    if not all(scores.ndim == 1 and scores.size for scores in strata) or not n:
        raise ValueError("w must be one or more non-empty 1-D samples")
    parts = _common_denominator(np.concatenate(strata))
    if parts == 0 or any(scores.size != n for scores in strata):
        means = sum(resampled_means(scores, seed=seed + i) for i, scores in enumerate(strata)) / len(strata)
        low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2]).round(12)
        return float(low), float(high)
    size = n * parts * len(strata) + 1
    spectrum = np.ones(size // 2 + 1, complex)
    for scores in strata:
        histogram = np.bincount(np.rint(scores * parts).astype(int), minlength=parts + 1) / n
        spectrum *= np.fft.rfft(histogram, size) ** n
    cumulative = np.cumsum(np.fft.irfft(spectrum, size))
    low, high = np.searchsorted(cumulative, [alpha / 2 - 1e-12, 1 - alpha / 2 - 1e-12])
    return float(low / (size - 1)), float(min(high, size - 1) / (size - 1))


def _common_denominator(w: Float[np.ndarray, " n"]) -> int:
    """Smallest m such that all ``m * w`` are whole; 0 if there is none among the candidates."""
    for m in range(1, _SMALLEST_PART + 1):
        scaled = w * m
        if np.abs(scaled - np.rint(scaled)).max() < 1e-9:
            return m
    return 0


def resampled_means(
    x: Float[np.ndarray, " n *columns"], *, draws: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, " draws *columns"]:
    """Means of ``draws`` resamples of the rows of ``x``.

    Samples of equal length and seed are resampled with the same indices, so columns and pairs stay comparable.

    Shapes:
        ``x``: (replicates, ...); returns (draws, ...).

    Cost:
        O(draws x replicates x columns); the resampling counts of short samples are kept for the next call.

    Raises:
        ValueError: if ``x`` has no rows.

    Example:
        >>> resampled_means(np.ones(4), draws=3)
        array([1., 1., 1.])
    """
    n = len(x)
    if not n:
        raise ValueError("x must have at least one row")
    flat = x.reshape(n, -1)
    means = np.concatenate([counts @ flat for counts in _resampling_counts(n, draws, seed, _CHUNK // n)]) / n
    return means.reshape(draws, *x.shape[1:])


def _resampling_counts(n: int, draws: int, seed: int, step: int) -> Iterator[Float[np.ndarray, "rows n"]]:
    """How often each of n rows is drawn, resample by resample; ``step`` at a time where all at once would be large."""
    if draws <= step:
        yield _kept_counts(n, draws, seed)
        return
    rng = np.random.default_rng(seed)
    step = max(1, step)
    for start in range(0, draws, step):
        yield _draw_counts(n, min(step, draws - start), rng)


@lru_cache(maxsize=4)
def _kept_counts(n: int, draws: int, seed: int) -> Float[np.ndarray, "draws n"]:
    return _draw_counts(n, draws, np.random.default_rng(seed))


def _draw_counts(n: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws n"]:
    drawn = rng.integers(n, size=(draws, n))
    drawn += n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(float)


def mean_interval(
    x: ArrayLike,
    *,
    alpha: float = 0.05,
    method: str = "percentile",
    draws: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Bootstrap interval of a mean: percentile, or bias-corrected and accelerated (BCa).

    .. math:: \alpha_j = \Phi\Bigl(z_0 + \frac{z_0 + z_j}{1 - a (z_0 + z_j)}\Bigr)

    BCa takes the quantiles :math:`\alpha_j` of the resampled means, with :math:`z_0` from the share of them below the
    mean and :math:`a` from the skewness of the sample.

    Shapes:
        ``x``: (replicates,); returns (low, high).

    Cost:
        O(draws x replicates).

    Raises:
        ValueError: if ``x`` is not 1-D with at least one number, or ``alpha`` or ``method`` is out of range.

    Source:
        Efron and Tibshirani 1993, section 14.3.

    Example:
        >>> mean_interval([2.0, 2.0, 2.0])
        (2.0, 2.0)
    """
    check_float("alpha", alpha, 0, 1, open_low=True, open_high=True)
    check_one_of("method", method, ("percentile", "bca"))
    sample = np.asarray(x, float)
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"x must have shape (replicates,) with at least one number, but has {sample.shape}")
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    means = resampled_means(sample, draws=draws, seed=seed)
    ends = (alpha / 2, 1 - alpha / 2)
    if method == "bca":
        normal = NormalDist()
        below = ((means < sample.mean()).mean() + (means <= sample.mean()).mean()) / 2
        bias = normal.inv_cdf(min(max(float(below), 0.5 / draws), 1 - 0.5 / draws))
        deviation = sample - sample.mean()
        skew = float((deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5))
        shifted = [bias + normal.inv_cdf(end) for end in ends]
        ends = tuple(normal.cdf(bias + z / (1 - skew * z)) for z in shifted)
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def rank_interval(
    *pairs: tuple[ArrayLike, ArrayLike], alpha: float = 0.05, draws: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of P(A > B) for unpaired samples: both arms are resampled.

    With several pairs (data sets), each is resampled on its own and the probabilities are averaged.

    Shapes:
        Each pair: ``a`` (n,) and ``b`` (m,); returns (low, high).

    Cost:
        O(draws x (n + m)) from cumulative counts of the sorted samples, not O(draws x n x m).

    Raises:
        ValueError: if a sample is empty or ``alpha`` lies outside (0, 1).

    Example:
        >>> rank_interval(([3, 4], [1, 2]))
        (1.0, 1.0)
    """
    check_float("alpha", alpha, 0, 1, open_low=True, open_high=True)
    if not pairs:
        raise ValueError("pairs must hold at least one pair of samples")
    p = [
        _resampled_p(np.asarray(a, float), np.asarray(b, float), draws, seed + 2 * i) for i, (a, b) in enumerate(pairs)
    ]
    low, high = np.quantile(np.mean(p, axis=0), [alpha / 2, 1 - alpha / 2]).round(12)
    return float(low), float(high)


def _resampled_p(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    n, m = a.size, b.size
    if a.ndim != 1 or b.ndim != 1 or not n or not m:
        raise ValueError(f"both samples of a pair must be 1-D and not empty, but have shapes {a.shape} and {b.shape}")
    b = np.sort(b)
    below, upto = np.searchsorted(b, a, "left"), np.searchsorted(b, a, "right")
    step = _CHUNK // max(n, m)
    p = []
    for of_a, of_b in zip(
        _resampling_counts(n, draws, seed, step), _resampling_counts(m, draws, seed + 1, step), strict=True
    ):
        sums = np.pad(np.cumsum(of_b, axis=1), ((0, 0), (1, 0)))  # of b, up to each place in its order
        beaten = (sums[:, below] + sums[:, upto]) / 2  # by each run of a: all below it and half of its equals
        p.append(np.einsum("ij,ij->i", of_a, beaten) / (n * m))
    return np.concatenate(p)
