r"""Data whose classes share one feature that a minority shows only faintly, and how well each group is classified.

An example has P patches in R^d. One of them, anywhere, is c w*, with the unit vector w* and c = alpha y for most
examples, but beta y, beta << alpha, for a share mu: the small margins. The other patches are Gaussian noise orthogonal
to w*. :func:`small_margin_transform` makes something alike of your own data.

Source: Jelassi and Li, *Towards understanding how momentum improves generalization in deep learning*, ICML 2022.

Deviations: the default sizes are finite ones that show the effect, where the paper has powers and logarithms of d.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from torchstone._checks import check_float, check_int, check_length, check_ndim

__all__ = ["GroupAccuracy", "MarginPatchDataset", "group_accuracy", "small_margin_transform"]


class MarginPatchDataset(Dataset[tuple[Tensor, Tensor]]):
    r"""Examples of several patches, one of which holds the feature w* with a large or a small margin.

    y is -1 or 1 with equal chance, and the feature's patch any with equal chance. It is y alpha w*, or with
    probability ``mu`` y beta w*; the others are N(0, sigma^2 (I - w* w*^T)).

    Args:
        n: examples.
        d: dimensions of a patch.
        patches: patches of an example.
        alpha: the large margin.
        beta: the small margin, at most ``alpha``.
        mu: share of the small margins, as a probability.
        sigma: deviation of the noise in each dimension; None is 2 / sqrt(d), by which a patch of noise has norm 2.
        w_star: the feature, scaled to norm 1 here; None is the first axis, to which the noise is orthogonal exactly.
        generator: source of everything random.
        dtype: of the patches; None is torch's default.

    Attributes:
        x: the examples.
        y: their classes, -1 or 1, in the dtype of ``x``.
        small_margin: which have the small margin.
        position: the patch that holds the feature.
        w_star: the feature.

    Shapes:
        ``x`` (n, patches, d); ``y``, ``small_margin`` and ``position`` (n,); ``w_star`` (d,). An item is ``(x, y)``.

    Cost:
        Memory for n * patches * d numbers.

    Raises:
        TypeError: for a size that is no integer.
        ValueError: if ``beta`` exceeds ``alpha``, ``mu`` is not in [0, 1], there are fewer than two patches, or another
            argument is out of range.

    Source:
        Jelassi and Li, ICML 2022, the data distribution of the theory.

    Example:
        >>> data = MarginPatchDataset(6, d=4, beta=0.25, mu=0.5, generator=torch.Generator().manual_seed(0))
        >>> data.small_margin.tolist()
        [True, False, True, False, True, True]
        >>> (data.y * (data.x @ data.w_star).sum(1)).tolist()  # the noise adds nothing
        [0.25, 1.0, 0.25, 1.0, 0.25, 0.25]
    """

    def __init__(
        self,
        n: int,
        *,
        d: int = 100,
        patches: int = 3,
        alpha: float = 1.0,
        beta: float = 0.15,
        mu: float = 0.1,
        sigma: float | None = None,
        w_star: Float[Tensor, " d"] | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_int("n", n, 1)
        check_int("d", d, 2)
        check_int("patches", patches, 2)
        check_float("alpha", alpha, 0.0, open_low=True)
        check_float("beta", beta, 0.0, alpha)
        check_float("mu", mu, 0.0, 1.0)
        sigma = 2 / math.sqrt(d) if sigma is None else check_float("sigma", sigma, 0.0)
        device = torch.device("cpu") if generator is None else generator.device
        self.w_star = _unit(w_star, d, dtype).to(device)
        self.y = 2 * torch.randint(2, (n,), generator=generator, device=device).to(self.w_star) - 1
        self.small_margin = torch.rand(n, generator=generator, device=device) < mu
        self.position = torch.randint(patches, (n,), generator=generator, device=device)
        x = torch.randn(n, patches, d, generator=generator, device=device, dtype=self.w_star.dtype).mul_(sigma)
        if w_star is None:
            x[..., 0] = 0
        else:
            x -= (x @ self.w_star).unsqueeze(-1) * self.w_star
        margin = self.y * torch.full_like(self.y, alpha).masked_fill(self.small_margin, beta)
        x[torch.arange(n, device=device), self.position] = margin.unsqueeze(1) * self.w_star
        self.x = x

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def _unit(w_star: Tensor | None, d: int, dtype: torch.dtype | None) -> Tensor:
    if w_star is None:
        found = torch.zeros(d, dtype=dtype)
        found[0] = 1
        return found
    check_ndim("w_star", w_star, 1, "(d,)")
    check_length("w_star", w_star, d, "d")
    found = w_star.to(dtype or torch.get_default_dtype())
    norm = found.norm()
    if not bool(norm.isfinite() & (norm > 0)):
        raise ValueError(f"w_star must have a finite norm above 0, but has {norm.item()}")
    return found / norm


class GroupAccuracy(NamedTuple):
    """Shares of right predictions: of all, and of the examples with large and with small margin."""

    overall: Tensor
    large: Tensor
    small: Tensor


def group_accuracy(
    logits: Float[Tensor, "..."], y: Shaped[Tensor, "*seeds n"], mask: Bool[Tensor, "*seeds n"]
) -> GroupAccuracy:
    r"""Accuracy over all examples, over those outside ``mask``, and over those in it.

    Args:
        logits: one number for an example, whose sign is the prediction (zero is wrong); or one for each class.
        y: -1 or 1; or class numbers.
        mask: the group apart, such as the examples with small margin.

    Shapes:
        ``logits`` like ``y``, or (*seeds, n, classes); returns three tensors (*seeds). A group without examples has
        NaN.

    Cost:
        O(n classes).

    Raises:
        ValueError: if shapes disagree.

    Source:
        Jelassi and Li, ICML 2022, report both groups; the small one hides in the overall accuracy.

    Example:
        >>> small = torch.tensor([False, False, True])
        >>> group_accuracy(torch.tensor([0.4, -2.0, -0.1]), torch.tensor([1.0, -1.0, 1.0]), small)
        GroupAccuracy(overall=tensor(0.6667), large=tensor(1.), small=tensor(0.))
    """
    if mask.shape != y.shape or logits.shape[: y.ndim] != y.shape or logits.ndim - y.ndim not in (0, 1):
        raise ValueError(
            f"mask must have the shape of y, {tuple(y.shape)}, and logits too, or a further axis of classes; but they "
            f"have {tuple(mask.shape)} and {tuple(logits.shape)}"
        )
    right = (logits * y > 0) if logits.ndim == y.ndim else logits.argmax(-1) == y
    right = right.to(logits.dtype)
    return GroupAccuracy(right.mean(-1), *((right * group).sum(-1) / group.sum(-1) for group in (~mask, mask)))


def small_margin_transform(
    x: Float[Tensor, "n ..."],
    *,
    fraction: float = 0.1,
    factor: float = 0.15,
    mean: Float[Tensor, "..."] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, " n"]]:
    """Give a random part of your own data a small margin: x <- mean + factor (x - mean).

    Args:
        x: the examples; they are not changed.
        fraction: share of them that shrinks, rounded to whole examples.
        factor: what is left of their distance from the mean, beta / alpha.
        mean: towards which they shrink; None is the mean of ``x``. For test data give that of the training data.
        generator: picks the examples.

    Returns:
        The new examples, and which of them have shrunk.

    Shapes:
        ``x`` (n, ...); ``mean`` (...); returns like ``x``, and (n,).

    Cost:
        One copy of ``x``.

    Raises:
        ValueError: if ``fraction`` or ``factor`` is not in [0, 1], ``x`` is empty, or ``mean`` has another shape than
            an example.

    Source:
        The small margins of Jelassi and Li, ICML 2022, for data that are not theirs.

    Example:
        >>> x, small = small_margin_transform(torch.tensor([[-4.0], [4.0]]), fraction=1.0, factor=0.25)
        >>> x.flatten(), small
        (tensor([-1.,  1.]), tensor([True, True]))
    """
    check_float("fraction", fraction, 0.0, 1.0)
    check_float("factor", factor, 0.0, 1.0)
    if not len(x):
        raise ValueError("x must hold at least one example, but is empty")
    mean = x.mean(0) if mean is None else mean
    if mean.shape != x.shape[1:]:
        raise ValueError(f"mean must have the shape of an example, {tuple(x.shape[1:])}, but has {tuple(mean.shape)}")
    small = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    where = x.device if generator is None else generator.device
    picked = torch.randperm(len(x), generator=generator, device=where)[: round(fraction * len(x))]
    small[picked.to(x.device)] = True
    return torch.where(small.view(-1, *[1] * mean.ndim), mean + factor * (x - mean), x), small
