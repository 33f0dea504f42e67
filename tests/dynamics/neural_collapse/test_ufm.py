from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchstone.dynamics import UnconstrainedFeatureModel

K, N, D = 3, 4, 5


def one(**options) -> UnconstrainedFeatureModel:
    options = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64} | options
    return UnconstrainedFeatureModel(K, N, D, **options)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("nonlinearity", [None, "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_is_the_formula(layers: int, nonlinearity, bias: bool) -> None:
    """Written as in the papers, with features as columns."""
    model = one(layers=layers, nonlinearity=nonlinearity, bias=bias)
    if model.bias is not None:
        model.bias.data += torch.tensor([0.1, -0.2, 0.3]).double()
    decays, bias_decay = [0.1 * (place + 1) for place in range(layers + 1)], 0.7
    y = torch.kron(torch.eye(K), torch.ones(1, N)).double()
    h: Tensor = model.free.T
    for weight in list(model.weights)[:-1]:
        h = weight @ h
        h = h.relu() if nonlinearity else h
    z = model.weights[-1] @ h
    expected = torch.zeros(()).double()
    if model.bias is not None:
        z = z + model.bias[:, None]
        expected = expected + bias_decay / 2 * model.bias.square().sum()
    expected = expected + (z - y).square().sum() / (2 * K * N) + decays[-1] / 2 * model.free.square().sum()
    for decay, weight in zip(decays[:-1], reversed(list(model.weights)), strict=True):
        expected = expected + decay / 2 * weight.square().sum()
    torch.testing.assert_close(model.loss(decays, bias_decay), expected)
    torch.testing.assert_close(model(), z.T)


def test_on_the_scale_of_mse_loss() -> None:
    """`nn.MSELoss` averages over the K outputs too and has no half: f's data term times 2 / K."""
    model = one()
    expected = F.mse_loss(model(), F.one_hot(model.labels, K).double())
    torch.testing.assert_close(model.loss([0.0, 0.0]) * 2 / K, expected)


@pytest.mark.parametrize("nonlinearity", [None, "relu"])
def test_a_stack_is_each_alone_with_its_gradient(nonlinearity) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    decays = [torch.tensor([0.1, 0.2]).double(), 0.3, torch.tensor([0.4, 0.5]).double()]
    stack = one(layers=2, nonlinearity=nonlinearity, bias=True, seeds=2, generator=generators, init_std=0.5)
    losses = stack.loss(decays, 0.2)
    losses.sum().backward()
    for seed in range(2):
        alone = one(
            layers=2,
            nonlinearity=nonlinearity,
            bias=True,
            generator=torch.Generator().manual_seed(5 + seed),
            init_std=0.5,
        )
        loss = alone.loss([float(decay[seed]) if isinstance(decay, Tensor) else decay for decay in decays], 0.2)
        loss.backward()
        torch.testing.assert_close(losses[seed], loss)
        for ours, theirs in zip(stack.parameters(), alone.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad[seed], theirs.grad)


def test_features_of_every_layer() -> None:
    model = one(layers=3, nonlinearity="relu", seeds=2)
    assert torch.equal(model.features(1), model.free)
    before = model.features(2, pre_activation=True)
    assert (before < 0).any()
    assert torch.equal(before.relu(), model.features(2))
    torch.testing.assert_close(model.features(3, pre_activation=True), model.features(2) @ model.weights[1].mT)
    torch.testing.assert_close(model(), model.features(3) @ model.weights[2].mT)
    assert [tuple(factor.shape) for factor in model.factors()] == [(2, K, D), (2, D, D), (2, D, D), (2, K * N, D)]


def test_turning_the_features_changes_nothing() -> None:
    model = one(layers=2)
    before = model.loss([0.1, 0.2, 0.3])
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3)).double())[0]
    with torch.no_grad():
        model.free.copy_(model.free @ turn.T)
        model.weights[0].copy_(model.weights[0] @ turn.T)
    torch.testing.assert_close(model.loss([0.1, 0.2, 0.3]), before)


def test_gradient_and_state() -> None:
    model = one(layers=2, bias=True)
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    objective = _Loss(model)

    def loss(*values: Tensor) -> Tensor:
        return torch.func.functional_call(objective, dict(zip(names, values, strict=True)), ())

    assert torch.autograd.gradcheck(loss, [value.detach().requires_grad_() for value in model.parameters()])
    other = one(layers=2, bias=True, generator=torch.Generator().manual_seed(7))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(), model())


class _Loss(torch.nn.Module):
    def __init__(self, model: UnconstrainedFeatureModel) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return self.model.loss([0.1, 0.2, 0.3], 0.4)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 0}, "layers must be >= 1"),
        ({"nonlinearity": "tanh"}, "nonlinearity must be 'relu' or None, but is 'tanh'"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"init_std": -1.0}, "init_std must lie in"),
        ({"seeds": 3, "generator": [torch.Generator()]}, r"as many as seeds \(3\), but are 1"),
        ({"generator": [torch.Generator()]}, r"as many as seeds \(None\), but are 1"),
    ],
)
def test_bad_arguments_are_named(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        one(**change)
    with pytest.raises(ValueError, match=r"weight_decays must hold 2 numbers \(last weight to features\), but hold 3"):
        one().loss([0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match=r"layer must be in 1..1"):
        one().features(2)
