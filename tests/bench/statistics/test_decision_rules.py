from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from torchstone.bench.statistics import (
    claims_better,
    compare,
    critical_wins,
    decide,
    error_rates,
    normal_scores,
    operating_characteristics,
    probability_of_outperforming,
)
from torchstone.bench.statistics.decision_rules import RULES, TYPICAL_GAIN
from torchstone.bench.statistics.verdict import Verdict

PHI = NormalDist().cdf


def grid(studies=300, runs=29, ties=True, seed=0):
    """Scores of many strengths, with ties if they are whole numbers."""
    rng = np.random.default_rng(seed)
    a = rng.normal(rng.uniform(-1, 2, size=(studies, 1)), 1, size=(studies, runs))
    b = rng.normal(size=(studies, runs))
    return (np.rint(2 * a), np.rint(2 * b)) if ties else (a, b)


@pytest.mark.parametrize("runs", [6, 13, 29, 150])
@pytest.mark.parametrize("level", [{}, {"alpha": 0.1, "e_threshold": 10.0}], ids=["usual", "loose"])
def test_sequential_rule_is_that_of_the_bench(runs, level):
    a, b = grid(runs=runs)
    found = claims_better("sequential", a, b, **level)
    decisions = [decide((np.sign(x - y) + 1) / 2, n_max=runs, **level) for x, y in zip(a, b, strict=True)]
    verdicts = {True: (Verdict.REPRODUCED, Verdict.NOT_MEANINGFUL), False: (Verdict.REFUTED, Verdict.NOT_SIGNIFICANT)}
    assert all(decision.verdict in verdicts[bool(better)] for decision, better in zip(decisions, found, strict=True))
    assert 0 < found.mean() < 1


def test_probability_rule_is_that_of_compare():
    a, b = grid(studies=60, ties=False)
    expected = [compare(x, y).verdict == Verdict.REPRODUCED for x, y in zip(a, b, strict=True)]
    assert claims_better("probability", a, b).tolist() == expected


def test_rules_of_thumb_by_hand():
    a, b = np.array([[3.0, 0.0], [2.0, 2.0], [1.5, 9.0]]), np.zeros((3, 2))
    assert claims_better("single-run", a, b, margin=1.5).tolist() == [True, True, False]
    assert claims_better("mean-difference", a, b, margin=1.5).tolist() == [False, True, True]
    assert claims_better("single-run", a - 2, b).tolist() == [True, False, False]  # a tie is no lead


@pytest.mark.parametrize("rule", ["probability", "sequential"])
def test_few_runs_decide_nothing(rule):
    assert not claims_better(rule, np.ones((1, 5)), np.zeros((1, 5))).any()
    assert claims_better(rule, np.ones((1, 6)), np.zeros((1, 6))).all()


@pytest.mark.parametrize(("p", "rho"), [(0.5, 0.0), (0.75, 0.0), (0.75, 0.7), (0.9, 0.3)])
def test_truth_is_what_was_asked_for(p, rho):
    a, b = normal_scores(p, studies=20_000, runs=5, rho=rho, seed=1)
    assert (a > b).mean() == pytest.approx(p, abs=0.007)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] == pytest.approx(rho, abs=0.01)
    assert (a.std(), b.std(), b.mean()) == (
        pytest.approx(1, abs=0.01),
        pytest.approx(1, abs=0.01),
        pytest.approx(0, abs=0.01),
    )
    if not rho:
        assert probability_of_outperforming(a[:, 0], b[:, 0], paired=False) == pytest.approx(p, abs=0.01)


def test_error_rates_are_those_of_theory():
    single = error_rates("single-run")
    shift = math.sqrt(2) * NormalDist().inv_cdf(0.75)  # 0.9539
    assert single.false_positives == pytest.approx(1 - PHI(TYPICAL_GAIN / math.sqrt(2)), abs=0.008)
    assert single.false_negatives == pytest.approx(PHI((TYPICAL_GAIN - shift) / math.sqrt(2)), abs=0.01)
    bold = error_rates("single-run", margin=0.0)
    assert (bold.false_positives, bold.false_negatives) == (
        pytest.approx(0.5, abs=0.012),
        pytest.approx(0.25, abs=0.01),
    )
    mean = error_rates("mean-difference", margin=1.0, runs=10)
    error = math.sqrt(2 / 10)
    assert mean.false_positives == pytest.approx(1 - PHI(1 / error), abs=0.005)
    assert mean.false_negatives == pytest.approx(PHI((1 - shift) / error), abs=0.012)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_error_rates_of_the_verdicts_are_the_exact_ones(rho):
    fixed, sequential = error_rates("probability", rho=rho), error_rates("sequential", rho=rho)
    assert critical_wins(29, e_threshold=math.inf) == 20
    assert fixed.false_positives == pytest.approx(0.0307, abs=0.005)
    assert fixed.false_negatives == pytest.approx(1 - 0.8337, abs=0.01)
    for p, rate in ((0.5, sequential.false_positives), (0.75, 1 - sequential.false_negatives)):
        assert rate == pytest.approx(operating_characteristics(29, p).ahead, abs=0.01)
    assert sequential.false_positives <= 0.05


def test_reading_the_published_percentages():
    """Those of the single run fit P = 1/2 and P = 3/4; the other two rules do better here than in the figure."""
    single = error_rates("single-run")
    assert (single.false_positives, single.false_negatives) == (
        pytest.approx(0.10, abs=0.05),
        pytest.approx(0.75, abs=0.05),
    )
    assert error_rates("probability").false_negatives < error_rates("mean-difference").false_negatives


def test_unusable_scores_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        claims_better("single-run", np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="one shape"):
        claims_better("single-run", np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="numbers of one shape"):
        claims_better("single-run", np.full((1, 3), np.nan), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="rule must be one of 'single-run'"):
        claims_better("t-test", np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="margin"):
        claims_better("single-run", np.zeros((1, 3)), np.zeros((1, 3)), margin=-1.0)
    with pytest.raises(ValueError, match="rho"):
        normal_scores(0.5, studies=1, rho=1.0)
    assert len(RULES) == 4
