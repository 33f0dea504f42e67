"""A training that is killed in its middle ends, when it is taken up again, in the very bits of one that was not."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.bench.arms import one_arm_study
from torchstone.bench import Cell, Outcome
from torchstone.bench.result import Result
from torchstone.bench.runner import Options, run_study
from torchstone.bench.store import Store
from torchstone.models.seeding import seeded
from torchstone.training import fit, supervised
from torchstone.training.loop import EpochEnd


@dataclass(frozen=True)
class Data:
    x: torch.Tensor
    y: torch.Tensor


def kill_once(epoch: int) -> None:
    """Kill this process at the end of epoch 3, before it is saved, the first time it is reached."""
    folder = os.environ.get("TORCHSTONE_TEST_KILLS")
    flag = Path(folder or "", "killed")
    if folder and epoch == 3 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Training:
    """Trains a small net with Adam and dropout."""

    def __call__(self, cell: Cell) -> Outcome:
        x = torch.randn(60, 4, generator=cell.seeds.generator("split"))
        with seeded(cell.seeds.generator("init")):
            net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

        def each_epoch(end: EpochEnd) -> Mapping[str, float]:
            kill_once(end.history.epochs)
            return {"process": float(os.getpid())}

        history = fit(
            net,
            Data(x, torch.arange(60).remainder(3)),
            supervised(nn.CrossEntropyLoss()),
            torch.optim.Adam(net.parameters(), lr=0.01),
            epochs=5,
            batch_size=7,
            generator=cell.seeds.generator("order"),
            noise=cell.seeds.generator("noise"),
            callbacks=[each_epoch],
            checkpoint=cell.checkpoint,
        )
        weights = torch.cat([parameter.detach().ravel() for parameter in net.parameters()])
        values = {"accuracy": history.curves["loss"][-1], "loss": history.curves["loss"], "weights": weights}
        return Outcome(values, cost={"processes": len(set(history.curves["process"]))})


def result(path: Path, executor: str) -> Result:
    with Store.open(path) as store:
        return run_study(one_arm_study(Training(), (1, 1)), store, Options(executor=executor))


def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHSTONE_TEST_KILLS", str(tmp_path))
    killed = result(tmp_path / "killed.db", "process")
    monkeypatch.delenv("TORCHSTONE_TEST_KILLS")
    undisturbed = result(tmp_path / "undisturbed.db", "inline")
    assert not killed.failures
    for row, other in zip(killed.rows["main"], undisturbed.rows["main"], strict=True):
        for name in ("weights", "loss"):
            assert np.array_equal(row.value(name, "mine", "default"), other.value(name, "mine", "default"))
        assert row.value("processes", "mine", "default") == 2
        assert other.value("processes", "mine", "default") == 1
    assert list((tmp_path / "checkpoints").iterdir()) == []
