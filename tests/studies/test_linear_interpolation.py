from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
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
from torchstone.dynamics import interpolation
from torchstone.studies import _linear_interpolation_cifar10 as cifar10
from torchstone.studies._linear_interpolation_identities import identities
from torchstone.studies._linear_interpolation_layers import Start, Starts, pretrain
from torchstone.studies._linear_interpolation_nets import CONDITIONS, Net, Nets, Sizes, build, draw
from torchstone.studies._linear_interpolation_ranks import RIVALS, SHAPES, ranks, spearman, unseen_r2
from torchstone.studies.linear_interpolation import STUDY

DIGITS, LAYERS = STUDY.experiment("digits"), STUDY.experiment("layers")
TINY = Sizes(train=100, test=60, epochs=1, random_epochs=1, curve=30, points=3, signs=2)
CASES = DIGITS.cases
PRIMARY = "no shape of the path orders ways to train as test accuracy does (mean |rho| over 0.6)"

# ---------------------------------------------------------------- verdicts

DERIVED = {
    "best_shape": 0.4,
    "best_shape_same_data": 0.3,
    "best_rival": 0.7,
    "r2_shape": 0.1,
    "spread": 0.1,
    **{f"size_{name}": 0.2 for name in SHAPES},
}
VALUES = {"final_excess": 0.4, "batch_excess": 0.01, "barrier": 0.0}


def row(number: int, lost: float = False, **changes: float) -> Row:
    """A replicate of ``digits`` with these derived values and outcomes, but for ``changes``."""
    outcomes = {slot: Outcome({name: changes.get(name, value) for name, value in VALUES.items()})
                for slot in DIGITS.slots}  # fmt: skip
    if lost:
        outcomes["cnn3", "large-lr"] = Outcome(diverged="the loss became nan")
    return Row(number, outcomes, {name: changes.get(name, value) for name, value in DERIVED.items()})


def judged(rows: Sequence[Row], experiment: str = "digits") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


@synthetic.every_verdict(
    worse={"best_shape": 0.8},
    equal={"best_shape": 0.6},
    broken={"spread": 0.01},
    lost={"best_shape": math.nan, "lost": True},
    most=29,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    assert synthetic.primary(STUDY, [row(number, **change) for number, change in enumerate(changes)]) == verdict


def test_each_claim_can_come_out_both_ways() -> None:
    assert {str(j.verdict) for j in judged([row(number) for number in range(6)]).values()} == {"reproduced"}
    opposite = dict.fromkeys(DERIVED, 0.9) | {"best_rival": 0.5, "spread": 0.1, "final_excess": 0.0}
    opposite |= {"batch_excess": 0.4, "barrier": 0.2}
    verdicts = {text: str(j.verdict) for text, j in judged([row(number, **opposite) for number in range(6)]).items()}
    assert verdicts.pop("in every architecture the ways to train differ by 2 points of test accuracy") == "reproduced"
    assert set(verdicts.values()) == {"refuted"}
    assert STUDY.primary[1].sentence() == PRIMARY


def layer_row(number: int, **accuracy: float) -> Row:
    scores = {"scratch": 0.95, "convs-trained": 0.93, "head-trained": 0.92, "all-trained": 0.97}

    def outcome(arm: str) -> Outcome:
        return Outcome({"accuracy": accuracy.get(arm.replace("-", "_"), scores[arm]), "rewound_spread": 0.4})

    return LAYERS.row(number, {(arm, case): outcome(arm) for arm, case in LAYERS.slots})


def test_partial_pretraining_that_helps_refutes_the_paper() -> None:
    rows = [layer_row(number) for number in range(6)]
    assert {str(j.verdict) for j in judged(rows, "layers").values()} == {"reproduced"}
    better = [layer_row(number, convs_trained=0.96) for number in range(6)]
    assert (
        judged(better, "layers")["accuracy of convs-trained is lower than that of scratch"].verdict == Verdict.REFUTED
    )


# ---------------------------------------------------------------- ranks


def ranked(**columns: Any) -> dict[str, float]:
    """Derived values of a replicate with these values by case, of all architectures or by architecture."""
    usual: dict[str, Any] = {name: [0.0] * 10 for name in (*SHAPES, *RIVALS)} | {"accuracy": np.linspace(0.5, 0.9, 10)}

    def outcome(arm: str, case: str) -> Outcome:
        place = CASES.index(case)
        found = {}
        for name, column in (usual | columns).items():
            values = column.get(arm, usual[name]) if isinstance(column, Mapping) else column
            found[name] = float(values[place])
        return Outcome(diverged="lost") if math.isinf(found["accuracy"]) else Outcome(found)

    return dict(ranks(Row(0, {(arm, case): outcome(arm, case) for arm, case in DIGITS.slots})))


def test_a_shape_that_follows_accuracy_is_found() -> None:
    up = np.exp(np.arange(10.0))  # ranks count, not sizes
    found = ranked(area=up, distance=-up)
    assert [found["rho_area"], found["size_area"], found["best_shape"]] == pytest.approx([1, 1, 1])
    assert found["rho_distance"] == pytest.approx(-1)
    assert [found["best_rival"], found["best_shape_same_data"]] == pytest.approx([1, 1])
    assert found["r2_shape"] > 0.9
    assert found["spread"] == pytest.approx(0.4)


def test_a_constant_shape_orders_nothing() -> None:
    found = ranked()
    assert found["rho_barrier"] == found["best_shape"] == found["pooled_barrier"] == 0
    assert math.isnan(found["rho_barrier_mlp2"])
    assert found["r2_shape"] <= 1e-12
    one = ranked(barrier={"cnn3": np.arange(10.0)})
    assert one["rho_barrier"] == pytest.approx(1)  # the mean is over the architectures that say anything


def test_signs_that_disagree_cancel_and_architectures_are_not_pooled() -> None:
    up, down = np.arange(10.0), -np.arange(10.0)
    found = ranked(gap={"mlp2": up, "mlp6": up, "cnn3": down, "cnn3-bn": down})
    assert found["size_gap"] == pytest.approx(0)
    # Between architectures the gap rises with accuracy, in each it falls.
    shift = {"mlp2": 0.0, "mlp6": 20.0, "cnn3": 40.0, "cnn3-bn": 60.0}
    simpson = ranked(
        gap={arm: down + by for arm, by in shift.items()}, accuracy={arm: up / 100 + by for arm, by in shift.items()}
    )
    assert simpson["rho_gap"] == pytest.approx(-1)
    assert simpson["pooled_gap"] > 0.5


def test_a_plateau_without_end_is_the_longest_and_lost_runs_do_not_count() -> None:
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert ranked(alpha_half=[math.nan, *falling])["rho_alpha_half"] == pytest.approx(-1)
    assert -1 < ranked(alpha_half=[*falling, math.nan])["rho_alpha_half"] < 0
    lost = ranked(alpha_half=[*falling, math.nan], accuracy=[*np.linspace(0.5, 0.9, 9), math.inf])
    assert lost["rho_alpha_half"] == pytest.approx(-1)


def test_rank_correlations_by_hand() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(spearman(a, np.ones(4)))
    assert math.isnan(spearman(np.array([1.0, 2.0, 3.0, math.nan]), a))


def test_a_regression_on_noise_explains_nothing_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        tables = [{name: rng.normal(size=10) for name in (*SHAPES, "accuracy")} | {"condition": np.arange(10)}
                  for _ in range(4)]  # fmt: skip
        found.append(unseen_r2(tables))
    assert np.mean(found) < 0


# ---------------------------------------------------------------- arms


def cells(case: str, count: int, setting: Any = TINY, shared: Any = draw) -> list[Cell]:
    found = []
    for replicate in range(count):
        cell = Cell("digits", case, replicate, Seeds(3, replicate), setting)
        content = shared(cell)
        found.append(replace(cell, shared=lambda content=content: content))
    return found


def assert_equal(one: Outcome, other: Outcome) -> None:
    assert one.cost == other.cost
    assert one.values.keys() == other.values.keys()
    for name, value in one.values.items():
        rough = 1e-3 if name == "trace" else 1e-5
        np.testing.assert_allclose(other.values[name], value, rtol=rough, atol=rough, err_msg=name)


@pytest.mark.parametrize(("architecture", "case"), [("mlp2", "adversarial"), ("cnn3-bn", "few"), ("cnn3", "adam-0.01")])
def test_many_replicates_in_one_pass_equal_single_ones(architecture: str, case: str) -> None:
    together = cells(case, 2)
    outcomes = Nets(architecture)(together, [{}, {}])
    for cell, outcome in zip(together, outcomes, strict=True):
        assert_equal(outcome, Net(architecture)(cell))


def test_layers_in_one_pass_equal_single_ones() -> None:
    together = cells("default", 2, shared=pretrain)
    for layers in ("", r"conv\d"):
        for cell, outcome in zip(together, Starts(layers)(together, [{}, {}]), strict=True):
            assert_equal(outcome, Start(layers)(cell))


def test_a_run_that_diverges_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONDITIONS, "large-lr", replace(CONDITIONS["large-lr"], lr=1e30))
    (outcome,) = Nets("mlp2")(cells("large-lr", 1), [{}])
    assert "the loss became" in outcome.diverged or "parameter" in outcome.diverged
    assert not outcome.values


def test_what_the_conditions_change() -> None:
    usual, noisy, few = (cells(case, 1, replace(TINY, train=300))[0].shared() for case in ("momentum", "noisy", "few"))
    assert torch.equal(noisy.train[0], usual.train[0])
    assert 0.3 < float((noisy.train[1] != usual.train[1]).double().mean()) < 0.5
    assert torch.equal(few.train[0], usual.train[0][:100])
    assert torch.equal(noisy.test.open()[1], usual.test.open()[1])
    ticks = []
    (cell,) = cells("few", 1, replace(TINY, train=300))
    Net("mlp2")(replace(cell, tick=lambda: ticks.append(1)))
    assert len(ticks) == 6  # as many steps as with 300 samples


def test_images_of_the_other_training_are_not_used_again() -> None:
    (cell,) = cells("default", 1, shared=pretrain)
    shared = cell.shared()
    ours = {tuple(x.flatten().tolist()) for x in shared.data[0]}
    assert not ours & {tuple(x.flatten().tolist()) for x in shared.test.open()[0]}
    assert not torch.equal(shared.trained["conv1.weight"], shared.fresh.state_dict()["conv1.weight"])


def test_networks_are_what_they_are_called() -> None:
    g = torch.Generator().manual_seed(0)
    shape = torch.Size([1, 8, 8])
    kinds = {
        name: [type(m).__name__ for m in build(name, shape, g).children()].count
        for name in ("mlp2", "mlp6", "cnn3", "cnn3-bn")
    }
    assert [kinds[name]("Linear") for name in kinds] == [3, 7, 1, 1]
    assert [kinds[name]("Conv2d") for name in kinds] == [0, 0, 3, 3]
    assert [kinds[name]("BatchNorm2d") for name in kinds] == [0, 0, 0, 3]


# ---------------------------------------------------------------- identities


def identity_rows() -> list[Row]:
    experiment = STUDY.experiment("identities")
    return [experiment.row(r, {("line", "default"): identities(Cell("identities", "default", r, Seeds(1, r)))})
            for r in range(6)]  # fmt: skip


def test_identities_hold_and_a_planted_error_breaks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {str(j.verdict) for j in judged(identity_rows(), "identities").values()} == {"holds"}
    right = interpolation.lerp
    monkeypatch.setattr(interpolation, "lerp", lambda start, end, alpha: right(start, end, alpha**2 + 1e-9))
    broken = {text for text, j in judged(identity_rows(), "identities").items() if j.verdict == Verdict.REFUTED}
    assert broken == {
        "the curve of a linear model with squared loss is a parabola",
        "at 0 and 1 the losses are those of the two states, to the bit",
    }


# ---------------------------------------------------------------- at the paper's scale


def test_the_large_network_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    names = tuple("0123456789")
    test = TensorData(torch.rand(20, 3, 8, 8, generator=g), torch.arange(20) % 10, names, "test")
    data = TensorData(torch.rand(40, 3, 8, 8, generator=g), torch.arange(40) % 10, names, "fake", test=test)
    monkeypatch.setattr(cifar10, "load", lambda name: data)
    small = cifar10.Large(model="strided-cnn", epochs=2, random_epochs=1, batch_size=20, curve=20, statistics=20,
                          points=3, signs=2)  # fmt: skip
    experiment = STUDY.experiment("cifar10")
    outcomes = {}
    for case in experiment.cases:
        (cell,) = cells(case, 1, small, cifar10.draw_large)
        if case == "adversarial":
            with pytest.warns(RuntimeWarning, match="random labels"):
                outcomes["resnet18", case] = cifar10.run_large(cell)
        else:
            outcomes["resnet18", case] = cifar10.run_large(cell)
    assert len(outcomes["resnet18", "adam"].values["rewound"]) == 7  # six layers of the body, and the head
    found = experiment.row(0, outcomes)
    assert all(math.isfinite(claim.w(found)) for claim in experiment.claims)


# ---------------------------------------------------------------- the study


@pytest.mark.parametrize("experiment", STUDY.experiments, ids=lambda experiment: experiment.name)
def test_every_case_is_known_and_no_arm_is_tuned(experiment: Experiment) -> None:
    known = {**CONDITIONS, **cifar10.WAYS, "default": None}
    assert set(experiment.cases) <= known.keys()
    assert not any(arm.space or arm.hyper for arm in experiment.arms.values())


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("linear-interpolation", scale="smoke", store=":memory:")
    assert not result.failures
    assert result.verdict == Verdict.TOO_FEW
    assert set(result.not_run) == {"fashion", "cifar10"}
    (done,) = result.rows["digits"]
    assert set(DERIVED) <= set(done.derived)
    assert done.value("steps", "mlp2", "adversarial") == 2
