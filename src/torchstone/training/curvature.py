r"""Curvature of a loss at a network's parameters: products with the Hessian and the generalised Gauss-Newton matrix.

The loss is the mean over all samples. With outputs f, parameters theta and a loss l of outputs,
H = d^2 l / d theta^2, and GGN = J^T (d^2 l / d f^2) J with J = d f / d theta, which is never formed. Neither is stored:
a product takes a few passes through the data. All derivatives are by reverse mode, which more layers support than
forward mode, and which was faster here; J v is the derivative of u -> (J^T u)^T v.

The network is used in evaluation mode, so that BatchNorm has fixed statistics and dropout is off. Frozen parameters
are constants; a parameter that is used in two places is one variable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from torchstone._checks import check_int
from torchstone.training.evaluate import evaluating
from torchstone.training.krylov import Solution, conjugate_gradient, top_eigenvalues

__all__ = [
    "GGNOperator",
    "HessianOperator",
    "Solution",
    "TraceEstimate",
    "conjugate_gradient",
    "hessian_max_eigenvalue",
    "top_eigenvalues",
]

Data: TypeAlias = Sequence[Tensor] | Iterable[Sequence[Tensor]]
Criterion: TypeAlias = Callable[[Any, Any], Tensor]
Params: TypeAlias = dict[str, Tensor]


class TraceEstimate(NamedTuple):
    """An estimated trace and its standard error."""

    value: float
    standard_error: float


class _CurvatureOperator(ABC):
    """What the two operators share: choice of parameters, passes through the data, flat vectors."""

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        data: Data,
        params: Iterable[nn.Parameter] | None = None,
        *,
        chunk_size: int | None = None,
    ) -> None:
        if isinstance(data, Iterator):
            raise TypeError("data must be (x, y) or batches that can be read again, but is an iterator")
        self.model, self.loss, self.data = model, loss, data
        self.chunk_size = None if chunk_size is None else check_int("chunk_size", chunk_size, 1)
        self._params = _chosen(model, params)
        first = next(iter(self._params.values()))
        self.dtype, self.device = first.dtype, first.device
        if {p.dtype for p in self._params.values()} != {first.dtype}:
            raise TypeError("params must have one dtype, but have several")
        self._sizes = [p.numel() for p in self._params.values()]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P) for P parameters."""
        return (sum(self._sizes), sum(self._sizes))

    @torch.no_grad()
    def __matmul__(self, v: Float[Tensor, "p *k"]) -> Float[Tensor, "p *k"]:
        if v.ndim not in (1, 2) or len(v) != self.shape[0]:
            raise ValueError(f"v must have shape ({self.shape[0]},) or ({self.shape[0]}, k), but has {tuple(v.shape)}")
        if v.dtype != self.dtype:
            raise TypeError(f"v must have the parameters' dtype {self.dtype}, but has {v.dtype}")
        rows = v.mT if v.ndim == 2 else v[None]

        def batch_product(x: Tensor, y: Tensor) -> Tensor:
            product = self._batch_product(x, y)
            return vmap(lambda row: _flat(product(self.split(row))), chunk_size=self.chunk_size)(rows)

        return self._mean(batch_product).mT.reshape(v.shape)

    def split(self, v: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """A flat vector as tensors of the parameters' names and shapes."""
        parts = v.split(self._sizes)
        return {name: part.view_as(p) for (name, p), part in zip(self._params.items(), parts, strict=True)}

    @torch.no_grad()
    def gradient(self) -> Float[Tensor, " p"]:
        """Gradient of the same mean loss."""
        return self._mean(lambda x, y: _flat(grad(self._loss(x, y))(self._params)))

    def dense(self) -> Float[Tensor, "p p"]:
        """The matrix itself, by P products."""
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    def trace(self, samples: int = 100, *, generator: torch.Generator | None = None) -> TraceEstimate:
        """Hutchinson's estimate: the mean of s^T A s over vectors s of random signs.

        Args:
            samples: number of vectors, at least two.
            generator: source of the signs.
        """
        check_int("samples", samples, 2)
        where = self.device if generator is None else generator.device
        bits = torch.randint(2, (self.shape[0], samples), generator=generator, device=where)
        signs = (2 * bits - 1).to(self.device, self.dtype)
        found = (signs * (self @ signs)).sum(0).double()
        return TraceEstimate(float(found.mean()), float(found.std()) / math.sqrt(samples))

    @abstractmethod
    def _batch_product(self, x: Tensor, y: Tensor) -> Callable[[Params], Params]:
        """The product with a vector in parts, for the mean loss of one batch."""

    def _output(self, x: Tensor) -> Callable[[Params], Tensor]:
        return lambda params: functional_call(self.model, params, (x,))

    def _loss(self, x: Tensor, y: Tensor) -> Callable[[Params], Tensor]:
        return lambda params: self._criterion(self._output(x)(params), y)

    def _criterion(self, output: Tensor, y: Tensor) -> Tensor:
        value = self.loss(output, y)
        if value.ndim:
            raise ValueError(f"loss must return one number, the mean over the batch, but returns {tuple(value.shape)}")
        return value

    def _mean(self, of_batch: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Mean over all samples of what is a mean over each batch."""
        total, count = None, 0
        with evaluating(self.model):
            for x, y in _batches(self.data):
                part = len(y) * of_batch(x.to(self.device), y.to(self.device))
                total, count = part if total is None else total + part, count + len(y)
        if total is None or not count:
            raise ValueError("data must hold at least one sample, but hold none")
        return total / count


class HessianOperator(_CurvatureOperator):
    r"""The Hessian of a mean loss at a network's parameters, as a symmetric matrix of which only products are taken.

    H v = d/de grad L(theta + e v) at e = 0, exactly. It holds no copy: products follow when the parameters change.

    Args:
        model: network; products take it in evaluation mode.
        loss: ``loss(output, y)``, the mean over a batch.
        data: ``(x, y)``, or batches of it, such as a loader: weighted by their sizes. Must be the same each time.
        params: some of the model's parameters, in the order wanted; by default all that are not frozen.
        chunk_size: number of columns of a matrix that go through the network at once; by default all.

    Shapes: ``operator @ v`` takes and returns (P,) or (P, k).
    Cost: a product takes about two forward and two backward passes; k columns at once take the memory of k.
    Raises: ValueError for wrong shapes, foreign or no parameters, a loss that is not one number, empty data; TypeError
        for wrong dtypes or an iterator as data.
    Source: Pearlmutter, *Fast Exact Multiplication by the Hessian*, Neural Computation 1994.

    Example:
        >>> line = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> H = HessianOperator(line, nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> H.dense()  # 2 x^T x / 2
        tensor([[10., 14.],
                [14., 20.]])
    """

    def _batch_product(self, x: Tensor, y: Tensor) -> Callable[[Params], Params]:
        return _transposed(grad(self._loss(x, y)), self._params)  # a Hessian is its own transpose


class GGNOperator(_CurvatureOperator):
    r"""The generalised Gauss-Newton matrix of a mean loss: the Hessian of the loss, had the network been linearised.

    G v = J^T (d^2 l / d f^2) J v. Positive semi-definite for a loss that is convex in the outputs; equal to the
    Hessian for a network that is linear in its parameters, and to the Fisher matrix for cross entropy. It holds no
    copy: products follow when the parameters change.

    Args:
        model: network; products take it in evaluation mode.
        loss: ``loss(output, y)``, the mean over a batch.
        data: ``(x, y)``, or batches of it, such as a loader: weighted by their sizes. Must be the same each time.
        params: some of the model's parameters, in the order wanted; by default all that are not frozen.
        chunk_size: number of columns of a matrix that go through the network at once; by default all.

    Shapes: ``operator @ v`` takes and returns (P,) or (P, k).
    Cost: a product takes about two forward passes and one backward; k columns at once take the memory of k.
    Raises: as :class:`HessianOperator`.
    Source: Schraudolph, *Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent*, Neural Computation
        2002.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> GGNOperator(line, nn.functional.mse_loss, (torch.tensor([[3.0]]), torch.zeros(1, 1))).dense()
        tensor([[18.]])
    """

    def _batch_product(self, x: Tensor, y: Tensor) -> Callable[[Params], Params]:
        value, pull_back = vjp(self._output(x), self._params)[:2]
        push_forward = _transposed(lambda u: pull_back(u)[0], torch.zeros_like(value))
        bend = _transposed(grad(lambda output: self._criterion(output, y)), value)
        return lambda v: pull_back(bend(push_forward(v)))[0]


def hessian_max_eigenvalue(
    model: nn.Module,
    loss: Criterion,
    data: Data,
    *,
    method: Literal["lanczos", "power"] = "lanczos",
    params: Iterable[nn.Parameter] | None = None,
    tol: float = 1e-6,
    max_iterations: int = 1000,
    generator: torch.Generator | None = None,
) -> float:
    r"""Sharpness: the largest eigenvalue of the Hessian of a mean loss at a network's parameters.

    Gradient descent with learning rate eta can stay only where this is at most 2 / eta.

    Args:
        model: as in :class:`HessianOperator`, as are ``loss``, ``data`` and ``params``.
        loss: ``loss(output, y)``.
        data: ``(x, y)`` or batches of it.
        method: as in :func:`top_eigenvalues`, as are ``tol``, ``max_iterations`` and ``generator``.
        params: by default all that are not frozen.
        tol: relative error.
        max_iterations: restarts of Lanczos, or products of the power method.
        generator: source of the start vector.

    Shapes: returns a number.
    Cost: as a rule 20 to 100 Hessian products.
    Raises: as :class:`HessianOperator` and :func:`top_eigenvalues`.
    Source: Nacson, Ravichandran, Srebro, Soudry, *Implicit Bias of the Step Size in Linear Diagonal Neural Networks*,
        ICML 2022, who bound the solution by it.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> hessian_max_eigenvalue(line, nn.functional.mse_loss, (torch.tensor([[3.0]]), torch.zeros(1, 1)))
        18.0
    """
    operator = HessianOperator(model, loss, data, params)
    values, _ = top_eigenvalues(operator, method=method, tol=tol, max_iterations=max_iterations, generator=generator)
    return float(values[0])


def _chosen(model: nn.Module, params: Iterable[nn.Parameter] | None) -> Params:
    """The parameters that are variables, by name."""
    if params is None:
        found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    else:
        names = {id(p): name for name, p in model.named_parameters()}
        found = {}
        for number, p in enumerate(params):
            if id(p) not in names:
                raise ValueError(f"params must be parameters of the model, but number {number} is not")
            found[names[id(p)]] = p
    if not found:
        raise ValueError("params must hold at least one parameter, but hold none")
    # A detached view follows its parameter in place, and records nothing.
    return {name: p.detach() for name, p in found.items()}


def _batches(data: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    batches: Iterable[Any] = (data,) if pair else data
    for batch in batches:
        if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
            raise TypeError("data must be (x, y) or batches (x, y) or (x, y, index)")
        yield batch[0], batch[1]


def _transposed(function: Callable[[Any], Any], at: Any) -> Callable[[Any], Any]:
    """``u -> J^T u`` for the Jacobian J of a function at a point."""
    pull_back = vjp(function, at)[1]
    return lambda u: pull_back(u)[0]


def _flat(params: Params) -> Tensor:
    return torch.cat([part.reshape(-1) for part in params.values()])
