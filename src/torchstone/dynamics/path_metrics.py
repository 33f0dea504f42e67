"""The shape of a loss curve along a line, in a few numbers, and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchstone._checks import check_float
from torchstone.dynamics._path_states import check_alphas
from torchstone.errors import require

__all__ = ["PathMetrics", "path_metrics", "plot_path"]


@dataclass(frozen=True)
class PathMetrics:
    """The shape of a curve from 0 to 1; NaN where a number has no meaning.

    Attributes:
        barrier: how far the loss rises above its start.
        barrier_end: how far it rises above the worse end; for two minima, as in mode connectivity.
        gap: the largest rise above an earlier point; at most 0 where the loss never rises.
        monotone: whether ``gap`` is within the tolerance.
        alpha_half: first point with less than half of the initial loss (how long is the plateau?); NaN if none.
        alpha_error: first point with less than half of the initial error; NaN if none, or without errors.
        area: under the curve that is scaled to run from 1 to 0; NaN unless the loss falls.
        relative_barrier: ``barrier`` as a multiple of the fall; NaN unless the loss falls.
    """

    barrier: float
    barrier_end: float
    gap: float
    monotone: bool
    alpha_half: float
    alpha_error: float
    area: float
    relative_barrier: float


def path_metrics(
    alphas: Sequence[float] | Float[Tensor, " k"],
    losses: Sequence[float] | Float[Tensor, " k"],
    *,
    errors: Sequence[float] | Float[Tensor, " k"] | None = None,
    tolerance: float = 1e-3,
) -> PathMetrics:
    r"""The shape of a loss curve L on [0, 1].

    barrier = max L - L(0), barrier_end = max L - max(L(0), L(1)), gap = max_j (L_j - min_{i<j} L_i), monotone iff
    gap <= tolerance |L(0)|, alpha_half = min {alpha : L < L(0)/2}, alpha_error the same of the errors, area = integral
    of (L - L(1)) / (L(0) - L(1)) by the trapezoidal rule, relative_barrier = barrier / (L(0) - L(1)). Points outside of
    [0, 1] do not count. A curve with a loss that is not finite has no shape: all numbers are NaN.

    Args:
        alphas: ascending points, 0 and 1 among them.
        losses: L at the points.
        errors: share of errors at the points.
        tolerance: of monotone, as a multiple of the initial loss.

    Shapes: ``losses`` and ``errors`` (k,) like ``alphas``.
    Cost: O(k).
    Raises: ValueError if the points do not ascend, 0 or 1 is missing, or lengths differ.
    Source: Vlaar and Frankle, ICML 2022; the gap: Lucas et al., *Analyzing Monotonic Linear Interpolation in Neural
        Network Loss Landscapes*, ICML 2021.

    Example:
        >>> found = path_metrics([0.0, 0.5, 1.0], [2.0, 3.0, 0.5])
        >>> found.barrier, found.gap, found.monotone, found.alpha_half
        (1.0, 1.0, False, 1.0)
    """
    check_float("tolerance", tolerance, 0)
    points = check_alphas(alphas)
    near = 1e-6  # a grid from -0.25 to 1.5 may miss 0 and 1 by a rounding
    inside = (points >= -near) & (points <= 1 + near)
    points, loss = points[inside], _values("losses", losses, len(inside))[inside]
    if not len(points) or abs(points[0]) > near or abs(points[-1] - 1) > near:
        raise ValueError("alphas must hold 0 and 1, as all is measured against the ends")
    if not bool(loss.isfinite().all()):
        nan = math.nan
        return PathMetrics(nan, nan, nan, False, nan, nan, nan, nan)
    start, end, top = float(loss[0]), float(loss[-1]), float(loss.max())
    gap = float((loss[1:] - loss.cummin(0).values[:-1]).max())
    fall = start - end
    area = float(torch.trapezoid((loss - end) / fall, points)) if fall > 0 else math.nan
    error = None if errors is None else _values("errors", errors, len(inside))[inside]
    return PathMetrics(
        barrier=top - start,
        barrier_end=top - max(start, end),
        gap=gap,
        monotone=gap <= tolerance * abs(start),
        alpha_half=_first_below_half(points, loss),
        alpha_error=math.nan if error is None else _first_below_half(points, error),
        area=area,
        relative_barrier=(top - start) / fall if fall > 0 else math.nan,
    )


def plot_path(
    alphas: Sequence[float] | Float[Tensor, " k"],
    curves: Mapping[str, Sequence[float] | Float[Tensor, "..."]],
    *,
    ax: Any = None,
    label: str = "loss",
) -> Any:
    """Draw curves along a line; of several runs of one curve the median, with their range as a band.

    Args:
        alphas: ascending points.
        curves: name in the legend -> (k,), or (runs, k).
        ax: matplotlib axes to draw on; by default new ones.
        label: what the curves are.

    Returns:
        The axes.

    Shapes: each curve (k,) or (runs, k).
    Cost: that of drawing.
    Raises: MissingDependencyError without matplotlib; ValueError if a curve has another length than ``alphas``.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> ax = plot_path([0.0, 0.5, 1.0], {"train": [2.0, 1.0, 0.2], "test": [2.0, 1.2, 0.6]})
        >>> [line.get_label() for line in ax.get_lines()]
        ['train', 'test']
    """
    points = check_alphas(alphas)
    if ax is None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise require("matplotlib", "bench") from None
        ax = Figure(figsize=(5, 3.5), layout="constrained").subplots()
    for name, curve in curves.items():
        runs = torch.as_tensor(curve, dtype=torch.float64, device="cpu")
        if runs.ndim not in (1, 2) or runs.shape[-1] != len(points):
            raise ValueError(
                f"curve {name!r} must have shape (k,) or (runs, k) with k = {len(points)}, but has {tuple(runs.shape)}"
            )
        (line,) = ax.plot(points, runs if runs.ndim == 1 else runs.quantile(0.5, 0), label=name)
        if runs.ndim == 2:
            ax.fill_between(points, runs.amin(0), runs.amax(0), color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_xlabel(r"$\alpha$")
    ax.set_ylabel(label)
    ax.legend()
    return ax


def _values(argument: str, values: Sequence[float] | Tensor, length: int) -> Tensor:
    found = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if found.shape != (length,):
        raise ValueError(f"{argument} must have shape ({length},) like alphas, but has {tuple(found.shape)}")
    return found


def _first_below_half(points: Tensor, values: Tensor) -> float:
    below = (values < values[0] / 2).nonzero()
    return float(points[below[0, 0]]) if len(below) else math.nan
