"""How long a small start takes to leave the origin: the law of the theory against that of the kernel of the start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.dynamics import rank_one_flow
from torchstone.studies._deep_linear_runs import DEPTHS, Problems, follow, stack, starts

__all__ = ["Stages", "draw_escapes", "run_escape_lazy", "run_escape_theory"]


@dataclass(frozen=True)
class Stages:
    """Targets drawn, how long escapes shall take, which sets the starts from which each is left, and times recorded.

    ``lengths``: s_0^{-(1-2/N)}, or log(1/s_0) for N = 2 in units of 20; s_1 = 1.
    """

    targets: int = 3
    lengths: tuple[float, ...] = (100, 200, 400)
    times: int = 16

    def starts(self, depth: int) -> list[float]:
        """The s_0 of a depth, largest first."""
        if depth == 2:
            return [math.exp(-length / 20) for length in self.lengths]
        return [length ** (-1 / (1 - 2 / depth)) for length in self.lengths]


def draw_escapes(cell: Cell) -> tuple[Tensor, Tensor, int]:
    """``shared``: log of the starts (starts,), times (targets, starts) until s = s_1 / 2 in the network, and depth."""
    sizes: Stages = cell.setting
    depth = DEPTHS[cell.case]
    generator = cell.seeds.generator("split", cell.case)
    dims = [3, *[2] * (depth - 2), 1, 3]
    first = sizes.starts(depth)
    Zs, nets = [], []
    for _ in range(sizes.targets):
        Z = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        Z = Z / torch.linalg.matrix_norm(Z, 2)
        u, v = (F.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0) for _ in range(2))
        for share in first:
            Zs.append(Z)
            nets.append(starts(share, u, v, dims, generator))
    problems = stack(Zs, nets, [False] * len(nets))
    until = _crossings(problems, len(first))
    t = torch.linspace(1.1 / sizes.times, 1.1, sizes.times, dtype=torch.float64)[:, None] * until
    s = follow(problems, t, rtol=1e-7).W.flatten(2).norm(dim=2)
    return torch.tensor(first, dtype=torch.float64).log(), _first_above(s, t).view(sizes.targets, -1), depth


def _crossings(problems: Problems, count: int) -> Tensor:
    """About when each network passes s_1 / 2, to set the times at which it is looked at.

    By the reduced flow for the first of ``count`` starts of each target, and the law for the others.
    """
    s0, N = problems.s, problems.depth
    law = (1 / s0).log() if N == 2 else s0 ** (2 / N - 1)
    (Z, u, v), first = (x[::count] for x in (problems.Z, problems.u, problems.v)), s0[::count]
    t = torch.logspace(-1.5, 0, 20, dtype=torch.float64)[:, None] * 8 * law[::count] / max(N - 2, 1)
    crossed = _first_above(rank_one_flow(Z, first, u, v, N, t, rtol=1e-6).s, t)
    crossed = torch.where(crossed.isnan(), t[-1], crossed)
    return (crossed / law[::count]).repeat_interleave(count) * law


def _first_above(s: Tensor, t: Tensor) -> Tensor:
    """When s passes 1/2, log-linear between the times; NaN if never."""
    above = s > 0.5
    after = above.int().argmax(0).clamp_min(1)[None]
    (low, high), (early, late) = ((x.gather(0, after - 1)[0], x.gather(0, after)[0]) for x in (s.log(), t))
    when = early + (late - early) * (torch.tensor(0.5).log() - low) / (high - low)
    return torch.where(above.any(0), when, torch.nan)


def _exponents(log_start: Tensor, log_times: Tensor) -> Tensor:
    """Slope of the times over the logarithm of the start, by least squares."""
    centred = log_start - log_start.mean()
    return (log_times * centred).sum(1) / centred.square().sum()


def run_escape_theory(cell: Cell) -> Outcome:
    """T ~ s_0^{-(1-2/N)}; for N = 2, t ~ log(1/s_0) / (2 s_1)."""
    log_start, times, depth = cell.shared()
    if depth == 2:
        errors = (_exponents(log_start, times) / -0.5 - 1).abs()
    else:
        errors = (_exponents(log_start, times.log()) + 1 - 2 / depth).abs()
    return Outcome({"exponent_error": float(errors.nanmedian()), "escaped": float((~times.isnan()).double().mean())})


def run_escape_lazy(cell: Cell) -> Outcome:
    """With the kernel of the start everything takes a time ~ s_0^{-(2-2/N)}."""
    log_start, times, depth = cell.shared()
    errors = (_exponents(log_start, times.log()) + 2 - 2 / depth).abs()
    return Outcome({"exponent_error": float(errors.nanmedian())})
