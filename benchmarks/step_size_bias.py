"""Diagonal networks: many problems in one pass against one after the other and PyTorch's optimiser; and sharpness.

Run ``python -m benchmarks.step_size_bias``. First, gradient descent on S problems of N samples and d features, 500
steps: all at once, a loop over them, and the same networks trained by ``torch.optim.SGD`` (20 steps, scaled up).
Second, the largest Hessian eigenvalue of one network at a minimum: the N x N matrix, Lanczos on Hessian products, and
``curvlinops`` with scipy where it is installed. Arms take turns, so that a busy machine slows all alike; ratios are
medians over turns with a 95 % sign interval.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.sop import ratio
from torchstone.dynamics import (
    DiagonalLinearNetwork,
    SparseRegression,
    critical_step,
    diagonal_descent,
    hessian_max_eigenvalue,
    sharpness,
)

SIZES = ((8, 40, 100), (30, 40, 100), (30, 15, 60), (8, 160, 1000))
STEPS, FEW = 500, 20
TURNS = 8


def measure(arms: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of each turn; an arm returns by how much its work must be scaled up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(turns + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            scale = arm()
            if turn:  # the first warms up
                seconds[name].append(scale * (time.perf_counter() - start))
    return seconds


def half_mse(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output - y).square().mean() / 2


def descents(problems: list[SparseRegression]) -> dict[str, Callable[[], float]]:
    x, y = torch.stack([p.x for p in problems]), torch.stack([p.y for p in problems])
    lr = 0.5 * critical_step(x, 0.5)

    def stacked() -> float:
        diagonal_descent(x, y, lr=lr, alpha=0.5, steps=STEPS, tol=0.0)
        return 1.0

    def loop() -> float:
        for s in range(len(x)):
            diagonal_descent(x[s], y[s], lr=lr[s], alpha=0.5, steps=STEPS, tol=0.0)
        return 1.0

    def optimizer() -> float:
        for s in range(len(x)):
            network = DiagonalLinearNetwork(x.shape[-1], alpha=0.5)
            sgd = torch.optim.SGD(network.parameters(), lr=float(lr[s]))
            for _ in range(FEW):
                sgd.zero_grad()
                half_mse(network(x[s]), y[s]).backward()
                sgd.step()
        return STEPS / FEW

    return {"stacked": stacked, "loop": loop, "optimizer": optimizer}


def eigenvalues(d: int, n: int) -> dict[str, Callable[[], float]]:
    data = SparseRegression(n, d, 5, mean=3.0, generator=torch.Generator().manual_seed(0))
    network = DiagonalLinearNetwork(d, alpha=0.5)
    torch.nn.init.normal_(network.layers, generator=torch.Generator().manual_seed(1))
    x, y = data.x, network(data.x).detach()

    def exact() -> float:
        sharpness(network, x)
        return 1.0

    def lanczos() -> float:
        hessian_max_eigenvalue(network, half_mse, (x, y), generator=torch.Generator().manual_seed(2))
        return 1.0

    found = {"N x N": exact, "Lanczos": lanczos}
    if importlib.util.find_spec("curvlinops") is None:
        return found
    from scipy.sparse.linalg import eigsh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from curvlinops import HessianLinearOperator

    class HalfMSE(torch.nn.MSELoss):
        def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return super().forward(input, target) / 2

    def peer() -> float:
        operator = HessianLinearOperator(network, HalfMSE(), list(network.parameters()), [(x, y)])
        eigsh(operator.to_scipy(), k=1, which="LA", tol=1e-6)  # pyright: ignore[reportArgumentType]
        return 1.0

    return {**found, "curvlinops": peer}


def main(turns: int = TURNS) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float64; median seconds of {STEPS} steps")
    head = ("S", "N", "d", "stacked", "loop", "optimizer", "loop / stacked", "optimizer / stacked")
    print("{:>3} {:>4} {:>5} {:>8} {:>7} {:>10}  {:<22} {}".format(*head))
    for count, n, d in SIZES:
        generator = torch.Generator().manual_seed(0)
        problems = [SparseRegression(n, d, 5, mean=3.0, generator=generator) for _ in range(count)]
        seconds = measure(descents(problems), turns)
        stacked, loop, optimizer = (seconds[name] for name in ("stacked", "loop", "optimizer"))
        print(
            f"{count:>3} {n:>4} {d:>5} {median(stacked):>8.3f} {median(loop):>7.2f} {median(optimizer):>10.2f}  "
            f"{ratio(loop, stacked):<22} {ratio(optimizer, stacked)}",
            flush=True,
        )
    print("\nmilliseconds for the largest eigenvalue at a minimum")
    for d, n in ((100, 40), (1000, 160)):
        seconds = measure(eigenvalues(d, n), turns)
        exact = seconds["N x N"]
        for name, times in seconds.items():
            print(f"N {n:>4} d {d:>5} {name:<11} {1e3 * median(times):>9.2f}  {ratio(times, exact)}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
