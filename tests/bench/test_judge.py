import numpy as np
import pytest

from tests.fakes import rows, silent, two_arm_study
from torchstone.bench import Arm, Experiment, Higher, Lower, Outcome, Study, Within
from torchstone.bench.judge import Judgement, judge, judge_experiment, settled
from torchstone.bench.statistics.verdict import Verdict
from torchstone.errors import UnknownNameError

STUDY = two_arm_study()
MAIN = STUDY.experiments[0]
WIN, LOSS, TIE = ({"method": m, "baseline": 0.5} for m in (0.9, 0.1, 0.5))


def primary(*values, study: Study = STUDY, **options) -> Judgement:
    experiment = study.experiments[0]
    return next(j for j in judge(study, {"main": rows(experiment, *values)}, **options) if j.claim.primary)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([WIN] * 6, Verdict.REPRODUCED),
        ([LOSS] * 6, Verdict.REFUTED),
        ([WIN] * 5, Verdict.TOO_FEW),
        ([TIE] * 29, Verdict.DEGENERATE),
        ([WIN, LOSS] * 14 + [WIN], Verdict.NOT_SIGNIFICANT),
        ([WIN] * 20 + [LOSS] * 9, Verdict.REPRODUCED),
        ([], Verdict.NOT_RUN),
    ],
)
def test_every_outcome_of_a_comparison_can_come_out(values, verdict) -> None:
    assert primary(*values).verdict == verdict


def test_numbers_beside_the_verdict() -> None:
    judgement = primary(*[WIN] * 6)
    assert (judgement.n, judgement.estimate, judgement.decided) == (6, 1.0, True)
    assert judgement.e_value == pytest.approx(28.78, abs=0.01)
    assert judgement.effect == pytest.approx(0.4)
    assert judgement.effect_interval == pytest.approx((0.4, 0.4))
    assert judgement.scores == (1.0,) * 6


def test_more_evidence_can_be_asked_for() -> None:
    assert not primary(*[WIN] * 6, e_threshold=100.0).decided
    assert primary(*[WIN] * 8, e_threshold=100.0).decided


def test_rows_behind_a_gap_and_beyond_the_maximum_do_not_count() -> None:
    complete = rows(MAIN, *[WIN] * 10)
    gap = [row for row in complete if row.replicate != 3]
    assert judge(STUDY, {"main": gap})[0].n == 3
    fixed = two_arm_study(replicates=(29, 29))
    assert judge(fixed, {"main": rows(fixed.experiments[0], *[WIN] * 40)})[0].n == 29


def test_replicates_after_the_decision_do_not_change_the_numbers() -> None:
    early, late = primary(*[WIN] * 6), primary(*[WIN] * 6, *[LOSS] * 5)
    assert (late.n, late.estimate, late.scores) == (early.n, early.estimate, early.scores) == (6, 1.0, (1.0,) * 6)


def test_divergence_counts_as_a_loss_and_nan_is_excluded() -> None:
    lost = {"method": Outcome(diverged="nan"), "baseline": 0.5}
    judgement = primary(*[lost] * 6)
    assert judgement.verdict == Verdict.REFUTED
    assert judgement.diverged == 6
    absent = {"method": Outcome({"accuracy": np.nan}), "baseline": 0.5}
    judgement = primary(absent, *[WIN] * 6, absent)
    assert (judgement.verdict, judgement.excluded) == (Verdict.REPRODUCED, 2)


def study_with_premise() -> Study:
    return two_arm_study(premises=(Lower("accuracy", "baseline", 0.6),))


@pytest.mark.parametrize(
    ("baseline", "count", "verdict"),
    [
        (0.5, 6, Verdict.REPRODUCED),
        (0.7, 6, Verdict.PREMISE_NOT_MET),
        (0.5, 4, Verdict.TOO_FEW),
        (0.6, 29, Verdict.PREMISE_NOT_MET),
    ],
)
def test_claims_mean_nothing_without_their_premise(baseline, count, verdict) -> None:
    judgement = primary(*[{"method": 0.9, "baseline": baseline}] * count, study=study_with_premise())
    assert judgement.verdict == verdict
    if verdict == Verdict.PREMISE_NOT_MET:
        assert "the premise 'accuracy of baseline is lower than 0.6' came out" in judgement.reason


def theorem(replicates=(6, 29)) -> Study:
    claim = Within("accuracy", "method", "baseline", by=0.01, always=True, primary=True)
    return two_arm_study(claims=(claim,), replicates=replicates)


def test_a_theorem_holds_until_one_counterexample() -> None:
    same, other = {"method": 0.5, "baseline": 0.5}, {"method": 0.52, "baseline": 0.5}
    assert primary(*[same] * 3, study=theorem()).verdict == Verdict.HOLDS
    assert not primary(*[same] * 3, study=theorem()).decided
    assert primary(*[same] * 6, study=theorem()).decided
    refuted = primary(*[same] * 9, other, study=theorem())
    assert (refuted.verdict, refuted.reason) == (Verdict.REFUTED, "replicate 9 is a counterexample")
    assert primary(same, study=theorem((1, 1))).verdict == Verdict.HOLDS


def test_a_counterexample_in_one_case_is_not_averaged_away() -> None:
    claim = Within("accuracy", "a", 1.0, always=True, primary=True)
    cases = tuple(map(str, range(100)))
    experiment = Experiment("main", {"a": Arm(silent)}, (claim,), cases=cases, replicates=(1, 1))
    good = experiment.row(0, {("a", case): Outcome({"accuracy": 1.0}) for case in cases})
    bad = experiment.row(0, {("a", case): Outcome({"accuracy": 0.9 if case == "57" else 1.0}) for case in cases})
    assert judge_experiment("s", experiment, [good])[0].verdict == Verdict.HOLDS
    assert judge_experiment("s", experiment, [bad])[0].verdict == Verdict.REFUTED


def test_a_tie_is_no_counterexample_to_an_inequality() -> None:
    claim = Higher("accuracy", "method", "baseline", always=True, primary=True)
    study = two_arm_study(claims=(claim,), replicates=(1, 1))
    assert primary(TIE, study=study).verdict == Verdict.HOLDS
    assert primary(LOSS, study=study).verdict == Verdict.REFUTED


def test_a_theorem_that_never_applied_is_not_said_to_hold() -> None:
    nothing = {"method": Outcome({"accuracy": np.nan}), "baseline": 0.5}
    assert primary(*[nothing] * 6, study=theorem()).verdict == Verdict.TOO_FEW


def test_a_fixed_number_of_replicates_is_not_peeked_at() -> None:
    study = two_arm_study(replicates=(10, 10))
    assert not primary(*[WIN] * 9, study=study).decided
    assert primary(*[WIN] * 10, study=study).verdict == Verdict.REPRODUCED


def test_reasons_for_not_running_are_passed_on() -> None:
    judgement = judge(STUDY, {}, not_run={"main": "it needs a GPU"})[0]
    assert (judgement.verdict, judgement.reason, judgement.decided) == (Verdict.NOT_RUN, "it needs a GPU", True)


def test_rows_of_an_unknown_experiment_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'main'"):
        judge(STUDY, {"mian": []})


def test_settled_waits_for_every_claim() -> None:
    study = two_arm_study(claims=(*MAIN.claims, Higher("accuracy", "baseline", 0.5)))
    experiment = study.experiments[0]
    coin = [{"method": 0.9, "baseline": 0.4 + 0.2 * (n % 2)} for n in range(29)]
    assert not settled(judge_experiment("s", experiment, rows(experiment, *coin[:12])))
    assert settled(judge_experiment("s", experiment, rows(experiment, *coin)))
    assert settled(judge_experiment("s", MAIN, rows(MAIN, *coin[:12])))
