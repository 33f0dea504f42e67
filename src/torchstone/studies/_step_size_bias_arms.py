"""Regression problems of the study of the step size, and the ways to solve them.

A problem is drawn from the stream ``split`` of a replicate; all arms get the same one. Gradient descent solves the
problems of many replicates, or many draws of hyper-parameters, in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.data import load
from torchstone.dynamics import (
    Descent,
    SparseRegression,
    basis_pursuit,
    critical_step,
    diagonal_descent,
    gradient_flow_limit,
    min_l2_norm,
    sharpness,
    weighted_l1,
)

__all__ = [
    "LAWS",
    "Law",
    "Problem",
    "Sizes",
    "digits_problem",
    "run_basis_pursuit",
    "run_descent",
    "run_flow",
    "run_label_noise",
    "run_min_l2",
    "run_small_start",
    "run_sweep",
    "sparse_problem",
    "stacked_descent",
    "stacked_label_noise",
    "stacked_small_start",
    "stacked_sweep",
]

SETTLED = 5e-5  # a loss above this share of that at beta = 0 is no minimum


@dataclass(frozen=True)
class Law:
    """Scale of the start, and the mean of the features; ``samples`` where it is not that of the setting."""

    alpha: float
    mean: float = 3.0
    samples: int = 0


LAWS = {
    "alpha0.2": Law(0.2),
    "alpha0.3": Law(0.3),
    "alpha0.5": Law(0.5),
    "alpha0.2-centred": Law(0.2, mean=0.0),
    "alpha0.3-centred": Law(0.3, mean=0.0),
    "alpha0.5-centred": Law(0.5, mean=0.0),
    "raw": Law(0.3),
    "centred": Law(0.3),
    "n20": Law(0.2, samples=20),
    "n40": Law(0.2, samples=40),
    "n80": Law(0.2, samples=80),
    "n160": Law(0.2, samples=160),
}


@dataclass(frozen=True)
class Sizes:
    """Samples for training and for tuning, features, how many of them matter, and the most steps of descent."""

    n: int = 40
    d: int = 100
    r: int = 5
    n_val: int = 40
    steps: int = 30_000


@dataclass(frozen=True, eq=False)
class Problem:
    """A regression with validation samples; ``score`` holds the truth."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor
    score: Sealed[Callable[[Tensor], dict[str, float]]]

    def outcome(self, cell: Cell, beta: Tensor, **values: float) -> Outcome:
        """What a solution is worth: in tuning its squared error on validation samples alone."""
        if cell.tuning:
            return Outcome(objective=-float((self.x_val @ beta - self.y_val).square().mean()))
        return Outcome({**self.score.open()(beta), "l1": float(beta.abs().sum()), **values})


def sparse_problem(cell: Cell, law: Law | None = None) -> Problem:
    """``shared``: a sparse regression with the mean of the case; the same Gaussians in all cases."""
    law = law or LAWS[cell.case]
    size: Sizes = cell.setting
    n = law.samples or size.n
    # The first n rows train and the others validate.
    data = SparseRegression(
        n + size.n_val, size.d, size.r, mean=law.mean, generator=cell.seeds.generator("split", "data")
    )
    x, y = data.x.to(cell.device), data.y.to(cell.device)
    return Problem(x[:n], y[:n], x[n:], y[n:], cell.seal(partial(_sparse_score, data)))


def _sparse_score(data: SparseRegression, beta: Tensor) -> dict[str, float]:
    beta = beta.to(data.beta.device)
    return {"error": float((beta - data.beta).square().sum()), "risk": float(data.risk(beta))}


def digits_problem(cell: Cell) -> Problem:
    """``shared``: the mean of a window of 2 x 2 pixels of handwritten digits, from the 60 others.

    The window lies within the middle of 4 x 4. In the case ``centred`` features and target have the mean of the
    training samples taken off; it is put back for predictions.
    """
    size: Sizes = cell.setting
    generator = cell.seeds.generator("split", "digits")
    images = load("digits").x.double().flatten(1).to(cell.device)
    row, column = (2 + torch.randint(3, (2,), generator=generator)).tolist()
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[row : row + 2, column : column + 2] = True
    inside = inside.flatten().to(images.device)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    x, y = images[order][:, ~inside], images[order][:, inside].mean(1)
    if cell.case == "centred":
        x, y = x - x[: size.n].mean(0), y - y[: size.n].mean()
    val = slice(size.n, size.n + size.n_val)
    test = (x[val.stop :], y[val.stop :])
    return Problem(x[: size.n], y[: size.n], x[val], y[val], cell.seal(partial(_digits_score, *test)))


def _digits_score(x: Tensor, y: Tensor, beta: Tensor) -> dict[str, float]:
    """Squared error on the test samples, by the variance of their targets."""
    return {"error": float((x @ beta - y).square().mean() / y.var())}


# ---------------------------------------------------------------- gradient descent


def run_descent(cell: Cell, *, ratio: float) -> Outcome:
    """Gradient descent with a step of ``ratio`` times the one above which its start is unstable."""
    return stacked_descent([cell], [{"ratio": ratio}])[0]


def stacked_descent(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """:func:`run_descent` for many cells."""
    problems = [cell.shared() for cell in cells]
    alphas = [LAWS[cell.case].alpha for cell in cells]
    return _descend(cells, problems, alphas, _steps(problems, alphas, [hyper["ratio"] for hyper in hypers]))


def run_sweep(cell: Cell, *, alpha: float, mean: float) -> Outcome:
    """Gradient descent on sparse regression, with the step that the case names."""
    return stacked_sweep([cell], [{"alpha": alpha, "mean": mean}])[0]


def stacked_sweep(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """:func:`run_sweep` for many cells."""
    laws = [Law(**hyper) for hyper in hypers]
    problems = [sparse_problem(cell, law) for cell, law in zip(cells, laws, strict=True)]
    alphas = [law.alpha for law in laws]
    return _descend(cells, problems, alphas, _steps(problems, alphas, [float(cell.case) for cell in cells]))


def run_small_start(cell: Cell, *, alpha: float) -> Outcome:
    """Gradient descent from another scale ``alpha``, with half the critical step of the case's own."""
    return stacked_small_start([cell], [{"alpha": alpha}])[0]


def stacked_small_start(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """:func:`run_small_start` for many cells."""
    problems = [cell.shared() for cell in cells]
    # The critical step grows without limit as alpha goes to 0, the sharpness at the end does not.
    steps = _steps(problems, [LAWS[cell.case].alpha for cell in cells], [0.5] * len(cells))
    return _descend(cells, problems, [hyper["alpha"] for hyper in hypers], steps)


def _steps(problems: Sequence[Problem], alphas: Sequence[float], ratios: Sequence[float]) -> Tensor:
    x = torch.stack([p.x for p in problems])
    return x.new_tensor(ratios) * critical_step(x, x.new_tensor(alphas))


def _descend(cells: Sequence[Cell], problems: Sequence[Problem], alphas: Sequence[float], lr: Tensor) -> list[Outcome]:
    x, y = torch.stack([p.x for p in problems]), torch.stack([p.y for p in problems])
    end = diagonal_descent(
        x, y, lr=lr, alpha=lr.new_tensor(alphas), steps=cells[0].setting.steps, on_step=cells[0].tick
    )
    return _outcomes(cells, problems, end, lr)


def _outcomes(cells: Sequence[Cell], problems: Sequence[Problem], end: Descent, lr: Tensor) -> list[Outcome]:
    """Of each problem. ``bound`` is eta times the weighted l1 norm, ``stability`` eta times half the sharpness."""
    found: list[Outcome] = []
    for s, (cell, problem) in enumerate(zip(cells, problems, strict=True)):
        loss, steps, step = float(end.loss[s]), int(end.steps[s]), float(lr[s])
        if not loss <= SETTLED * float(problem.y.square().mean()) / 2:
            reason = f"diverged within {steps} steps" if end.diverged[s] else f"loss {loss:.2g} after {steps} steps"
            found.append(Outcome(diverged=reason, cost={"steps": steps}))
            continue
        outcome = problem.outcome(
            cell,
            end.beta[s],
            loss=loss,
            bound=step * float(weighted_l1(end.beta[s], problem.x)),
            stability=step * float(sharpness(end.squared_slopes[s], problem.x)) / 2,
        )
        found.append(Outcome(outcome.values, outcome.objective, {"steps": steps}))
    return found


def run_label_noise(cell: Cell, *, noise: float) -> Outcome:
    """Stochastic gradient descent with noisy labels, then without noise on all samples.

    Two thirds of the steps take a quarter of the samples, with fresh Gaussian noise of standard deviation ``noise`` on
    their labels; the step is half the critical one.
    """
    return stacked_label_noise([cell], [{"noise": noise}])[0]


def stacked_label_noise(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """:func:`run_label_noise` for many cells."""
    problems = [cell.shared() for cell in cells]
    alphas, steps = [LAWS[cell.case].alpha for cell in cells], cells[0].setting.steps
    lr = _steps(problems, alphas, [0.5] * len(cells))
    x, y = (torch.stack([getattr(p, part) for p in problems]) for part in ("x", "y"))
    size, rate = lr.new_tensor([hyper["noise"] for hyper in hypers])[:, None, None], lr[:, None]
    generators = [cell.seeds.generator("noise", "labels") for cell in cells]
    u = (2**0.5 * lr.new_tensor(alphas))[:, None].repeat(1, x.shape[-1])
    v = torch.zeros_like(u)
    n, noisy, block = x.shape[1], 2 * steps // 3, 100
    for first in range(0, noisy, block):
        draws = [_noise(generator, block, n) for generator in generators]
        chosen, gauss = (torch.stack(part, 1)[:, :, None].to(x) for part in zip(*draws, strict=True))
        for t in range(min(block, noisy - first)):
            off = (u * v)[:, None] @ x.mT - y[:, None] - size * gauss[t]
            step = rate * ((chosen[t] * off) @ x)[:, 0]
            u, v = u - step * v, v - step * u
            cells[0].tick()
    end = diagonal_descent(x, y, lr=lr, steps=steps - noisy, start=(u, v), on_step=cells[0].tick)
    return _outcomes(cells, problems, end, lr)


def _noise(generator: torch.Generator, steps: int, n: int) -> tuple[Tensor, Tensor]:
    """For each step: weights that pick a quarter of the samples and average over them, and Gaussian noise."""
    batch = max(1, n // 4)
    order = torch.rand(steps, n, generator=generator, dtype=torch.float64).argsort(1)
    chosen = torch.zeros(steps, n, dtype=torch.float64).scatter_(1, order[:, :batch], 1 / batch)
    return chosen, torch.randn(steps, n, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- solutions without descent


def run_flow(cell: Cell) -> Outcome:
    """The limit of gradient flow from the case's scale."""
    problem: Problem = cell.shared()
    return problem.outcome(cell, gradient_flow_limit(problem.x, problem.y, alpha=LAWS[cell.case].alpha))


def run_min_l2(cell: Cell) -> Outcome:
    """The solution with the smallest l2 norm."""
    problem: Problem = cell.shared()
    return problem.outcome(cell, min_l2_norm(problem.x, problem.y))


def run_basis_pursuit(cell: Cell) -> Outcome:
    """The solution with the smallest l1 norm."""
    problem: Problem = cell.shared()
    return problem.outcome(cell, basis_pursuit(problem.x, problem.y))
