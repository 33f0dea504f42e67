"""Argument checks shared by the whole library; every message names the argument, its value and the limit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_finite",
    "check_float",
    "check_index",
    "check_int",
    "check_labels",
    "check_length",
    "check_ndim",
    "check_one_of",
]


def check_float(
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` as a float inside ``[low, high]`` (ends may be open); raise ``TypeError`` or ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__} ({value!r})")
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not inside:  # also catches NaN
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must lie in {interval}, but is {value!r}")
    return float(value)


def check_int(name: str, value: int, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int with ``low <= value (<= high)``; raise ``TypeError`` or ``ValueError``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__} ({value!r})")
    value = value.__index__()
    if value < low or (high is not None and value > high):
        limit = f">= {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"{name} must be {limit}, but is {value}")
    return value


def check_one_of(name: str, value: str, options: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``options``; raise ``ValueError`` with the list otherwise."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, but is {value!r}")
    return value


def check_ndim(name: str, tensor: Tensor, ndim: int, shape: str) -> None:
    """Raise ``ValueError`` unless ``tensor`` has ``ndim`` dimensions, described by ``shape``: ``"(batch, dim)"``."""
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have shape {shape}, but has {tuple(tensor.shape)}")


def check_length(name: str, tensor: Tensor, length: int, like: str) -> None:
    """Raise ``ValueError`` unless ``tensor`` has ``length`` rows, as ``like`` has."""
    if tensor.shape[0] != length:
        raise ValueError(f"{name} must have as many rows as {like} ({length}), but has {tensor.shape[0]}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` if ``tensor`` holds NaN or infinity, with how many and the first place."""
    bad = ~tensor.isfinite()
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name} holds {int(bad.sum())} NaN or infinite values, the first at index {first}")


def check_index(name: str, index: Tensor, size: int) -> None:
    """Raise unless ``index`` is a 1-D int64 tensor with values in ``0..size-1``."""
    import torch

    if index.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64, but has {index.dtype}")
    check_ndim(name, index, 1, "(batch,)")
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= size):
        raise ValueError(f"{name} must lie in 0..{size - 1}, but spans {int(index.min())}..{int(index.max())}")


def check_labels(name: str, target: Tensor, num_classes: int) -> None:
    """Raise unless ``target`` is a 1-D int64 tensor of class numbers in ``0..num_classes-1``."""
    check_index(name, target, num_classes)
