r"""Diagonal linear networks: how the step size of gradient descent chooses among solutions.

beta = u * v elementwise and f(x) = beta^T x, trained on L = 1/(2N) ||X beta - y||^2 with fewer samples than features,
from u = sqrt(2) alpha, v = 0. Gradient flow ends where :func:`~torchstone.dynamics.gradient_flow_limit` says: near the
smallest l2 norm for large alpha, near the smallest l1 norm for small. Gradient descent with step eta can stay only at
minima whose Hessian has no eigenvalue above 2 / eta, and at a minimum its non-zero eigenvalues are those of
X diag(u^2 + v^2) X^T / N. As u^2 + v^2 >= 2 |beta|, a vector 1/sqrt(N) on both sides gives

    sum_i mean_n(x_ni)^2 |beta_i| <= 1 / eta,

a bound on a weighted l1 norm: large steps lead to sparse solutions, unless the data are centred.

Here eta is the step in (u, v). In w = (u + v) / 2 and (u - v) / 2, where beta is a difference of squares, the same
path has half the step.

Source: Nacson, Ravichandran, Srebro, Soudry, *Implicit Bias of the Step Size in Linear Diagonal Neural Networks*,
ICML 2022. The bound is derived anew here, for any unit vector in the place of 1/sqrt(N).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_float, check_int, check_one_of

__all__ = [
    "DiagonalLinearNetwork",
    "StabilityCertificate",
    "critical_step",
    "sharpness",
    "stability_certificate",
    "stability_threshold",
    "weighted_l1",
]


class DiagonalLinearNetwork(nn.Module):
    r"""f(x) = beta^T x, with beta an elementwise product of vectors, or a difference of powers.

    ``"uv"``: beta = u_1 * ... * u_depth, all sqrt(2) alpha at the start but the last, which is 0. ``"squares"``:
    beta = ``w_+^depth - w_-^depth``, both alpha / sqrt(2). Either starts at beta = 0. With two layers they are one
    network in two bases: gradient descent on ``"uv"`` with step eta is that on ``"squares"`` with step eta / 2.

    Args:
        d: number of features.
        depth: number of layers.
        alpha: scale of the start.
        parametrization: ``"uv"`` or ``"squares"``.
        dtype: float64, as steps near the limit of stability amplify rounding errors.
        device: of the parameters.

    Attributes:
        layers: (depth, d), or (2, d) for ``"squares"``.

    Shapes: ``x`` (..., d); returns (...).
    Cost: O(depth d) and one product with ``x``.
    Raises: ValueError for arguments out of range, or ``x`` without d columns.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> network = DiagonalLinearNetwork(2, alpha=1.0)
        >>> with torch.no_grad():
        ...     network.layers.copy_(torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
        Parameter containing:
        tensor([[1.0000, 2.0000],
                [3.0000, 0.5000]], dtype=torch.float64, requires_grad=True)
        >>> network.beta.tolist(), network(torch.ones(2).double()).item()
        ([3.0, 1.0], 4.0)
    """

    def __init__(
        self,
        d: int,
        depth: int = 2,
        *,
        alpha: float,
        parametrization: Literal["uv", "squares"] = "uv",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.d, self.depth = check_int("d", d, 1), check_int("depth", depth, 2)
        self.alpha = check_float("alpha", alpha, 0, open_low=True)
        self.parametrization = check_one_of("parametrization", parametrization, ("uv", "squares"))
        if parametrization == "uv":
            start = torch.full((depth, d), 2**0.5 * alpha, dtype=dtype, device=device)
            start[-1] = 0
        else:
            start = torch.full((2, d), alpha / 2**0.5, dtype=dtype, device=device)
        self.layers = nn.Parameter(start)

    @property
    def beta(self) -> Float[Tensor, " d"]:
        """The linear predictor."""
        if self.parametrization == "uv":
            return self.layers.prod(0)
        return self.layers[0] ** self.depth - self.layers[1] ** self.depth

    @property
    def squared_slopes(self) -> Float[Tensor, " d"]:
        """Sum over all parameters of (d beta_i / d parameter)^2: u^2 + v^2 for two layers."""
        if self.parametrization == "squares":
            return (self.depth * self.layers ** (self.depth - 1)).square().sum(0)
        others = [torch.cat([self.layers[:i], self.layers[i + 1 :]]).prod(0) for i in range(self.depth)]
        return torch.stack(others).square().sum(0)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """Predict."""
        if not x.ndim or x.shape[-1] != self.d:
            raise ValueError(f"x must have shape (..., {self.d}), but has {tuple(x.shape)}")
        return x @ self.beta

    def extra_repr(self) -> str:
        """Arguments, as ``print(network)`` shows them."""
        return f"d={self.d}, depth={self.depth}, alpha={self.alpha:g}, parametrization={self.parametrization!r}"


def stability_threshold(lr: float) -> float:
    """Largest eigenvalue of the Hessian at which gradient descent with this step can stay: 2 / lr.

    Shapes: numbers.
    Cost: none.
    Raises: ValueError unless ``lr`` is positive.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> stability_threshold(0.1)
        20.0
    """
    return 2 / check_float("lr", lr, 0, open_low=True)


def sharpness(
    model: DiagonalLinearNetwork | Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n d"]
) -> Float[Tensor, "*batch"]:
    r"""Largest eigenvalue of the Hessian of 1/(2N) ||X beta - y||^2 at a minimum of zero loss.

    There it is that of the N x N matrix X diag(s) X^T / N with s the squared slopes, u^2 + v^2 for two layers.
    Elsewhere the Hessian has a further part, from the residuals: use there, as for any other network,
    :func:`~torchstone.training.hessian_max_eigenvalue`.

    Args:
        model: the network, or s for many at once.
        x: the training inputs.

    Shapes: s (..., d), ``x`` (..., n, d); returns (...).
    Cost: O(n^2 d + n^3), exact, where the full Hessian would have (2 d)^2 entries.
    Raises: ValueError if shapes disagree.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> sharpness(torch.tensor([1.0, 4.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(2.)
    """
    slopes = (model.squared_slopes if isinstance(model, DiagonalLinearNetwork) else model).detach()
    check_columns("model", slopes, x)
    return torch.linalg.eigvalsh((x * slopes[..., None, :]) @ x.mT / x.shape[-2])[..., -1]


def weighted_l1(
    beta: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n d"], *, direction: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "*batch"]:
    r"""The norm that stability bounds: sum_i (X^T a)_i^2 / N |beta_i|, at most 1 / eta at every stable minimum.

    Args:
        beta: the predictor.
        x: the training inputs.
        direction: a, scaled to length one here; by default 1/sqrt(N), which weighs by squared means of the features.

    Shapes: ``beta`` (..., d), ``x`` (..., n, d); returns (...).
    Cost: O(n d).
    Raises: ValueError if shapes disagree, or ``direction`` is zero.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> weighted_l1(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.0], [3.0, 2.0]])).item()  # 2^2 1 + 1^2 2
        6.0
    """
    check_columns("beta", beta, x)
    n = x.shape[-2]
    a = x.new_ones(n) if direction is None else direction.to(x)
    if a.shape != (n,) or not a.any():
        raise ValueError(f"direction must be a vector ({n},) other than zero, but has {tuple(a.shape)}")
    weights = (a @ x).square() / (n * a.square().sum())
    return (weights * beta.abs()).sum(-1)


class StabilityCertificate(NamedTuple):
    """Both sides of the two inequalities that a stable minimum satisfies.

    Attributes:
        sharpness: largest eigenvalue of the Hessian; stable up to ``threshold``, 2 / lr.
        threshold: its limit.
        weighted_l1: norm of the predictor; at most ``bound`` wherever ``sharpness`` is at most ``threshold``.
        bound: its limit, 1 / lr; 1 / (2 lr) for ``"squares"``.
    """

    sharpness: float
    threshold: float
    weighted_l1: float
    bound: float

    @property
    def stable(self) -> bool:
        """Whether gradient descent can stay."""
        return self.sharpness <= self.threshold

    @property
    def slack(self) -> float:
        """How far the norm is from its limit; negative: this is no stable minimum."""
        return self.bound - self.weighted_l1


def stability_certificate(model: DiagonalLinearNetwork, x: Float[Tensor, "n d"], *, lr: float) -> StabilityCertificate:
    r"""Compare the sharpness with 2 / lr, and the weighted l1 norm of the predictor with 1 / lr.

    Since weighted_l1 / bound <= sharpness / threshold for any parameters, the first inequality implies the second.

    Args:
        model: a network of two layers, at a minimum of zero loss.
        x: the training inputs.
        lr: the step of gradient descent in the model's own parametrization.

    Shapes: ``x`` (n, d).
    Cost: as :func:`sharpness`.
    Raises: ValueError for other depths, ``lr`` that is not positive, or shapes that disagree.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> network = DiagonalLinearNetwork(1, alpha=1.0)
        >>> _ = nn.init.constant_(network.layers, 2.0)  # beta = 4, Hessian [[4, 4], [4, 4]]
        >>> stability_certificate(network, torch.ones(1, 1).double(), lr=0.25)
        StabilityCertificate(sharpness=8.0, threshold=8.0, weighted_l1=4.0, bound=4.0)
    """
    if model.depth != 2:
        raise ValueError(f"model must have depth 2, but has {model.depth}")
    threshold = stability_threshold(lr)
    bound = threshold / 2 if model.parametrization == "uv" else threshold / 4
    return StabilityCertificate(
        float(sharpness(model, x)), threshold, float(weighted_l1(model.beta.detach(), x)), bound
    )


def critical_step(x: Float[Tensor, "*batch n d"], alpha: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""Step above which gradient descent is unstable where it starts: 1 / (alpha^2 lambda_max(X X^T / N)).

    Somewhat larger steps can still end well: they overshoot at first, shrink u^2 - v^2, and settle at a flatter
    minimum. About twice as large ones diverge.

    Args:
        x: the training inputs.
        alpha: scale of the start.

    Shapes: ``x`` (..., n, d), ``alpha`` a number or (...); returns (...).
    Cost: O(n^2 d + n^3).
    Raises: ValueError unless ``alpha`` is positive.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> critical_step(2 * torch.eye(2), 0.5)  # 1 / (0.25 * 4 / 2)
        tensor(2.)
    """
    scale = positive("alpha", alpha, x)
    return 1 / (scale.square() * torch.linalg.eigvalsh(x @ x.mT / x.shape[-2])[..., -1])


def positive(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A positive number, or one for each problem, as a tensor like another."""
    if not isinstance(value, Tensor):
        return torch.as_tensor(check_float(name, value, 0, open_low=True), dtype=like.dtype, device=like.device)
    if not bool(((value > 0) & value.isfinite()).all()):
        raise ValueError(
            f"{name} must be positive and finite, but spans {float(value.min()):g}..{float(value.max()):g}"
        )
    return value.to(like)


def check_columns(name: str, vector: Tensor, x: Tensor) -> None:
    """Raise ``ValueError`` unless a vector has an entry for each feature."""
    if x.ndim < 2 or vector.shape[-1:] != x.shape[-1:]:
        raise ValueError(f"{name} must have as many columns as x {tuple(x.shape)}, but has {tuple(vector.shape)}")
