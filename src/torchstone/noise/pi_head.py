"""The head of a network that also sees privileged information: features known of each training label alone.

Such are the annotator who gave the label and the time it took. The head is linear in the network's features wherever
they enter, so its products with them are made once per image, however many annotators or hypothetical annotators look
at it: O(batch (D + A) W + batch A W) instead of O(batch A (D + W) W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from torchstone._checks import check_int
from torchstone.models.seeding import seeded
from torchstone.noise.heteroscedastic import HeteroscedasticSoftmax

__all__ = ["PIHead"]

Privileged = Shaped[Tensor, "..."] | tuple[Int64[Tensor, "..."], Float[Tensor, "... m"]]
"""Feature vectors, annotators' ids, or a pair of both."""


class PIHead(nn.Module):
    """p(y | x, a) from features phi(x) and privileged information a.

    ``e = relu(W1 a + b1)``, ``j = relu(W2 [phi; e] + b2)``, with ``residual`` ``j = j + e``, and
    ``logits = W3 [phi; j] + b3``.

    An ``embedding`` makes annotators' ids part of a without writing them as one-hot vectors: its rows are the columns
    of W1 that belong to the ids, ``e = relu(embedding(id) + W1 a + b1)``. An id of -1 stands for nobody (padding): it
    adds nothing and no row learns from it; leave such entries out of the loss.

    Args:
        feature_dim: Number D of features.
        pi_dim: Numbers in a, ids apart; may be 0 with an ``embedding``.
        num_classes: Number C of classes.
        width: Number W of hidden units: 128 for CIFAR-10, 1024 for ImageNet in the authors' code.
        residual: Whether e is added to j, as in the authors' Wide-ResNet (their ResNet-50 leaves it out).
        embedding: ``nn.Embedding(num_annotators, width)`` for ids.
        softmax: Makes noisy class scores of the last layer's outputs (Het-TRAM).
        generator: Source of the initial weights (``embedding`` comes with its own).

    Shapes: ``features`` (batch, D); ``pi`` (batch, m) or (batch, R, m) float, with an ``embedding`` ids (batch,) or
        (batch, R) int64, or the pair of both if m > 0; returns (batch, C) or (batch, R, C).
    Cost: O(batch D (W + C) + batch R W (m + W + C)).
    Raises: TypeError on integer ``pi`` without an ``embedding`` and on float ids; ValueError on a wrong shape, a number
        of columns other than ``pi_dim``, or an id that the embedding does not have.
    Source: Collier, Jenatton, Kokiopoulou, Berent, *Transfer and Marginalize*, ICML 2022.

    Example:
        >>> head = PIHead(8, 0, 3, width=16, embedding=nn.Embedding(5, 16))
        >>> head(torch.zeros(2, 8), torch.tensor([[0, 4, 1], [3, -1, -1]])).shape
        torch.Size([2, 3, 3])
    """

    def __init__(
        self,
        feature_dim: int,
        pi_dim: int,
        num_classes: int,
        *,
        width: int = 128,
        residual: bool = True,
        embedding: nn.Embedding | None = None,
        softmax: HeteroscedasticSoftmax | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.feature_dim = check_int("feature_dim", feature_dim, 1)
        self.pi_dim = check_int("pi_dim", pi_dim, 1 if embedding is None else 0)
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.width = check_int("width", width, 1)
        self.residual = residual
        if embedding is not None and embedding.embedding_dim != width:
            raise ValueError(
                f"embedding must have width ({width}) numbers per annotator, but has {embedding.embedding_dim}"
            )
        if softmax is not None and softmax.num_classes != num_classes:
            raise ValueError(f"softmax must be for num_classes ({num_classes}), but is for {softmax.num_classes}")
        self.embedding = embedding
        with seeded(generator):
            self.pi = nn.Linear(pi_dim, width) if pi_dim else None
            self.joint = nn.Linear(feature_dim + width, width)
            self.out = nn.Linear(feature_dim + width, num_classes if softmax is None else softmax.num_outputs)
        self.softmax = softmax

    def forward(self, features: Float[Tensor, "batch d"], pi: Privileged) -> Float[Tensor, "batch *annotators classes"]:
        """Return the logits of each image for each of its annotators."""
        self._check_features(features)
        embedded = self.embed(pi)
        if len(embedded) != len(features):
            raise ValueError(f"pi must have as many rows as features ({len(features)}), but has {len(embedded)}")
        return self.combine(features if embedded.ndim == 2 else features.unsqueeze(1), embedded)

    def embed(self, pi: Privileged) -> Float[Tensor, "*rows width"]:
        """Return e for privileged information of any leading shape."""
        ids, values = self._parts(pi)
        total = None if values is None or self.pi is None else self.pi(values)
        if ids is not None and self.embedding is not None:
            rows = self.embedding(ids.clamp(min=0)).masked_fill((ids < 0).unsqueeze(-1), 0)
            total = rows if total is None else total + rows
        assert total is not None  # _parts gives at least one of both
        return total.relu()

    def combine(
        self, features: Float[Tensor, "*rows d"], embedded: Float[Tensor, "*others width"]
    ) -> Float[Tensor, "*joined classes"]:
        """Return the logits for features and e whose leading dimensions broadcast: (batch, 1, D) with (A, W)."""
        d = self.feature_dim
        joint = F.linear(features, self.joint.weight[:, :d], self.joint.bias)
        joint = (joint + F.linear(embedded, self.joint.weight[:, d:])).relu()
        if self.residual:
            joint = joint + embedded
        out = F.linear(features, self.out.weight[:, :d], self.out.bias) + F.linear(joint, self.out.weight[:, d:])
        return out if self.softmax is None else self.softmax(out)

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"{self.feature_dim}, {self.pi_dim}, {self.num_classes}, width={self.width}, residual={self.residual}"

    def _parts(self, pi: Privileged) -> tuple[Tensor | None, Tensor | None]:
        """Ids and values in ``pi``, checked."""
        if self.embedding is None:
            if not isinstance(pi, Tensor):
                raise TypeError(f"pi must be a tensor of features, but is a {type(pi).__name__}: ids need an embedding")
            self._check_values(pi)
            return None, pi
        if not self.pi_dim:
            if not isinstance(pi, Tensor):
                raise TypeError(f"pi must be a tensor of ids (pi_dim is 0), but is a {type(pi).__name__}")
            self._check_ids(pi)
            return pi, None
        if isinstance(pi, Tensor) or len(pi) != 2:
            raise TypeError(f"pi must be the pair (ids, features): there is an embedding, and pi_dim is {self.pi_dim}")
        ids, values = pi
        self._check_ids(ids)
        self._check_values(values)
        if ids.shape != values.shape[:-1]:
            raise ValueError(f"pi must hold features for each id, but has {tuple(ids.shape)} and {tuple(values.shape)}")
        return ids, values

    def _check_features(self, features: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features must have shape (batch, {self.feature_dim}) (feature_dim), but have {tuple(features.shape)}"
            )

    def _check_values(self, values: Tensor) -> None:
        if not values.is_floating_point():
            raise TypeError(
                f"pi must be floating point features, but has dtype {values.dtype}: for annotators' ids give an "
                "embedding, nn.Embedding(num_annotators, width)"
            )
        if values.ndim not in (2, 3) or values.shape[-1] != self.pi_dim:
            raise ValueError(
                f"pi must have shape (batch, {self.pi_dim}) or (batch, annotators, {self.pi_dim}) (pi_dim), but has "
                f"{tuple(values.shape)}"
            )

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dtype != torch.int64:
            raise TypeError(f"pi must hold annotators' ids of dtype torch.int64, but has {ids.dtype}")
        if ids.ndim not in (1, 2):
            raise ValueError(f"pi must hold ids of shape (batch,) or (batch, annotators), but has {tuple(ids.shape)}")
        # Reading a value waits for an accelerator, and breaks a compiled graph; there the lookup itself asserts it.
        if ids.device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel():
            size = self.embedding.num_embeddings if self.embedding is not None else 0
            if int(ids.min()) < -1 or int(ids.max()) >= size:
                raise ValueError(
                    f"pi must hold annotators' ids in 0..{size - 1}, or -1 for nobody, but spans "
                    f"{int(ids.min())}..{int(ids.max())}"
                )
