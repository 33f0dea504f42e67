"""Networks whose collapse is watched while they train: many replicates, or draws of a learning rate, in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from torchstone.bench.outcome import Outcome
from torchstone.bench.statistics import kendall_tau
from torchstone.bench.study import Cell, Sealed
from torchstone.data import TensorData, load, random_split_indices
from torchstone.dynamics import ETFClassifier, NCMetrics, RescaledMSELoss, nc_metrics
from torchstone.models import MLP, ResNet
from torchstone.training import supervised
from torchstone.training.stacked import SGD, StackedEpochEnd, StackedModule, fit_stacked, stack

__all__ = ["Gaussians", "Images", "Problem", "draw_gaussians", "draw_images", "run_networks", "run_one"]

LOOKS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""When collapse is measured, in shares of the training time."""


@dataclass(frozen=True)
class Training:
    """Momentum SGD; the learning rate falls to a tenth after each fifth of the epochs."""

    epochs: int = 40
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Images:
    """A data set: parts of its training samples, and its own test part or another part of them."""

    source: str = "digits"
    train: int = 1200
    val: int = 197
    test: int = 400
    model: str = "mlp"
    hidden: int = 256
    dim: int = 64
    training: Training = Training()


@dataclass(frozen=True)
class Gaussians:
    """Case -> number of classes, each a Gaussian N(m, I) with m ~ N(0, apart^2 I)."""

    classes: Mapping[str, int]
    features: int = 64
    apart: float = 0.6
    train: int = 20
    val: int = 10
    test: int = 20
    model: str = "mlp"
    hidden: int = 128
    dim: int = 128
    training: Training = Training(epochs=20)


@dataclass(frozen=True, eq=False)
class Problem:
    """What the arms of a cell share."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: Sealed[tuple[Tensor, Tensor]]
    num_classes: int


@lru_cache(maxsize=1)
def _source(name: str) -> TensorData:
    return load(name)


def draw_images(cell: Cell) -> Problem:
    """``shared`` of the experiments on images."""
    size: Images = cell.setting
    data = _source(size.source)
    sizes = (size.train, size.val) if data.test is not None else (size.train, size.val, size.test)
    parts = random_split_indices(len(data), sizes, generator=cell.seeds.generator("split"), stratify=data.y)
    train, val, *rest = ((data.x[part].to(cell.device), data.y[part].to(cell.device)) for part in parts)
    test = rest[0] if data.test is None else (data.test.x.to(cell.device), data.test.y.to(cell.device))
    return Problem(train, val, cell.seal(test), data.num_classes)


def draw_gaussians(cell: Cell) -> Problem:
    """``shared`` of the experiment over numbers of classes."""
    size: Gaussians = cell.setting
    classes, generator = size.classes[cell.case], cell.seeds.generator("split")
    means = size.apart * torch.randn(classes, size.features, generator=generator)

    def part(each: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(classes).repeat_interleave(each)
        return means[y] + torch.randn(len(y), size.features, generator=generator), y

    return Problem(part(size.train), part(size.val), cell.seal(part(size.test)), classes)


def run_one(cell: Cell, **hyper: Any) -> Outcome:
    """``run`` of the arms."""
    return run_networks([cell], [hyper])[0]


def run_networks(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of the arms: one network for each cell, which differ in data, start, order and learning rate.

    Hyper-parameters are ``lr``; ``loss``, "mse" or "ce"; ``alpha`` and ``height`` of the rescaled MSE; ``smoothing``
    of the labels for the cross-entropy; ``etf``, whether the last layer is a fixed simplex; ``narrow``, whether there
    are only as many features as classes.

    An outcome has accuracies, the measures of collapse at the end, how many powers of ten NC1 to NC3 fell by since a
    twentieth of the training (``nc1_fall``, ...), and ``nc1_order``: Kendall's tau, 1 if NC1 fell from each look to the
    next.
    """
    size: Images | Gaussians = cells[0].setting
    problems: list[Problem] = [cell.shared() for cell in cells]
    hyper = dict(hypers[0])
    rates = [float(each["lr"]) for each in hypers]
    hyper.pop("lr")
    plan, classes = size.training, problems[0].num_classes
    model = stack(
        [
            _network(size, problem, etf=hyper["etf"], narrow=hyper["narrow"], generator=cell.seeds.generator("init"))
            for cell, problem in zip(cells, problems, strict=True)
        ]
    ).to(cells[0].device)
    x, y = (torch.stack([problem.train[i] for problem in problems]) for i in (0, 1))
    optimizer = SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=rates,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
    )
    looks = sorted({max(1, round(share * plan.epochs)) for share in LOOKS})
    seen: list[NCMetrics] = []

    def look(end: StackedEpochEnd) -> None:
        if end.history.epochs in looks and not cells[0].tuning:
            seen.append(_collapse(end.model, x, y))

    history = fit_stacked(
        model,
        (x, y),
        supervised(_criterion(classes, **{name: hyper[name] for name in ("loss", "alpha", "height", "smoothing")})),
        optimizer,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        generators=[cell.seeds.generator("order") for cell in cells],
        own="xy",
        scheduler=MultiStepLR(optimizer, [plan.epochs * fifth // 5 for fifth in range(1, 5)]),
        on_step=cells[0].tick,
        callbacks=[look],
    )
    val = _accuracy(model, [problem.val for problem in problems])
    values: list[dict[str, float]] = [{} for _ in cells]
    if not cells[0].tuning:
        test = _accuracy(model, [problem.test.open() for problem in problems])
        train = _accuracy(model, [problem.train for problem in problems])
        for s in (s for s, reason in enumerate(history.diverged) if not reason):
            values[s] = {"accuracy": test[s], "train_accuracy": train[s], **_summary(seen, s)}
    parameters = sum(parameter[0].numel() for parameter in model.parameters())
    cost = {**history.cost, "parameters": parameters}
    return [
        Outcome(cost=cost, objective=-math.inf, diverged=reason)
        if reason
        else Outcome(values[s], objective=val[s], cost=cost)
        for s, reason in enumerate(history.diverged)
    ]


def _network(
    size: Images | Gaussians, problem: Problem, *, etf: bool, narrow: bool, generator: torch.Generator
) -> nn.Module:
    classes, x = problem.num_classes, problem.train[0]
    dim = classes if narrow else size.dim
    if size.model == "mlp":
        net = MLP(x[0].numel(), classes, hidden=(size.hidden, dim), batch_norm=True, generator=generator)
    else:
        net = ResNet(x.shape[1], classes, widths=(64, 128, 256, dim), blocks=2, shortcut="conv", generator=generator)
    if etf:
        net.head = ETFClassifier(dim, classes)  # pyright: ignore[reportAttributeAccessIssue] another last layer
    return net


def _criterion(classes: int, *, loss: str, alpha: float, height: float, smoothing: float) -> Any:
    if loss == "ce":
        return partial(F.cross_entropy, label_smoothing=smoothing)
    return RescaledMSELoss(classes, alpha, height)


def _mapped(model: StackedModule, method: str, x: Tensor) -> Tensor:
    """``method`` of each model on its own rows, in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model.map(partial(_call, method=method), part) for part in x.split(1024, dim=1)], 1)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _call(net: nn.Module, x: Tensor, *, method: str) -> Tensor:
    return getattr(net, method)(x)


def _accuracy(model: StackedModule, parts: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    x, y = (torch.stack([part[i] for part in parts]) for i in (0, 1))
    return (_mapped(model, "forward", x).argmax(-1) == y).double().mean(1).tolist()


def _collapse(model: StackedModule, x: Tensor, y: Tensor) -> NCMetrics:
    head: Any = model.net.head
    features = _mapped(model, "features", x).nan_to_num(0.0, 0.0, 0.0)  # of a model that diverged
    return nc_metrics(features, y, head.weight.nan_to_num(0.0, 0.0, 0.0), head.bias.nan_to_num(0.0, 0.0, 0.0))


def _summary(seen: Sequence[NCMetrics], s: int) -> dict[str, float]:
    first, last = seen[0], seen[-1]
    measures = {"nc1": "nc1", "nc2": "nc2_weight", "nc3": "nc3"}
    falls = {
        f"{name}_fall": float((getattr(first, field)[s] / getattr(last, field)[s]).log10())
        for name, field in measures.items()
    }
    ends = {name: float(getattr(last, name)[s]) for name in ("nc1", "nc2", "nc2_weight", "nc3", "nc4", "bias_relation")}
    nc1 = [float(each.nc1[s]) for each in seen]
    known = len(nc1) > 1 and not any(map(math.isnan, nc1))
    return {**ends, **falls, "nc1_order": -kendall_tau(range(len(nc1)), nc1) if known else math.nan}
