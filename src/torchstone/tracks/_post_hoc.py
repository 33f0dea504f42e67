"""Methods that start from a trained network, as arms of a comparison on noisy labels: it is trained once per cell."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.tracks._measure import Meter
from torchstone.tracks._noisy_data import Task
from torchstone.tracks._noisy_fits import fit_ce
from torchstone.tracks._trial import ignore, outcome_of, watched

__all__ = ["PostHoc", "as_trained"]


@dataclass(frozen=True)
class PostHoc:
    """``run`` of an arm that repairs a trained network, and scores what comes out as ``Trial`` does.

    All arms of a cell with the same ``train`` and the same ``lr`` start from copies of one network. Counted costs are
    those of training and repair together; ``repair_forwards`` are those of the repair alone. Learning curve and
    ``best_accuracy`` are those of the predictors that the repair shows to ``cell.snapshot``, if any.

    Args:
        repair: ``repair(network, train, val, cell, **hyper) -> predictor``; the network is the repair's own copy.
        train: ``train(make_model, train, val, cell, lr=...) -> network``.
        model: the user's own model factory; ``None`` for the model that the setting names.
        clean_val: give the repair, not the training, the right labels of the validation samples: for oracles.
    """

    repair: Callable[..., Any]
    train: Callable[..., nn.Module] = fit_ce
    model: Callable[..., Any] | None = None
    clean_val: bool = False

    def __call__(self, cell: Cell, *, lr: float, **hyper: Any) -> Outcome:
        """Train, unless another arm has, repair and score; while tuning, on the validation labels alone."""
        task: Task = cell.shared()
        key = (self.train, self.model, lr)
        if key not in task.done:
            task.done[key] = self._train(cell, task, lr)
        network, meter, trained = task.done[key]
        # The checkpoint of the cell holds the state of the training.
        work = watched(replace(cell, checkpoint=_Nowhere()), task, self.model, meter)
        before = meter.cost
        with meter.counting_steps():
            predictor = self.repair(copy.deepcopy(network), task.train, self._val(task), work.cell, **hyper)
        repair = {name: value - before[name] for name, value in meter.cost.items()}
        cost = {name: trained[name] + repair[name] for name in trained}
        return outcome_of(predictor, cell, task, work, {**cost, "repair_forwards": repair["forwards"]})

    def _val(self, task: Task) -> TensorData:
        truth = task.val_truth.open() if self.clean_val else task.val.y
        if truth is None:
            raise ValueError("nobody knows the right labels of the validation samples, which clean_val asks for")
        return task.val.with_labels(truth)

    def _train(self, cell: Cell, task: Task, lr: float) -> tuple[nn.Module, Meter, dict[str, float]]:
        work = watched(cell, task, self.model)
        quiet = replace(work.cell, snapshot=ignore)
        with work.meter.counting_steps():
            network = self.train(work.make_model, task.train, task.val, quiet, lr=lr)
        return network, work.meter, work.meter.cost


def as_trained(network: nn.Module, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    """The repair that repairs nothing: the trained network with its softmax layer."""
    return network


class _Nowhere:
    def load(self) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        return None
