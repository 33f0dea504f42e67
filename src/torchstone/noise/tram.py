"""Transfer and marginalize (TRAM): explain label noise away by what is known of each training label alone.

Who gave a label, and how long it took, says much about whether it is wrong, but is not known at test time. One network
gets two heads: the head p(y | x, a) sees the privileged information a and alone trains the shared features; the head
p(y | x) learns on features that it cannot change (stop-gradient), and so comes to the mean of p(y | x, a) over a. At
test time the second is used: nothing is sampled, nothing costs more.

Source: Collier, Jenatton, Kokiopoulou, Berent, *Transfer and Marginalize: Explaining Away Label Noise with Privileged
Information*, ICML 2022; sizes from the authors' later code (uncertainty-baselines).

Deviations: ids may be looked up in an embedding, which equals the authors' one-hot vectors; distillation is from the
PI head of the same network at the same step, not from a teacher that was trained before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from torchstone._checks import check_float, check_int
from torchstone.models.seeding import seeded
from torchstone.noise._batch import upcast
from torchstone.noise.heteroscedastic import HeteroscedasticSoftmax
from torchstone.noise.pi_head import PIHead, Privileged

__all__ = ["TRAM", "TRAMLoss", "TRAMOutput", "marginalize"]


class TRAMOutput(NamedTuple):
    """What :class:`TRAM` gives.

    Attributes:
        logits: (batch, classes), without privileged information: what to predict with.
        logits_pi: (batch, classes) or (batch, R, classes), with it; ``None`` if none was given.
    """

    logits: Tensor
    logits_pi: Tensor | None


class TRAM(nn.Module):
    """A network with a head that sees privileged information and a head that does not.

    ``phi = body(x)``, once per image; ``logits_pi = pi_head(phi, pi)``; ``logits = head(stop_gradient(phi))``. Train
    it by :class:`TRAMLoss`, with the noisy labels for both heads::

        model = TRAM(body, 640, 0, 10, pi_embedding=nn.Embedding(num_annotators, 128))
        for x, ids, y, mask in loader:            # of an AnnotatorDataset: (batch, R) each
            loss = criterion(model(x, ids), y, mask)
        model.eval()(x).logits                    # no privileged information

    Args:
        body: Maps inputs to features (batch, feature_dim).
        feature_dim: Number D of features.
        pi_dim: Numbers in a vector of privileged information, annotators' ids apart.
        num_classes: Number C of classes.
        width: Hidden units of the PI head, see :class:`PIHead`.
        residual: See :class:`PIHead`.
        detach: Whether the features are closed to the head without privileged information. Without that the wrong
            labels reach the body after all.
        pi_embedding: ``nn.Embedding(num_annotators, width)`` if ``pi`` are annotators' ids, or pairs (ids, vectors).
        head: The head without privileged information; by default a linear layer.
        softmax: Gives both heads noisy class scores (Het-TRAM).
        generator: Source of the initial weights of the heads.

    Shapes: ``x`` (batch, ...); ``pi`` (batch, pi_dim) or (batch, R, pi_dim) float, or ids (batch,) or (batch, R) int64
        with -1 for nobody; returns ``logits`` (batch, C) and ``logits_pi`` (batch, C) or (batch, R, C).
    Cost: That of the body, and of :class:`PIHead` in training; without ``pi`` that of body and linear layer.
    Raises: TypeError or ValueError if ``pi`` is missing in training mode or does not fit, if the body does not give
        (batch, feature_dim), or if both ``head`` and ``softmax`` are given.
    Source: Collier, Jenatton, Kokiopoulou, Berent, *Transfer and Marginalize*, ICML 2022.

    Example:
        >>> model = TRAM(nn.Flatten(), 4, 2, 3, width=8)
        >>> [part.shape for part in model(torch.ones(5, 2, 2), torch.ones(5, 6, 2))]
        [torch.Size([5, 3]), torch.Size([5, 6, 3])]
    """

    def __init__(
        self,
        body: nn.Module,
        feature_dim: int,
        pi_dim: int,
        num_classes: int,
        *,
        width: int = 128,
        residual: bool = True,
        detach: bool = True,
        pi_embedding: nn.Embedding | None = None,
        head: nn.Module | None = None,
        softmax: HeteroscedasticSoftmax | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if head is not None and softmax is not None:
            raise ValueError("give head or softmax: softmax makes the head itself")
        self.body = body
        self.pi_head = PIHead(
            feature_dim,
            pi_dim,
            num_classes,
            width=width,
            residual=residual,
            embedding=pi_embedding,
            softmax=softmax,
            generator=generator,
        )
        with seeded(generator):
            if softmax is not None:
                head = nn.Sequential(nn.Linear(feature_dim, softmax.num_outputs), softmax)
            self.head = nn.Linear(feature_dim, num_classes) if head is None else head
        self.detach = detach

    def forward(self, x: Shaped[Tensor, "batch ..."], pi: Privileged | None = None) -> TRAMOutput:
        """Return the logits of both heads; without ``pi``, in evaluation mode, those of one."""
        if pi is None and self.training:
            raise ValueError("pi is missing: in training mode the PI head needs it; call eval() to predict without")
        features = self.features(x)
        logits = self.head(features.detach() if self.detach else features)
        return TRAMOutput(logits, None if pi is None else self.pi_head(features, pi))

    def features(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch d"]:
        """Return what both heads see."""
        features = self.body(x)
        if features.ndim != 2 or features.shape[1] != self.pi_head.feature_dim:
            raise ValueError(
                f"body must give features of shape (batch, {self.pi_head.feature_dim}) (feature_dim), but gives "
                f"{tuple(features.shape)}"
            )
        return features

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"detach={self.detach}"


class TRAMLoss(nn.Module):
    """Cross entropy of both heads with the noisy labels, each the mean over the annotators that there are.

    ``L = CE(logits_pi, y) + no_pi_weight * [(1 - distillation) CE(logits, y) + distillation KL(p_pi || p)]``. The
    second bracket trains the head without privileged information alone (if the model detaches), so its weight is
    nothing but a learning rate. With ``distillation`` that head also follows the PI head's probabilities ``p_pi``,
    which get no gradient from it: the same mean over a, with less noise than single labels.

    Args:
        no_pi_weight: Weight of the head without privileged information.
        distillation: Share of distillation in its loss, in [0, 1].

    Shapes: ``output`` as :class:`TRAM` gives; ``targets`` (batch,) or (batch, R) int64; ``mask`` bool like ``targets``,
        False where there is no label (then the target is not looked at); returns a scalar.
    Cost: O(batch x R x classes).
    Raises: TypeError on a wrong dtype; ValueError on shapes that disagree, a target out of range, a missing
        ``logits_pi``, or a ``mask`` without a single True (an accelerator is not asked: there the loss is NaN).
    Source: Collier, Jenatton, Kokiopoulou, Berent, *Transfer and Marginalize*, ICML 2022.

    Example:
        >>> output = TRAMOutput(torch.zeros(2, 4), torch.zeros(2, 3, 4))
        >>> mask = torch.tensor([[True, True, False], [True, False, False]])
        >>> TRAMLoss()(output, torch.zeros(2, 3, dtype=torch.int64), mask)  # 2 log 4
        tensor(2.7726)
    """

    def __init__(self, no_pi_weight: float = 1.0, *, distillation: float = 0.0) -> None:
        super().__init__()
        self.no_pi_weight = check_float("no_pi_weight", no_pi_weight, 0)
        self.distillation = check_float("distillation", distillation, 0, 1)

    def forward(
        self,
        output: TRAMOutput | tuple[Tensor, Tensor | None],
        targets: Int64[Tensor, "batch *annotators"],
        mask: Bool[Tensor, "batch *annotators"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of a batch."""
        logits, logits_pi = output
        if logits_pi is None:
            raise ValueError("output has no logits_pi: call the model with pi")
        _check_labels(logits, logits_pi, targets, mask)
        if mask is not None:
            targets = targets.where(mask, 0)
        log_pi = upcast(logits_pi).log_softmax(-1)
        log_p = upcast(logits).log_softmax(-1)
        if targets.ndim == 2:
            log_p = log_p.unsqueeze(1).expand_as(log_pi)  # each image's, for each of its annotators
        own = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        if self.distillation:
            teacher = log_pi.detach()
            divergence = (teacher.exp() * (teacher - log_p)).sum(-1)
            own = own + self.distillation * (divergence - own)
        each = self.no_pi_weight * own - log_pi.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        if mask is None:
            return each.mean() if each.numel() else each.sum()
        return each.where(mask, 0).sum() / mask.sum()

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"{self.no_pi_weight:g}, distillation={self.distillation:g}"


def marginalize(
    model: TRAM,
    x: Shaped[Tensor, "batch ..."],
    pi_samples: Privileged,
    *,
    weights: Float[Tensor, " samples"] | None = None,
    batch: int = 256,
) -> Float[Tensor, "batch classes"]:
    """Average the PI head over privileged information: ``p(y | x) = sum_s w_s p(y | x, a_s)``.

    Given all distinct vectors (or ids) with their frequencies as ``weights`` the sum is exact for a that does not
    depend on x; given draws from the training set it is its Monte-Carlo estimate. The model is used in the mode that it
    is in: call ``eval()`` before.

    Args:
        model: The network.
        x: Inputs.
        pi_samples: S vectors, ids, or pairs of both.
        weights: Weight of each, 0 or more; they are divided by their sum. Equal weights by default.
        batch: How many of them are taken at a time, which bounds the memory and changes nothing else.

    Shapes: ``x`` (batch, ...); ``pi_samples`` (S, pi_dim) float or (S,) int64; ``weights`` (S,); returns (batch,
        classes).
    Cost: O(B D W + S W (m + W) + B S W), where running every pair through the head would cost O(B S (D + W) W).
    Raises: TypeError on a wrong dtype; ValueError if there is no sample, or ``weights`` do not fit or are negative.
    Source: Collier, Jenatton, Kokiopoulou, Berent, *Transfer and Marginalize*, ICML 2022.

    Example:
        >>> model = TRAM(nn.Flatten(), 4, 2, 3, width=8).eval()
        >>> marginalize(model, torch.ones(5, 4), torch.randn(1000, 2)).sum(1).round(decimals=4).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_int("batch", batch, 1)
    embedded = model.pi_head.embed(pi_samples)
    if embedded.ndim != 2 or not len(embedded):
        raise ValueError(f"pi_samples must hold one row per sample, and at least 1, but give {tuple(embedded.shape)}")
    log_w = _log_weights(weights, embedded)
    features = model.features(x).unsqueeze(1)
    total: Tensor | None = None
    for part, w in zip(embedded.split(batch), log_w.split(batch), strict=True):
        log_p = upcast(model.pi_head.combine(features, part)).log_softmax(-1)
        mean = (log_p + w.unsqueeze(1)).logsumexp(1)
        total = mean if total is None else torch.logaddexp(total, mean)
    assert total is not None  # there is at least one part
    return total.exp()


def _log_weights(weights: Tensor | None, embedded: Tensor) -> Tensor:
    if weights is None:
        weights = torch.ones(len(embedded), device=embedded.device)
    if weights.shape != (len(embedded),):
        raise ValueError(f"weights must have shape ({len(embedded)},) as pi_samples, but have {tuple(weights.shape)}")
    weights = weights.to(embedded.device, torch.promote_types(embedded.dtype, torch.float32))
    if (weights < 0).any() or not weights.sum() > 0:
        raise ValueError("weights must be 0 or more, and not all 0")
    return (weights / weights.sum()).log()


def _check_labels(logits: Tensor, logits_pi: Tensor, targets: Tensor, mask: Tensor | None) -> None:
    for name, tensor in (("logits", logits), ("logits_pi", logits_pi)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, but have dtype {tensor.dtype}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must have dtype torch.int64, but have {targets.dtype}")
    if targets.ndim not in (1, 2):
        raise ValueError(f"targets must have shape (batch,) or (batch, annotators), but have {tuple(targets.shape)}")
    if logits.ndim != 2 or len(logits) != len(targets):
        raise ValueError(f"logits must have shape ({len(targets)}, classes), but have {tuple(logits.shape)}")
    if logits_pi.shape != (*targets.shape, logits.shape[1]):
        raise ValueError(
            f"logits_pi must have the shape {(*targets.shape, logits.shape[1])} of targets and classes, but have "
            f"{tuple(logits_pi.shape)}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != targets.shape):
        raise ValueError(f"mask must be bool of shape {tuple(targets.shape)}, but is {mask.dtype} {tuple(mask.shape)}")
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return  # reading a value waits for an accelerator, and breaks a compiled graph
    seen = targets if mask is None else targets[mask]
    if mask is not None and len(targets) and not len(seen):
        raise ValueError("mask leaves no annotator in the batch: it must be True at least once")
    if seen.numel() and (int(seen.min()) < 0 or int(seen.max()) >= logits.shape[1]):
        raise ValueError(
            f"targets must lie in 0..{logits.shape[1] - 1} where mask is True, but span "
            f"{int(seen.min())}..{int(seen.max())}"
        )
