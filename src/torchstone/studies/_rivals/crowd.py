"""Rivals for labels by several annotators: a crowd layer, and the votes of Dawid and Skene."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

__all__ = ["CrowdLayer", "dawid_skene"]


class CrowdLayer(nn.Module):
    """Negative log-likelihood of the answers if each annotator has a confusion matrix of their own.

    ``p(answer | x, a) = sum_k softmax(logits)_k T_a[k, answer]``, the rows of ``T_a`` being softmaxes of free
    parameters that start with ``right`` on the diagonal. Annotators without any answer never move.

    Source: Rodrigues and Pereira, *Deep learning from crowds*, AAAI 2018, in the form of Tanno et al., CVPR 2019, whose
    matrices are distributions; without their trace penalty.
    """

    def __init__(self, num_annotators: int, num_classes: int, *, right: float = 0.9) -> None:
        super().__init__()
        start = torch.eye(num_classes) * math.log(right * (num_classes - 1) / (1 - right))
        self.confusion = nn.Parameter(start.repeat(num_annotators, 1, 1))

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        ids: Int64[Tensor, "batch r"],
        answers: Int64[Tensor, "batch r"],
        mask: Bool[Tensor, "batch r"],
    ) -> Float[Tensor, ""]:
        """Mean over the answers that there are."""
        log_t = self.confusion[ids.clamp(min=0)].log_softmax(-1)  # batch, r, true, answered
        at = answers.clamp(min=0)[..., None, None].expand(*answers.shape, log_t.shape[2], 1)
        log_p = (logits.log_softmax(1).unsqueeze(1) + log_t.gather(-1, at).squeeze(-1)).logsumexp(-1)
        return -log_p.where(mask, 0).sum() / mask.sum()


def dawid_skene(
    annotators: Int64[Tensor, "n r"],
    answers: Int64[Tensor, "n r"],
    num_classes: int,
    *,
    iterations: int = 50,
    smoothing: float = 0.1,
) -> Float[Tensor, "n classes"]:
    """Posterior of the right class of each sample, by expectation maximisation.

    Each annotator has a confusion matrix, the classes a frequency; ``smoothing`` is added to all their counts. It
    starts from the shares of the votes. With one answer per sample nothing disagrees, and the votes stay what they are.

    Source: Dawid and Skene, *Maximum likelihood estimation of observer error-rates*, Applied Statistics 1979.
    """
    n = len(answers)
    row, column = (answers >= 0).nonzero().unbind(1)
    who, said = annotators[row, column], answers[row, column]
    place = who * num_classes + said
    posterior = torch.zeros(n, num_classes, dtype=torch.float64)
    posterior.index_put_((row, said), torch.ones((), dtype=torch.float64), accumulate=True)
    posterior /= posterior.sum(1, keepdim=True)
    size = (int(annotators.max()) + 1) * num_classes
    for _ in range(iterations):
        counts = torch.zeros(size, num_classes, dtype=torch.float64).index_add_(0, place, posterior[row])
        confusion = counts.view(-1, num_classes, num_classes).transpose(1, 2) + smoothing  # annotator, true, answered
        confusion = confusion / confusion.sum(2, keepdim=True)
        prior = posterior.sum(0) + smoothing
        log_p = (prior / prior.sum()).log().repeat(n, 1)
        log_p.index_add_(0, row, confusion.log()[who, :, said])
        posterior = log_p.softmax(1)
    return posterior.float()
