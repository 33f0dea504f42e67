"""Early stopping by the validation labels, noisy as they are, out of a training that others use to its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.tracks._noisy_fits import MakeModel, fit_ce
from torchstone.training import accuracy, predict

__all__ = ["best_epoch", "fit_ce_keeping_best"]


def fit_ce_keeping_best(
    make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float = 0.05
) -> nn.Module:
    """Cross entropy to the end; the network remembers its weights from the epoch for :func:`best_epoch`."""
    best = _Best(val, cell)
    network = fit_ce(make_model, train, val, replace(cell, snapshot=best.look, checkpoint=best), lr=lr)
    # A plain attribute: it goes along with copies of the network, but is no part of its own state.
    network.best_weights = best.weights  # pyright: ignore[reportArgumentType]
    return network


def best_epoch(network: nn.Module, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    """The network as it was after the epoch with the best accuracy on the validation labels (the first of equals)."""
    weights: Any = network.best_weights
    network.load_state_dict(weights)
    return network


class _Best:
    """The best weights so far; as a checkpoint it keeps them beside the state of the training."""

    def __init__(self, val: TensorData, cell: Cell) -> None:
        self.weights: dict[str, Any] = {}
        self._score = -1.0
        self._val = val
        self._snapshot, self._inner = cell.snapshot, cell.checkpoint

    def look(self, model: nn.Module) -> None:
        score = accuracy(predict(model, self._val.x), self._val.y)
        if score > self._score:
            self._score = score
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self._snapshot(model)

    def load(self) -> dict[str, Any] | None:
        state = self._inner.load()
        if state is None:
            return None
        self._score, self.weights = state["best_score"], state["best_weights"]
        return state["training"]

    def save(self, state: dict[str, Any]) -> None:
        self._inner.save({"training": state, "best_score": self._score, "best_weights": self.weights})
