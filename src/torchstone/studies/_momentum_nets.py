"""Small networks under full-batch descent, many replicates at once: images of which some have a small margin, teachers.

Everything is binary, with classes -1 and 1 and the logistic loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.data import TensorData, load, random_split_indices
from torchstone.dynamics import DampenedSGD, small_margin_transform
from torchstone.models import MLP
from torchstone.models.seeding import seeded
from torchstone.training.stacked import stack

__all__ = ["Images", "NetProblem", "Teachers", "draw_images", "draw_teacher", "run_net", "small_cnn", "stack_nets"]

Pair = tuple[Tensor, Tensor]  # inputs and classes


@dataclass(frozen=True)
class Images:
    """Two classes of a data set of images; in the training part ``fraction`` shrink towards the mean.

    Args:
        cases: case -> what shrinking leaves of the distance from the mean.
        source: name of the data set.
        classes: the two.
        n: training images.
        n_test: test images at most.
        fraction: share of the images with small margin.
        pool: factor by which images are made smaller.
        steps: of full-batch descent.
    """

    cases: Mapping[str, float]
    source: str
    classes: tuple[int, int]
    n: int
    n_test: int
    fraction: float = 0.1
    pool: int = 1
    steps: int = 600


@dataclass(frozen=True)
class Teachers:
    """Gaussian inputs, labelled by a random teacher: linear, or with one hidden layer (cases: widths; 0 is linear)."""

    cases: Mapping[str, int]
    d: int = 30
    n: int = 500
    n_test: int = 5000
    width: int = 64
    steps: int = 1000


@dataclass(frozen=True, eq=False)
class NetProblem:
    """What the arms of a cell share: the network at its start, the training data, and test data by group."""

    net: nn.Module
    train: Pair
    test: Sealed[Mapping[str, Pair]]
    shares: Mapping[str, float] = field(default_factory=dict)
    small: Tensor | None = None


def draw_images(cell: Cell) -> NetProblem:
    """``shared`` of the experiments on images. Every test image is tried with both margins."""
    size: Images = cell.setting
    factor = size.cases[cell.case]
    images, classes = _pair(size.source, size.classes, size.pool)
    rest = min(size.n_test, len(images) - size.n)
    split = cell.seeds.generator("split")
    train, test = random_split_indices(len(images), (size.n, rest), generator=split, stratify=(classes > 0).long())
    mean, scale = images[train].mean(0), images[train].std()
    x, x_test = ((images[part] - mean) / scale for part in (train, test))
    origin = torch.zeros_like(mean)
    x, small = small_margin_transform(
        x, fraction=size.fraction, factor=factor, mean=origin, generator=cell.seeds.generator("split", "small")
    )
    shrunk, _ = small_margin_transform(x_test, fraction=1.0, factor=factor, mean=origin)
    groups: Mapping[str, Pair] = {"test_large": (x_test, classes[test]), "test_small": (shrunk, classes[test])}
    shares = {"test_large": 1 - size.fraction, "test_small": size.fraction}
    with seeded(cell.seeds.generator("init")):
        net = small_cnn(x.shape[-1])
    return NetProblem(net, (x, classes[train]), cell.seal(groups), shares, small)


def draw_teacher(cell: Cell) -> NetProblem:
    """``shared`` of the experiment on Gaussian inputs. The teacher's threshold makes the classes equally likely."""
    size: Teachers = cell.setting
    width = size.cases[cell.case]
    generator = cell.seeds.generator("split", cell.case)
    x = torch.randn(size.n + size.n_test, size.d, generator=generator)
    hidden = (width,) if width else ()
    teacher = MLP(size.d, 1, hidden=hidden, generator=cell.seeds.generator("noise", "teacher", cell.case))
    with torch.no_grad():
        score = teacher(x).squeeze(1)
    y = torch.where(score > score.median(), 1.0, -1.0)
    student = MLP(size.d, 1, hidden=(size.width,), generator=cell.seeds.generator("init"))
    test: Mapping[str, Pair] = {"test": (x[size.n :], y[size.n :])}
    return NetProblem(student, (x[: size.n], y[: size.n]), cell.seal(test), {"test": 1.0})


def small_cnn(side: int) -> nn.Module:
    """Two strided convolutions and a linear layer, without normalisation."""
    last = -(-side // 4)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * last * last, 1),
    )


def run_net(cell: Cell, **hyper: Any) -> Outcome:
    """``run`` of every arm: one replicate."""
    return stack_nets([cell], [hyper])[0]


def stack_nets(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of every arm: descend with each cell's own ``lr`` and ``momentum``.

    An outcome has the accuracies ``train``, ``test`` and, of images, those of both groups.
    """
    steps: int = cells[0].setting.steps
    device = cells[0].device
    problems: list[NetProblem] = [cell.shared() for cell in cells]
    x, y = (torch.stack([p.train[part] for p in problems]).to(device) for part in (0, 1))
    model = stack([p.net for p in problems]).to(device)
    lr, momentum = (torch.tensor([h[name] for h in hypers], dtype=torch.float64) for name in ("lr", "momentum"))
    optimizer = DampenedSGD(model.parameters(), lr, momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        _losses(model, x, y).sum().backward()
        optimizer.step()
        cells[0].tick()
    with torch.no_grad():
        loss, right = _losses(model, x, y).cpu(), (model(x).squeeze(-1) * y > 0).float().cpu()
    cost = {"steps": steps, "samples": steps * x.shape[1]}
    outcomes = []
    for i, (cell, problem, net) in enumerate(zip(cells, problems, model.unstack(), strict=True)):
        objective = -float(loss[i])
        if not loss[i].isfinite():
            outcomes.append(Outcome(cost=cost, diverged="the loss is no longer finite"))
        elif cell.tuning:
            outcomes.append(Outcome(objective=objective))
        else:
            values = {"train": right[i].mean()}
            if problem.small is not None:
                values["train_small"] = right[i][problem.small].mean()
            net = net.cpu()
            found = {name: _accuracy(net, *group) for name, group in problem.test.open().items()}
            overall = sum(problem.shares[name] * value for name, value in found.items())
            outcomes.append(Outcome({**values, **found, "test": overall}, objective=objective, cost=cost))
    return outcomes


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return -F.logsigmoid(y * model(x).squeeze(-1)).mean(1)


@torch.no_grad()
def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((net(x).squeeze(-1) * y > 0).float().mean())


def _pair(source: str, classes: tuple[int, int], pool: int) -> Pair:
    data = _known(source)
    kept = (data.y == classes[0]) | (data.y == classes[1])
    return F.avg_pool2d(data.x[kept], pool), torch.where(data.y[kept] == classes[1], 1.0, -1.0)


@lru_cache(maxsize=2)
def _known(name: str) -> TensorData:
    return load(name)
