"""Largest eigenvalues and linear systems of a symmetric matrix that is known by its products alone.

Eigenvalues come from scipy's ARPACK (restarted Lanczos): it keeps twenty vectors however long it takes, and its error
handling is older than PyTorch. Its vectors lie on the host, while each product is taken on the operator's device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from torchstone._checks import check_finite, check_float, check_int, check_one_of

__all__ = ["Operator", "Solution", "conjugate_gradient", "top_eigenvalues"]


@runtime_checkable
class Operator(Protocol):
    """A symmetric matrix by its products: a tensor (p, p) is one, and so are the operators of curvature."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(p, p)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors that it takes and gives."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...

    def __matmul__(self, v: Tensor, /) -> Tensor:
        """Its product with a vector (p,) or the columns of a matrix (p, k)."""
        ...


Matvec = Operator | Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """What :func:`conjugate_gradient` found.

    Attributes:
        x: the solution, like ``b``.
        residual: ``||b - (A + damping I) x|| / ||b||`` of each column, recomputed at the end.
        iterations: products taken, but for that of the residual.
    """

    x: Float[Tensor, "p *k"]
    residual: Float[Tensor, "*k"]
    iterations: int


def top_eigenvalues(
    operator: Matvec,
    k: int = 1,
    *,
    method: Literal["lanczos", "power"] = "lanczos",
    tol: float = 1e-6,
    max_iterations: int = 1000,
    like: Float[Tensor, " p"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, " k"], Float[Tensor, "p k"]]:
    r"""The ``k`` largest eigenvalues of a symmetric matrix, the largest first, and their eigenvectors.

    Largest means most positive: of the eigenvalues -5 and 1 it is 1. A matrix of at most twenty columns is written
    out and handed to ``torch.linalg.eigh``.

    Args:
        operator: has products ``operator @ v``, or is a function ``v -> A v``.
        k: number of eigenvalues.
        method: ``"lanczos"``, or ``"power"`` for the power method: one eigenvalue, a single vector of memory, and more
            products, the closer the two largest are. Where the largest in size is negative, the matrix is shifted.
        tol: relative error of the eigenvalues (Lanczos); of the power method, ``||A v - lambda v|| / |lambda|``.
        max_iterations: restarts of Lanczos, or products of the power method.
        like: any vector of the size, dtype and device that a function takes; only for functions.
        generator: source of the start vector.

    Shapes: returns (k,) and (p, k) with orthonormal columns.
    Cost: 20 to 100 products as a rule; the memory of ``max(2 k + 1, 20)`` vectors.
    Raises: ValueError for arguments out of range; TypeError for a function without ``like`` or a dtype other than
        float32 and float64; RuntimeError if it does not converge.
    Source: Lehoucq, Sorensen, Yang, *ARPACK Users' Guide*, SIAM 1998.

    Example:
        >>> values, vectors = top_eigenvalues(torch.diag(torch.tensor([1.0, 3.0, -5.0])), k=2)
        >>> values
        tensor([3., 1.])
    """
    check_one_of("method", method, ("lanczos", "power"))
    check_float("tol", tol, 0)
    check_int("max_iterations", max_iterations, 1)
    product, start = _product(operator), _vector(operator, like, generator)
    check_int("k", k, 1, len(start))
    if method == "power":
        if k > 1:
            raise ValueError(f"k must be 1 for method 'power', but is {k}: use 'lanczos'")
        value, vector = _power(product, start, tol, max_iterations)
        return value[None], vector[:, None]
    if len(start) <= max(20, 2 * k + 1):
        columns = torch.eye(len(start), dtype=start.dtype, device=start.device).unbind(1)
        values, vectors = torch.linalg.eigh(torch.stack([product(column) for column in columns], 1))
        return values[-k:].flip(0), vectors[:, -k:].flip(1)
    return _lanczos(product, start, k, tol, max_iterations, generator)


def conjugate_gradient(
    operator: Matvec,
    b: Float[Tensor, "p *k"],
    *,
    damping: float = 0.0,
    tol: float = 1e-6,
    max_iterations: int | None = None,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Solution:
    r"""Solve (A + damping I) x = b for a symmetric positive definite matrix, each column of ``b`` by itself.

    Ends when each column has ``||b - A x|| <= tol ||b||``, or after ``max_iterations``; what was reached is in the
    result, since fewer iterations are a method of their own (truncated Newton steps).

    Args:
        operator: has products ``operator @ v``, or is a function ``v -> A v``; ``v`` has the shape of ``b``.
        b: right-hand side, or several as columns.
        damping: added to the diagonal.
        tol: relative residual.
        max_iterations: by default twice the rows of ``b``.
        preconditioner: the product with an approximate inverse, symmetric and positive definite too.

    Shapes: ``b`` (p,) or (p, k); ``x`` like it, ``residual`` () or (k,).
    Cost: one product with all columns an iteration; at most p in exact arithmetic, order sqrt(condition) in practice.
    Raises: ValueError if the matrix turns out not to be positive definite, ``b`` is not finite, or an argument is out
        of range.
    Source: Hestenes, Stiefel, *Methods of Conjugate Gradients for Solving Linear Systems*, 1952.

    Example:
        >>> conjugate_gradient(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 2.0])).x
        tensor([1.0000, 0.5000])
    """
    check_float("damping", damping, 0)
    check_float("tol", tol, 0)
    if b.ndim not in (1, 2):
        raise ValueError(f"b must have shape (p,) or (p, k), but has {tuple(b.shape)}")
    check_finite("b", b)
    limit = 2 * len(b) if max_iterations is None else check_int("max_iterations", max_iterations, 1)
    product = _product(operator)

    def damped(v: Tensor) -> Tensor:
        return product(v) + damping * v

    x, r = torch.zeros_like(b), b.clone()
    p, rho = r, (r * r).sum(0)
    scale = b.norm(dim=0)
    iterations = 0
    while iterations < limit:
        active = r.norm(dim=0) > tol * scale
        if not active.any():
            break
        z = r if preconditioner is None else preconditioner(r)
        new = (r * z).sum(0)
        p = z + _ratio(new, rho, active & (iterations > 0)) * p
        rho = new
        q = damped(p)
        curvature = (p * q).sum(0)
        if bool((active & ~(curvature > 0)).any()):
            raise ValueError(
                "operator must be positive definite, but v^T A v / v^T v is "
                f"{float((curvature / (p * p).sum(0))[active].min()):.3g} for some v: raise damping ({damping:g})"
            )
        step = _ratio(rho, curvature, active)
        x, r = x + step * p, r - step * q
        iterations += 1
    residual = (b - damped(x)).norm(dim=0) / scale.where(scale > 0, torch.ones_like(scale))
    return Solution(x, residual, iterations)


def _ratio(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """``a / b``, and 0 elsewhere: a column that has converged stays, while others go on."""
    return torch.where(where, a / b.where(where, torch.ones_like(b)), torch.zeros_like(a))


def _product(operator: Matvec) -> Callable[[Tensor], Tensor]:
    return operator.__matmul__ if isinstance(operator, Operator) else operator


def _vector(operator: Matvec, like: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """A random unit vector that the operator takes."""
    if isinstance(operator, Operator):
        if len(operator.shape) != 2 or operator.shape[0] != operator.shape[1]:
            raise ValueError(f"operator must be square, but has shape {tuple(operator.shape)}")
        size, dtype, device = operator.shape[0], operator.dtype, operator.device
    elif like is None:
        raise TypeError("like must be a vector that the function takes, but is None")
    else:
        size, dtype, device = len(like), like.dtype, like.device
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"operator must have dtype torch.float32 or torch.float64, but has {dtype}")
    where = device if generator is None else generator.device
    vector = torch.randn(size, dtype=dtype, device=where, generator=generator).to(device)
    return vector / vector.norm()


def _power(
    product: Callable[[Tensor], Tensor], start: Tensor, tol: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    value, vector = _dominant(product, start, tol, max_iterations)
    if value >= 0:
        return value, vector
    # Above the smallest eigenvalue all others are at least zero, so that the largest is the largest in size.
    shifted, vector = _dominant(lambda v: product(v) - value * v, start, tol, max_iterations)
    return shifted + value, vector


def _dominant(
    product: Callable[[Tensor], Tensor], vector: Tensor, tol: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """The eigenvalue that is largest in size."""
    error = float("inf")
    for _ in range(max_iterations):
        image = product(vector)
        value = vector @ image
        norm = image.norm()
        if not norm.isfinite():
            raise RuntimeError("power method met a product that is not finite")
        if not norm > 0:  # the start was random, so the matrix is zero
            return value, vector
        error = float((image - value * vector).norm() / norm)
        if error <= tol:
            return value, vector
        vector = image / norm
    raise RuntimeError(
        f"power method left a relative residual of {error:.2g} > tol = {tol:g} after {max_iterations} products: raise "
        "max_iterations, or use method 'lanczos'"
    )


def _lanczos(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    tol: float,
    max_iterations: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    import numpy as np
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    first = product(start)
    if not first.isfinite().all():
        raise RuntimeError("Lanczos met a product that is not finite")
    if not first.any():  # the start was random, so the matrix is zero
        return start.new_zeros(k), torch.linalg.qr(torch.eye(len(start), k).to(start)).Q
    size = len(start)

    def matvec(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(v.reshape(size).copy()).to(start)).cpu().numpy()

    # ARPACK draws a new vector where a Krylov space ends early; older versions of scipy take no source for it.
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else "cpu"))
    options: dict[str, Any] = {"v0": start.cpu().numpy(), "tol": tol, "maxiter": max_iterations}
    if "rng" in inspect.signature(eigsh).parameters:
        options["rng"] = np.random.default_rng(seed)
    matrix = LinearOperator((size, size), matvec=matvec, dtype=options["v0"].dtype)  # pyright: ignore[reportCallIssue]
    try:
        values, vectors = eigsh(matrix, k=k, which="LA", **options)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"Lanczos found {len(error.eigenvalues)} of {k} eigenvalues to tol = {tol:g} in {max_iterations} restarts: "
            "raise max_iterations or tol"
        ) from error
    except ArpackError as error:
        raise RuntimeError(f"Lanczos failed: {error}") from error
    order = values.argsort()[::-1].copy()
    return torch.from_numpy(values[order]).to(start), torch.from_numpy(vectors[:, order]).to(start)
