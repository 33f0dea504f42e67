"""The identities of diagonal linear networks, each as a number that the theory says is zero, or not negative."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.dynamics import (
    DiagonalLinearNetwork,
    SparseRegression,
    basis_pursuit,
    critical_step,
    diagonal_descent,
    flow_residual,
    gradient_flow_limit,
    min_l2_norm,
    sharpness,
    weighted_l1,
)
from torchstone.training import HessianOperator

__all__ = ["run_identities"]


def run_identities(cell: Cell) -> Outcome:
    """Measure each identity on a small problem; see the functions below for what the values are."""
    generator = cell.seeds.generator("split", "data")
    data = SparseRegression(10, 40, 2, mean=1.0, generator=generator)
    u, v = torch.randn(2, 1000, 40, generator=generator, dtype=torch.float64)
    half, norm = sharpness(u.square() + v.square(), data.x) / 2, weighted_l1(u * v, data.x)
    return Outcome(
        {
            "gradient": _gradient(data, u[0], v[0]),
            "spectrum": _spectrum(data, u[0], v[0]),
            "imbalance": _imbalance(data),
            "half_step": _half_step(data),
            "slack": float(((half - norm) / half).min()),
            "flow": _flow(data, cell.setting.steps),
            **_ends(data),
        }
    )


def _network(u: Tensor, v: Tensor) -> DiagonalLinearNetwork:
    network = DiagonalLinearNetwork(len(u), alpha=1.0)
    with torch.no_grad():
        network.layers.copy_(torch.stack([u, v]))
    return network


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean() / 2


def _gradient(data: SparseRegression, u: Tensor, v: Tensor) -> float:
    """Largest relative difference of the gradient by autograd from its closed form."""
    found = HessianOperator(_network(u, v), _loss, (data.x, data.y)).gradient()
    g = data.x.T @ (data.x @ (u * v) - data.y) / len(data)
    expected = torch.cat([g * v, g * u])
    return float((found - expected).abs().max() / expected.abs().max())


def _spectrum(data: SparseRegression, u: Tensor, v: Tensor) -> float:
    """Where the loss is zero: largest relative difference of the Hessian's top eigenvalues from the N x N ones."""
    network = _network(u, v)
    whole = torch.linalg.eigvalsh(HessianOperator(network, _loss, (data.x, network(data.x).detach())).dense())
    small = torch.linalg.eigvalsh((data.x * (u.square() + v.square())) @ data.x.T / len(data))
    return float((whole[-len(data) :] - small).abs().max() / small[-1])


def _path(network: DiagonalLinearNetwork, data: SparseRegression, lr: float, steps: int) -> Tensor:
    """Layers along the path of PyTorch's optimiser, (steps + 1, 2, d)."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    path = [network.layers.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(network(data.x), data.y).backward()
        optimizer.step()
        path.append(network.layers.detach().clone())
    return torch.stack(path)


def _imbalance(data: SparseRegression, alpha: float = 1.0) -> float:
    """Largest relative difference of u^2 - v^2 after a step from (u^2 - v^2) (1 - eta^2 g^2) before it."""
    lr = 1.05 * float(critical_step(data.x, alpha))
    path = _path(DiagonalLinearNetwork(data.x.shape[1], alpha=alpha), data, lr, 50)
    slope = (path.prod(1) @ data.x.T - data.y) @ data.x / len(data)
    imbalance = path[:, 0].square() - path[:, 1].square()
    off = imbalance[1:] - imbalance[:-1] * (1 - (lr * slope[:-1]).square())
    return float((off.abs().amax(1) / imbalance[1:].abs().amax(1)).nan_to_num().max())


def _half_step(data: SparseRegression, alpha: float = 1.0) -> float:
    """Largest difference of beta from that of the other parametrization with half the step, along the path."""
    lr, d = 0.5 * float(critical_step(data.x, alpha)), data.x.shape[1]
    uv = _path(DiagonalLinearNetwork(d, alpha=alpha), data, lr, 200)
    squares = _path(DiagonalLinearNetwork(d, alpha=alpha, parametrization="squares"), data, lr / 2, 200).square()
    return float((uv.prod(1) - (squares[:, 0] - squares[:, 1])).abs().max())


def _flow(data: SparseRegression, steps: int, alpha: float = 0.5) -> float:
    """How far descent with a small step leaves the solutions that gradient flow can reach."""
    lr = 0.002 * float(critical_step(data.x, alpha))
    return float(
        flow_residual(diagonal_descent(data.x, data.y, lr=lr, alpha=alpha, steps=steps).beta, data.x, alpha=alpha)
    )


TINY = 1e-8  # the start from which gradient flow is to find the smallest l1 norm


def _ends(data: SparseRegression) -> dict[str, float]:
    """The flow's norms against the smallest ones, from a large and from a tiny start.

    ``l2_end`` is the relative excess. The l1 norm comes down slowly: that the limit has the smallest potential Q gives,
    with a = alpha^2, h(x) = sum |x| log |x|, and the smallest-l1 solution beta*,

        (|beta|_1 - |beta*|_1) (log(2 / a) - 1) <= sum |beta*| log(|beta*| + a / 2) + d a - h(beta),

    and ``l1_slack`` is what the right side, divided by the bracket, leaves over the excess.
    """
    kernel, rich = (gradient_flow_limit(data.x, data.y, alpha=alpha) for alpha in (1e3, TINY))
    l2, l1 = min_l2_norm(data.x, data.y), basis_pursuit(data.x, data.y)
    a, sizes, best = TINY**2, rich.abs(), l1.abs()
    spare = (torch.xlogy(best, best + a / 2) - torch.xlogy(sizes, sizes)).sum() + len(sizes) * a
    return {
        "l2_end": float(kernel.norm() / l2.norm()) - 1,
        "l1_slack": float(spare / (math.log(2 / a) - 1) - (sizes.sum() - best.sum())),
    }
