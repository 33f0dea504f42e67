"""What the store gives back: runs and statements of studies; and how outcomes and curves are put into rows."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchstone.bench.outcome import Outcome
from torchstone.bench.store.summary import StudySummary

__all__ = ["Curve", "RunRecord", "StudyRecord", "StudySummary"]

Curve = tuple[np.ndarray, np.ndarray]  # steps (int64), values (float64)


@dataclass(frozen=True)
class RunRecord:
    """One run as it is stored: what it is, how far it is, what came out, what it cost.

    ``hyper`` and ``setting`` are read back from their canonical JSON. Times are seconds since 1970, or ``None``.
    ``values`` and ``cost`` are empty unless ``status`` is ``done``; ``objective`` is ``None`` where none was returned.
    """

    run_id: str
    study: str
    experiment: str
    arm: str
    case: str
    replicate: int
    scale: str
    kind: str
    attempt: int
    seed: int
    hyper: Mapping[str, Any]
    setting: Any
    data: str
    fingerprint: str
    stacked: int
    status: str
    owner: str
    attempts: int
    host: str
    pid: int
    planned: float
    started: float | None
    ended: float | None
    wall_s: float
    cpu_s: float
    shared_s: float
    peak_rss: int
    device: str
    objective: float | None
    diverged: str
    error_type: str
    error_text: str
    traceback: str
    env_id: str
    values: Mapping[str, Any]
    cost: Mapping[str, float]

    @property
    def cell(self) -> tuple[str, str, int, str, int]:
        """``(experiment, case, replicate, kind, attempt)``, as of :class:`~torchstone.bench.identity.RunSpec`."""
        return (self.experiment, self.case, self.replicate, self.kind, self.attempt)


@dataclass(frozen=True)
class StudyRecord:
    """One statement of a study, as plain data, and when it was last judged (or, if never, first asked for)."""

    study_id: str
    name: str
    stated: Mapping[str, Any]
    at: float


def metric_rows(run_id: str, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Rows for the numbers of an outcome."""
    for kind, numbers in (("value", outcome.values), ("cost", outcome.cost)):
        for name, value in numbers.items():
            if not isinstance(value, np.ndarray):
                nan = math.isnan(value)
                number = None if nan else float(value)
                yield {"run_id": run_id, "kind": kind, "name": name, "value": number, "status": "nan" if nan else "ok"}


def curve_rows(
    run_id: str, outcome: Outcome, curves: Mapping[str, Sequence[tuple[int, float]]]
) -> Iterator[dict[str, Any]]:
    """Rows for the arrays of an outcome, and for curves."""
    for name, value in outcome.values.items():
        if isinstance(value, np.ndarray):
            yield {"run_id": run_id, "kind": "value", "name": name, **_packed(np.empty(0), value)}
    for name, points in curves.items():
        steps, values = zip(*points, strict=True) if points else ((), ())
        yield {"run_id": run_id, "kind": "curve", "name": name, **_packed(np.array(steps), np.array(values))}


def _packed(steps: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Steps as int64 and values, as float32 where that loses nothing, compressed."""
    wide = values.astype("<f8")
    with np.errstate(over="ignore"):
        narrow = wide.astype("<f4")
    exact = np.array_equal(narrow.astype("<f8"), wide, equal_nan=True)
    data = steps.astype("<i8").tobytes() + (narrow if exact else wide).tobytes()
    return {"dtype": "f4" if exact else "f8", "size": len(wide), "data": zlib.compress(data, 1)}


def unpacked(dtype: str, size: int, data: bytes) -> Curve:
    """Steps (empty for an array) and values of a stored curve."""
    raw = zlib.decompress(data)
    start = len(raw) - size * int(dtype[1])
    values = np.frombuffer(raw, f"<{dtype}", offset=start).astype(np.float64)
    return np.frombuffer(raw[:start], "<i8").astype(np.int64), values


def restored(values: dict[str, Any], cost: dict[str, float], objective: float | None, diverged: str) -> Outcome:
    """An outcome as it was stored; its values were checked when it was made, so they are not checked again."""
    outcome = object.__new__(Outcome)
    vars(outcome).update(values=values, objective=objective, cost=cost, diverged=diverged)
    return outcome
