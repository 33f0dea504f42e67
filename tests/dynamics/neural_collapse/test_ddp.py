"""Two gloo processes measure what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchstone.dynamics import nc_metrics


@pytest.mark.ddp
def test_two_processes_equal_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.arange(30) % 3, torch.arange(20) % 4])
    x, weight = torch.randn(50, 5, generator=generator).double() + y[:, None], torch.randn(4, 5, generator=generator)
    torch.save((x, y, weight), tmp_path / "data.pt")
    worker = Path(__file__).with_name("ddp_worker.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), tmp_path], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    alone = nc_metrics(x, y, weight)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert int(found.pop("own").sum()) == (30, 20)[rank]
        for name, value in found.items():
            torch.testing.assert_close(value, getattr(alone, name), rtol=1e-9, atol=1e-12)
