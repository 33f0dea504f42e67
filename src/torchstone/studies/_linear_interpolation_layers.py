"""One layer at a time: how far a trained network depends on each, and starts of which only some layers are trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.data import random_split_indices
from torchstone.dynamics import evaluate_stacked, layerwise_paths, partial_init
from torchstone.studies._linear_interpolation_nets import CONDITIONS, Pair, Sizes, build, images, train
from torchstone.training import accuracy, predict

__all__ = ["LAYERS", "Pretrained", "Start", "Starts", "pretrain"]

LAYERS = ("conv1", "conv2", "conv3", "head")
CONDITION = CONDITIONS["momentum"]


@dataclass(frozen=True, eq=False)
class Pretrained:
    """What the arms of a cell share: a fresh network, its state, that of another one which saw other samples."""

    fresh: nn.Module
    trained: Mapping[str, Any]
    data: Pair
    test: Sealed[Pair]


def pretrain(cell: Cell) -> Pretrained:
    """``shared`` of the experiment: half of the training samples are for the layers that come trained."""
    size: Sizes = cell.setting
    data = images(size.source, size.pool)
    split = cell.seeds.generator("split")
    first, second, test = (
        (data.x[part], data.y[part])
        for part in random_split_indices(len(data), (size.train // 2, size.train // 2, size.test), generator=split)
    )
    other = build("cnn3", data.x.shape[1:], cell.seeds.generator("init", "pretrained"))
    order = cell.seeds.generator("order", "pretrained")
    (other,), _ = train(
        [other], [first], CONDITION, [order], epochs=2 * size.epochs, batch_size=size.batch_size, cell=cell
    )
    fresh = build("cnn3", data.x.shape[1:], cell.seeds.generator("init"))
    return Pretrained(fresh, other.state_dict(), second, cell.seal(test))


@dataclass(frozen=True)
class Starts:
    """``stacked`` of an arm: train from a start of which the named layers come trained, the others random.

    An outcome has the test ``accuracy``; for each layer the test error with that layer alone on its path,
    ``error_LAYER``, and back at its start, ``rewound`` (an array over layers); ``rewound_spread``, the largest of these
    minus the smallest.
    """

    layers: str = ""

    def __call__(self, cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Train all, then look at their layers one after another."""
        size: Sizes = cells[0].setting
        shared: list[Pretrained] = [cell.shared() for cell in cells]
        models = [copy.deepcopy(each.fresh) for each in shared]
        if self.layers:
            for model, each in zip(models, shared, strict=True):
                model.load_state_dict(partial_init(model, model.state_dict(), each.trained, self.layers))
        starts = [copy.deepcopy(model.state_dict()) for model in models]
        models, history = train(
            models,
            [each.data for each in shared],
            CONDITION,
            [cell.seeds.generator("order") for cell in cells],
            epochs=2 * size.epochs,
            batch_size=size.batch_size,
            cell=cells[0],
        )
        return [
            Outcome({} if reason else _layer_by_layer(model, start, each, cell), cost=history.cost, diverged=reason)
            for model, start, each, cell, reason in zip(models, starts, shared, cells, history.diverged, strict=True)
        ]


@dataclass(frozen=True)
class Start:
    """``run`` of an arm: the same for one cell."""

    layers: str = ""

    def __call__(self, cell: Cell, **hyper: Any) -> Outcome:
        """Train and look."""
        return Starts(self.layers)([cell], [hyper])[0]


def _layer_by_layer(model: nn.Module, start: Mapping[str, Any], shared: Pretrained, cell: Cell) -> dict[str, Any]:
    size: Sizes = cell.setting
    x, y = (part.to(cell.device) for part in shared.test.open())
    alphas = torch.linspace(0, 1, size.points)
    errors = {}
    for layer in LAYERS:
        logits = evaluate_stacked(model, start, model.state_dict(), alphas, x[: size.curve], parameters=layer)
        errors[f"error_{layer}"] = (logits.argmax(2) != y[: size.curve]).double().mean(1)
    rewound = []
    for path in layerwise_paths(model, start, model.state_dict(), LAYERS).values():
        with path.rewind() as without:
            rewound.append(1 - accuracy(predict(without, x), y))
    return {
        "accuracy": accuracy(predict(model, x), y),
        "rewound": torch.tensor(rewound),
        "rewound_spread": max(rewound) - min(rewound),
        **errors,
    }
