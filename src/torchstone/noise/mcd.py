"""Minimum covariance determinant (MCD) for classes that share one covariance.

Of each class keep the h_c samples for which the pooled covariance of all that is kept has the smallest determinant:
wrongly labelled samples lie far from the others of their class, and are left out. The minimum is approached by
concentration steps, which keep the samples nearest to the mean of their class and never raise the determinant.

Source: Lee et al., *Robust Inference via Generative Classifiers for Handling Noisy Labels*, ICML 2019, algorithm 1. The
concentration step is that of Rousseeuw and Van Driessen, *A Fast Algorithm for the Minimum Covariance Determinant
Estimator*, Technometrics 1999.

Deviations: the pooled covariance weighs classes by their kept samples h_c, where the paper takes all N_c (the same if
the kept share is), because only then does no step raise the determinant. The authors' code divides the first pooled
covariance once per class instead of once, so that the last class dominates it; here it is divided once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from torchstone._checks import check_finite, check_float, check_int, check_labels, check_length, check_ndim
from torchstone.noise._batch import upcast

__all__ = ["Gaussians", "MinCovDetTied", "smallest_per_class", "tied_gaussians"]

CHUNK = 4096  # samples at a time: what is computed from them stays in the cache, and memory does not grow with n


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Class means and shared covariance.

    Attributes:
        means: (classes, d).
        covariance: (d, d).
        whitening: (d, rank) with precision = whitening whitening^T.
        log_det: logarithm of the determinant; eigenvalues that count as 0 enter with the threshold below which they do.
    """

    means: Float64[Tensor, "classes d"]
    covariance: Float64[Tensor, "d d"]
    whitening: Float64[Tensor, "d rank"]
    log_det: float

    @property
    def precision(self) -> Float64[Tensor, "d d"]:
        """The (pseudo-)inverse of the covariance."""
        return self.whitening @ self.whitening.T

    def mahalanobis(self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Squared distance (x - mu_y)^T Sigma^{-1} (x - mu_y) of each sample to the mean of its label."""
        means, whitening = self.means.to(features.dtype), self.whitening.to(features.dtype)
        parts = [((x - means[y]) @ whitening).square().sum(1) for x, y in _chunks(features, labels)]
        return torch.cat(parts)


def smallest_per_class(
    score: Float[Tensor, " n"], labels: Int64[Tensor, " n"], keep: Int64[Tensor, " classes"]
) -> Bool[Tensor, " n"]:
    """Mark the ``keep[c]`` samples of each class c with the smallest scores; of equal ones the earlier.

    Cost: two sorts, O(n log n), however many classes there are.

    Example:
        >>> smallest_per_class(torch.tensor([3.0, 1.0, 2.0, 9.0]), torch.tensor([0, 0, 0, 1]), torch.tensor([2, 1]))
        tensor([False,  True,  True,  True])
    """
    order = score.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels, minlength=len(keep))
    starts = counts.cumsum(0) - counts
    classes = labels[order]
    rank = torch.arange(len(labels), device=labels.device) - starts[classes]
    chosen = torch.empty_like(labels, dtype=torch.bool)
    chosen[order] = rank < keep[classes]
    return chosen


def tied_gaussians(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], *, num_classes: int, ridge: float = 0.0
) -> Gaussians:
    """Sample means of the classes, and the covariance around them.

    mu_c = mean of class c, Sigma = 1/n sum_i (x_i - mu_{y_i}) (x_i - mu_{y_i})^T. What is inverted is
    Sigma + ridge tr(Sigma) / d I; eigenvalues below d eps times the largest count as 0, as in ``scipy.linalg.pinvh``.

    Cost: O(n d^2 + d^3).
    """
    n, d = features.shape
    means = torch.zeros(num_classes, d, dtype=torch.float64, device=features.device)
    for x, y in _chunks(features, labels):
        means += x.new_zeros(num_classes, d).index_add_(0, y, x)
    means /= torch.bincount(labels, minlength=num_classes).unsqueeze(1)
    centre = means.to(features.dtype)
    covariance = means.new_zeros(d, d)
    for x, y in _chunks(features, labels):
        centred = x - centre[y]
        covariance += centred.T @ centred
    covariance /= n

    values, vectors = torch.linalg.eigh(covariance)
    values = values + ridge * covariance.diagonal().mean()
    threshold = values[-1] * d * torch.finfo(features.dtype).eps
    positive = values > threshold
    whitening = vectors[:, positive] / values[positive].sqrt()
    return Gaussians(means, covariance, whitening, float(values.clamp(min=threshold).log().sum()))


class MinCovDetTied:
    r"""Means and one shared covariance of classes, from the samples of each class that lie closest together.

    Start: random h_c samples of each class c. A concentration step measures (x - mu_c)^T Sigma^{-1} (x - mu_c) for all
    samples of the class, with the shared Sigma, keeps the h_c nearest, and estimates anew. Of several starts the one
    that ends with the smallest determinant is taken. With all samples kept this is linear discriminant analysis.

    The covariance is not scaled up for what is left out: the factor changes no decision of a classifier with equal
    priors.

    Args:
        support_fraction: share of each class to keep, h_c = floor(share \* N_c); ``None`` is
            floor((N_c + d + 1) / 2), which withstands the most: up to (N_c - d + 1) / 2 arbitrary samples.
        n_steps: concentration steps; ``None`` goes on until the determinant stops falling.
        n_init: random starts.
        ridge: added to the covariance before it is inverted, in units of its mean eigenvalue. A covariance that stays
            singular has its pseudo-inverse.
        generator: source of the random starts.

    Attributes:
        means_: (classes, d).
        covariance_: (d, d), of the samples kept.
        precision_: (d, d), its (pseudo-)inverse.
        support_: (n,) bool, the samples kept.
        gaussians_: the same estimate in float64, with ``mahalanobis(features, labels)``.
        log_dets_: logarithm of the determinant at the start and after each step.

    Shapes: ``fit`` takes features (n, d) float and labels (n,) int64.
    Cost: O(n d^2) time a step, in matrix products; O(n + d^2) memory beside the features.
    Raises: TypeError or ValueError on wrong dtypes and shapes, a class without samples, a label out of range, or a
        feature that is not finite. Warns if a class is too small to leave any of it out by ``support_fraction=None``,
        and if fewer samples are kept than d features need.
    Source: Lee et al., *Robust Inference via Generative Classifiers for Handling Noisy Labels*, ICML 2019, algorithm 1.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [90.0], [10.0], [11.0], [12.0], [13.5]])
        >>> mcd = MinCovDetTied(0.75, n_steps=None, generator=torch.Generator().manual_seed(0))
        >>> mcd.fit(x, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])).support_.tolist()
        [True, True, True, False, True, True, True, False]
        >>> mcd.means_.T
        tensor([[ 1., 11.]])
    """

    means_: Float[Tensor, "classes d"]
    covariance_: Float[Tensor, "d d"]
    precision_: Float[Tensor, "d d"]
    support_: Bool[Tensor, " n"]
    gaussians_: Gaussians
    log_dets_: list[float]

    def __init__(
        self,
        support_fraction: float | None = None,
        n_steps: int | None = 2,
        n_init: int = 1,
        *,
        ridge: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if support_fraction is not None:
            check_float("support_fraction", support_fraction, 0, 1, open_low=True)
        self.support_fraction = support_fraction
        self.n_steps = None if n_steps is None else check_int("n_steps", n_steps, 0)
        self.n_init = check_int("n_init", n_init, 1)
        self.ridge = check_float("ridge", ridge, 0)
        self.generator = generator

    @classmethod
    def official(cls, *, generator: torch.Generator | None = None) -> MinCovDetTied:
        """What the authors' code does: 70 % of each class, one step."""
        return cls(0.7, 1, generator=generator)

    @torch.no_grad()
    def fit(
        self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], *, num_classes: int | None = None
    ) -> MinCovDetTied:
        """Estimate from samples with labels 0 .. ``num_classes`` - 1 (by default up to the largest); return self."""
        keep = self._kept(features, labels, num_classes)
        features = upcast(features)
        starts = 1 if int(keep.sum()) == len(labels) else self.n_init
        results = [self._concentrate(features, labels, keep) for _ in range(starts)]
        self.gaussians_, self.support_, self.log_dets_ = min(results, key=lambda result: result[0].log_det)
        self.means_ = self.gaussians_.means.to(features.dtype)
        self.covariance_ = self.gaussians_.covariance.to(features.dtype)
        self.precision_ = self.gaussians_.precision.to(features.dtype)
        return self

    def _concentrate(self, features: Tensor, labels: Tensor, keep: Tensor) -> tuple[Gaussians, Tensor, list[float]]:
        """Take the steps from one random start."""
        where = labels.device if self.generator is None else self.generator.device
        chance = torch.rand(len(labels), generator=self.generator, device=where).to(labels.device)
        support = smallest_per_class(chance, labels, keep)
        estimate = self._estimate(features, labels, support, len(keep))
        log_dets = [estimate.log_det]
        while self.n_steps is None or len(log_dets) <= self.n_steps:
            before, support = support, smallest_per_class(estimate.mahalanobis(features, labels), labels, keep)
            if torch.equal(before, support):
                break
            estimate = self._estimate(features, labels, support, len(keep))
            log_dets.append(estimate.log_det)
            # A pseudo-inverse, or rounding, could send the steps round in circles.
            if self.n_steps is None and log_dets[-1] >= log_dets[-2]:
                break
        return estimate, support, log_dets

    def _estimate(self, features: Tensor, labels: Tensor, support: Tensor, num_classes: int) -> Gaussians:
        return tied_gaussians(features[support], labels[support], num_classes=num_classes, ridge=self.ridge)

    def _kept(self, features: Tensor, labels: Tensor, num_classes: int | None) -> Tensor:
        """How many samples to keep of each class, h_c; checks the input."""
        if not features.is_floating_point():
            raise TypeError(f"features must be floating point, but have dtype {features.dtype}")
        check_ndim("features", features, 2, "(n, d)")
        check_finite("features", features)
        check_length("labels", labels, len(features), "features")
        if not len(labels):
            raise ValueError("features must have at least 1 row, but have 0")
        classes = int(labels.max()) + 1 if num_classes is None else check_int("num_classes", num_classes, 1)
        check_labels("labels", labels, classes)
        counts, d = torch.bincount(labels, minlength=classes), features.shape[1]
        if not counts.all():
            raise ValueError(f"each class needs a sample, but class {int(counts.argmin())} of {classes} has none")
        if self.support_fraction is None:
            keep = torch.minimum((counts + d + 1) // 2, counts)
            small = int(counts.argmin())
            if counts[small] <= d + 1:
                warnings.warn(
                    f"class {small} has {int(counts[small])} samples of {d} features and keeps them all, wrong labels "
                    f"too: (N + d + 1) / 2 leaves samples out where there are more than {d + 1}",
                    UserWarning,
                    stacklevel=3,
                )
        else:
            # Rounding of the product must not cost a sample: 0.29 x 100 is 28.999...
            keep = (counts.double() * self.support_fraction + 1e-9).floor().long().clamp(min=1)
        if int(keep.sum()) - classes < d and not self.ridge:
            warnings.warn(
                f"{int(keep.sum())} samples in {classes} classes cannot fix a covariance of {d} features: it is "
                "singular, and inverted where it is not 0; give more samples, or a ridge",
                UserWarning,
                stacklevel=3,
            )
        return keep


def _chunks(features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(features.split(CHUNK), labels.split(CHUNK), strict=True)
