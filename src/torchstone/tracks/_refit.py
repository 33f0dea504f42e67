"""The winner of a comparison, trained on all data and saved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import fmean

from torch import nn

from torchstone.bench.identity import canonical_json
from torchstone.bench.result import Result
from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell
from torchstone.errors import TorchstoneError
from torchstone.tracks._measure import ModelMaker
from torchstone.tracks._noisy_data import Problem
from torchstone.tracks._trial import Trial

__all__ = ["refit_winner", "winner_of"]

NOT_ELIGIBLE = ("oracle", "control", "published")


def winner_of(result: Result) -> str:
    """The arm with the best mean accuracy over cases and replicates; a run that diverged counts as 0.

    Oracles, controls and published protocols cannot win: what they need or leak is not there when it matters.

    Raises:
        TorchstoneError: if no replicate is complete.
    """
    experiment = result.study.experiments[0]
    scores: dict[str, list[float]] = {}
    for row in result.rows.get(experiment.name, ()):
        for (arm, _), outcome in row.outcomes.items():
            if experiment.arms[arm].role not in NOT_ELIGIBLE:
                scores.setdefault(arm, []).append(0.0 if outcome.diverged else float(outcome.values["accuracy"]))
    if not scores:
        raise TorchstoneError("there is no winner to train: no replicate is complete")
    return max(scores, key=lambda arm: fmean(scores[arm]))


def refit_winner(result: Result, path: Path, device: str) -> Path:
    """Train the winner on all data and save its weights; see :func:`torchstone.tracks.noisy_labels.refit`."""
    experiment = result.study.experiments[0]
    name = winner_of(result)
    trial, problem = experiment.arms[name].run, experiment.shared
    if not (isinstance(trial, Trial) and isinstance(problem, Problem)):
        raise TorchstoneError(f"{result.study.name!r} is no comparison on the track noisy-labels")
    hyper = dict(result.tunings[experiment.name][name].hyper)
    setting = experiment.settings[result.scale]
    case = experiment.tuning_case
    seeds = Seeds(result.study.seed)
    data = problem.everything(setting, case)
    model = trial.model or setting.model
    make_model = ModelMaker(model, data.x.shape[1:], data.num_classes, generator=seeds.generator("init"), device=device)
    cell = Cell(experiment.name, case, 0, seeds, setting, device=device)
    predictor = trial.fit(make_model, data, data, cell, **hyper)
    if not isinstance(predictor, nn.Module):
        raise TorchstoneError(f"arm {name!r} gives a {type(predictor).__name__}, which has no weights to save")
    metadata = {
        "arm": name,
        "hyper": canonical_json(hyper),
        "model": canonical_json(model).strip('"'),
        "classes": json.dumps(data.class_names),
        "input_shape": json.dumps(list(data.x.shape[1:])),
        "labels": setting.labels[case],
        "data": experiment.data,
    }
    _save(predictor, path, metadata)
    return path


def _save(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write to a new file beside ``path``, which then takes its place: nobody ever sees half a file."""
    from safetensors.torch import save

    # Tied weights share memory, which the format does not know: each name gets a copy of its own.
    content = save(
        {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}, metadata
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
