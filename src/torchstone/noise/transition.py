"""From predictions to the truth: H_jk = p(y = k | yhat = j), a transition matrix the other way round."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchstone._checks import check_ndim

__all__ = ["calibrate", "dirichlet_mode"]


def dirichlet_mode(alpha: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
    """Where a Dirichlet density is highest, (alpha - 1) / sum(alpha - 1), for concentrations above 1."""
    return (alpha - 1) / (alpha - 1).sum(-1, keepdim=True)


def calibrate(
    transition: Float[Tensor, "batch classes classes"], probs: Float[Tensor, "batch classes"]
) -> Float[Tensor, "batch classes"]:
    """Probabilities of the true classes from those of the predictions: p_k = sum_j H_jk probs_j.

    H_jk is the probability of true class k where class j is predicted. With the H of Bayes' rule the result is exact;
    with the identity it is ``probs``. This is the way back of a noise transition matrix T_kj = p(yhat = j | y = k),
    without its inverse.

    Args:
        transition: H of each sample, rows of sum 1.
        probs: the classifier's probabilities.

    Shapes: ``transition`` (batch, classes, classes); ``probs`` (batch, classes); returns like ``probs``.
    Cost: O(batch x classes^2).
    Raises: ValueError if the shapes disagree.
    Source: Bae et al., ICML 2022, eq. 4.

    Example:
        >>> half = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])  # predictions of class 1 are right half of the time
        >>> calibrate(half, torch.tensor([[0.2, 0.8]]))
        tensor([[0.6000, 0.4000]])
    """
    check_ndim("probs", probs, 2, "(batch, classes)")
    if transition.shape != (*probs.shape, probs.shape[1]):
        raise ValueError(
            f"transition must have shape {(*probs.shape, probs.shape[1])} for these probs, but has "
            f"{tuple(transition.shape)}"
        )
    return torch.einsum("bjk,bj->bk", transition, probs)
