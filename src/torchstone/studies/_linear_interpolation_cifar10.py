"""The paper's own scale: a ResNet-18 on CIFAR-10, point after point and block after block, on a GPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.data import TensorData, load, random_split_indices, symmetric_noise
from torchstone.dynamics import LinearPath, adversarial_init, layerwise_paths, path_metrics
from torchstone.errors import DivergedError
from torchstone.models import build
from torchstone.studies._linear_interpolation_nets import Condition
from torchstone.tracks._noisy_fits import crop_and_flip
from torchstone.training import accuracy, fit, predict, supervised
from torchstone.training.curvature import HessianOperator

__all__ = ["WAYS", "Large", "Split", "draw_large", "run_large"]

WAYS = {
    "wd-0": Condition(0.1, 0.9),
    "wd-0.0001": Condition(0.1, 0.9, weight_decay=1e-4),
    "wd-0.0005": Condition(0.1, 0.9, weight_decay=5e-4),
    "adam": Condition(0.001, adam=True),
    "noisy": Condition(0.1, 0.9, weight_decay=5e-4, label_noise=0.4),
    "adversarial": Condition(0.1, 0.9, weight_decay=5e-4, adversarial=True),
}


@dataclass(frozen=True)
class Large:
    """How much is computed; the learning rate falls to a tenth at half and at three quarters of the epochs."""

    source: str = "cifar10"
    model: str = "resnet18"
    epochs: int = 120
    random_epochs: int = 120
    batch_size: int = 128
    curve: int = 5000
    statistics: int = 2000
    points: int = 51
    signs: int = 20


@dataclass(frozen=True, eq=False)
class Split:
    """The official parts; which training images losses are measured on is drawn."""

    train: TensorData
    shown: Tensor
    test: Sealed[TensorData]


def draw_large(cell: Cell) -> Split:
    """``shared`` of the experiment."""
    size: Large = cell.setting
    data = load(size.source)
    test = data.test
    if test is None:
        raise ValueError(f"data set {size.source!r} has no official test part")
    if rate := WAYS[cell.case].label_noise:
        noise = cell.seeds.generator("noise", "labels")
        labels = symmetric_noise(data.y, rate=rate, num_classes=data.num_classes, own_class=False, generator=noise)
        data = data.with_labels(labels)
    (shown,) = random_split_indices(len(data), (size.curve,), generator=cell.seeds.generator("split"))
    return Split(data.to(cell.device), shown, cell.seal(test.to(cell.device)))


def run_large(cell: Cell) -> Outcome:
    """``run`` of the arm: an outcome as of the small networks, with the largest effect of rewinding one block."""
    size: Large = cell.setting
    split: Split = cell.shared()
    way, data = WAYS[cell.case], split.train
    model = build(size.model, data.x.shape[1:], data.num_classes, generator=cell.seeds.generator("init"))
    model.to(cell.device)
    if way.adversarial:
        chance = cell.seeds.generator("noise", "random labels")
        loader = data.x.split(size.batch_size)
        state = adversarial_init(model, loader, data.num_classes, epochs=size.random_epochs, generator=chance)
        model.load_state_dict(state)
    start = copy.deepcopy(model.state_dict())
    optimizer = way.optimizer(model.parameters())
    try:
        history = fit(
            model,
            data,
            supervised(F.cross_entropy),
            optimizer,
            epochs=size.epochs,
            batch_size=size.batch_size,
            generator=cell.seeds.generator("order"),
            augment=crop_and_flip,
            augment_generator=cell.seeds.generator("augment"),
            scheduler=MultiStepLR(optimizer, [size.epochs // 2, size.epochs * 3 // 4]),
        )
    except DivergedError as error:
        return Outcome(diverged=str(error))
    values = _look(model, start, split, cell)
    return Outcome(values | {"early_loss": history.curves["loss"][0]}, cost=history.cost)


def _look(model: nn.Module, start: dict[str, Any], split: Split, cell: Cell) -> dict[str, Any]:
    size: Large = cell.setting
    end = model.state_dict()
    alphas = torch.linspace(0, 1, size.points)
    x, y = (part[split.shown.to(part.device)] for part in (split.train.x, split.train.y))
    test = split.test.open()
    loader = x[: size.statistics].split(500)

    def loss_and_errors(net: nn.Module) -> tuple[float, float, float]:
        logits = predict(net, x)
        return (
            float(F.cross_entropy(logits, y)),
            1 - accuracy(logits.nan_to_num(), y),
            1 - accuracy(predict(net, test.x).nan_to_num(), test.y),
        )

    def barrier(bn: Any) -> float:
        path = LinearPath(model, start, end, bn=bn)
        return path_metrics(alphas, path.evaluate(lambda net: _mean_loss(net, x, y), alphas)).barrier

    path = LinearPath(model, start, end, bn_loader=loader)
    loss, error, test_error = path.evaluate(loss_and_errors, alphas).unbind(1)
    metrics = path_metrics(alphas, loss, errors=error)
    groups = [f"body\\.{number}" for number, block in enumerate(model.get_submodule("body").children())
              if any(True for _ in block.parameters())]  # fmt: skip
    rewound = []
    for layer in layerwise_paths(model, start, end, [*groups, "head"], bn_loader=loader).values():
        with layer.rewind() as net:
            rewound.append(1 - accuracy(predict(net, test.x).nan_to_num(), test.y))
    batches = list(zip(x[:1000].split(250), y[:1000].split(250), strict=True))
    trace = HessianOperator(model, F.cross_entropy, batches, chunk_size=1).trace(
        size.signs, generator=cell.seeds.generator("noise", "trace")
    )
    return {
        "barrier": metrics.barrier,
        "gap": metrics.gap,
        "alpha_half": metrics.alpha_half,
        "alpha_error": metrics.alpha_error,
        "area": metrics.area,
        "final_excess": barrier("final") - metrics.barrier,
        "batch_excess": barrier("batch") - metrics.barrier,
        "curve": loss.nan_to_num(torch.nan, torch.nan, torch.nan),
        "test_error": test_error,
        "accuracy": 1 - float(test_error[-1]),
        "final_loss": float(loss[-1]),
        "distance": path.distance,
        "trace": trace.value,
        "rewound": torch.tensor(rewound),
        "rewound_spread": max(rewound) - min(rewound),
    }


def _mean_loss(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(F.cross_entropy(predict(net, x), y))
