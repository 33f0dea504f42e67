"""Early-learning regularization (ELR): hold the network to what it predicted before it began to memorise wrong labels.

Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, *Early-Learning Regularization Prevents Memorization of Noisy
Labels*, NeurIPS 2020.

As in the authors' code, probabilities are clipped to [1e-4, 1 - 1e-4] and renormalised before they enter the running
mean, and the mean is updated before the penalty is taken. Deviations: the mean is left alone in evaluation mode, and
for samples whose logits are not finite, so that one bad batch cannot spoil the state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchstone._checks import check_float, check_int
from torchstone.noise._batch import all_gather_rows, check_batch, check_sample_index, upcast

__all__ = ["EarlyLearningRegularization", "early_learning_penalty", "updated_targets"]


def updated_targets(
    targets: Float[Tensor, "batch classes"],
    logits: Float[Tensor, "batch classes"],
    *,
    momentum: float = 0.7,
    eps: float = 1e-4,
) -> Float[Tensor, "batch classes"]:
    """Running mean of past predictions: t <- m t + (1 - m) p / sum(p), p = clip(softmax(z), eps, 1 - eps), no gradient.

    Shapes: all (batch, classes).
    Cost: O(batch x classes).
    Raises: nothing of its own.
    Source: Liu et al., NeurIPS 2020, temporal ensembling of the targets.

    Example:
        >>> updated_targets(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([[0.1500, 0.1500]])
    """
    p = logits.detach().softmax(1).clamp(eps, 1 - eps)
    new = momentum * targets + (1 - momentum) * p / p.sum(1, keepdim=True)
    return torch.where(new.isfinite(), new, targets)


def early_learning_penalty(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"], *, eps: float = 1e-4
) -> Float[Tensor, ""]:
    """Mean of log(1 - <t, p>), p = clip(softmax(z), eps, 1 - eps): falls as the prediction p nears the target t.

    Its gradient boosts samples that the network once predicted well and cancels that of wrong labels.

    Shapes: both (batch, classes); returns a scalar.
    Cost: O(batch x classes).
    Raises: nothing of its own.
    Source: Liu et al., NeurIPS 2020, the regulariser.

    Example:
        >>> early_learning_penalty(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # log(1 - 1/2)
        tensor(-0.6931)
    """
    p = logits.softmax(1).clamp(eps, 1 - eps)
    return (1 - (targets * p).sum(1)).log().mean()


class EarlyLearningRegularization(nn.Module):
    """Cross entropy plus ``strength`` times :func:`early_learning_penalty`, with the running targets of every sample.

    In training mode, each call first moves the targets of the batch towards its predictions. The targets are a buffer:
    a state dict resumes them. A sample named twice in a batch keeps one of its two updates (and warns, on the CPU). NaN
    logits give a NaN loss and leave the targets alone; an empty batch has loss 0.

    Several processes: a ``DistributedSampler`` deals the samples out anew each epoch, so call
    :meth:`synchronize_targets` after each call of the loss.

    Args:
        num_samples: Size N of the training set.
        num_classes: Number C of classes.
        momentum: Weight of the past in the running mean, beta in the paper.
        strength: Weight of the penalty, lambda in the paper (3 for CIFAR-10 and beta 0.7; 7 and 0.9 for CIFAR-100).
        eps: Clip of the probabilities.
        dtype: How the targets are stored; the loss itself is computed in float32 or better.
        device: Where the targets live.

    Shapes: ``logits`` (batch, classes) float; ``target``, ``index`` (batch,) int64; returns a scalar.
    Cost: O(batch x classes) time a call; N C numbers of memory.
    Raises: TypeError on a wrong dtype; ValueError on a wrong shape, or a CPU label or index out of range.
    Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, *Early-Learning Regularization Prevents Memorization of Noisy
        Labels*, NeurIPS 2020.

    Example:
        >>> criterion = EarlyLearningRegularization(4, 2, strength=1.0)
        >>> criterion(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([3]))  # log 2 + log(1 - 0.15)
        tensor(0.5306)
        >>> criterion.targets[3]
        tensor([0.1500, 0.1500])
    """

    targets: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        momentum: float = 0.7,
        strength: float = 3.0,
        eps: float = 1e-4,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_samples = check_int("num_samples", num_samples, 1)
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.momentum = check_float("momentum", momentum, 0, 1, open_high=True)
        self.strength = check_float("strength", strength, 0)
        self.eps = check_float("eps", eps, 0, 1 / num_classes, open_low=True)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating point, not {dtype}")
        self.register_buffer("targets", torch.zeros(num_samples, num_classes, dtype=dtype, device=device))

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int64[Tensor, " batch"],
        index: Int64[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Loss of a batch; in training mode, updates the targets of its samples first."""
        check_batch(logits, target, self.num_classes)
        check_sample_index(index, len(logits), self.num_samples)
        logits = upcast(logits)
        if not len(logits):
            return logits.sum()
        index = index.to(self.targets.device)
        targets = self.targets[index].to(logits.device, logits.dtype)
        if self.training:
            targets = updated_targets(targets, logits, momentum=self.momentum, eps=self.eps)
            self.targets[index] = targets.to(self.targets.device, self.targets.dtype)
        penalty = early_learning_penalty(logits, targets, eps=self.eps)
        return F.cross_entropy(logits, target) + self.strength * penalty

    @torch.no_grad()
    def synchronize_targets(
        self, index: Int64[Tensor, " batch"], group: torch.distributed.ProcessGroup | None = None
    ) -> None:
        """Send the targets of the samples ``index`` to all processes and take theirs; all processes must call it.

        A sample that two processes visited at once (the padding of a ``DistributedSampler``) takes the update of the
        higher rank everywhere.
        """
        index = index.to(self.targets.device)
        rows = all_gather_rows(self.targets[index], group)
        for part, indices in zip(rows, all_gather_rows(index, group), strict=True):
            self.targets[indices] = part

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"{self.num_samples}, {self.num_classes}, momentum={self.momentum:g}, strength={self.strength:g}"
