r"""Deep linear networks W = W_N ... W_1, balanced starts, and the matrix that they learn.

With inputs X of white covariance, X^T X = I, the squared loss 1/2 ||X W^T - Y||_F^2 is 1/2 ||W - Z||_F^2 up to a
constant, with Z = Y^T X. Gradient flow keeps W_{j+1}^T W_{j+1} - W_j W_j^T, for every loss; where all of these are zero
the layers are *balanced*. If moreover one layer has a single neuron, every W_j has rank one and the same singular value
s^{1/N}, the product is W = s u v^T, and what becomes of it is known: see :mod:`torchstone.dynamics.rank_one`.

Source: Chen, Lin, Zhang, *On Non-local Convergence Analysis of Deep Linear Networks*, ICML 2022.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_finite, check_float, check_int, check_length, check_ndim

__all__ = ["DeepLinear", "RankOne", "Target", "balance_", "balanced_init_", "target_matrix"]


class RankOne(NamedTuple):
    """The product s u v^T of a balanced network with a one-neuron layer; (u, v) and (-u, -v) are the same."""

    s: Float[Tensor, "*stack"]
    u: Float[Tensor, "*stack d_out"]
    v: Float[Tensor, "*stack d_in"]


class Target(NamedTuple):
    """What a deep linear network learns from data: Z, and the transform that makes the inputs white."""

    Z: Float[Tensor, "d_out d_in"]
    transform: Float[Tensor, "d_in d_in"]


class DeepLinear(nn.Module):
    r"""Layers without anything between them: f(x) = W_N ... W_1 x (plus biases, if asked for).

    Layer j maps ``dims[j - 1]`` to ``dims[j]`` numbers. Weights are drawn from N(0, 1 / fan-in), which is not balanced:
    see :func:`balanced_init_` and :func:`balance_`.

    Args:
        dims: d_0, ..., d_N, input first.
        bias: whether layers add a bias, zero at first. The theory has none.
        generator: of the weights.
        dtype: of the weights.

    Shapes: ``x`` (batch, d_0); returns (batch, d_N). A stack of networks, made by :meth:`from_weights`, returns
        (stack, batch, d_N) and takes (batch, d_0) or (stack, batch, d_0).
    Cost: O(batch x sum_j d_j d_{j-1}).
    Raises: ValueError for fewer than two ``dims``, or any below 1; TypeError for other than integers.
    Source: Chen et al., ICML 2022, section 2.

    Example:
        >>> net = DeepLinear([4, 3, 1, 2], generator=torch.Generator().manual_seed(0))
        >>> net(torch.ones(5, 4)).shape, net.product().shape
        (torch.Size([5, 2]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        dims: Sequence[int],
        bias: bool = False,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ValueError(f"dims must hold at least an input and an output width, but is {list(dims)}")
        widths = [check_int(f"dims[{place}]", width, 1) for place, width in enumerate(dims)]
        self.weights = nn.ParameterList(
            torch.randn(out, into, generator=generator, dtype=dtype) / into**0.5 for into, out in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.zeros(out, dtype=dtype) for out in widths[1:]) if bias else None

    @classmethod
    def from_weights(cls, weights: Sequence[Float[Tensor, "*stack _ _"]]) -> DeepLinear:
        """The network with copies of these weights, W_1 first; (stack, out, into) make a stack of networks."""
        for place, (early, late) in enumerate(pairwise(weights)):
            if (
                early.ndim < 2
                or late.ndim < 2
                or early.shape[:-2] != late.shape[:-2]
                or early.shape[-2] != late.shape[-1]
            ):
                raise ValueError(
                    f"weights[{place + 1}] of shape {tuple(late.shape)} does not follow weights[{place}] of shape "
                    f"{tuple(early.shape)}"
                )
        net = cls([weights[0].shape[-1], *(weight.shape[-2] for weight in weights)], dtype=weights[0].dtype)
        net.weights = nn.ParameterList(weight.detach().clone() for weight in weights)
        return net

    @property
    def dims(self) -> tuple[int, ...]:
        """Widths, input first."""
        return (self.weights[0].shape[-1], *(weight.shape[-2] for weight in self.weights))

    @property
    def depth(self) -> int:
        """N, the number of layers."""
        return len(self.weights)

    def forward(self, x: Float[Tensor, "*stack batch d_in"]) -> Float[Tensor, "*stack_out batch d_out"]:
        """Apply the layers one after the other."""
        if x.ndim < 2 or x.shape[-1] != self.dims[0]:
            raise ValueError(f"x must have shape (batch, {self.dims[0]}), but has {tuple(x.shape)}")
        for place, weight in enumerate(self.weights):
            x = x @ weight.mT
            if self.biases is not None:
                x = x + self.biases[place]
        return x

    def product(self) -> Float[Tensor, "*stack d_out d_in"]:
        """W = W_N ... W_1."""
        return reduce(lambda below, weight: weight @ below, self.weights)

    def balance_gap(self) -> Float[Tensor, "*stack"]:
        """max_j ||W_{j+1}^T W_{j+1} - W_j W_j^T||_F: zero if balanced. Gradient flow keeps what is inside the norm."""
        gaps = [torch.linalg.matrix_norm(late.mT @ late - early @ early.mT) for early, late in pairwise(self.weights)]
        first = self.weights[0]
        return torch.stack(gaps).amax(0).detach() if gaps else first.new_zeros(first.shape[:-2])

    @torch.no_grad()
    def rank_one(self, *, tol: float = 1e-6) -> RankOne:
        """s, u, v of the product, after checking that the theory of one-neuron layers applies.

        Args:
            tol: largest :meth:`balance_gap` allowed, as a share of the largest layer's squared norm. A gap over a
                thousandth of that limit brings a UserWarning.

        Raises:
            ValueError: if there is a bias, a single layer, no layer with one neuron, or the gap is too large.
        """
        if self.biases is not None:
            raise ValueError("the theory knows no bias: build DeepLinear with bias=False")
        if self.depth < 2 or min(self.dims) > 1:
            raise ValueError(f"dims must have at least two layers and a width of 1, but are {list(self.dims)}")
        check_float("tol", tol, 0, open_low=True)
        u, s, vh = torch.linalg.svd(self.product(), full_matrices=False)
        scale = torch.stack([torch.linalg.matrix_norm(weight) for weight in self.weights]).amax(0).square()
        share = float((self.balance_gap() / scale.clamp_min(torch.finfo(scale.dtype).tiny)).max())
        if not share <= tol:
            raise ValueError(
                f"the layers are not balanced: the gap is {share:.3g} of the largest squared norm, the limit is "
                f"tol={tol:g}; balance_(module) makes them so with the same product"
            )
        if share > 1e-3 * tol:
            warnings.warn(
                f"the layers are not quite balanced: the gap is {share:.3g} of the largest squared norm", stacklevel=2
            )
        return RankOne(s[..., 0], u[..., 0], vh[..., 0, :])


M = TypeVar("M", bound=DeepLinear)


@torch.no_grad()
def balanced_init_(
    module: M,
    s0: float | Float[Tensor, "*#stack"],
    u: Float[Tensor, "*#stack d_out"] | None = None,
    v: Float[Tensor, "*#stack d_in"] | None = None,
    generator: torch.Generator | None = None,
) -> M:
    r"""Set the layers to a balanced start with product s_0 u v^T, in place; return ``module``.

    W_1 = r h_1 v^T, W_j = r h_j h_{j-1}^T, W_N = r u h_{N-1}^T with r = s_0^{1/N} and random unit vectors h_j.

    Args:
        module: the network, or stack of networks.
        s0: at least 0; the only singular value of the product.
        u: direction of the output, of any length but 0; random by default.
        v: direction of the input, likewise.
        generator: of all that is random.

    Shapes: see the signature.
    Cost: O(sum_j d_j d_{j-1}).
    Raises: ValueError for a negative ``s0``, a direction of length 0 or the wrong shape.
    Source: Chen et al., ICML 2022; the balanced start of Arora, Cohen, Hazan, ICML 2018, in rank one.

    Example:
        >>> net = balanced_init_(DeepLinear([2, 1, 2]).double(), 0.25, torch.tensor([1.0, 0]), torch.tensor([0, 2.0]))
        >>> net.product().detach()
        tensor([[0.0000, 0.2500],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    first = module.weights[0]
    lead = first.shape[:-2]
    size = torch.as_tensor(s0, dtype=first.dtype, device=first.device)
    check_finite("s0", size)
    if bool((size < 0).any()) or size.shape not in ((), lead):
        raise ValueError(f"s0 must be at least 0, a number or of shape {tuple(lead)}, but is {s0}")
    device = first.device if generator is None else generator.device

    def direction(name: str, given: Tensor | None, width: int) -> Tensor:
        if given is None:
            given = torch.randn(*lead, width, generator=generator, dtype=first.dtype, device=device)
        if given.shape not in ((width,), (*lead, width)):
            raise ValueError(f"{name} must have shape {(*lead, width)}, but has {tuple(given.shape)}")
        length = torch.linalg.vector_norm(given.to(first), dim=-1, keepdim=True)
        if not bool((length > 0).all()):
            raise ValueError(f"{name} must have a length above 0, but has {length.min().item():g}")
        return given.to(first) / length

    inner = [direction("h", None, width) for width in module.dims[1:-1]]
    ends = direction("v", v, module.dims[0]), direction("u", u, module.dims[-1])
    root = (size ** (1 / module.depth))[..., None, None]
    for weight, (below, above) in zip(module.weights, pairwise([ends[0], *inner, ends[1]]), strict=True):
        weight.copy_(root * above.unsqueeze(-1) * below.unsqueeze(-2))
    return module


@torch.no_grad()
def balance_(module: M) -> M:
    r"""Replace the layers by balanced ones with the same product, in place; return ``module``.

    From the product U S V^T, of rank at most r = min_j d_j: W_1 = H_1 S^{1/N} V^T, W_j = H_j S^{1/N} H_{j-1}^T,
    W_N = U S^{1/N} H_{N-1}^T, where H_j (d_j, r) has orthonormal columns, the nearest to W_j ... W_1 V. A network that
    is balanced already stays as it is, if its singular values are distinct and not zero.

    Shapes: any :class:`DeepLinear`, and stacks.
    Cost: N singular value decompositions.
    Raises: ValueError if the network has biases, or weights that are not finite.
    Source: Arora, Cohen, Hazan, *On the Optimization of Deep Networks*, ICML 2018 (balanced start).

    Example:
        >>> net = DeepLinear([3, 2, 1, 4], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> before = net.product()
        >>> bool(balance_(net).balance_gap() < 1e-12), torch.allclose(net.product(), before)
        (True, True)
    """
    if module.biases is not None:
        raise ValueError("a network with biases has no balanced form of the same product: build it with bias=False")
    for place, weight in enumerate(module.weights):
        check_finite(f"weights[{place}]", weight)
    rank = min(module.dims)
    u, s, vh = torch.linalg.svd(module.product(), full_matrices=False)
    root = torch.diag_embed(s[..., :rank] ** (1 / module.depth))
    frames = [vh[..., :rank, :].mT]
    passed = frames[0]
    for weight in module.weights[:-1]:
        passed = weight @ passed
        # Columns shrink like singular values from layer to layer; equal lengths keep the small ones accurate.
        length = torch.linalg.vector_norm(passed, dim=-2, keepdim=True)
        passed = passed / length.where(length > 0, torch.ones_like(length))
        left, _, right = torch.linalg.svd(passed, full_matrices=False)
        frames.append(left @ right)
    frames.append(u[..., :rank])
    for weight, (below, above) in zip(module.weights, pairwise(frames), strict=True):
        weight.copy_(above @ root @ below.mT)
    return module


def target_matrix(x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], *, whiten: bool = False) -> Target:
    r"""Z = Y^T X of a regression with white inputs, so that 1/2 ||X W^T - Y||_F^2 = 1/2 ||W - Z||_F^2 + constant.

    Inputs with another covariance C = X^T X are made white by T = C^{-1/2}: a network that is trained on ``x @ T``
    learns Z = Y^T X T, which is W C^{1/2} of the least-squares solution W. A network that is trained on ``x`` itself
    follows another flow, of which the theory says nothing.

    Args:
        x: inputs, one sample a row. Features of variance 1 still have to be divided by sqrt(n).
        y: targets.
        whiten: compute T; without it inputs that are not white raise an error.

    Shapes: returns Z (d_out, d_in) and T (d_in, d_in), the identity for white inputs.
    Cost: O(n d_in (d_in + d_out) + d_in^3).
    Raises: ValueError if ``x`` is not white and ``whiten`` not asked for, if its columns depend on each other, or for
        values that are not finite.
    Source: Chen et al., ICML 2022, assume white inputs.

    Example:
        >>> target_matrix(torch.tensor([[2.0], [0.0]]), torch.tensor([[3.0], [4.0]]), whiten=True)
        Target(Z=tensor([[3.]]), transform=tensor([[0.5000]]))
    """
    for name, value in (("x", x), ("y", y)):
        check_ndim(name, value, 2, "(n, d)")
        check_finite(name, value)
    check_length("y", y, len(x), "x")
    covariance = x.mT @ x
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    off = float((covariance - identity).abs().max())
    eps = torch.finfo(x.dtype).eps
    if off <= 1e3 * eps:
        return Target(y.mT @ x, identity)
    if not whiten:
        raise ValueError(
            f"x is not white: x^T x differs from the identity by up to {off:.3g}; pass whiten=True and train on "
            "x @ transform"
        )
    values, vectors = torch.linalg.eigh(covariance)
    if not float(values[0]) > len(values) * eps * float(values[-1]):
        raise ValueError(
            f"the columns of x depend on each other: the eigenvalues of x^T x span {float(values[0]):.3g} to "
            f"{float(values[-1]):.3g}; leave columns out, or reduce them by PCA"
        )
    transform = vectors * values.rsqrt() @ vectors.mT
    return Target(y.mT @ x @ transform, transform)
