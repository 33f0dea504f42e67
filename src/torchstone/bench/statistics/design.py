r"""How many replicates a comparison needs, and how often its rule is wrong: exact numbers, no simulation.

The rule itself is :func:`torchstone.bench.statistics.sequential.decide`. Here are the number of wins that decides a
comparison of given length, the error, power and expected length of the rule, and the classical sample size for a fixed
length.

Source: Bouthillier et al., *Accounting for variance in machine learning benchmarks*, MLSys 2021, appendix C (29
replicates at gamma = 3/4); Noether, *Sample size determination for some common nonparametric tests*, JASA 82 (1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from torchstone._checks import check_float, check_int
from torchstone.bench.statistics.evalues import log_e_value
from torchstone.bench.statistics.intervals import percentile_interval

__all__ = [
    "MIN_REPLICATES",
    "OperatingCharacteristics",
    "critical_wins",
    "evidence_bounds",
    "operating_characteristics",
    "sample_size",
    "sign_test",
]

MIN_REPLICATES = 6  # below, a percentile interval is meaningless: 5 wins of 5 give [1, 1]
_SLACK = 1e-9  # sums of fractional scores are rounded


def sign_test(wins: float, n: int) -> float:
    """One-sided p-value of ``wins`` out of ``n``: P(Binomial(n, 1/2) >= wins), fractions of a win rounded down.

    Example:
        >>> sign_test(9, 10), sign_test(4.5, 5)
        (0.0107421875, 0.1875)
    """
    from scipy.special import betainc

    k = math.floor(wins + _SLACK)
    return 1.0 if k <= 0 else float(betainc(k, n - k + 1, 0.5))


@dataclass(frozen=True)
class OperatingCharacteristics:
    """Probabilities that the sequential rule ends ahead, behind or undecided, and its expected number of replicates."""

    ahead: float
    behind: float
    undecided: float
    expected_n: float


def operating_characteristics(
    n_max: int,
    p: float,
    e_threshold: float = 20.0,
    *,
    n_min: int = MIN_REPLICATES,
    ties: float = 0.0,
    wins_needed: int | None = None,
    gamma: float = 0.75,
    alpha: float = 0.05,
) -> OperatingCharacteristics:
    """Exact error, power and length of the sequential rule, by dynamic programming over (n, wins).

    Args:
        n_max: largest number of replicates.
        p: expected score of a replicate: P(win) plus half of P(tie).
        e_threshold: evidence at which to stop; ``math.inf`` leaves the rule at ``n_max`` alone.
        n_min: no decision before so many replicates.
        ties: probability of a tie.
        wins_needed: wins that decide; by default :func:`critical_wins`.
        gamma: see :func:`critical_wins`.
        alpha: see :func:`critical_wins`.

    Cost:
        O(n_max^2).

    Raises:
        ValueError: if a probability lies outside its range.

    Example:
        >>> fair = operating_characteristics(29, 0.5)
        >>> round(fair.ahead, 4), round(fair.expected_n, 1)
        (0.0468, 22.5)
    """
    check_int("n_max", n_max, 1)
    check_float("p", p, 0, 1)
    check_float("ties", ties, 0, 2 * min(p, 1 - p))
    if wins_needed is None:
        wins_needed = critical_wins(n_max, alpha, gamma=gamma, e_threshold=e_threshold, n_min=n_min)
    bounds = evidence_bounds(n_max, e_threshold)
    floor = max(n_min, MIN_REPLICATES)
    loss, win = 1 - p - ties / 2, p - ties / 2
    alive = np.ones(1)  # probability of each sum of half wins among the sequences that go on
    ahead = behind = undecided = expected = 0.0
    for n in range(1, n_max + 1):
        grown = np.zeros(2 * n + 1)
        grown[:-2] += loss * alive
        grown[1:-1] += ties * alive
        grown[2:] += win * alive
        alive = grown
        if n < floor and n < n_max:
            continue
        wins, left = np.arange(2 * n + 1) / 2, n_max - n
        enough = min(bounds[n], wins_needed) if n >= floor else math.inf
        up, down = wins >= enough, n - wins >= enough
        over = ~up & ~down & ((left == 0) | ((wins + left < wins_needed) & (n - wins + left < wins_needed)))
        ahead += float(alive[up].sum())
        behind += float(alive[down].sum())
        undecided += float(alive[over].sum())
        stop = up | down | over
        expected += n * float(alive[stop].sum())
        alive = np.where(stop, 0.0, alive)
    return OperatingCharacteristics(ahead, behind, undecided, expected)


@lru_cache(maxsize=64)
def evidence_bounds(n_max: int, e_threshold: float) -> tuple[float, ...]:
    """For n = 0..n_max the smallest number of (half) wins whose e-value reaches the threshold; inf if none does."""
    bounds = [math.inf]
    for n in range(1, n_max + 1):
        wins = np.arange(n, 2 * n + 1) / 2
        reached = np.flatnonzero(log_e_value(wins, n) >= math.log(e_threshold) - _SLACK)
        bounds.append(float(wins[reached[0]]) if reached.size else math.inf)
    return tuple(bounds)


@lru_cache(maxsize=256)
def critical_wins(
    n_max: int,
    alpha: float = 0.05,
    *,
    gamma: float = 0.75,
    e_threshold: float = 20.0,
    n_min: int = MIN_REPLICATES,
) -> int:
    """Wins that decide a comparison of at most ``n_max`` replicates; ``n_max + 1`` if no number does.

    The smallest k such that k of ``n_max`` wins have a percentile interval above 1/2 that reaches beyond ``gamma``, a
    one-sided sign test of at most ``alpha``, and such that the whole rule, evidence included, errs in each direction
    with probability at most ``alpha``.

    Cost:
        One dynamic programme per candidate, about 1 ms at 29 replicates and 20 ms at 200; results are kept.

    Raises:
        ValueError: if ``e_threshold`` is below 1 / alpha, which alone would exceed ``alpha``.

    Example:
        >>> [critical_wins(n) for n in (13, 29, 200)]
        [11, 20, 138]
    """
    check_int("n_max", n_max, 1)
    check_float("alpha", alpha, 0, 0.5, open_low=True, open_high=True)
    check_float("gamma", gamma, 0.5, 1, open_high=True)
    check_float("e_threshold", e_threshold, 1 / alpha - _SLACK)
    for wins in range(n_max // 2 + 1, n_max + 1):
        if sign_test(wins, n_max) > alpha:
            continue
        low, high = percentile_interval(np.arange(n_max) < wins, alpha=alpha)
        if low > 0.5 and high > gamma:
            rule = operating_characteristics(n_max, 0.5, e_threshold, n_min=n_min, wins_needed=wins)
            if rule.ahead <= alpha:
                return wins
    return n_max + 1


def sample_size(gamma: float = 0.75, alpha: float = 0.05, beta: float = 0.05) -> int:
    r"""Replicates per arm for a comparison of fixed length, by Noether's formula.

    .. math:: N = \Bigl\lceil \Bigl(\frac{z_{1-\alpha} - z_\beta}{\sqrt 6 \, (1/2 - \gamma)}\Bigr)^2 \Bigr\rceil

    Derived for the unpaired rank-sum test. The paired rule at the 29 replicates it gives for gamma = 3/4 has size .031
    and power .834 at a true P of 3/4, not .95; ask :func:`operating_characteristics` for others.

    Args:
        gamma: probability of outperforming that should be found.
        alpha: one-sided error rate.
        beta: probability of missing it.

    Cost:
        O(1).

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Noether 1987.

    Example:
        >>> [sample_size(gamma) for gamma in (0.6, 0.75, 0.9)]
        [181, 29, 12]
    """
    check_float("gamma", gamma, 0.5, 1, open_low=True)
    check_float("alpha", alpha, 0, 0.5, open_low=True)
    check_float("beta", beta, 0, 0.5, open_low=True)
    z = NormalDist().inv_cdf(1 - alpha) - NormalDist().inv_cdf(beta)
    return math.ceil((z / (math.sqrt(6) * (0.5 - gamma))) ** 2)
