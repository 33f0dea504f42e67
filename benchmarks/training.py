"""What the training loop costs over a loop written by hand: one step of a small net, in one process.

Run ``python -m benchmarks.training``. Both loops train the same net (64-256-128-10, batches of 128, SGD with momentum)
in the same order and end in the same weights, which is checked. They take turns, so that a busy machine slows both
alike; the ratio is the median over turns with a 95 % sign interval.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from scipy.stats import binom
from torch import nn

from torchstone.data import TensorData
from torchstone.models import MLP
from torchstone.training import fit, supervised

ROWS, BATCH, EPOCHS, TURNS = 12_800, 128, 3, 25


def setup() -> tuple[MLP, torch.optim.Optimizer, torch.Generator]:
    net = MLP(64, 10, generator=torch.Generator().manual_seed(1))
    sgd = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    return net, sgd, torch.Generator().manual_seed(2)


def by_hand(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    net, sgd, order = setup()
    criterion = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        for index in torch.randperm(ROWS, generator=order).split(BATCH):
            loss = criterion(net(x[index]), y[index])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    return net


def ours(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    net, sgd, order = setup()
    data = TensorData(x, y, tuple("0123456789"), "random")
    fit(net, data, supervised(nn.CrossEntropyLoss()), sgd, epochs=EPOCHS, batch_size=BATCH, generator=order)
    return net


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS, 64, generator=generator), torch.randint(10, (ROWS,), generator=generator)
    times: dict[str, list[float]] = {"by hand": [], "fit": []}
    for turn in range(TURNS):
        nets: dict[str, nn.Module] = {}
        arms = [("by hand", by_hand), ("fit", ours)]
        for name, arm in arms if turn % 2 else reversed(arms):
            start = time.perf_counter()
            nets[name] = arm(x, y)
            times[name].append(time.perf_counter() - start)
        pairs = zip(nets["by hand"].parameters(), nets["fit"].parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs), "the two loops must end in the same weights"
    steps = EPOCHS * ROWS / BATCH
    for name, seconds in times.items():
        print(f"{name:8} {median(seconds) / steps * 1e6:7.0f} us a step")
    ratios = sorted(b / a for a, b in zip(times["by hand"], times["fit"], strict=True))
    low = int(binom.ppf(0.025, TURNS, 0.5))
    print(f"fit / by hand: {median(ratios):.3f}  [{ratios[low]:.3f}, {ratios[TURNS - 1 - low]:.3f}]")


if __name__ == "__main__":
    main()
