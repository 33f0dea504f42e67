"""Gradient descent on unconstrained-features models, many starts and strengths of regularisation in one pass.

Weight decay is part of the loss, never of the optimiser. A run counts as finished by its gradient, not by its steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.dynamics import UFMOptimum, UnconstrainedFeatureModel, extended_ufm_optimum, nc_metrics
from torchstone.dynamics.neural_collapse.metrics import frame_error
from torchstone.dynamics.neural_collapse.optimum import collapse_threshold, stationary_x
from torchstone.training.stacked import global_norm

__all__ = [
    "MODELS",
    "Descent",
    "Edge",
    "Model",
    "descend",
    "equal_decay",
    "run_descent",
    "run_edge",
    "stack_descent",
    "stack_edge",
]

FLAT = 1e-7  # norm of the gradient of a finished run
REACHED = 1e-8  # height above f* of a run that reached it
LOST = 1e15  # norm of the gradient of a run that diverged; its parameters are cleared from LOST^2 on
KEPT = 1e-3  # singular value of the logits' class means from which on a direction counts as learnt


@dataclass(frozen=True)
class Model:
    """An unconstrained-features model: its number of weights, and what stands between them."""

    layers: int
    nonlinearity: Literal["relu"] | None = None


MODELS = {
    "plain": Model(1),
    "linear2": Model(2),
    "linear3": Model(3),
    "relu2": Model(2, "relu"),
    "relu3": Model(3, "relu"),
}


@dataclass(frozen=True)
class Descent:
    """Sizes: K, n and d of the models; ``ratios`` are strengths q of regularisation in units of the threshold."""

    num_classes: int = 4
    per_class: int = 10
    dim: int = 20
    ratios: tuple[float, ...] = (0.2, 0.6, 1.5)
    lr: float = 0.5
    steps: int = 6000

    def decay(self, q: float, layers: int) -> float:
        """The weight decay, the same for all factors, of strength ``q``."""
        return equal_decay(q, layers + 1, self.num_classes, self.per_class)


def equal_decay(q: float, factors: int, num_classes: int, per_class: int) -> float:
    """The weight decay of each factor at which K (n prod lambda)^(1/M) = q."""
    return q / num_classes * per_class ** (-1 / factors)


def descend(
    model: UnconstrainedFeatureModel,
    decays: Sequence[float | Tensor],
    *,
    lr: float,
    steps: int,
    tick: Callable[[], None],
    marks: Mapping[int, Callable[[], None]] | None = None,
) -> Tensor:
    """Plain gradient descent on f; returns the norm of each seed's last gradient.

    A seed that diverged becomes zero where it is looked at, so that the others can be measured.

    Args:
        model: stacked models.
        decays: the lambdas.
        lr: learning rate.
        steps: their number.
        tick: called after each step.
        marks: functions to call after so many steps.
    """
    parameters = list(model.parameters())
    gradients: Sequence[Tensor] = [torch.zeros_like(p) for p in parameters]
    for step in range(1, steps + 1):
        gradients = torch.autograd.grad(model.loss(decays).sum(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=lr)
        tick()
        if marks and step in marks:
            _clear_lost(parameters)
            marks[step]()
    _clear_lost(parameters)
    return global_norm(gradients)


@torch.no_grad()
def _clear_lost(parameters: Sequence[Tensor]) -> None:
    lost = ~(torch.stack([p.abs().flatten(1).amax(1) for p in parameters]).amax(0) < LOST**2)
    for parameter in parameters:
        parameter[lost] = 0.0


# ---------------------------------------------------------------- from random starts


def run_descent(cell: Cell, *, bias: bool, init_std: float) -> Outcome:
    """``run`` of the arms that start at random: one replicate."""
    return stack_descent([cell], [{"bias": bias, "init_std": init_std}])[0]


def stack_descent(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of the same: every cell's start, at every strength of regularisation.

    An outcome has, over the strengths below the threshold: shares ``reached`` of runs at f*, ``zero`` of runs at the
    origin and ``unfinished`` ones; ``missing``, the mean number of directions that were lost; and, largest over the
    runs that reached f*, ``nc1`` and the distances of the means of the first and the last layer from the frame
    (``frame_first``, ``frame_last``); over those of them that are finished, of linear models, the relative error
    ``gram`` of the Gram matrices of means, and ``balance`` of the factors.
    Over all strengths ``lowest`` is the least height above f*. ``reached_weak`` is at the least strength, ``past`` the
    largest factor past the threshold.
    """
    size: Descent = cells[0].setting
    kind = MODELS[cells[0].case]
    bias, init_std = hypers[0]["bias"], hypers[0]["init_std"]
    factors = kind.layers + 1
    decays = [size.decay(ratio * collapse_threshold(factors), kind.layers) for ratio in size.ratios]
    optima = [extended_ufm_optimum(size.num_classes, size.per_class, [decay] * factors, bias) for decay in decays]
    model = UnconstrainedFeatureModel(
        size.num_classes,
        size.per_class,
        size.dim,
        kind.layers,
        kind.nonlinearity,
        bias,
        seeds=len(cells) * len(decays),
        init_std=init_std,
        generator=[cell.seeds.generator("init") for cell in cells for _ in decays],
        dtype=torch.float64,
    ).to(cells[0].device)
    strengths = torch.tensor(decays * len(cells), dtype=torch.float64, device=cells[0].device)
    slope = descend(model, [strengths] * factors, lr=size.lr, steps=size.steps, tick=cells[0].tick)
    with torch.no_grad():
        loss = model.loss([strengths] * factors)
        found = _measures(model, strengths, optima * len(cells))
    best = torch.tensor([optimum.loss for optimum in optima * len(cells)], dtype=torch.float64)
    found |= {"loss": loss, "slope": slope, "height": loss - best.to(loss)}
    found = {name: value.cpu().unflatten(0, (len(cells), -1)) for name, value in found.items()}
    cost = {"steps": size.steps}
    outcomes = []
    for i, cell in enumerate(cells):
        own = {name: value[i] for name, value in found.items()}
        if not (own["slope"] < LOST).all():
            outcomes.append(Outcome(cost=cost, diverged="the gradient grew without bound"))
        elif cell.tuning:
            outcomes.append(Outcome(objective=-float(own["loss"].mean())))
        else:
            values = _summary(own, optima)
            if kind.nonlinearity:  # no theorem says what they should be
                del values["gram"], values["balance"]
            outcomes.append(Outcome(values, cost=cost))
    return outcomes


def _measures(model: UnconstrainedFeatureModel, decay: Tensor, optima: Sequence[UFMOptimum]) -> dict[str, Tensor]:
    """What is to be known of each run."""
    k, shape = model.num_classes, (model.num_classes, model.per_class)
    frame = "etf" if model.bias is not None else "orthogonal"
    features = [model.features(layer) for layer in range(1, model.layers + 1)]
    means = [h.unflatten(-2, shape).mean(-2) for h in features]
    grams = [mean @ mean.mT for mean in means]
    frames = torch.stack([frame_error(gram, frame) for gram in grams])
    # a model that is zero has no NC1
    nc1 = torch.stack([nc_metrics(h, model.labels, num_classes=k).nc1 for h in features])
    target = torch.eye(k).to(decay) - (1 / k if model.bias is not None else 0)
    errors = []
    for layer, gram in enumerate(grams, 1):
        sizes = [math.prod(o.singular_values[-layer:]) ** 2 / model.per_class for o in optima]
        ideal = torch.tensor(sizes, dtype=torch.float64).to(decay)[:, None, None] * target
        errors.append(torch.linalg.matrix_norm(gram - ideal) / torch.linalg.matrix_norm(ideal))
    factors = model.factors()
    inner = [lower @ lower.mT if lower is not model.free else lower.mT @ lower for lower in factors[1:]]
    imbalance = [
        (decay[:, None, None] * (upper.mT @ upper - below)).abs().amax((-2, -1))
        for (upper, _), below in zip(pairwise(factors), inner, strict=True)
    ]
    logits = means[-1] @ model.weights[-1].mT
    return {
        "nc1": nc1.amax(0),
        "gram": torch.stack(errors).amax(0),
        "balance": torch.stack(imbalance).amax(0),
        "frame_first": frames[0],
        "frame_last": frames[-1],
        "rank": (torch.linalg.svdvals(logits) > KEPT).double().sum(-1),
        "size": torch.stack([factor.abs().amax((-2, -1)) for factor in factors]).amax(0),
    }


def _summary(own: Mapping[str, Tensor], optima: Sequence[UFMOptimum]) -> dict[str, Any]:
    below = torch.tensor([o.kind == "collapse" for o in optima])
    full = optima[0].num_classes - (optima[0].bias > 0)
    unfinished = own["slope"] > FLAT
    reached = own["height"] <= REACHED
    values: dict[str, Any] = {
        "reached": reached[below].double().mean(),
        "reached_weak": float(reached[0]),
        "zero": (own["rank"][below] == 0).double().mean(),
        "missing": full - own["rank"][below].mean(),
        "unfinished": unfinished[below].double().mean(),
        "lowest": own["height"].min(),
        "past": own["size"][~below].max() if not below.all() else math.nan,
    }
    for name in ("nc1", "frame_first", "frame_last", "gram", "balance"):
        there = reached & below & (~unfinished if name in ("gram", "balance") else True)
        values[name] = own[name][there].max() if there.any() else math.nan
    return values


# ---------------------------------------------------------------- at the threshold


@dataclass(frozen=True)
class Edge:
    """The linear model with two weights at strengths ``cases`` near its threshold; ``noise`` shakes the start."""

    cases: Mapping[str, float]
    sizes: Descent = Descent()
    noise: float = 1e-3


def run_edge(cell: Cell, *, collapsed: bool) -> Outcome:
    """``run`` of the arms that start at a stationary point: one replicate."""
    return stack_edge([cell], [{"collapsed": collapsed}])[0]


def stack_edge(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of the same. Where there is no collapsed stationary point, the start is the last there was.

    An outcome has the largest entry ``gradient`` of the gradient at the stationary point, and where descent from beside
    it ends: ``loss``, and the norm ``slope`` of the gradient there.
    """
    setting: Edge = cells[0].setting
    size, q = setting.sizes, setting.cases[cells[0].case]
    decays = [size.decay(q, 2)] * 3
    x = 0.0
    if hypers[0]["collapsed"]:
        x = stationary_x(q, 3)
        x = 0.25 if math.isnan(x) else x  # the maximum of x^(1/3) (1 - x)
    zero = extended_ufm_optimum(size.num_classes, size.per_class, [size.decay(1.0, 2)] * 3)
    start = replace(zero, lambdas=tuple(decays), q=q, x=x, mean_x=x, frame="orthogonal" if x else "none")
    exact = start.model(size.dim)
    gradients = torch.autograd.grad(exact.loss(decays), list(exact.parameters()))
    model = UnconstrainedFeatureModel(
        size.num_classes,
        size.per_class,
        size.dim,
        2,
        seeds=len(cells),
        init_std=setting.noise,
        generator=[cell.seeds.generator("init") for cell in cells],
        dtype=torch.float64,
    )
    with torch.no_grad():
        for parameter, centre in zip(model.parameters(), exact.parameters(), strict=True):
            parameter += centre
    model = model.to(cells[0].device)
    slope = descend(model, decays, lr=size.lr, steps=size.steps, tick=cells[0].tick).cpu()
    loss = model.loss(decays).detach().cpu()
    gradient = max(float(part.abs().max()) for part in gradients)
    cost = {"steps": size.steps}
    outcomes = []
    for i, cell in enumerate(cells):
        if not slope[i] < LOST:
            outcomes.append(Outcome(cost=cost, diverged="the gradient grew without bound"))
        elif cell.tuning:
            outcomes.append(Outcome(objective=-float(loss[i])))
        else:
            outcomes.append(Outcome({"gradient": gradient, "loss": loss[i], "slope": slope[i]}, cost=cost))
    return outcomes
