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
from torchstone.dynamics import NewtonLinear, Whitening
from torchstone.errors import SealedDataError
from torchstone.studies import _whitening_runs
from torchstone.studies._whitening_identities import run_identities
from torchstone.studies._whitening_runs import Grid, Size, draw, pixels, run_network, run_networks
from torchstone.studies._whitening_second_order import (
    DAMPINGS,
    Linear,
    Network,
    draw_parts,
    run_best_damping,
    run_best_dampings,
    run_damped,
    run_dampeds,
    run_gauss_newton,
    run_gradient,
    run_kfac,
)
from torchstone.studies.whitening import STUDY

DIGITS, IDENTITIES = STUDY.experiment("digits"), STUDY.experiment("identities")
SECOND_ORDER, NETWORKS = STUDY.experiment("second-order"), STUDY.experiment("networks")

ACCURACY = {  # along the sizes, such as the paper claims them
    "none": (0.60, 0.75, 0.87, 0.96, 0.97),
    "train": (0.30, 0.40, 0.60, 0.90, 0.94),
    "full": (0.10, 0.13, 0.35, 0.82, 0.90),
    "distribution": (0.0, 0.0, 0.70, 0.90, 0.0),
    "diagonal": (0.0, 0.0, 0.87, 0.95, 0.0),
    "batch-norm": (0.0, 0.0, 0.86, 0.96, 0.0),
}


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``digits`` as the paper has it, but for ``changes``: arm -> values of all cases, or an outcome."""

    def outcome(arm: str, case: str) -> Outcome:
        change = changes.get(arm.replace("-", "_"), {})
        if isinstance(change, Outcome):
            return change
        found = {"accuracy": ACCURACY[arm][DIGITS.cases.index(case)], "train_accuracy": 1.0}
        moved = 1e-13 if (arm, case) == ("full", "20+20") else 2.0
        return Outcome({**found, "moved": moved, **change})

    return DIGITS.row(number, {(arm, case): outcome(arm, case) for arm, case in DIGITS.slots})


def judged(rows: Sequence[Row], experiment: str = "digits") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


def verdicts(rows: Sequence[Row], experiment: str = "digits") -> dict[str, str]:
    return {text: str(j.verdict) for text, j in judged(rows, experiment).items()}


GOOD: dict[str, Any] = {}
WORSE = {"full": {"accuracy": 0.3}}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([GOOD] * 6, Verdict.REPRODUCED),
        ([WORSE] * 6, Verdict.REFUTED),
        ([GOOD if number % 2 == 0 else WORSE for number in range(29)], Verdict.NOT_SIGNIFICANT),
        ([{"none": {"accuracy": 0.1}}] * 6, Verdict.PREMISE_NOT_MET),
        ([{"full": {"train_accuracy": 0.5}}] * 6, Verdict.PREMISE_NOT_MET),
        ([{"none": {"train_accuracy": 0.5}}] * 6, Verdict.PREMISE_NOT_MET),
        ([{"full": Outcome(diverged="the training loss is not finite")}] * 6, Verdict.PREMISE_NOT_MET),
        ([GOOD] * 5, Verdict.TOO_FEW),
        ([], Verdict.NOT_RUN),
    ],
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    rows = [row(number, **change) for number, change in enumerate(changes)]
    assert synthetic.primary(STUDY, rows) == verdict


def test_as_the_paper_claims_all_claims_hold() -> None:
    assert set(verdicts([row(number) for number in range(6)]).values()) == {"reproduced", "holds"}


def test_what_the_paper_claims_can_be_refuted() -> None:
    """Whitening that helps: at all sizes, more with more samples, where training data are fitted no worse."""
    good = {"train": {"accuracy": 0.99}, "distribution": {"accuracy": 0.99}}
    found = verdicts([row(number, **good) for number in range(6)])
    assert found["accuracy of full equals 0.1 up to 0.05 [20+20]"] == "reproduced"
    assert {text for text, verdict in found.items() if verdict == "refuted"} == {
        "accuracy of none is higher than that of train [20+20, 30+31, 100+200, 400+400]",
        "accuracy of none is higher than that of distribution",
        "the harm of whitening by training data falls along 30+31, 100+200, 400+400, 1200+597",
    }
    slow = {"train": {"train_accuracy": 0.6}, "diagonal": {"accuracy": 0.5}, "batch_norm": {"accuracy": 0.5}}
    found = verdicts([row(number, **slow) for number in range(6)])
    assert {text for text, verdict in found.items() if verdict == "refuted"} == {
        "train_accuracy of train is not lower by more than 0.02 than that of none [20+20, 30+31, 100+200, 400+400]",
        "accuracy of diagonal is not lower by more than 0.02 than that of none",
        "accuracy of batch-norm is not lower by more than 0.02 than that of none",
    }


def test_one_test_sample_that_moves_refutes_the_theorem() -> None:
    text = "moved of full is lower than 1e-09 [20+20]"
    assert verdicts([row(number) for number in range(6)])[text] == "holds"
    rows = [row(number, full={"moved": 1e-6} if number == 3 else {}) for number in range(6)]
    assert verdicts(rows)[text] == "refuted"
    dependent = [row(number, full={"moved": float("nan")} if number == 3 else {}) for number in range(6)]
    assert verdicts(dependent)[text] == "holds"  # that replicate says nothing


def second_order_row(number: int, **changes: synthetic.Change) -> Row:
    accuracy = dict(zip(DAMPINGS, (0.48, 0.55, 0.60, 0.68, 0.80, 0.79), strict=True))
    usual: dict[str, dict[str, float]] = {
        name: {"accuracy": accuracy[arm.hyper["damping"]], "best_step": 300.0, "damping": arm.hyper["damping"]}
        for name, arm in SECOND_ORDER.arms.items()
        if "damping" in arm.hyper
    }
    usual["best-damping"] = {"accuracy": 0.80, "best_step": 1.0, "damping": 0.1}

    def outcome(arm: str, case: str) -> Outcome:
        change = changes.get(arm.replace("-", "_"), {})
        if isinstance(change, Outcome):
            return change
        gain = 0.1 * SECOND_ORDER.cases.index(case) * (arm == "newton") * ("newton" not in changes)
        return Outcome({**usual[arm], "accuracy": usual[arm]["accuracy"] + gain / 4, **change})

    return SECOND_ORDER.row(number, {(arm, case): outcome(arm, case) for arm, case in SECOND_ORDER.slots})


def test_the_claims_on_damping_can_come_out_both_ways() -> None:
    rows = [second_order_row(number) for number in range(6)]
    assert set(verdicts(rows, "second-order").values()) == {"reproduced"}
    full_is_best = {
        "newton": {"accuracy": 0.95},
        "best_damping": {"accuracy": 0.7, "damping": 0.0, "best_step": 400.0},
        "damped_0.1": {"accuracy": 0.1},
    }
    found = verdicts([second_order_row(number, **full_is_best) for number in range(6)], "second-order")
    assert found["accuracy of gradient is higher than that of newton [n40, n200]"] == "refuted"
    assert found["accuracy of best-damping is not lower by more than 0.01 than that of gradient"] == "refuted"
    assert found["best_step of best-damping is at most 0.5 times that of gradient"] == "refuted"
    assert found["damping of best-damping is higher than 0"] != "reproduced"
    lost = [second_order_row(number, newton=Outcome(diverged="lost")) for number in range(6)]
    assert verdicts(lost, "second-order")["accuracy rises with damping from 0 to 0.1 [n40]"] == "refuted"


def test_the_claims_on_networks_can_come_out_both_ways() -> None:
    usual = {
        "gradient": {"accuracy": 0.85, "best_step": 500.0, "train_accuracy": 1.0},
        "full": {"accuracy": 0.6, "best_step": 5.0},
        "damped": {"accuracy": 0.86, "best_step": 10.0},
        "k-fac": {"accuracy": 0.85, "best_step": 10.0},
    }
    rows = [synthetic.made_up(NETWORKS, number, usual) for number in range(6)]
    assert set(verdicts(rows, "networks").values()) == {"reproduced"}
    bad = {"accuracy": 0.5, "best_step": 400.0}
    rows = [synthetic.made_up(NETWORKS, number, usual, damped=bad, full={"accuracy": 0.9}) for number in range(6)]
    found = verdicts(rows, "networks")
    assert found.pop("train_accuracy of gradient is higher than 0.9") == "reproduced"
    assert set(found.values()) == {"refuted"}
    unfit = {"gradient": {"train_accuracy": 0.5}}
    rows = [synthetic.made_up(NETWORKS, number, usual, **unfit) for number in range(6)]
    assert list(verdicts(rows, "networks").values()).count("premise not met") == len(NETWORKS.claims)


# ---------------------------------------------------------------- design


def test_all_arms_have_the_same_budget_and_start() -> None:
    for experiment in STUDY.experiments:
        if experiment is not IDENTITIES:
            assert all("lr" in arm.space for arm in experiment.arms.values())
    assert {str(arm.space["lr"]) for arm in DIGITS.arms.values()} == {str(DIGITS.arms["none"].space["lr"])}
    assert {str(arm.space["lr"]) for arm in SECOND_ORDER.arms.values()} == {
        str(SECOND_ORDER.arms["newton"].space["lr"])
    }
    assert NETWORKS.arms["k-fac"].space == NETWORKS.arms["damped"].space
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.arm, claim.than, claim.cases) == ("digits", "full", 0.1, ("20+20",))
    assert {arm.hyper["damping"] for arm in SECOND_ORDER.arms.values() if "damping" in arm.hyper} == set(DAMPINGS)


@pytest.mark.parametrize("experiment", STUDY.experiments, ids=lambda experiment: experiment.name)
def test_every_scale_has_every_case(experiment: Experiment) -> None:
    for setting in experiment.settings.values():
        assert tuple(setting.sizes) == experiment.cases


# ---------------------------------------------------------------- runs

SMALL = Grid(sizes={"10+12": Size(10, 12, repeats=2), "60+70": Size(60, 70)}, hidden=(8,), steps=6, batch_size=25)


def a_cell(setting: Any, case: str, replicate: int = 0, **changes: Any) -> Cell:
    cell = Cell("x", case, replicate, Seeds(5, replicate), setting, **changes)
    drawn = draw(cell) if isinstance(setting, Grid) else draw_parts(cell)
    return replace(cell, shared=lambda: drawn)


@pytest.mark.parametrize("inputs", ["raw", "train", "full", "distribution", "diagonal"])
@pytest.mark.parametrize("case", SMALL.sizes)
def test_networks_trained_in_one_pass_are_those_trained_alone(inputs: str, case: str) -> None:
    cells = [a_cell(SMALL, case, replicate) for replicate in range(3)]
    norm = inputs == "raw"
    hypers = [{"inputs": inputs, "lr": lr, "batch_norm": norm} for lr in (0.1, 0.5, 1e200)]
    together = run_networks(cells, hypers)
    for cell, hyper, outcome in zip(cells[:2], hypers, together, strict=False):
        alone = run_network(cell, **hyper)
        assert not alone.diverged
        assert {name: pytest.approx(value, abs=1e-10, nan_ok=True) for name, value in alone.values.items()} == dict(
            outcome.values
        )
        assert alone.cost == outcome.cost == {"steps": 6, "forwards": 6 * min(SMALL.sizes[case].n, 25)}
    if not norm:
        assert together[2].diverged == "the training loss is not finite"


def test_a_network_against_a_plain_loop() -> None:
    """One network, its batches and its steps, literally."""
    cell = a_cell(SMALL, "60+70")
    outcome = run_network(cell, inputs="train", lr=0.5, batch_norm=False)
    train, test = cell.shared().train, cell.shared().test.open()
    whitening = Whitening().fit(train.x[0])
    x, x_test, y = whitening(train.x[0]), whitening(test.x[0]), train.y[0]
    generator = cell.seeds.generator("init", 0)
    w = torch.randn(8, x.shape[1], generator=generator, dtype=torch.float64) / x.shape[1] ** 0.5
    v = torch.randn(10, 8, generator=generator, dtype=torch.float64) / 8**0.5
    first = w.clone()
    for weight in (w, v):
        weight.requires_grad_()
    generator = cell.seeds.generator("order", 0)
    order = torch.cat([torch.randperm(60, generator=generator) for _ in range(3)])
    optimizer = torch.optim.SGD([w, v], 0.5)
    for rows in order[:150].view(6, 25):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy((x[rows] @ w.T).relu() @ v.T, y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        right = (((x_test @ w.T).relu() @ v.T).argmax(1) == test.y[0]).double().mean()
        loss = torch.nn.functional.cross_entropy((x @ w.T).relu() @ v.T, y)
    assert outcome.values["accuracy"] == pytest.approx(float(right))
    assert outcome.values["train_loss"] == pytest.approx(float(loss))
    assert float((w.detach() - first).abs().max()) > 1e-3


def test_batch_normalisation_is_that_of_torch() -> None:
    w, x = torch.randn(1, 8, 5).double(), torch.randn(1, 30, 5).double()
    layer = torch.nn.BatchNorm1d(8, affine=False).double()
    expected = layer(x[0] @ w[0].T).relu()
    found = _whitening_runs.forward([w, torch.eye(8).double()[None]], x, x)[1]
    torch.testing.assert_close(found[0], expected)


def test_only_independent_samples_are_said_not_to_move() -> None:
    full = {"inputs": "full", "lr": 0.5, "batch_norm": False}
    assert run_network(a_cell(SMALL, "10+12"), **full).values["moved"] < 1e-9
    cell = a_cell(SMALL, "10+12")
    cell.shared().train.x[:, 1] = cell.shared().train.x[:, 0]  # twice the same sample: of rank 21
    assert torch.isnan(torch.tensor(run_network(cell, **full).values["moved"]))
    assert torch.isnan(torch.tensor(run_network(a_cell(SMALL, "60+70"), **full).values["moved"]))


def test_the_parts_of_a_draw_have_no_sample_in_common() -> None:
    setting = Grid(sizes={"a": Size(100, 200, repeats=2)}, others=1000)
    for tuning in (False, True):
        drawn = a_cell(setting, "a", tuning=tuning).shared()
        parts = [drawn.train.x, drawn.others] + ([drawn.validation.x] if tuning else [drawn.test.open().x])
        assert [part.shape[1] for part in parts] == [100, 1000, 200]
        for repeat in range(2):
            assert len(torch.cat([part[repeat] for part in parts]).unique(dim=0)) >= 1299  # digits has few twins
    assert not torch.equal(drawn.train.x[0], drawn.train.x[1])
    x, _, classes = pixels("digits")
    assert (x.shape, classes) == ((1797, 61), 10)


def test_while_tuning_test_samples_stay_sealed() -> None:
    cell = a_cell(SMALL, "60+70", tuning=True)
    with pytest.raises(SealedDataError):
        cell.shared().test.open()
    outcome = run_network(cell, inputs="full", lr=0.5, batch_norm=False)
    assert outcome.objective is not None
    assert not outcome.values
    small = Linear(steps=2), Network(hidden=2, gradient_steps=2, newton_steps=2)
    for run in (run_damped, run_best_damping):
        assert run(a_cell(small[0], "n40", tuning=True), lr=0.5, damping=0.1).values == {}
    for run, hyper in ((run_gradient, {}), (run_gauss_newton, {"damping": 0.1}), (run_kfac, {"damping": 0.1})):
        assert run(a_cell(small[1], "n200", tuning=True), lr=0.5, **hyper).values == {}


def test_a_planted_error_breaks_the_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(SMALL, sizes={"20+20": Size(20, 20)}, steps=50)
    right = run_identities(a_cell(setting, "20+20")).values
    assert right["moved"] < 1e-9
    assert right["projector"] < 1e-9
    assert max(right[name] for name in ("rotation", "newton", "whitened", "damped", "network")) < 1e-9
    assert right["turned"] > 1e-2

    def only_large_directions(*args: Any, **options: Any) -> Whitening:
        return Whitening(*args, eps=1e-2, **options)

    monkeypatch.setattr("torchstone.studies._whitening_identities.Whitening", only_large_directions)
    wrong = run_identities(a_cell(setting, "20+20")).values
    assert wrong["moved"] > 1e-3
    assert wrong["whitened"] > 1e-3


def test_linear_models_trained_in_one_pass_are_those_trained_alone() -> None:
    setting = Linear(steps=5)
    cells = [a_cell(setting, "n40", replicate) for replicate in range(3)]
    hypers = [{"lr": lr, "damping": damping} for lr, damping in ((0.5, 0.0), (1.0, 0.1), (1.5, 1.0))]
    assert run_dampeds(cells, hypers) == [run_damped(cell, **h) for cell, h in zip(cells, hypers, strict=True)]
    rates = [{"lr": hyper["lr"]} for hyper in hypers]
    best = run_best_dampings(cells, rates)
    assert best == [run_best_damping(cell, **h) for cell, h in zip(cells, rates, strict=True)]
    for cell, rate, outcome in zip(cells, rates, best, strict=True):
        same = run_damped(cell, damping=outcome.values["damping"], **rate)
        assert same.values == outcome.values
        assert outcome.cost["steps"] == len(DAMPINGS) * same.cost["steps"]


def test_the_earliest_best_step_counts_and_the_fastest_of_the_best_dampings() -> None:
    """Literally: every step of every damping, and ties among them."""
    tied = 0
    for replicate in range(8):
        cell = a_cell(Linear(steps=12, validation=6), "n40", replicate)
        (x, y), (x_val, y_val), _ = cell.shared()
        found = []
        for damping in DAMPINGS:
            solver = NewtonLinear(x, damping=damping)
            rate = 1.0 / float(torch.linalg.eigvals(solver.preconditioner @ solver.moment).real.max())
            weight = torch.randn(10, 61, generator=cell.seeds.generator("init"), dtype=torch.float64) / 61**0.5
            right = []
            for _ in range(13):
                right.append(int(((x_val @ weight.T).argmax(1) == y_val).sum()))
                weight = solver.solve(torch.nn.functional.one_hot(y, 10).double(), weight, lr=rate)
            assert run_damped(cell, lr=1.0, damping=damping).values["best_step"] == right.index(max(right))
            tied += right.count(max(right)) > 1
            found.append((max(right), -right.index(max(right)), damping))
        assert run_best_damping(cell, lr=1.0).values["damping"] == max(found, key=lambda entry: entry[:2])[2]
    assert tied


def test_stacks_tick_once_a_step() -> None:
    ticks = {"networks": 0, "linear": 0}

    def tick(name: str) -> Any:
        def count() -> None:
            ticks[name] += 1

        return count

    cells = [a_cell(SMALL, "10+12", replicate, tick=tick("networks")) for replicate in range(2)]
    run_networks(cells, [{"inputs": "raw", "lr": 0.1, "batch_norm": False}] * 2)
    cells = [a_cell(Linear(steps=5), "n40", replicate, tick=tick("linear")) for replicate in range(2)]
    run_dampeds(cells, [{"lr": 0.5, "damping": 0.1}] * 2)
    assert ticks == {"networks": 6, "linear": 5}


def test_the_best_step_counts_and_divergence_is_said() -> None:
    cell = a_cell(Network(hidden=6, gradient_steps=60, newton_steps=4), "n200")
    for outcome in (run_gradient(cell, lr=0.5), run_gauss_newton(cell, lr=0.5, damping=0.1)):
        assert 0 < outcome.values["best_step"] <= outcome.cost["steps"]
        assert outcome.values["accuracy"] > 0.15
    wide = a_cell(Network(hidden=8, gradient_steps=60), "n200")  # in which not all units die at once
    assert run_gradient(wide, lr=1e308).diverged == "the weights are not finite"
    assert "not finite" in run_gauss_newton(cell, lr=1e300, damping=0.5).diverged


# ---------------------------------------------------------------- end to end


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    embedded = ["identities", "digits", "second-order", "networks"]
    result = api.run("whitening", scale="smoke", only=embedded, store=":memory:")
    assert not result.failures
    assert [len(result.rows[name]) for name in embedded] == [1, 1, 1, 1]
    assert {j.verdict for j in result.judgements if j.experiment == "identities"} == {Verdict.HOLDS}
    assert result.verdict == Verdict.TOO_FEW
    assert {arm for arm, tuning in result.tunings["digits"].items() if tuning.draws} == DIGITS.arms.keys()


@pytest.mark.study
@pytest.mark.real_data
def test_the_study_runs_on_fashion_mnist() -> None:
    result = api.run("whitening", scale="smoke", only=["fashion"], store=":memory:")
    assert not result.failures
    (done,) = result.rows["fashion"]
    assert float(done.value("moved", "full", "200+200")) < 1e-9


def test_without_its_data_an_experiment_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    result = api.run("whitening", scale="smoke", only=["fashion"], store=":memory:")
    assert "fashion_mnist" in result.not_run["fashion"]
    assert {j.verdict for j in result.judgements} == {Verdict.NOT_RUN}
