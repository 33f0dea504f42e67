"""Linear interpolation: all points in one pass, against a loop over points, as the package loss-landscapes has it.

Run ``python -m benchmarks.linear_interpolation``. The peer copies both networks, adds a step to the parameters of the
first again and again, and evaluates it each time on one batch; point 0 is left out, buffers stay as they were at the
start. This is written here from its description, with the same 25 points for all. ``LinearPath`` also restores the
model after each point. The arms take turns, so that a busy machine slows all alike; ratios are medians over turns with
a 95 % sign interval. The last columns are the largest distances of a loss from that of ``LinearPath``, with final
running statistics: the peer's are those of the start.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.sop import ratio
from torchstone.dynamics import LinearPath, evaluate_stacked
from torchstone.models import MLP, SmallCNN, StridedCNN
from torchstone.models.seeding import seeded

POINTS, TURNS = 25, 12
ALPHAS = torch.arange(1, POINTS + 1) / POINTS
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "MLP 64-48-48-10": (lambda: MLP(64, 10, hidden=(48, 48)), (64,), (20, 100, 500)),
    "MLP 64-48-...-48-10": (lambda: MLP(64, 10, hidden=(48,) * 6), (64,), (20, 100, 500)),
    "MLP 784-256-128-10": (lambda: MLP(784, 10), (784,), (20, 100, 500)),
    "CNN 8-16, 8x8": (lambda: SmallCNN(1, 10, width=8), (1, 8, 8), (20, 100, 500)),
    "CNN 8-16-32 + BN, 8x8": (lambda: StridedCNN(1, 10, width=8), (1, 8, 8), (20, 100, 500)),
    "CNN 32-64, 28x28": (lambda: SmallCNN(1, 10, width=32), (1, 28, 28), (20,)),
}


def peer(start: nn.Module, end: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    moving, fixed = copy.deepcopy(start), copy.deepcopy(end)
    steps = [(b - a) / POINTS for a, b in zip(moving.parameters(), fixed.parameters(), strict=True)]
    losses = []
    with torch.no_grad():
        for _ in range(POINTS):
            for parameter, step in zip(moving.parameters(), steps, strict=True):
                parameter.add_(step)
            losses.append(F.cross_entropy(moving(x), y))
    return torch.stack(losses)


def path(start: nn.Module, end: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    line = LinearPath(end, start.state_dict(), end.state_dict(), bn="final")
    return line.evaluate(lambda model: F.cross_entropy(model(x), y), ALPHAS)


def stacked(start: nn.Module, end: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    states = start.state_dict(), end.state_dict()
    return evaluate_stacked(end, *states, ALPHAS, (x, y), criterion=F.cross_entropy, bn="final")


def main(turns: int = TURNS) -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, float32, {POINTS} points; median ms of a curve")
    head = ("", "batch", "peer", "path", "stacked", "peer / stacked", "path / stacked", "off: stacked", "peer")
    print("{:<24} {:>5} {:>7} {:>7} {:>7}  {:<20} {:<20} {:>12} {:>8}".format(*head))
    for name, (make, shape, batches) in MODELS.items():
        with seeded(torch.Generator().manual_seed(0)):
            start, end = make(), make()
            end(torch.randn(64, *shape))  # running statistics of its own
        start.eval()
        end.eval()
        for batch in batches:
            generator = torch.Generator().manual_seed(1)
            x, y = torch.randn(batch, *shape, generator=generator), torch.arange(batch) % 10
            seconds: dict[str, list[float]] = {"peer": [], "path": [], "stacked": []}
            found: dict[str, Tensor] = {}
            for turn in range(turns + 1):
                for arm, run in {"peer": peer, "path": path, "stacked": stacked}.items():
                    before = time.perf_counter()
                    found[arm] = run(start, end, x, y)
                    if turn:  # the first warms up
                        seconds[arm].append(time.perf_counter() - before)
            ms = {arm: f"{1e3 * median(values):.3g}" for arm, values in seconds.items()}
            off = {arm: f"{float((losses - found['path']).abs().max()):.0e}" for arm, losses in found.items()}
            print(
                f"{name:<24} {batch:>5} {ms['peer']:>7} {ms['path']:>7} {ms['stacked']:>7}  "
                f"{ratio(seconds['peer'], seconds['stacked']):<20} {ratio(seconds['path'], seconds['stacked']):<20} "
                f"{off['stacked']:>12} {off['peer']:>8}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
