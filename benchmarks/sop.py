"""SOP: time of a step and memory, row-sliced updates of u and v against dense ones, and against cross entropy.

Run ``python -m benchmarks.sop``. A step is the loss of 128 given logits, its gradient, and the update of u and v; the
network is left out. The arms take turns (cross entropy, sliced, dense, cross entropy, ...) on the same parameters, so
that a busy machine slows all of them alike. Ratios are medians over turns with a 95 % sign interval.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
import torch.nn.functional as F
from scipy.stats import binom

from torchstone.noise import SparseOverparamLoss, sparse_overparam_loss

BATCH = 128
SIZES = ((50_000, 100), (50_000, 1_000), (1_280_000, 100), (1_280_000, 1_000))
SECONDS = 6.0  # for the turns of one size
TURNS = (6, 200)

Arm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], int]


def arms(criterion: SparseOverparamLoss) -> dict[str, Arm]:
    """One step of each arm; returns the bytes of the gradients of u and v."""
    optimizer = torch.optim.SGD(criterion.param_groups(10.0, 10.0))
    u, v = criterion.u, criterion.v

    def update(loss: torch.Tensor) -> int:
        loss.backward()
        size = sum(gradient_bytes(p.grad) for p in (u, v) if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        return size

    def cross_entropy(logits: torch.Tensor, target: torch.Tensor, index: torch.Tensor) -> int:
        F.cross_entropy(logits, target).backward()
        return 0

    def sliced(logits: torch.Tensor, target: torch.Tensor, index: torch.Tensor) -> int:
        return update(criterion(logits, target, index))

    def dense(logits: torch.Tensor, target: torch.Tensor, index: torch.Tensor) -> int:
        return update(sparse_overparam_loss(logits, target, u[index], v[index]))

    return {"cross entropy": cross_entropy, "sliced": sliced, "dense": dense}


def gradient_bytes(gradient: torch.Tensor) -> int:
    parts = (gradient._indices(), gradient._values()) if gradient.is_sparse else (gradient,)
    return sum(part.numel() * part.element_size() for part in parts)


def batches(samples: int, classes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    while True:
        index = torch.randperm(samples, generator=generator)[:BATCH]
        yield torch.randn(BATCH, classes, generator=generator, requires_grad=True), labels[index], index


def measure(samples: int, classes: int, names: tuple[str, ...]) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each turn and bytes of gradient, by arm."""
    criterion = SparseOverparamLoss(samples, classes, generator=torch.Generator().manual_seed(0))
    steps = {name: arm for name, arm in arms(criterion).items() if name in names}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    gradients: dict[str, int] = {}
    source = batches(samples, classes)
    start = time.perf_counter()
    for turn in range(TURNS[1]):
        batch = next(source)
        for name, step in steps.items():
            before = time.perf_counter()
            gradients[name] = step(*batch)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - before)
        if turn >= TURNS[0] and time.perf_counter() - start > SECONDS:
            break
    return seconds, gradients


def ratio(slow: list[float], fast: list[float]) -> str:
    """Median of the paired ratios with its 95 % sign interval."""
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    cut = int(binom.ppf(0.025, len(ratios), 0.5))
    low = max(cut - 1, 0)
    return f"{median(ratios):.3g} [{ratios[low]:.3g}, {ratios[-1 - low]:.3g}]"


def available_bytes() -> int:
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, batch {BATCH}, float32; median ms a step, MB = 10^6 bytes")
    head = (
        "N",
        "C",
        "u,v MB",
        "grad MB sliced",
        "dense",
        "CE ms",
        "sliced ms",
        "dense ms",
        "dense/sliced",
        "sliced/CE",
    )
    print("{:>9} {:>5} {:>7} {:>15} {:>6} {:>6} {:>9} {:>9}  {:<22} {}".format(*head))
    for samples, classes in SIZES:
        state = 4 * samples * (classes + 1)
        fits = 2.1 * state < available_bytes()
        if 1.1 * state > available_bytes():
            print(f"{samples:>9} {classes:>5} {state / 1e6:>7.0f} u and v do not fit")
            continue
        names = ("cross entropy", "sliced", "dense") if fits else ("cross entropy", "sliced")
        seconds, gradients = measure(samples, classes, names)
        ms = {name: f"{1e3 * median(values):.3g}" for name, values in seconds.items()}
        dense_size = f"{gradients['dense'] / 1e6:.0f}" if fits else f"{state / 1e6:.0f}"
        print(
            f"{samples:>9} {classes:>5} {state / 1e6:>7.0f} {gradients['sliced'] / 1e6:>15.3f} {dense_size:>6} "
            f"{ms['cross entropy']:>6} {ms['sliced']:>9} {ms.get('dense', 'no fit'):>9}  "
            f"{ratio(seconds['dense'], seconds['sliced']) if fits else '-':<22} "
            f"{ratio(seconds['sliced'], seconds['cross entropy'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
