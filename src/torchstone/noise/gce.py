"""Generalized cross entropy: between cross entropy, which learns fast and memorises wrong labels, and absolute error.

Source: Zhang, Sabuncu, *Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels*,
NeurIPS 2018.

Deviations: q = 0 is allowed and is cross entropy, its limit; everything is computed from log-probabilities, so that
small q and small probabilities lose nothing; the truncated loss is offered by itself, without the paper's alternating
search for the samples to prune: it drops the samples that the network finds unlikely at this very step.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchstone._checks import check_float, check_one_of
from torchstone.noise._batch import check_batch, upcast

__all__ = ["GeneralizedCrossEntropy", "generalized_cross_entropy"]


def generalized_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    target: Int64[Tensor, " batch"],
    *,
    q: float = 0.7,
    k: float | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """(1 - p^q) / q with p the softmax probability of the label: cross entropy at q = 0, absolute error 1 - p at q = 1.

    Between them, the gradient is that of cross entropy times p^q, so that labels which the network finds unlikely weigh
    less. With a truncation ``k``, labels with p <= k have the constant loss of p = k and weigh nothing.

    Args:
        logits: Raw scores.
        target: Class numbers.
        q: In [0, 1].
        k: Truncation in (0, 1), 0.5 in the paper; ``None`` for none.
        reduction: ``"mean"`` (0 for an empty batch), ``"sum"`` or ``"none"``.

    Shapes: ``logits`` (batch, classes) float; ``target`` (batch,) int64; returns a scalar, or (batch,) if unreduced.
    Cost: O(batch x classes).
    Raises: TypeError on a wrong dtype; ValueError on a wrong shape, a CPU label out of range, or ``q``, ``k``,
        ``reduction`` outside theirs.
    Source: Zhang, Sabuncu, NeurIPS 2018, sections 3.2 (loss) and 3.3 (truncation).

    Example:
        >>> generalized_cross_entropy(torch.zeros(1, 4), torch.tensor([0]), q=0.5)  # (1 - sqrt(1/4)) / 0.5
        tensor(1.)
    """
    check_batch(logits, target)
    check_float("q", q, 0, 1)
    check_one_of("reduction", reduction, ("mean", "sum", "none"))
    log_p = upcast(logits).log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    loss = -torch.expm1(q * log_p) / q if q else -log_p
    if k is not None:
        log_k = math.log(check_float("k", k, 0, 1, open_low=True, open_high=True))
        loss = loss.clamp(max=-math.expm1(q * log_k) / q if q else -log_k)
    if reduction == "none":
        return loss
    return loss.sum() / max(len(loss), 1) if reduction == "mean" else loss.sum()


class GeneralizedCrossEntropy(nn.Module):
    """Generalized cross entropy as a module; see :func:`generalized_cross_entropy`.

    Shapes: ``logits`` (batch, classes) float; ``target`` (batch,) int64; returns a scalar, or (batch,) if unreduced.
    Cost: O(batch x classes).
    Raises: as the function; ``q``, ``k`` and ``reduction`` are checked when built.
    Source: Zhang, Sabuncu, *Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels*,
        NeurIPS 2018.

    Example:
        >>> GeneralizedCrossEntropy(q=1.0)(torch.zeros(1, 4), torch.tensor([0]))
        tensor(0.7500)
    """

    def __init__(self, q: float = 0.7, *, k: float | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.q = check_float("q", q, 0, 1)
        self.k = None if k is None else check_float("k", k, 0, 1, open_low=True, open_high=True)
        self.reduction = check_one_of("reduction", reduction, ("mean", "sum", "none"))

    def forward(
        self, logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "*reduced"]:
        """Loss of a batch."""
        return generalized_cross_entropy(logits, target, q=self.q, k=self.k, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"q={self.q:g}, k={self.k}, reduction={self.reduction!r}"
