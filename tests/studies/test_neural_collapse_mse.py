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
from torchstone.bench.study import Cell
from torchstone.dynamics import UnconstrainedFeatureModel, nc_metrics
from torchstone.studies import _nc_landscape as landscape
from torchstone.studies._nc_networks import Gaussians, Images, Training, draw_gaussians, draw_images, run_networks
from torchstone.studies.neural_collapse_mse import LR, STUDY

NAMES = ("landscape", "critical-points", "networks", "classes")
LANDSCAPE, CRITICAL, NETWORKS, CLASSES = (STUDY.experiment(name) for name in NAMES)
USUAL = {"loss": "mse", "alpha": 1.0, "height": 1.0, "smoothing": 0.0, "etf": False, "narrow": False}


def judged(rows: Sequence[Row], experiment: str) -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


def verdicts(rows: Sequence[Row], experiment: str) -> dict[str, str]:
    return {text: str(judgement.verdict) for text, judgement in judged(rows, experiment).items()}


# ---------------------------------------------------------------- what can come out

DESCENT = {"reached": 1.0, "phase": 1.0, "frame": 1e-4, "lowest": 1e-12, "blocked": 0.0}
NARROW = {"reached": 0.2, "phase": 0.7, "frame": 1.3, "lowest": 0.0, "blocked": 1.0}


def a_landscape(number: int, **changes: synthetic.Change) -> Row:
    return synthetic.made_up(LANDSCAPE, number, {"descent": DESCENT, "too-narrow": NARROW}, **changes)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([{}] * 6, Verdict.REPRODUCED),
        ([{"descent": {"reached": 0.99}}] * 6, Verdict.REFUTED),
        ([{} if number % 2 else {"descent": {"reached": 0.99}} for number in range(12)], Verdict.NOT_SIGNIFICANT),
        ([{"descent": Outcome(diverged="nan")}] * 6, Verdict.REFUTED),
        ([{}] * 5, Verdict.TOO_FEW),
        ([], Verdict.NOT_RUN),
    ],
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    assert synthetic.primary(STUDY, [a_landscape(number, **change) for number, change in enumerate(changes)]) == verdict


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("nothing lies below the closed form f*", {"descent": {"lowest": -1e-9}}),
        (
            "with d = K - 2 f stays above f* by what a missing direction costs, (1 - tau)^2 / 2K [unit]",
            {"too_narrow": {"blocked": 0.9}},
        ),
    ],
)
def test_one_descent_refutes_a_theorem(text: str, change: Mapping[str, Any]) -> None:
    rows = [a_landscape(number) for number in range(6)]
    assert judged(rows, "landscape")[text].verdict == Verdict.HOLDS
    rows[3] = a_landscape(3, **change)
    assert judged(rows, "landscape")[text].verdict == Verdict.REFUTED


def test_one_point_of_the_grid_refutes_a_theorem() -> None:
    right = {
        "minimum": {"loss_error": [0.0] * 3, "gradient": [0.0] * 3, "curvature": [0.01] * 3},
        "saddle": {"gradient": [0.0] * 3, "curvature": [-0.05] * 3, "error": [0.0] * 3},
        "origin": {"gradient": [0.0] * 3, "error": [0.0] * 3, "sign": [1.0] * 3},
    }
    wrong = {
        ("minimum", "loss_error"): [0.0, 1e-9, 0.0],
        ("minimum", "gradient"): [0.0, 1e-9, 0.0],
        ("minimum", "curvature"): [0.01, -1e-6, 0.01],
        ("saddle", "gradient"): [0.0, 1e-9, 0.0],
        ("saddle", "curvature"): [-0.05, 1e-9, -0.05],
        ("saddle", "error"): [0.0, 1e-6, 0.0],
        ("origin", "error"): [0.0, 1e-6, 0.0],
        ("origin", "sign"): [1.0, 0.0, 1.0],
    }

    def rows(change: Mapping[tuple[str, str], Any]) -> list[Row]:
        outcomes = {
            (arm, "default"): Outcome({name: change.get((arm, name), value) for name, value in values.items()})
            for arm, values in right.items()
        }
        return [CRITICAL.row(number, outcomes) for number in range(6)]

    assert set(verdicts(rows({}), "critical-points").values()) == {"holds"}
    for place, value in wrong.items():
        found = verdicts(rows({place: value}), "critical-points")
        assert list(found.values()).count("refuted") == 1, place
        (text,) = (text for text, verdict in found.items() if verdict == "refuted")
        claim = next(claim for claim in CRITICAL.claims if claim.sentence() == text)
        assert (claim.arm, claim.metric) == place


NET = {
    "accuracy": 0.98,
    "train_accuracy": 1.0,
    "nc1": 0.1,
    "nc1_fall": 0.5,
    "nc1_order": 1.0,
    "nc2_fall": 0.1,
    "nc3_fall": 0.6,
    "bias_relation": 0.316,
}
SIZES = {"etf-narrow": 19_486.0, "etf": 33_418.0}


def a_training(number: int, **changes: synthetic.Change) -> Row:
    def outcome(arm: str) -> Outcome:
        change = changes.get(arm.replace("-", "_"), {})
        if isinstance(change, Outcome):
            return change
        own = {"nc1": 0.05} if arm == "both5" else {"bias_relation": 0.05} if arm == "ce" else {}
        return Outcome({**NET, **own, **change}, cost={"parameters": SIZES.get(arm, 34_058.0)})

    return NETWORKS.row(number, {(arm, case): outcome(arm) for arm, case in NETWORKS.slots})


def test_the_claims_about_networks_come_out_apart() -> None:
    found = verdicts([a_training(number) for number in range(6)], "networks")
    assert set(found.values()) == {"reproduced", "holds"}
    broken = {
        "NC1 falls while a network trains under MSE": {"mse": {"nc1_fall": -0.1}},
        "it falls steadily: Kendall's tau of NC1 against time is beyond 1/2": {"mse": {"nc1_order": 0.2}},
        "under MSE |W mu + b| is 1 / sqrt(K) = 0.316, up to 0.02": {"mse": {"bias_relation": 0.0}, "ce": {}},
        "accuracy of etf-narrow is not lower by more than 0.005 than that of mse": {"etf_narrow": {"accuracy": 0.97}},
        "accuracy of mse equals that of ce up to 0.01": {"ce": {"accuracy": 0.96}},
        "nc1 of both5 is lower than that of mse": {"both5": {"nc1": 0.2}},
    }
    for text, change in broken.items():
        rows = [a_training(number, **change) for number in range(6)]
        assert verdicts(rows, "networks")[text] == "refuted"
    unfitted = [a_training(number, mse={"train_accuracy": 0.9}) for number in range(6)]
    assert "premise not met" in verdicts(unfitted, "networks").values()
    lost = [a_training(number, etf_narrow=Outcome(diverged="nan", cost={"parameters": 1.0})) for number in range(6)]
    assert verdicts(lost, "networks")["and with a fixed simplex and as many features as classes"] == "refuted"


def test_the_gain_over_numbers_of_classes_is_judged() -> None:
    text = "height5 gains more over mse with 100 classes than with 10"

    def row(number: int, gains: Mapping[str, float]) -> Row:
        def outcome(arm: str, case: str) -> Outcome:
            gain = gains[case] if arm == "height5" else 0.0
            return Outcome({"accuracy": 0.8 + gain, "nc1": 0.1})

        return CLASSES.row(number, {(arm, case): outcome(arm, case) for arm, case in CLASSES.slots})

    growing, falling = {"K10": 0.0, "K30": 0.01, "K100": 0.02}, {"K10": 0.02, "K30": 0.01, "K100": 0.0}
    assert verdicts([row(number, growing) for number in range(6)], "classes")[text] == "reproduced"
    assert verdicts([row(number, falling) for number in range(6)], "classes")[text] == "refuted"


def test_all_arms_get_the_same_tuning_and_paper_scale_has_the_papers_rate() -> None:
    for experiment in (NETWORKS, CLASSES):
        assert all(dict(arm.space) == {"lr": LR} for arm in experiment.arms.values())
    paper = STUDY.experiment("cifar10")
    assert {arm.hyper["lr"] for arm in paper.arms.values()} == {0.05}
    assert not any(arm.space for arm in paper.arms.values())
    assert paper.settings["paper"].training == Training(epochs=200)


# ---------------------------------------------------------------- the landscape


def a_cell(case: str = "unit", **sizes: Any) -> Cell:
    return Cell("landscape", case, 0, Seeds(7), landscape.Landscape(**sizes))


def test_the_grid_crosses_both_boundaries_and_stands_on_neither() -> None:
    size = landscape.Landscape()
    for point in landscape.GRID:
        assert size.optimum(point).q == pytest.approx(point.tau)
    frames = {size.optimum(point).frame for point in landscape.GRID}
    assert frames == {"etf", "mixed", "orthogonal", "none"}
    edges = [abs((p.lambda_b or 0) - p.tau / (1 - p.tau)) for p in landscape.GRID if p.tau < 1 and p.lambda_b]
    assert min(edges) > 0.02


def test_descent_is_gradient_descent_and_never_goes_up() -> None:
    """One model alone, step by step, with the rule of its step written out."""
    decays, bias_decay = (0.02, 0.03), 0.1

    def model(**options: Any) -> UnconstrainedFeatureModel:
        return UnconstrainedFeatureModel(3, 4, 5, bias=True, dtype=torch.float64, **options)

    one = model(generator=torch.Generator().manual_seed(3))
    stacked = model(seeds=2, generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)])
    lr, losses = 0.1, []
    for _ in range(40):
        loss = one.loss(decays, bias_decay)
        slopes = torch.autograd.grad(loss, list(one.parameters()))
        losses.append(float(loss.detach()))
        before = [p.detach().clone() for p in one.parameters()]
        with torch.no_grad():
            for p, slope in zip(one.parameters(), slopes, strict=True):
                p -= lr * slope
            square = sum(float(slope.square().sum()) for slope in slopes)
            if float(one.loss(decays, bias_decay)) > float(loss) - lr * square / 2 + 1e-16:
                for p, old in zip(one.parameters(), before, strict=True):
                    p.copy_(old)
                lr *= 0.5
            else:
                lr *= 1.1
    weights, features, biases = (torch.full((2,), decay, dtype=torch.float64) for decay in (*decays, bias_decay))
    found, made = landscape.descend(stacked, (weights, features), biases, torch.tensor([True, False]), steps=40)
    assert made == 40
    for ours, alone in zip(stacked.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours[0], alone, rtol=1e-9, atol=1e-12)
    assert losses == sorted(losses, reverse=True)
    assert float(found[0]) == pytest.approx(float(one.loss(decays, bias_decay).detach()))
    assert stacked.bias is not None
    assert not stacked.bias[1].any(), "where there is no bias it stays at zero"


def test_a_descent_that_is_cut_short_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = (landscape.Point(0.3, 0.0), landscape.Point(0.3, None), landscape.Point(1.2, 0.5))
    monkeypatch.setattr(landscape, "GRID", grid)
    whole = landscape.run_descent(a_cell(starts=1, num_classes=3, per_class=3, dim=4), narrower=0)
    assert whole.values["reached"] == whole.values["phase"] == 1
    assert whole.values["frame"] < 1e-3
    assert whole.values["lowest"] > -1e-14
    short = landscape.run_descent(a_cell(starts=1, num_classes=3, per_class=3, dim=4, steps=3), narrower=0)
    assert short.cost["steps"] == 3
    assert short.values["reached"] < 1
    assert short.values["frame"] > 0.05
    narrow = landscape.run_descent(a_cell(starts=1, num_classes=3, per_class=3, dim=3), narrower=2)
    assert narrow.values["reached"] < 1
    assert narrow.values["blocked"] == pytest.approx(1, abs=1e-4)


def test_a_wrong_formula_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = (landscape.Point(0.3, 0.0), landscape.Point(1.2, 0.5))
    monkeypatch.setattr(landscape, "GRID", grid)
    cell = a_cell(num_classes=3, per_class=2, dim=4)
    right = landscape.run_minima(cell).values
    assert max(right["loss_error"]) < 1e-14
    assert max(right["gradient"]) < 1e-14
    saddles = landscape.run_saddles(cell).values
    assert len(saddles["curvature"]) == 2
    assert max(saddles["curvature"]) < 0
    assert max(saddles["error"]) < 1e-12
    assert landscape.run_origin(cell).values["sign"].tolist() == [1, 1]
    exact = landscape.Landscape.optimum
    monkeypatch.setattr(
        landscape.Landscape, "optimum", lambda size, point: replace(exact(size, point), x=0.6, loss=0.2)
    )
    wrong = landscape.run_minima(cell).values
    assert min(wrong["loss_error"]) > 1e-3
    assert wrong["gradient"][0] > 1e-3
    monkeypatch.setattr(landscape, "origin_curvature", lambda *sizes: -0.1)
    assert min(landscape.run_saddles(cell).values["error"]) > 1e-3
    assert max(landscape.run_origin(cell).values["error"]) > 1e-3


# ---------------------------------------------------------------- networks


def cells(size: Images, count: int, tuning: bool = False, double: bool = False) -> list[Cell]:
    found = []
    for replicate in range(count):
        cell = Cell("networks", "digits", replicate, Seeds(7, replicate), size, tuning=tuning)
        problem = draw_images(cell)
        if double:
            (x, y), (x_val, y_val), (x_test, y_test) = problem.train, problem.val, problem.test.open()
            test = cell.seal((x_test.double(), y_test))
            problem = replace(problem, train=(x.double(), y), val=(x_val.double(), y_val), test=test)
        found.append(replace(cell, shared=lambda problem=problem: problem))
    return found


TINY = Images(train=90, val=30, test=40, hidden=12, dim=11, training=Training(epochs=3, batch_size=40))


@pytest.mark.parametrize(
    "change", [{}, {"loss": "ce", "smoothing": 0.1}, {"alpha": 5.0, "height": 5.0}, {"etf": True, "narrow": True}]
)
def test_in_one_pass_or_one_by_one(change: Mapping[str, Any]) -> None:
    """In float64, so that nothing but rounding may differ."""
    hypers = [{**USUAL, **change, "lr": lr} for lr in (0.05, 0.1)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        together = run_networks(cells(TINY, 2, double=True), hypers)
        single = [run_networks([cell], [own])[0] for cell, own in zip(cells(TINY, 2, double=True), hypers, strict=True)]
    finally:
        torch.set_default_dtype(before)
    for alone, outcome in zip(single, together, strict=True):
        assert alone.cost == outcome.cost
        assert alone.values.keys() == outcome.values.keys()
        for name, value in alone.values.items():
            assert value == pytest.approx(outcome.values[name], rel=1e-9, abs=1e-12), name


def test_while_tuning_only_the_objective_comes_out_and_test_data_stay_sealed() -> None:
    (outcome,) = run_networks(cells(TINY, 1, tuning=True), [{**USUAL, "lr": 0.05}])
    assert not outcome.values
    assert outcome.objective is not None


def test_a_diverged_replicate_says_so_and_leaves_the_others_alone() -> None:
    hypers = [{**USUAL, "lr": lr} for lr in (0.05, 1e30)]
    good, lost = run_networks(cells(TINY, 2), hypers)
    assert not good.diverged
    assert all(math.isfinite(value) for value in good.values.values())
    assert "became" in lost.diverged
    assert not lost.values


def test_every_step_ticks() -> None:
    ticks: list[None] = []
    run_networks([replace(cells(TINY, 1)[0], tick=lambda: ticks.append(None))], [{**USUAL, "lr": 0.05}])
    assert len(ticks) == 3 * 3


def test_what_is_saved_is_counted() -> None:
    def parameters(**change: bool) -> float:
        return run_networks(cells(TINY, 1, tuning=True), [{**USUAL, **change, "lr": 0.05}])[0].cost["parameters"]

    assert parameters() - parameters(etf=True) == 10 * 11
    # a column of weights, and two parameters of BatchNorm
    assert parameters(etf=True) - parameters(etf=True, narrow=True) == 12 + 2


def test_gaussians_are_what_they_are_said_to_be() -> None:
    size = Gaussians({"K5": 5}, features=40, apart=2.0, train=2000, val=3, test=7)
    cell = Cell("classes", "K5", 0, Seeds(1), size)
    problem = draw_gaussians(cell)
    (x, y), (x_test, y_test) = problem.train, problem.test.open()
    assert torch.equal(y.bincount(), torch.full((5,), 2000))
    assert torch.equal(y_test.bincount(), torch.full((5,), 7))
    found = nc_metrics(x, y)
    torch.testing.assert_close(found.within, torch.eye(40).double(), atol=0.1, rtol=0)
    assert float(found.means.std()) == pytest.approx(2.0, rel=0.15)
    near = torch.cdist(x_test.double(), found.means).argmin(1)
    assert torch.equal(near, y_test)


def test_digits_are_split_without_overlap() -> None:
    problem = draw_images(Cell("networks", "digits", 0, Seeds(1), replace(TINY, train=900, val=300, test=500)))
    parts = [problem.train, problem.val, problem.test.open()]
    assert [len(y) for _, y in parts] == [900, 300, 500]
    rows = torch.cat([x.flatten(1) for x, _ in parts])
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("neural-collapse-mse", scale="smoke", only=list(NAMES), store=":memory:")
    assert not result.failures
    assert all(len(result.rows[name]) == 1 for name in NAMES)
    (done,) = result.rows["networks"]
    assert done.value("parameters", "etf-narrow", "digits") < 0.8 * done.value("parameters", "mse", "digits")
    assert {arm for arm, tuning in result.tunings["networks"].items() if tuning.draws} == NETWORKS.arms.keys()
    (critical,) = result.rows["critical-points"]
    assert max(critical.value("curvature", "saddle", "default")) < 0  # pyright: ignore[reportArgumentType] an array
