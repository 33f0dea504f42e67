"""Noisy prediction calibration (NPC): how does a trained classifier's prediction come about, and what was the truth?

A classifier trained on noisy labels predicts yhat. A variational autoencoder explains that prediction by the image x
and a latent gamma vector z, the unknown true class. Its encoder gives p(y | yhat, x), and with it the classifier's
probabilities become p(y | x) = sum over yhat of p(y | yhat, x) p(yhat | x). No label is used: what is known of the
noise is in the classifier. What the latent means is set by a prior, the class that the nearest of the classifier's
surest samples have.

Source: Bae, Shin, Na, Jang, Song, Moon, *From Noisy Prediction to True Label: Noisy Prediction Calibration via
Generative Model*, ICML 2022.

Deviations from the authors' code: samples of the latent are exact gamma variables (``sampler="approx"`` gives theirs,
see :mod:`torchstone.noise.gamma`); the loss is the mean over the batch and not the sum, which under Adam is the same;
encoder and decoder see one pass of the backbone and not two with different dropout; at inference the backbone is passed
once and not once per class. As in their code, and other than in the paper's text, the latent is not divided by its sum
(``normalize_latent=True`` does that).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from torchstone._checks import check_finite, check_float, check_int, check_length, check_ndim, check_one_of
from torchstone.models.seeding import seeded
from torchstone.noise._batch import upcast
from torchstone.noise.gamma import SAMPLERS, gamma_kl, sample_gamma
from torchstone.noise.knn_prior import MODES, knn_prior
from torchstone.noise.last_layer import PENULTIMATE, last_linear, penultimate, with_new_last
from torchstone.noise.transition import calibrate, dirichlet_mode
from torchstone.training import Batch, Checkpoint, History, fit
from torchstone.training.evaluate import evaluating, first_device

__all__ = ["NoisyPredictionCalibrator", "npc_loss"]

OUTPUTS = ("logits", "probabilities")


def npc_loss(
    logits: Float[Tensor, "batch classes"],
    predicted: Int64[Tensor, " batch"],
    alpha: Float[Tensor, "batch classes"],
    alpha_prior: Float[Tensor, "batch classes"],
    *,
    beta: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean over the batch of the decoder's binary cross entropy plus ``beta`` times the divergence from the prior.

    Both are summed over the classes. ``logits`` are the decoder's, for the one-hot prediction ``predicted``.
    """
    seen = F.one_hot(predicted, logits.shape[1]).to(logits.dtype)
    reconstruction = F.binary_cross_entropy_with_logits(logits, seen, reduction="none")
    return (reconstruction + beta * gamma_kl(alpha, alpha_prior)).sum(1).mean()


class NoisyPredictionCalibrator(nn.Module):
    """A classifier whose predictions are put right after the fact; it needs training inputs and no label.

    With h(x) from a backbone that is trained along,

        encoder      alpha(x, yhat) = softplus(W_e [h(x); onehot(yhat)] + b_e) + delta
        latent       z ~ Gamma(alpha, 1)
        decoder      logits of yhat = W_d [h(x); z] + b_d
        loss         binary cross entropy + beta KL(Gamma(alpha) || Gamma(delta + rho prior(x)))
        transition   H_jk(x) = (alpha_k(x, j) - 1) / sum over k
        answer       p(y = k | x) = sum over j of H_jk(x) p(yhat = j | x)

    and prior(x) of :func:`~torchstone.noise.knn_prior`. Usually the backbone is a copy of the classifier itself with a
    new last layer, which :meth:`from_classifier` makes::

        calibrator = NoisyPredictionCalibrator.from_classifier(net)
        calibrator.fit(x_train, generator=generator)
        p = calibrator.predict_proba(x_test)

    Where there is no network, only features and probabilities (a black box), give a small backbone that works on the
    features, and the probabilities to each call::

        calibrator = NoisyPredictionCalibrator(nn.Linear(d, c), c)
        calibrator.fit(features_train, probs=probs_train)
        p = calibrator.predict_proba(features_test, probs_test)

    A frozen backbone leaves two linear maps to learn, too little. Called as a module, the calibrator gives
    log p(y | x), which does for logits. Its copy of the classifier is frozen, stays in evaluation mode, and is part of
    its state dict.

    Args:
        backbone: gives h(x); trained along.
        num_classes: Number C of classes.
        classifier: Gives p(yhat | x); copied. Without one, give ``probs`` to each call.
        feature_dim: Numbers in h(x); C by default.
        last: Name of the classifier's last linear layer, whose inputs are the features in which neighbours are sought;
            by default the ``nn.Linear`` registered last.
        outputs: What the classifier gives, ``"logits"`` or ``"probabilities"``.
        k: Neighbours that vote in the prior.
        rho: Weight of the prior; at 0 no neighbours are sought.
        beta: Weight of the divergence.
        delta: Smallest concentration, above 1; 1 + 1 / C by default.
        mode: What the vote gives, ``"onehot"`` or ``"proba"``.
        top: With ``"proba"``, number of leading classes whose share is kept.
        sampler: ``"exact"``, or ``"approx"`` as published.
        normalize_latent: Divide z by its sum, which makes it a Dirichlet variable.
        generator: Source of the first weights of encoder and decoder.

    Shapes: ``x`` (batch, ...) as the networks take it, or features; ``probs`` (batch, C); H (batch, C, C).
    Cost: Training, a pass of the classifier, the vote, and ``epochs`` trainings of the backbone. A prediction is one
        pass of each network and O(batch x C^2).
    Raises: TypeError, UnknownNameError if the classifier has no such last layer; ValueError if an argument is out of
        range or the shapes disagree; DivergedError from :meth:`fit` if the loss is not finite.
    Source: Bae et al., *From Noisy Prediction to True Label: Noisy Prediction Calibration via Generative Model*, ICML
        2022.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> net, x = nn.Linear(5, 3), torch.randn(300, 5, generator=generator)
        >>> calibrator = NoisyPredictionCalibrator.from_classifier(net, k=5, generator=generator)
        >>> calibrator.fit(x, epochs=2, generator=generator).steps
        6
        >>> calibrator.predict_proba(x).shape, calibrator.transition(x).shape
        (torch.Size([300, 3]), torch.Size([300, 3, 3]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        classifier: nn.Module | None = None,
        feature_dim: int | None = None,
        last: str | None = None,
        outputs: str = "logits",
        k: int = 10,
        rho: float = 5.0,
        beta: float = 1.0,
        delta: float | None = None,
        mode: str = "onehot",
        top: int | None = None,
        sampler: str = "exact",
        normalize_latent: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.feature_dim = num_classes if feature_dim is None else check_int("feature_dim", feature_dim, 1)
        self.outputs = check_one_of("outputs", outputs, OUTPUTS)
        self.k = check_int("k", k, 1)
        self.rho = check_float("rho", rho, 0)
        self.beta = check_float("beta", beta, 0)
        self.delta = 1 + 1 / num_classes if delta is None else check_float("delta", delta, 1, open_low=True)
        self.mode = check_one_of("mode", mode, MODES)
        self.top = top if top is None else check_int("top", top, 1, num_classes)
        self.sampler = check_one_of("sampler", sampler, SAMPLERS)
        self.normalize_latent = normalize_latent
        self.last = last
        self.backbone = backbone
        self.classifier: nn.Module | None = None
        if classifier is not None:
            if last is not None:
                last_linear(classifier, last)
            self.classifier = copy.deepcopy(classifier).requires_grad_(False).eval()
        width = self.feature_dim + num_classes
        with seeded(generator):
            self.encoder, self.decoder = nn.Linear(width, num_classes), nn.Linear(width, num_classes)
        like = next(backbone.parameters(), self.encoder.weight)
        self.to(like.device)
        for layer in (self.encoder, self.decoder):
            layer.to(like.dtype)

    @classmethod
    def from_classifier(
        cls,
        classifier: nn.Module,
        *,
        last: str | None = None,
        feature_dim: int | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> NoisyPredictionCalibrator:
        """The calibrator of a trained network, its backbone a copy of the network with a new last linear layer.

        Args:
            classifier: the network; stays as it is.
            last: name of the layer, if it is not the ``nn.Linear`` registered last.
            feature_dim: numbers that the new layer gives; as many as the old one by default.
            generator: source of all first weights.
            options: the other arguments of the class.
        """
        name, layer = last_linear(classifier, last)
        width = layer.out_features if feature_dim is None else check_int("feature_dim", feature_dim, 1)
        backbone = with_new_last(classifier, width, last=name, generator=generator)
        return cls(
            backbone,
            layer.out_features,
            classifier=classifier,
            last=name,
            feature_dim=width,
            generator=generator,
            **options,
        )

    def fit(
        self,
        data: Shaped[Tensor, "n ..."] | Iterable[Any],
        *,
        probs: Float[Tensor, "n classes"] | None = None,
        features: Float[Tensor, "n d"] | None = None,
        epochs: int = 10,
        lr: float = 1e-3,
        batch_size: int = 128,
        reference_batch: int = 128,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> History:
        """Train backbone, encoder and decoder on the classifier's predictions for its own training inputs, by Adam.

        Args:
            data: the inputs, or a loader that gives ``(x, y, index)``, the index being the sample's number among all
                (see :class:`torchstone.data.IndexedDataset`); its labels are not looked at.
            probs: the classifier's probabilities of the samples in order; by default the classifier is asked.
            features: what neighbours are sought in; by default what the classifier's last layer sees or, where there is
                no classifier, the inputs themselves.
            epochs: passes over the data.
            lr: learning rate.
            batch_size: samples in one step; a loader has its own.
            reference_batch: samples from which :func:`~torchstone.noise.knn_prior` picks the surest of each class.
            generator: source of all chance.
            device: where to train; by default where the backbone is.
            checkpoint: where to resume the training from and save it to.

        Returns:
            What was done, with the curve of the loss. The module is left in evaluation mode.
        """
        device = device or first_device(self)
        self.to(device)
        probs, features = self._observed(data, probs, features, device)
        predicted, prior = probs.argmax(1), torch.zeros_like(probs)
        if self.rho:
            prior = knn_prior(
                features, probs, batch_size=reference_batch, k=self.k, mode=self.mode, top=self.top, generator=generator
            )
        predicted, prior = predicted.to(device), prior.to(device)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            if batch.index is None:
                raise ValueError(
                    "a loader must give (x, y, index): wrap its data set in torchstone.data.IndexedDataset"
                )
            return self.loss(batch.x, predicted[batch.index], prior[batch.index])

        inputs: Any = SimpleNamespace(x=data, y=predicted) if isinstance(data, Tensor) else data
        history = fit(
            self,
            inputs,
            loss,
            torch.optim.Adam([weight for weight in self.parameters() if weight.requires_grad], lr=lr),
            epochs=epochs,
            batch_size=batch_size if isinstance(data, Tensor) else None,
            generator=generator,
            noise=generator,
            device=device,
            checkpoint=checkpoint,
        )
        self.eval()
        return history

    def loss(
        self,
        x: Shaped[Tensor, "batch ..."],
        predicted: Int64[Tensor, " batch"],
        prior: Float[Tensor, "batch classes"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch, for a training loop of one's own: inputs, predicted classes, mass of the prior."""
        h = self._hidden(x)
        of_x, of_prediction = self._encoder_parts(h)
        alpha = self._concentration(of_x + of_prediction[predicted])
        z = sample_gamma(alpha, sampler=self.sampler, normalize=self.normalize_latent, generator=generator)
        logits = self.decoder(torch.cat([h, z.to(h.dtype)], 1))
        return npc_loss(upcast(logits), predicted, alpha, self.delta + self.rho * prior, beta=self.beta)

    def forward(
        self, x: Shaped[Tensor, "batch ..."], probs: Float[Tensor, "batch classes"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Calibrated log-probabilities; ``probs`` are the classifier's, where it is not to be asked."""
        probs = self._ask(x) if probs is None else probs
        return calibrate(self._transition(x), probs.to(torch.promote_types(probs.dtype, torch.float32))).log()

    def transition(self, x: Shaped[Tensor, "n ..."], *, batch_size: int = 1024) -> Float[Tensor, "n classes classes"]:
        """H of each sample, in evaluation mode and without gradients: rows are predictions, columns true classes."""
        return self._in_batches(self._transition, batch_size, x)

    def predict_proba(
        self, x: Shaped[Tensor, "n ..."], probs: Float[Tensor, "n classes"] | None = None, *, batch_size: int = 1024
    ) -> Float[Tensor, "n classes"]:
        """Calibrated probabilities, in evaluation mode and without gradients."""
        inputs = (x,) if probs is None else (x, probs)
        return self._in_batches(self.forward, batch_size, *inputs).exp()

    def train(self, mode: bool = True) -> NoisyPredictionCalibrator:
        """As in torch, but the classifier stays in evaluation mode."""
        super().train(mode)
        if self.classifier is not None:
            self.classifier.eval()
        return self

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"{self.num_classes}, rho={self.rho:g}, beta={self.beta:g}, sampler={self.sampler!r}"

    def _hidden(self, x: Tensor) -> Tensor:
        h = self.backbone(x)
        if h.shape != (len(x), self.feature_dim):
            raise ValueError(
                f"backbone must give shape {(len(x), self.feature_dim)} (feature_dim), but gives {tuple(h.shape)}"
            )
        return h

    def _encoder_parts(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """What h(x) and what each predicted class add up to in the encoder: (batch, classes), (classes, classes)."""
        of_h, of_prediction = self.encoder.weight.split([self.feature_dim, self.num_classes], 1)
        return upcast(F.linear(h, of_h, self.encoder.bias)), upcast(of_prediction.T)

    def _concentration(self, scores: Tensor) -> Tensor:
        return F.softplus(scores) + self.delta

    def _transition(self, x: Tensor) -> Tensor:
        of_x, of_prediction = self._encoder_parts(self._hidden(x))
        return dirichlet_mode(self._concentration(of_x.unsqueeze(1) + of_prediction))

    def _ask(self, x: Tensor) -> Tensor:
        """The classifier's probabilities."""
        if self.classifier is None:
            raise ValueError("probs must be given where the calibrator has no classifier")
        return self._probabilities(self.classifier(x))

    def _probabilities(self, outputs: Tensor) -> Tensor:
        return upcast(outputs).softmax(1) if self.outputs == "logits" else upcast(outputs)

    def _in_batches(self, function: Callable[..., Tensor], batch_size: int, *inputs: Tensor) -> Tensor:
        check_int("batch_size", batch_size, 1)
        for tensor in inputs:
            check_length("probs", tensor, len(inputs[0]), "x")
        device = first_device(self) or inputs[0].device
        with evaluating(self), torch.inference_mode():
            parts = [
                function(*(part.to(device) for part in batch)).to(inputs[0].device)
                for batch in zip(*(tensor.split(batch_size) for tensor in inputs), strict=True)
            ]
        return torch.cat(parts)  # outside of inference mode, so that the result may be trained on

    def _observed(
        self, data: Tensor | Iterable[Any], probs: Tensor | None, features: Tensor | None, device: Any
    ) -> tuple[Tensor, Tensor]:
        """Probabilities and features of all samples in order; what is not at hand comes from one pass."""
        if self.classifier is not None and (probs is None or features is None):
            found = penultimate(self.classifier, data, last=self.last, device=device)
            if probs is None:
                _check_outputs(found.logits, self.outputs)
                probs = self._probabilities(found.logits)
            features = found.features[PENULTIMATE] if features is None else features
        if probs is None:
            raise ValueError("probs must be given where the calibrator has no classifier")
        if features is None:
            if not isinstance(data, Tensor):
                raise ValueError("features must be given where data come from a loader and there is no classifier")
            features = data.flatten(1)
        _check_probabilities(probs, self.num_classes)
        check_length("features", features, len(probs), "probs")
        if isinstance(data, Tensor):
            check_length("data", data, len(probs), "probs")
        return upcast(probs), features


def _are_probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-2).all())


def _check_outputs(outputs: Tensor, kind: str) -> None:
    check_finite("outputs of the classifier", outputs)
    if _are_probabilities(outputs) != (kind == "probabilities"):
        found = "probabilities" if kind == "logits" else "logits"
        raise ValueError(f"the classifier's outputs are {found}: build the calibrator with outputs={found!r}")


def _check_probabilities(probs: Tensor, num_classes: int) -> None:
    check_ndim("probs", probs, 2, "(n, classes)")
    check_finite("probs", probs)
    if probs.shape[1] != num_classes:
        raise ValueError(f"probs must have {num_classes} columns (num_classes), but have {probs.shape[1]}")
    if not _are_probabilities(probs):
        raise ValueError("probs must be >= 0 with rows of sum 1: are they logits?")
