"""Two gloo processes train like one: losses, gradients, rows and targets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.ddp

Results = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[Results, Results]:
    """What the two processes saved, in order of rank."""
    directory = tmp_path_factory.mktemp("ddp")
    worker = Path(__file__).with_name("ddp_worker.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), directory], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return torch.load(directory / "0.pt"), torch.load(directory / "1.pt")


@pytest.mark.parametrize("kind", ["code", "paper", "elr"])
def test_two_processes_equal_one(results, kind):
    first, second = (dict(result[kind]) for result in results)
    alone = dict(results[0][f"{kind} alone"])
    torch.testing.assert_close((first.pop("loss") + second.pop("loss")) / 2, alone.pop("loss"))
    assert set(first) == set(second) == set(alone)
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)


def test_processes_may_hold_unequal_numbers_of_rows(results):
    for result in results:
        ragged = result["ragged"]
        assert ragged["row 0"].tolist() == [[1.0, 1.0]] * 3
        assert ragged["row 1"].shape == (0, 2)
        torch.testing.assert_close(ragged["mean"], results[0]["ragged"]["alone"] / 2)
        assert ragged["touched"].tolist() == [2]
        assert ragged["labels"].tolist() == [-1, -1, 1, -1]
