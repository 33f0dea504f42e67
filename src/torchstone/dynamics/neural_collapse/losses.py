"""Squared error on one-hot targets, with a weight for the true class and a height of the target.

Source: Zhou, Li, Ding, You, Qu, Zhu, *On the Optimization Landscape of Neural Collapse under MSE Loss*, ICML 2022; the
rescaling is that of Hui, Belkin, *Evaluation of Neural Architectures Trained with Square Loss vs
Cross-Entropy in Classification Tasks*, ICLR 2021.

Deviations: soft labels are taken too; their weights go linearly from 1 to alpha.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchstone._checks import check_float, check_int, check_length, check_ndim, check_one_of

__all__ = ["MSEClassificationLoss", "RescaledMSELoss", "rescaled_mse"]

_REDUCTIONS = ("mean", "sum", "none")


def rescaled_mse(
    logits: Float[Tensor, "batch classes"],
    target: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"],
    *,
    alpha: float = 1.0,
    target_scale: float = 1.0,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """(1/K) sum_j w_j (z_j - M y_j)^2 of each row, with w = alpha at the true class and 1 elsewhere.

    Of soft labels y the weight is w_j = 1 + (alpha - 1) y_j. With ``alpha`` = M = 1 it is ``nn.MSELoss`` on one-hot
    targets. Class numbers are not checked here, so that it runs under ``torch.vmap``.

    Args:
        logits: z.
        target: class numbers, or one-hot or soft labels.
        alpha: weight of the true class.
        target_scale: M, the height of the target.
        reduction: ``"mean"`` (0 for an empty batch), ``"sum"`` over the rows, or ``"none"``.

    Shapes:
        ``logits`` (batch, classes); ``target`` (batch,) int64 or (batch, classes); returns a scalar, or (batch,) if
        unreduced.

    Cost:
        O(batch classes).

    Raises:
        ValueError: on a wrong shape or ``reduction``.

    Source:
        Zhou et al., ICML 2022.

    Example:
        >>> rescaled_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), alpha=3.0, target_scale=5.0)  # (1 + 3 * 9) / 2
        tensor(14.)
    """
    check_ndim("logits", logits, 2, "(batch, classes)")
    check_length("target", target, logits.shape[0], "logits")
    check_one_of("reduction", reduction, _REDUCTIONS)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(
                f"target must be int64 class numbers, or soft labels of shape {tuple(logits.shape)}, "
                f"but is {target.dtype} of shape {tuple(target.shape)}"
            )
        error = (logits - target_scale * target).square() * (1 + (alpha - 1) * target)
        loss = error.mean(1)
    else:
        check_ndim("target", target, 1, "(batch,)")
        true = logits.gather(1, target[:, None])
        # In place of K - 1 zeros of a one-hot matrix: the true class out of the squares, and back in as it should be.
        others = logits.scatter(1, target[:, None], 0.0).square().sum(1)
        loss = (others + alpha * (true[:, 0] - target_scale).square()) / logits.shape[1]
    if reduction == "none":
        return loss
    return loss.sum() / max(len(loss), 1) if reduction == "mean" else loss.sum()


class RescaledMSELoss(nn.Module):
    """Squared error with weight alpha for the true class and target height M; see :func:`rescaled_mse`.

    (1/NK) sum_i sum_j w_ij (z_ij - M y_ij)^2. For many classes the K - 1 zeros of a target drown its one: a larger
    alpha or M brings it back.

    Args:
        num_classes: K.
        alpha: weight of the true class; the paper tries 1, 5, 15, 20.
        target_scale: M; the paper tries 1, 3, 5, 7, 10.
        reduction: ``"mean"``, ``"sum"`` over the rows, or ``"none"``.

    Shapes:
        ``logits`` (batch, num_classes) float; ``target`` (batch,) int64, or (batch, num_classes) one-hot or soft;
        returns a scalar, or (batch,) if unreduced.

    Cost:
        O(batch classes).

    Raises:
        TypeError: if ``logits`` or ``target`` have another dtype.
        ValueError: on a wrong shape, a CPU label out of range, or an argument outside its range.

    Source:
        Zhou et al., ICML 2022.

    Example:
        >>> loss = RescaledMSELoss(2, alpha=3.0, target_scale=5.0)
        >>> loss(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
        tensor(14.)
    """

    def __init__(
        self, num_classes: int, alpha: float = 1.0, target_scale: float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.alpha = check_float("alpha", alpha, 0, open_low=True)
        self.target_scale = check_float("target_scale", target_scale, 0, open_low=True)
        self.reduction = check_one_of("reduction", reduction, _REDUCTIONS)

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"],
    ) -> Float[Tensor, "*reduced"]:
        """The loss of a batch."""
        if not logits.is_floating_point():
            raise TypeError(f"logits must be floating point, but have dtype {logits.dtype}")
        check_ndim("logits", logits, 2, "(batch, classes)")
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"logits must have {self.num_classes} columns (num_classes), but have {logits.shape[1]}")
        if not target.is_floating_point() and target.dtype != torch.int64:
            raise TypeError(f"target must be int64 class numbers or floating labels, but has dtype {target.dtype}")
        if not target.is_floating_point():
            _check_range(target, self.num_classes)
        return rescaled_mse(logits, target, alpha=self.alpha, target_scale=self.target_scale, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"num_classes={self.num_classes}, alpha={self.alpha}, target_scale={self.target_scale}"


class MSEClassificationLoss(RescaledMSELoss):
    """Squared error on one-hot targets: :class:`RescaledMSELoss` with alpha = M = 1.

    (1/NK) sum_i |z_i - y_i|^2, which is ``nn.MSELoss`` on the one-hot matrix, without that matrix.

    Args:
        num_classes: K.
        reduction: ``"mean"``, ``"sum"`` over the rows, or ``"none"``.

    Shapes:
        ``logits`` (batch, num_classes) float; ``target`` (batch,) int64, or (batch, num_classes) one-hot or soft;
        returns a scalar, or (batch,) if unreduced.

    Cost:
        O(batch classes).

    Raises:
        TypeError: if ``logits`` or ``target`` have another dtype.
        ValueError: on a wrong shape, a CPU label out of range, or an argument outside its range.

    Source:
        Zhou et al., ICML 2022.

    Example:
        >>> MSEClassificationLoss(2)(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
        tensor(1.)
    """

    def __init__(self, num_classes: int, reduction: str = "mean") -> None:
        super().__init__(num_classes, reduction=reduction)


def _check_range(target: Tensor, num_classes: int) -> None:
    # Reading a value waits for an accelerator and breaks a compiled graph; there the gather itself asserts the range.
    if target.device.type != "cpu" or torch.compiler.is_compiling() or not target.numel():
        return
    try:
        low, high = int(target.min()), int(target.max())
    except RuntimeError:  # under vmap a tensor has no values to read
        return
    if low < 0 or high >= num_classes:
        raise ValueError(f"target must lie in 0..{num_classes - 1}, but spans {low}..{high}")
