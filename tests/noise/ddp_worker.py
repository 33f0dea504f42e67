"""One of two gloo processes; run by test_ddp.py as ``ddp_worker.py RANK DIRECTORY``. Rank 0 also trains alone."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from torchstone.noise import EarlyLearningRegularization, SparseOverparamLoss
from torchstone.noise._batch import all_gather_rows

SAMPLES, CLASSES, BATCH = 10, 3, 4


def average_gradients(model: torch.nn.Module, world: int) -> None:
    """What DistributedDataParallel does; it and torch.optim take a second to load, so this file does without."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= world


@torch.no_grad()
def descend(rates: dict[torch.Tensor, float]) -> None:
    """A step of plain SGD."""
    for parameter, lr in rates.items():
        assert parameter.grad is not None
        parameter.add_(parameter.grad, alpha=-lr)
        parameter.grad = None


def train(kind: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Six steps on batches dealt out anew each time, one of which names a sample twice."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    model = torch.nn.Linear(5, CLASSES).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    rates: dict[torch.Tensor, float] = dict.fromkeys(model.parameters(), 0.1)
    if kind == "elr":
        criterion = EarlyLearningRegularization(SAMPLES, CLASSES, dtype=torch.float64)
    else:
        criterion = SparseOverparamLoss(
            SAMPLES, CLASSES, variant=kind, init_std=0.3, dtype=torch.float64, generator=generator
        )
        rates |= {criterion.u: 2.0, criterion.v: 3.0}
    losses, gradients = [], []
    for step in range(6):
        index = torch.randperm(SAMPLES, generator=generator)[:BATCH]
        if step == 3:
            index[-1] = index[0]
        index = index[rank * BATCH // world : (rank + 1) * BATCH // world]
        loss = criterion(model(x[index]), y[index], index)
        loss.backward()
        if world > 1:
            average_gradients(model, world)
        if isinstance(criterion, EarlyLearningRegularization):
            if world > 1:
                criterion.synchronize_targets(index)
        else:
            index = criterion.synchronize_gradients() if world > 1 else index
            assert criterion.v.grad is not None
            gradients.append(criterion.v.grad.to_dense())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        descend(rates)
        if kind == "paper" and isinstance(criterion, SparseOverparamLoss):
            criterion.project_(index)
        losses.append(loss.detach())
    results = {f"gradient {number}": gradient for number, gradient in enumerate(gradients)}
    return {"loss": torch.stack(losses), **results, **model.state_dict(), **criterion.state_dict()}


def ragged(rank: int) -> dict[str, torch.Tensor]:
    """Exchange of unequal numbers of rows, and of gradients that only rank 0 has."""
    rows = all_gather_rows(torch.full((3 * (1 - rank), 2), 1.0 + rank))
    criterion = SparseOverparamLoss(4, 2, init_std=0.3, generator=torch.Generator().manual_seed(0))
    if rank == 0:
        criterion(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([2])).backward()
        assert criterion.v.grad is not None
        alone = criterion.v.grad.to_dense()
    else:
        alone = torch.zeros(0)
    touched = criterion.synchronize_gradients()
    assert criterion.v.grad is not None
    gradient = criterion.v.grad.to_dense()
    return {
        "row 0": rows[0],
        "row 1": rows[1],
        "alone": alone,
        "mean": gradient,
        "touched": touched,
        "labels": criterion.labels,
    }


def main(rank: int, directory: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "index names a sample twice")
    torch.set_num_threads(1)
    kinds = ("code", "paper", "elr")
    results = {f"{kind} alone": train(kind, 0, 1) for kind in kinds if rank == 0}
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=20))
    results |= {kind: train(kind, rank, 2) for kind in kinds} | {"ragged": ragged(rank)}
    torch.save(results, directory / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
