"""Outputs of a trained model over many inputs, and the two scores that every study needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from torchstone._checks import check_finite, check_int, check_length, check_ndim

__all__ = ["accuracy", "auc", "feature_matrix", "predict"]


def predict(
    model: nn.Module, x: Shaped[Tensor, "n ..."], *, batch_size: int = 1024, device: torch.device | str | None = None
) -> Float[Tensor, "n c"]:
    """Return ``model(x)`` in evaluation mode, batch by batch and without gradients.

    Each module's mode is put back afterwards. The model stays where it is; batches go to ``device`` (default: where
    the model's first parameter is) and results come back to where ``x`` is.

    Shapes:
        ``x`` (n, ...); returns (n, ...) as the model gives.

    Raises:
        ValueError: if ``x`` holds no row.

    Example:
        >>> predict(nn.Flatten(), torch.ones(3, 2, 2), batch_size=2).shape
        torch.Size([3, 4])
    """
    return _in_batches(model, model, x, batch_size, device)


def feature_matrix(
    model: nn.Module, x: Shaped[Tensor, "n ..."], *, batch_size: int = 1024, device: torch.device | str | None = None
) -> Float[Tensor, "n d"]:
    """Return ``model.features(x)``, the penultimate layer, the way :func:`predict` returns the last.

    Raises:
        TypeError: if the model has no method ``features``.
        ValueError: if ``x`` holds no row.

    Example:
        >>> from torchstone.models import MLP
        >>> feature_matrix(MLP(4, 2, hidden=(8,)), torch.ones(3, 4)).shape
        torch.Size([3, 8])
    """
    features: Callable[[Tensor], Tensor] | None = getattr(model, "features", None)
    if features is None:
        raise TypeError(f"model must have a method features(x), but {type(model).__name__} has none")
    return _in_batches(model, features, x, batch_size, device)


def accuracy(logits: Float[Tensor, "n c"], y: Int64[Tensor, " n"]) -> float:
    """Return the share of rows whose largest logit is at the label (the first of equal ones counts).

    Raises:
        ValueError: if the shapes disagree, there is no row, or a logit is NaN.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    check_ndim("logits", logits, 2, "(n, classes)")
    check_ndim("y", y, 1, "(n,)")
    check_length("y", y, len(logits), "logits")
    if not len(y):
        raise ValueError("logits must have at least 1 row, but have 0")
    if logits.isnan().any():
        raise ValueError(f"logits must be numbers, but {int(logits.isnan().any(1).sum())} rows hold NaN")
    return int((logits.argmax(1) == y).sum()) / len(y)


def auc(score: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, a tie counting half.

    With mid-ranks r of the scores, P positives and Q negatives,
    ``auc = (sum of r over positives - P(P+1)/2) / (P Q)``.

    Cost:
        O(n log n).

    Raises:
        TypeError: if ``positive`` is not boolean.
        ValueError: if the lengths disagree, a score is not finite, or one of the two classes is missing.

    Example:
        >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, True, False, True]))
        0.875
    """
    check_ndim("score", score, 1, "(n,)")
    check_ndim("positive", positive, 1, "(n,)")
    check_length("positive", positive, len(score), "score")
    if positive.dtype != torch.bool:
        raise TypeError(f"positive must have dtype torch.bool, but has {positive.dtype}")
    check_finite("score", score)
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        raise ValueError(f"auc needs both classes, but there are {positives} positives and {negatives} negatives")
    _, place, count = torch.unique(score, return_inverse=True, return_counts=True)
    rank = count.cumsum(0) - (count - 1) / 2.0
    total = float(rank.double()[place[positive]].sum())
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def _in_batches(
    model: nn.Module,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    batch_size: int,
    device: torch.device | str | None,
) -> Tensor:
    """Apply ``function``, a part of ``model``, to the batches of ``x`` in evaluation mode."""
    check_int("batch_size", batch_size, 1)
    if not len(x):
        raise ValueError("x must have at least 1 row, but has 0")
    device = device or first_device(model) or x.device
    with evaluating(model), torch.inference_mode():
        outputs = [function(batch.to(device)).to(x.device) for batch in x.split(batch_size)]
    return torch.cat(outputs)  # outside of inference mode, so that the result may be trained on


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside this block the model is in evaluation mode; afterwards each of its modules has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def first_device(model: nn.Module) -> torch.device | None:
    """Where the model's first parameter is; ``None`` if it has none."""
    return next((parameter.device for parameter in model.parameters()), None)
