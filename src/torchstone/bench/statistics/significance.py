"""Tests of "no difference": exact wherever that can be computed, and exact with ties too.

All return two-sided p-values unless they say otherwise. Source: Hollander, Wolfe and Chicken, *Nonparametric
Statistical Methods*, 3rd edition 2014, chapters 3 and 4; Pitman, *Significance tests which may be applied to samples
from any populations*, J. R. Stat. Soc. Suppl. 4 (1937).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from torchstone._checks import check_int
from torchstone.bench.statistics._samples import average_ranks
from torchstone.bench.statistics.design import sign_test
from torchstone.bench.statistics.effect import share_of_pairs

__all__ = ["rank_sum_test", "sign_flip_test", "sign_test", "signed_rank_test"]

_EXACT_FLIPS = 30  # differences up to which all sign flips are counted
_RANDOM_FLIPS = 1_000
_EXACT_RANKS = 100
_ROUNDING = 1e-12  # relative: sums and differences closer than this are equal


def sign_flip_test(d: ArrayLike, *, draws: int = 100_000, seed: int = 0) -> float:
    """Permutation test of paired differences: how often do random signs give a mean at least as far from zero?

    All 2^n flips are counted up to n = 30, by sorting the sums of either half of the sample and looking up, for each
    sum of one half, how many of the other complete it; then ``draws`` random flips; above n = 1 000 the normal limit.

    Shapes:
        ``d``: (replicates,).

    Cost:
        O(n 2^(n/2)) up to n = 30 (2 ms at 29), then O(draws x n); O(n) above n = 1 000.

    Raises:
        ValueError: if ``d`` is not 1-D, not finite or empty.

    Source:
        Pitman 1937; Horowitz and Sahni, *Computing partitions*, J. ACM 21 (1974) for the two halves.

    Example:
        >>> sign_flip_test([1.0, 2.0, 3.0])
        0.25
    """
    differences = _check_sample(d)
    check_int("draws", draws, 1)
    n = differences.size
    reach = abs(float(differences.sum())) - _ROUNDING * float(np.abs(differences).sum())
    if reach <= 0:
        return 1.0
    if n <= _EXACT_FLIPS:
        left, right = _signed_sums(differences[: n // 2]), _signed_sums(differences[n // 2 :])
        far = right.size - np.searchsorted(right, reach - left)
        return 2 * float(far.sum()) / 2.0**n
    if n > _RANDOM_FLIPS:
        return math.erfc(reach / math.sqrt(2 * float((differences**2).sum())))
    rng = np.random.default_rng(seed)
    far = 0
    step = max(1, 4_000_000 // n)
    for start in range(0, draws, step):
        signs = rng.integers(0, 2, size=(min(step, draws - start), n), dtype=np.int8)
        sums = 2 * (signs @ differences) - differences.sum()
        far += int((np.abs(sums) >= reach).sum())
    return (1 + far) / (1 + draws)  # the observed signs are one of the flips


def _signed_sums(d: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 2**n"]:
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums - abs(x), sums + abs(x)])
    return np.sort(sums)


def signed_rank_test(d: ArrayLike) -> float:
    """Wilcoxon's signed-rank test of paired differences; zeros are left out, equal sizes share their ranks.

    Exact up to 100 differences, ties included (doubled ranks are whole numbers, so the distribution of their signed
    sum is a convolution); beyond that by the normal approximation.

    Shapes:
        ``d``: (replicates,).

    Cost:
        O(n^3) additions up to n = 100 (0.2 ms at 29), then O(n log n).

    Raises:
        ValueError: if ``d`` is not 1-D, not finite or empty.

    Example:
        >>> signed_rank_test([1.0, 2.0, 3.0])
        0.25
    """
    differences = _check_sample(d)
    differences = differences[differences != 0]
    if not differences.size:
        return 1.0
    sizes = np.abs(differences)
    doubled = np.rint(2 * average_ranks(np.round(sizes / sizes.max(), 12))).astype(int)
    positive, total = int(doubled[differences > 0].sum()), int(doubled.sum())
    smaller = min(positive, total - positive)
    if differences.size > _EXACT_RANKS:
        z = (smaller - total / 2) / (math.sqrt(float((doubled**2).sum())) / 2)
        return min(1.0, math.erfc(-z / math.sqrt(2)))
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(chance)
        moved[rank:] = chance[:-rank]
        chance = (chance + moved) / 2
    return min(1.0, 2 * float(chance[: smaller + 1].sum()))


def rank_sum_test(*pairs: tuple[ArrayLike, ArrayLike]) -> tuple[float, float]:
    """Mann-Whitney test of unpaired samples (a, b): one-sided p-values of "a is higher" and of "b is higher".

    One pair: exact without ties up to 2 500 pairs of runs, else by the tie-corrected normal approximation. Several
    pairs (data sets) are independent: the mean of their P(A > B) is compared with its normal approximation.

    Shapes:
        Each pair: ``a`` (n,), ``b`` (m,).

    Cost:
        O((n + m) log(n + m)), and O(n m min(n, m)) where exact.

    Raises:
        ValueError: if there is no pair, or a sample is not 1-D, not finite or empty.

    Example:
        >>> [round(p, 3) for p in rank_sum_test(([4, 5, 6], [1, 2, 3]))]
        [0.05, 1.0]
    """
    if not pairs:
        raise ValueError("pairs must hold at least one pair of samples")
    strata = [(_check_sample(a, "a"), _check_sample(b, "b")) for a, b in pairs]
    if all(np.ptp(np.concatenate(pair)) == 0 for pair in strata):
        return 1.0, 1.0
    if len(strata) == 1:
        return _one_rank_sum(*strata[0])
    z = sum(share_of_pairs(a, b) - 0.5 for a, b in strata) / math.sqrt(sum(_null_variance(a, b) for a, b in strata))
    return math.erfc(z / math.sqrt(2)) / 2, math.erfc(-z / math.sqrt(2)) / 2


def _one_rank_sum(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> tuple[float, float]:
    from scipy.stats import mannwhitneyu

    ties = np.unique(np.concatenate([a, b])).size < a.size + b.size
    method = "asymptotic" if ties or a.size * b.size > 2_500 else "exact"
    greater, less = (mannwhitneyu(a, b, alternative=side, method=method).pvalue for side in ("greater", "less"))
    return float(greater), float(less)


def _null_variance(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """Variance of P(A > B) over all ways to deal the pooled scores to the two arms, ties included."""
    total = a.size + b.size
    counts = np.unique(np.concatenate([a, b]), return_counts=True)[1]
    tied = float((counts**3 - counts).sum()) / (total * (total - 1))
    return (total + 1 - tied) / (12 * a.size * b.size)


def _check_sample(d: ArrayLike, name: str = "d") -> Float[np.ndarray, " n"]:
    sample = np.asarray(d, float)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"{name} must be a non-empty 1-D sample of finite numbers")
    return sample
