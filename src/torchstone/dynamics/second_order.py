r"""Second-order steps with a dial from gradient descent (damping 1) to the full inverse of the curvature (damping 0).

P_lambda = ((1 - lambda) F + lambda c I)^{-1}, c = trace(F) / d. On a linear layer, with F the second moments of its
inputs, a step W <- W - lr dL/dW P_0 is gradient descent on whitened inputs, in the variable W F^{1/2}: it throws away
what whitening throws away. On a network F is the generalised Gauss-Newton matrix. A little damping keeps most of the
speed, and what the data say in their large directions.

Source: Wadia et al., *Whitening and Second Order Optimization Both Make Information in the Dataset Unusable During
Training, and Can Reduce or Prevent Generalization*, ICML 2021, sections 2.3 and 3.4.

Deviations: the identity is scaled by c, the mean eigenvalue of F, so that a damping means the same at any scale of the
inputs (the paper has c = 1). At damping 0, eigenvalues up to ``eps`` times the largest count as zero and have a
pseudo-inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from torchstone._checks import check_finite, check_float, check_int
from torchstone.dynamics.whitening import EPS, spectrum
from torchstone.errors import DivergedError
from torchstone.training.curvature import GGNOperator, conjugate_gradient
from torchstone.training.evaluate import evaluating

__all__ = ["NewtonLinear", "RegularizedGaussNewton", "damped_inverse"]


def damped_inverse(
    moment: Float[Tensor, "*s d d"], damping: float | Float[Tensor, "*s"] = 0.0, *, eps: float = EPS
) -> Float[Tensor, "*s d d"]:
    """P_lambda = ((1 - lambda) F + lambda c I)^{-1} with c = trace(F) / d; at damping 0 the pseudo-inverse of F.

    Args:
        moment: F, symmetric and positive semi-definite.
        damping: lambda in [0, 1], one or one for each matrix.
        eps: eigenvalues up to this share of the largest count as zero, where they are not damped.

    Shapes: (*s, d, d) gives (*s, d, d).
    Cost: O(d^3) each, all in one decomposition.

    Example:
        >>> damped_inverse(torch.diag(torch.tensor([4.0, 0.0])), 0.5)
        tensor([[0.3333, 0.0000],
                [0.0000, 1.0000]])
        >>> damped_inverse(torch.diag(torch.tensor([4.0, 0.0])), 0.0)
        tensor([[0.2500, 0.0000],
                [0.0000, 0.0000]])
    """
    values, vectors, kept = spectrum(moment, eps=eps)
    share = torch.as_tensor(damping, dtype=values.dtype, device=values.device).unsqueeze(-1)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"damping must lie in [0, 1], but is {damping!r}")
    damped = (1 - share) * values + share * values.mean(-1, keepdim=True)
    weight = torch.where(kept | (share > 0), 1 / damped, 0)
    return ((vectors * weight.unsqueeze(-2)) @ vectors.mT).to(moment.dtype)


class NewtonLinear:
    r"""Second-order steps on the weights of a linear layer with given inputs, exactly.

    For outputs Z = X W^T and any loss L of them, W <- W - lr (dL/dZ)^T X P_lambda with F = X^T X / n. At damping 0 one
    step solves least squares, from where it starts: of all solutions it takes the one nearest to W. At damping 1 it is
    gradient descent with learning rate lr / c.

    Args:
        x: inputs of the layer; with a leading axis, s problems at once.
        damping: lambda in [0, 1], one or one for each problem.
        eps: eigenvalues of F up to this share of the largest count as zero at damping 0.

    Attributes:
        preconditioner: P_lambda, (*s, d, d).
        moment: F, (*s, d, d).

    Shapes: ``x`` (n, d) or (s, n, d); weights (*s, k, d), outputs and their gradients (*s, n, k).
    Cost: O(n d^2 + d^3) once, O(n d k + d^2 k) a step.
    Raises: TypeError or ValueError on wrong dtypes and shapes, NaN, or a damping outside [0, 1].
    Source: Wadia et al., ICML 2021, section 2.3.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[3.0], [7.0]])
        >>> NewtonLinear(x).solve(y)  # y = 3 x_1 + 2 x_2
        tensor([[3., 2.]])
    """

    def __init__(
        self, x: Float[Tensor, "*s n d"], *, damping: float | Float[Tensor, "*s"] = 0.0, eps: float = EPS
    ) -> None:
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, but has dtype {x.dtype}")
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise ValueError(f"x must have shape (n, d) or (s, n, d) and hold samples, but has {tuple(x.shape)}")
        check_finite("x", x)
        check_float("eps", eps, 0, 1, open_high=True)
        self.x = x
        self.moment = (x.mT @ x) / x.shape[-2]
        self.preconditioner = damped_inverse(self.moment, damping, eps=eps)

    def step(
        self,
        weight: Float[Tensor, "*s k d"],
        output_gradient: Float[Tensor, "*s n k"],
        *,
        lr: float | Float[Tensor, "*s"] = 1.0,
    ) -> Float[Tensor, "*s k d"]:
        """The weights after one step, from dL/dZ at the present ones; ``lr`` may be one for each problem."""
        self._check("output_gradient", output_gradient, self.x.shape[-2], output_gradient.shape[-1])
        self._check("weight", weight, output_gradient.shape[-1], self.x.shape[-1])
        rate = lr[..., None, None] if isinstance(lr, Tensor) else lr
        return weight - rate * (output_gradient.mT @ self.x @ self.preconditioner)

    def solve(
        self,
        y: Float[Tensor, "*s n k"],
        weight: Float[Tensor, "*s k d"] | None = None,
        *,
        lr: float | Float[Tensor, "*s"] = 1.0,
    ) -> Float[Tensor, "*s k d"]:
        """The weights after one step on L = |X W^T - Y|^2 / 2n from ``weight`` (zeros): at damping 0 the solution."""
        self._check("y", y, self.x.shape[-2], y.shape[-1])
        if weight is None:
            weight = self.x.new_zeros(*self.x.shape[:-2], y.shape[-1], self.x.shape[-1])
        self._check("weight", weight, y.shape[-1], self.x.shape[-1])
        return self.step(weight, (self.x @ weight.mT - y) / self.x.shape[-2], lr=lr)

    def _check(self, name: str, tensor: Tensor, *sizes: int) -> None:
        expected = (*self.x.shape[:-2], *sizes)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, but has {tuple(tensor.shape)}")


class RegularizedGaussNewton(Optimizer):
    r"""Steps along P_lambda times the gradient, with the generalised Gauss-Newton matrix of a network.

    theta <- theta - lr ((1 - lambda) G + lambda c I)^{-1} dL/dtheta, G = J^T (d^2 l / df^2) J over the batch. Damping 1
    is gradient descent with learning rate lr / c, damping 0 the full second-order step (by pseudo-inverse). Up to
    ``exact_below`` parameters G is written out and the system solved exactly, beyond that by conjugate gradients on
    products with G. The network is used in evaluation mode.

    Args:
        params: parameters of ``model_fn`` to be trained, in one group.
        lr: learning rate; 1 is the step to the optimum of the quadratic model.
        damping: lambda in [0, 1].
        model_fn: the network, ``model_fn(x)`` returns outputs.
        loss_fn: ``loss_fn(outputs, y)``, the mean over the batch; convex in the outputs.
        scale: c; by default the mean eigenvalue of G at the first step, which is then kept. 1 is the paper's choice.
        eps: eigenvalues of G up to this share of the largest count as zero at damping 0; exact steps only.
        exact_below: largest number of parameters for which G is written out.
        cg_tol: relative residual at which conjugate gradients stop.
        cg_iterations: largest number of products a step; fewer are a truncated, so again a damped, step.
        chunk_size: columns of G written out at once; by default all.
        generator: source of the random signs by which the trace of G is estimated where G is not written out.

    Shapes: ``step`` takes a closure that returns the batch ``(x, y)``, as ``model_fn`` and ``loss_fn`` take them.
    Cost: with P parameters P products with G and O(P^3) a step, or up to ``cg_iterations`` products; a product takes
        about two forward passes and one backward. State: one number.
    Raises: ValueError for arguments out of range, foreign parameters or several groups; TypeError for a ``model_fn``
        that is no module; :class:`torchstone.errors.DivergedError` if the loss is not finite.
    Source: Wadia et al., ICML 2021, section 3.4. Products: Schraudolph, Neural Computation 2002.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> optimizer = RegularizedGaussNewton(net.parameters(), 1.0, 0.0, net, nn.functional.mse_loss)
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[3.0], [7.0]])
        >>> loss = optimizer.step(lambda: (x, y))  # the loss before the step
        >>> torch.allclose(net.weight, torch.tensor([[3.0, 2.0]]), atol=1e-4)
        True
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1.0,
        damping: float = 0.1,
        model_fn: nn.Module | None = None,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        scale: float | None = None,
        eps: float = EPS,
        exact_below: int = 5000,
        cg_tol: float = 1e-4,
        cg_iterations: int = 100,
        chunk_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model_fn, nn.Module) or loss_fn is None:
            raise TypeError(
                f"model_fn must be the network and loss_fn its loss, but they are {model_fn!r}, {loss_fn!r}"
            )
        check_float("lr", lr, 0)
        check_float("damping", damping, 0, 1)
        if scale is not None:
            check_float("scale", scale, 0, open_low=True)
        self.model_fn, self.loss_fn = model_fn, loss_fn
        self.eps = check_float("eps", eps, 0, 1, open_high=True)
        self.exact_below = check_int("exact_below", exact_below, 0)
        self.cg_tol = check_float("cg_tol", cg_tol, 0)
        self.cg_iterations = check_int("cg_iterations", cg_iterations, 1)
        self.chunk_size, self.generator = chunk_size, generator
        super().__init__(params, {"lr": lr, "damping": damping, "scale": scale})
        if len(self.param_groups) != 1:
            raise ValueError(
                f"params must be in one group, since G couples them all, but are in {len(self.param_groups)}"
            )
        self._params: list[nn.Parameter] = self.param_groups[0]["params"]

    def step(self, closure: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step on the batch ``(x, y)`` that ``closure`` returns; return the loss before it."""
        x, y = closure()
        with evaluating(self.model_fn), torch.enable_grad():
            loss = self.loss_fn(self.model_fn(x), y)
            gradients = torch.autograd.grad(loss, self._params, materialize_grads=True)
        loss = loss.detach()
        gradient = torch.cat([part.flatten() for part in gradients])
        if not (loss.isfinite() and gradient.isfinite().all()):
            raise DivergedError(
                f"the loss is {float(loss):g} before the step, and it or its gradient is not finite: take a smaller lr "
                "or more damping"
            )
        matrix = GGNOperator(self.model_fn, self.loss_fn, (x, y), self._params, chunk_size=self.chunk_size)
        group = self.param_groups[0]
        direction = self._direction(matrix, gradient, group["damping"])
        with torch.no_grad():
            sizes = [p.numel() for p in self._params]
            for p, part in zip(self._params, direction.split(sizes), strict=True):
                p.sub_(part.view_as(p), alpha=group["lr"])
        return loss

    def _direction(self, matrix: GGNOperator, gradient: Tensor, damping: float) -> Tensor:
        if not gradient.any():
            return gradient
        exact = len(gradient) <= self.exact_below
        dense = matrix.dense().double() if exact and damping < 1 else None
        ridge = damping * self._scale(matrix, dense) if damping else 0.0
        if damping == 1:
            return gradient / ridge
        if dense is None:
            shrunk = matrix if damping == 0 else lambda v: (1 - damping) * (matrix @ v)
            return conjugate_gradient(
                shrunk, gradient, damping=ridge, tol=self.cg_tol, max_iterations=self.cg_iterations
            ).x
        if damping == 0:
            return (damped_inverse(dense, 0.0, eps=self.eps) @ gradient.double()).to(gradient.dtype)
        damped = ((1 - damping) * dense).diagonal_scatter((1 - damping) * dense.diagonal() + ridge)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            raise DivergedError(
                f"damping {damping:g} is too small for the Gauss-Newton matrix to be inverted: raise it"
            )
        return torch.cholesky_solve(gradient.double().unsqueeze(1), factor).squeeze(1).to(gradient.dtype)

    def _scale(self, matrix: GGNOperator, dense: Tensor | None) -> float:
        """The mean eigenvalue of G at the first step, unless given."""
        group = self.param_groups[0]
        if group["scale"] is None:
            if dense is None and matrix.shape[0] <= self.exact_below:
                dense = matrix.dense()
            trace = float(dense.trace()) if dense is not None else matrix.trace(generator=self.generator).value
            if trace <= 0:
                raise DivergedError("the Gauss-Newton matrix is 0 where the gradient is not: give a scale")
            group["scale"] = trace / matrix.shape[0]
        return group["scale"]
