from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from torchstone.noise import TRAM, HeteroscedasticSoftmax, TRAMLoss, marginalize
from torchstone.testing import check_generator, check_refuses


def softmax(classes: int, **options) -> HeteroscedasticSoftmax:
    return HeteroscedasticSoftmax(classes, generator=torch.Generator().manual_seed(0), **options)


def parameters(mean: list[float], scale: float, factor: list[float]) -> torch.Tensor:
    """What a linear layer would give for independent noise of this scale and these entries of V."""
    before_softplus = math.log(math.expm1(scale - 1e-3)) if scale > 1e-3 else -50.0
    return torch.tensor([[*mean, *[before_softplus] * len(mean), *factor]], dtype=torch.float64)


def test_without_noise_it_is_the_softmax():
    module = softmax(3, rank=1, temperature=2.0, samples=10)
    got = module(parameters([1.0, 2.0, 4.0], 0.0, [0.0] * 3)).exp()
    torch.testing.assert_close(got, torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64).softmax(1), atol=1e-3, rtol=0)


def test_two_classes_equal_the_integral():
    # The difference of the two scores is normal with variance 2 d^2 + (v1 - v2)^2: one integral, by Gauss and Hermite.
    mean, scale, factor, temperature = [0.3, -0.5], 0.7, [1.2, -0.4], 1.3
    spread = math.sqrt(2 * scale**2 + (factor[0] - factor[1]) ** 2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    expected = weights @ (1 / (1 + np.exp(-(mean[0] - mean[1] + spread * nodes) / temperature))) / weights.sum()
    module = softmax(2, rank=1, temperature=temperature, samples=200_000)
    got = module(parameters(mean, scale, factor)).exp()
    assert float(got[0, 0]) == pytest.approx(expected, abs=3e-3)
    assert float(got.sum()) == pytest.approx(1)


def test_noise_that_classes_share_cancels():
    together = softmax(2, rank=1, samples=20_000)(parameters([1.0, 0.0], 1e-3, [5.0, 5.0])).exp()
    apart = softmax(2, rank=1, samples=20_000)(parameters([1.0, 0.0], 1e-3, [5.0, -5.0])).exp()
    assert float(together[0, 0]) == pytest.approx(1 / (1 + math.exp(-1 / 1.3)), abs=1e-3)
    assert float(apart[0, 0]) < 0.6


def test_literal_draws():
    """The same normal numbers, one draw, one row and one class at a time."""
    module, twin = softmax(3, rank=2, samples=4), torch.Generator().manual_seed(0)
    x = torch.randn(2, module.num_outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    e = torch.randn(4, 2, 3, generator=twin, dtype=torch.float64)
    z = torch.randn(4, 2, 2, generator=twin, dtype=torch.float64)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for row in range(2):
        for draw in range(4):
            scores = torch.zeros(3, dtype=torch.float64)
            for c in range(3):
                d = math.log1p(math.exp(float(x[row, 3 + c]))) + 1e-3
                v = x[row, 6 + 2 * c : 8 + 2 * c]
                scores[c] = x[row, c] + d * e[draw, row, c] + v @ z[draw, row]
            expected[row] += (scores / 1.3).softmax(0) / 4
    torch.testing.assert_close(module(x).exp(), expected)


def test_gradcheck():
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: softmax(2, rank=1, samples=5)(x), (x,))


@pytest.mark.untyped
def test_low_precision_the_generator_and_bad_input():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert softmax(3, rank=1, samples=20)(torch.randn(4, 9).bfloat16()).dtype == torch.float32
    check_generator(lambda g: HeteroscedasticSoftmax(3, rank=0, samples=20, generator=g)(torch.ones(2, 6)))
    check_refuses(
        lambda: softmax(3, rank=1)(torch.ones(4, 5)), says=("parameters", "9 columns", "(4, 5)"), what="width"
    )
    check_refuses(lambda: softmax(3, rank=1)(torch.ones(4, 9).long()), says=("parameters", "int64"), what="integers")
    with pytest.raises(ValueError, match="temperature must lie in"):
        HeteroscedasticSoftmax(3, temperature=0)


def test_het_tram_trains_and_marginalizes():
    draws = torch.Generator().manual_seed(0)
    model = TRAM(nn.Flatten(), 4, 0, 3, width=8, pi_embedding=nn.Embedding(5, 8), softmax=softmax(3, samples=30))
    x, ids, y = torch.randn(16, 4, generator=draws), torch.arange(16) % 5, torch.arange(16) % 3
    sgd = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(150):
        loss = TRAMLoss()(model(x, ids), y)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    output = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(output.logits.exp().sum(1), torch.ones(16))
    p = marginalize(model.eval(), x, torch.arange(5), batch=2)
    torch.testing.assert_close(p.sum(1), torch.ones(16))
