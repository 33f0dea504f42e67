r"""Counts, means and pooled scatter of the classes: all that measures of neural collapse need to know of the features.

For class k with n_k rows: its mean mu_k, and S = sum_i (h_i - mu_{y_i})(h_i - mu_{y_i})^T over all rows. Two parts of a
data set merge without loss (Chan, Golub, LeVeque, 1979):

    S = S_a + S_b + sum_k n_ak n_bk / n_k (mu_bk - mu_ak)(mu_bk - mu_ak)^T,

so one pass is enough, and rows are centred before they are squared: no difference of large numbers is ever taken.
Everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchstone._checks import check_finite, check_int

__all__ = ["ClassMoments", "check_features", "class_moments", "merge_moments"]


@dataclass(frozen=True, eq=False)
class ClassMoments:
    r"""Counts, means and pooled scatter; the mean of a class without rows is zero.

    Shapes:
        ``counts`` (*s, classes), ``means`` (*s, classes, d), ``scatter`` (*s, d, d), all float64.
    """

    counts: Float[Tensor, "*s classes"]
    means: Float[Tensor, "*s classes d"]
    scatter: Float[Tensor, "*s d d"]

    @property
    def global_mean(self) -> Float[Tensor, "*s d"]:
        """Mean of all rows."""
        share = self.counts / self.counts.sum(-1, keepdim=True).clamp(min=1)
        return (share.unsqueeze(-1) * self.means).sum(-2)

    @property
    def within(self) -> Float[Tensor, "*s d d"]:
        """Covariance within the classes: scatter / number of rows."""
        return self.scatter / self.counts.sum(-1).clamp(min=1)[..., None, None]


def check_features(features: Tensor, labels: Tensor, num_classes: int, ndim: int | None = None) -> None:
    """Raise unless ``features`` are (..., n, d) finite floats, and ``labels`` class numbers for their rows."""
    check_int("num_classes", num_classes, 2)
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, but have dtype {features.dtype}")
    if features.ndim < 2 or (ndim is not None and features.ndim != ndim):
        shape = "(n, d)" if ndim == 2 else "(..., n, d)"
        raise ValueError(f"features must have shape {shape}, but have {tuple(features.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must have dtype torch.int64, but have {labels.dtype}")
    if labels.shape not in (features.shape[:-1], features.shape[-2:-1]):
        raise ValueError(
            f"labels must have shape {tuple(features.shape[:-1])}, as the rows of features, "
            f"but have {tuple(labels.shape)}"
        )
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, but span {int(labels.min())}..{int(labels.max())}")
    check_finite("features", features)


def class_moments(features: Float[Tensor, "*s n d"], labels: Int64[Tensor, "... n"], num_classes: int) -> ClassMoments:
    r"""Moments of one lot of rows, in float64; the arguments are not checked.

    Shapes:
        ``features`` (*s, n, d); ``labels`` (*s, n), or (n,) for all.

    Cost:
        O(n d^2): one product of the centred rows with themselves.
    """
    *stack, n, d = features.shape
    models = math.prod(stack)
    rows = features.detach().to(torch.float64).reshape(-1, d)
    offset = num_classes * torch.arange(models, device=labels.device)
    own = (labels.expand(features.shape[:-1]).reshape(models, n) + offset[:, None]).flatten()
    counts = torch.bincount(own, minlength=models * num_classes).to(torch.float64)
    means = rows.new_zeros(len(counts), d).index_add_(0, own, rows) / counts.clamp(min=1)[:, None]
    centred = (rows - means[own]).view(*stack, n, d)
    return ClassMoments(counts.view(*stack, num_classes), means.view(*stack, num_classes, d), centred.mT @ centred)


def merge_moments(a: ClassMoments, b: ClassMoments) -> ClassMoments:
    """Moments of both lots of rows together.

    Cost:
        O(classes x d^2).
    """
    counts = a.counts + b.counts
    share = b.counts / counts.clamp(min=1)
    step = b.means - a.means
    means = a.means + share.unsqueeze(-1) * step
    apart = (a.counts * share).sqrt().unsqueeze(-1) * step  # n_a n_b / n, half on each side of the product
    return ClassMoments(counts, means, a.scatter + b.scatter + apart.mT @ apart)
