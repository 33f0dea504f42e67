"""Scores as people hold them (lists, arrays, tensors, mappings from replicate to score) as checked NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["as_array", "average_ranks", "method_rows", "pair_up"]


def as_array(name: str, scores: Any) -> Float[np.ndarray, " replicates *datasets"]:
    """Return the scores of the arm ``name`` as a finite float64 array with at least two replicates.

    Tensors are detached and moved; a mapping gives its values in its own order.

    Raises:
        TypeError: if they are not numbers.
        ValueError: if they have no or more than two dimensions, fewer than two replicates, or a NaN or infinite score.
    """
    if isinstance(scores, Mapping):
        scores = list(scores.values())
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double().numpy()
    try:
        array = np.asarray(scores, float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"scores of arm {name!r} must be a rectangle of numbers: {error}") from None
    if array.ndim not in (1, 2):
        raise ValueError(
            f"scores of arm {name!r} must have shape (replicates,) or (replicates, data sets), but have {array.shape}"
        )
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        place = f"replicate {bad[0][0]}" + (f", data set {bad[0][1]}" if array.ndim == 2 else "")
        raise ValueError(
            f"the score of arm {name!r}, {place}, is {array[tuple(bad[0])]}: "
            "give a run that diverged the worst attainable score"
        )
    if len(array) < 2:
        raise ValueError(f"arm {name!r} has {len(array)} replicate{'s' * (len(array) != 1)}, and at least 2 are needed")
    if array.ndim == 2 and not array.shape[1]:
        raise ValueError(f"scores of arm {name!r} speak about no data set")
    return array


def pair_up(a: Any, b: Any) -> tuple[Any, Any, int]:
    """Match two mappings from replicate to score; return both in one order and how many replicates have no partner."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return a, b, 0
    common = [replicate for replicate in a if replicate in b]
    if len(common) < 2:
        raise ValueError(f"a and b have {len(common)} replicates in common, and a paired comparison needs at least 2")
    return [a[i] for i in common], [b[i] for i in common], len(a) + len(b) - 2 * len(common)


def average_ranks(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1 (smallest); equal values share the mean of their ranks."""
    _, codes, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[codes]


def method_rows(scores: Any, names: Sequence[str] | None) -> tuple[list[str], list[Float[np.ndarray, " n"]]]:
    """Names and one checked 1-D array per method."""
    if hasattr(scores, "columns"):
        from torchstone.bench.statistics.score_table import from_frame

        scores = from_frame(scores).blocks()
    if isinstance(scores, Mapping):
        if names is not None:
            raise ValueError("names are those of the mapping: leave out the argument")
        labels, values = [str(name) for name in scores], list(scores.values())
    else:
        values = list(scores)
        labels = [str(name) for name in names] if names is not None else [str(i) for i in range(len(values))]
    if len(labels) != len(values) or len(set(labels)) != len(labels):
        raise ValueError(f"names must be {len(values)} different names, one per method, but are {labels}")
    if len(values) < 2:
        raise ValueError(f"ranking needs at least 2 methods, and there is {len(values)}")
    rows = [as_array(label, value) for label, value in zip(labels, values, strict=True)]
    if any(row.ndim != 1 for row in rows):
        raise ValueError("scores must have shape (methods, blocks)")
    return labels, rows
