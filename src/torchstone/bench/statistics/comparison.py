r"""Two arms, one verdict: the probability of outperforming, its interval, the tests and the size of the effect.

The number that counts is how often one run of A beats one run of B, :math:`P(A > B)`, not how far two means lie apart.
Paired (the default) replicate i of both arms shares its data split and seeds, and
:math:`P = \frac1n \sum_i 1[a_i > b_i] + \frac12 1[a_i = b_i]`; unpaired, the mean runs over all pairs (U / nm).
Several data sets are judged one by one and averaged; their scores are never pooled.

The number of replicates counts as fixed in advance. For a comparison that may stop early see
:mod:`torchstone.bench.statistics.sequential`.

Source: Bouthillier et al., *Accounting for variance in machine learning benchmarks*, MLSys 2021, sections 4 and 5;
Agarwal et al., *Deep reinforcement learning at the edge of the statistical precipice*, NeurIPS 2021 (several data
sets). Beyond them: the interval is guarded by an exact one-sided test and at least 6 replicates, because percentile
intervals are too narrow when few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from torchstone._checks import check_float, check_one_of
from torchstone.bench.statistics._samples import as_array, pair_up
from torchstone.bench.statistics.design import MIN_REPLICATES
from torchstone.bench.statistics.effect import (
    Effect,
    Strata,
    average,
    effect_size,
    resampled_differences,
    share_of_pairs,
    welch_error,
)
from torchstone.bench.statistics.intervals import percentile_interval, rank_interval
from torchstone.bench.statistics.sequential import fixed_verdict
from torchstone.bench.statistics.significance import rank_sum_test, sign_flip_test, sign_test, signed_rank_test
from torchstone.bench.statistics.verdict import Verdict

__all__ = ["CLAIMS", "Comparison", "Effect", "compare", "compare_strata", "probability_of_outperforming"]

CLAIMS = ("superior", "noninferior", "equivalent", "ratio")

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """What the scores of two arms say about a claim.

    Args:
        p: how often a run of a beats a run of b; by the margin, for claims with one (``delta``).
        ci: percentile bootstrap interval of ``p`` at level 1 - alpha.
        p_value: two-sided; paired sign-flip test of the mean difference (for several data sets, of the mean score),
            unpaired Mann-Whitney; for ``claim="equivalent"`` the larger of the two one-sided t-tests.
        verdict: the verdict.
        effect: how large the difference is.
        claim: the claim, one of :data:`CLAIMS`.
        paired: whether replicates were matched.
        n: replicates of a and of b, on the data set that has the fewest.
        wins: comparisons that a wins: replicates, or pairs of runs; over all data sets.
        ties: comparisons that are tied.
        losses: comparisons that a loses.
        one_sided_p: the test that guards the verdict: sign test (paired) or Mann-Whitney, for the claim.
        wilcoxon_p: two-sided signed-rank test; NaN for unpaired scores and several data sets.
        unmatched: replicates without a partner, left out.
        gamma: probability from which on a difference is meaningful.
        delta: the margin, where the claim has one.
        alpha: error rate.
    """

    p: float
    ci: tuple[float, float]
    p_value: float
    verdict: Verdict
    effect: Effect
    claim: str
    paired: bool
    n: tuple[int, int]
    wins: int
    ties: int
    losses: int
    one_sided_p: float
    wilcoxon_p: float
    unmatched: int
    gamma: float
    delta: float | None
    alpha: float


def probability_of_outperforming(a: Any, b: Any, paired: bool = True) -> float:
    r"""Estimate P(A > B), how often a run of a beats a run of b; a tie counts half.

    .. math:: P = \frac1n \sum_i w(a_i, b_i) \;\text{(paired)} \qquad P = \frac1{nm} \sum_{ij} w(a_i, b_j)
        \;\text{(unpaired)}, \qquad w(x, y) = 1[x > y] + \tfrac12 1[x = y]

    Shapes:
        ``a``: (n,) or (n, data sets); ``b``: (m,) or (m, data sets), m = n if paired. Lists, arrays, tensors, or
        mappings from replicate to score, which are matched by replicate.

    Cost:
        O(n) paired, O((n + m) log(n + m)) unpaired, per data set.

    Raises:
        ValueError: if a score is NaN or infinite, an arm has fewer than 2, or shapes do not fit.

    Source:
        Module docstring.

    Example:
        >>> probability_of_outperforming([3, 2, 5], [1, 2, 4])
        0.8333333333333334
        >>> round(probability_of_outperforming([3, 2, 5], [1, 2, 4], paired=False), 4)
        0.7222
    """
    strata, _ = _strata(a, b, paired)
    return average([_share(x, y, paired) for x, y in strata])


def compare(
    a: Any,
    b: Any,
    *,
    paired: bool = True,
    claim: str = "superior",
    gamma: float = 0.75,
    delta: float | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Comparison:
    r"""Put a claim about arm a over arm b to the test; higher scores are better (negate errors).

    ============== ==================================== =========================================================
    claim          a beats b in a run if                reproduced if
    ============== ==================================== =========================================================
    superior       :math:`a > b`                        interval of P above 1/2, not below gamma, sign test
    noninferior    :math:`a > b - \delta`               the same, and mean difference above -delta (1 - alpha bound)
    equivalent     :math:`a > b` (described only)       1 - 2 alpha interval of the mean difference and both
                                                        one-sided t-tests inside (-delta, delta)
    ratio          :math:`a > \delta b`                 interval of the geometric mean ratio above delta, sign test
    ============== ==================================== =========================================================

    Args:
        a: scores of the arm that the claim is about.
        b: scores of the other.
        paired: replicate i of both shares split and seeds. False for imported results.
        claim: one of :data:`CLAIMS`.
        gamma: probability of outperforming from which on a difference is meaningful.
        delta: margin in units of the score (noninferior, equivalent), or the ratio to exceed (ratio; default 1).
        alpha: error rate; divide it by the number of pairs shown together.
        seed: of the bootstrap where it has no closed form.

    Shapes:
        As for :func:`probability_of_outperforming`.

    Cost:
        About 3 ms for 29 pairs; the interval of P is exact, only that of the mean is drawn.

    Raises:
        ValueError: if scores are unusable (see :func:`probability_of_outperforming`), a margin is missing, out of
            range or without meaning for the claim, or a ratio is asked of scores that are not positive.

    Source:
        Module docstring; Schuirmann, *A comparison of the two one-sided tests procedure ...*, 1987 (equivalence).

    Example:
        >>> a = [0.912, 0.905, 0.921, 0.917, 0.909, 0.915, 0.920, 0.913, 0.918, 0.911]
        >>> b = [0.905, 0.907, 0.912, 0.910, 0.908, 0.906, 0.915, 0.909, 0.911, 0.904]
        >>> result = compare(a, b)
        >>> print(result.p, result.ci, result.verdict)
        0.9 (0.7, 1.0) reproduced
    """
    strata, unmatched = _strata(a, b, paired)
    return compare_strata(
        strata, paired=paired, claim=claim, gamma=gamma, delta=delta, alpha=alpha, seed=seed, unmatched=unmatched
    )


def compare_strata(
    strata: Strata,
    *,
    paired: bool = True,
    claim: str = "superior",
    gamma: float = 0.75,
    delta: float | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    unmatched: int = 0,
) -> Comparison:
    """Do :func:`compare` on one pair of 1-D samples per data set, which (unpaired) may differ in size."""
    margin = _check_margin(claim, delta)
    check_float("gamma", gamma, 0.5, 1, open_high=True)
    check_float("alpha", alpha, 0, 0.5, open_low=True, open_high=True)
    if claim == "ratio":
        _check_positive(strata)
    judged = [(x, _to_beat(y, claim, margin)) for x, y in strata]
    p_ahead, p_behind = _one_sided(judged, paired)
    if paired:
        ci = percentile_interval(*(_wins(x, y) for x, y in judged), alpha=alpha)
    else:
        ci = rank_interval(*judged, alpha=alpha, seed=seed)
    effect = effect_size(strata, paired=paired, ratio=claim == "ratio", alpha=alpha, seed=seed)
    n = (min(x.size for x, _ in strata), min(y.size for _, y in strata))
    verdict = fixed_verdict(min(n), ci, p_ahead, p_behind, gamma=gamma, alpha=alpha)
    p_value = _two_sided(judged, paired, claim, p_ahead, p_behind)
    if claim == "noninferior" and verdict in (Verdict.REPRODUCED, Verdict.NOT_MEANINGFUL):
        bound = np.quantile(resampled_differences(strata, paired=paired, seed=seed), alpha)
        verdict = verdict if bound > -margin else Verdict.NOT_SIGNIFICANT
    elif claim == "equivalent":
        p_value = _two_t_tests(strata, paired, margin, effect.mean_difference)
        ends = np.quantile(resampled_differences(strata, paired=paired, seed=seed), [alpha, 1 - alpha])
        verdict = _equivalence(min(n), float(ends[0]), float(ends[1]), p_value, margin, alpha)
    elif claim == "ratio":
        verdict = _ratio(min(n), effect.ratio_ci, p_ahead, p_behind, margin, alpha)
    if verdict is not Verdict.TOO_FEW and _degenerate(strata, judged, paired, claim):
        verdict = Verdict.DEGENERATE
    wins, ties, losses = _counts(judged, paired)
    return Comparison(
        p=average([_share(x, y, paired) for x, y in judged]),
        ci=ci,
        p_value=p_value,
        verdict=verdict,
        effect=effect,
        claim=claim,
        paired=paired,
        n=n,
        wins=wins,
        ties=ties,
        losses=losses,
        one_sided_p=p_ahead,
        wilcoxon_p=signed_rank_test(_differences(*judged[0], claim)) if paired and len(judged) == 1 else math.nan,
        unmatched=unmatched,
        gamma=gamma,
        delta=None if claim == "superior" else margin,
        alpha=alpha,
    )


def _check_margin(claim: str, delta: float | None) -> float:
    """Return the margin of a claim; 0 where it has none."""
    check_one_of("claim", claim, CLAIMS)
    if claim == "superior":
        if delta is not None:
            raise ValueError(f"delta has no meaning for claim='superior', but is {delta!r}")
        return 0.0
    if delta is None and claim != "ratio":
        raise ValueError(f"claim={claim!r} needs delta, the margin that was declared beforehand")
    return check_float("delta", 1.0 if delta is None else delta, 0, open_low=True)


def _strata(a: Any, b: Any, paired: bool) -> tuple[Strata, int]:
    """The scores as one pair of 1-D arrays per data set, and how many replicates have no partner."""
    unmatched = 0
    if paired:
        a, b, unmatched = pair_up(a, b)
    x, y = as_array("a", a), as_array("b", b)
    if x.ndim != y.ndim or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"a and b must speak about the same data sets, but have shapes {x.shape} and {y.shape}")
    if paired and len(x) != len(y):
        raise ValueError(
            f"a has {len(x)} replicates and b has {len(y)}, so they cannot be paired by position: "
            "give mappings from replicate id to score, or paired=False"
        )
    return list(zip(np.atleast_2d(x.T), np.atleast_2d(y.T), strict=True)), unmatched


def _check_positive(strata: Strata) -> None:
    for x, y in strata:
        for name, scores in (("a", x), ("b", y)):
            bad = np.flatnonzero(scores <= 0)
            if bad.size:
                place = f"but arm {name!r} has {scores[bad[0]]:g} in replicate {bad[0]}"
                raise ValueError(f"claim='ratio' needs positive scores, {place}")


def _to_beat(b: Float[np.ndarray, " m"], claim: str, margin: float) -> Float[np.ndarray, " m"]:
    """What a run of a has to exceed."""
    if claim == "noninferior":
        return b - margin
    return b * margin if claim == "ratio" else b


def _wins(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return (a > b) + (a == b) / 2


def _share(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], paired: bool) -> float:
    return float(_wins(a, b).mean()) if paired else share_of_pairs(a, b)


def _differences(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], claim: str) -> Float[np.ndarray, " n"]:
    return np.log(a) - np.log(b) if claim == "ratio" else a - b


def _counts(strata: Strata, paired: bool) -> tuple[int, int, int]:
    """Wins, ties and losses, over replicates or over all pairs of runs."""
    wins = ties = total = 0
    for a, b in strata:
        if paired:
            wins, ties, total = wins + int((a > b).sum()), ties + int((a == b).sum()), total + a.size
        else:
            below, upto = np.searchsorted(np.sort(b), a, "left"), np.searchsorted(np.sort(b), a, "right")
            wins, ties, total = wins + int(below.sum()), ties + int((upto - below).sum()), total + a.size * b.size
    return wins, ties, total - wins - ties


def _one_sided(strata: Strata, paired: bool) -> tuple[float, float]:
    """p-values for P > 1/2 and for P < 1/2."""
    if not paired:
        return rank_sum_test(*strata)
    w = np.mean([_wins(a, b) for a, b in strata], axis=0)
    wins = float(w.sum())
    return sign_test(wins, w.size), sign_test(w.size - wins, w.size)


def _two_sided(strata: Strata, paired: bool, claim: str, p_ahead: float, p_behind: float) -> float:
    if not paired:
        return min(1.0, 2 * min(p_ahead, p_behind))
    if len(strata) == 1:
        return sign_flip_test(_differences(*strata[0], claim))
    return sign_flip_test(np.mean([_wins(a, b) for a, b in strata], axis=0) - 0.5)


def _two_t_tests(strata: Strata, paired: bool, margin: float, difference: float) -> float:
    """Larger p-value of the two one-sided t-tests against a mean difference of -margin and of margin."""
    from scipy.special import stdtr

    error, freedom = welch_error(strata, paired=paired)
    room = margin - abs(difference)
    if error <= _ROUNDING * margin:
        return 0.0 if room > 0 else 1.0
    return float(stdtr(freedom, -room / error))


def _equivalence(n: int, low: float, high: float, p_value: float, margin: float, alpha: float) -> Verdict:
    if n < MIN_REPLICATES:
        return Verdict.TOO_FEW
    if -margin < low and high < margin and p_value <= alpha:
        return Verdict.REPRODUCED
    outside = low > margin or high < -margin
    return Verdict.REFUTED if outside and p_value >= 1 - alpha else Verdict.NOT_SIGNIFICANT


def _ratio(
    n: int, interval: tuple[float, float], p_ahead: float, p_behind: float, margin: float, alpha: float
) -> Verdict:
    if n < MIN_REPLICATES:
        return Verdict.TOO_FEW
    if interval[0] > margin and p_ahead <= alpha:
        return Verdict.REPRODUCED
    return Verdict.REFUTED if interval[1] < margin and p_behind <= alpha else Verdict.NOT_SIGNIFICANT


def _degenerate(strata: Strata, judged: Strata, paired: bool, claim: str) -> bool:
    """Whether nothing varies at all, or (where ties say nothing) every comparison is a tie."""
    if all(np.ptp(np.concatenate(pair)) == 0 for pair in strata):
        return True
    return claim != "equivalent" and paired and all(np.array_equal(a, b) for a, b in judged)
