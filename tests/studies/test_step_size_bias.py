from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from torchstone.bench.study import Arm, Cell, Experiment
from torchstone.dynamics import critical_step, diagonal_descent
from torchstone.errors import SealedDataError
from torchstone.studies import _step_size_bias_arms as arms
from torchstone.studies import _step_size_bias_theory as theory
from torchstone.studies.step_size_bias import RATIOS, STUDY

SPARSE, STEPS, IDENTITIES, DIGITS = (STUDY.experiment(name) for name in ("sparse", "steps", "identities", "digits"))
ERRORS = {
    "gd-small": 0.41,
    "gd-large": 0.02,
    "flow": 0.40,
    "min-l2": 0.60,
    "basis-pursuit": 0.0,
    "small-start": 0.03,
    "label-noise": 0.05,
}
SPREAD = {name: {"error": error, "risk": error, "l1": 2 + error} for name, error in ERRORS.items()}
DESCENT = {"loss": 1e-11, "bound": 0.9, "stability": 0.99}
VALUES = {name: {**values, **DESCENT} for name, values in SPREAD.items()}
BOUND, STABLE = (claim.sentence() for claim in SPARSE.claims[-2:])


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``sparse`` in which a large step helps, except on centred features."""
    made = synthetic.made_up(SPARSE, number, VALUES, **changes)
    outcomes = dict(made.outcomes)
    for arm, case in SPARSE.slots:
        change = changes.get("gd_large_centred", {"error": 0.39})
        if arm == "gd-large" and case.endswith("centred"):
            outcomes[arm, case] = change if isinstance(change, Outcome) else Outcome({**VALUES["gd-large"], **change})
    return SPARSE.row(number, outcomes)


def judged(rows: Sequence[Row], experiment: str = "sparse") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


@synthetic.every_verdict(
    worse={"gd_large": {"error": 0.5}},
    equal={"gd_large": {"error": 0.40}},
    broken={"basis_pursuit": {"error": 0.35}},
    lost={"gd_large": Outcome(diverged="diverged within 100 steps")},
    most=20,
)
def test_every_verdict_on_the_claim_can_come_out(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    rows = [row(number, **change) for number, change in enumerate(changes)]
    assert synthetic.primary(STUDY, rows) == verdict


def test_every_claim_can_hold_and_be_refuted() -> None:
    good = {text: str(j.verdict) for text, j in judged([row(number) for number in range(8)]).items()}
    assert set(good.values()) == {"reproduced", "holds"}
    bad = {
        "gd_large": {"error": 0.9, "risk": 0.9, "l1": 9.0, "bound": 1.2, "stability": 1.2},
        "gd_small": {"error": 0.1},
    }
    kept = {text for text, j in judged([row(n, **bad) for n in range(8)]).items() if j.verdict != Verdict.REFUTED}
    # The premise speaks of other arms, and on centred features the made-up runs stay as they are.
    assert len(kept) == 2
    assert {text for text in kept if "not sparse by itself" in text or "not higher by more than 0.05" in text} == kept


def test_the_same_gain_on_centred_features_refutes_the_reason() -> None:
    verdicts = judged([row(number, gd_large_centred={}) for number in range(8)])
    centred = next(text for text in verdicts if "not higher by more than 0.05" in text)
    assert verdicts[centred].verdict == Verdict.REFUTED
    for alpha in ("alpha0.2", "alpha0.3", "alpha0.5"):
        text = f"the gain of gd-large over flow is larger than on centred features [{alpha}]"
        assert verdicts[text].verdict == Verdict.DEGENERATE


def test_a_run_that_diverges_on_centred_features_gains_nothing_there() -> None:
    verdicts = judged([row(number, gd_large_centred=Outcome(diverged="diverged")) for number in range(8)])
    gained = [j.verdict for text, j in verdicts.items() if "centred" in text]
    assert gained == [Verdict.REPRODUCED] * 4


def test_one_run_above_the_bound_refutes_it_and_one_that_diverged_does_not() -> None:
    lost = [row(n, gd_large=Outcome(diverged="diverged")) for n in range(6)]
    assert judged(lost)[BOUND].verdict == Verdict.HOLDS
    above = [row(n, gd_small={"bound": 1.001 if n == 3 else 0.9}) for n in range(6)]
    verdicts = judged(above)
    assert verdicts[BOUND].verdict == Verdict.REFUTED
    assert verdicts[STABLE].verdict == Verdict.HOLDS


def step_row(number: int, lost: Sequence[tuple[str, str]] = (), **errors: Sequence[float]) -> Row:
    usual: dict[str, Sequence[float]] = {
        "alpha0.05": (0.1,) * 8,
        "alpha0.2": (0.35, 0.3, 0.2, 0.1, 0.02, 0.03, 0.0, 0.0),
        "alpha0.3": (0.47, 0.46, 0.45, 0.4, 0.2, 0.1, 0.05, 0.0),
        "alpha0.5": (0.57, 0.5, 0.4, 0.3, 0.2, 0.15, 0.45, 0.45),
        "alpha0.3-centred": (0.49,) * 8,
        "alpha1-mean1": (0.58, 0.58, 0.58, 2.0, 2.0, 2.0, 2.0, 2.0),
    }
    found = {**usual, **{name.replace("__", "-").replace("_", "."): value for name, value in errors.items()}}

    def outcome(arm: str, case: str) -> Outcome:
        if (arm, case) in lost:
            return Outcome(diverged="diverged within 100 steps")
        return Outcome({"error": found[arm][RATIOS.index(case)], **DESCENT})

    return STEPS.row(number, {(arm, case): outcome(arm, case) for arm, case in STEPS.slots})


def test_the_curve_over_steps_is_judged_with_its_bad_ends() -> None:
    diverged = [("alpha0.2", "1.7"), ("alpha0.2", "1.9"), ("alpha0.05", "1.9")]
    verdicts = judged([step_row(n, diverged) for n in range(8)], "steps")
    assert {str(j.verdict) for j in verdicts.values()} == {"reproduced", "holds"}
    text = "error of alpha0.2 falls along 0.05, 0.5, 0.9, 1.1, 1.3"
    early = judged([step_row(n, [*diverged, ("alpha0.2", "1.3")]) for n in range(8)], "steps")
    assert early[text].verdict == Verdict.REFUTED  # divergence counts against it
    assert early[BOUND].verdict == Verdict.HOLDS
    flat = judged(
        [
            step_row(n, **{"alpha0_5": (0.5,) * 8, "alpha0_3__centred": (0.5, 0.5, 0.5, 0.5, 0.2, 0.5, 0.5, 0.5)})
            for n in range(8)
        ],
        "steps",
    )
    assert flat["on centred features the error at 1.3 is that at 0.05, up to 0.05"].verdict == Verdict.REFUTED
    assert flat["from alpha = 0.5 the error rises again from step 1.5 to 1.7"].verdict == Verdict.DEGENERATE


# ---------------------------------------------------------------- the arms


def a_cell(experiment: Experiment, case: str, replicate: int = 0, tuning: bool = False, **size: int) -> Cell:
    setting = replace(experiment.settings["smoke"], **size)
    cell = Cell(experiment.name, case, replicate, Seeds(5, replicate), setting, tuning=tuning)
    shared = experiment.shared(cell) if experiment.shared else None
    return replace(cell, shared=lambda: shared)


STACKED = [
    (SPARSE, "alpha0.5", "gd-large", [{"ratio": 0.7}, {"ratio": 1.3}, {"ratio": 4.0}]),
    (SPARSE, "alpha0.2", "small-start", [{"alpha": 0.05}, {"alpha": 0.01}, {"alpha": 0.02}]),
    (SPARSE, "alpha0.2", "label-noise", [{"noise": 0.2}, {"noise": 1.0}, {"noise": 0.1}]),
    (STEPS, "1.3", "alpha0.5", [{"alpha": 0.5, "mean": 3.0}, {"alpha": 0.4, "mean": 0.0}, {"alpha": 1.0, "mean": 1.0}]),
    (DIGITS, "centred", "gd-large", [{"ratio": 0.7}, {"ratio": 1.3}, {"ratio": 1.1}]),
]


@pytest.mark.parametrize(("experiment", "case", "name", "hypers"), STACKED)
@pytest.mark.parametrize("tuning", [False, True])
def test_stacked_is_what_single_runs_give(
    experiment: Experiment, case: str, name: str, hypers: list[dict[str, Any]], tuning: bool
) -> None:
    arm = experiment.arms[name]
    assert arm.stacked is not None
    replicates = [0, 0, 0] if tuning else [0, 1, 2]
    cells = [a_cell(experiment, case, replicate, tuning, steps=900) for replicate in replicates]
    found = arm.stacked(cells, hypers)
    for cell, hyper, outcome in zip(cells, hypers, found, strict=True):
        assert arm.run(cell, **hyper) == outcome
        assert outcome.diverged or tuning == (not outcome.values)
    assert any(not outcome.diverged for outcome in found)


@pytest.mark.parametrize(("name", "hyper"), [("gd-small", {"ratio": 0.05}), ("label-noise", {"noise": 0.2})])
def test_every_step_ticks(name: str, hyper: dict[str, Any]) -> None:
    ticks: list[int] = []
    cells = [replace(a_cell(SPARSE, "alpha0.2", r, steps=250), tick=lambda: ticks.append(1)) for r in range(2)]
    stacked = SPARSE.arms[name].stacked
    assert stacked is not None
    stacked(cells, [hyper] * 2)
    assert len(ticks) == 250


def test_in_tuning_the_truth_is_sealed() -> None:
    cell = a_cell(SPARSE, "alpha0.2", tuning=True)
    problem = cell.shared()
    with pytest.raises(SealedDataError):
        problem.score.open()
    beta = torch.ones(40, dtype=torch.float64)
    expected = (problem.x_val @ beta - problem.y_val).square().mean()
    assert problem.outcome(cell, beta) == Outcome(objective=-float(expected))


def test_cases_differ_in_nothing_but_the_mean() -> None:
    plain, centred = (a_cell(SPARSE, case).shared() for case in ("alpha0.2", "alpha0.2-centred"))
    torch.testing.assert_close(plain.x - 3, centred.x)
    torch.testing.assert_close(a_cell(SPARSE, "alpha0.5").shared().x, plain.x)
    other = a_cell(SPARSE, "alpha0.2", 1).shared()
    assert not torch.allclose(other.x, plain.x)
    truth = plain.score.open()
    beta = torch.zeros(40, dtype=torch.float64)
    assert truth(beta)["error"] == pytest.approx(1)


def test_pixels_and_their_centring() -> None:
    raw, centred = (a_cell(DIGITS, case).shared() for case in ("raw", "centred"))
    assert raw.x.shape == (8, 60)
    assert len(raw.score.open().args[1]) == 1797 - 16  # pyright: ignore[reportFunctionMemberAccess]
    assert raw.x.mean(0).max() > 0.1
    torch.testing.assert_close(centred.x, raw.x - raw.x.mean(0))
    assert centred.y.mean().item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(centred.y_val, raw.y_val - raw.y.mean())


def test_arms_do_what_their_names_say() -> None:
    cell = a_cell(SPARSE, "alpha0.5", steps=3000)
    problem = cell.shared()
    found = {name: SPARSE.arms[name].run(cell, **SPARSE.arms[name].hyper) for name in ("gd-large", "flow", "min-l2")}
    l1 = SPARSE.arms["basis-pursuit"].run(cell).values["l1"]
    assert l1 <= min(outcome.values["l1"] for outcome in found.values()) + 1e-6
    step = 1.3 * critical_step(problem.x, 0.5).item()
    large = found["gd-large"]
    assert not large.diverged
    end = diagonal_descent(problem.x, problem.y, alpha=0.5, lr=step, steps=3000)
    hessian = (problem.x * (end.u**2 + end.v**2)) @ problem.x.T / 8
    assert large.values["stability"] == pytest.approx(step * torch.linalg.eigvalsh(hessian)[-1].item() / 2)
    norm = (problem.x.mean(0) ** 2 * end.beta.abs()).sum().item()
    assert large.values["bound"] == pytest.approx(step * norm)
    assert large.values["error"] == pytest.approx(problem.score.open()(end.beta)["error"])


def test_a_run_that_has_not_settled_counts_as_lost() -> None:
    outcome = arms.run_descent(a_cell(SPARSE, "alpha0.2", steps=10), ratio=0.05)
    assert "after 10 steps" in outcome.diverged
    assert "diverged within" in arms.run_descent(a_cell(SPARSE, "alpha0.2"), ratio=50.0).diverged


def test_label_noise_is_noise() -> None:
    cell = a_cell(SPARSE, "alpha0.5", steps=3000)
    problem = cell.shared()
    x, y, lr = problem.x, problem.y, 0.5 * critical_step(problem.x, 0.5)
    u, v = torch.full((40,), 0.5 * 2**0.5).double(), torch.zeros(40).double()
    generator = cell.seeds.generator("noise", "labels")
    draws = [arms._noise(generator, 100, 8) for _ in range(20)]
    chosen, gauss = (torch.cat(part) for part in zip(*draws, strict=True))
    for t in range(3000):  # the rule in words, one sample after the other
        off = x @ (u * v) - y
        rows = [(1 / 8, off[i], x[i]) for i in range(8)]
        if t < 2000:
            rows = [(float(chosen[t, i]), off[i] - 0.5 * gauss[t, i], x[i]) for i in range(8)]
        slope = torch.stack([weight * error * row for weight, error, row in rows if weight]).sum(0)
        u, v = u - lr * slope * v, v - lr * slope * u
    found = arms.run_label_noise(cell, noise=0.5).values
    assert found["l1"] == pytest.approx((u * v).abs().sum().item(), rel=1e-6)
    assert abs(found["error"] - arms.run_label_noise(cell, noise=1e-9).values["error"]) > 1e-3
    chosen, gauss = arms._noise(torch.Generator().manual_seed(0), 500, 8)
    assert chosen.sum(1).tolist() == [1.0] * 500
    assert set(chosen.unique().tolist()) == {0.0, 0.5}
    assert gauss.std().item() == pytest.approx(1, rel=0.05)


# ---------------------------------------------------------------- the theory


def identities() -> dict[str, str]:
    outcome = theory.run_identities(a_cell(IDENTITIES, "default"))
    rows = [IDENTITIES.row(number, {("network", "default"): outcome}) for number in range(3)]
    return {text: str(j.verdict) for text, j in judged(rows, "identities").items()}


def test_the_identities_hold() -> None:
    assert set(identities().values()) == {"holds"}


@pytest.mark.parametrize(
    ("name", "wrong", "text"),
    [
        ("sharpness", lambda f: lambda *a: 0.4 * f(*a), "half the sharpness is at least"),
        ("flow_residual", lambda f: lambda *a, alpha: f(*a, alpha=1.5 * alpha), "small steps stay where"),
        ("min_l2_norm", lambda f: lambda *a: 1.001 * f(*a), "from a large start"),
        ("basis_pursuit", lambda f: lambda *a: 0.9 * f(*a), "from a tiny start"),
        ("_loss", lambda f: lambda *a: 2 * f(*a), "the gradient is; at a minimum the Hessian; a step multiplies"),
    ],
)
def test_a_planted_error_breaks_its_identities_alone(
    name: str, wrong: Callable[..., Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theory, name, wrong(getattr(theory, name)))
    refuted = [claim for claim, verdict in identities().items() if verdict == "refuted"]
    expected = text.split("; ")
    assert len(refuted) == len(expected)
    assert all(claim.startswith(start) for claim, start in zip(refuted, expected, strict=True))


def test_another_start_is_not_half_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    network = theory.DiagonalLinearNetwork

    def shifted(d: int, *, alpha: float, parametrization: Any = "uv") -> Any:
        return network(d, alpha=alpha * (1 + 1e-9 * (parametrization == "squares")), parametrization=parametrization)

    monkeypatch.setattr(theory, "DiagonalLinearNetwork", shifted)
    assert [claim for claim, verdict in identities().items() if verdict == "refuted"] == [
        "in squares, half the step gives the same path"
    ]


# ---------------------------------------------------------------- the design


def test_theorems_and_statistics_are_told_apart() -> None:
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.arm, claim.than, claim.cases) == ("sparse", "gd-large", "flow", ("alpha0.2",))
    always = {claim.metric for e in STUDY.experiments for claim in e.claims if claim.always}
    assert always == {
        *("bound", "stability", "gradient", "spectrum", "imbalance"),
        *("half_step", "slack", "flow", "l2_end", "l1_slack"),
    }
    for e in (SPARSE, STEPS, DIGITS):
        assert {"bound", "stability"} <= {claim.metric for claim in e.claims if claim.always}


def test_no_arm_is_tuned_more_than_another() -> None:
    for experiment in STUDY.experiments:
        tuned: dict[str, Arm] = {name: arm for name, arm in experiment.arms.items() if arm.space}
        assert tuned.keys() <= {"gd-large", "small-start", "label-noise"}
        for name, arm in experiment.arms.items():
            assert bool(arm.stacked) == name.startswith(("gd", "small-start", "label-noise", "alpha"))


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("step-size-bias", scale="smoke", store=":memory:")
    assert not result.failures
    assert {name: len(rows) for name, rows in result.rows.items()} == dict.fromkeys(
        ("sparse", "steps", "identities", "digits"), 1
    )
    assert "samples" in result.not_run
    assert result.verdict == Verdict.TOO_FEW
    hyper = {arm: tuning.hyper for arm, tuning in result.tunings["sparse"].items() if tuning.draws}
    assert hyper.keys() >= {"gd-large", "small-start", "label-noise"}
