from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.studies import synthetic
from torchstone import api
from torchstone.bench.judge import Judgement
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Cell, Experiment
from torchstone.studies.sop import LR, STUDY, small_cnn

MNIST = STUDY.experiment("mnist")
# What is expected of each arm: accuracy, memorised.
EXPECTED = {
    "ce": (0.70, 0.80),
    "ce-best-epoch": (0.85, 0.30),
    "gce": (0.86, 0.10),
    "elr": (0.90, 0.07),
    "sop": (0.88, 0.06),
    "sop-no-v": (0.87, 0.09),
    "sop-published": (0.87, 0.08),
}
VALUES = {
    arm: {"accuracy": accuracy, "memorised": memorised, "noise_auc": 0.97, "forwards": 60_000.0}
    for arm, (accuracy, memorised) in EXPECTED.items()
}


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``mnist`` with these values, but for ``changes``: arm -> values, or an outcome."""
    return synthetic.made_up(MNIST, number, VALUES, **changes)


def judged(rows: Sequence[Row], experiment: str = "mnist") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


@synthetic.every_verdict(
    worse={"sop": {"accuracy": 0.60}},
    equal={"sop": {"accuracy": 0.70}},
    broken={"ce": {"memorised": 0.2}},
    lost={"sop": Outcome(diverged="the loss became nan")},
    most=29,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    rows = [row(number, **change) for number, change in enumerate(changes)]
    assert synthetic.primary(STUDY, rows) == verdict


def test_each_claim_is_judged_by_itself() -> None:
    verdicts = {text: str(j.verdict) for text, j in judged([row(number) for number in range(6)]).items()}
    refuted = {text for text, verdict in verdicts.items() if verdict == "refuted"}
    assert refuted == {"accuracy of sop is higher than that of elr"}  # not the best of its day
    assert verdicts["forwards of sop is at most 1 times that of ce"] == "holds"
    assert set(verdicts.values()) == {"reproduced", "refuted", "holds"}


def test_one_dearer_training_refutes_equal_cost() -> None:
    verdicts = judged([row(0), row(1, sop={"forwards": 60_001.0}), *(row(number) for number in range(2, 6))])
    assert verdicts["forwards of sop is at most 1 times that of ce"].verdict == Verdict.REFUTED


def test_the_claims_of_the_paper_are_all_there() -> None:
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.arm, claim.than, claim.cases) == ("mnist", "sop", "ce", ("sym40",))
    texts = [claim.sentence() for claim in MNIST.claims]
    assert len(set(texts)) == len(texts) == 12
    assert {claim.than for claim in MNIST.claims if claim.metric == "accuracy"} == EXPECTED.keys() - {
        "sop",
        "sop-published",
    }


def test_all_arms_are_tuned_alike() -> None:
    for experiment in STUDY.experiments:
        tunable = {name: arm for name, arm in experiment.arms.items() if arm.space}
        assert {arm.space["lr"] for arm in tunable.values()} == {LR}
        roles = {name: arm.role for name, arm in experiment.arms.items() if not arm.space}
        assert set(roles.values()) <= {"oracle", "ablation", "published"}
    assert MNIST.arms["ce-best-epoch"].tuned_as == "ce"
    assert MNIST.arms["sop-no-v"].tuned_as == "sop"


@pytest.mark.parametrize("experiment", STUDY.experiments, ids=lambda experiment: experiment.name)
def test_every_scale_has_labels_for_every_case(experiment: Experiment) -> None:
    for setting in experiment.settings.values():
        assert tuple(setting.labels) == experiment.cases
        for case in experiment.cases:
            setting.source(case)
    assert "paper" in experiment.settings or experiment.name == "digits"


def test_without_v_the_noise_of_the_other_labels_stays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchstone.studies import sop

    seen: dict[str, Any] = {}
    monkeypatch.setattr(sop, "fit_sop", lambda *args, **hyper: seen.update(hyper))
    sop.fit_sop_without_v(None, None, None, Cell("x", "y", 0, None), lr=0.1, scale_u=2.0, scale_v=3.0)  # pyright: ignore
    assert seen == {"lr": 0.1, "scale_u": 2.0, "lr_v": 0.0}


def test_small_cnn_is_small() -> None:
    net = small_cnn((3, 32, 32), 10)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == 24_346


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("sop", scale="smoke", only=["mnist", "digits"], store=":memory:")
    assert not result.failures
    assert [len(result.rows[name]) for name in ("mnist", "digits")] == [1, 1]
    (done,) = result.rows["mnist"]
    ce, best = (done.outcome(arm, "sym40") for arm in ("ce", "ce-best-epoch"))
    assert best.values["accuracy"] == ce.values["best_accuracy"]
    assert done.value("forwards", "sop", "sym40") == ce.cost["forwards"]
    assert result.verdict == Verdict.TOO_FEW
    assert {arm: tuning.draws for arm, tuning in result.tunings["mnist"].items() if tuning.draws}.keys() == {
        "ce",
        "ce-best-epoch",
        "gce",
        "elr",
        "sop",
        "sop-no-v",
    }


@pytest.mark.study
@pytest.mark.real_data
def test_the_study_runs_on_human_labels() -> None:
    result = api.run("sop", scale="smoke", only=["cifar10n"], store=":memory:")
    assert not result.failures
    (done,) = result.rows["cifar10n"]
    assert done.cases_of("sop", "ce") == ("worse", "random1", "aggre")


def test_without_its_data_an_experiment_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    result = api.run("sop", scale="smoke", only=["cifar10n"], store=":memory:")
    assert "cifar10n" in result.not_run["cifar10n"]
    assert {j.verdict for j in result.judgements} == {Verdict.NOT_RUN}


def test_smoke_is_the_bench_made_small() -> None:
    for experiment in STUDY.experiments:
        if "smoke" in experiment.settings:
            smoke, bench = experiment.settings["smoke"], experiment.settings["bench"]
            assert replace(smoke, epochs=bench.epochs, samples=bench.samples) == bench
