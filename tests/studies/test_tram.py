from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.studies import synthetic
from torchstone import api
from torchstone.bench.claims import Claim
from torchstone.bench.judge import Judgement
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Cell, Experiment
from torchstone.studies import _tram_arms
from torchstone.studies._linear_gaussian import LinearSetting, excess_risks, expected_risks
from torchstone.studies._tram_arms import CROWDS, SimulatedCrowd
from torchstone.studies.tram import LR, STUDY, half_size_cnn
from torchstone.tracks._measure import ModelMaker
from torchstone.tracks._noisy_data import Task
from torchstone.training import predict

MNIST = STUDY.experiment("mnist")
LINEAR = STUDY.experiment("linear")
# What is made up of each arm: an accuracy under which every claim holds.
EXPECTED = {
    "no-pi": 0.80,
    "tram": 0.83,
    "tram-no-detach": 0.75,
    "tram-distilled": 0.84,
    "marginal": 0.82,
    "mean-pi": 0.78,
    "zero-pi": 0.77,
    "distillation": 0.81,
    "crowd-layer": 0.825,
    "dawid-skene": 0.82,
    "permuted": 0.80,
    "random-pi": 0.81,
    "tram-confidence": 0.85,
    "tram-indicator": 0.87,
    "no-spammers": 0.90,
}
VALUES = {
    arm: {"accuracy": accuracy, "memorised": 0.4 if arm == "no-pi" else 0.2, "forwards": 48_000.0}
    for arm, accuracy in EXPECTED.items()
}


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``mnist`` with these values, but for ``changes``: arm -> values, or an outcome."""
    return synthetic.made_up(MNIST, number, VALUES, **changes)


def judged(rows: Sequence[Row], experiment: str = "mnist") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


@synthetic.every_verdict(
    worse={"tram": {"accuracy": 0.79}},
    equal={"tram": {"accuracy": 0.80}},
    broken={"no_spammers": {"accuracy": 0.79}},
    lost={"tram": Outcome(diverged="the loss became nan")},
    most=29,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    rows = [row(number, **change) for number, change in enumerate(changes)]
    assert synthetic.primary(STUDY, rows) == verdict


def test_each_claim_is_judged_by_itself() -> None:
    holding = judged([row(number) for number in range(6)])
    assert {str(j.verdict) for j in holding.values()} == {"reproduced", "holds"}
    for claim in MNIST.claims:
        if claim.metric == "accuracy":
            arm = claim.arm.replace("-", "_")
            worst = judged([row(number, **{arm: {"accuracy": 0.1}}) for number in range(6)])
            assert worst[claim.sentence()].verdict == Verdict.REFUTED, claim.sentence()
    dearer = judged([row(0), row(1, tram={"forwards": 48_001.0}), *(row(number) for number in range(2, 6))])
    assert dearer["forwards of tram is at most 1 times that of no-pi"].verdict == Verdict.REFUTED


def linear(number: int, risks: Mapping[str, float], deviation: float) -> Row:
    useful = [case for case in LINEAR.cases if not case.startswith("sigma0-")]
    return LINEAR.row(
        number,
        {
            (arm, case): Outcome({"risk": risks[arm] if case in useful else 3 - risks[arm], "deviation": deviation})
            for arm, case in LINEAR.slots
        },
    )


@pytest.mark.parametrize(
    ("risks", "deviation", "refuted"),
    [
        ({"marginal": 0.05, "tram": 0.1, "no-pi": 2.0}, 0.02, 0),
        ({"marginal": 0.05, "tram": 0.1, "no-pi": 2.0}, 0.06, 3),
        ({"marginal": 0.05, "tram": 2.1, "no-pi": 2.0}, 0.0, 3),
        ({"marginal": 0.15, "tram": 0.1, "no-pi": 2.0}, 0.0, 1),
    ],
)
def test_the_closed_forms_can_be_refuted(risks: Mapping[str, float], deviation: float, refuted: int) -> None:
    rows = [linear(number, risks, deviation) for number in range(6)]
    verdicts = [judgement.verdict for judgement in judged(rows, "linear").values()]
    assert verdicts.count(Verdict.REFUTED) == refuted
    assert verdicts.count(Verdict.REPRODUCED) == len(verdicts) - refuted


def test_the_claims_of_the_paper_are_all_there() -> None:
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.arm, claim.than, claim.cases) == ("mnist", "tram", "no-pi", ("a20",))
    rivals = {claim.than for claim in MNIST.claims if claim.arm == "tram"}
    assert rivals >= {"no-pi", "mean-pi", "zero-pi", "marginal", "distillation", "crowd-layer", "permuted"}
    for name in ("music", "cifar10n"):
        claims: tuple[Claim, ...] = STUDY.experiment(name).claims
        assert {(claim.arm, claim.than) for claim in claims} >= {("tram", "no-pi")}


def test_all_arms_are_tuned_alike() -> None:
    for experiment in STUDY.experiments:
        for name, arm in experiment.arms.items():
            if experiment is LINEAR:
                assert not arm.space
            else:
                assert arm.space.get("lr") == LR or arm.tuned_as, name


@pytest.mark.parametrize("experiment", STUDY.experiments, ids=lambda experiment: experiment.name)
def test_every_scale_knows_every_case(experiment: Experiment) -> None:
    assert experiment.settings.keys() == {"smoke", "bench", "paper"}
    for setting in experiment.settings.values():
        cases = setting.cases if isinstance(setting, LinearSetting) else setting.labels
        assert tuple(cases) == experiment.cases


# ---------------------------------------------------------------- the simulated crowd and what is made of it


def a_cell(case: str = "a20", **changes: Any) -> Cell:
    setting = replace(MNIST.settings["smoke"], **{"samples": 600, "epochs": 2, **changes})
    return Cell("mnist", case, 0, Seeds(1), setting)


def make_model() -> ModelMaker:
    return ModelMaker("mlp", (1, 28, 28), 10, generator=Seeds(1).generator("init"))


@pytest.fixture(scope="module")
def task() -> Task:
    return SimulatedCrowd("mnist5k")(a_cell(samples=None))


def test_half_of_the_crowd_guesses(task: Task) -> None:
    columns, truth = task.train.columns, task.truth.open()
    assert truth is not None
    ids, answer, (wrong, confidence) = columns["annotator"], columns["answer"], columns["pi"].unbind(-1)
    assert ids.shape == answer.shape == (3200, 1)
    assert torch.equal(answer[:, 0], task.train.y)
    right = answer[:, 0] == truth
    assert torch.equal(wrong[:, 0] == 0, right)
    assert right[ids[:, 0] >= 10].all()
    assert float(right[ids[:, 0] < 10].float().mean()) == pytest.approx(0.1, abs=0.03)
    assert 0.42 < float((~right).float().mean()) < 0.48
    assert float(confidence[right].mean()) == pytest.approx(1, abs=0.05)
    assert float(confidence[~right].mean()) == pytest.approx(0, abs=0.05)
    assert not task.test.open().columns
    three = SimulatedCrowd("mnist5k")(a_cell("a20x3"))
    assert three.train.columns["answer"].shape == (len(three.train), 3)
    assert int(SimulatedCrowd("mnist5k")(a_cell("a400")).train.columns["annotator"].max()) > 380


@pytest.mark.parametrize(
    ("train", "columns", "width"),
    [
        (_tram_arms.train_on_ids, {"annotator", "answer"}, 0),
        (_tram_arms.train_undetached, {"annotator", "answer"}, 0),
        (_tram_arms.train_on_permuted, {"annotator", "answer"}, 0),
        (_tram_arms.train_on_random, {"pi", "answer"}, _tram_arms.RANDOM_PI),
        (_tram_arms.train_on_indicator, {"pi", "answer"}, 1),
        (_tram_arms.train_on_confidence, {"annotator", "pi", "answer"}, 1),
    ],
)
def test_each_arm_sees_what_it_should_see_of_the_labels(
    monkeypatch: pytest.MonkeyPatch, task: Task, train: Any, columns: set[str], width: int
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        _tram_arms, "train_tram", lambda make, train, *rest, **hyper: seen.update(train.columns, **hyper)
    )
    train(None, task.train, task.val, a_cell(), lr=0.1)
    assert seen.keys() - {"lr", "detach"} == columns
    assert seen.get("detach", True) == (train is not _tram_arms.train_undetached)
    if "pi" in columns:
        assert seen["pi"].shape == (3200, 1, width)
    if "annotator" in columns:
        same = torch.equal(seen["annotator"], task.train.columns["annotator"])
        assert same == (train is not _tram_arms.train_on_permuted)
        assert torch.equal(seen["annotator"].sort(0).values, task.train.columns["annotator"].sort(0).values)
    if train is _tram_arms.train_on_indicator:
        truth = task.truth.open()
        assert torch.equal(seen["pi"][:, 0, 0] == 1, task.train.y != truth)


def test_ways_to_predict_without_annotators() -> None:
    cell = a_cell()
    task = SimulatedCrowd("mnist5k")(cell)
    model = _tram_arms.train_on_ids(make_model(), task.train, task.val, cell, lr=0.1).eval()
    x, a = task.val.x[:9], len(model.pi_head.embedding.weight)  # pyright: ignore
    every = model(x, torch.arange(a).expand(9, a)).logits_pi
    assert every is not None
    share = torch.bincount(task.train.columns["annotator"][:, 0], minlength=a) / len(task.train)
    exact = (every.softmax(-1) * share[:, None]).sum(1)
    rest = (task.train, task.val, cell)
    torch.testing.assert_close(_tram_arms.by_marginal(model, *rest)(x).exp(), exact)
    one_hot = torch.eye(a) @ model.pi_head.embedding.weight  # pyright: ignore
    mean = model.pi_head.combine(model.features(x), (share @ one_hot).relu())
    torch.testing.assert_close(_tram_arms.by_mean_pi(model, *rest)(x), mean)
    zero = model.pi_head.combine(model.features(x), torch.zeros(model.pi_head.width))
    torch.testing.assert_close(_tram_arms.by_zero_pi(model, *rest)(x), zero)
    torch.testing.assert_close(_tram_arms.by_no_pi(model, *rest)(x), model(x).logits)
    student = _tram_arms.by_student(model, *rest, student_lr=0.1)
    assert not torch.equal(predict(student, x), predict(_tram_arms.by_no_pi(model, *rest), x))


def test_without_spammers_no_guess_is_learnt(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    known: dict[str, Any] = {}
    monkeypatch.setattr(_tram_arms, "_fit", lambda net, train, cell, data, *rest, **hyper: known.update(data=data))
    _tram_arms.fit_without_spammers(make_model(), task.train, task.val, a_cell(), lr=0.1)
    _, y, mask = known["data"].annotations(torch.arange(3200))
    truth = task.truth.open()
    assert truth is not None
    assert torch.equal(y[mask], truth[mask[:, 0]])
    assert 0.45 < float(mask.float().mean()) < 0.55


def test_cross_entropy_with_several_answers_is_their_mean() -> None:
    logits, y = torch.randn(4, 10), torch.tensor([[1, 2], [3, -1], [4, 4], [0, 9]])
    rows = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    expected = torch.nn.functional.cross_entropy(logits[rows], y[y >= 0])
    torch.testing.assert_close(_tram_arms._answers_as_labels(logits, y, y, y >= 0), expected)


def test_half_size_cnn() -> None:
    assert half_size_cnn((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# ---------------------------------------------------------------- the linear case


@pytest.mark.parametrize(("d", "sigma_a"), [(40, 3.0), (20, 0.5), (40, 1.0), (80, 0.0)])
def test_linear_gaussian_risks_are_those_of_the_closed_forms(d: int, sigma_a: float) -> None:
    sizes: dict[str, Any] = {"d": d, "n": 200, "m": 5, "sigma": 0.5, "sigma_a": sigma_a}
    # Where a is loud, the mean of 300 repetitions has a relative standard error of 3 %: more of them there.
    repetitions = 1200 if sigma_a > 1 else 300
    found = excess_risks(**sizes, repetitions=repetitions, generator=torch.Generator().manual_seed(d))
    for name, expected in expected_risks(**sizes).items():
        assert float(found[name].mean()) == pytest.approx(expected, rel=0.05), name


def test_the_numbers_of_the_closed_forms() -> None:
    risks = expected_risks(d=40, n=200, m=5, sigma=0.5, sigma_a=3.0)
    assert risks == pytest.approx({"no-pi": 2.3270, "marginal": 0.0649, "tram": 0.1099}, abs=1e-4)


def test_useless_information_costs_its_parameters() -> None:
    sizes: dict[str, Any] = {"d": 40, "n": 200, "m": 5, "sigma": 0.5, "repetitions": 300}
    nothing = excess_risks(**sizes, sigma_a=0.0, generator=torch.Generator().manual_seed(0))
    assert float(nothing["tram"].mean()) > float(nothing["no-pi"].mean())
    much = excess_risks(**sizes, sigma_a=3.0, generator=torch.Generator().manual_seed(0))
    assert float(much["tram"].mean()) < 0.06 * float(much["no-pi"].mean())


# ---------------------------------------------------------------- end to end


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("tram", scale="smoke", only=["mnist", "linear"], store=":memory:")
    assert not result.failures
    assert [len(result.rows[name]) for name in ("mnist", "linear")] == [1, 1]
    (done,) = result.rows["mnist"]
    for case in MNIST.cases:
        assert done.value("forwards", "tram", case) == done.value("forwards", "no-pi", case)
    assert result.verdict == Verdict.TOO_FEW


@pytest.mark.study
@pytest.mark.real_data
def test_the_study_runs_on_real_annotators() -> None:
    result = api.run("tram", scale="smoke", only=["music", "cifar10n"], store=":memory:")
    assert not result.failures
    assert [len(result.rows[name]) for name in ("music", "cifar10n")] == [1, 1]


def test_without_its_data_an_experiment_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    result = api.run("tram", scale="smoke", only=["music", "cifar10n"], store=":memory:")
    assert "music-genre-crowd" in result.not_run["music"]
    assert {j.verdict for j in result.judgements} == {Verdict.NOT_RUN}


def test_smoke_is_the_bench_made_small() -> None:
    for experiment in STUDY.experiments:
        smoke, bench = experiment.settings["smoke"], experiment.settings["bench"]
        if isinstance(bench, LinearSetting):
            assert replace(smoke, repetitions=bench.repetitions) == bench
        else:
            assert replace(smoke, epochs=bench.epochs, samples=bench.samples) == bench


def test_the_cases_are_the_crowds() -> None:
    assert tuple(CROWDS) == MNIST.cases
