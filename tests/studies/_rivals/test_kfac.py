from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from torchstone.dynamics import NewtonLinear
from torchstone.errors import DivergedError
from torchstone.studies._rivals.kfac import KFAC, factors
from torchstone.training.curvature import GGNOperator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Sequential:
    layers = [
        nn.Linear(4, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 3, bias=False),
    ]
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight.copy_(normal(*weight.shape, seed=number))
    return net


def test_for_one_sample_the_factors_give_the_blocks_of_the_gauss_newton_matrix() -> None:
    net, x = network(), normal(1, 4, seed=7)
    for weight, (inside, outside) in zip(net.parameters(), factors(net, x), strict=True):
        block = GGNOperator(net, mse_loss, (x, normal(1, 3, seed=8)), [weight]).dense()
        torch.testing.assert_close(torch.kron(outside, inside), block)
        assert block.abs().max() > 0


def test_for_one_layer_and_without_damping_it_is_the_newton_step() -> None:
    x, y = normal(20, 4), normal(20, 3, seed=1)
    net = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    KFAC(net, 1.0, 0.0).step(x, y)
    torch.testing.assert_close(next(net.parameters()).detach(), NewtonLinear(x).solve(y))


def test_full_damping_is_gradient_descent_with_a_rate_for_each_layer() -> None:
    net, other, x, y = network(), network(), normal(20, 4, seed=7), normal(20, 3, seed=8)
    scales = [float(a.trace() / len(a) * g.trace() / len(g)) for a, g in factors(net, x)]
    KFAC(net, 0.1, 1.0).step(x, y)
    gradients = torch.autograd.grad(mse_loss(other(x), y), tuple(other.parameters()))
    for weight, before, gradient, c in zip(net.parameters(), other.parameters(), gradients, scales, strict=True):
        torch.testing.assert_close(weight.detach(), before.detach() - 0.1 / c * gradient)


def test_divergence_is_said() -> None:
    with pytest.raises(DivergedError, match="the loss is nan"):
        KFAC(network(), 1.0, 0.1).step(torch.full((2, 4), float("nan")).double(), normal(2, 3))
