"""The paper's own protocol in the study of momentum: CIFAR-10, VGG-19 and ResNet-18, from small batches to all images.

A step adds up the gradients of ``chunk`` images at a time, so that a full batch fits an accelerator; batch
normalisation sees a chunk. Learning rates are tuned on images held out from the training part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.study import Cell
from torchstone.data import TensorData, load, random_split_indices
from torchstone.dynamics import DampenedSGD
from torchstone.models import build
from torchstone.training import DivergedError, accuracy, predict

__all__ = ["BATCHES", "CASES", "NETS", "Cifar", "cifar10", "growth", "run_cifar", "vgg19"]

BATCHES = {"128": 128, "1024": 1024, "8192": 8192, "full": 0}


def vgg19(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The 16 convolutions of VGG-19 with batch normalisation, and one linear layer, as is usual on small images."""
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for width, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


NETS: dict[str, Any] = {"resnet18": "resnet18", "vgg19": vgg19}
CASES = tuple(f"{net}-{batch}" for net in NETS for batch in BATCHES)


@dataclass(frozen=True)
class Cifar:
    """Sizes. Images are neither augmented nor are learning rates scheduled."""

    epochs: int = 300
    chunk: int = 1000
    val_fraction: float = 0.1


def run_cifar(cell: Cell, *, lr: float, momentum: float) -> Outcome:
    """Train on the cell's ``shared()``, a :class:`~torchstone.data.TensorData` with test part."""
    size: Cifar = cell.setting
    net_name, _, batch_name = cell.case.partition("-")
    data: TensorData = cell.shared()
    shares = (1 - size.val_fraction, size.val_fraction)
    train, val = random_split_indices(len(data), shares, generator=cell.seeds.generator("split"), stratify=data.y)
    x, y = data.x[train].to(cell.device), data.y[train].to(cell.device)
    net = build(NETS[net_name], data.x.shape[1:], data.num_classes, generator=cell.seeds.generator("init"))
    net = net.to(cell.device)
    optimizer = DampenedSGD(net.parameters(), lr, momentum)
    order = cell.seeds.generator("order")
    steps = 0
    for epoch in range(size.epochs):
        loss = torch.zeros(())
        for batch in torch.randperm(len(y), generator=order).to(cell.device).split(BATCHES[batch_name] or len(y)):
            loss = _step(net, optimizer, x, y, batch, size.chunk)
            steps += 1
        if not loss.isfinite():
            raise DivergedError(f"the loss became {loss.item()} in epoch {epoch + 1}")
        cell.log("loss", loss.item(), epoch)
    objective = accuracy(predict(net, data.x[val]), data.y[val])
    if cell.tuning:
        return Outcome(objective=objective)
    test = cell.seal(data.test or data.subset(val)).open()
    values = {"train": accuracy(predict(net, x), y), "test": accuracy(predict(net, test.x), test.y)}
    return Outcome(values, objective=objective, cost={"steps": steps, "samples": size.epochs * len(y)})


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batch: Tensor, chunk: int) -> Tensor:
    optimizer.zero_grad()
    total = torch.zeros((), device=x.device)
    for part in batch.split(chunk):
        loss = F.cross_entropy(net(x[part]), y[part], reduction="sum") / len(batch)
        loss.backward()
        total += loss.detach()
    optimizer.step()
    return total


def cifar10(cell: Cell) -> TensorData:
    """``shared`` of the experiment."""
    return load("cifar10")


def growth(row: Row) -> Mapping[str, float]:
    """By how much the gap between momentum and none grows from one batch size to the next, mean over the networks."""
    gaps = [
        [
            float(row.value("test", "momentum", f"{net}-{batch}")) - float(row.value("test", "gd", f"{net}-{batch}"))
            for batch in BATCHES
        ]
        for net in NETS
    ]
    return {"growth": sum(gap[-1] - gap[0] for gap in gaps) / len(gaps) / (len(BATCHES) - 1)}
