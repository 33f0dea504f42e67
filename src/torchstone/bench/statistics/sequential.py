r"""When to stop adding replicates, and what to conclude: one exactly valid rule for scores w in [0, 1].

A claim is compared with a coin: does it hold in more than half of the replicates? Looking at an interval after every
replicate would turn its one-sided 3 % error into 12 %, so two rules are combined whose joint error is known exactly:

* the e-process of :mod:`torchstone.bench.statistics.evalues`: stop ahead, or behind, once the evidence reaches a
  threshold;
* the rule for the full number of replicates (percentile interval and sign test), cut short as soon as its outcome is
  certain: one side has the wins it needs (:func:`critical_wins`), or neither side can get them any more.

:func:`decide` applies both to a sequence; :class:`SequentialComparison` feeds it one score at a time;
:mod:`torchstone.bench.statistics.design` computes error, power and expected length.

Source: Bouthillier et al., *Accounting for variance in machine learning benchmarks*, MLSys 2021 (the rule at fixed
length); Ramdas et al., *Game-theoretic statistics and safe anytime-valid inference*, Statist. Sci. 38 (2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int64

from torchstone._checks import check_int
from torchstone.bench.statistics.design import (
    MIN_REPLICATES,
    OperatingCharacteristics,
    critical_wins,
    operating_characteristics,
    sign_test,
)
from torchstone.bench.statistics.evalues import confidence_sequence, e_value, log_e_value
from torchstone.bench.statistics.intervals import percentile_interval
from torchstone.bench.statistics.verdict import Verdict

__all__ = [
    "MIN_REPLICATES",
    "Decision",
    "OperatingCharacteristics",
    "SequentialComparison",
    "confidence_sequence",
    "critical_wins",
    "decide",
    "e_value",
    "fixed_verdict",
    "log_e_value",
    "operating_characteristics",
]

_SLACK = 1e-9  # sums of fractional scores are rounded


@dataclass(frozen=True)
class Decision:
    """What a sequence of scores says, and whether more of them could change it.

    Args:
        verdict: the verdict if no further replicate comes.
        stopped: whether the rule has stopped, so that the verdict is final.
        reason: why, in one sentence.
        n: replicates that count (up to the stop, without those not applicable).
        wins: sum of their scores.
        losses: ``n - wins``.
        e_ahead: e-value for the claim.
        e_behind: e-value for its opposite.
        interval: two-sided 1 - alpha interval of P: percentile once the last planned replicate is in, before that the
            confidence sequence, which holds whenever one looks. Each direction is tested at alpha, so an e-value
            between 1 / alpha and twice that may come with an interval that still touches 1/2.
        estimate: ``wins / n``; NaN without replicates.
        excluded: replicates to which the claim did not apply.
    """

    verdict: Verdict
    stopped: bool
    reason: str
    n: int
    wins: float
    losses: float
    e_ahead: float
    e_behind: float
    interval: tuple[float, float]
    estimate: float
    excluded: int


def fixed_verdict(
    n: int, interval: tuple[float, float], p_ahead: float, p_behind: float, *, gamma: float = 0.75, alpha: float = 0.05
) -> Verdict:
    """Verdict of a comparison whose number of replicates was fixed in advance.

    The percentile interval decides; the one-sided exact tests guard it where it is too narrow, at small n.

    Args:
        n: replicates (of the smaller arm where they differ).
        interval: percentile interval of P at level 1 - alpha.
        p_ahead: one-sided p-value for the claim.
        p_behind: one-sided p-value for its opposite.
        gamma: probability from which on the claim is meaningful.
        alpha: error rate of the exact tests.

    Example:
        >>> print(fixed_verdict(100, (0.52, 0.71), 0.01, 0.99))
        significant, not meaningful
    """
    low, high = interval
    if n < MIN_REPLICATES:
        return Verdict.TOO_FEW
    if low > 0.5 and p_ahead <= alpha:
        return Verdict.NOT_MEANINGFUL if high <= gamma else Verdict.REPRODUCED
    if high < 0.5 and p_behind <= alpha:
        return Verdict.REFUTED
    return Verdict.NOT_SIGNIFICANT


def decide(
    w: Iterable[float],
    *,
    n_max: int = 29,
    n_min: int = MIN_REPLICATES,
    gamma: float = 0.75,
    alpha: float = 0.05,
    e_threshold: float = 20.0,
    fixed: bool | None = None,
) -> Decision:
    """Decide from the scores of replicates 0, 1, 2, ... whether a claim holds in more than half of them.

    The rule walks the sequence and stops at the first replicate that settles it; later scores are ignored, so the
    answer does not depend on how many replicates were run at a time. A score of NaN (not applicable) uses up its place
    among the ``n_max`` and is otherwise left out. Where the sequence ends before the rule stops, the verdict is *too
    few replicates* below ``n_min``, else *not significant*, with ``stopped=False``. *Degenerate* means that every
    score is 1/2. *Significant, not meaningful* is enough evidence with an interval that ends at ``gamma`` or below;
    that takes about 170 replicates.

    With a fixed number of replicates nothing is looked at before the last (until then: *too few replicates*), and the
    percentile interval and the sign test decide.

    Args:
        w: scores in [0, 1]: 1 the claim held, 0 it failed, 1/2 a tie; NaN not applicable.
        n_max: replicates planned.
        n_min: no decision before so many (and never before 6).
        gamma: probability of holding from which on the claim is meaningful.
        alpha: error rate in each direction.
        e_threshold: evidence that decides, at least 1 / alpha; 100 for results that must survive adjustment.
        fixed: whether the number is fixed; by default where ``n_min == n_max``.

    Cost:
        O(len(w)), about 0.2 ms at 29.

    Raises:
        ValueError: if a score lies outside [0, 1] or a setting out of its range.

    Source:
        Module docstring.

    Example:
        >>> decision = decide([1, 1, 1, 1, 1, 1])
        >>> print(decision.verdict, decision.stopped, decision.reason, sep="; ")
        reproduced; True; e-value 28.8 reaches 20 after 6 replicates
    """
    check_int("n_max", n_max, 1)
    check_int("n_min", n_min, 1)
    scores = _check_scores(w)[:n_max]
    fixed = n_min == n_max if fixed is None else fixed
    floor = MIN_REPLICATES if fixed else max(n_min, MIN_REPLICATES)
    needed = critical_wins(n_max, alpha, gamma=gamma, e_threshold=e_threshold, n_min=n_min)
    counts = ~np.isnan(scores)
    n, wins = np.cumsum([0, *counts]), np.cumsum([0.0, *np.where(counts, scores, 0.0)])
    if fixed:
        stop = n_max if len(scores) == n_max else None
    else:
        stop = _first_stop(wins, n, n_max, floor, needed, e_threshold)
    t = len(scores) if stop is None else stop
    used = scores[:t][counts[:t]]
    decision = _describe(used, excluded=t - used.size, complete=t == n_max, stopped=stop is not None, alpha=alpha)
    if not t:
        return decision
    if decision.n < floor:
        verdict, reason = Verdict.TOO_FEW, f"{_count(decision.n)}, and no decision is possible before {floor}"
    elif np.all(used == 0.5):
        verdict, reason = Verdict.DEGENERATE, f"all {_count(decision.n)} are ties"
    elif fixed:
        verdict, reason = _fixed_outcome(decision, n_max, gamma, alpha)
    else:
        verdict, reason = _sequential_outcome(decision, n_max, needed, gamma, e_threshold)
    return replace(decision, verdict=verdict, reason=reason)


def _check_scores(w: Iterable[float]) -> Float[np.ndarray, " n"]:
    scores = np.asarray(w if isinstance(w, np.ndarray) else list(w), float)
    if scores.ndim != 1:
        raise ValueError(f"w must have shape (replicates,), but has {scores.shape}")
    bad = np.flatnonzero((scores < 0) | (scores > 1))
    if bad.size:
        raise ValueError(f"w must lie in [0, 1], but is {scores[bad[0]]:g} in replicate {bad[0]}")
    return scores


def _first_stop(
    wins: Float[np.ndarray, " t"], n: Int64[np.ndarray, " t"], n_max: int, floor: int, needed: int, e_threshold: float
) -> int | None:
    """After how many replicates the sequential rule stops; None if it goes on. Entry t is the state after t of them."""
    left = n_max - np.arange(len(n))
    best = np.maximum(wins, n - wins)
    # With more losses than wins the evidence for the claim is below 1, so only the better side can reach the threshold.
    settled = (log_e_value(best, n) >= math.log(e_threshold) - _SLACK) | (best >= needed - _SLACK)
    hopeless = best + left < needed - _SLACK
    stops = np.flatnonzero((n >= floor) & (settled | hopeless) | (left == 0))
    return int(stops[0]) if stops.size else None


def _describe(used: Float[np.ndarray, " n"], *, excluded: int, complete: bool, stopped: bool, alpha: float) -> Decision:
    """Everything about a decision but its verdict and reason."""
    n, wins = used.size, float(used.sum())
    losses = n - wins
    interval = percentile_interval(used, alpha=alpha) if complete and n else confidence_sequence(wins, n, alpha=alpha)
    return Decision(
        Verdict.NOT_RUN,
        stopped,
        "there is no replicate",
        n,
        wins,
        losses,
        e_value(wins, n),
        e_value(losses, n),
        interval,
        wins / n if n else math.nan,
        excluded,
    )


def _fixed_outcome(decision: Decision, n_max: int, gamma: float, alpha: float) -> tuple[Verdict, str]:
    n, wins = decision.n, decision.wins
    if not decision.stopped:
        return Verdict.TOO_FEW, f"{_count(n)} of the {n_max} that were fixed in advance"
    tests = sign_test(wins, n), sign_test(decision.losses, n)
    verdict = fixed_verdict(n, decision.interval, *tests, gamma=gamma, alpha=alpha)
    return verdict, f"{wins:g} wins in the {_count(n)} fixed in advance"


def _sequential_outcome(
    decision: Decision, n_max: int, needed: int, gamma: float, e_threshold: float
) -> tuple[Verdict, str]:
    if not decision.stopped:
        return Verdict.NOT_SIGNIFICANT, f"no decision yet after {_count(decision.n)} of at most {n_max}"
    ahead = decision.wins > decision.losses
    evidence, best = max(decision.e_ahead, decision.e_behind), max(decision.wins, decision.losses)
    if evidence >= e_threshold * (1 - _SLACK):
        reason = f"e-value {evidence:.3g} reaches {e_threshold:g} after {_count(decision.n)}"
    elif best >= needed - _SLACK:
        reason = f"{best:g} {'wins' if ahead else 'losses'} decide a comparison of {n_max}"
    else:
        return Verdict.NOT_SIGNIFICANT, f"neither side can reach {needed} wins in {n_max} replicates"
    if not ahead:
        return Verdict.REFUTED, reason
    return (Verdict.NOT_MEANINGFUL if decision.interval[1] <= gamma else Verdict.REPRODUCED), reason


def _count(n: int) -> str:
    return f"{n} replicate{'s' * (n != 1)}"


@dataclass
class SequentialComparison:
    """A comparison that grows by one replicate at a time and says when to stop.

    Give each replicate's score to :meth:`update` and stop when the decision says so: the settings are those of
    :func:`decide`, and so is the answer.

    Cost:
        O(replicates so far) for each update.

    Raises:
        ValueError: from :meth:`update`, if a score lies outside [0, 1] or a setting out of its range.

    Source:
        Module docstring.

    Example:
        >>> comparison = SequentialComparison(n_max=29)
        >>> for ours, theirs in [(0.91, 0.88), (0.90, 0.89), (0.92, 0.87), (0.93, 0.90), (0.91, 0.90), (0.89, 0.86)]:
        ...     decision = comparison.update(float(ours > theirs))
        >>> print(decision.verdict, decision.stopped)
        reproduced True
    """

    n_max: int = 29
    n_min: int = MIN_REPLICATES
    gamma: float = 0.75
    alpha: float = 0.05
    e_threshold: float = 20.0
    w: list[float] = field(default_factory=list)

    def update(self, w: float) -> Decision:
        """Add the score of the next replicate and decide; a score that is out of range is not added."""
        decision = self._decide([*self.w, float(w)])
        self.w.append(float(w))
        return decision

    @property
    def decision(self) -> Decision:
        """The decision on the scores so far."""
        return self._decide(self.w)

    def _decide(self, w: list[float]) -> Decision:
        return decide(
            w, n_max=self.n_max, n_min=self.n_min, gamma=self.gamma, alpha=self.alpha, e_threshold=self.e_threshold
        )
