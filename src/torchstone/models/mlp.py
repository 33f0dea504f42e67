"""Multi-layer perceptron: the backbone for vectors and small images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_float, check_int
from torchstone.models.seeding import seeded

__all__ = ["MLP"]


class MLP(nn.Module):
    """Fully connected layers with one activation between them; images are flattened.

    ``h_l = dropout(activation(norm(W_l h_{l-1} + b_l)))``, then ``logits = W h_L + b``. Without hidden layers this is
    the linear classifier.

    Args:
        in_features: numbers in one input (of an image: channels x height x width).
        num_classes: numbers in one output.
        hidden: width of each hidden layer.
        activation: makes one activation module.
        batch_norm: normalise before each activation (the layer then needs no bias).
        dropout: share of hidden units dropped in training.
        generator: source of the initial weights; None is torch's global one.

    Shapes:
        ``x`` (n, in_features), or (n, ...) with as many numbers; ``features(x)`` (n, num_features); returns
        (n, num_classes).

    Cost:
        O(n * parameters).

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1, ``dropout`` not in [0, 1), or an input has another number of features.

    Example:
        >>> net = MLP(64, 10, hidden=(32,), generator=torch.Generator().manual_seed(0))
        >>> net(torch.zeros(5, 1, 8, 8)).shape, net.num_features
        (torch.Size([5, 10]), 32)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (256, 128),
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_int("in_features", in_features, 1)
        check_int("num_classes", num_classes, 1)
        check_float("dropout", dropout, 0.0, 1.0, open_high=True)
        widths = [in_features, *(check_int("hidden", width, 1) for width in hidden)]
        self.num_features = widths[-1]
        layers: list[nn.Module] = []
        with seeded(generator):
            for fan_in, fan_out in itertools.pairwise(widths):
                layers.append(nn.Linear(fan_in, fan_out, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm1d(fan_out))
                layers.append(activation())
                if dropout:
                    layers.append(nn.Dropout(dropout))
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Return what the head sees: the last hidden layer."""
        if x.ndim < 2 or x.shape[1:].numel() != self.in_features:
            raise ValueError(f"x must have {self.in_features} features a row, but has shape {tuple(x.shape)}")
        return self.body(x.flatten(1))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """Return the logits."""
        return self.head(self.features(x))
