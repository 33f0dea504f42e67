"""Unconstrained-features models: gradient descent of 20 seeds in one model, against a loop over 20 models.

Run ``python -m benchmarks.extended_ufm``. Both ways take the same steps on the same loss by autograd, from the same
starts; that they end alike is checked. They take turns, so that a busy machine slows both alike; the ratio is the
median over turns with a 95 % sign interval. Milliseconds are those of one step of all seeds, models already built.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import torch

from benchmarks.sop import ratio
from torchstone.dynamics import UnconstrainedFeatureModel

SEEDS, STEPS, TURNS, LR, DECAY = 20, 50, 8, 0.1, 5e-3
# K, n, d, layers, nonlinearity: the paper's sizes, and those of the study
SIZES: tuple[tuple[int, int, int, int, Any], ...] = (
    (4, 50, 20, 1, None),
    (4, 50, 20, 2, None),
    (4, 50, 20, 2, "relu"),
    (4, 10, 20, 2, "relu"),
    (10, 50, 64, 2, "relu"),
)


def model(size: tuple[int, int, int, int, Any], seeds: list[int], stacked: bool) -> UnconstrainedFeatureModel:
    k, n, d, layers, nonlinearity = size
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return UnconstrainedFeatureModel(
        k,
        n,
        d,
        layers,
        nonlinearity,
        seeds=len(seeds) if stacked else None,
        init_std=0.2,
        generator=generators if stacked else generators[0],
    )


def descend(one: UnconstrainedFeatureModel) -> None:
    parameters = list(one.parameters())
    decays = [DECAY] * (one.layers + 1)
    for _ in range(STEPS):
        gradients = torch.autograd.grad(one.loss(decays).sum(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=LR)


def timed(*models: UnconstrainedFeatureModel) -> float:
    """Milliseconds of one step of each, one model after the other."""
    start = time.perf_counter()
    for one in models:
        descend(one)
    return 1e3 * (time.perf_counter() - start) / STEPS


def measure(size: tuple[int, int, int, int, Any], turns: int) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        together = model(size, list(range(SEEDS)), stacked=True)
        apart = [model(size, [seed], stacked=False) for seed in range(SEEDS)]
        found = timed(together), timed(*apart)
        if turn:  # the first warms up
            for kept, milliseconds in zip(times, found, strict=True):
                kept.append(milliseconds)
        for seed, one in enumerate(apart):
            torch.testing.assert_close(together.free[seed], one.free, atol=1e-5, rtol=1e-4)
    return times


def main(turns: int = TURNS) -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, float32, {SEEDS} seeds; median ms of a step of all seeds")
    head = ("K", "n", "d", "weights", "relu", "stacked", "loop", "loop / stacked")
    print("{:>3} {:>4} {:>4} {:>7} {:>5} {:>9} {:>7}  {}".format(*head))
    for size in SIZES:
        together, apart = measure(size, turns)
        k, n, d, layers, nonlinearity = size
        print(
            f"{k:>3} {n:>4} {d:>4} {layers:>7} {'yes' if nonlinearity else 'no':>5} {median(together):>9.3f} "
            f"{median(apart):>7.2f}  {ratio(apart, together)}",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
