r"""Robust generative classifier (RoG): Gaussians on the features of a trained network, instead of its softmax layer.

A network that has fitted wrong labels still has features in which the classes form clusters. Each cluster is described
by a mean, all by one covariance, estimated from the part of each class that lies closest together
(:class:`~torchstone.noise.MinCovDetTied`); by Bayes' rule that is a linear classifier. Those of several layers are
averaged, with weights learnt on a few validation samples. The network is not trained again.

Source: Lee, Yun, Lee, Lee, Li, Shin, *Robust Inference via Generative Classifiers for Handling Noisy Labels*, ICML
2019.

Deviations: the logarithm of the mixture is computed as such, where the authors' code adds 1e-10 to the probability;
those of the estimator are named in :mod:`torchstone.noise.mcd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone._checks import check_float, check_int, check_length, check_ndim
from torchstone.noise.mcd import MinCovDetTied
from torchstone.training.evaluate import evaluating, first_device
from torchstone.training.features import capture, pooled

__all__ = ["RobustGenerativeClassifier", "ensemble_weights", "gaussian_classifier", "mixture"]

Layers = str | Sequence[str] | Callable[[Tensor], Tensor | Sequence[Tensor]]


def gaussian_classifier(
    means: Float[Tensor, "classes d"],
    precision: Float[Tensor, "d d"],
    *,
    priors: Float[Tensor, " classes"] | None = None,
) -> nn.Linear:
    r"""Bayes' rule for classes N(mu_c, Sigma) as a linear layer: linear discriminant analysis.

    logit_c(x) = mu_c^T P x - 1/2 mu_c^T P mu_c + log pi_c with the precision P = Sigma^{-1}. The softmax of these
    logits is the probability of the classes.

    Args:
        means: mu_c.
        precision: P, symmetric.
        priors: pi_c; by default all equal.

    Shapes: returns a layer from (n, d) to (n, classes), in the dtype of ``means``.
    Cost: O(classes d^2).
    Raises: ValueError if shapes disagree, or the priors are not positive with sum 1.
    Source: Lee et al., ICML 2019, eq. 1.

    Example:
        >>> layer = gaussian_classifier(torch.tensor([[-1.0], [2.0]]), torch.eye(1))
        >>> layer(torch.tensor([[0.5]])).softmax(1)  # half-way
        tensor([[0.5000, 0.5000]], grad_fn=<SoftmaxBackward0>)
    """
    check_ndim("means", means, 2, "(classes, d)")
    classes, d = means.shape
    if precision.shape != (d, d):
        raise ValueError(
            f"precision must have shape {(d, d)}, as means have {d} columns, but has {tuple(precision.shape)}"
        )
    priors = means.new_full((classes,), 1 / classes) if priors is None else priors.to(means)
    check_ndim("priors", priors, 1, "(classes,)")
    check_length("priors", priors, classes, "means")
    if bool((priors <= 0).any()) or not math.isclose(float(priors.sum()), 1, rel_tol=1e-4):
        raise ValueError(f"priors must be positive with sum 1, but are {priors.tolist()}")
    layer = _empty_linear(means)
    weight = means @ precision
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(priors.log() - (weight * means).sum(1) / 2)
    return layer


def mixture(
    log_probs: Float[Tensor, "layers n classes"], omega: Float[Tensor, " layers"]
) -> Float[Tensor, "n classes"]:
    """Logarithm of the weighted mean over layers: log sum_l w_l p_l(y | x) with w = softmax(omega)."""
    return (log_probs + omega.log_softmax(0)[:, None, None]).logsumexp(0)


def ensemble_weights(
    log_probs: Float[Tensor, "layers n classes"],
    target: Int64[Tensor, " n"],
    *,
    epochs: int = 20,
    batch_size: int = 50,
    lr: float = 0.02,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " layers"]:
    """Learn omega of :func:`mixture`: minimise its negative log-likelihood at the labels by Adam, from all ones.

    Cost: O(epochs x layers x n x classes).
    """
    log_probs = log_probs.detach()
    omega = torch.ones(len(log_probs), dtype=log_probs.dtype, device=log_probs.device, requires_grad=True)
    optimizer = torch.optim.Adam([omega], lr=lr)
    where = target.device if generator is None else generator.device
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in (
                torch.randperm(len(target), generator=generator, device=where).to(target.device).split(batch_size)
            ):
                optimizer.zero_grad()
                F.nll_loss(mixture(log_probs[:, batch], omega), target[batch]).backward()
                optimizer.step()
    return omega.detach()


class RobustGenerativeClassifier(nn.Module):
    """A trained network with Gaussian classifiers on some of its layers instead of its softmax layer.

    p(y | x) = sum_l w_l softmax(logits_l(x))_y, with :func:`gaussian_classifier` on layer l, whose spatial dimensions
    are averaged. After :meth:`fit` it maps inputs to log-probabilities::

        rog = RobustGenerativeClassifier(network, hidden_layers(network, x), num_classes)
        rog.fit(loader, val_loader)  # samples with noisy labels, not augmented
        prediction = rog(x).argmax(1)

    The network is used in evaluation mode, and never changed. Weights of the layers are learnt on the validation
    samples, whose labels may be as noisy: of these the part ``val_share`` counts that lies nearest to the mean of its
    label in the last layer. Without validation samples, all layers weigh the same.

    Args:
        backbone: the trained network.
        layers: names of its modules, from input to output, as :func:`~torchstone.noise.hidden_layers` finds them; or a
            function from inputs to one tensor of features or several, such as ``network.features``.
        num_classes: number of classes.
        support_fraction: of each class, as in :class:`~torchstone.noise.MinCovDetTied`; by default the authors' code's.
        n_steps: the same.
        n_init: the same.
        ridge: the same.
        val_share: share of the validation samples that counts.
        generator: source of random starts and of the order of validation samples.

    Attributes:
        heads: the linear layer of each layer.
        weights: w_l, with sum 1.
        noise_score: of each sample that was fitted, in the loader's order, -log p(its label): the higher, the more
            likely it is wrong. Not part of the state that is saved.

    Shapes: ``x`` as the network takes it; returns (n, num_classes).
    Cost: ``fit``: one pass of the samples, O(n d^2) a layer, and O(n d) memory for their features. Then O(classes d) a
        sample and layer beside the pass.
    Raises: UnknownNameError for a layer that the network lacks; TypeError or ValueError for batches without labels,
        what :class:`~torchstone.noise.MinCovDetTied` refuses, and arguments out of range; RuntimeError before ``fit``.
    Source: Lee et al., *Robust Inference via Generative Classifiers for Handling Noisy Labels*, ICML 2019.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [8.0], [9.0], [10.0], [11.0]])
        >>> y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])  # the first 10 has the wrong label
        >>> for share in (1.0, 0.75):  # half-way between means 3.25 and 9.5, and between 1 and 10
        ...     rog = RobustGenerativeClassifier(nn.Identity(), "", 2, support_fraction=share, n_steps=None)
        ...     rog.fit([(x, y)])(torch.tensor([[6.0]])).argmax().item()
        0
        1
    """

    omega: Tensor
    heads: nn.ModuleList
    noise_score: Float[Tensor, " n"]

    def __init__(
        self,
        backbone: nn.Module,
        layers: Layers,
        num_classes: int,
        *,
        support_fraction: float | None = 0.7,
        n_steps: int | None = 1,
        n_init: int = 1,
        ridge: float = 0.0,
        val_share: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = layers if callable(layers) else (layers,) if isinstance(layers, str) else tuple(layers)
        if not self.layers:
            raise ValueError("layers must name at least one layer, but are empty")
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.val_share = check_float("val_share", val_share, 0, 1, open_low=True)
        self.generator = generator
        self.estimator = MinCovDetTied(support_fraction, n_steps, n_init, ridge=ridge, generator=generator)
        self.heads = nn.ModuleList()
        self.register_buffer("omega", torch.ones(0))

    @property
    def weights(self) -> Float[Tensor, " layers"]:
        """Weights of the layers, with sum 1."""
        return self.omega.softmax(0)

    @torch.no_grad()
    def fit(
        self, loader: Iterable[Sequence[Tensor]], val_loader: Iterable[Sequence[Tensor]] | None = None
    ) -> RobustGenerativeClassifier:
        """Estimate the Gaussians from the samples of ``loader``, and the weights of the layers; return self.

        Both yield batches ``(x, y)`` or ``(x, y, index)``. One pass through each.
        """
        features, labels = self._collect(loader)
        heads: list[nn.Module] = []
        for layer in features:
            estimate = self.estimator.fit(layer, labels, num_classes=self.num_classes).gaussians_
            heads.append(gaussian_classifier(estimate.means, estimate.precision).to(layer.dtype).requires_grad_(False))
        self.heads = nn.ModuleList(heads)
        self.omega = torch.ones(len(heads), device=labels.device, dtype=features[0].dtype)
        if val_loader is not None and len(heads) > 1:
            val_features, val_labels = self._collect(val_loader)
            # The estimator holds the last layer.
            distance = self.estimator.gaussians_.mahalanobis(val_features[-1], val_labels)
            near = distance.argsort()[: math.ceil(self.val_share * len(distance))]
            log_probs = self._log_probs([layer[near] for layer in val_features])
            self.omega = ensemble_weights(log_probs, val_labels[near], generator=self.generator)
        self.noise_score = F.nll_loss(mixture(self._log_probs(features), self.omega), labels, reduction="none")
        return self

    def forward(self, x: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Log-probabilities of the classes."""
        return mixture(self.layer_log_probs(x), self.omega)

    def layer_log_probs(self, x: Shaped[Tensor, "n ..."]) -> Float[Tensor, "layers n classes"]:
        """Log-probabilities by each layer alone."""
        if not len(self.heads):
            raise RuntimeError("this classifier has no Gaussians yet: call fit, or load a state")
        with evaluating(self.backbone):
            return self._log_probs(self._features(x))

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        layers = getattr(self.layers, "__name__", self.layers)
        return f"layers={layers}, support_fraction={self.estimator.support_fraction}, n_steps={self.estimator.n_steps}"

    def _features(self, x: Tensor) -> list[Tensor]:
        if callable(self.layers):
            found = self.layers(x)
            return [pooled(layer) for layer in ([found] if isinstance(found, Tensor) else found)]
        with capture(self.backbone, self.layers) as outputs:
            self.backbone(x)
            return [pooled(outputs[name]) for name in self.layers]

    def _log_probs(self, features: Sequence[Tensor]) -> Tensor:
        return torch.stack([head(layer).log_softmax(1) for head, layer in zip(self.heads, features, strict=True)])

    def _collect(self, loader: Iterable[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """Features of each layer, and labels, of all samples."""
        device = first_device(self.backbone)
        features: list[list[Tensor]] = []
        labels: list[Tensor] = []
        with evaluating(self.backbone):
            for batch in loader:
                if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
                    raise TypeError("a loader must yield batches (x, y) or (x, y, index)")
                features.append(self._features(batch[0].to(device)))
                labels.append(batch[1].to(device))
        if not labels:
            raise ValueError("a loader must yield at least one batch, but yields none")
        return [torch.cat(parts) for parts in zip(*features, strict=True)], torch.cat(labels)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # A classifier that was never fitted takes the number and the widths of its layers from the state.
        device = first_device(self.backbone)
        self.heads = nn.ModuleList()
        while (weight := state_dict.get(f"{prefix}heads.{len(self.heads)}.weight")) is not None:
            self.heads.append(_empty_linear(weight.to(device)).requires_grad_(False))
        if (omega := state_dict.get(f"{prefix}omega")) is not None:
            self.omega = torch.empty_like(omega, device=device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _empty_linear(weight: Tensor) -> nn.Linear:
    """A linear layer of the shape, dtype and device of ``weight``, for which no random number is drawn."""
    classes, d = weight.shape
    return nn.Linear(d, classes, dtype=weight.dtype, device="meta").to_empty(device=weight.device)
