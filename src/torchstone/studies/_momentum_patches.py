"""The synthetic part of the study of momentum: the cubic network on patches, many replicates in one pass.

Weights are (replicates, m, d), data (replicates, n, patches, d), and gradients come in closed form, so a step is two
batched products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.dynamics import (
    DampenedSGD,
    MarginPatchCNN,
    MarginPatchDataset,
    feature_alignment,
    group_accuracy,
    margin_parts,
    patch_gradient,
    patch_logits,
    signal_rate,
)
from torchstone.training.stacked import AdamW, global_norm

__all__ = [
    "Case",
    "Patches",
    "Problem",
    "draw",
    "identity_error",
    "measure",
    "noise_like",
    "run_adam",
    "run_sgd",
    "stack_adam",
    "stack_sgd",
]


@dataclass(frozen=True)
class Case:
    """What a case changes: the data, or options of all arms."""

    beta: float = 0.15
    mu: float = 0.1
    hyper: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Patches:
    """Sizes; ``steps`` are passes over the training data."""

    cases: Mapping[str, Case]
    n: int = 200
    n_test: int = 4000
    d: int = 100
    m: int = 4
    steps: int = 2000


@dataclass(frozen=True, eq=False)
class Problem:
    """What the arms of a cell share."""

    train: MarginPatchDataset
    test: Sealed[MarginPatchDataset]
    weight: Tensor


def draw(cell: Cell) -> Problem:
    """``shared`` of the experiments: data and initial weights, the same in all cases but for what the case changes."""
    size: Patches = cell.setting
    case = size.cases[cell.case]

    def data(n: int, name: str) -> MarginPatchDataset:
        generator = cell.seeds.generator("split", name)
        return MarginPatchDataset(n, d=size.d, beta=case.beta, mu=case.mu, generator=generator)

    weight = MarginPatchCNN(size.d, size.m, generator=cell.seeds.generator("init")).weight.detach()
    return Problem(data(size.n, "train"), cell.seal(data(size.n_test, "test")), weight)


# ---------------------------------------------------------------- arms


def run_sgd(cell: Cell, **hyper: Any) -> Outcome:
    """``run`` of gradient descent, with momentum or without."""
    return stack_sgd([cell], [hyper])[0]


def stack_sgd(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of the same. The option ``zero_init`` is the optimiser's."""
    return _train(_sgd, cells, hypers)


def run_adam(cell: Cell, **hyper: Any) -> Outcome:
    """``run`` of Adam, whose first decay rate is ``momentum``."""
    return stack_adam([cell], [hyper])[0]


def stack_adam(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of the same."""
    return _train(_adam, cells, hypers)


def _sgd(weight: Tensor, lr: Tensor, momentum: Tensor, zero_init: bool = True) -> Optimizer:
    return DampenedSGD([weight], lr, momentum, zero_init=zero_init)


def _adam(weight: Tensor, lr: Tensor, momentum: Tensor) -> Optimizer:
    return AdamW([weight], lr, (momentum, 0.999), weight_decay=0.0)


def _train(make: Callable[..., Optimizer], cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Train the cells at once.

    Options are ``lr`` and ``momentum``, each cell's own, and, the same for all: ``batch``, the examples of a step (0:
    all); ``noise``, the norm of Gaussian noise in units of the gradient's; ``longer``, by which the number of steps is
    multiplied; and those of ``make``.

    An outcome has the accuracies ``train``, ``test`` and those of both groups; ``feature``, C at the end; ``signal``,
    which part of the margins of the training examples with small margin is due to the feature; ``identity``, the
    largest error of two closed forms.
    """
    size: Patches = cells[0].setting
    options = [{**hyper, **size.cases[cells[0].case].hyper} for hyper in hypers]
    common = {name: value for name, value in options[0].items() if name not in ("lr", "momentum")}
    batch, noise, longer = (common.pop(name, usual) for name, usual in (("batch", 0), ("noise", 0.0), ("longer", 1)))
    problems: list[Problem] = [cell.shared() for cell in cells]
    device = cells[0].device
    x, y = (torch.stack([getattr(p.train, name) for p in problems]).to(device) for name in ("x", "y"))
    w_star = problems[0].train.w_star.to(device)
    weight = torch.stack([p.weight for p in problems]).to(device).requires_grad_()
    lr, momentum = (torch.tensor([o[name] for o in options], dtype=torch.float64) for name in ("lr", "momentum"))
    optimizer = make(weight, lr, momentum, **common)
    error = identity_error(weight.detach(), x, y, w_star)
    marks = _marks(size.steps * longer)
    steps = 0
    noises = [cell.seeds.generator("noise", "gradient") for cell in cells]
    for passed, (xs, ys) in _batches(x, y, batch, size.steps * longer, cells):
        gradient = patch_gradient(weight.detach(), xs, ys)
        if noise:
            gradient += noise_like(gradient, noise, noises)
        weight.grad = gradient
        optimizer.step()
        steps += 1
        cells[0].tick()
        if passed in marks:
            for cell, problem, at in zip(cells, problems, weight.detach().cpu(), strict=True):
                _log(cell, problem, at, passed)
    cost = {"steps": steps, "samples": size.n * size.steps * longer}
    weight = weight.detach()
    error = torch.maximum(error, identity_error(weight, x, y, w_star))
    loss = -F.logsigmoid(y * patch_logits(weight, x)).mean(1)
    weight = weight.cpu()
    outcomes = []
    for i, (cell, problem) in enumerate(zip(cells, problems, strict=True)):
        if not bool(weight[i].isfinite().all() & loss[i].isfinite()):
            outcomes.append(Outcome(cost=cost, diverged="a weight or the loss is no longer finite"))
        elif cell.tuning:
            outcomes.append(Outcome(objective=-float(loss[i])))
        else:
            values = {**measure(weight[i], problem), "identity": error[i]}
            outcomes.append(Outcome(values, objective=-float(loss[i]), cost=cost))
    return outcomes


def _log(cell: Cell, problem: Problem, weight: Tensor, step: int) -> None:
    """A point of each curve: C, and the accuracies on small margins."""
    cell.log("feature", float(feature_alignment(weight, problem.train.w_star)), step)
    parts = {"train_small": problem.train}
    if not cell.tuning:
        parts["test_small"] = problem.test.open()
    for name, data in parts.items():
        small = data.small_margin
        if small.any():
            right = patch_logits(weight, data.x[small]) * data.y[small] > 0
            cell.log(name, float(right.to(weight.dtype).mean()), step)


def measure(weight: Tensor, problem: Problem) -> dict[str, Tensor]:
    """Accuracies by group, C, and the share of the feature in the training margins of those with small margin."""
    train, test = problem.train, problem.test.open()
    fitted = group_accuracy(patch_logits(weight, train.x), train.y, train.small_margin)
    found = group_accuracy(patch_logits(weight, test.x), test.y, test.small_margin)
    signal, noise = (part[train.small_margin].sum() for part in margin_parts(weight, train.x, train.y, train.w_star))
    return {
        "train": fitted.overall,
        "train_small": fitted.small,
        "test": found.overall,
        "test_large": found.large,
        "test_small": found.small,
        "feature": feature_alignment(weight, train.w_star),
        "signal": signal / (signal + noise) if signal + noise > 0 else torch.tensor(math.nan),
    }


def identity_error(weight: Tensor, x: Tensor, y: Tensor, w_star: Tensor) -> Tensor:
    """Largest errors, in float64: of the closed-form gradient, and of the rate at which the feature grows."""
    weight, x, y, w_star = (tensor.detach().double() for tensor in (weight, x, y, w_star))
    weight.requires_grad_()
    with torch.enable_grad():
        loss = -F.logsigmoid(y * patch_logits(weight, x)).mean(-1).sum()
        (automatic,) = torch.autograd.grad(loss, weight)
    weight = weight.detach()
    closed = patch_gradient(weight, x, y)
    rate = signal_rate(weight, x, y, w_star)
    return torch.maximum((closed - automatic).abs().amax((-2, -1)), (rate + automatic @ w_star).abs().amax(-1))


def _batches(
    x: Tensor, y: Tensor, size: int, passes: int, cells: Sequence[Cell]
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """The examples of each step, and at the end of a pass its number, else 0; without a size, all of them."""
    if not size:
        yield from ((number, (x, y)) for number in range(1, passes + 1))
        return
    orders = [cell.seeds.generator("order") for cell in cells]
    seed = torch.arange(len(x)).unsqueeze(1)
    for number in range(1, passes + 1):
        *steps, last = torch.stack([torch.randperm(x.shape[1], generator=each) for each in orders]).split(size, 1)
        for index in steps:
            yield 0, (x[seed, index], y[seed, index])
        yield number, (x[seed, last], y[seed, last])


def noise_like(gradient: Tensor, share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Gaussian noise, of ``share`` times the norm of each replicate's gradient in expectation."""
    noise = torch.stack([torch.randn(gradient.shape[1:], generator=generator) for generator in generators])
    scale = share * global_norm([gradient]) / math.sqrt(gradient[0].numel())
    return scale[:, None, None] * noise.to(gradient)


def _marks(steps: int, points: int = 40) -> set[int]:
    """Where the curve has a point: about as many in each decade."""
    return {round(steps ** (i / points)) for i in range(points + 1)}
