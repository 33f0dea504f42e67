"""Gradient descent with momentum on patches: all seeds in one pass, against a Python loop over them.

Run ``python -m benchmarks.momentum``. A turn is the given number of full-batch steps of every seed. The peers: the loop
that anybody would write (the network as a module, autograd, an optimiser for each seed), with torch's ``SGD``; the same
with the closed-form gradient; and ``torch.func`` (``training.stacked``) with autograd. The arms take turns, so that a
busy machine slows all alike; ratios are medians over turns with a 95 % sign interval. The floor is that of the two
products of a step, ``4 n P d m`` multiplications and additions, at the rate of a large matrix product here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.sop import ratio
from torchstone.dynamics import DampenedSGD, MarginPatchCNN, MarginPatchDataset, patch_gradient
from torchstone.training.stacked import stack

N, P, D, M = 200, 3, 100, 4
SEEDS = (1, 6, 10, 30)
STEPS, TURNS = 40, 8
LR, GAMMA = 0.5, 0.99


def data(seeds: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sets = [MarginPatchDataset(N, d=D, patches=P, generator=torch.Generator().manual_seed(s)) for s in range(seeds)]
    nets = [MarginPatchCNN(D, M, generator=torch.Generator().manual_seed(s)).weight.detach() for s in range(seeds)]
    return torch.stack([each.x for each in sets]), torch.stack([each.y for each in sets]), torch.stack(nets)


def one_pass(x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    weight = nn.Parameter(start.clone())
    optimizer = DampenedSGD([weight], LR, GAMMA)
    for _ in range(steps):
        weight.grad = patch_gradient(weight.detach(), x, y)
        optimizer.step()
    return weight.detach()


def loop(x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    return torch.cat([one_pass(x[s : s + 1], y[s : s + 1], start[s : s + 1], steps) for s in range(len(x))])


def net_of(start: torch.Tensor) -> MarginPatchCNN:
    net = MarginPatchCNN(D, M)
    net.weight.data = start.clone()
    return net


def loop_autograd(x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    found = []
    for s in range(len(x)):
        net = net_of(start[s])
        optimizer = torch.optim.SGD(net.parameters(), LR, momentum=GAMMA, dampening=GAMMA)
        for _ in range(steps):
            optimizer.zero_grad()
            (-F.logsigmoid(y[s] * net(x[s]))).mean().backward()
            optimizer.step()
        found.append(net.weight.detach())
    return torch.stack(found)


def torch_func(x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    model = stack([net_of(each) for each in start])
    optimizer = DampenedSGD(model.parameters(), LR, GAMMA)
    for _ in range(steps):
        optimizer.zero_grad()
        (-F.logsigmoid(y * model(x))).mean(1).sum().backward()
        optimizer.step()
    return next(iter(model.parameters())).detach()


ARMS: dict[str, Callable[..., torch.Tensor]] = {
    "one pass": one_pass,
    "loop": loop,
    "loop, autograd": loop_autograd,
    "torch.func": torch_func,
}


def flops_per_second() -> float:
    a, product = torch.randn(1024, 1024), torch.empty(1024, 1024)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a, out=product)
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / median(times[1:])


def main(turns: int = TURNS) -> None:
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, 1 thread, float32; n={N}, P={P}, d={D}, m={M}; median microseconds a step and seed"
    )
    print(
        f"{'seeds':>5} "
        + " ".join(f"{name:>15}" for name in ARMS)
        + f" {'floor':>6}  loop/one pass; loop, autograd/one pass"
    )
    rate = flops_per_second()
    for seeds in SEEDS:
        x, y, start = data(seeds)
        torch.testing.assert_close(one_pass(x, y, start, 5), torch_func(x, y, start, 5), atol=1e-6, rtol=1e-4)
        seconds: dict[str, list[float]] = {name: [] for name in ARMS}
        for turn in range(turns + 1):
            for name, arm in ARMS.items():
                began = time.perf_counter()
                arm(x, y, start, STEPS)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
        each = " ".join(f"{1e6 * median(seconds[name]) / STEPS / seeds:>15.0f}" for name in ARMS)
        floor = 1e6 * 4 * N * P * D * M / rate
        against = "; ".join(ratio(seconds[name], seconds["one pass"]) for name in ("loop", "loop, autograd"))
        print(f"{seeds:>5} {each} {floor:>6.0f}  {against}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
