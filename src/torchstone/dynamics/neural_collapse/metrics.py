r"""Measures of neural collapse, for one network or a stack of them.

At the end of training the features of a classifier collapse (Papyan, Han, Donoho, 2020): the rows of a class onto its
mean (NC1), the means onto a regular frame (NC2), the last layer onto the means (NC3), its decisions onto those of the
nearest class mean (NC4). With class means mu_k, global mean mu_G and C = [mu_k - mu_G],

    NC1 = tr(Sigma_W Sigma_B^+) / K,      Sigma_W = (1/N) sum_i (h_i - mu_{y_i})(...)^T,      Sigma_B = C C^T / K;
    NC2 = |M^T M / |M^T M|_F - T|_F of the means M, and likewise of the rows of the last layer's W;
    NC3 = |W M / |W M|_F - T|_F.

The frame ``"etf"`` is the simplex: T = (I - J/K) / sqrt(K - 1), with M and the rows of W centred. ``"orthogonal"`` is
T = I / sqrt(K), with nothing centred: without a bias, regularised MSE leads there. A centred orthogonal frame *is* a
simplex, so the two are told apart on uncentred means alone.

Source: Zhou, Li, Ding, You, Qu, Zhu, *On the Optimization Landscape of Neural Collapse under MSE Loss*, ICML 2022;
Tirer, Bruna, *Extended Unconstrained Features Model for Exploring Deep Neural Collapse*, ICML 2022.

Deviations: Sigma_B has rank K - 1, so which of its eigenvalues count as zero is an argument (``rtol``), not left to the
default of a pseudo-inverse, which may take rounding errors for directions; everything is float64. mu_G is the mean of
all rows, which is that of the class means where classes are of one size.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchstone._checks import check_finite, check_float, check_one_of
from torchstone.dynamics.neural_collapse.moments import ClassMoments, check_features, class_moments

__all__ = ["Frame", "NCMetrics", "frame_error", "metrics_of_moments", "nc_metrics"]

Frame = Literal["etf", "orthogonal"]


@dataclass(frozen=True, eq=False)
class NCMetrics:
    r"""Measures of neural collapse: 0 is full collapse. Those of the last layer are ``None`` without its weight.

    Attributes:
        nc1: variability within the classes against that between them.
        nc2: distance of the class means from the frame, at most 2.
        nc2_weight: the same of the rows of the last layer, the NC2 of Zhou et al.
        nc3: distance of the last layer from the class means.
        nc4: share of rows that the last layer puts in another class than the nearest mean does; ``None`` too where the
            rows are gone (a meter keeps none).
        bias_relation: norm of W mu_G + b. Under cross entropy it goes to 0, under MSE to 1 / sqrt(K).
        between_spectrum: eigenvalues of Sigma_B, largest first.
        counts: rows of each class.
        means: class means.
        within: Sigma_W.

    Shapes:
        measures (*s,), ``between_spectrum`` (*s, min(classes, d)), ``counts`` (*s, classes), ``means``
        (*s, classes, d), ``within`` (*s, d, d), all float64.
    """

    nc1: Float[Tensor, "*s"]
    nc2: Float[Tensor, "*s"]
    nc2_weight: Float[Tensor, "*s"] | None
    nc3: Float[Tensor, "*s"] | None
    nc4: Float[Tensor, "*s"] | None
    bias_relation: Float[Tensor, "*s"] | None
    between_spectrum: Float[Tensor, "*s r"]
    counts: Float[Tensor, "*s classes"]
    means: Float[Tensor, "*s classes d"]
    within: Float[Tensor, "*s d d"]

    @cached_property
    def within_spectrum(self) -> Float[Tensor, "*s d"]:
        """Eigenvalues of Sigma_W, largest first. O(d^3), when first asked for."""
        return torch.linalg.eigvalsh(self.within).flip(-1)


def frame_error(product: Float[Tensor, "*s classes classes"], frame: Frame = "etf") -> Float[Tensor, "*s"]:
    """Distance in Frobenius norm of P / |P| from the Gram matrix of a frame, of norm 1 too: in [0, 2].

    NaN for a product that is zero.

    Example:
        >>> frame_error(3 * torch.eye(4), "orthogonal"), frame_error(torch.eye(4) - 1 / 4, "etf")
        (tensor(0.), tensor(0.))
    """
    k = product.shape[-1]
    ideal = torch.eye(k, dtype=product.dtype, device=product.device) / math.sqrt(k)
    if check_one_of("frame", frame, ("etf", "orthogonal")) == "etf":
        ideal = (ideal * math.sqrt(k) - 1 / k) / math.sqrt(k - 1)
    return torch.linalg.matrix_norm(product / torch.linalg.matrix_norm(product, keepdim=True) - ideal)


def nc_metrics(
    features: Float[Tensor, "*s n d"],
    labels: Int64[Tensor, "... n"],
    weight: Float[Tensor, "*s classes d"] | None = None,
    bias: Float[Tensor, "*s classes"] | None = None,
    num_classes: int | None = None,
    *,
    frame: Frame = "etf",
    centred: bool | None = None,
    rtol: float = 1e-8,
) -> NCMetrics:
    r"""NC1 to NC4 of features, of one network or of a stack of them along leading dimensions.

    NC1 = tr(Sigma_W Sigma_B^+) / K; the others are distances of M^T M, W W^T and W M from the frame, each divided by
    its norm. Take features of *training* data, not augmented, in evaluation mode: what the last layer sees.

    Args:
        features: what the last layer sees.
        labels: class numbers.
        weight: of the last layer; without it NC3 and NC4 are ``None``.
        bias: of the last layer.
        num_classes: by default the rows of ``weight``, else the largest label + 1.
        frame: ``"etf"`` (simplex) or ``"orthogonal"`` (the optimum of MSE without a bias).
        centred: whether means and rows are centred first; by default for the simplex alone.
        rtol: eigenvalues of Sigma_B below this share of the largest count as zero.

    Shapes:
        ``features`` (*s, n, d) float; ``labels`` (*s, n) int64, or (n,) for all; ``weight`` (*s, classes, d);
        ``bias`` (*s, classes); each measure is (*s,) float64. A class without rows makes measures NaN, with a
        warning.

    Cost:
        O(n d^2 + classes d^2): the scatter, and the singular values of the means. No d x d pseudo-inverse.

    Raises:
        TypeError, ValueError: on a wrong shape or dtype, values that are not finite, a label out of range, no row.

    Source:
        Zhou et al., ICML 2022; Tirer, Bruna, ICML 2022.

    Example:
        >>> means = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])  # a simplex of three classes
        >>> found = nc_metrics(means.repeat_interleave(5, 0), torch.arange(15) // 5, weight=2 * means)
        >>> [round(float(value), 6) for value in (found.nc1, found.nc2, found.nc3, found.nc4)]
        [0.0, 0.0, 0.0, 0.0]
    """
    if num_classes is None:
        num_classes = weight.shape[-2] if weight is not None else int(labels.max()) + 1 if labels.numel() else 2
    check_features(features, labels, num_classes)
    if not features.shape[-2]:
        raise ValueError("features must have at least 1 row, but have 0")
    moments = class_moments(features, labels, num_classes)
    found = metrics_of_moments(moments, weight, bias, frame=frame, centred=centred, rtol=rtol)
    if weight is None:
        return found
    logits = features.detach().double() @ weight.detach().double().mT
    if bias is not None:
        logits = logits + bias.detach().double().unsqueeze(-2)
    near = features.detach().double() @ moments.means.mT - moments.means.square().sum(-1).unsqueeze(-2) / 2
    nc4 = (logits.argmax(-1) != near.argmax(-1)).double().mean(-1)
    return replace(found, nc4=torch.where((moments.counts > 0).all(-1), nc4, torch.nan))


def metrics_of_moments(
    moments: ClassMoments,
    weight: Float[Tensor, "*s classes d"] | None = None,
    bias: Float[Tensor, "*s classes"] | None = None,
    *,
    frame: Frame = "etf",
    centred: bool | None = None,
    rtol: float = 1e-8,
) -> NCMetrics:
    """The measures, but for NC4, from counts, means and scatter; arguments as of :func:`nc_metrics`."""
    check_one_of("frame", frame, ("etf", "orthogonal"))
    check_float("rtol", rtol, 0, 1, open_high=True)
    _check_last_layer(moments.means, weight, bias)
    centred = frame == "etf" if centred is None else centred
    empty = moments.counts == 0
    if bool(empty.any()):
        classes = empty.any(0).flatten() if empty.ndim > 1 else empty
        named = sorted({int(index) % empty.shape[-1] for index in classes.nonzero()})
        warnings.warn(f"no row has the label {', '.join(map(str, named))}: measures are NaN", UserWarning, stacklevel=3)
    whole = ~empty.any(-1)
    offsets = moments.means - moments.global_mean.unsqueeze(-2)
    means = offsets if centred else moments.means

    def known(measure: Tensor) -> Tensor:
        return torch.where(whole, measure, torch.nan)

    singular, directions = torch.linalg.svd(offsets, full_matrices=False)[1:]
    between = singular.square()
    kept = between > rtol * between[..., :1]
    spread = ((directions @ moments.within) * directions).sum(-1)
    nc1 = (spread / between.where(kept, torch.inf)).sum(-1).where(kept.any(-1), torch.nan)
    nc2_weight = nc3 = relation = None
    if weight is not None:
        rows = weight.detach().to(means)
        shifted = (rows @ moments.global_mean.unsqueeze(-1)).squeeze(-1)
        relation = known((shifted if bias is None else shifted + bias.detach().to(means)).norm(dim=-1))
        rows = rows - rows.mean(-2, keepdim=True) if centred else rows
        nc2_weight = frame_error(rows @ rows.mT, frame)
        nc3 = known(frame_error(rows @ means.mT, frame))
    return NCMetrics(
        nc1=known(nc1),
        nc2=known(frame_error(means @ means.mT, frame)),
        nc2_weight=nc2_weight,
        nc3=nc3,
        nc4=None,
        bias_relation=relation,
        between_spectrum=between / offsets.shape[-2],
        counts=moments.counts,
        means=moments.means,
        within=moments.within,
    )


def _check_last_layer(means: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is None:
        if bias is not None:
            raise ValueError("bias of the last layer was given without its weight")
        return
    for name, given, shape in (("weight", weight, means.shape), ("bias", bias, means.shape[:-1])):
        if given is None:
            continue
        if given.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)}, by classes and features, but has {tuple(given.shape)}"
            )
        check_finite(name, given)
