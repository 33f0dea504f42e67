r"""Which solution of an under-determined regression: that of gradient flow, the smallest l1 or l2 norm; and such data.

All solvers take X (n, d) with d > n and return beta with X beta = y.
"""

from __future__ import annotations

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from torchstone._checks import check_finite, check_float, check_int
from torchstone.dynamics.diagonal import positive
from torchstone.errors import require

__all__ = ["SparseRegression", "basis_pursuit", "flow_residual", "gradient_flow_limit", "min_l2_norm"]


class SparseRegression(Dataset[tuple[Tensor, Tensor]]):
    r"""Noiseless linear regression on Gaussian features with few that matter: y = X beta*, x ~ N(mean 1, std^2 I).

    beta* has ``r`` equal positive entries in random places and length one. Unless ``mean`` is zero the features are
    not centred, which is what the step size of a diagonal network acts on.

    Args:
        n: number of samples.
        d: number of features.
        r: number of entries of beta* that are not zero.
        mean: of each feature.
        std: of each feature.
        generator: source of chance; the same one gives the same Gaussians whatever ``mean`` and ``std``.

    Attributes:
        x: (n, d), float64.
        y: (n,).
        beta: beta*, (d,).

    Shapes: item i is ``(x[i], y[i])``, of (d,) and ().
    Cost: O(n d).
    Raises: ValueError for arguments out of range. Warns where d <= n: then beta* is the only solution.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> data = SparseRegression(40, 100, 5, mean=3.0, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, int((data.beta > 0).sum())
        (torch.Size([40, 100]), 5)
    """

    def __init__(
        self,
        n: int,
        d: int,
        r: int,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_int("n", n, 1)
        check_int("d", d, 1)
        check_int("r", r, 1, d)
        self.mean, self.std = check_float("mean", mean), check_float("std", std, 0, open_low=True)
        if d <= n:
            warnings.warn(f"d must exceed n for more than one solution, but d = {d} and n = {n}", stacklevel=2)
        device = None if generator is None else generator.device
        gauss = torch.randn(n, d, dtype=torch.float64, generator=generator, device=device)
        self.x = self.mean + self.std * gauss
        self.beta = torch.zeros(d, dtype=torch.float64, device=device)
        self.beta[torch.randperm(d, generator=generator, device=device)[:r]] = 1 / math.sqrt(r)
        self.y = self.x @ self.beta

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def risk(self, beta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Expected squared error on a new sample: std^2 ||beta - beta*||^2 + mean^2 (sum(beta - beta*))^2."""
        off = beta - self.beta
        return self.std**2 * off.square().sum(-1) + self.mean**2 * off.sum(-1).square()


def gradient_flow_limit(
    x: Float[Tensor, "*batch n d"],
    y: Float[Tensor, "*batch n"],
    *,
    alpha: float | Float[Tensor, "*batch"],
    tol: float = 1e-10,
    max_iterations: int = 500,
) -> Float[Tensor, "*batch d"]:
    r"""Where gradient flow of the two-layer diagonal network ends when it starts at u = sqrt(2) alpha, v = 0.

    It minimises Q(beta) = sum_i alpha^2 / 2 q(2 beta_i / alpha^2), q(z) = 2 - sqrt(4 + z^2) + z asinh(z / 2), over
    X beta = y: the l2 norm for large alpha, the l1 norm for small. So beta = alpha^2 sinh(X^T nu) for some nu, which
    Newton's method with a line search finds as the minimum of the convex function alpha^2 sum cosh(X^T nu) - nu^T y.

    Args:
        x: inputs.
        y: targets.
        alpha: scale of the start.
        tol: relative error of X beta = y, in an orthonormal basis of the rows of X.
        max_iterations: of Newton's method.

    Shapes: ``x`` (..., n, d), ``y`` (..., n), ``alpha`` a number or (...); returns (..., d) in float64.
    Cost: O(n^2 d) an iteration; some ten iterations, some hundred for tiny alpha.
    Raises: ValueError for ``alpha`` that is not positive, inputs that are not finite, or if X beta = y has no solution;
        RuntimeError if it does not converge.
    Source: Woodworth et al., *Kernel and Rich Regimes in Overparametrized Models*, COLT 2020.

    Example:
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([2.0])
        >>> for alpha in (100.0, 1e-6):
        ...     gradient_flow_limit(x, y, alpha=alpha).round(decimals=3)
        tensor([0.4000, 0.8000], dtype=torch.float64)
        tensor([0., 1.], dtype=torch.float64)
    """
    check_finite("x", x)
    check_finite("y", y)
    x, y = x.double(), y.double()
    square = positive("alpha", alpha, x).square()[..., None]
    left, scale, rows, independent = _row_space(x)
    target = (left.mT @ y[..., None])[..., 0] / scale
    # Orthonormal rows keep Newton's matrix well conditioned; rows of zeros stand for dependent ones.
    target = target.where(independent, torch.zeros_like(target))
    fill = torch.diag_embed((~independent).to(x))
    nu = torch.zeros_like(target)
    limit = tol * target.abs().amax(-1)

    def objective(nu: Tensor) -> tuple[Tensor, Tensor]:
        inner = (rows.mT @ nu[..., None])[..., 0]
        return (square * inner.cosh()).sum(-1) - (nu * target).sum(-1), inner

    value, inner = objective(nu)
    for _ in range(max_iterations):
        beta = square * inner.sinh()
        off = (rows @ beta[..., None])[..., 0] - target
        open_ = off.abs().amax(-1) > limit
        if not open_.any():
            if bool((((x @ beta[..., None])[..., 0] - y).abs().amax(-1) > 1e-6 * y.abs().amax(-1)).any()):
                raise ValueError("x and y must have a solution, but no beta satisfies X beta = y")
            return beta
        hessian = (rows * (square * inner.cosh())[..., None, :]) @ rows.mT + fill
        step, _ = torch.linalg.solve_ex(hessian, off)
        slope = (off * step).sum(-1)
        size = open_.to(x)
        for _ in range(60):  # halvings; near the end rounding hides the decrease, and the full step is right
            trial, _ = objective(nu - size[..., None] * step)
            bad = ~(trial <= value - 1e-4 * size * slope + 1e-14 * value.abs())
            if not bad.any():
                break
            size = torch.where(bad, size / 2, size)
        nu = nu - size[..., None] * step
        value, inner = objective(nu)
    raise RuntimeError(
        f"gradient_flow_limit left |X beta - y| above tol = {tol:g} after {max_iterations} iterations: raise tol"
    )


def flow_residual(
    beta: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n d"], *, alpha: float | Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    r"""How far a solution is from that of gradient flow: the part of asinh(beta / alpha^2) outside the rows of X.

    Relative to its length: 0 at the limit of the flow, of order 1 elsewhere.

    Args:
        beta: a solution of X beta = y.
        x: inputs.
        alpha: scale of the start.

    Shapes: ``beta`` (..., d), ``x`` (..., n, d); returns (...).
    Cost: O(n^2 d).
    Raises: ValueError for ``alpha`` that is not positive.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> flow_residual(gradient_flow_limit(x, torch.tensor([2.0]), alpha=0.5), x, alpha=0.5).item() < 1e-9
        True
    """
    x, beta = x.double(), beta.double()
    dual = torch.asinh(beta / positive("alpha", alpha, x).square()[..., None])[..., None]
    rows = _row_space(x)[2]
    outside = dual - rows.mT @ (rows @ dual)
    length = dual.norm(dim=(-2, -1))
    return outside.norm(dim=(-2, -1)) / length.where(length > 0, torch.ones_like(length))


def min_l2_norm(x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
    r"""The solution of X beta = y with the smallest l2 norm, X^+ y: of a linear model trained from zero.

    Shapes: ``x`` (..., n, d), ``y`` (..., n); returns (..., d) in float64.
    Cost: O(n^2 d).
    Raises: ValueError for inputs that are not finite.
    Source: the Moore-Penrose inverse.

    Example:
        >>> min_l2_norm(torch.tensor([[1.0, 2.0]]), torch.tensor([2.0])).round(decimals=3)
        tensor([0.4000, 0.8000], dtype=torch.float64)
    """
    check_finite("x", x)
    check_finite("y", y)
    return (torch.linalg.pinv(x.double()) @ y.double()[..., None])[..., 0]


def basis_pursuit(x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
    r"""The solution of X beta = y with the smallest l1 norm, by linear programming (scipy's HiGHS).

    Shapes: ``x`` (..., n, d), ``y`` (..., n); returns (..., d) in float64.
    Cost: a linear program of 2 d variables for each problem, on the host.
    Raises: ValueError for inputs that are not finite, or if there is no solution.
    Source: Chen, Donoho, Saunders, *Atomic Decomposition by Basis Pursuit*, SIAM J. Sci. Comput. 1998.

    Example:
        >>> basis_pursuit(torch.tensor([[1.0, 2.0]]), torch.tensor([2.0]))
        tensor([0., 1.], dtype=torch.float64)
    """
    import numpy as np

    try:
        from scipy.optimize import linprog
    except ImportError:
        raise require("scipy", "bench") from None
    check_finite("x", x)
    check_finite("y", y)
    d = x.shape[-1]
    found: list[Tensor] = []
    matrices, targets = x.double().cpu().reshape(-1, *x.shape[-2:]), y.double().cpu().reshape(-1, y.shape[-1])
    for matrix, target in zip(matrices.numpy(), targets.numpy(), strict=True):
        parts = linprog(np.ones(2 * d), A_eq=np.hstack([matrix, -matrix]), b_eq=target, method="highs")
        if parts.x is None:
            raise ValueError(f"x and y have no solution of smallest l1 norm: {parts.message}")
        found.append(torch.from_numpy(parts.x[:d] - parts.x[d:]))
    return torch.stack(found).reshape(*x.shape[:-2], d).to(x.device)


def _row_space(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Singular value decomposition, with right vectors of zero where X has no further independent row."""
    left, scale, rows = torch.linalg.svd(x, full_matrices=False)
    independent = scale > scale[..., :1] * max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    return left, scale, rows * independent[..., None], independent
