from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell
from torchstone.data import load
from torchstone.tracks._early_stopping import best_epoch, fit_ce_keeping_best
from torchstone.tracks.noisy_labels import Problem, Setting, fit_ce
from torchstone.training import FileCheckpoint, accuracy, predict

DIGITS = load("digits").subset(torch.arange(500))
CELL = Cell("x", "sym40", 0, Seeds(3), Setting(labels={"sym40": "symmetric:0.4"}, epochs=30))
TASK = Problem(DIGITS)(CELL)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(fit: Any = fit_ce_keeping_best, **fields: Any) -> nn.Module:
    return fit(make_model, TASK.train, TASK.val, replace(CELL, **fields), lr=0.1)


def score(network: nn.Module) -> float:
    return accuracy(predict(network, TASK.val.x), TASK.val.y)


def test_the_best_epoch_on_the_validation_labels_is_found() -> None:
    seen: list[dict[str, Any]] = []
    network = trained(snapshot=lambda model: seen.append(copy.deepcopy(model.state_dict())))
    assert len(seen) == 30
    scores = []
    for state in seen:
        (at := make_model()).load_state_dict(state)
        scores.append(score(at))
    early = best_epoch(copy.deepcopy(network), TASK.train, TASK.val, CELL)
    assert score(early) == max(scores) > scores[-1]
    first = seen[scores.index(max(scores))]
    assert all(torch.equal(early.state_dict()[name], value) for name, value in first.items())


def test_the_training_itself_is_that_of_cross_entropy() -> None:
    ours, plain = trained(), trained(fit_ce)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_a_resumed_training_remembers_the_epochs_before(tmp_path: Any) -> None:
    class Stop(Exception):
        pass

    def stop_late(model: nn.Module) -> None:
        seen.append(model)
        if len(seen) == 29:
            raise Stop

    seen: list[nn.Module] = []
    checkpoint = FileCheckpoint(tmp_path / "run.pt")
    with pytest.raises(Stop):
        trained(checkpoint=checkpoint, snapshot=stop_late)
    resumed, whole = trained(checkpoint=checkpoint), trained()
    for a, b in ((resumed, whole), (best_epoch(resumed, *[None] * 3), best_epoch(whole, *[None] * 3))):  # pyright: ignore[reportArgumentType]
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
