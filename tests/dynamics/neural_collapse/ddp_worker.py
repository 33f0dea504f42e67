"""One of two gloo processes; run by test_ddp.py as ``ddp_worker.py RANK DIRECTORY``."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from torchstone.dynamics.neural_collapse.meter import NeuralCollapseMeter


def main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    x, y, weight = torch.load(directory / "data.pt")
    meter = NeuralCollapseMeter(len(weight), x.shape[1])
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=20))
    part = slice(0, 30) if rank == 0 else slice(30, None)  # the last class is in the second part alone
    for rows, labels in zip(x[part].split(7), y[part].split(7), strict=True):
        meter.update(rows, labels)
    found = [meter.compute(weight) for _ in range(2)][1]  # computing twice must not count twice
    names = ("nc1", "nc2", "nc3", "counts", "means", "within")
    torch.save({name: getattr(found, name) for name in names} | {"own": meter.counts}, directory / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
