"""One method as an arm of a comparison on noisy labels: train it, then score its predictor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.tracks._measure import Curve, Meter, ModelMaker, TrialCheckpoint, logits_of
from torchstone.tracks._noisy_data import Task
from torchstone.training import accuracy, auc

__all__ = ["BestEpoch", "Trial", "Watched", "ignore", "outcome_of", "watched"]


@dataclass(frozen=True)
class Trial:
    """``run`` of an arm: trains with ``fit`` and scores the predictor on test data that ``fit`` never gets.

    The outcome has ``accuracy`` on the clean test samples after the last epoch; ``best_accuracy``, the best over all
    epochs, which nobody could have picked without those samples; ``memorised``, the share of the wrongly labelled
    training samples for which the predictor gives the wrong label back; and ``noise_auc``, how well the predictor's
    ``noise_score`` tells wrong labels from right ones. The last two are NaN where nobody knows which labels are wrong.
    Counted costs are ``steps``, ``forwards`` (samples through the network) and ``parameters``.

    Args:
        fit: ``fit(make_model, train, val, cell, **hyper) -> predictor``.
        model: the user's own model factory; ``None`` for the model that the setting names.
    """

    fit: Callable[..., Any]
    model: Callable[..., Any] | None = None

    def __call__(self, cell: Cell, **hyper: Any) -> Outcome:
        """Train and score; while tuning, return the accuracy on the validation labels alone."""
        task: Task = cell.shared()
        key = (self, repr(sorted(hyper.items())))
        if key not in task.done:
            task.done[key] = self._run(cell, task, hyper)
        return task.done[key]

    def _run(self, cell: Cell, task: Task, hyper: Mapping[str, Any]) -> Outcome:
        work = watched(cell, task, self.model)
        with work.meter.counting_steps():
            predictor = self.fit(work.make_model, task.train, task.val, work.cell, **hyper)
        return outcome_of(predictor, cell, task, work, work.meter.cost)


@dataclass(frozen=True)
class BestEpoch:
    """Oracle: the accuracy that ``trial`` would have had, had it been stopped at its best epoch on the test data.

    It reads the curve of the same training where another arm of the cell has done it already.
    """

    trial: Trial

    def __call__(self, cell: Cell, **hyper: Any) -> Outcome:
        """The outcome of ``trial``, with the best accuracy in the place of the last."""
        outcome = self.trial(cell, **hyper)
        return replace(outcome, values={"accuracy": outcome.values["best_accuracy"]})


@dataclass(frozen=True, eq=False)
class Watched:
    """A method at work: what it is given, and what the bench counts and draws meanwhile."""

    cell: Cell
    make_model: ModelMaker
    meter: Meter
    curve: Curve


def watched(cell: Cell, task: Task, model: Callable[..., Any] | None = None, meter: Meter | None = None) -> Watched:
    """What a method may see of ``cell``: no test data and no right labels; ``model`` as for :class:`Trial`."""
    meter = meter or Meter()
    curve = Curve(
        "test_accuracy", lambda predictor: _score(predictor, task.test.open(), task, cell.device, meter), cell.log
    )
    make_model = ModelMaker(
        model or cell.setting.model,
        task.train.x.shape[1:],
        task.train.num_classes,
        generator=cell.seeds.generator("init"),
        device=cell.device,
        meter=meter,
    )
    own = replace(
        cell,
        shared=_nothing,
        snapshot=ignore if cell.tuning else curve,
        checkpoint=TrialCheckpoint(cell.checkpoint, meter, curve),
    )
    return Watched(own, make_model, meter, curve)


def outcome_of(predictor: Any, cell: Cell, task: Task, work: Watched, cost: Mapping[str, float]) -> Outcome:
    """Score a predictor; while tuning, on the validation labels alone."""
    score = partial(_score, task=task, device=cell.device, meter=work.meter)
    objective = score(predictor, task.val)
    if cell.tuning:
        return Outcome(objective=objective, cost=cost)
    final = score(predictor, task.test.open())
    values = {
        "accuracy": final,
        "best_accuracy": max([final, *work.curve.points]),
        **_label_values(predictor, task, cell.device, work.meter),
    }
    return Outcome(values, objective=objective, cost=cost)


def _score(predictor: Any, data: TensorData, task: Task, device: str, meter: Meter) -> float:
    with meter.paused():
        return accuracy(logits_of(predictor, data.x, task.train.num_classes, device=device), data.y)


def _label_values(predictor: Any, task: Task, device: str, meter: Meter) -> dict[str, float]:
    """How much of the wrong labels was learnt, and whether the method can tell which they are; NaN if unknown."""
    unknown = {"memorised": math.nan, "noise_auc": math.nan}
    truth = task.truth.open()
    if truth is None:
        return unknown
    given = task.train.y
    wrong = given != truth
    if not wrong.any():
        return unknown
    with meter.paused():
        predicted = logits_of(predictor, task.train.x[wrong], task.train.num_classes, device=device).argmax(1)
    memorised = float((predicted == given[wrong]).double().mean())
    return {"memorised": memorised, "noise_auc": _noise_auc(getattr(predictor, "noise_score", None), wrong)}


def _noise_auc(score: Any, wrong: Tensor) -> float:
    if score is None or wrong.all():
        return math.nan
    score = torch.as_tensor(score).detach().double().cpu()
    if score.shape != wrong.shape:
        raise ValueError(
            f"noise_score of a predictor must have one number per training sample, shape {tuple(wrong.shape)}, but has "
            f"{tuple(score.shape)}"
        )
    return auc(score, wrong.cpu())


def _nothing() -> None:
    """``cell.shared`` of a method: what the arms share holds right labels and test data."""


def ignore(predictor: Any) -> None:
    """``cell.snapshot`` where no learning curve is wanted, as while an arm is tuned."""
