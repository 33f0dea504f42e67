from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.studies import synthetic
from torchstone import api
from torchstone.bench.judge import Judgement
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Cell, Experiment
from torchstone.data import TensorData
from torchstone.dynamics import MarginPatchDataset, patch_gradient, patch_logits
from torchstone.errors import SealedDataError
from torchstone.models import build
from torchstone.studies._momentum_cifar import BATCHES, CASES, Cifar, run_cifar, vgg19
from torchstone.studies._momentum_nets import Images, NetProblem, Teachers
from torchstone.studies._momentum_patches import (
    Case,
    Patches,
    identity_error,
    measure,
    noise_like,
    run_adam,
    run_sgd,
    stack_adam,
    stack_sgd,
)
from torchstone.studies.momentum import STUDY

PATCHES, DOSE, RIVALS, DIGITS, FASHION, TEACHERS, CIFAR = STUDY.experiments
GOOD = {"train": 1.0, "test": 0.99, "test_large": 1.0, "identity": 1e-16}
VALUES = {
    "gd": {**GOOD, "test": 0.985, "test_small": 0.54, "feature": 14.0, "signal": 0.1},
    "momentum": {**GOOD, "test_small": 0.97, "feature": 900.0, "signal": 0.9},
    "momentum-torch": {**GOOD, "test_small": 0.97},
}


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``patches`` in which all claims hold (in the controls both arms classify everything)."""
    found = synthetic.made_up(PATCHES, number, VALUES, **changes)
    controls = {
        slot: replace(outcome, values={**outcome.values, "test": 1.0, "test_small": 1.0})
        for slot, outcome in found.outcomes.items()
        if slot[1] in ("no-minority", "one-margin") and not outcome.diverged and slot[0] not in _underscored(changes)
    }
    return PATCHES.row(number, {**found.outcomes, **controls})


def _underscored(changes: Mapping[str, Any]) -> set[str]:
    return {name.replace("_", "-") for name in changes}


def verdicts(experiment: Experiment, rows: Sequence[Row]) -> dict[str, str]:
    found: dict[str, Judgement] = synthetic.judged(STUDY, experiment.name, rows)
    return {text: str(j.verdict) for text, j in found.items()}


# ---------------------------------------------------------------- claims


@synthetic.every_verdict(
    worse={"momentum": {"test_small": 0.5}},
    equal={"momentum": {"test_small": 0.54}},
    broken={"gd": {"train": 0.97}},
    lost={"momentum": {"test_small": 0.0}},  # what diverges fits nothing: that is the next test
    most=40,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    # Six replicates decide nothing here: the experiment asks for thirty.
    many = 30 if len(changes) == 6 else len(changes)
    rows = [row(number, **(changes[number % len(changes)])) for number in range(many)] if changes else []
    assert synthetic.primary(STUDY, rows) == verdict


def test_momentum_that_diverges_breaks_the_premise() -> None:
    rows = [row(number, momentum=Outcome(diverged="a weight is nan")) for number in range(30)]
    assert synthetic.primary(STUDY, rows) == Verdict.PREMISE_NOT_MET
    found = verdicts(PATCHES, rows)
    assert found["momentum classifies all training data right"] == "refuted"


def test_all_claims_hold_where_the_paper_is_right() -> None:
    found = verdicts(PATCHES, [row(number) for number in range(30)])
    assert set(found.values()) == {"reproduced", "holds"}


def test_a_gain_without_its_reason_is_told_apart() -> None:
    """Momentum helps, but the feature does not grow and small margins are still memorised."""
    memorised = {"momentum": {"feature": 20.0, "signal": 0.2}}
    found = verdicts(PATCHES, [row(number, **memorised) for number in range(30)])
    assert found["test_small of momentum is higher than that of gd [margins]"] == "reproduced"
    assert found["feature of momentum is at least 10 times that of gd [margins]"] == "refuted"
    assert found["momentum fits small margins mostly by the feature [margins]"] == "refuted"


def test_controls_can_fail() -> None:
    apart = {"gd": {"test": 0.9, "test_small": 0.9}}
    found = verdicts(PATCHES, [row(number, **apart) for number in range(30)])
    assert found["test of momentum equals that of gd up to 0.005 [no-minority]"] == "refuted"
    assert found["test_small of momentum equals that of gd up to 0.01 [one-margin]"] == "refuted"


def test_one_counterexample_refutes_the_closed_forms() -> None:
    text = "closed forms of the gradient and of the growth of the feature agree with autograd (momentum)"
    rows = [row(0, momentum={"identity": 1e-6}), *(row(number) for number in range(1, 30))]
    assert verdicts(PATCHES, rows)[text] == "refuted"


@pytest.mark.parametrize(("sign", "verdict"), [(1, "reproduced"), (-1, "refuted"), (0, "degenerate")])
def test_the_dose_is_judged_along_its_cases(sign: int, verdict: str) -> None:
    def outcome(case: str) -> Outcome:
        level = sign * DOSE.cases.index(case) / 10
        return Outcome({"train": 1.0, "test_small": 0.5 + level / 2, "feature": 100 + level})

    many = 40 if verdict == "degenerate" else 30
    rows = [DOSE.row(n, {(arm, case): outcome(case) for arm, case in DOSE.slots}) for n in range(many)]
    for metric in ("test_small", "feature"):
        assert verdicts(DOSE, rows)[f"{metric} of momentum rises along {', '.join(DOSE.cases)}"] == verdict


def rival_rows(**small: float) -> list[Row]:
    usual = {"gd": 0.54, "momentum": 0.97, "momentum_tuned": 0.98, "gd_tuned": 0.81}
    found = {
        arm: {"train": 1.0, "test_small": {**usual, **small}.get(arm.replace("-", "_"), 0.6)} for arm in RIVALS.arms
    }
    return [synthetic.made_up(RIVALS, number, found) for number in range(30)]


def test_a_rival_that_is_as_good_refutes_its_claim_alone() -> None:
    found = verdicts(RIVALS, rival_rows())
    assert set(found.values()) == {"reproduced"}
    found = verdicts(RIVALS, rival_rows(adam=0.99, gd_tuned=0.6))
    assert {text for text, verdict in found.items() if verdict == "refuted"} == {
        "test_small of momentum-tuned is higher than that of adam",
        "gd-tuned closes at least 50% of the gap in test_small from gd to momentum",
    }


def test_a_rival_that_does_not_fit_takes_the_meaning_away() -> None:
    rows = rival_rows()
    unfitted = {
        slot: replace(o, values={**o.values, "train": 0.9}) for slot, o in rows[0].outcomes.items() if slot[0] == "sgd"
    }
    found = verdicts(RIVALS, [replace(r, outcomes={**r.outcomes, **unfitted}) for r in rows])
    assert found["test_small of momentum-tuned is higher than that of adam"] == "premise not met"


@pytest.mark.parametrize(("gap", "verdict"), [(0.004, "reproduced"), (-0.02, "refuted"), (0.02, "refuted")])
def test_equivalence_on_teachers(gap: float, verdict: str) -> None:
    values = {"gd": {"train": 1.0, "test": 0.8}, "momentum": {"train": 1.0, "test": 0.8 + gap}}
    rows = [synthetic.made_up(TEACHERS, number, values) for number in range(12)]
    assert verdicts(TEACHERS, rows)["test of momentum equals that of gd up to 0.01"] == verdict


def test_the_gap_on_cifar10_may_shrink_with_the_batch() -> None:
    def outcome(arm: str, case: str, grows: int) -> Outcome:
        gain = grows * list(BATCHES).index(case.split("-")[1]) / 100 if arm == "momentum" else 0.0
        return Outcome({"train": 1.0, "test": 0.8 + gain})

    text = "the gap between momentum and gd grows with the batch"
    for grows, verdict in ((1, "reproduced"), (-1, "refuted")):
        rows = [CIFAR.row(n, {(arm, case): outcome(arm, case, grows) for arm, case in CIFAR.slots}) for n in range(6)]
        assert rows[0].derived_value("growth") == pytest.approx(grows / 100)
        assert verdicts(CIFAR, rows)[text] == verdict


# ---------------------------------------------------------------- design


def test_arms_that_are_compared_differ_in_one_thing() -> None:
    gd, momentum = (dict(PATCHES.arms[name].hyper) for name in ("gd", "momentum"))
    assert {key for key in gd if gd[key] != momentum[key]} == {"momentum"}
    assert {key for key, value in RIVALS.arms["gd-longer"].hyper.items() if gd.get(key) != value} == {"longer"}
    assert RIVALS.arms["momentum-tuned"].space == RIVALS.arms["gd-tuned"].space
    for experiment in (DIGITS, FASHION, TEACHERS):
        assert experiment.arms["momentum"].tuned_as == "gd"  # the same learning rate
    for experiment in (PATCHES, DOSE, RIVALS):
        assert experiment.replicates[0] >= 30


def test_smoke_is_the_bench_made_small() -> None:
    for experiment in STUDY.experiments[:-1]:
        smoke, bench = experiment.settings["smoke"], experiment.settings["bench"]
        assert replace(smoke, n=bench.n, n_test=bench.n_test, steps=bench.steps) == bench
        assert tuple(bench.cases) == experiment.cases


# ---------------------------------------------------------------- arms


def cells(experiment: Experiment, case: str, many: int = 3, seed: int = 5, **size: Any) -> list[Cell]:
    assert experiment.shared is not None
    setting = replace(experiment.settings["smoke"], **size)
    found = []
    for number in range(many):
        cell = Cell(experiment.name, case, number, Seeds(seed, number), setting)
        problem = experiment.shared(cell)
        found.append(replace(cell, shared=lambda problem=problem: problem))
    return found


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


STACKED = [(RIVALS, arm, "margins") for arm in RIVALS.arms] + [
    (PATCHES, "momentum-torch", "margins"),
    (TEACHERS, "momentum", "linear"),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("experiment", "arm", "case"), STACKED, ids=lambda value: getattr(value, "name", value))
def test_together_is_one_by_one(experiment: Experiment, arm: str, case: str) -> None:
    rule, some = experiment.arms[arm], cells(experiment, case)
    assert rule.stacked is not None
    hypers = [{**rule.hyper, "lr": rule.hyper["lr"] * factor} for factor in (0.5, 1.0, 2.0)]  # draws of tuning
    for cell, hyper, outcome in zip(some, hypers, rule.stacked(some, hypers), strict=True):
        alone = rule.run(cell, **hyper)
        assert alone.cost == outcome.cost
        for name, value in alone.values.items():
            assert outcome.values[name] == pytest.approx(value, rel=1e-12, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("experiment", "arm", "case"), [STACKED[0], (DIGITS, "momentum", "factor0.3")], ids=["patches", "digits"]
)
def test_together_is_one_by_one_in_single_precision(experiment: Experiment, arm: str, case: str) -> None:
    rule, some = experiment.arms[arm], cells(experiment, case)
    assert rule.stacked is not None
    for cell, outcome in zip(some, rule.stacked(some, [rule.hyper] * 3), strict=True):
        objective = rule.run(cell, **rule.hyper).objective
        assert objective is not None
        assert outcome.objective == pytest.approx(objective, abs=1e-6)


def test_no_replicate_sees_another() -> None:
    first, *rest = cells(RIVALS, "margins")
    problem = first.shared()
    other = MarginPatchDataset(60, generator=torch.Generator().manual_seed(99))
    changed = replace(first, shared=lambda: replace(problem, train=other))
    hypers = [RIVALS.arms["momentum"].hyper] * 3
    before, after = stack_sgd([first, *rest], hypers), stack_sgd([changed, *rest], hypers)
    assert before[0].objective != after[0].objective
    for old, new in zip(before[1:], after[1:], strict=True):
        assert old.objective == new.objective
        assert old.values["feature"] == new.values["feature"]


def test_the_one_that_diverges_says_so_and_the_others_go_on() -> None:
    some = cells(RIVALS, "margins", many=2)
    outcomes = stack_sgd(some, [{"lr": 1e30, "momentum": 0.0}, {"lr": 0.5, "momentum": 0.0}])
    assert outcomes[0].diverged
    assert not outcomes[1].diverged
    assert outcomes[1].values["train"] > 0.5


def test_gradient_descent_literally() -> None:
    (cell,) = cells(RIVALS, "margins", many=1, steps=4)
    problem = cell.shared()
    weight = problem.weight.clone()
    for _ in range(4):
        weight -= 0.5 * patch_gradient(weight, problem.train.x, problem.train.y)
    loss = -F.logsigmoid(problem.train.y * patch_logits(weight, problem.train.x)).mean()
    assert run_sgd(cell, lr=0.5, momentum=0.0).objective == pytest.approx(-loss.item(), rel=1e-6)


def test_adam_is_torchs() -> None:
    (cell,) = cells(RIVALS, "margins", many=1, steps=6)
    problem = cell.shared()
    weight = problem.weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], 0.01)
    for _ in range(6):
        weight.grad = patch_gradient(weight.detach(), problem.train.x, problem.train.y)
        optimizer.step()
    loss = -F.logsigmoid(problem.train.y * patch_logits(weight, problem.train.x)).mean()
    assert run_adam(cell, lr=0.01, momentum=0.9).objective == pytest.approx(-loss.item(), rel=1e-5)


def test_noise_is_as_large_as_the_gradient_and_batches_cover_the_data() -> None:
    (cell,) = cells(RIVALS, "margins", many=1, steps=1)
    steps = []
    ticking = replace(cell, tick=lambda: steps.append(1))
    quiet, noisy = (run_sgd(cell, lr=0.5, momentum=0.0, noise=noise) for noise in (0.0, 1.0))
    assert quiet.objective != noisy.objective
    batched = run_sgd(ticking, lr=1e-6, momentum=0.0, batch=20)
    assert len(steps) == batched.cost["steps"] == 3
    assert batched.cost["samples"] == 60
    # At a tiny rate the three batches add up to three times the whole, to first order.
    whole = run_sgd(cell, lr=3e-6, momentum=0.0)
    assert batched.objective == pytest.approx(whole.objective, rel=1e-7)
    gradient = torch.randn(2, 4, 100) * torch.tensor([1.0, 7.0])[:, None, None]
    noise = noise_like(gradient, 3.0, [torch.Generator().manual_seed(s) for s in range(2)])
    assert (noise.norm(dim=(1, 2)) / gradient.norm(dim=(1, 2))).tolist() == pytest.approx([3.0, 3.0], rel=0.15)


@pytest.mark.parametrize("stacked", [stack_sgd, stack_adam])
def test_while_tuning_test_data_stay_sealed(stacked: Callable[..., Sequence[Outcome]]) -> None:
    assert RIVALS.shared is not None
    cell = Cell("rivals", "margins", 0, Seeds(5), RIVALS.settings["smoke"], tuning=True)
    problem = RIVALS.shared(cell)
    with pytest.raises(SealedDataError):
        problem.test.open()
    (outcome,) = stacked([replace(cell, shared=lambda: problem)], [{"lr": 0.1, "momentum": 0.5}])
    assert outcome.objective is not None
    assert not outcome.values


def test_what_an_arm_reports() -> None:
    (cell,) = cells(RIVALS, "margins", many=1, n=200, n_test=800, steps=600)
    curve: list[tuple[str, float, int]] = []
    found = run_sgd(replace(cell, log=lambda *point: curve.append(point)), lr=0.5, momentum=0.0).values
    problem = cell.shared()
    test = problem.test.open()
    share = test.small_margin.float().mean().item()
    assert found["test"] == pytest.approx(share * found["test_small"] + (1 - share) * found["test_large"], abs=1e-6)
    assert found["test_large"] > 0.99
    assert 0 <= found["signal"] < 1
    assert found["identity"] < 1e-10
    last = {name: (pytest.approx(value), step) for name, value, step in curve}
    assert last == {name: (found[name], 600) for name in ("feature", "train_small", "test_small")}
    assert len(curve) > 60
    assert {step for _, _, step in curve[:3]} == {1}


def test_the_share_of_the_feature_is_that_of_the_small_margins() -> None:
    (cell,) = cells(RIVALS, "margins", many=1, n=200)
    problem = cell.shared()
    data = problem.train
    aligned = torch.zeros(1, 100)
    aligned[0, 0] = 10.0  # C = 1000, and no noise
    assert measure(aligned, problem)["signal"].item() == pytest.approx(1.0)
    weight = aligned + 0.3 * torch.randn(1, 100, generator=torch.Generator().manual_seed(0)) * (torch.arange(100) > 0)
    margin = (data.y * patch_logits(weight, data.x))[data.small_margin].sum().item()
    found = measure(weight, problem)
    assert found["feature"].item() == pytest.approx(1000.0)
    assert found["signal"].item() == pytest.approx(int(data.small_margin.sum()) * 0.15**3 * 1000 / margin, rel=1e-4)
    assert measure(-aligned, problem)["signal"].isnan()  # nothing is fitted


def test_a_wrong_closed_form_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = cells(RIVALS, "margins", many=1)
    problem = cell.shared()
    weight, data = problem.weight, problem.train
    assert identity_error(weight, data.x, data.y, data.w_star) < 1e-10
    wrong: Callable[..., Any] = lambda *args: 1.001 * patch_gradient(*args)  # noqa: E731
    monkeypatch.setattr("torchstone.studies._momentum_patches.patch_gradient", wrong)
    assert identity_error(weight, data.x, data.y, data.w_star) > 1e-10


def test_cases_change_what_they_say() -> None:
    size = Patches({"a": Case(mu=0.0), "b": Case(beta=1.0, mu=0.5)}, n=40, n_test=10)
    assert PATCHES.shared is not None
    for case, margins in (("a", {1.0}), ("b", {1.0})):
        data = PATCHES.shared(Cell("patches", case, 0, Seeds(1), size)).train
        assert set((data.y * (data.x @ data.w_star).sum(1)).tolist()) == margins
    some = cells(PATCHES, "lr8", many=1)
    assert run_sgd(some[0], lr=0.5, momentum=0.0).objective == run_sgd(some[0], lr=3.0, momentum=0.0).objective


# ---------------------------------------------------------------- networks


def test_images_shrink_in_training_and_all_of_them_in_the_test_of_small_margins() -> None:
    (cell,) = cells(DIGITS, "factor0.15", many=1)
    problem: NetProblem = cell.shared()
    size: Images = cell.setting
    x, y = problem.train
    assert x.shape == (60, 1, 8, 8)
    assert set(y.tolist()) == {-1.0, 1.0}
    assert problem.small is not None
    assert int(problem.small.sum()) == 6
    norm = x.flatten(1).norm(dim=1)
    assert norm[problem.small].mean() < 0.25 * norm[~problem.small].mean()
    (large, y_large), (small, y_small) = (problem.test.open()[name] for name in ("test_large", "test_small"))
    torch.testing.assert_close(small, 0.15 * large)
    assert torch.equal(y_large, y_small)
    assert len(large) == size.n_test
    found = DIGITS.arms["gd"].run(cell, lr=0.3, momentum=0.0).values
    assert found["test"] == pytest.approx(0.9 * found["test_large"] + 0.1 * found["test_small"])


@pytest.mark.parametrize("case", TEACHERS.cases)
def test_teachers_make_two_classes_of_equal_size(case: str) -> None:
    size: Teachers = TEACHERS.settings["bench"]
    (cell,) = cells(TEACHERS, case, many=1, n=size.n, n_test=size.n_test)
    problem: NetProblem = cell.shared()
    (x, y), (x_test, y_test) = problem.train, problem.test.open()["test"]
    assert x.shape == (500, 30)
    assert x_test.shape == (5000, 30)
    assert torch.cat([y, y_test]).mean().abs() < 1e-3
    design = torch.cat([x, x_test])
    fit = torch.linalg.lstsq(design, torch.cat([y, y_test])).solution
    linear = ((design @ fit > 0) == (torch.cat([y, y_test]) > 0)).float().mean()
    assert (linear > 0.97) == (case == "linear")


def test_cifar_runs_on_little_data() -> None:
    assert len(CASES) == 8
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(n, 3, 8, 8, generator=generator) for n in (30, 10)]
    test = TensorData(images[1], torch.arange(10) % 2, ("a", "b"), "tiny")
    data = TensorData(images[0], torch.arange(30) % 2, ("a", "b"), "tiny", test=test)
    steps = {}
    for case in ("resnet18-128", "resnet18-full"):
        ticks = Cell("cifar10", case, 0, Seeds(0), Cifar(epochs=2, chunk=14), shared=lambda: data)
        outcome = run_cifar(ticks, lr=0.01, momentum=0.9)
        assert set(outcome.values) == {"train", "test"}
        assert not math.isnan(outcome.values["test"])
        steps[case] = outcome.cost["steps"]
    assert steps == {"resnet18-128": 2, "resnet18-full": 2}
    assert sum(isinstance(m, torch.nn.Conv2d) for m in build(vgg19, (3, 8, 8), 2).modules()) == 16


# ---------------------------------------------------------------- end to end


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    embedded = [experiment.name for experiment in STUDY.experiments if not experiment.needs]
    result = api.run("momentum", scale="smoke", only=embedded, store=":memory:")
    assert not result.failures
    assert [len(result.rows[name]) for name in embedded] == [1] * len(embedded)
    hyper = {arm: tuning.hyper for arm, tuning in result.tunings["digits"].items()}
    assert hyper["momentum"]["lr"] == hyper["gd"]["lr"]
    assert result.verdict == Verdict.TOO_FEW


@pytest.mark.study
@pytest.mark.real_data
def test_the_study_runs_on_fashion_mnist() -> None:
    result = api.run("momentum", scale="smoke", only=["fashion"], store=":memory:")
    assert not result.failures
    (done,) = result.rows["fashion"]
    assert done.cases_of("gd", "momentum") == FASHION.cases
