r"""What becomes of a deep linear network with a one-neuron layer: limit, rates and the whole way there.

A balanced start makes the product W = s u v^T for all time, and gradient flow of 1/2 ||W - Z||_F^2 becomes, with
q = u^T Z v and N layers,

    ds/dt = N s^{2-2/N} (q - s),   du/dt = s^{1-2/N} (I - u u^T) Z v,   dv/dt = s^{1-2/N} (I - v v^T) Z^T u.

With Z = sum_i s_i u_i v_i^T, a_i = u_i^T u and b_i = v_i^T v, and the clock dtau = s^{1-2/N} dt, the directions solve a
*linear* equation: u and v are x / |x| and y / |y| with x' = Z y, y' = Z^T x, so a_i + b_i grows like e^{s_i tau} and
a_i - b_i like e^{-s_i tau}, up to a common factor. That decides everything: the first i with a_i + b_i != 0 wins.

Here (u, v) is computed from tau in closed form, and only tau and log s are integrated. The saddles are then reached as
the theory has it; in the weights, rounding lets the flow escape from them in the end.

Source: Chen, Lin, Zhang, *On Non-local Convergence Analysis of Deep Linear Networks*, ICML 2022.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchstone._checks import check_finite, check_float, check_int, check_ndim
from torchstone.dynamics.flow import integrate

__all__ = [
    "Alignment",
    "Limit",
    "RankOneFlow",
    "Rates",
    "alignment",
    "escape_time",
    "predict_limit",
    "predicted_rates",
    "rank_one_flow",
]

TIE = 1e-9  # singular values closer than this share of the largest count as equal
ZERO = 1e-12  # an alignment a_i + b_i below this counts as zero


class Alignment(NamedTuple):
    """Coordinates a_i = u_i^T u, b_i = v_i^T v of a rank-one matrix, and q = u^T Z v."""

    a: Float[Tensor, "*batch r"]
    b: Float[Tensor, "*batch r"]
    q: Float[Tensor, "*batch"]


class Limit(NamedTuple):
    """Where the flow ends.

    Attributes:
        k: number of the singular triple of Z, from 1 (the first of equal ones); 0 for the origin.
        W: the limit.
        kind: the global minimiser, a strict saddle, or the origin.
    """

    k: int
    W: Float[Tensor, "m n"]
    kind: Literal["global", "saddle", "origin"]


class Rates(NamedTuple):
    """Exponential rates near the global minimiser: of the magnitude s, and of the directions u and v."""

    magnitude: float
    direction: float

    @property
    def error(self) -> float:
        """Rate of ||W - W*||: the smaller of the two."""
        return min(self.magnitude, self.direction)

    @property
    def loss(self) -> float:
        """Rate of L - L*: twice that of the error."""
        return 2 * self.error


class RankOneFlow(NamedTuple):
    """The product s u v^T along the flow."""

    s: Float[Tensor, "times *stack"]
    u: Float[Tensor, "times *stack m"]
    v: Float[Tensor, "times *stack n"]

    def product(self) -> Float[Tensor, "times *stack m n"]:
        """W = s u v^T."""
        return self.s[..., None, None] * self.u.unsqueeze(-1) * self.v.unsqueeze(-2)


def alignment(W: Float[Tensor, "*#batch m n"], Z: Float[Tensor, "*#batch m n"]) -> Alignment:
    """Coordinates of the leading singular vectors u, v of ``W`` in those of ``Z``, and q = u^T Z v.

    Of (u, v) and (-u, -v), which are the same point, that with a_1 + b_1 >= 0 is taken. Along the flow q never falls,
    and (a_i + b_i) / (a_j + b_j) is multiplied by e^{(s_i - s_j) tau}.

    Shapes: see the signature; r = min(m, n). Leading axes, such as times, are broadcast.
    Cost: singular value decompositions of ``W`` and ``Z``.
    Raises: ValueError for values that are not finite.
    Source: Chen et al., ICML 2022.

    Example:
        >>> found = alignment(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.diag(torch.tensor([3.0, 1.0])))
        >>> found.a.abs(), found.b.abs(), found.q
        (tensor([1., 0.]), tensor([0., 1.]), tensor(0.))
    """
    for name, value in (("W", W), ("Z", Z)):
        check_finite(name, value)
    left, _, right = torch.linalg.svd(W, full_matrices=False)
    u, v = left[..., 0], right[..., 0, :]
    U, _, Vh = torch.linalg.svd(Z, full_matrices=False)
    a = (U.mT @ u.unsqueeze(-1)).squeeze(-1)
    b = (Vh @ v.unsqueeze(-1)).squeeze(-1)
    sign = torch.where(a[..., :1] + b[..., :1] < 0, -1.0, 1.0).to(a)
    q = (u * (Z @ v.unsqueeze(-1)).squeeze(-1)).sum(-1)
    return Alignment(sign * a, sign * b, q)


def predict_limit(
    Z: Float[Tensor, "m n"], u0: Float[Tensor, " m"], v0: Float[Tensor, " n"], *, s0: float = 1.0
) -> Limit:
    """Where gradient flow from the balanced start s_0 u_0 v_0^T ends: the theorem.

    With k the first index with a_k + b_k != 0 the limit is s_k u_k v_k^T: the global minimiser for k = 1, a strict
    saddle otherwise. If there is none, among those with s_k > 0, or s_0 = 0, it is the origin. Singular values closer
    than 1e-9 s_1 count as equal; the limit then is s_k times the direction of the start in their common space. An
    a_k + b_k below 1e-12 counts as zero. (In float32 the two limits are the precision.)

    Args:
        Z: the matrix to be learnt, not zero.
        u0: left direction of the start, of length 1.
        v0: right direction of the start, of length 1.
        s0: the start's singular value; what matters is whether it is 0.

    Shapes: returns a :class:`Limit`.
    Cost: one singular value decomposition.
    Raises: ValueError for a zero ``Z``, directions of another length than 1, a negative ``s0``, or wrong shapes.
    Source: Chen et al., ICML 2022, main theorem.

    Example:
        >>> Z = torch.diag(torch.tensor([3.0, 1.0]))
        >>> e1, e2 = torch.eye(2)
        >>> predict_limit(Z, e2, e2)
        Limit(k=2, W=tensor([[0., 0.],
                [0., 1.]]), kind='saddle')
        >>> predict_limit(Z, e1, e2).kind, predict_limit(Z, e1, -e1).kind
        ('global', 'origin')
    """
    check_ndim("Z", Z, 2, "(m, n)")
    check_float("s0", s0, 0)
    _check_directions(Z, u0, v0)
    U, s, Vh = _triples(Z)
    grown = U.mT @ u0.to(Z) + Vh @ v0.to(Z)
    tie, zero = (max(limit, 10 * torch.finfo(Z.dtype).eps) for limit in (TIE, ZERO))
    if s0 > 0:
        for k, size in enumerate(s, 1):
            tied = (s - size).abs() < tie * s[0]
            part = torch.where(tied, grown, 0.0)
            if size >= tie * s[0] and float(part.norm()) > zero:
                part = part / part.norm()
                W = size * torch.outer(U @ part, Vh.mT @ part)
                return Limit(k, W, "global" if bool(tied[0]) else "saddle")
    return Limit(0, torch.zeros_like(Z), "origin")


def predicted_rates(Z: Float[Tensor, "m n"], depth: int) -> Rates:
    """Rates of the last stage, near the global minimiser: N s_1^{2-2/N} and s_1^{1-2/N} (s_1 - s_2).

    They are those of the magnitude and of the direction; ``.error`` is the rate of ||W - W*||, ``.loss`` that of
    L - L*. Here s_2 is the largest singular value that is not equal to s_1 (0 in directions outside of Z).

    Shapes: returns two numbers.
    Cost: one singular value decomposition.
    Raises: ValueError for a zero ``Z`` or a ``depth`` below 2.
    Source: Chen et al., ICML 2022; linearisation of the flow at the minimiser.

    Example:
        >>> predicted_rates(torch.diag(torch.tensor([4.0, 1.0])), 2)
        Rates(magnitude=8.0, direction=3.0)
    """
    check_ndim("Z", Z, 2, "(m, n)")
    check_int("depth", depth, 2)
    _, s, _ = _triples(Z)
    top = float(s[0])
    below = s[s <= top * (1 - max(TIE, 10 * torch.finfo(Z.dtype).eps))]
    turned = top ** (1 - 2 / depth)
    if len(below):
        direction = turned * (top - float(below[0]))
    else:
        direction = turned * top if Z.shape[0] != Z.shape[1] else math.inf
    return Rates(depth * top ** (2 - 2 / depth), direction)


def escape_time(s0: float, q: float, depth: int) -> float:
    """Time that a small start needs to leave the origin, at fixed alignment q > 0.

    s_0^{-(1-2/N)} / ((N - 2) q) for N >= 3, log(1 / s_0) / (2 q) for N = 2: the leading order for small s_0 of the
    time at which ds/dt = N q s^{2-2/N} has left every small s behind.

    Shapes: numbers.
    Cost: O(1).
    Raises: ValueError unless 0 < s_0 < 1, q > 0 and depth >= 2.
    Source: Chen et al., ICML 2022, stages of convergence.

    Example:
        >>> escape_time(0.01, 0.5, 4), round(escape_time(0.01, 0.5, 2), 3)
        (10.0, 4.605)
    """
    check_float("s0", s0, 0, 1, open_low=True, open_high=True)
    check_float("q", q, 0, open_low=True)
    check_int("depth", depth, 2)
    return math.log(1 / s0) / (2 * q) if depth == 2 else s0 ** (2 / depth - 1) / ((depth - 2) * q)


def rank_one_flow(
    Z: Float[Tensor, "*stack m n"],
    s0: float | Float[Tensor, "*stack"],
    u0: Float[Tensor, "*stack m"],
    v0: Float[Tensor, "*stack n"],
    depth: int,
    t: Float[Tensor, " times"] | Float[Tensor, "times stack"],
    *,
    rtol: float = 1e-9,
    atol: float = 1e-12,
) -> RankOneFlow:
    """Gradient flow of a balanced network of ``depth`` layers, one of them with one neuron, at the times ``t``.

    ds/dt = N s^{2-2/N} (q - s), du/dt = s^{1-2/N} (I - u u^T) Z v, dv/dt = s^{1-2/N} (I - v v^T) Z^T u. The widths of
    the layers play no part.

    Args:
        Z: the matrix to be learnt, not zero.
        s0: singular value of the start, above 0.
        u0: left direction of the start, of length 1.
        v0: right direction of the start, of length 1.
        depth: N, at least 2.
        t: rising times, not before 0; (times, stack) gives each problem of a stack its own.
        rtol: relative error allowed in a step.
        atol: absolute error allowed in a step.

    Shapes: see the signature; ``stack`` is one axis of problems, or none.
    Cost: O(m n) per step and problem; tens to hundreds of steps.
    Raises: ValueError for a zero ``Z``, an ``s0`` not above 0, directions of another length than 1, or bad times.
    Source: Chen et al., ICML 2022. An a_i + b_i below 1e-12 is set to zero, as in :func:`predict_limit`.

    Example:
        >>> Z, e1 = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)), torch.eye(2).double()[0]
        >>> flow = rank_one_flow(Z, 0.1, e1, e1, 3, torch.tensor([0.0, 9.0]))
        >>> flow.s  # from 0.1 to the first singular value
        tensor([0.1000, 3.0000], dtype=torch.float64)
    """
    if Z.ndim not in (2, 3):
        raise ValueError(f"Z must have shape (m, n) or (stack, m, n), but has {tuple(Z.shape)}")
    check_int("depth", depth, 2)
    _check_directions(Z, u0, v0)
    size = torch.as_tensor(s0, dtype=Z.dtype, device=Z.device).expand(Z.shape[:-2])
    if not bool((size > 0).all()):
        raise ValueError(f"s0 must be above 0 (the origin is stationary), but is {s0}")
    modes = _Modes(Z, u0.to(Z), v0.to(Z))
    turn = 1 - 2 / depth

    def velocity(state: Tensor) -> Tensor:
        tau, log_s = state.unbind(-1)
        speed = (turn * log_s).exp()
        return torch.stack([speed, depth * speed * (modes.q(tau) - log_s.exp())], -1)

    start = torch.stack([torch.zeros_like(size), size.log()], -1)
    path, _ = integrate(velocity, start, t, rtol=rtol, atol=atol)
    tau, log_s = path.unbind(-1)
    return RankOneFlow(log_s.exp(), *modes.directions(tau))


class _Modes:
    """Closed form of the directions: x(tau) = sum_i u_i (p_i e^{s_i tau} + m_i e^{-s_i tau}) / 2 + rest, y likewise."""

    def __init__(self, Z: Tensor, u0: Tensor, v0: Tensor) -> None:
        self.U, self.s, self.Vh = _triples(Z)
        a, b = (self.U.mT @ u0.unsqueeze(-1)).squeeze(-1), (self.Vh @ v0.unsqueeze(-1)).squeeze(-1)
        self.grows = torch.where((a + b).abs() > max(ZERO, 10 * torch.finfo(Z.dtype).eps), a + b, 0.0)
        self.shrinks = a - b
        self.u_rest = u0 - (self.U @ a.unsqueeze(-1)).squeeze(-1)
        self.v_rest = v0 - (self.Vh.mT @ b.unsqueeze(-1)).squeeze(-1)

    def _coordinates(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates of x and y, and the factor of what lies outside of Z; scaled, so that nothing overflows."""
        power = self.s * tau.unsqueeze(-1)
        rest = torch.maximum(self.u_rest.norm(dim=-1), self.v_rest.norm(dim=-1))
        sizes = [self.grows.abs().log() + power, self.shrinks.abs().log() - power, rest.log().unsqueeze(-1) + 0 * power]
        scale = torch.cat(sizes, -1).amax(-1, keepdim=True)
        up, down = self.grows * (power - scale).exp() / 2, self.shrinks * (-power - scale).exp() / 2
        return up + down, up - down, (-scale).exp()

    def q(self, tau: Tensor) -> Tensor:
        x, y, rest = self._coordinates(tau)
        x_length = (x.square().sum(-1) + (rest * self.u_rest).square().sum(-1)).sqrt()
        y_length = (y.square().sum(-1) + (rest * self.v_rest).square().sum(-1)).sqrt()
        return (self.s * x * y).sum(-1) / (x_length * y_length)

    def directions(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        x, y, rest = self._coordinates(tau)
        u = (self.U @ x.unsqueeze(-1)).squeeze(-1) + rest * self.u_rest
        v = (self.Vh.mT @ y.unsqueeze(-1)).squeeze(-1) + rest * self.v_rest
        return torch.nn.functional.normalize(u, dim=-1), torch.nn.functional.normalize(v, dim=-1)


def _triples(Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_finite("Z", Z)
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    if not bool((s[..., 0] > 0).all()):
        raise ValueError("Z is zero, so there is nothing to learn")
    return U, s, Vh


def _check_directions(Z: Tensor, u0: Tensor, v0: Tensor) -> None:
    for name, given, width in (("u0", u0, Z.shape[-2]), ("v0", v0, Z.shape[-1])):
        shape = (*Z.shape[:-2], width)
        if given.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, as Z is {tuple(Z.shape)}, but has {tuple(given.shape)}")
        worst = float((given.norm(dim=-1) - 1).abs().max())
        if not worst < 1e-6:
            raise ValueError(f"{name} must have length 1, but is off by {worst:.3g}")
