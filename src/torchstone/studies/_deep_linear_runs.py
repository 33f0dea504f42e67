"""Stacks of deep linear networks for the study: drawn, integrated in one pass, and measured.

The problems of a stack differ in Z, widths and start. Widths are padded with zeros, which gradient flow leaves at zero:
a neuron without weights on either side gets no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from torchstone.dynamics import RankOneFlow, alignment, predict_limit, predicted_rates, rank_one_flow
from torchstone.dynamics.flow import integrate

__all__ = [
    "DEPTHS",
    "NEAR",
    "Problems",
    "Runs",
    "descent",
    "ends",
    "fitted_rates",
    "follow",
    "gradients",
    "horizon",
    "invariants",
    "product",
    "stack",
    "starts",
]

DEPTHS = {"N2": 2, "N3": 3, "N4": 4, "N6": 6}  # case -> layers
NEAR = 0.02  # closer to a point than this share of s_1 is at the point


@dataclass(frozen=True, eq=False)
class Problems:
    """S problems of one depth: ``Z`` and ``weights`` padded, ``s``, ``u``, ``v`` of the product at the start.

    ``special`` marks starts from which theory has the flow end in a saddle or the origin; ``rates`` are those near the
    minimiser, ``limits`` the predicted ends.
    """

    depth: int
    Z: Tensor
    weights: Sequence[Tensor]
    s: Tensor
    u: Tensor
    v: Tensor
    special: Tensor
    rates: Tensor
    limits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        ends = [predict_limit(*problem).W for problem in zip(self.Z, self.u, self.v, strict=True)]
        object.__setattr__(self, "limits", torch.stack(ends))

    @property
    def top(self) -> Tensor:
        """s_1 of each problem."""
        return torch.linalg.svdvals(self.Z)[:, 0]

    @property
    def unit(self) -> Tensor:
        """s_1^{-(2-2/N)}, the time in which things happen near the minimiser."""
        return self.top ** (2 / self.depth - 2)


@dataclass(frozen=True, eq=False)
class Runs:
    """Full flows of the networks: products (times, S, m, n), clocks tau, worst gap of balance; and the reduced flow."""

    problems: Problems
    t: Tensor
    W: Tensor
    tau: Tensor
    gap: Tensor
    reduced: RankOneFlow
    evaluations: int


def _padded(matrices: Sequence[Tensor]) -> Tensor:
    """A stack of matrices, with zeros below and to the right."""
    rows, columns = (max(matrix.shape[dim] for matrix in matrices) for dim in (0, 1))
    return torch.stack([F.pad(m, (0, columns - m.shape[1], 0, rows - m.shape[0])) for m in matrices])


def starts(s0: float, u: Tensor, v: Tensor, dims: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weights of a balanced network with product s0 u v^T."""
    hidden = [F.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0) for d in dims[1:-1]]
    chain = [v, *hidden, u]
    root = s0 ** (1 / (len(dims) - 1))
    return [root * torch.outer(above, below) for below, above in pairwise(chain)]


def stack(Zs: Sequence[Tensor], nets: Sequence[Sequence[Tensor]], special: Sequence[bool]) -> Problems:
    """Put problems of different widths and one depth into a stack."""
    depth = len(nets[0])
    layers = [_padded([net[j] for net in nets]) for j in range(depth)]
    U, s, Vh = torch.linalg.svd(product(layers), full_matrices=False)
    return Problems(
        depth=depth,
        Z=_padded(Zs),
        weights=layers,
        s=s[:, 0],
        u=U[:, :, 0],
        v=Vh[:, 0],
        special=torch.tensor(special),
        rates=torch.tensor([predicted_rates(Z, depth).error for Z in Zs], dtype=torch.float64),
    )


def product(weights: Sequence[Tensor]) -> Tensor:
    """W_N ... W_1."""
    W = weights[0]
    for weight in weights[1:]:
        W = weight @ W
    return W


def gradients(weights: Sequence[Tensor], Z: Tensor) -> list[Tensor]:
    """Of 1/2 ||W_N ... W_1 - Z||^2 with respect to each layer: A_j^T (W - Z) B_j^T, A_j above and B_j below."""
    below = [weights[0]]
    for weight in weights[1:]:
        below.append(weight @ below[-1])
    slope = below[-1] - Z
    found = []
    for j in range(len(weights) - 1, 0, -1):
        found.append(slope @ below[j - 1].mT)
        slope = weights[j].mT @ slope
    return [slope, *reversed(found)]


def follow(problems: Problems, t: Tensor, *, rtol: float = 1e-9) -> Runs:
    """Integrate the networks, and their clocks, to the times (times, S)."""
    shapes = [weight.shape[1:] for weight in problems.weights]
    sizes = [shape.numel() for shape in shapes]
    turn = 1 - 2 / problems.depth

    def layers(flat: Tensor) -> list[Tensor]:
        parts = flat[..., :-1].split(sizes, -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def velocity(flat: Tensor) -> Tensor:
        weights = layers(flat)
        slopes = [-slope.flatten(1) for slope in gradients(weights, problems.Z)]
        clock = product(weights).flatten(1).norm(dim=1, keepdim=True) ** turn
        return torch.cat([*slopes, clock], 1)

    zero = torch.zeros(len(problems.Z), 1, dtype=torch.float64)
    start = torch.cat([*(weight.flatten(1) for weight in problems.weights), zero], 1)
    path, evaluations = integrate(velocity, start, t, rtol=rtol)
    weights = layers(path)
    gaps = [late.mT @ late - early @ early.mT for early, late in pairwise(weights)]
    drift = torch.stack([(gap - gap[:1]).flatten(2).norm(dim=2) for gap in gaps]).amax((0, 1))
    reduced = rank_one_flow(problems.Z, problems.s, problems.u, problems.v, problems.depth, t)
    return Runs(problems, t, product(weights), path[..., -1], drift, reduced, evaluations)


def descent(
    problems: Problems, lr: Tensor, steps: int, keep: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gradient descent with steps ``lr`` (S,): products at ``keep`` times, and the times (steps times ``lr``).

    ``noise``: standard deviation of each entry of the gradient of W, in units of s_1, drawn anew in each step.
    """
    weights = [weight.clone() for weight in problems.weights]
    every = steps // keep
    kept, times = [], []
    for step in range(1, steps + 1):
        target = problems.Z
        if noise:
            drawn = torch.randn(target.shape, generator=generator, dtype=torch.float64)
            target = target + noise * problems.top[:, None, None] * drawn
        for weight, slope in zip(weights, gradients(weights, target), strict=True):
            weight.sub_(lr[:, None, None] * slope)
        if step % every == 0:
            kept.append(product(weights))
            times.append(step * lr)
    return torch.stack(kept), torch.stack(times)


def ends(runs: Runs) -> Tensor:
    """Which runs have converged: near a point s_k u_k v_k^T or 0 at the end, and no farther from it than half-way.

    Passing a saddle slowly is no convergence: a run counts only if the reduced flow has arrived in the time given.
    """
    problems = runs.problems
    U, s, Vh = torch.linalg.svd(problems.Z, full_matrices=False)
    points = torch.einsum("sk,smk,skn->ksmn", s, U, Vh)
    points = torch.cat([points, torch.zeros_like(points[:1])])
    end, half = ((points - runs.W[place]).flatten(2).norm(dim=2) for place in (-1, len(runs.t) // 2))
    nearest = end.argmin(0, keepdim=True)
    close = end.gather(0, nearest)[0]
    arrived = (runs.reduced.product()[-1] - problems.limits).flatten(1).norm(dim=1) < NEAR * problems.top
    leaving = close > torch.maximum(half.gather(0, nearest)[0], 1e-4 * problems.top)
    return arrived & (close < NEAR * problems.top) & ~leaving


def horizon(problems: Problems, cap: float, special_cap: float, close: float = 1e-6) -> Tensor:
    """Time of each problem until the reduced flow is ``close`` to its limit, at most a cap in units of time.

    A small start has six times its time of escape (at q = s_1) besides.
    """
    escape = (problems.s / problems.top) ** (2 / problems.depth - 1) / max(problems.depth - 2, 1)
    longest = torch.where(problems.special, special_cap, cap + 6 * escape) * problems.unit
    t = torch.logspace(-1.5, 0, 12, dtype=torch.float64)[:, None] * longest
    path = rank_one_flow(problems.Z, problems.s, problems.u, problems.v, problems.depth, t, rtol=1e-6).product()
    done = (path - problems.limits).flatten(2).norm(dim=2) < close * problems.top
    first = torch.where(done.any(0), done.int().argmax(0), len(t) - 1)
    return t.gather(0, first[None])[0]


def fitted_rates(runs: Runs) -> Tensor:
    """Rate of ||W - limit|| between 1e-4 and 1e-7 of s_1; NaN where a run has too few times there, or is special."""
    distance = (runs.W - runs.problems.limits).flatten(2).norm(dim=2) / runs.problems.top
    inside = (distance < 1e-4) & (distance > 1e-7)
    rates = torch.full_like(runs.problems.top, torch.nan)
    for place in (~runs.problems.special).nonzero().flatten().tolist():
        where = inside[:, place].nonzero().flatten()
        if len(where) >= 3:
            first, last = where[0], where[-1]
            fall = (distance[first, place] / distance[last, place]).log()
            rates[place] = fall / (runs.t[last, place] - runs.t[first, place])
    return rates


def invariants(runs: Runs) -> dict[str, float]:
    """Largest violations over the stack: of balance, of alignment ratios, of the growth of q, of the reduced flow."""
    problems = runs.problems
    gap = runs.gap / problems.top ** (2 / problems.depth)
    s = runs.W.flatten(2).norm(dim=2)
    visible = s > 1e-3 * problems.top
    found = alignment(runs.W, problems.Z)
    fall = torch.where(visible[1:], -found.q.diff(dim=0) / problems.top, 0.0)
    grows = found.a + found.b
    sizes = torch.linalg.svdvals(problems.Z)
    moved = grows / grows[..., :1] * torch.exp(-(sizes - sizes[:, :1]) * runs.tau.unsqueeze(-1))
    usable = visible.unsqueeze(-1) & (grows.abs() > 1e-3) & (grows[..., :1] > 1e-3)
    usable &= usable[:1] & ~problems.special[:, None]
    drift = torch.where(usable, (moved / moved[:1] - 1).abs(), 0.0)
    apart = (runs.W - runs.reduced.product()).flatten(2).norm(dim=2) / problems.top
    # From special starts rounding drives the network away from the exact path; how far is what its end shows.
    apart = torch.where(problems.special, 0.0, apart)
    return {
        "balance_drift": float(gap.max()),
        "q_fall": float(fall.max()),
        "ratio_drift": float(drift.max()),
        "reduced_gap": float(apart.max()),
    }
