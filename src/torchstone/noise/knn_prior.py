"""Which class is each sample most plausibly of? A vote of the samples that a classifier is surest of.

The prior of noisy prediction calibration (Bae et al., ICML 2022): from each random batch, the sample most confidently
predicted as each class becomes a reference; the nearest references vote, a vote weighing 1 / distance. No label is
used. As scikit-learn's ``KNeighborsClassifier(k, weights="distance")``, in chunks and on any device.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from torchstone._checks import check_finite, check_int, check_labels, check_length, check_ndim, check_one_of
from torchstone.noise._batch import upcast

__all__ = ["MODES", "confident_references", "knn_prior", "knn_vote"]

MODES = ("onehot", "proba")


def confident_references(
    probs: Float[Tensor, "n classes"], *, batch_size: int = 128, generator: torch.Generator | None = None
) -> Int64[Tensor, " references"]:
    """Numbers of the samples that are, in one of the random batches, the surest one predicted as their class.

    Shapes: ``probs`` (n, classes); returns (references,), about n / batch_size x classes, ascending.
    Cost: O(n log n).
    Raises: ValueError if ``probs`` are not (n, classes) or not finite, or ``batch_size`` is below 1.
    Source: Bae et al., ICML 2022, the authors' code.

    Example:
        >>> confident_references(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]))
        tensor([0, 2])
    """
    check_int("batch_size", batch_size, 1)
    _check_probs(probs)
    n, classes = probs.shape
    confidence, predicted = probs.max(1)
    device = generator.device if generator is not None else "cpu"
    place = torch.randperm(n, generator=generator, device=device).to(probs.device)
    group = place // batch_size * classes + predicted
    order = confidence.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, and in it the surest first
    grouped = group[order]
    first = torch.ones_like(grouped, dtype=torch.bool)
    first[1:] = grouped[1:] != grouped[:-1]
    return order[first].sort().values


def knn_vote(
    features: Float[Tensor, "n d"],
    references: Float[Tensor, "m d"],
    labels: Int64[Tensor, " m"],
    *,
    num_classes: int,
    k: int = 10,
    chunk: int = 256,
) -> Float[Tensor, "n classes"]:
    """Share of each class in the vote of the ``k`` nearest references, a vote weighing 1 / Euclidean distance.

    References at distance 0 vote alone, so a sample that is one has its own label. The distances of the neighbours are
    computed as differences, which keeps them exact where the search, by a matrix product, is not.

    Shapes: ``features`` (n, d); ``references`` (m, d); ``labels`` (m,); returns (n, num_classes), rows of sum 1.
    Cost: O(n m d) time, O(chunk x (m + k d)) memory.
    Raises: ValueError if shapes disagree, a feature is not finite, or ``k`` exceeds the number of references.
    Source: scikit-learn's ``KNeighborsClassifier(k, weights="distance")``.

    Example:
        >>> line = torch.tensor([[0.0], [3.0], [9.0]])
        >>> knn_vote(torch.tensor([[1.0]]), line, torch.tensor([0, 1, 1]), num_classes=2, k=2)  # 1 / 1 to 1 / 2
        tensor([[0.6667, 0.3333]])
    """
    check_int("chunk", chunk, 1)
    for name, tensor in (("features", features), ("references", references)):
        check_ndim(name, tensor, 2, "(n, d)")
        check_finite(name, tensor)
    if features.shape[1] != references.shape[1]:
        raise ValueError(
            f"references must have as many columns as features ({features.shape[1]}), but have {references.shape[1]}"
        )
    check_labels("labels", labels, num_classes)
    check_length("labels", labels, len(references), "references")
    if not 1 <= check_int("k", k, 1) <= len(references):
        raise ValueError(
            f"k must be at most the number of references, {len(references)}, but is {k}: take fewer neighbours, or "
            "smaller batches, which give more references"
        )
    features, references = upcast(features.detach()), upcast(references.detach())
    center = references.mean(0)  # a common shift changes no distance, but costs the search digits
    features, references = features - center, references - center
    norms = references.square().sum(1)
    member = F.one_hot(labels, num_classes).to(features.dtype)
    votes = []
    for rows in features.split(chunk):
        nearest = torch.addmm(norms, rows, references.T, alpha=-2).topk(k, largest=False, sorted=False).indices
        distance = (rows.unsqueeze(1) - references[nearest]).square().sum(2).sqrt()
        here = distance == 0
        weight = torch.where(here.any(1, keepdim=True), here.to(distance.dtype), 1 / distance)
        share = weight / weight.sum(1, keepdim=True)
        votes.append((share.unsqueeze(2) * member[nearest]).sum(1))
    return torch.cat(votes)


def knn_prior(
    features: Float[Tensor, "n d"],
    probs: Float[Tensor, "n classes"],
    *,
    batch_size: int = 128,
    k: int = 10,
    mode: str = "onehot",
    top: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 256,
) -> Float[Tensor, "n classes"]:
    """Where the nearest of the classifier's surest samples see each sample: mass over the classes.

    A class that is never predicted has no reference and gets no mass, which is warned of.

    Args:
        features: what neighbours are sought in, usually a network's penultimate layer.
        probs: the classifier's probabilities.
        batch_size: samples among which the surest of each class is picked, see :func:`confident_references`.
        k: number of voting references.
        mode: ``"onehot"``, all mass to the class with most votes; ``"proba"``, to each class its share.
        top: in ``"proba"``, keep only the shares of so many leading classes, as they are.
        generator: draws the batches.
        chunk: samples handled at once.

    Shapes: ``features`` (n, d); ``probs`` (n, classes); returns (n, classes), each row of sum 1 (less with ``top``).
    Cost: O(n^2 d classes / batch_size) time, O(chunk x references) memory.
    Raises: ValueError if shapes disagree, a number is not finite, the mode is unknown, ``k`` exceeds the number of
        references or ``top`` that of classes. Warns of classes that are never predicted.
    Source: Bae et al., *From Noisy Prediction to True Label: Noisy Prediction Calibration via Generative Model*, ICML
        2022.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
        >>> probs = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]])  # the second sample looks wrong
        >>> knn_prior(features, probs, k=1)  # references: the first and the last
        tensor([[1., 0.],
                [1., 0.],
                [0., 1.],
                [0., 1.]])
    """
    check_one_of("mode", mode, MODES)
    _check_probs(probs)
    check_length("probs", probs, len(features), "features")
    classes = probs.shape[1]
    if top is not None:
        check_int("top", top, 1, classes)
    predicted = probs.argmax(1)
    missing = (torch.bincount(predicted, minlength=classes) == 0).nonzero().flatten().tolist()
    if missing:
        warnings.warn(
            f"classes {missing} are never predicted, so the prior gives them no mass", UserWarning, stacklevel=2
        )
    index = confident_references(probs, batch_size=batch_size, generator=generator)
    votes = knn_vote(features, features[index], predicted[index], num_classes=classes, k=k, chunk=chunk)
    if mode == "onehot":
        return F.one_hot(votes.argmax(1), classes).to(votes.dtype)
    if top is not None:
        share, leading = votes.topk(top, 1)
        return torch.zeros_like(votes).scatter_(1, leading, share)
    return votes


def _check_probs(probs: Tensor) -> None:
    check_ndim("probs", probs, 2, "(n, classes)")
    check_finite("probs", probs)
    if not len(probs):
        raise ValueError("probs must have at least 1 row, but have 0")
