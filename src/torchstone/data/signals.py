"""MNIST-1D, drawn anew: ten short signals, moved, scaled, sheared and hidden in noise, 40 numbers a sample.

A problem that costs almost nothing and yet tells architectures apart: a linear model finds a third of the classes, a
convolutional net almost all. Made by the recipe of its authors, all samples at once; their own set, one draw of that
recipe from another generator of random numbers, holds other samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from torchstone._checks import check_int
from torchstone.data.tensors import TensorData

__all__ = ["mnist1d"]

LENGTH = 40
_PADDING = (36, 60)  # zeros behind the template
_LONG = 12 + _PADDING[1]  # numbers in a signal before it is thinned out to LENGTH
_TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


def mnist1d(n: int = 5000, *, generator: torch.Generator | None = None) -> TensorData:
    """Draw ``n`` samples of MNIST-1D in random order, their classes as even in number as ``n`` allows.

    A template of 12 points is padded by 36 to 60 zeros, stretched to 72 points, scaled by 0.8 to 1.2 and rolled by up
    to 47 places; smooth noise fills where it is not, white noise goes over all, a random slope is taken off, and 40
    points are kept. At last the whole set is brought to mean 0 and standard deviation 1.

    Shapes:
        ``x`` (n, 1, 40).

    Cost:
        O(n), about 50 ms for 5 000.

    Raises:
        ValueError: if ``n`` is below 10, the number of classes.

    Source:
        Greydanus and Kobak, *Scaling down deep learning with MNIST-1D*, ICML 2024.

    Example:
        >>> mnist1d(100, generator=torch.Generator().manual_seed(0))
        TensorData(mnist1d: 100 samples of shape (1, 40), 10 classes)
    """
    check_int("n", n, len(_TEMPLATES))
    y = torch.arange(n) % len(_TEMPLATES)
    y = y[torch.randperm(n, generator=generator)]
    signal, there = _placed(y, generator)
    smooth = _smoothed(0.25 * torch.randn(n, _LONG, generator=generator))
    x = torch.where(there, signal, smooth) + 0.02 * torch.randn(n, _LONG, generator=generator)
    slope = 0.75 * (torch.rand(n, 1, generator=generator) - 0.5)
    x = _thinned(x - slope * torch.linspace(-0.5, 0.5, _LONG))
    x = (x - x.mean()) / x.std()
    return TensorData(x[:, None], y, tuple("0123456789"), "mnist1d").validate()


def _placed(y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The template of each class, stretched, scaled and rolled; and the places that it covers."""
    templates = torch.tensor(_TEMPLATES)
    templates = (templates - templates.mean(1, keepdim=True)) / templates.std(1, correction=0, keepdim=True)
    templates = F.pad((templates - templates[:, :1]) / 6, (0, _PADDING[1] + 1))  # starts and ends at 0
    low, high = _PADDING
    padding = torch.randint(low, high + 1, (len(y), 1), generator=generator)
    scale = 1 + 0.4 * (torch.rand(len(y), 1, generator=generator) - 0.5)
    shift = torch.randint(48, (len(y), 1), generator=generator)
    place = (torch.arange(_LONG) - shift) % _LONG  # before it was rolled
    at = place * (11 + padding) / (_LONG - 1)  # on the template
    left = at.long()
    value = torch.lerp(templates[y[:, None], left], templates[y[:, None], left + 1], at - left)
    return scale * value, at < 12


def _smoothed(noise: Float[Tensor, "n length"]) -> Float[Tensor, "n length"]:
    """Each row convolved with a Gaussian of standard deviation 2."""
    kernel = torch.exp(-(torch.arange(-8.0, 9.0) ** 2) / 8)
    padded = F.pad(noise[:, None], (8, 8), mode="reflect")
    return F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def _thinned(x: Float[Tensor, "n length"]) -> Float[Tensor, "n 40"]:
    return F.interpolate(x[:, None], LENGTH, mode="linear", align_corners=True)[:, 0]
