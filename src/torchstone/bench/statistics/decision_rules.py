r"""Rules by which one says "A is better than B", and how often each is wrong where the truth is known.

* ``single-run``: one run of each, A higher by more than a margin (with margin 0, "bold the best");
* ``mean-difference``: the mean of all runs of A higher by more than the margin;
* ``probability``: A ahead in so many pairs that the interval of P(A > B) lies above 1/2 and reaches beyond gamma, the
  rule of :func:`torchstone.bench.statistics.compare`;
* ``sequential``: the rule of :func:`torchstone.bench.statistics.decide`, which may stop before the last pair; any lead
  that it establishes counts.

A rule errs if it finds A better where P(A > B) = 1/2 (false positive), or does not where P(A > B) = gamma, the smallest
probability that matters (false negative). All studies of a simulation are judged in one array operation.

Source: Bouthillier et al., *Accounting for variance in machine learning benchmarks*, MLSys 2021, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float

from torchstone._checks import check_float, check_int, check_one_of
from torchstone.bench.statistics.design import MIN_REPLICATES, critical_wins, evidence_bounds

__all__ = ["RULES", "TYPICAL_GAIN", "ErrorRates", "claims_better", "error_rates", "normal_scores"]

RULES = ("single-run", "mean-difference", "probability", "sequential")

TYPICAL_GAIN = 1.9952
"""The margin that published improvements suggest, in standard deviations of a run (Bouthillier et al. 2021)."""

_SLACK = 1e-9  # sums of half wins are rounded


@dataclass(frozen=True)
class ErrorRates:
    """How often a rule finds a difference that is not there, and misses one that matters."""

    false_positives: float
    false_negatives: float


def claims_better(
    rule: str,
    a: Float[np.ndarray, "studies runs"],
    b: Float[np.ndarray, "studies runs"],
    *,
    margin: float = 0.0,
    gamma: float = 0.75,
    alpha: float = 0.05,
    e_threshold: float = 20.0,
) -> Bool[np.ndarray, " studies"]:
    """Ask a rule, study by study, whether A is better than B.

    Args:
        rule: one of :data:`RULES`.
        a: scores of A, higher is better; run i of both shares what is shared between them.
        b: scores of B.
        margin: what ``single-run`` and ``mean-difference`` demand, in units of the score.
        gamma: probability of outperforming that matters, for the other two.
        alpha: their error rate.
        e_threshold: evidence at which ``sequential`` stops.

    Shapes:
        ``a``, ``b``: (studies, runs); returns (studies,).

    Cost:
        O(studies x runs).

    Raises:
        ValueError: if the shapes differ, a score is NaN, or the rule is unknown.

    Source:
        Module docstring.

    Example:
        >>> a, b = np.array([[2.0] * 6, [1.0] * 6]), np.array([[1.0] * 6, [2.0] * 6])
        >>> [claims_better(rule, a, b, margin=0.5).tolist() for rule in ("mean-difference", "probability")]
        [[True, False], [True, False]]
    """
    check_one_of("rule", rule, RULES)
    check_float("margin", margin, 0)
    if a.ndim != 2 or a.shape != b.shape or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError(f"a and b must be numbers of one shape (studies, runs), but have {a.shape} and {b.shape}")
    if rule == "single-run":
        return a[:, 0] - b[:, 0] > margin
    if rule == "mean-difference":
        return a.mean(axis=1) - b.mean(axis=1) > margin
    runs = a.shape[1]
    if runs < MIN_REPLICATES:
        return np.zeros(len(a), bool)
    wins = np.cumsum((np.sign(a - b) + 1) / 2, axis=1)
    if rule == "probability":
        return wins[:, -1] >= critical_wins(runs, alpha, gamma=gamma, e_threshold=math.inf) - _SLACK
    needed = critical_wins(runs, alpha, gamma=gamma, e_threshold=e_threshold)
    n = np.arange(1, runs + 1)
    enough = np.minimum(evidence_bounds(runs, e_threshold)[1:], needed) - _SLACK
    best = np.maximum(wins, n - wins)
    stop = (n >= MIN_REPLICATES) & ((best >= enough) | (best + runs - n < needed - _SLACK))
    stop[:, -1] = True
    last = stop.argmax(axis=1)
    return wins[np.arange(len(a)), last] >= enough[last]


def normal_scores(
    p: float, *, studies: int, runs: int = 29, rho: float = 0.0, seed: int = 0
) -> tuple[Float[np.ndarray, "studies runs"], Float[np.ndarray, "studies runs"]]:
    r"""Draw scores of A and B with a known P(A > B): normal, of unit variance, pairs correlated by ``rho``.

    .. math:: \mu_A - \mu_B = \sqrt{2 (1 - \rho)} \, \Phi^{-1}(p)

    Shapes:
        Two arrays (studies, runs).

    Cost:
        O(studies x runs).

    Raises:
        ValueError: if ``p`` lies outside (0, 1), ``rho`` outside [0, 1), or a size is below 1.

    Source:
        Module docstring.

    Example:
        >>> a, b = normal_scores(0.75, studies=10_000, runs=10, rho=0.7)
        >>> round(float((a > b).mean()), 2), round(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), 2)
        (0.75, 0.7)
    """
    check_float("p", p, 0, 1, open_low=True, open_high=True)
    check_float("rho", rho, 0, 1, open_high=True)
    check_int("studies", studies, 1)
    check_int("runs", runs, 1)
    shared, a, b = np.random.default_rng(seed).normal(size=(3, studies, runs))
    shift = math.sqrt(2 * (1 - rho)) * NormalDist().inv_cdf(p)
    common, own = math.sqrt(rho) * shared, math.sqrt(1 - rho)
    return common + own * a + shift, common + own * b


def error_rates(
    rule: str,
    *,
    runs: int = 29,
    rho: float = 0.0,
    margin: float = TYPICAL_GAIN,
    gamma: float = 0.75,
    alpha: float = 0.05,
    studies: int = 20_000,
    seed: int = 0,
) -> ErrorRates:
    """Simulate the error rates of a rule on normal scores.

    The arguments are those of :func:`claims_better` and :func:`normal_scores`; scores have unit variance.

    Cost:
        O(studies x runs), about 50 ms by default.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Bouthillier et al. 2021, section 4.3.

    Example:
        >>> rates = error_rates("single-run")
        >>> round(rates.false_positives, 2), round(rates.false_negatives, 2)
        (0.08, 0.77)
    """
    found = [
        claims_better(
            rule,
            *normal_scores(p, studies=studies, runs=runs, rho=rho, seed=seed),
            margin=margin,
            gamma=gamma,
            alpha=alpha,
        ).mean()
        for p in (0.5, gamma)
    ]
    return ErrorRates(float(found[0]), 1 - float(found[1]))
