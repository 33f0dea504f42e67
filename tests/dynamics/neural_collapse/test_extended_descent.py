"""Gradient descent on extended models: it never climbs below 1/L, and what stays the same along it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchstone.dynamics import UnconstrainedFeatureModel, extended_ufm_optimum, nc_metrics

K, N, D = 3, 4, 5


def start(seed: int, layers: int, bias: bool = False, init_std: float = 0.3) -> UnconstrainedFeatureModel:
    generator = torch.Generator().manual_seed(seed)
    return UnconstrainedFeatureModel(
        K, N, D, layers, bias=bias, init_std=init_std, generator=generator, dtype=torch.float64
    )


class Loss(torch.nn.Module):
    def __init__(self, model: UnconstrainedFeatureModel, decays: list[float]) -> None:
        super().__init__()
        self.model, self.decays = model, decays

    def forward(self) -> Tensor:
        return self.model.loss(self.decays)


def curvature(model: UnconstrainedFeatureModel, decays: list[float]) -> float:
    """Largest eigenvalue of the Hessian where the model is."""
    wrapped = Loss(model, decays)
    names, parameters = zip(*wrapped.named_parameters(), strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in parameters])
        values = {name: part.view(p.shape) for name, part, p in zip(names, parts, parameters, strict=True)}
        return torch.func.functional_call(wrapped, values, ())

    flat = torch.cat([p.detach().flatten() for p in parameters])
    return float(torch.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(loss))(flat))[-1])


def step(model: UnconstrainedFeatureModel, decays: list[float], lr: float) -> float:
    """One step; returns the loss before it."""
    loss = model.loss(decays)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= lr * gradient
    return float(loss.detach())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_descent_below_the_inverse_curvature_never_climbs(layers: int, bias: bool) -> None:
    decays = [0.02] * (layers + 1)
    model = start(layers, layers, bias)
    lr = 1 / curvature(model, decays)
    losses = [step(model, decays, lr) for _ in range(150)]
    assert all(late <= early for early, late in pairwise(losses))
    assert losses[-1] < losses[0]
    assert losses[-1] >= extended_ufm_optimum(K, N, decays, bias).loss - 1e-12


def test_too_long_steps_climb() -> None:
    decays = [0.02] * 3
    model = start(0, 2)
    lr = 20 / curvature(model, decays)
    losses = [step(model, decays, lr) for _ in range(3)]
    assert losses[-1] > losses[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.booleans(), st.floats(0.02, 2.5), st.floats(0.01, 2.0), st.integers(0, 10**6))
def test_nothing_lies_below_the_optimum(layers: int, bias: bool, ratio: float, size: float, seed: int) -> None:
    """Random models, at random strengths on both sides of the threshold, and with decays that differ."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(layers + 1, generator=generator, dtype=torch.float64) + 0.5
    base = extended_ufm_optimum(K, N, share.tolist(), bias)
    decays = (share * ratio * base.threshold / base.q).tolist()
    optimum = extended_ufm_optimum(K, N, decays, bias)
    assert optimum.q == pytest.approx(ratio * base.threshold)
    assert (optimum.kind == "collapse") == (optimum.q < optimum.threshold)
    model = start(seed, layers, bias, size)
    assert float(model.loss(decays).detach()) >= optimum.loss - 1e-12


def test_an_imbalance_of_the_factors_decays_with_the_weights() -> None:
    """Along the flow lambda (W_2^T W_2 - W_1 W_1^T) falls as exp(-2 lambda t): every stationary point is balanced."""
    decay, lr, steps = 0.1, 1e-3, 2000
    model = start(4, 2)

    def imbalance() -> Tensor:
        low, high = (weight.detach() for weight in model.weights)
        return high.T @ high - low @ low.T

    before = imbalance()
    for _ in range(steps):
        step(model, [decay] * 3, lr)
    expected = before * torch.tensor(-2 * decay * lr * steps).exp()
    torch.testing.assert_close(imbalance(), expected, atol=2e-3, rtol=0)
    assert before.abs().max() > 0.05


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_bias_turns_the_frame_into_its_own_centred_form(layers: int) -> None:
    decays = [0.02] * (layers + 1)
    plain, biased = (extended_ufm_optimum(K, N, decays, bias).model(D) for bias in (False, True))
    for layer in range(1, layers + 1):
        one, other = (model.features(layer).detach() for model in (plain, biased))
        centred = one - one.mean(0)
        torch.testing.assert_close(centred @ centred.T, other @ other.T, atol=1e-12, rtol=0)
        assert float(nc_metrics(one, plain.labels, frame="etf").nc2) < 1e-12
        assert float(nc_metrics(one, plain.labels, frame="orthogonal").nc2) < 1e-12
        assert float(nc_metrics(one, plain.labels, frame="etf", centred=False).nc2) > 0.3
