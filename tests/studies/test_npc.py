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
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Cell, Experiment
from torchstone.data import TensorData
from torchstone.models import MLP
from torchstone.noise.knn_prior import confident_references, knn_vote
from torchstone.studies import npc
from torchstone.studies.npc import LR, NPC_SPACE, STUDY, fit_ce_early, repair_knn, repair_without_prior
from torchstone.tracks._post_hoc import PostHoc
from torchstone.tracks.noisy_labels import Setting

MNIST = STUDY.experiment("mnist")
# A result in which every claim holds, to be spoilt by the tests: accuracy, memorised.
GOOD: dict[str, tuple[float, float]] = {
    "ce": (0.70, 0.95),
    "ce-early": (0.85, 0.05),
    "knn": (0.80, 0.20),
    "knn-early": (0.85, 0.05),
    "npc": (0.90, 0.10),
    "npc-early": (0.86, 0.05),
    "npc-published": (0.88, 0.10),
    "npc-no-prior": (0.72, 0.60),
    "npc-random": (0.20, 0.10),
    "temperature": (0.70, 0.95),
    "rog": (0.82, 0.30),
    "prune-retrain": (0.87, 0.10),
}
VALUES = {arm: {"accuracy": accuracy, "memorised": memorised} for arm, (accuracy, memorised) in GOOD.items()}


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``mnist`` with these values, but for ``changes``: arm -> values, or an outcome."""
    return synthetic.made_up(MNIST, number, VALUES, **changes)


def judged(rows: Sequence[Row], experiment: str = "mnist") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


@synthetic.every_verdict(
    worse={"npc": {"accuracy": 0.60}},
    equal={"npc": {"accuracy": 0.70}},
    broken={"ce": {"memorised": 0.2}},
    lost={"npc": Outcome(diverged="the loss became nan")},
    most=24,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    rows = [row(number, **change) for number, change in enumerate(changes)]
    assert synthetic.primary(STUDY, rows) == verdict


def test_where_the_control_does_as_well_the_study_says_so() -> None:
    plain = judged([row(number) for number in range(6)])
    spoilt = judged([row(number, knn={"accuracy": 0.91}) for number in range(6)])
    text = "accuracy of npc is higher than that of knn"
    assert plain[text].verdict == Verdict.REPRODUCED
    assert spoilt[text].verdict == Verdict.REFUTED
    assert {t for t in plain if plain[t].verdict != spoilt[t].verdict} == {text}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"npc": {"accuracy": 0.705}}, "accuracy of npc is higher by more than 0.01 than that of ce"),
        ({"npc_early": {"accuracy": 0.84}}, "accuracy of npc-early is higher than that of ce-early"),
        ({"ce_early": {"accuracy": 0.60}}, "npc gains more over ce than over ce-early"),
        ({"npc_published": {"accuracy": 0.92}}, "accuracy of npc is higher than that of npc-published"),
        ({"npc_no_prior": {"accuracy": 0.92}}, "accuracy of npc is higher than that of npc-no-prior"),
        ({"rog": {"accuracy": 0.92}}, "accuracy of npc is higher than that of rog"),
        ({"prune_retrain": {"accuracy": 0.92}}, "accuracy of npc is higher than that of prune-retrain"),
        ({"npc": {"memorised": 0.99}}, "memorised of npc is lower than that of ce"),
        ({"temperature": {"accuracy": 0.71}}, "accuracy of temperature equals that of ce up to 0.0015"),
    ],
)
def test_each_claim_can_come_out_refuted(changes: dict[str, Any], text: str) -> None:
    before, after = (judged([row(number, **c) for number in range(6)])[text].verdict for c in ({}, changes))
    assert before in (Verdict.REPRODUCED, Verdict.HOLDS)
    assert after == Verdict.REFUTED


def test_the_claims_of_the_paper_and_all_controls_are_there() -> None:
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.arm, claim.than, claim.cases) == ("mnist", "npc", "ce", ())
    texts = [claim.sentence() for claim in MNIST.claims]
    assert len(set(texts)) == len(texts) == 15
    compared = {arm for claim in MNIST.claims for arm in claim.arms}
    assert compared == GOOD.keys() == MNIST.arms.keys()


def test_gains_are_compared_where_there_are_both() -> None:
    plain = row(0)
    outcomes = {
        slot: Outcome({"accuracy": 0.99}) if slot == ("npc", "sym20") else outcome
        for slot, outcome in plain.outcomes.items()
    }
    assert plain.derived == pytest.approx({"gain": 0.2, "gain_early": 0.01})
    assert npc.gains(Row(0, outcomes)) == plain.derived


def test_arms_that_have_something_to_choose_choose_from_equal_draws() -> None:
    for experiment in STUDY.experiments:
        assert all(arm.hyper["lr"] == LR for arm in experiment.arms.values())
        assert all("lr" not in arm.space and arm.tuned_as is None for arm in experiment.arms.values())
        published = experiment.arms.get("npc-published")
        if published is not None and experiment.name == "mnist":
            assert published.space == experiment.arms["npc"].space == experiment.arms["npc-early"].space == NPC_SPACE
    assert {name for name, arm in MNIST.arms.items() if not arm.space} == {
        "ce",
        "ce-early",
        "npc-random",
        "temperature",
    }


def test_all_repairs_start_from_the_same_networks() -> None:
    for experiment in STUDY.experiments:
        for name, arm in experiment.arms.items():
            if isinstance(arm.run, PostHoc):
                reference = experiment.arms["ce-early" if name.endswith("-early") else "ce"].run
                assert isinstance(reference, PostHoc)
                assert arm.run.train is reference.train
    assert MNIST.arms["ce-early"].run != MNIST.arms["ce"].run


@pytest.mark.parametrize("experiment", STUDY.experiments, ids=lambda experiment: experiment.name)
def test_every_scale_has_labels_for_every_case(experiment: Experiment) -> None:
    for setting in experiment.settings.values():
        assert tuple(setting.labels) == experiment.cases
        for case in experiment.cases:
            setting.source(case)


def test_smoke_is_the_bench_made_small() -> None:
    for experiment in STUDY.experiments:
        if "smoke" in experiment.settings:
            smoke, bench = experiment.settings["smoke"], experiment.settings["bench"]
            assert replace(smoke, epochs=bench.epochs, samples=bench.samples) == bench


# ---------------------------------------------------------------- the study's own arms


def clusters(n: int = 120) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    x = 3 * torch.eye(3)[labels] + torch.randn(n, 3, generator=generator)
    return TensorData(x, labels, tuple("abc"), "clusters")


def a_cell(**setting: Any) -> Cell:
    return Cell("x", "given", 0, Seeds(3), Setting(labels={"given": "given"}, batch_size=32, **setting))


@pytest.mark.parametrize(("epochs", "early"), [(40, 5), (16, 2), (3, 1)])
def test_early_is_an_eighth_of_the_epochs(epochs: int, early: int) -> None:
    seen: list[Any] = []
    cell = replace(a_cell(epochs=epochs), snapshot=seen.append)
    fit_ce_early(lambda: MLP(3, 3, hidden=(4,)), clusters(), clusters(), cell, lr=0.1)
    assert len(seen) == early


@pytest.mark.parametrize("k", [3, 500])
def test_the_control_is_the_vote_of_the_prior(k: int) -> None:
    net, data, cell = MLP(3, 3, hidden=(8,), generator=torch.Generator().manual_seed(1)), clusters(), a_cell()
    new = data.x + 0.1
    features, probs = net.features(data.x).detach(), net(data.x).softmax(1).detach()
    index = confident_references(probs, generator=cell.seeds.generator("noise", "knn"))
    votes = knn_vote(net.features(new), features[index], probs.argmax(1)[index], num_classes=3, k=min(k, len(index)))
    torch.testing.assert_close(repair_knn(net, data, data, cell, k=k)(new), votes)


def test_without_a_prior_the_weight_of_it_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(npc, "repair_npc", lambda *args, **hyper: seen.update(hyper))
    repair_without_prior(None, None, None, a_cell(), npc_lr=0.1)  # pyright: ignore[reportArgumentType]
    assert seen == {"npc_lr": 0.1, "rho": 0.0}


# ---------------------------------------------------------------- end to end


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("npc", scale="smoke", only=["mnist"], store=":memory:")
    assert not result.failures
    (done,) = result.rows["mnist"]
    for case in MNIST.cases:
        assert done.value("accuracy", "temperature", case) == done.value("accuracy", "ce", case)
    assert set(done.derived) == {"gain", "gain_early"}
    assert result.verdict == Verdict.TOO_FEW
    tuned = {arm for arm, tuning in result.tunings["mnist"].items() if tuning.draws}
    assert tuned == {name for name, arm in MNIST.arms.items() if arm.space}


@pytest.mark.study
@pytest.mark.real_data
def test_the_study_runs_on_human_labels() -> None:
    result = api.run("npc", scale="smoke", only=["cifar10n"], store=":memory:")
    assert not result.failures
    (done,) = result.rows["cifar10n"]
    assert done.cases_of("npc", "ce") == ("worse", "aggre")


def test_without_its_data_an_experiment_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    result = api.run("npc", scale="smoke", only=["cifar10n"], store=":memory:")
    assert "cifar10n" in result.not_run["cifar10n"]
    assert {j.verdict for j in result.judgements} == {Verdict.NOT_RUN}
