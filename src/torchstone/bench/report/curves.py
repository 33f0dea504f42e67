"""Learning curves of many replicates as one median with a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from torchstone.bench.result import Result

if TYPE_CHECKING:
    from torchstone.bench.store import Store
    from torchstone.bench.store.records import Curve

__all__ = ["POINTS", "Band", "band", "learning_curves"]

POINTS = 32  # of a curve that are drawn: a figure is no wider


@dataclass(frozen=True)
class Band:
    """Quantiles over the replicates at every step: 10 %, 50 % and 90 %."""

    steps: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    replicates: int


def learning_curves(result: Result, store: Store) -> dict[str, dict[tuple[str, str], dict[str, Band]]]:
    """What the arms logged while they trained: experiment -> (name of the curve, case) -> arm -> band.

    Only runs that count are read, not tuning draws.
    """
    trials = {run.run_id: run for run in result.runs if run.kind == "trial" and run.status == "done"}
    gathered: dict[str, dict[tuple[str, str], dict[str, list[Curve]]]] = {}
    stored = store.curves(trials)
    for run_id, run in trials.items():
        for name, curve in stored.get(run_id, {}).items():
            by_arm = gathered.setdefault(run.experiment, {}).setdefault((name, run.case), {})
            by_arm.setdefault(run.arm, []).append(curve)
    found: dict[str, dict[tuple[str, str], dict[str, Band]]] = {}
    for experiment, figures in gathered.items():
        for key, by_arm in figures.items():
            bands = {arm: made for arm, curves in by_arm.items() if (made := band(curves)) is not None}
            if bands:
                found.setdefault(experiment, {})[key] = bands
    return found


def band(curves: Sequence[Curve]) -> Band | None:
    """The quantiles of several curves, interpolated to common steps; ``None`` if no curve has two finite points.

    Where a curve has ended it no longer counts, so the end of a band may rest on fewer replicates than its start.

    Example:
        >>> steps = np.array([1, 2, 3])
        >>> band([(steps, np.array([0.0, 1.0, 2.0])), (steps, np.array([0.0, 3.0, 4.0]))]).median.tolist()
        [0.0, 2.0, 3.0]
    """
    kept = []
    for steps, values in curves:
        finite = np.isfinite(values)
        if finite.sum() > 1:
            order = np.argsort(steps[finite], kind="stable")
            kept.append((steps[finite][order], values[finite][order]))
    if not kept:
        return None
    every = np.unique(np.concatenate([steps for steps, _ in kept]))
    chosen = every[np.linspace(0, every.size - 1, min(POINTS, every.size)).round().astype(int)]
    table = np.stack([np.interp(chosen, steps, values, left=np.nan, right=np.nan) for steps, values in kept])
    there = np.isfinite(table).any(axis=0)
    low, median, high = np.nanquantile(table[:, there], [0.1, 0.5, 0.9], axis=0)
    return Band(chosen[there], low, median, high, len(kept))
