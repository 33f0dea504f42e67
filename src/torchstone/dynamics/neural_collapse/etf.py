"""Simplex equiangular tight frames, and a last layer that is fixed to one.

Source: Zhou, Li, Ding, You, Qu, Zhu, *On the Optimization Landscape of Neural Collapse under MSE Loss*, ICML 2022; the
idea of a fixed last layer is that of Zhu et al., NeurIPS 2021.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_int, check_one_of

__all__ = ["ETFClassifier", "Rotation", "centred_basis", "random_basis", "simplex_etf"]

Rotation = Literal["identity", "random"]


def centred_basis(k: int, *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "k k_minus_1"]:
    """Orthonormal basis of the vectors of length k with sum zero (Helmert's).

    Example:
        >>> basis = centred_basis(3)
        >>> torch.allclose(basis @ basis.T, torch.eye(3, dtype=torch.float64) - 1 / 3)
        True
    """
    column = torch.arange(1, k, dtype=dtype)
    basis = torch.ones(k, k - 1, dtype=dtype).triu()
    basis[range(1, k), range(k - 1)] = -column
    return basis / (column * (column + 1)).sqrt()


def random_basis(
    d: int, k: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "d k"]:
    """K orthonormal vectors in d dimensions, uniformly distributed (Haar)."""
    device = None if generator is None else generator.device
    q, r = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=dtype, device=device))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(dtype)


def simplex_etf(
    num_classes: int,
    dim: int,
    *,
    rotation: Rotation = "identity",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "classes dim"]:
    """Rows of norm 1 with equal cosines -1 / (K - 1), the smallest that K vectors can have.

    sqrt(K / (K - 1)) (I - J/K) P^T with P orthonormal: [I_K 0]^T, or random. In K - 1 dimensions, the least that will
    do, the columns of I - J/K are written in Helmert's basis.

    Args:
        num_classes: K, at least 2.
        dim: of the rows, at least K - 1.
        rotation: ``"identity"`` or ``"random"``.
        generator: source of the random rotation.
        dtype: of the result; by default torch's own. It is computed in float64.

    Shapes:
        returns (num_classes, dim).

    Cost:
        O(K^2 dim).

    Raises:
        ValueError: if ``dim`` is below K - 1, or ``rotation`` neither of the two.

    Source:
        Zhou et al., ICML 2022.

    Example:
        >>> rows = simplex_etf(4, 10)
        >>> rows @ rows.T
        tensor([[ 1.0000, -0.3333, -0.3333, -0.3333],
                [-0.3333,  1.0000, -0.3333, -0.3333],
                [-0.3333, -0.3333,  1.0000, -0.3333],
                [-0.3333, -0.3333, -0.3333,  1.0000]])
    """
    k = check_int("num_classes", num_classes, 2)
    check_one_of("rotation", rotation, ("identity", "random"))
    if check_int("dim", dim, 1) < k - 1:
        raise ValueError(f"dim must be >= {k - 1}, num_classes - 1, for a simplex of {k} rows, but is {dim}")
    basis = centred_basis(k)
    if dim >= k:
        basis = basis @ basis.T
    rows = math.sqrt(k / (k - 1)) * basis
    if rotation == "random":
        rows = rows @ random_basis(dim, rows.shape[1], generator=generator).T.to(rows.device)
    else:
        rows = F.pad(rows, (0, dim - rows.shape[1]))
    return rows.to(dtype or torch.get_default_dtype())


class ETFClassifier(nn.Module):
    r"""A last layer whose weight is a simplex ETF from the start and never trained.

    logits = W h + b with W = :func:`simplex_etf`. Training would arrive there anyway, so nothing is learnt: K d
    parameters and their gradients are saved; with ``in_features`` = K many more, in the layer before.

    Args:
        in_features: numbers in a feature vector, at least num_classes - 1.
        num_classes: K.
        bias: whether a bias is trained; it starts at zero.
        rotation: ``"identity"`` or ``"random"``.
        generator: source of the random rotation.

    Shapes:
        ``x`` (\*batch, in_features) float; returns (\*batch, num_classes).

    Cost:
        O(batch K in_features), as of a linear layer; K parameters, or none.

    Raises:
        ValueError: if ``in_features`` is below num_classes - 1, or the input has another number of features.

    Source:
        Zhou et al., ICML 2022.

    Example:
        >>> head = ETFClassifier(64, 10)
        >>> head(torch.ones(5, 64)).shape, sum(parameter.numel() for parameter in head.parameters())
        (torch.Size([5, 10]), 10)
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        rotation: Rotation = "identity",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", simplex_etf(num_classes, in_features, rotation=rotation, generator=generator))
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch classes"]:
        """Logits."""
        if x.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"x must have {self.weight.shape[1]} features (in_features), but has {x.shape[-1]}")
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as ``print(module)`` shows them."""
        classes, features = self.weight.shape
        return f"in_features={features}, num_classes={classes}, bias={self.bias is not None}"
