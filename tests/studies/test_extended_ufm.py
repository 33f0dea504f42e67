from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.studies import synthetic
from torchstone import api
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Cell, Experiment
from torchstone.data import TensorData
from torchstone.dynamics import UnconstrainedFeatureModel, extended_ufm_optimum, simplex_etf
from torchstone.errors import SealedDataError
from torchstone.models.seeding import seeded
from torchstone.studies._extended_ufm_descent import (
    MODELS,
    Descent,
    Edge,
    _measures,
    descend,
    run_descent,
    run_edge,
    stack_descent,
    stack_edge,
)
from torchstone.studies._extended_ufm_nets import (
    Net,
    Nets,
    Problem,
    draw,
    frame_gap,
    run_model,
    run_net,
    stack_models,
    stack_nets,
)
from torchstone.studies._extended_ufm_resnet import Full, run_resnet
from torchstone.studies.extended_ufm import STUDY
from torchstone.training.stacked import StackedModule

DESCENT, THRESHOLD, DIGITS, FASHION, MNIST, CIFAR = STUDY.experiments

# NC1 in the last two layers: the network ranks as the model with a ReLU does
CURVES = {
    "mse": ([9.0, 5.0, 3.0], [8.0, 2.0, 1.0]),
    "plain-ufm": ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0]),
    "linear-ufm": ([3.0, 2.0, 1.0], [6.0, 5.0, 4.0]),
    "relu-ufm": ([9.0, 5.0, 3.0], [8.0, 2.0, 1.0]),
}
NETS = {"train": 1.0, "test": 0.97, "rows_of": 0.1, "nc1_3": 0.1, "fall_12": 0.3, "fall_23": 0.3, "fall_time": 1.0}
GAPS = {"rows_gap": 0.5, "before_gap": 0.4, "means_gap": 0.6}
DIGITS_VALUES: dict[str, dict[str, Any]] = {
    "mse": {**NETS, **GAPS},
    "no-decay": {**NETS, **GAPS, "rows_of": 0.4, "nc1_3": 0.3},
    "ce": {**NETS, **GAPS, "rows_gap": -0.5},
    "normalised": {**NETS, **GAPS, "rows_gap": -0.4},
    "plain-ufm": {},
    "linear-ufm": {},
    "relu-ufm": {},
}
for _arm, (_before, _last) in CURVES.items():
    DIGITS_VALUES[_arm] |= {"curve_before": np.array(_before), "curve_last": np.array(_last)}


def nets_row(number: int, experiment: Experiment = DIGITS, **changes: synthetic.Change) -> Row:
    """A replicate in which all claims hold: with a bias the gaps of ``mse`` have the other sign, but for one."""
    found = synthetic.made_up(experiment, number, DIGITS_VALUES, **changes)
    biased = found.outcomes["mse", "bias"]
    if "mse" not in changes:
        flipped = {**biased.values, "rows_gap": -0.5, "before_gap": -0.4}
        return experiment.row(number, {**found.outcomes, ("mse", "bias"): replace(biased, values=flipped)})
    return experiment.row(number, found.outcomes)


def verdicts(experiment: Experiment, rows: Sequence[Row]) -> dict[str, str]:
    return {text: str(j.verdict) for text, j in synthetic.judged(STUDY, experiment.name, rows).items()}


# ---------------------------------------------------------------- claims


@synthetic.every_verdict(
    worse={"mse": {"rows_gap": -0.5}},
    equal={"mse": {"rows_gap": 0.0}},
    broken={"mse": {"train": 0.9}},
    lost={"mse": Outcome({"train": 1.0}, diverged="loss is nan")},
    most=16,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    if verdict == Verdict.REFUTED and changes and isinstance(changes[0].get("mse"), Outcome):
        verdict = Verdict.PREMISE_NOT_MET  # a network that diverged does not fit either
    rows = [nets_row(number, **change) for number, change in enumerate(changes)]
    assert synthetic.primary(STUDY, rows) == verdict


def test_all_claims_about_networks_can_hold_and_be_refuted() -> None:
    good = verdicts(DIGITS, [nets_row(number) for number in range(16)])
    assert set(good.values()) == {"reproduced", "holds"}
    other = {
        "mse": {"rows_gap": -0.5, "before_gap": -0.4, "means_gap": -0.1, "rows_of": 0.9, "nc1_3": 0.9}
        | dict.fromkeys(("fall_12", "fall_23", "fall_time"), -0.1),
        "ce": {"rows_gap": 0.1},
        "normalised": {"rows_gap": 0.1},
        "relu_ufm": {"curve_before": np.array([1.0, 2.0, 3.0]), "curve_last": np.array([4.0, 5.0, 6.0])},
    }
    bad = verdicts(DIGITS, [nets_row(number, **other) for number in range(16)])
    held = [text for text, verdict in bad.items() if verdict not in ("refuted", "premise not met")]
    assert held == [
        "networks fit: more than 99 % of the training data are classified right",
        "rows of the last layer are nearer to a simplex [bias]",
        "means before the ReLU are nearer to a simplex [bias]",
    ]


def test_agreement_counts_the_order_of_layers_too() -> None:
    row = nets_row(0)
    assert row.derived["tau_relu"] == 1.0
    plain, network = np.tile([3.0, 2.0, 1.0], 2), np.concatenate([np.array(part) for part in CURVES["mse"]])
    pairs = [(i, j) for i in range(6) for j in range(i)]
    expected = np.mean([np.sign(plain[i] - plain[j]) * np.sign(network[i] - network[j]) for i, j in pairs])
    assert row.derived["tau_plain"] == row.derived["tau_time"] == pytest.approx(expected)
    lost = nets_row(0, relu_ufm=Outcome(diverged="zero"))
    assert math.isnan(lost.derived["tau_relu"])
    assert lost.derived["tau_plain"] == row.derived["tau_plain"]
    gone = nets_row(0, mse=Outcome(diverged="nan"))
    assert all(math.isnan(value) for value in gone.derived.values())


STRUCTURE = {"nc1": 1e-30, "gram": 1e-9, "balance": 1e-16, "frame_last": 1e-10}
RUN = {"lowest": 0.0, "past": 1e-50, "reached": 1.0, "reached_weak": 1.0, "zero": 0.0, **STRUCTURE}


def descent_row(number: int, change: Callable[[str, str], Mapping[str, float]] | None = None) -> Row:
    """A replicate of ``descent`` in which all claims hold, but for ``change(arm, case)``."""
    outcomes = {}
    for arm, case in DESCENT.slots:
        values = {**RUN, "missing": list(MODELS).index(case) / 10, "frame_first": 0.4 if "relu" in case else 1e-10}
        if arm == "small-start" and case != "plain":
            values |= {"reached": 0.0, "zero": 1.0, **dict.fromkeys(STRUCTURE, math.nan)}
        if arm == "bias" and "relu" in case:
            values["reached"] = 0.0
        outcomes[arm, case] = Outcome({**values, **(change(arm, case) if change else {})})
    return DESCENT.row(number, outcomes)


def test_one_run_refutes_a_theorem() -> None:
    good = verdicts(DESCENT, [descent_row(number) for number in range(20)])
    assert set(good.values()) == {"holds", "reproduced"}
    assert sum(verdict == "holds" for verdict in good.values()) == 15
    for metric, value in (("lowest", -1e-6), ("gram", 0.1), ("nc1", 0.1), ("balance", 0.1), ("past", 0.1)):

        def one(arm: str, case: str, metric: str = metric, value: float = value) -> Mapping[str, float]:
            return {metric: value} if (arm, case) == ("bias", "linear2") else {}

        rows = [descent_row(number, one if number == 3 else None) for number in range(20)]
        changed = {text for text, verdict in verdicts(DESCENT, rows).items() if verdict != good[text]}
        assert len(changed) == 1
        assert "(bias)" in changed.pop()


def test_what_descent_finds_can_be_refuted() -> None:
    def other(arm: str, case: str) -> Mapping[str, float]:
        turned = {"reached_weak": 0.0, "missing": -list(MODELS).index(case) / 10, "zero": 0.0}
        return {**turned, "frame_last": 0.3, "frame_first": 0.0, "reached": 1.0}

    found = verdicts(DESCENT, [descent_row(number, other) for number in range(20)])
    refuted = [text for text, verdict in found.items() if verdict == "refuted"]
    assert len(refuted) == 9
    assert {verdict for text, verdict in found.items() if text not in refuted} == {"holds"}


def test_the_wrong_root_is_refuted() -> None:
    """Were the collapsed point the minimum as long as it exists, its loss at q = 0.40 would be below that of zero."""

    def row(at: float) -> Row:
        ends = {"q0.39": 0.4935, "q0.40": at, "q0.46": 0.5539, "q0.48": 0.5}
        return THRESHOLD.row(
            0,
            {
                (arm, case): Outcome({"gradient": 1e-17, "loss": ends[case] if arm == "from-collapse" else 0.5})
                for arm, case in THRESHOLD.slots
            },
        )

    assert set(verdicts(THRESHOLD, [row(0.503)] * 1).values()) == {"holds"}
    found = verdicts(THRESHOLD, [row(0.497)] * 1)
    assert [text for text, verdict in found.items() if verdict == "refuted"] == [
        "loss of from-collapse is higher by more than 0.0001 than 0.5 [q0.40, q0.46]"
    ]


def test_nothing_is_tuned_and_smoke_is_the_bench_made_small() -> None:
    for experiment in STUDY.experiments:
        assert not any(arm.space for arm in experiment.arms.values())
    smoke, bench, paper = (DESCENT.settings[scale] for scale in ("smoke", "bench", "paper"))
    assert replace(smoke, steps=bench.steps) == bench
    assert replace(paper, per_class=bench.per_class, lr=bench.lr, steps=bench.steps) == bench
    smoke, bench = (THRESHOLD.settings[scale] for scale in ("smoke", "bench"))
    assert replace(smoke, sizes=bench.sizes) == bench
    smoke, bench = (DIGITS.settings[scale] for scale in ("smoke", "bench"))
    assert replace(smoke, epochs=bench.epochs, points=bench.points, model=bench.model) == bench
    assert STUDY.primary[0] is DIGITS
    assert {experiment.needs for experiment in (MNIST, CIFAR)} == {("mnist", "gpu"), ("cifar10", "gpu")}


# ---------------------------------------------------------------- models

TINY = Descent(num_classes=3, per_class=4, dim=6, lr=1.0, steps=1000)


def cells(setting: Any, case: str, count: int = 2, problem: Any = None, **options: Any) -> list[Cell]:
    return [Cell("e", case, i, Seeds(7, i), setting, shared=lambda: problem, **options) for i in range(count)]


def agree(stacked: Sequence[Outcome], single: Sequence[Outcome], atol: float) -> None:
    for one, other in zip(stacked, single, strict=True):
        assert one.values.keys() == other.values.keys()
        for name, value in one.values.items():
            np.testing.assert_allclose(value, other.values[name], atol=atol, rtol=atol, err_msg=name)


def test_the_strength_is_that_of_the_theory() -> None:
    for layers in (1, 2, 3):
        decay = TINY.decay(0.2, layers)
        assert extended_ufm_optimum(3, 4, [decay] * (layers + 1)).q == pytest.approx(0.2)


@pytest.mark.parametrize(("case", "bias"), [("plain", False), ("plain", True), ("linear2", False)])
def test_descent_ends_at_the_closed_form(case: str, bias: bool) -> None:
    setting = replace(TINY, ratios=(0.2, 1.5))
    values = run_descent(cells(setting, case)[0], bias=bias, init_std=0.3).values
    assert values["reached"] == values["reached_weak"] == 1
    assert values["zero"] == values["missing"] == values["unfinished"] == 0
    assert values["lowest"] == pytest.approx(0, abs=1e-12)
    for name in ("gram", "balance", "nc1", "frame_first", "frame_last", "past"):
        assert values[name] < 1e-6, name


def test_with_a_relu_first_and_last_layer_are_told_apart() -> None:
    """H_1 = 2 I - J / 2 is no orthogonal frame, relu(H_1) is one; of a run that is not at f* neither is reported."""
    model = UnconstrainedFeatureModel(3, 4, 6, 2, "relu", seeds=1, init_std=0.0, dtype=torch.float64)
    with torch.no_grad():
        model.free[..., :3] = (2 * torch.eye(3) - 0.5)[model.labels]
        model.weights[0] += torch.eye(6)
        model.weights[1][..., :3] = torch.eye(3)
        found = _measures(model, torch.ones(1).double(), [extended_ufm_optimum(3, 4, [0.01] * 3)])
    assert float(found["frame_last"]) == pytest.approx(0, abs=1e-12)
    assert float(found["frame_first"]) > 0.3
    assert float(found["rank"]) == 3
    values = run_descent(cells(replace(TINY, steps=3), "relu2", 1)[0], bias=False, init_std=0.3).values
    assert values["reached"] == 0
    assert math.isnan(values["frame_first"])
    assert not {"gram", "balance"} & values.keys()


def test_from_a_small_start_two_weights_stay_at_zero() -> None:
    setting = replace(TINY, steps=600, ratios=(0.5,))
    hyper = {"bias": False, "init_std": 0.01}
    found = {case: run_descent(cells(setting, case)[0], **hyper).values for case in ("plain", "linear2")}
    assert found["plain"]["zero"] == 0
    assert found["linear2"]["zero"] == 1
    assert found["linear2"]["missing"] == 3
    assert math.isnan(found["linear2"]["nc1"])


@pytest.mark.parametrize(("case", "bias"), [("linear3", True), ("relu2", False)])
def test_descents_in_one_pass_are_those_alone(case: str, bias: bool) -> None:
    hyper = {"bias": bias, "init_std": 0.3}
    three = cells(replace(TINY, steps=60), case, 3)
    agree(stack_descent(three, [hyper] * 3), [run_descent(cell, **hyper) for cell in three], 1e-12)
    tuned = run_descent(cells(replace(TINY, steps=3), case, 1, tuning=True)[0], **hyper)
    assert not tuned.values
    assert tuned.objective is not None


def test_it_is_gradient_descent_on_the_loss_and_nothing_else() -> None:
    def model() -> UnconstrainedFeatureModel:
        return UnconstrainedFeatureModel(
            3, 4, 5, 2, seeds=2, init_std=0.4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )

    ours, theirs, ticks = model(), model(), []
    slope = descend(ours, [0.1, 0.2, 0.3], lr=0.2, steps=3, tick=lambda: ticks.append(1))
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.2)
    for _ in range(3):
        sgd.zero_grad()
        theirs.loss([0.1, 0.2, 0.3]).sum().backward()
        sgd.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    grads = [p.grad[1].flatten() for p in theirs.parameters() if p.grad is not None]
    assert float(slope[1]) == pytest.approx(float(torch.cat(grads).norm()))
    assert len(ticks) == 3


def test_a_descent_that_diverged_leaves_the_others_alone() -> None:
    model = UnconstrainedFeatureModel(3, 4, 5, seeds=2, init_std=0.3, dtype=torch.float64)
    with torch.no_grad():
        model.free[0] *= 1e6
    alone = UnconstrainedFeatureModel(3, 4, 5, seeds=1, dtype=torch.float64)
    alone.load_state_dict({name: value[1:] for name, value in model.state_dict().items()})
    slope = descend(model, [0.1, 0.1], lr=0.5, steps=100, tick=lambda: None)
    descend(alone, [0.1, 0.1], lr=0.5, steps=100, tick=lambda: None)
    assert not slope[0] < 1e30
    assert slope[1] < 1
    assert not model.free[0].any()
    torch.testing.assert_close(model.free[1], alone.free[0])
    lost = stack_descent(cells(replace(TINY, lr=1e4, steps=60), "plain"), [{"bias": True, "init_std": 0.3}] * 2)
    assert {outcome.diverged for outcome in lost} == {"the gradient grew without bound"}


@pytest.mark.parametrize(("q", "end"), [(0.39, -1), (0.40, 1), (0.46, 1), (0.48, 0)])
def test_at_the_threshold(q: float, end: int) -> None:
    setting = Edge({"here": q}, replace(TINY, lr=4.0, steps=300))
    two = cells(setting, "here")
    found = stack_edge(two, [{"collapsed": True}] * 2)
    agree(found[1:], [run_edge(two[1], collapsed=True)], 1e-12)
    loss = float(found[0].values["loss"])
    assert (loss > 0.5 + 1e-4) - (loss < 0.5 - 1e-4) == end
    assert (found[0].values["gradient"] < 1e-12) == (end != 0)
    assert run_edge(two[0], collapsed=False).values["loss"] == pytest.approx(0.5, abs=1e-9)


# ---------------------------------------------------------------- frames


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 9), st.integers(0, 10**6))
def test_means_without_negative_entries_are_always_nearer_to_an_orthogonal_frame(k: int, d: int, seed: int) -> None:
    means = torch.rand(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    assert float(frame_gap(means)) > 0


def test_the_gap_tells_frames_apart() -> None:
    distance = math.sqrt(2 - 2 * math.sqrt(3 / 4))  # between the two frames of four classes
    assert float(frame_gap(torch.eye(4).double())) == pytest.approx(distance)
    assert float(frame_gap(simplex_etf(4, 6).double())) == pytest.approx(-distance, abs=1e-6)


# ---------------------------------------------------------------- networks

SMALL = Nets("digits", per_class=8, epochs=4, width=12, batch_size=16, points=2)


def problem(seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(32) % 4
    x = torch.randn(32, 5, generator=generator) + torch.eye(5)[y]
    sealed = Cell("e", "c", 0, Seeds()).seal((x[:6], y[:6]))
    return Problem(x, y, sealed, 4)


@pytest.mark.parametrize("case", ["no-bias", "bias"])
@pytest.mark.parametrize("hyper", [{}, {"loss": "ce", "normalise": True}, {"decay": False}])
def test_networks_in_one_pass_are_those_alone(case: str, hyper: dict[str, Any]) -> None:
    two = [replace(cell, shared=lambda i=i: problem(i)) for i, cell in enumerate(cells(SMALL, case))]
    found = stack_nets(two, [hyper] * 2)
    agree(found, [run_net(cell, **hyper) for cell in two], 2e-4)
    values = found[0].values
    assert len(values["curve_last"]) == 3
    assert values["curve_last"][-1] == values["nc1_3"]
    assert values["fall_23"] == pytest.approx(math.log10(values["nc1_2"] / values["nc1_3"]))
    assert values["means_gap"] > 0
    assert found[0].cost["steps"] == 8


@pytest.mark.parametrize("decay", [True, False])
def test_weight_decay_enters_once_and_not_on_biases(monkeypatch: pytest.MonkeyPatch, decay: bool) -> None:
    """One step with all data: theta - lr (gradient of (1/2N) |Z - Y|^2 + lambda/2 |weights|^2)."""
    setting = replace(SMALL, epochs=1, points=1, batch_size=32, weight_decay=0.3)
    cell = cells(setting, "bias", 1, problem())[0]
    trained: list[Net] = []
    original = StackedModule.unstack

    def keep(self: StackedModule[Net]) -> list[Net]:
        trained.extend(original(self))
        return trained

    monkeypatch.setattr(StackedModule, "unstack", keep)
    run_net(cell, decay=decay)
    with seeded(cell.seeds.generator("init")):
        net = Net(5, 4, 12, bias=True)
    x, y = problem().x, problem().y
    loss = (net(x) - torch.eye(4)[y]).square().sum() / (2 * len(y))
    loss = loss + 0.15 * decay * sum((p**2).sum() for name, p in net.named_parameters() if name.endswith("weight"))
    loss.backward()
    for one, p in zip(trained[0].parameters(), net.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(one, p - setting.lr * p.grad, atol=1e-6, rtol=1e-5)


def test_features_of_a_network() -> None:
    net = Net(5, 4, 12, bias=False, normalise=True)
    features, before = net.hidden(problem().x)
    assert [tuple(h.shape) for h in features] == [(32, 12)] * 3
    torch.testing.assert_close(features[-1].norm(dim=1), torch.full((32,), math.sqrt(12)))
    torch.testing.assert_close(torch.nn.functional.normalize(before.relu()) * math.sqrt(12), features[-1])
    assert net.head.bias is None
    torch.testing.assert_close(net(problem().x), features[-1] @ net.head.weight.T)


def test_the_split_is_balanced_and_the_rest_is_for_testing() -> None:
    cell = cells(SMALL, "bias", 1)[0]
    found = draw(cell)
    assert found.y.bincount().tolist() == [8] * 10
    assert len(found.test.open()[1]) == 1797 - 80
    assert float(found.x.mean(0).abs().max()) < 1e-5
    sealed = draw(replace(cell, tuning=True))
    with pytest.raises(SealedDataError):
        sealed.test.open()
    tuned = run_net(replace(cell, setting=replace(SMALL, epochs=2), tuning=True, shared=lambda: sealed))
    assert not tuned.values
    assert tuned.objective is not None


def test_a_network_that_diverged_says_so() -> None:
    cell = cells(replace(SMALL, lr=1e12), "bias", 1, problem())[0]
    assert run_net(cell).diverged


@pytest.mark.parametrize("kind", ["plain", "linear2", "relu2"])
def test_models_that_predict(kind: str) -> None:
    setting = replace(SMALL, model=Descent(num_classes=4, per_class=5, dim=8, steps=40))
    two = cells(setting, "no-bias")
    found = stack_models(two, [{"kind": kind}] * 2)
    agree(found, [run_model(cell, kind=kind) for cell in two], 1e-9)
    before, last = (found[0].values[name] for name in ("curve_before", "curve_last"))
    assert len(before) == len(last) == 3
    assert np.array_equal(before, last) == (kind == "plain")
    assert last[-1] < last[0]
    lost = stack_models(cells(replace(setting, model=replace(setting.model, lr=1e4)), "no-bias"), [{"kind": kind}] * 2)
    assert all(outcome.diverged for outcome in lost)


@pytest.mark.parametrize("case", ["no-bias", "bias"])
def test_the_papers_protocol(case: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3
    data = TensorData(x, y, ("a", "b", "c"), "images")
    data = replace(data, test=data)
    points: list[str] = []
    setting = Full("images", epochs=2, per_class=3, batch_size=9, measure_every=2)
    cell = cells(setting, case, 1, data, log=lambda name, value, step: points.append(name))[0]
    outcome = run_resnet(cell)
    assert outcome.cost["samples"] == 18
    assert {"nc1_1", "nc1_4", "fall_12", "fall_34", *GAPS, "rows_of", "train", "test"} <= outcome.values.keys()
    assert points.count("nc1_4") == 1
    assert all(np.isfinite(value) for value in outcome.values.values())
    assert outcome.values["means_gap"] > 0


# ---------------------------------------------------------------- end to end


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    names = ["descent", "threshold", "digits"]
    result = api.run("extended-ufm", scale="smoke", only=names, store=":memory:")
    assert not result.failures
    assert [len(result.rows[name]) for name in names] == [1, 1, 1]
    assert {"tau_relu", "tau_plain", "tau_linear", "tau_time"} == result.rows["digits"][0].derived.keys()
    assert result.verdict == Verdict.TOO_FEW


def test_without_its_data_an_experiment_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    result = api.run("extended-ufm", scale="smoke", only=["fashion"], store=":memory:")
    assert "fashion_mnist" in result.not_run["fashion"]
    assert {j.verdict for j in result.judgements} == {Verdict.NOT_RUN}
