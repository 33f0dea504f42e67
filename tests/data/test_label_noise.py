from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm

from torchstone.data import (
    asymmetric_noise,
    instance_dependent_noise,
    pair_flip_noise,
    symmetric_noise,
    transition_matrix,
    transition_noise,
)

N, C = 20_000, 5


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _labels(n: int = N, classes: int = C) -> torch.Tensor:
    return torch.arange(n) % classes


def _near(share: float, expected: float, n: int) -> bool:
    """Within five standard deviations of a binomial share."""
    return abs(share - expected) <= 5 * math.sqrt(max(expected * (1 - expected), 1e-12) / n)


def _uniform_others(rate: float) -> torch.Tensor:
    matrix = torch.full((C, C), rate / (C - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(1 - rate)


def _uniform_all(rate: float) -> torch.Tensor:
    return (1 - rate) * torch.eye(C, dtype=torch.float64) + rate / C


def _pair(rate: float) -> torch.Tensor:
    eye = torch.eye(C, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(1, 1)


def _mapped(rate: float) -> torch.Tensor:
    matrix = torch.eye(C, dtype=torch.float64)
    for source, to in {1: 4, 3: 0}.items():
        matrix[source, source], matrix[source, to] = 1 - rate, rate
    return matrix


# name: (function of labels, rate, generator and exact; the transition matrix that it must have at a rate)
RATED = {
    "symmetric, own class": (
        lambda y, rate, **k: symmetric_noise(y, rate=rate, num_classes=C, own_class=True, **k),
        _uniform_all,
    ),
    "symmetric, other classes": (
        lambda y, rate, **k: symmetric_noise(y, rate=rate, num_classes=C, own_class=False, **k),
        _uniform_others,
    ),
    "pair flip": (lambda y, rate, **k: pair_flip_noise(y, rate=rate, num_classes=C, **k), _pair),
    "asymmetric": (
        lambda y, rate, **k: asymmetric_noise(y, rate=rate, num_classes=C, mapping={1: 4, 3: 0}, **k),
        _mapped,
    ),
}


@pytest.mark.parametrize("name", RATED)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_every_entry_of_the_transition_matrix(name, exact, rate):
    noise, expected = RATED[name]
    y = _labels()
    before = y.clone()
    measured = transition_matrix(y, noise(y, rate, generator=_generator(), exact=exact), C)
    assert torch.equal(y, before)
    for share, value in zip(measured.flatten().tolist(), expected(rate).flatten().tolist(), strict=True):
        assert _near(share, value, N // C)


@pytest.mark.parametrize("name", RATED)
def test_determined_by_the_generator_and_nested_in_the_rate(name):
    noise, _ = RATED[name]
    y = _labels(500)
    for exact in (False, True):
        low, again, high = (noise(y, r, generator=_generator(3), exact=exact) for r in (0.2, 0.2, 0.6))
        assert torch.equal(low, again)
        assert not torch.equal(low, noise(y, 0.2, generator=_generator(4), exact=exact))
        changed = low != y
        assert torch.equal(low[changed], high[changed])


@given(st.integers(0, 80), st.floats(0, 1), st.integers(0, 5))
def test_exact_count(n, rate, seed):
    y = _labels(n)
    for name in ("symmetric, other classes", "pair flip"):
        noisy = RATED[name][0](y, rate, generator=_generator(seed), exact=True)
        assert int((noisy != y).sum()) == round(rate * n)
        assert noisy.dtype == torch.int64


def test_asymmetric_exact_counts_selected_samples_of_all_classes():
    y = _labels()
    noisy = asymmetric_noise(y, rate=0.5, num_classes=C, mapping={1: 4, 3: 0}, exact=True, generator=_generator())
    assert _near(float((noisy != y).double().mean()), 0.2, N)


def test_transition_noise_follows_any_matrix():
    matrix = torch.rand(C, C, generator=_generator(), dtype=torch.float64)
    matrix[2, 3:] = matrix[0, 0] = 0.0  # impossible moves, also at the ends of a row
    matrix /= matrix.sum(1, keepdim=True)
    y = _labels()
    noisy = transition_noise(y, matrix=matrix, generator=_generator(1))
    measured = transition_matrix(y, noisy, C)
    assert (measured[matrix == 0] == 0).all()
    for share, value in zip(measured.flatten().tolist(), matrix.flatten().tolist(), strict=True):
        assert _near(share, value, N // C)
    assert torch.equal(transition_noise(y, matrix=torch.eye(C), generator=_generator()), y)


def test_instance_dependent_noise_against_the_literal_algorithm():
    repeats, classes, rate, std = 6000, 4, 0.45, 0.2
    inputs, labels = torch.rand(3, 2, 3, generator=_generator(9)), torch.tensor([2, 0, 2])
    noisy = instance_dependent_noise(
        inputs.repeat_interleave(repeats, 0),
        labels.repeat_interleave(repeats),
        rate=rate,
        num_classes=classes,
        std=std,
        generator=_generator(1),
    )
    # Algorithm 2 of the paper, input by input, on the same draws of the flip rates and of the projections.
    generator = _generator(1)
    u = torch.rand(3 * repeats, generator=generator, dtype=torch.float64).numpy()
    flip = truncnorm.ppf(u, (0 - rate) / std, (1 - rate) / std, loc=rate, scale=std).reshape(3, repeats).mean(1)
    weight = [torch.randn(6, classes, generator=generator) for _ in range(classes)]
    for i in range(3):
        a = inputs[i].reshape(1, -1) @ weight[int(labels[i])]
        a[0, labels[i]] = -math.inf
        p = float(flip[i]) * torch.softmax(a[0], 0)
        p[labels[i]] += 1 - float(flip[i])
        share = torch.bincount(noisy[i * repeats : (i + 1) * repeats], minlength=classes) / repeats
        for measured, expected in zip(share.tolist(), p.tolist(), strict=True):
            assert _near(measured, expected, repeats)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0.0798), (0.1, 0.1288), (0.2, 0.2055), (0.4, 0.4)])
def test_instance_dependent_rate(rate, expected):
    y = _labels()
    x = torch.rand(N, 3, generator=_generator(1))
    noisy = instance_dependent_noise(x, y, rate=rate, num_classes=C, generator=_generator())
    assert _near(float((noisy != y).double().mean()), expected, N)


def test_instance_dependent_noise_depends_on_the_instance():
    # Two inputs far apart, one class: each has its own most likely wrong label; a strong scale makes it certain.
    x = torch.cat([torch.eye(4)[:1].expand(500, 4), torch.eye(4)[1:2].expand(500, 4)]) * 100
    y = torch.zeros(1000, dtype=torch.int64)
    noisy = instance_dependent_noise(x, y, rate=0.5, num_classes=6, generator=_generator(5))
    wrong = [set(part[part != 0].tolist()) for part in (noisy[:500], noisy[500:])]
    assert [len(w) for w in wrong] == [1, 1]
    assert wrong[0] != wrong[1]
    again = instance_dependent_noise(x, y, rate=0.5, num_classes=6, generator=_generator(5))
    assert torch.equal(noisy, again)


def test_empty_and_strided_labels():
    none = torch.empty(0, dtype=torch.int64)
    strided = _labels(40)[::2]
    assert not strided.is_contiguous()
    for noise, _ in RATED.values():
        assert noise(none, 0.5).shape == (0,)
        assert torch.equal(
            noise(strided, 0.5, generator=_generator()), noise(strided.clone(), 0.5, generator=_generator())
        )
    assert transition_noise(none, matrix=torch.eye(3)).shape == (0,)
    assert instance_dependent_noise(torch.empty(0, 4), none, rate=0.5, num_classes=3).shape == (0,)
    assert transition_matrix(none, none, 2).isnan().all()


def test_transition_matrix_by_hand():
    measured = transition_matrix(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 1, 2]), 3)
    assert torch.equal(measured[0], torch.tensor([1, 2, 0]).double() / 3)
    assert measured[1].isnan().all()
    assert measured[2].tolist() == [0, 0, 1]


@pytest.mark.untyped
def test_wrong_arguments():
    y = _labels(10)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\], but is 1.5"):
        symmetric_noise(y, rate=1.5, num_classes=C, own_class=True)
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.2, but spans 0\.\.4"):
        pair_flip_noise(y, rate=0.1, num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be >= 2, but is 1"):
        pair_flip_noise(y * 0, rate=0.1, num_classes=1)
    with pytest.raises(TypeError, match="y must have dtype"):
        pair_flip_noise(y.float(), rate=0.1, num_classes=C)
    with pytest.raises(ValueError, match=r"mapping\[1\] must be in 0\.\.4, but is 5"):
        asymmetric_noise(y, rate=0.1, num_classes=C, mapping={1: 5})
    with pytest.raises(ValueError, match=r"a key of mapping must be in 0\.\.4, but is -1"):
        asymmetric_noise(y, rate=0.1, num_classes=C, mapping={-1: 0})
    with pytest.raises(ValueError, match="matrix must have rows >= 0 that sum to 1"):
        transition_noise(y, matrix=torch.full((C, C), 0.3))
    with pytest.raises(ValueError, match="matrix must have as many rows as columns"):
        transition_noise(y, matrix=torch.full((C, 2), 0.5))
    with pytest.raises(ValueError, match="x must have as many rows as y"):
        instance_dependent_noise(torch.rand(3, 2), y, rate=0.1, num_classes=C)
    with pytest.raises(ValueError, match="x holds 1 NaN"):
        instance_dependent_noise(torch.full((1, 1), torch.nan), y[:1], rate=0.1, num_classes=C)
    with pytest.raises(ValueError, match="std must lie in"):
        instance_dependent_noise(torch.rand(10, 2), y, rate=0.1, num_classes=C, std=0.0)
    with pytest.raises(ValueError, match="noisy must have as many rows as y"):
        transition_matrix(y, y[:2], C)
