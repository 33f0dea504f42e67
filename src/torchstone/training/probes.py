"""How good are these features? A logistic regression and a vote of nearest neighbours on frozen features.

Both follow scikit-learn's definitions (``LogisticRegression(C=1 / l2)``, ``KNeighborsClassifier``), compute in float64
on the device of the features, and draw no random number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from torchstone._checks import (
    check_finite,
    check_float,
    check_int,
    check_labels,
    check_length,
    check_ndim,
    check_one_of,
)
from torchstone.training.evaluate import accuracy

__all__ = ["Probe", "knn_probe", "linear_probe"]


@dataclass(frozen=True)
class Probe:
    """What a probe finds.

    Attributes:
        accuracy: share of test rows whose likeliest class is the label.
        probabilities: (n_test, classes); a class that the training rows lack has probability 0.
    """

    accuracy: float
    probabilities: Float64[Tensor, "n c"]


def linear_probe(
    train_features: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    test_features: Float[Tensor, "m d"],
    y_test: Int64[Tensor, " m"],
    *,
    l2: float = 1.0,
    standardize: bool = True,
    max_iter: int = 1000,
    tol: float = 1e-7,
) -> Probe:
    """Fit a logistic regression on the training features and score it on the test features.

    Minimises ``sum_i -log softmax(W x_i + b)[y_i] + l2/2 ||W||^2`` over W and b (no penalty on b) with full-batch
    L-BFGS from zero. Two classes share one weight vector, as usual for logistic regression.

    Args:
        train_features: what to fit on.
        y: their classes.
        test_features: what to score on.
        y_test: their classes.
        l2: strength of the penalty on the summed loss.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training rows.
        max_iter: most iterations of L-BFGS.
        tol: stop when no entry of the gradient of the *mean* loss is larger.

    Cost:
        O(iterations * n * d * classes).

    Raises:
        ValueError: if shapes disagree, a feature is not finite, or the training rows hold one class only.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 0])).accuracy
        0.75
    """
    train, test = _check(train_features, y, test_features, y_test)
    check_float("l2", l2, 0.0, open_low=True)
    check_int("max_iter", max_iter, 1)
    classes, target = torch.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, but holds only {int(classes[0])}")
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = torch.where(std > 0, std, 1.0) if standardize else torch.ones_like(std)
    train, test = (train - mean) / scale, (test - mean) / scale  # shifts go into b, which is free
    # L-BFGS works on weight * stretch, in which the curvature of loss plus penalty is about 1 in every direction.
    stretch = (train.var(0, correction=0) + l2 / len(train)).sqrt()

    rows = 1 if len(classes) == 2 else len(classes)
    stretched = train.new_zeros(rows, train.shape[1], requires_grad=True)
    bias = train.new_zeros(rows, requires_grad=True)

    def logits(x: Tensor) -> Tensor:
        out = x @ (stretched / stretch).T + bias
        return torch.cat([torch.zeros_like(out), out], 1) if rows == 1 else out

    optimizer = torch.optim.LBFGS(
        [stretched, bias], max_iter=max_iter, tolerance_grad=tol, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(train), target) + l2 / 2 / len(target) * (stretched / stretch).square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return _probe(logits(test).softmax(1), classes, y, y_test)


def knn_probe(
    train_features: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    test_features: Float[Tensor, "m d"],
    y_test: Int64[Tensor, " m"],
    *,
    k: int = 20,
    metric: str = "cosine",
    weights: str = "uniform",
    chunk: int = 1024,
) -> Probe:
    """Let the ``k`` nearest training rows vote on each test row.

    Of training rows at the same distance the earlier is nearer; of classes with the same vote the smaller wins.

    Args:
        train_features: the voters.
        y: their classes.
        test_features: what to score on.
        y_test: their classes.
        k: number of neighbours.
        metric: ``"cosine"`` (1 - cosine similarity) or ``"euclidean"``.
        weights: ``"uniform"``, or ``"distance"`` for votes of 1 / distance (neighbours at distance 0 then vote alone).
        chunk: test rows handled at once.

    Cost:
        O(n m d) time, O(chunk * n) memory.

    Raises:
        ValueError: if shapes disagree, a feature is not finite, or ``k`` exceeds the number of training rows.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> knn_probe(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 1]), k=3, metric="euclidean").accuracy
        0.75
    """
    train, test = _check(train_features, y, test_features, y_test)
    check_int("k", k, 1, len(train))
    check_int("chunk", chunk, 1)
    check_one_of("metric", metric, ("cosine", "euclidean"))
    check_one_of("weights", weights, ("uniform", "distance"))
    classes, target = torch.unique(y, return_inverse=True)
    member = F.one_hot(target, len(classes)).double()
    if metric == "cosine":
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    votes = [_nearest(_distance(part, train, metric), k, weights) @ member for part in test.split(chunk)]
    total = torch.cat(votes)
    return _probe(total / total.sum(1, keepdim=True), classes, y, y_test)


def _distance(x: Tensor, to: Tensor, metric: str) -> Tensor:
    """Return the (len(x), len(to)) matrix of distances."""
    if metric == "cosine":
        return (1 - x @ to.T).clamp_min(0)
    squared = x.square().sum(1, keepdim=True) + to.square().sum(1) - 2 * x @ to.T
    return squared.clamp_min(0).sqrt()


def _nearest(distance: Tensor, k: int, weights: str) -> Tensor:
    """Return each row's votes: positive at its ``k`` smallest distances, earlier columns first among equals."""
    farthest = distance.kthvalue(k, 1, keepdim=True).values
    closer, level = distance < farthest, distance == farthest
    chosen = closer | (level & (level.cumsum(1) <= k - closer.sum(1, keepdim=True)))
    if weights == "uniform":
        return chosen.double()
    here = chosen & (distance == 0)
    return torch.where(here.any(1, keepdim=True), here.double(), chosen / distance)


def _probe(probabilities: Tensor, classes: Tensor, y: Tensor, y_test: Tensor) -> Probe:
    """Spread the columns over all class numbers and score them."""
    width = int(torch.maximum(y.max(), y_test.max())) + 1
    full = probabilities.new_zeros(len(probabilities), width)
    full[:, classes] = probabilities
    return Probe(accuracy(full, y_test), full)


def _check(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor) -> tuple[Tensor, Tensor]:
    """Check both pairs; return the features in float64."""
    for name, features, target, like in (
        ("train_features", train, y, "y"),
        ("test_features", test, y_test, "y_test"),
    ):
        check_ndim(name, features, 2, "(n, features)")
        check_labels(like, target, torch.iinfo(torch.int64).max)
        check_length(like, target, len(features), name)
        if not len(features):
            raise ValueError(f"{name} must have at least 1 row, but has 0")
        check_finite(name, features)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"test_features must have as many columns as train_features ({train.shape[1]}), but has {test.shape[1]}"
        )
    return train.detach().double(), test.detach().double()
