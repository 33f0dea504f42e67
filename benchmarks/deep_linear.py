"""Deep linear networks: S gradient flows integrated as one stack, against a loop of SciPy's solver over them.

Run ``python -m benchmarks.deep_linear``. All use a Runge-Kutta method of order 8 with rtol 1e-9 and atol 1e-12: the
stack ``dopri8`` of torchdiffeq, with the largest error over the networks in command; the loops ``DOP853`` of SciPy on
one network after the other. ``loop`` calls ``gradient_flow`` on each, so it takes the gradient from autograd, as the
stack does, and as any module can; ``numpy`` has the gradient of this one model written out in NumPy. All end at the
same products, which is checked. They take turns, so that a busy machine slows all alike; ratios are medians over turns
with a 95 % sign interval.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from scipy.integrate import solve_ivp

from benchmarks.sop import ratio
from torchstone.dynamics import DeepLinear, balanced_init_, gradient_flow

DIMS, END = (4, 3, 1, 3, 5), 8.0
STACKS = (10, 50, 200)
TURNS = 6


def problems(count: int) -> tuple[DeepLinear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    empty = [torch.zeros(count, out, into).double() for into, out in pairwise(DIMS)]
    shares = torch.tensor([0.5, 0.05]).double().repeat(count)[:count]
    net = balanced_init_(DeepLinear.from_weights(empty), shares, generator=generator)
    return net, torch.randn(count, DIMS[-1], DIMS[0], generator=generator, dtype=torch.float64)


def stacked(net: DeepLinear, Z: torch.Tensor) -> torch.Tensor:
    flow = gradient_flow(net, lambda net: (net.product() - Z).square().sum((1, 2)) / 2, torch.tensor([END]))
    return DeepLinear.from_weights(list(flow.at(-1).values())).product().detach()


def one_by_one(net: DeepLinear, Z: torch.Tensor) -> torch.Tensor:
    found = []
    for place, target in enumerate(Z):
        one = DeepLinear.from_weights([weight[place] for weight in net.weights])
        flow = gradient_flow(one, lambda net, Z=target: (net.product() - Z).square().sum() / 2, torch.tensor([END]))
        found.append(DeepLinear.from_weights(list(flow.at(-1).values())).product().detach())
    return torch.stack(found)


def by_numpy(net: DeepLinear, Z: torch.Tensor) -> torch.Tensor:
    weights = [weight.detach().numpy() for weight in net.weights]
    shapes = [weight.shape[1:] for weight in weights]
    cuts = np.cumsum([out * into for out, into in shapes])[:-1]

    def layers(flat: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(shape) for part, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    found = []
    for place, target in enumerate(Z.numpy()):

        def velocity(_: float, flat: np.ndarray, target: np.ndarray = target) -> np.ndarray:
            chain = layers(flat)
            below = [chain[0]]
            for weight in chain[1:]:
                below.append(weight @ below[-1])
            slope = target - below[-1]
            slopes = []
            for j in range(len(chain) - 1, 0, -1):
                slopes.append(slope @ below[j - 1].T)
                slope = chain[j].T @ slope
            return np.concatenate([part.ravel() for part in (slope, *reversed(slopes))])

        start = np.concatenate([weight[place].ravel() for weight in weights])
        end = solve_ivp(velocity, (0, END), start, method="DOP853", rtol=1e-9, atol=1e-12).y[:, -1]
        W = layers(end)[0]
        for weight in layers(end)[1:]:
            W = weight @ W
        found.append(W)
    return torch.from_numpy(np.stack(found))


def main(turns: int = TURNS) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float64, dims {DIMS}; median seconds")
    print(f"{'S':>4} {'stack':>8} {'loop':>8} {'numpy':>8}  {'loop / stack':<22} numpy / stack")
    arms = {"stack": stacked, "loop": one_by_one, "numpy": by_numpy}
    for count in STACKS:
        net, Z = problems(count)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(turns + 1):
            ends = {}
            for name, solve in arms.items():
                start = time.perf_counter()
                ends[name] = solve(net, Z)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
            for name in ("loop", "numpy"):
                torch.testing.assert_close(ends["stack"], ends[name], atol=1e-6, rtol=0)
        medians = " ".join(f"{median(seconds[name]):>8.2f}" for name in arms)
        against = [ratio(seconds[name], seconds["stack"]) for name in ("loop", "numpy")]
        print(f"{count:>4} {medians}  {against[0]:<22} {against[1]}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
