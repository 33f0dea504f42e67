"""The landscape of the plain unconstrained-features model: where descent ends, and what its critical points are.

Every model of a cell, over a grid of regularisation and several random starts, is one slice of a stack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.dynamics import UFMOptimum, UnconstrainedFeatureModel, ufm_optimum
from torchstone.dynamics.neural_collapse.optimum import origin_curvature

__all__ = ["GRID", "STARTS", "Landscape", "Point", "descend", "run_descent", "run_minima", "run_origin", "run_saddles"]

STARTS = {"small": 0.1, "unit": 1.0, "large": 3.0}
"""Standard deviation of the entries of W and H at the start, by case."""


@dataclass(frozen=True)
class Point:
    """One point of the grid: strength tau of the regularisation, and weight decay of the bias; ``None`` is no bias."""

    tau: float
    lambda_b: float | None
    ratio: float = 1.6  # lambda_H / lambda_W

    def decays(self, k: int, n: int) -> tuple[float, float]:
        """lambda_W and lambda_H, from tau = K sqrt(n lambda_W lambda_H)."""
        product = (self.tau / k) ** 2 / n
        return math.sqrt(product / self.ratio), math.sqrt(product * self.ratio)


GRID = tuple(itertools.starmap(Point, itertools.product((0.1, 0.2, 0.5, 0.8, 1.2), (0.0, 0.02, 0.5, 2.0, None))))
"""On both sides of tau = 1 and of lambda_b = tau / (1 - tau), and away from both, where descent would take for ever."""


@dataclass(frozen=True)
class Landscape:
    """Sizes: K classes, n samples each, d features, random starts at every point, steps at most."""

    starts: int = 2
    steps: int = 8000
    num_classes: int = 4
    per_class: int = 10
    dim: int = 6

    def optimum(self, point: Point) -> UFMOptimum:
        """The closed form at a point of the grid."""
        return ufm_optimum(
            self.num_classes, self.per_class, *point.decays(self.num_classes, self.per_class), point.lambda_b
        )


def descend(
    model: UnconstrainedFeatureModel,
    decays: tuple[Tensor, Tensor],
    bias_decay: Tensor,
    has_bias: Tensor,
    *,
    steps: int,
    on_step: Callable[[], None] | None = None,
    tolerance: float = 1e-5,
) -> tuple[Tensor, int]:
    """Plain gradient descent of all models at once, each with a step of its own; returns losses and steps made.

    A step that does not lower the loss by half of what its slope promises (Armijo) is undone and halved; after one that
    does, the next is a tenth longer. It ends when all gradients are shorter than ``tolerance``. Where ``has_bias`` is
    false the bias stays at zero.
    """
    parameters = list(model.parameters())
    free = [has_bias[:, None].double() if p is model.bias else torch.ones(()).double() for p in parameters]

    def evaluate() -> tuple[Tensor, list[Tensor], Tensor]:
        loss = model.loss(decays, bias_decay)
        slopes = torch.autograd.grad(loss.sum(), parameters)
        slopes = [slope * mask for slope, mask in zip(slopes, free, strict=True)]
        return loss.detach(), slopes, torch.stack([slope.square().flatten(1).sum(1) for slope in slopes]).sum(0)

    lr = torch.full_like(bias_decay, 0.1)
    loss, slopes, square = evaluate()
    made = 0
    while made < steps and bool((square > tolerance**2).any()):
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.sub_(_wide(lr, p) * slope)
        new_loss, new_slopes, new_square = evaluate()
        good = new_loss <= loss - lr * square / 2 + 1e-16
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(torch.where(_wide(good, p), p, old))
        slopes = [torch.where(_wide(good, new), new, old) for new, old in zip(new_slopes, slopes, strict=True)]
        loss, square = torch.where(good, new_loss, loss), torch.where(good, new_square, square)
        lr = torch.where(good, 1.1 * lr, 0.5 * lr)
        made += 1
        if on_step is not None:
            on_step()
    return loss, made


def run_descent(cell: Cell, *, narrower: int = 0) -> Outcome:
    """Descend from random starts at every point of the grid.

    The outcome has ``reached``, the share that ends within 1e-6 of f*; ``lowest``, the smallest f - f*; ``phase``, the
    share whose W W^T has the predicted frame; ``frame``, its largest distance from the predicted matrix; and
    ``blocked``, the smallest f - f* where the bias is free and tau < 1, in units of what a missing direction costs.
    """
    size: Landscape = cell.setting
    k, n = size.num_classes, size.per_class
    points = [point for point in GRID for _ in range(size.starts)]
    optima = [size.optimum(point) for point in points]
    decays = torch.tensor([point.decays(k, n) for point in points], dtype=torch.float64)
    has_bias = torch.tensor([point.lambda_b is not None for point in points])
    model = UnconstrainedFeatureModel(
        k,
        n,
        size.dim - narrower,
        bias=True,
        seeds=len(points),
        init_std=STARTS[cell.case],
        generator=cell.seeds.generator("init"),
        dtype=torch.float64,
    )
    bias_decay = torch.tensor([point.lambda_b or 0.0 for point in points], dtype=torch.float64)
    loss, steps = descend(
        model, (decays[:, 0], decays[:, 1]), bias_decay, has_bias, steps=size.steps, on_step=cell.tick
    )
    gap = loss - torch.tensor([optimum.loss for optimum in optima], dtype=torch.float64)
    weight = model.weights[0].detach()
    scale = (n * decays[:, 1] / decays[:, 0]).sqrt()
    gram = weight @ weight.mT / scale[:, None, None]
    x, mean_x = (torch.tensor([getattr(o, name) for o in optima], dtype=torch.float64) for name in ("x", "mean_x"))
    centring = torch.full((k, k), 1 / k, dtype=torch.float64)
    ideal = x[:, None, None] * (torch.eye(k) - centring) + mean_x[:, None, None] * centring
    found_mean = (gram * centring).sum((-2, -1))
    found = (gram.diagonal(dim1=-2, dim2=-1).sum(-1) - found_mean) / (k - 1)
    phase = ((found > 0.02) == (x > 0)) & ((found_mean > 0.02) == (mean_x > 0))
    free = torch.tensor([point.lambda_b == 0 and point.tau < 1 for point in points])
    missing = (1 - torch.tensor([point.tau for point in points], dtype=torch.float64)).square() / (2 * k)
    return Outcome(
        {
            "reached": (gap < 1e-6).double().mean(),
            "lowest": gap.min(),
            "phase": phase.double().mean(),
            "frame": torch.linalg.matrix_norm(gram - ideal).max(),
            "blocked": (gap / missing)[free].min(),
        },
        cost={"steps": steps, "descents": len(points)},
    )


def run_minima(cell: Cell) -> Outcome:
    """Is the closed form a minimum? ``loss_error``, ``gradient`` and least ``curvature`` at every point of the grid."""
    size: Landscape = cell.setting
    generator = cell.seeds.generator("init")
    found = []
    for point in GRID:
        optimum = size.optimum(point)
        model = optimum.model(size.dim, generator=generator)
        loss, gradient, curvature = _at(model, point)
        found.append((abs(loss - optimum.loss), gradient, curvature))
    return _columns(found, "loss_error", "gradient", "curvature")


def run_saddles(cell: Cell) -> Outcome:
    """Critical points that lack 1 .. K - 1 directions between classes: ``gradient``, ``curvature``, its ``error``."""
    size: Landscape = cell.setting
    generator = cell.seeds.generator("init")
    found = []
    for point, drop in _lacking(size):
        model = size.optimum(point).model(size.dim, drop=drop, generator=generator)
        _, gradient, curvature = _at(model, point)
        found.append((gradient, curvature, abs(curvature - _formula(point, size))))
    return _columns(found, "gradient", "curvature", "error")


def run_origin(cell: Cell) -> Outcome:
    """At W = H = 0, with the best bias there: ``gradient``, ``error`` of the curvature, and its ``sign`` by tau."""
    size: Landscape = cell.setting
    found = []
    for point in GRID:
        model = size.optimum(point).model(size.dim)
        with torch.no_grad():
            for factor in model.factors():
                factor.zero_()
            if model.bias is not None:
                model.bias.fill_(1 / (size.num_classes * (1 + (point.lambda_b or 0.0))))
        _, gradient, curvature = _at(model, point)
        found.append((gradient, abs(curvature - _formula(point, size)), float((curvature < 0) == (point.tau < 1))))
    return _columns(found, "gradient", "error", "sign")


def _lacking(size: Landscape) -> Iterator[tuple[Point, int]]:
    points = [point for point in GRID if point.tau < 1]
    return itertools.product(points, range(1, size.num_classes))


def _formula(point: Point, size: Landscape) -> float:
    return origin_curvature(size.num_classes, size.per_class, *point.decays(size.num_classes, size.per_class))


def _columns(rows: list[tuple[float, ...]], *names: str) -> Outcome:
    return Outcome(dict(zip(names, torch.tensor(rows, dtype=torch.float64).T, strict=True)))


class _Objective(nn.Module):
    """The loss as the output of a module, so that it can be a function of the parameters."""

    def __init__(self, model: UnconstrainedFeatureModel, point: Point) -> None:
        super().__init__()
        self.model = model
        self.decays, self.bias_decay = point.decays(model.num_classes, model.per_class), point.lambda_b or 0.0

    def forward(self) -> Tensor:
        return self.model.loss(self.decays, self.bias_decay)


def _at(model: UnconstrainedFeatureModel, point: Point) -> tuple[float, float, float]:
    """Loss, largest entry of the gradient, and smallest eigenvalue of the Hessian."""
    objective = _Objective(model, point)
    names, shapes = zip(*[(name, p.shape) for name, p in objective.named_parameters()], strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(objective, values, ())

    start = torch.nn.utils.parameters_to_vector(objective.parameters()).detach()
    slope = torch.func.grad(loss)
    hessian = torch.func.jacrev(slope)(start)
    return float(loss(start)), float(slope(start).abs().max()), float(torch.linalg.eigvalsh(hessian)[0])


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
