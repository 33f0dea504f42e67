from __future__ import annotations

import numpy as np
import pytest
import torch

from torchstone.data import mnist1d
from torchstone.data.signals import _TEMPLATES, _placed, _smoothed, _thinned


def made(n=200, seed=0):
    return mnist1d(n, generator=torch.Generator().manual_seed(seed))


def test_shape_classes_and_scale():
    data = made(203)
    assert (data.x.shape, data.x.dtype, data.num_classes) == ((203, 1, 40), torch.float32, 10)
    counts = torch.bincount(data.y)
    assert (counts.min(), counts.max()) == (20, 21)
    assert not (data.y[:10] == torch.arange(10)).all()
    assert abs(data.x.mean()) < 1e-5
    assert data.x.std() == pytest.approx(1, abs=1e-5)


def test_it_depends_on_the_generator_alone():
    assert torch.equal(made().x, made().x)
    assert not torch.equal(made().x, made(seed=1).x)
    with pytest.raises(ValueError, match="n must be >= 10"):
        mnist1d(9)


def test_templates_are_placed_as_one_by_one():
    """Padding, stretching, scaling and rolling of one sample at a time, from the recipe."""
    y = torch.arange(10).repeat(3)
    signal, there = _placed(y, torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    padding = torch.randint(36, 61, (30, 1), generator=again)
    scale = 1 + 0.4 * (torch.rand(30, 1, generator=again) - 0.5)
    shift = torch.randint(48, (30, 1), generator=again)
    for i in range(30):
        template = np.array(_TEMPLATES[int(y[i])], float)
        template = (template - template.mean()) / template.std()
        padded = np.concatenate([(template - template[0]) / 6, np.zeros(int(padding[i]))])
        stretched = np.interp(np.linspace(0, len(padded) - 1, 72), np.arange(len(padded)), padded)
        covered = np.linspace(0, len(padded) - 1, 72) < 12
        k = int(shift[i])
        np.testing.assert_allclose(signal[i], float(scale[i]) * np.roll(stretched, k), atol=1e-5)
        np.testing.assert_array_equal(there[i], np.roll(covered, k))


def test_noise_is_smooth_and_signals_keep_their_ends():
    noise = torch.randn(500, 72, generator=torch.Generator().manual_seed(0))
    smooth = _smoothed(noise)
    # A Gaussian of standard deviation 2 leaves 1 / (2 * 2 * sqrt(pi)) of the variance.
    assert smooth[:, 10:-10].var() == pytest.approx(1 / (4 * np.pi**0.5), rel=0.05)
    assert torch.allclose(_smoothed(torch.ones(1, 72)), torch.ones(1, 72))
    line = torch.linspace(0, 1, 72)[None]
    assert torch.allclose(_thinned(line), torch.linspace(0, 1, 40)[None], atol=1e-6)


def test_classes_can_be_told_apart_but_not_by_a_line():
    """Means of the classes say little, since a signal may be anywhere; its neighbour says much."""
    data = made(2000)
    x, y = data.x.flatten(1), data.y
    train, test = slice(0, 1600), slice(1600, 2000)
    means = torch.stack([x[train][y[train] == c].mean(0) for c in range(10)])
    by_mean = (torch.cdist(x[test], means).argmin(1) == y[test]).double().mean()
    by_neighbour = (y[train][torch.cdist(x[test], x[train]).argmin(1)] == y[test]).double().mean()
    assert 0.1 < by_mean < 0.4 < by_neighbour
