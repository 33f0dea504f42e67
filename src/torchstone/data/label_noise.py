"""Generators of label noise: pure functions from clean labels to noisy ones.

**What "rate" means** differs in the literature and must be equal across the arms of a comparison. Here ``rate`` is
the share of samples that are *selected*; what happens to a selected sample decides how many labels change:

==========================  =======================================  ============================================
function                    a selected sample                        expected share of changed labels
==========================  =======================================  ============================================
symmetric, own class        is redrawn among all C classes           ``rate * (C - 1) / C``
symmetric, no own class     is redrawn among the other C - 1         ``rate``
pair flip                   moves to the next class                  ``rate``
asymmetric                  moves by the map, if its class is in it  ``rate *`` share of the mapped classes
instance dependent          moves by its own projection              mean of a truncated normal, about ``rate``
transition                  (no rate: any row-stochastic matrix)     ``1 -`` mean diagonal entry over the samples
==========================  =======================================  ============================================

SOP (Liu et al., ICML 2022) and DivideMix redraw among all classes; Co-teaching and NPC among the others.

With ``exact=True`` exactly ``round(rate * n)`` samples are selected (common in the field); otherwise each one is, with
probability ``rate``. Under one generator seed a larger rate selects a superset of what a smaller one selects, and gives
the common samples the same labels. Chance is drawn on the generator's device, the CPU by default, so the device of the
labels does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from torchstone._checks import check_finite, check_float, check_int, check_labels, check_length, check_ndim

__all__ = [
    "asymmetric_noise",
    "instance_dependent_noise",
    "pair_flip_noise",
    "symmetric_noise",
    "transition_matrix",
    "transition_noise",
]


def symmetric_noise(
    y: Int64[Tensor, "n"],
    *,
    rate: float,
    num_classes: int,
    own_class: bool,
    generator: torch.Generator | None = None,
    exact: bool = False,
) -> Int64[Tensor, "n"]:
    """Redraw a share ``rate`` of the labels uniformly.

    ``own_class=True`` redraws among all classes, so only ``rate * (C - 1) / C`` of the labels change (as in SOP);
    ``own_class=False`` redraws among the others, so ``rate`` of them change.

    Shapes:
        ``y`` (n,) int64; returns like ``y``.

    Raises:
        ValueError: if ``rate`` is outside [0, 1], ``num_classes`` < 2, or a label is out of range.

    Source:
        van Rooyen et al., *Learning with symmetric label noise*, NeurIPS 2015.

    Example:
        >>> y = torch.zeros(1000, dtype=torch.int64)
        >>> noisy = symmetric_noise(y, rate=0.4, num_classes=10, own_class=False, exact=True)
        >>> int((noisy != y).sum())
        400
    """
    rate, num_classes = _check(y, rate, num_classes)
    selected = _select(y, rate, generator, exact)
    if own_class:
        redrawn = _randint(0, num_classes, y, generator)
    else:
        redrawn = (y + _randint(1, num_classes, y, generator)) % num_classes
    return torch.where(selected, redrawn, y)


def pair_flip_noise(
    y: Int64[Tensor, "n"],
    *,
    rate: float,
    num_classes: int,
    generator: torch.Generator | None = None,
    exact: bool = False,
) -> Int64[Tensor, "n"]:
    """Move a share ``rate`` of the labels to the next class, ``y -> (y + 1) mod C``.

    Shapes:
        ``y`` (n,) int64; returns like ``y``.

    Raises:
        ValueError: if ``rate`` is outside [0, 1], ``num_classes`` < 2, or a label is out of range.

    Source:
        Han et al., *Co-teaching*, NeurIPS 2018, section 4.

    Example:
        >>> pair_flip_noise(torch.tensor([0, 1, 2]), rate=1.0, num_classes=3)
        tensor([1, 2, 0])
    """
    rate, num_classes = _check(y, rate, num_classes)
    return torch.where(_select(y, rate, generator, exact), (y + 1) % num_classes, y)


def asymmetric_noise(
    y: Int64[Tensor, "n"],
    *,
    rate: float,
    num_classes: int,
    mapping: Mapping[int, int],
    generator: torch.Generator | None = None,
    exact: bool = False,
) -> Int64[Tensor, "n"]:
    """Move labels to the class they are easily confused with, ``y -> mapping[y]``, with probability ``rate``.

    Classes that are not keys of ``mapping`` keep their labels, so fewer than ``rate`` of all labels change. The map
    used for CIFAR-10 is ``{9: 1, 2: 0, 3: 5, 5: 3, 4: 7}``: truck to automobile, bird to airplane, cat and dog to each
    other, deer to horse.

    Shapes:
        ``y`` (n,) int64; returns like ``y``.

    Raises:
        ValueError: if ``rate`` is outside [0, 1], ``num_classes`` < 2, or a label or a class of ``mapping`` is out of
            range.

    Source:
        Patrini et al., *Making deep neural networks robust to label noise*, CVPR 2017, section 5.

    Example:
        >>> asymmetric_noise(torch.tensor([0, 1, 2, 3]), rate=1.0, num_classes=4, mapping={1: 3, 3: 1})
        tensor([0, 3, 2, 1])
    """
    rate, num_classes = _check(y, rate, num_classes)
    target = torch.arange(num_classes, device=y.device)
    for source, to in mapping.items():
        high = num_classes - 1
        target[check_int("a key of mapping", source, 0, high)] = check_int(f"mapping[{source}]", to, 0, high)
    return torch.where(_select(y, rate, generator, exact), target[y], y)


def transition_noise(
    y: Int64[Tensor, "n"], *, matrix: Float[Tensor, "classes classes"], generator: torch.Generator | None = None
) -> Int64[Tensor, "n"]:
    """Redraw every label from its row of a transition matrix, ``P(noisy = j | y = i) = matrix[i, j]``.

    Shapes:
        ``y`` (n,) int64; ``matrix`` (classes, classes), rows >= 0 with sum 1; returns like ``y``.

    Cost:
        O(n classes) memory.

    Raises:
        ValueError: if ``matrix`` is not square and row-stochastic (tolerance 1e-5), or a label is out of range.

    Example:
        >>> transition_noise(torch.tensor([0, 1, 1]), matrix=torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        tensor([1, 1, 1])
    """
    check_ndim("matrix", matrix, 2, "(classes, classes)")
    check_length("matrix", matrix, matrix.shape[1], "columns")
    _check(y, 0.0, len(matrix))
    rows = matrix.to(y.device, torch.float64)
    if not (bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-5).all())):
        raise ValueError("matrix must have rows >= 0 that sum to 1")
    cdf = rows.cumsum(1)
    u = _rand(y, generator) * cdf[y, -1]
    return torch.searchsorted(cdf[y], u[:, None], right=True)[:, 0].clamp_max(len(matrix) - 1)


def instance_dependent_noise(
    x: Float[Tensor, "n ..."],
    y: Int64[Tensor, "n"],
    *,
    rate: float,
    num_classes: int,
    std: float = 0.1,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "n"]:
    r"""Flip each label with its own probability, to a class that depends on the input.

    .. math::
        q_i \sim \mathcal N(\text{rate}, \text{std}^2) \text{ on } [0, 1], \qquad
        P(\tilde y_i = y_i) = 1 - q_i, \qquad
        P(\tilde y_i = j \ne y_i) = q_i \operatorname{softmax}_{j \ne y_i} (x_i^\top W_{y_i})_j

    with one standard normal matrix :math:`W_c` (features, classes) per class. Truncation moves the mean away from
    ``rate`` near the ends: with ``std=0.1``, a rate of 0 still changes 8.0 % of the labels, 0.1 changes 12.9 %, 0.2
    changes 20.6 %, and 0.3 to 0.7 change what they say. The authors feed inputs in [0, 1]: the scale of ``x`` sets how
    strongly the new label depends on it.

    Shapes:
        ``x`` (n, ...), flattened; ``y`` (n,) int64; returns like ``y``.

    Cost:
        O(n features classes) time; memory of one matrix :math:`W_c` and O(n classes).

    Raises:
        ValueError: if ``rate`` is outside [0, 1], ``std`` <= 0, ``num_classes`` < 2, a label is out of range, ``x`` is
            not finite, or ``x`` and ``y`` differ in length.

    Source:
        Xia et al., *Part-dependent label noise*, NeurIPS 2020, algorithm 2.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> y = torch.zeros(1000, dtype=torch.int64)
        >>> noisy = instance_dependent_noise(torch.rand(1000, 4), y, rate=0.4, num_classes=3, generator=g)
        >>> 0.33 < float((noisy != y).float().mean()) < 0.47
        True
    """
    rate, num_classes = _check(y, rate, num_classes)
    std = check_float("std", std, 0.0, open_low=True)
    check_length("x", x, len(y), "y")
    check_finite("x", x)
    flat = x.reshape(len(y), math.prod(x.shape[1:]))
    flip = _truncated_normal(rate, std, _rand(y, generator))
    device = _device(generator)
    scores = flat.new_empty(len(y), num_classes)
    for c in range(num_classes):
        weight = torch.randn(flat.shape[1], num_classes, generator=generator, device=device, dtype=flat.dtype)
        of_class = y == c
        scores[of_class] = flat[of_class] @ weight.to(flat.device)
    scores.scatter_(1, y[:, None], -torch.inf)
    other = torch.multinomial(scores.softmax(1).to(device), 1, generator=generator)[:, 0].to(y.device)
    return torch.where(_rand(y, generator) < flip, other, y)


def transition_matrix(
    y: Int64[Tensor, "n"], noisy: Int64[Tensor, "n"], num_classes: int
) -> Float64[Tensor, "classes classes"]:
    """Measure the noise: entry (i, j) is the share of the samples of class i that are labelled j.

    The row of a class that has no sample is NaN.

    Shapes:
        ``y`` and ``noisy`` (n,) int64; returns (classes, classes) float64.

    Raises:
        ValueError: if a label is out of range or the lengths differ.

    Example:
        >>> transition_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    num_classes = check_int("num_classes", num_classes, 1)
    check_labels("y", y, num_classes)
    check_labels("noisy", noisy, num_classes)
    check_length("noisy", noisy, len(y), "y")
    counts = (
        torch.bincount(y * num_classes + noisy, minlength=num_classes**2).reshape(num_classes, num_classes).double()
    )
    return counts / counts.sum(1, keepdim=True)


def _check(y: Tensor, rate: float, num_classes: int) -> tuple[float, int]:
    num_classes = check_int("num_classes", num_classes, 2)
    check_labels("y", y, num_classes)
    return check_float("rate", rate, 0.0, 1.0), num_classes


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")


def _rand(y: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(len(y), generator=generator, device=_device(generator), dtype=torch.float64).to(y.device)


def _randint(low: int, high: int, y: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randint(low, high, (len(y),), generator=generator, device=_device(generator)).to(y.device)


def _select(y: Tensor, rate: float, generator: torch.Generator | None, exact: bool) -> Tensor:
    if not exact:
        return _rand(y, generator) < rate
    selected = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    order = torch.randperm(len(y), generator=generator, device=_device(generator)).to(y.device)
    selected[order[: round(rate * len(y))]] = True
    return selected


def _truncated_normal(mean: float, std: float, u: Tensor) -> Tensor:
    """Normal(mean, std) conditioned on [0, 1], by inversion of uniform ``u``."""
    low, high = (torch.special.ndtr(torch.tensor((end - mean) / std, dtype=torch.float64)) for end in (0.0, 1.0))
    return (mean + std * torch.special.ndtri(low + (high - low) * u)).clamp(0.0, 1.0)
