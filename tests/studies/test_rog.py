from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.studies import synthetic
from torchstone import api
from torchstone.bench.judge import Judgement
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Cell, Experiment
from torchstone.studies._rog_gaussians import CASES, Blobs, draw, exact_error, run_estimator
from torchstone.studies.rog import STUDY
from torchstone.studies.sop import LR
from torchstone.tracks._early_stopping import fit_ce_keeping_best
from torchstone.tracks._post_hoc import PostHoc

MNIST, GAUSSIANS = STUDY.experiment("mnist"), STUDY.experiment("gaussians")
ACCURACY = {
    "softmax": 0.70,
    "lda": 0.78,
    "mcd": 0.80,
    "rog-lda": 0.81,
    "rog": 0.82,
    "mcd-3-steps": 0.79,
    "mcd-converged": 0.785,
    "rog-clean-val": 0.825,
    "early-stopped": 0.815,
    "nearest-mean": 0.77,
    "knn": 0.76,
    "gce": 0.86,
    "elr": 0.90,
}
VALUES = {arm: {"accuracy": value, "memorised": 0.8, "forwards": 60_000.0} for arm, value in ACCURACY.items()}


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``mnist`` with these values, but for ``changes``: arm -> values, or an outcome."""
    return synthetic.made_up(MNIST, number, VALUES, **changes)


def judged(rows: Sequence[Row], experiment: str = "mnist") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


@synthetic.every_verdict(
    worse={"rog": {"accuracy": 0.60}},
    equal={"rog": {"accuracy": 0.70}},
    broken={"softmax": {"memorised": 0.2}},
    lost={"rog": Outcome(diverged="the covariance holds nan")},
    most=29,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    rows = [row(number, **change) for number, change in enumerate(changes)]
    assert synthetic.primary(STUDY, rows) == verdict


def test_the_gain_of_the_gaussians_and_that_of_mcd_are_judged_apart() -> None:
    """Gaussians help, MCD does not: the paper's sentence holds, its reason does not."""
    no_mcd = {"mcd": {"accuracy": 0.775}, "rog": {"accuracy": 0.805}, "mcd_converged": {"accuracy": 0.70}}
    verdicts = {text: str(j.verdict) for text, j in judged([row(number, **no_mcd) for number in range(6)]).items()}
    assert verdicts["accuracy of rog is higher than that of softmax [uniform40]"] == "reproduced"
    assert verdicts["accuracy of lda is higher than that of softmax"] == "reproduced"
    assert {text for text, verdict in verdicts.items() if verdict == "refuted"} == {
        "accuracy of mcd is higher than that of lda",
        "accuracy of rog is higher than that of rog-lda",
        "accuracy of mcd-converged is higher than that of mcd",
        "accuracy of rog is not lower by more than 0.01 than that of rog-clean-val",
        "accuracy of rog is higher than that of early-stopped",
        "accuracy of rog is higher than that of gce",
        "accuracy of rog is higher than that of elr",
    }
    assert verdicts["lda closes at least 50% of the gap in accuracy from softmax to rog [uniform40]"] == "reproduced"


def test_training_again_refutes_the_claim_on_cost() -> None:
    text = "forwards of rog is at most 1.1 times that of softmax"
    assert judged([row(number) for number in range(6)])[text].verdict == Verdict.HOLDS
    dear = [row(0, rog={"forwards": 120_000.0}), *(row(number) for number in range(1, 6))]
    assert judged(dear)[text].verdict == Verdict.REFUTED


def gaussian_row(number: int, **changes: Mapping[str, float]) -> Row:
    usual = {"sample": (0.10, 1.0, 0.8), "mcd": (0.09, 0.6, 0.8), "mcd-converged": (0.08, 0.2, 1.0)}

    def outcome(arm: str) -> Outcome:
        error, shift, purity = usual[arm]
        change = changes.get(arm.replace("-", "_"), {})
        return Outcome({"error": error, "shift": shift, "purity": purity, "rise": 0.0, **change})

    return GAUSSIANS.row(number, {(arm, case): outcome(arm) for arm, case in GAUSSIANS.slots})


def test_one_counterexample_refutes_the_theorem() -> None:
    text = "no concentration step raises the determinant"
    assert judged([gaussian_row(number) for number in range(8)], "gaussians")[text].verdict == Verdict.HOLDS
    rows = [gaussian_row(number, mcd_converged={"rise": 1e-6 * (number == 3)}) for number in range(8)]
    assert judged(rows, "gaussians")[text].verdict == Verdict.REFUTED
    assert {str(j.verdict) for j in judged([gaussian_row(n) for n in range(8)], "gaussians").values()} == {
        "reproduced",
        "holds",
    }


def test_the_claims_take_apart_what_changes_at_once() -> None:
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.arm, claim.than, claim.cases) == ("mnist", "rog", "softmax", ("uniform40",))
    pairs = {(claim.arm, claim.than) for claim in MNIST.claims}
    assert {("lda", "softmax"), ("mcd", "lda"), ("rog", "rog-lda"), ("rog", "mcd"), ("mcd-converged", "mcd")} <= pairs
    assert {than for arm, than in pairs if arm == "rog"} == ACCURACY.keys() - {
        "rog",
        "lda",
        "mcd-3-steps",
        "mcd-converged",
    }
    hyper = {name: dict(arm.hyper) for name, arm in MNIST.arms.items()}
    assert {key for key in hyper["lda"] if hyper["lda"][key] != hyper["mcd"][key]} == {"support_fraction"}
    assert {key for key in hyper["rog"] if hyper["rog"][key] != hyper["rog-lda"][key]} == {"support_fraction"}
    assert {key for key in hyper["rog"] if hyper["rog"][key] != hyper["mcd"][key]} == {"last"}
    assert hyper["rog-clean-val"] == hyper["rog"]


def test_all_repairs_start_from_one_network_and_no_arm_is_tuned_more_than_another() -> None:
    for experiment in (MNIST, STUDY.experiment("cifar10n"), STUDY.experiment("cifar10")):
        repairs = {name: arm for name, arm in experiment.arms.items() if isinstance(arm.run, PostHoc)}
        assert {arm.run.train for arm in repairs.values()} == {fit_ce_keeping_best}  # pyright: ignore[reportFunctionMemberAccess]
        assert {arm.tuned_as for name, arm in repairs.items() if name != "softmax"} == {"softmax"}
        assert {arm.space["lr"] for arm in experiment.arms.values() if arm.space} == {LR}
        clean = [name for name, arm in repairs.items() if arm.run.clean_val]  # pyright: ignore[reportFunctionMemberAccess]
        assert {experiment.arms[name].role for name in clean} <= {"oracle"}


@pytest.mark.parametrize("experiment", STUDY.experiments, ids=lambda experiment: experiment.name)
def test_every_scale_can_run_every_case(experiment: Experiment) -> None:
    for setting in experiment.settings.values():
        for case in experiment.cases:
            assert case in CASES if experiment is GAUSSIANS else setting.source(case)
    assert "paper" in experiment.settings or experiment is GAUSSIANS


def test_smoke_is_the_bench_made_small() -> None:
    for experiment in STUDY.experiments:
        if "smoke" in experiment.settings:
            smoke, bench = experiment.settings["smoke"], experiment.settings["bench"]
            size = {"samples": bench.samples} | ({} if experiment is GAUSSIANS else {"epochs": bench.epochs})
            assert replace(smoke, **size) == bench


# ---------------------------------------------------------------- the Gaussians


def a_cell(case: str, samples: int = 20_000) -> Cell:
    cell = Cell("gaussians", case, 0, Seeds(5), Blobs(samples=samples))
    sample = draw(cell)
    return replace(cell, shared=lambda: sample)


def test_contaminated_samples_are_what_they_are_said_to_be() -> None:
    for case, (first, second) in {"clean": (0.0, 0.0), "far20": (0.2, 0.2), "one-sided40": (0.4, 0.0)}.items():
        sample = a_cell(case).shared()
        for label, share in ((0, first), (1, second)):
            own = sample.labels == label
            assert (~sample.belongs[own]).double().mean().item() == pytest.approx(share)
            inside = sample.features[own & sample.belongs].mean(0)
            torch.testing.assert_close(inside, sample.means[label], atol=0.05, rtol=0)
            if share:
                outside = sample.features[own & ~sample.belongs].mean(0)
                distance = float((outside - sample.means[label]).norm())
                assert distance == pytest.approx(10.0 if case == "far20" else 3.0, abs=0.1)


def test_the_exact_error_is_the_share_of_wrong_decisions() -> None:
    sample = a_cell("clean").shared()
    w, b = torch.linspace(2, -1, 10).double(), torch.tensor(0.7).double()
    decided = (sample.features @ w + b > 0).long()
    assert exact_error(w, b, sample.means) == pytest.approx((decided != sample.labels).double().mean().item(), abs=0.01)
    best = exact_error(sample.means[1] - sample.means[0], torch.zeros(()).double(), sample.means)
    assert best == pytest.approx(0.5 * math.erfc(1.5 / math.sqrt(2)))


def test_what_an_estimator_reports() -> None:
    cell = a_cell("far20", 400)
    sample = cell.shared()
    plain = run_estimator(cell, support_fraction=1.0, n_steps=0).values
    means = torch.stack([sample.features[sample.labels == label].mean(0) for label in (0, 1)])
    assert plain["shift"] == pytest.approx((means - sample.means).norm(dim=1).mean().item())
    assert plain["purity"] == pytest.approx(0.8)
    assert plain["rise"] == 0
    robust = run_estimator(cell, support_fraction=None, n_steps=None).values
    assert robust["purity"] > 0.8
    assert robust["rise"] <= 1e-10


# ---------------------------------------------------------------- end to end


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("rog", scale="smoke", only=["mnist", "gaussians"], store=":memory:")
    assert not result.failures
    assert [len(result.rows[name]) for name in ("mnist", "gaussians")] == [1, 1]
    (done,) = result.rows["mnist"]
    for case in MNIST.cases:
        softmax, rog = (done.outcome(arm, case) for arm in ("softmax", "rog"))
        train, val = 1664, 416
        assert rog.cost["repair_forwards"] == 2 + train + val
        assert rog.cost["forwards"] == softmax.cost["forwards"] + rog.cost["repair_forwards"]
        assert done.value("steps", "rog", case) == softmax.cost["steps"]
    assert result.verdict == Verdict.TOO_FEW
    assert {arm for arm, tuning in result.tunings["mnist"].items() if tuning.draws} == MNIST.arms.keys()
    hyper = {arm: tuning.hyper for arm, tuning in result.tunings["mnist"].items()}
    assert hyper["rog"]["lr"] == hyper["knn"]["lr"] == hyper["softmax"]["lr"]


@pytest.mark.study
@pytest.mark.real_data
def test_the_study_runs_on_human_labels() -> None:
    result = api.run("rog", scale="smoke", only=["cifar10n"], store=":memory:")
    assert not result.failures
    (done,) = result.rows["cifar10n"]
    assert done.cases_of("rog", "softmax") == ("worse", "random1", "aggre")


def test_without_its_data_an_experiment_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    result = api.run("rog", scale="smoke", only=["cifar10n"], store=":memory:")
    assert "cifar10n" in result.not_run["cifar10n"]
    assert {j.verdict for j in result.judgements} == {Verdict.NOT_RUN}
