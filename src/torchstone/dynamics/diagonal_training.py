"""Gradient descent on the two-layer diagonal network, many problems at once, each with a step of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from torchstone._checks import check_finite, check_float, check_int
from torchstone.dynamics.diagonal import positive

__all__ = ["Descent", "diagonal_descent"]

CHECK_EVERY = 100  # steps between looks at the loss


@dataclass(frozen=True)
class Descent:
    """Where gradient descent ended, for each problem.

    Attributes:
        u: first layer.
        v: second layer.
        loss: at the end; NaN or infinite where it diverged.
        steps: taken.
        converged: whether ``loss`` came down to ``tol``.
        diverged: whether it left the finite numbers.
    """

    u: Float[Tensor, "*batch d"]
    v: Float[Tensor, "*batch d"]
    loss: Float[Tensor, "*batch"]
    steps: Int64[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]
    diverged: Bool[Tensor, "*batch"]

    @property
    def beta(self) -> Float[Tensor, "*batch d"]:
        """The linear predictor."""
        return self.u * self.v

    @property
    def squared_slopes(self) -> Float[Tensor, "*batch d"]:
        """u^2 + v^2, of which :func:`sharpness` is made."""
        return self.u.square() + self.v.square()


def diagonal_descent(
    x: Float[Tensor, "*batch n d"],
    y: Float[Tensor, "*batch n"],
    *,
    lr: float | Float[Tensor, "*batch"],
    alpha: float | Float[Tensor, "*batch"] = 1.0,
    steps: int = 30_000,
    tol: float = 1e-10,
    start: tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]] | None = None,
    on_step: Callable[[], None] | None = None,
) -> Descent:
    r"""Gradient descent on u * v, for many problems at once: what training the two-layer network does, in closed form.

    With g = X^T (X beta - y) / N: u' = u - lr g * v and v' = v - lr g * u. Each problem has a step and a start of its
    own and stops by itself when its loss is at most ``tol`` or not finite (looked at every 100 steps). On a CPU it is
    bit for bit what it would be alone.

    Args:
        x: inputs of each problem.
        y: targets.
        lr: step.
        alpha: start at u = sqrt(2) alpha, v = 0.
        steps: largest number of steps.
        tol: loss at which a problem is done.
        start: (u, v) to start from, in the place of ``alpha``.
        on_step: called after every step.

    Shapes: ``x`` (..., n, d), ``y`` (..., n); ``lr`` and ``alpha`` numbers or (...). Computed in float64.
    Cost: a step takes 2 n d multiplications a problem, or d^2 with X^T X computed once, whichever is less.
    Raises: ValueError for ``lr`` or ``alpha`` that is not positive, inputs that are not finite, or shapes
        that disagree.
    Source: Nacson et al., ICML 2022.

    Example:
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([2.0])
        >>> diagonal_descent(x, y, lr=0.1, alpha=0.01).beta.round(decimals=1)  # sparse, from a small start
        tensor([0., 1.], dtype=torch.float64)
        >>> diagonal_descent(x, y, lr=1e-5, alpha=10.0).beta.round(decimals=2)  # the smallest l2 norm, from a large one
        tensor([0.4000, 0.8000], dtype=torch.float64)
    """
    check_int("steps", steps, 1)
    check_float("tol", tol, 0)
    if x.ndim < 2 or y.shape != x.shape[:-1]:
        raise ValueError(f"y must have the shape of x but for its columns, {tuple(x.shape[:-1])}: has {tuple(y.shape)}")
    check_finite("x", x)
    check_finite("y", y)
    x, y = x.double(), y.double()
    batch, (n, d) = x.shape[:-2], x.shape[-2:]
    rate = positive("lr", lr, x).expand(batch).reshape(-1, 1) / n
    if start is None:
        u = (2**0.5 * positive("alpha", alpha, x)).expand(batch).reshape(-1, 1).repeat(1, d)
        v = torch.zeros_like(u)
    else:
        u, v = (layer.double().expand(*batch, d).reshape(-1, d).clone() for layer in start)
    x, y = x.reshape(-1, n, d), y.reshape(-1, 1, n)
    gram = (x.mT @ x, y @ x) if d < 2 * n else None

    count = len(x)
    loss, taken = x.new_full((count,), torch.inf), torch.zeros(count, dtype=torch.int64, device=x.device)
    active, done = torch.arange(count, device=x.device), 0
    while done < steps and len(active):
        part = _Step(x[active], y[active], rate[active], None if gram is None else (gram[0][active], gram[1][active]))
        now_u, now_v = u[active], v[active]
        while True:
            for _ in range(min(CHECK_EVERY, steps - done)):
                now_u, now_v = part(now_u, now_v)
                done += 1
                if on_step is not None:
                    on_step()
            now_loss = part.loss(now_u, now_v)
            finished = ~(now_loss > tol) | now_loss.isinf()
            if done == steps or bool(finished.any()):
                break
        u[active], v[active], loss[active], taken[active] = now_u, now_v, now_loss, done
        active = active[~finished]
    u, v = (layer.reshape(*batch, d) for layer in (u, v))
    loss = loss.reshape(batch)
    return Descent(u, v, loss, taken.reshape(batch), loss <= tol, ~loss.isfinite())


@dataclass(frozen=True)
class _Step:
    """A step of gradient descent of S problems.

    Vectors are rows, (1, n) and (1, d): products of stacks are several times faster so, and sum in the same order
    whatever S.
    """

    x: Tensor  # (S, n, d)
    y: Tensor  # (S, 1, n)
    rate: Tensor  # (S, 1), the step by n
    gram: tuple[Tensor, Tensor] | None  # X^T X (S, d, d) and y^T X (S, 1, d)

    def __call__(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        beta = (u * v)[:, None]
        if self.gram is None:
            slope = torch.baddbmm(self.y, beta, self.x.mT, beta=-1) @ self.x
        else:
            slope = torch.baddbmm(self.gram[1], beta, self.gram[0], beta=-1)
        step = slope[:, 0] * self.rate
        return torch.addcmul(u, step, v, value=-1), torch.addcmul(v, step, u, value=-1)

    def loss(self, u: Tensor, v: Tensor) -> Tensor:
        return ((u * v)[:, None] @ self.x.mT - self.y).square().mean((-2, -1)) / 2
