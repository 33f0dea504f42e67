from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
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
from torchstone.bench.study import Cell
from torchstone.dynamics import DeepLinear, gradient_flow, predict_limit
from torchstone.studies._deep_linear_predictions import decoupled, lazy, theory
from torchstone.studies._deep_linear_runs import (
    Problems,
    Runs,
    descent,
    ends,
    fitted_rates,
    follow,
    gradients,
    invariants,
    product,
    stack,
    starts,
)
from torchstone.studies.deep_linear import STUDY, run_network

PROBLEMS, OUTSIDE = STUDY.experiment("problems"), STUDY.experiment("outside")
EXACT = {"balance_drift": 1e-11, "ratio_drift": 1e-8, "reduced_gap": 1e-9, "q_fall": 0.0}
VALUES = {
    "theory": {"converged": 0.9, "limit_right": 1.0, "rate_error": 1e-4, "path_error": 1e-10, **EXACT},
    "lazy": {"converged": 0.9, "limit_right": 0.5, "rate_error": 0.9, "path_error": 0.5},
    "decoupled": {"converged": 0.9, "limit_right": 0.5, "rate_error": 0.9, "path_error": 0.5},
    "minimum": {"converged": 0.9, "limit_right": 0.7, "rate_error": math.nan, "path_error": math.nan},
}
RIGHT = "every run that converges ends where predicted"


def row(number: int, **changes: synthetic.Change) -> Row:
    """A replicate of ``problems`` with these values, but for ``changes``: arm -> values, or an outcome."""
    return synthetic.made_up(PROBLEMS, number, VALUES, **changes)


def judged(rows: Sequence[Row], experiment: str = "problems") -> dict[str, Judgement]:
    return synthetic.judged(STUDY, experiment, rows)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([{}] * 6, Verdict.HOLDS),
        ([{}, {}, {"theory": {"limit_right": 15 / 16}}, {}, {}, {}], Verdict.REFUTED),
        ([{"theory": Outcome(diverged="the flow ended")}] * 6, Verdict.PREMISE_NOT_MET),
        ([{"theory": {"converged": 0.1}}] * 6, Verdict.PREMISE_NOT_MET),
        ([], Verdict.NOT_RUN),
    ],
    ids=["holds", "one run elsewhere", "diverged", "premise", "not run"],
)
def test_one_run_that_ends_elsewhere_refutes_the_theorem(changes: list[Mapping[str, Any]], verdict: Verdict) -> None:
    assert synthetic.primary(STUDY, [row(number, **change) for number, change in enumerate(changes)]) == verdict


@pytest.mark.parametrize("name", EXACT)
def test_every_invariant_can_be_broken(name: str) -> None:
    (text,) = [claim.sentence() for claim in PROBLEMS.claims if claim.metric == name]
    assert judged([row(number) for number in range(6)])[text].verdict == Verdict.HOLDS
    broken = [row(number, theory={name: 1e-3 if number == 4 else 0.0}) for number in range(6)]
    assert judged(broken)[text].verdict == Verdict.REFUTED


def test_rivals_can_win() -> None:
    verdicts = {str(j.verdict) for text, j in judged([row(n) for n in range(6)]).items() if text != RIGHT}
    assert verdicts == {"holds", "reproduced"}
    worse = [row(n, theory={"path_error": 0.6, "rate_error": 0.95, "limit_right": 0.6}) for n in range(6)]
    refuted = {text for text, j in judged(worse).items() if j.verdict == Verdict.REFUTED}
    assert {
        RIGHT,
        "rate_error of theory equals 0 up to 0.02",
        "rate_error of theory is lower than that of lazy",
        "path_error of theory is lower than that of decoupled",
        "limit_right of theory is higher than that of minimum",
    } <= refuted


def test_outside_of_the_theorem_everything_can_come_out_either_way() -> None:
    def rows(path: Mapping[str, float], right: float) -> list[Row]:
        made = [
            OUTSIDE.row(
                number,
                {
                    (arm, case): Outcome({"path_error": path.get(case, 0.01), "limit_right": right})
                    for arm, case in OUTSIDE.slots
                },
            )
            for number in range(6)
        ]
        return made

    rising = {"balanced": 1e-8, "gap0.01": 0.01, "gap0.1": 0.1, "gap1": 1.0}
    good = {text: str(j.verdict) for text, j in judged(rows(rising, 1.0), "outside").items()}
    assert good["path_error of network rises along balanced, gap0.01, gap0.1, gap1"] == "reproduced"
    assert good["path_error of network equals 0 up to 1e-05 [balanced]"] == "holds"
    assert good["limit_right of network is lower than 0.1 [wide]"] == "refuted"
    falling = {"balanced": 1.0, "gap0.01": 0.1, "gap0.1": 0.01, "gap1": 0.001, "gd": 0.5}
    bad = {text: str(j.verdict) for text, j in judged(rows(falling, 0.0), "outside").items()}
    assert bad.pop("limit_right of network is lower than 0.1 [wide]") == "reproduced"
    assert set(bad.values()) == {"refuted"}


def test_only_the_exact_statements_are_theorems() -> None:
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.metric, claim.arm, claim.than, claim.always) == (
        "problems",
        "limit_right",
        "theory",
        1.0,
        True,
    )
    exact = {claim.metric for e in STUDY.experiments for claim in e.claims if claim.always}
    assert exact == {"limit_right", "path_error", *EXACT}


# ---------------------------------------------------------------- stacks


def some(depth: int = 3) -> Problems:
    """Three problems of different widths; the last starts on the way to a saddle."""
    chance = torch.Generator().manual_seed(0)
    all_dims = [[3, *[1] * (depth - 1), 2], [2, 1, *[3] * (depth - 2), 4], [2, *[1] * (depth - 1), 2]]
    Zs = [torch.randn(d[-1], d[0], generator=chance).double() for d in all_dims]
    Zs[2] = torch.diag(torch.tensor([2.0, 1.0])).double()
    ways = [[F.normalize(torch.randn(n, generator=chance).double(), dim=0) for n in Z.shape] for Z in Zs]
    ways[2] = [torch.tensor([0.6, 0.8]).double(), torch.tensor([-0.6, 0.8]).double()]
    nets = [starts(0.3, u, v, dims, chance) for (u, v), dims in zip(ways, all_dims, strict=True)]
    return stack(Zs, nets, [False, False, True])


def runs_of(problems: Problems, length: float = 12.0, times: int = 60) -> Runs:
    t = torch.linspace(length / times, length, times, dtype=torch.float64)[:, None] * problems.unit
    return follow(problems, t)


def test_a_padded_stack_flows_as_its_networks_do_alone() -> None:
    problems = some()
    t = torch.tensor([[0.5], [1.5]], dtype=torch.float64).expand(2, 3)
    found = follow(problems, t)
    assert found.W.shape == (2, 3, 4, 3)
    for place in range(3):
        net = DeepLinear.from_weights([weight[place] for weight in problems.weights])
        Z = problems.Z[place]
        alone = gradient_flow(net, lambda net, Z=Z: (net.product() - Z).square().sum() / 2, t[:, 0])
        W = product([alone.states[f"weights.{j}"] for j in range(3)])
        torch.testing.assert_close(found.W[:, place], W, atol=1e-7, rtol=0)
    torch.testing.assert_close(found.W, found.reduced.product(), atol=1e-7, rtol=0)


def test_gradients_are_those_of_autograd() -> None:
    problems = some(4)
    weights = [weight.clone().requires_grad_() for weight in problems.weights]
    loss = (product(weights) - problems.Z).square().sum() / 2
    for ours, theirs in zip(gradients(weights, problems.Z), torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(ours.detach(), theirs)


def test_runs_converge_where_predicted_and_keep_what_they_must() -> None:
    runs = runs_of(some(), 50)
    assert ends(runs).tolist() == [True, True, True]
    limits = runs.problems.limits
    torch.testing.assert_close(limits[2], torch.diag(torch.tensor([0.0, 1, 0, 0]).double())[:, :3])
    torch.testing.assert_close(runs.W[-1], limits, atol=1e-2, rtol=0)
    found = invariants(runs)
    assert max(found.values()) < 1e-6
    rates = fitted_rates(runs)
    reached = ~rates.isnan()
    assert reached[:2].any()
    torch.testing.assert_close(rates[reached], runs.problems.rates[reached], rtol=0.02, atol=0)
    assert bool(rates[2].isnan())


def test_violations_are_seen() -> None:
    runs = runs_of(some(), 4, 20)
    turned = dataclasses.replace(runs, W=runs.W.flip(0))
    assert invariants(turned)["q_fall"] > 0.01
    assert invariants(turned)["reduced_gap"] > 0.1
    assert invariants(dataclasses.replace(runs, tau=2 * runs.tau))["ratio_drift"] > 0.1
    assert invariants(dataclasses.replace(runs, gap=runs.gap + 1))["balance_drift"] > 0.1


def test_passing_a_saddle_slowly_is_no_convergence() -> None:
    problems = some()
    early = runs_of(problems, 0.01, 3)
    assert not ends(early).any()
    still = dataclasses.replace(early, W=problems.limits.flip(2).expand_as(early.W) * 1.0)
    assert not ends(still).any()


# ---------------------------------------------------------------- predictions


def test_the_lazy_path_is_the_flow_of_the_linearised_network() -> None:
    """Against the kernel of the start, integrated with small steps."""
    runs = runs_of(some(4), 1.0, 5)
    problems = runs.problems
    W = product(problems.weights)
    layers = problems.weights
    steps = 4000
    for _ in range(steps):
        slope = W - problems.Z
        change = torch.zeros_like(W)
        for j in range(4):
            above = product(layers[j + 1 :]) if j < 3 else torch.eye(4).double().expand(3, 4, 4)
            below = product(layers[:j]) if j else torch.eye(3).double().expand(3, 3, 3)
            change += above @ (above.mT @ slope @ below.mT) @ below
        W = W - runs.t[-1][:, None, None] / steps * change
    said = lazy(runs)
    assert said.path is not None
    torch.testing.assert_close(said.path[-1], W, atol=1e-3, rtol=0)
    torch.testing.assert_close(said.rates, problems.s**1.5)


def test_decoupled_modes_are_exact_for_aligned_starts_alone() -> None:
    chance = torch.Generator().manual_seed(1)
    Z = torch.diag(torch.tensor([2.0, 1.0])).double()
    e1 = torch.tensor([1.0, 0.0]).double()
    other = torch.tensor([0.8, 0.6]).double()
    nets = [starts(0.1, e1, e1, [2, 1, 2, 2], chance), starts(0.1, other, e1, [2, 1, 2, 2], chance)]
    runs = runs_of(stack([Z, Z], nets, [False, False]), 6.0, 10)
    path = decoupled(runs).path
    assert path is not None
    apart = (path - runs.W).flatten(2).norm(dim=2).amax(0)
    assert apart[0] < 1e-4
    assert apart[1] > 0.05
    exact = theory(runs).path
    assert exact is not None
    torch.testing.assert_close(exact, runs.W, atol=1e-7, rtol=0)
    torch.testing.assert_close(decoupled(runs).limits[0], predict_limit(Z, e1, e1).W)


def test_descent_with_small_steps_follows_the_flow() -> None:
    problems = some()
    chance = torch.Generator().manual_seed(0)
    path, t = descent(problems, 1e-3 * problems.unit, 1000, 4, 0.0, chance)
    torch.testing.assert_close(path, follow(problems, t).W, atol=3e-3, rtol=0)
    noisy, _ = descent(problems, 1e-3 * problems.unit, 1000, 4, 0.5, chance)
    assert float((noisy - path).abs().max()) > 3e-3


@pytest.mark.parametrize("case", ["gap1", "wide", "gd-large", "sgd"])
def test_outside_of_the_theorem_the_path_is_another(case: str) -> None:
    def error(name: str) -> float:
        cell = Cell("outside", name, 0, Seeds(3), OUTSIDE.settings["smoke"])
        return run_network(cell).values["path_error"]

    assert error("balanced") < 1e-5
    assert error(case) > 1e-3


def test_seeds_decide_and_replicates_differ() -> None:
    draw = PROBLEMS.shared
    assert draw is not None
    sizes = dataclasses.replace(PROBLEMS.settings["smoke"], problems=1, times=1, cap=0.5, special_cap=0.5)

    def targets(replicate: int) -> torch.Tensor:
        return draw(Cell("problems", "N2", replicate, Seeds(0, replicate), sizes)).problems.Z

    assert torch.equal(targets(0), targets(0))
    assert targets(0).shape != targets(1).shape or not torch.equal(targets(0), targets(1))


@pytest.mark.study
def test_the_study_runs_end_to_end() -> None:
    result = api.run("deep-linear", scale="smoke", store=":memory:")
    assert not result.failures
    assert {name: len(rows) for name, rows in result.rows.items()} == dict.fromkeys(
        ("problems", "data", "stages", "outside"), 1
    )
    (done,) = result.rows["problems"]
    assert done.value("reduced_gap", "theory", "N3") < 1e-5
