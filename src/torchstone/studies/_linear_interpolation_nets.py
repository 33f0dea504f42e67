"""Small networks trained in many ways, all replicates of one way in one pass, and the path that each one took."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.data import TensorData, load, random_split_indices, symmetric_noise
from torchstone.dynamics import LinearPath, evaluate_stacked, path_metrics
from torchstone.models.seeding import seeded
from torchstone.training import accuracy, predict, supervised
from torchstone.training.curvature import HessianOperator
from torchstone.training.stacked import StackedHistory, fit_stacked, stack

__all__ = [
    "ARCHITECTURES",
    "CONDITIONS",
    "Condition",
    "Net",
    "Nets",
    "Pair",
    "Sample",
    "Sizes",
    "build",
    "draw",
    "train",
]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Condition:
    """One way to train: the optimiser, the start, the labels.

    Args:
        lr: learning rate.
        momentum: of SGD.
        adam: Adam in place of SGD.
        weight_decay: L2 penalty.
        scale: factor of all initial parameters.
        adversarial: start from a network that was trained on random labels.
        samples: train on so many only, for as many steps.
        label_noise: share of labels redrawn among the other classes.
    """

    lr: float
    momentum: float = 0.0
    adam: bool = False
    weight_decay: float = 0.0
    scale: float = 1.0
    adversarial: bool = False
    samples: int | None = None
    label_noise: float = 0.0

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """The optimiser of this condition."""
        if self.adam:
            return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)


CONDITIONS = {
    "sgd": Condition(0.1),
    "momentum": Condition(0.05, 0.9),
    "adam-0.001": Condition(0.001, adam=True),
    "adam-0.01": Condition(0.01, adam=True),
    "weight-decay": Condition(0.05, 0.9, weight_decay=5e-3),
    "init-x3": Condition(0.05, 0.9, scale=3.0),
    "adversarial": Condition(0.05, 0.9, adversarial=True),
    "few": Condition(0.05, 0.9, samples=100),
    "noisy": Condition(0.05, 0.9, label_noise=0.4),
    "large-lr": Condition(0.2, 0.9),
}


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Args:
        source: name of the data set.
        train: training samples.
        test: test samples.
        pool: factor by which images are made smaller.
        epochs: passes over the training samples.
        random_epochs: passes over them with random labels, for the adversarial start.
        batch_size: samples a step.
        curve: training samples, and test samples, on which losses along a path are measured.
        points: of a path.
        signs: random vectors of the estimated trace of the Hessian.
    """

    source: str = "digits"
    train: int = 1000
    test: int = 700
    pool: int = 1
    epochs: int = 8
    random_epochs: int = 16
    batch_size: int = 50
    curve: int = 150
    points: int = 26
    signs: int = 5


@dataclass(frozen=True, eq=False)
class Sample:
    """What the arms of a cell share."""

    train: Pair
    test: Sealed[Pair]


@lru_cache(maxsize=2)
def images(source: str, pool: int = 1) -> TensorData:
    """A data set with mean 0 and standard deviation 1 over all pixels, its images made smaller by a factor."""
    data = load(source)
    x = F.avg_pool2d(data.x, pool) if pool > 1 else data.x
    return TensorData((x - x.mean()) / x.std(), data.y, data.class_names, data.name)


def draw(cell: Cell) -> Sample:
    """``shared`` of the experiments: training samples, with the labels of the cell's condition, and test samples."""
    size: Sizes = cell.setting
    condition = CONDITIONS.get(cell.case, CONDITIONS["momentum"])
    data = images(size.source, size.pool)
    generator = cell.seeds.generator("split")
    train, test = random_split_indices(len(data), (size.train, size.test), generator=generator)
    train = train[: condition.samples]
    labels = data.y[train]
    if condition.label_noise:
        noise = cell.seeds.generator("noise", "labels")
        labels = symmetric_noise(
            labels, rate=condition.label_noise, num_classes=data.num_classes, own_class=False, generator=noise
        )
    return Sample((data.x[train], labels), cell.seal((data.x[test], data.y[test])))


# ---------------------------------------------------------------- networks


def _mlp(depth: int) -> Callable[[torch.Size], nn.Module]:
    def make(shape: torch.Size) -> nn.Module:
        layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        width = shape.numel()
        for number in range(1, depth + 1):
            layers += [(f"linear{number}", nn.Linear(width, 48)), (f"relu{number}", nn.ReLU())]
            width = 48
        return nn.Sequential(OrderedDict([*layers, ("head", nn.Linear(width, 10))]))

    return make


def _cnn(norm: bool) -> Callable[[torch.Size], nn.Module]:
    def make(shape: torch.Size) -> nn.Module:
        layers: list[tuple[str, nn.Module]] = []
        channels, side = shape[0], shape[-1]
        for number, (width, stride) in enumerate(((8, 1), (16, 2), (16, 2)), 1):
            layers.append((f"conv{number}", nn.Conv2d(channels, width, 3, stride, 1, bias=not norm)))
            layers += [(f"norm{number}", nn.BatchNorm2d(width))] * norm
            layers.append((f"relu{number}", nn.ReLU()))
            channels, side = width, -(-side // stride)
        layers += [("flatten", nn.Flatten()), ("head", nn.Linear(channels * side * side, 10))]
        return nn.Sequential(OrderedDict(layers))

    return make


ARCHITECTURES = {"mlp2": _mlp(2), "mlp6": _mlp(6), "cnn3": _cnn(norm=False), "cnn3-bn": _cnn(norm=True)}
"""The number is that of hidden layers."""


def build(architecture: str, shape: torch.Size, generator: torch.Generator) -> nn.Module:
    """A network for inputs of this shape, with weights from ``generator``."""
    with seeded(generator):
        return ARCHITECTURES[architecture](shape)


def train(
    models: Sequence[nn.Module],
    data: Sequence[Pair],
    condition: Condition,
    orders: Sequence[torch.Generator],
    *,
    epochs: int,
    batch_size: int,
    cell: Cell,
) -> tuple[list[nn.Module], StackedHistory]:
    """Train the models in one pass, each on its own data."""
    model = stack(models)
    history = fit_stacked(
        model,
        (torch.stack([x for x, _ in data]), torch.stack([y for _, y in data])),
        supervised(F.cross_entropy),
        condition.optimizer(model.parameters()),
        epochs=epochs,
        batch_size=batch_size,
        generators=orders,
        own="xy",
        device=cell.device,
        on_step=cell.tick,
    )
    return model.unstack(), history


# ---------------------------------------------------------------- arms


@dataclass(frozen=True)
class Nets:
    """``stacked`` of an arm: train an architecture in the way that the case names, and measure the paths.

    An outcome has the test ``accuracy``; the numbers of :func:`torchstone.dynamics.path_metrics` for the training loss,
    with running statistics computed anew; what could predict as well without a path: ``early_loss`` (mean of the first
    pass), ``final_loss``, ``distance`` and ``trace`` (of the Hessian at the end); ``curve`` and ``test_error`` along
    the path. With BatchNorm it also has ``final_excess`` and ``batch_excess``: how much higher the barrier is with
    final running statistics, and with those of each batch.
    """

    architecture: str

    def __call__(self, cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Train all, then measure one after another."""
        size: Sizes = cells[0].setting
        condition = CONDITIONS[cells[0].case]
        samples: list[Sample] = [cell.shared() for cell in cells]
        data = [sample.train for sample in samples]
        models = [
            build(self.architecture, x.shape[1:], cell.seeds.generator("init"))
            for cell, (x, _) in zip(cells, data, strict=True)
        ]
        for parameter in (p for model in models for p in model.parameters()):
            parameter.data.mul_(condition.scale)
        if condition.adversarial:
            models = _mislead(models, data, condition, cells)
        starts = [copy.deepcopy(model.state_dict()) for model in models]
        repeats = size.train // len(data[0][1])  # few samples are seen more often: as many steps for all
        models, history = train(
            models,
            data,
            condition,
            [cell.seeds.generator("order") for cell in cells],
            epochs=size.epochs * repeats,
            batch_size=size.batch_size,
            cell=cells[0],
        )
        early = history.curves["loss"][:repeats].mean(0)
        return [
            Outcome(
                {} if reason else _measure(model, start, sample, cell) | {"early_loss": float(loss)},
                cost=history.cost,
                diverged=reason,
            )
            for model, start, sample, cell, loss, reason in zip(
                models, starts, samples, cells, early, history.diverged, strict=True
            )
        ]


@dataclass(frozen=True)
class Net:
    """``run`` of an arm: the same for one cell."""

    architecture: str

    def __call__(self, cell: Cell, **hyper: Any) -> Outcome:
        """Train and measure."""
        return Nets(self.architecture)([cell], [hyper])[0]


def _mislead(
    models: Sequence[nn.Module], data: Sequence[Pair], condition: Condition, cells: Sequence[Cell]
) -> list[nn.Module]:
    """Train on random labels first."""
    size: Sizes = cells[0].setting
    chance = [cell.seeds.generator("noise", "random labels") for cell in cells]
    random = [(x, torch.randint(10, y.shape, generator=g)) for (x, y), g in zip(data, chance, strict=True)]
    epochs, batch_size = size.random_epochs, size.batch_size
    models, _ = train(models, random, condition, chance, epochs=epochs, batch_size=batch_size, cell=cells[0])
    return models


def _measure(model: nn.Module, start: Mapping[str, Any], sample: Sample, cell: Cell) -> dict[str, Any]:
    size: Sizes = cell.setting
    alphas = torch.linspace(0, 1, size.points)
    (x, y), (x_test, y_test) = ((a.to(cell.device), b.to(cell.device)) for a, b in (sample.train, sample.test.open()))
    seen = min(size.curve, len(x))
    shown = x[:seen], y[:seen]
    both = torch.cat([shown[0], x_test[: size.curve]]), torch.cat([shown[1], y_test[: size.curve]])

    def losses_and_errors(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wrong = (logits.argmax(1) != labels).double()
        return F.cross_entropy(logits[:seen], labels[:seen]), wrong[:seen].mean(), wrong[seen:].mean()

    def curves(batch: Pair, bn: Any) -> tuple[Tensor, Tensor, Tensor]:
        return evaluate_stacked(
            model, start, end, alphas, batch, criterion=losses_and_errors, bn=bn, bn_loader=[shown[0]]
        )

    end = model.state_dict()
    loss, error, test_error = curves(both, "reestimate")
    metrics = path_metrics(alphas, loss, errors=error)
    values: dict[str, Any] = {
        "barrier": metrics.barrier,
        "barrier_end": metrics.barrier_end,
        "gap": metrics.gap,
        "monotone": float(metrics.monotone),
        "alpha_half": metrics.alpha_half,
        "alpha_error": metrics.alpha_error,
        "area": metrics.area,
        "relative_barrier": metrics.relative_barrier,
        "curve": loss.nan_to_num(torch.nan, torch.nan, torch.nan),
        "test_error": test_error,
        "accuracy": accuracy(predict(model, x_test), y_test),
        "final_loss": float(loss[-1]),
        "distance": LinearPath(model, start, end, bn="final").distance,
        "trace": HessianOperator(model, F.cross_entropy, shown)
        .trace(size.signs, generator=cell.seeds.generator("noise", "trace"))
        .value,
    }
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        for bn in ("final", "batch"):
            values[f"{bn}_excess"] = path_metrics(alphas, curves(shown, bn)[0]).barrier - metrics.barrier
    return values
