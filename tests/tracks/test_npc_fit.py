from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell
from torchstone.data import TensorData, load
from torchstone.models import MLP
from torchstone.noise import NoisyPredictionCalibrator
from torchstone.tracks._npc_fit import fit_npc, repair_npc
from torchstone.tracks._post_hoc import PostHoc
from torchstone.tracks.noisy_labels import Problem, Setting, fit_ce

DIGITS = load("digits").subset(torch.arange(300))
SETTING = Setting(labels={"sym": "symmetric:0.4"}, epochs=8, batch_size=32)
CELL = Cell("x", "sym", 0, Seeds(3), SETTING)
QUICK: dict[str, Any] = {"npc_epochs": 2}


def net() -> MLP:
    return MLP(64, 10, hidden=(16,), generator=torch.Generator().manual_seed(0))


def test_fit_is_cross_entropy_and_then_the_repair() -> None:
    task = Problem(DIGITS)(CELL)
    network = fit_ce(net, task.train, task.val, CELL, lr=0.1)
    seen: list[Any] = []
    whole = fit_npc(net, task.train, task.val, replace(CELL, snapshot=seen.append), lr=0.1, **QUICK)
    parts = repair_npc(network, task.train, task.val, CELL, **QUICK)
    assert torch.equal(whole.predict_proba(task.val.x), parts.predict_proba(task.val.x))
    assert not seen  # the curve is not that of the network which is then repaired


def test_the_repair_looks_at_no_label() -> None:
    task = Problem(DIGITS)(CELL)
    network = fit_ce(net, task.train, task.val, CELL, lr=0.1)
    other = task.train.with_labels((task.train.y + 1) % 10)
    plain, blind = (repair_npc(network, part, part, CELL, **QUICK) for part in (task.train, other))
    assert torch.equal(plain.predict_proba(task.val.x), blind.predict_proba(task.val.x))


@pytest.mark.parametrize(("samples", "references"), [(240, 24), (2000, 128)])
def test_few_samples_still_give_enough_references(
    monkeypatch: pytest.MonkeyPatch, samples: int, references: int
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(NoisyPredictionCalibrator, "fit", lambda self, x, **options: seen.update(options))
    train = TensorData(torch.rand(samples, 64), torch.zeros(samples, dtype=torch.int64), DIGITS.class_names, "x")
    repair_npc(net(), train, train, CELL)
    assert seen["reference_batch"] == references


@pytest.mark.parametrize("number", [1, 7, 12])
def test_it_runs_on_a_handful_of_samples_and_one_predicted_class(number: int) -> None:
    train = TensorData(torch.zeros(number, 64), torch.arange(number) % 10, DIGITS.class_names, "few")
    predictor = repair_npc(net(), train, train, CELL, **QUICK)
    assert predictor(train.x).isfinite().all()


def test_as_an_arm_it_counts_what_it_costs() -> None:
    task = Problem(DIGITS)(CELL)
    cell = replace(CELL, shared=lambda: task)
    setting = replace(SETTING, model="mlp", epochs=2)
    outcome = PostHoc(repair_npc)(replace(cell, setting=setting), lr=0.1, **QUICK)
    # A look at all samples, and two epochs.
    assert outcome.cost["repair_forwards"] == 3 * len(task.train)
    assert outcome.cost["forwards"] == 5 * len(task.train)
    assert 0 <= outcome.values["accuracy"] <= 1
