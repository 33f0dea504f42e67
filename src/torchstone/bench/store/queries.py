"""Bulk reading from a store's tables: runs, and the numbers of many runs at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import sqlalchemy as sa

from torchstone.bench.identity import RunSpec, canonical_json
from torchstone.bench.store.records import RunRecord, unpacked
from torchstone.bench.store.schema import curve, metric, run

__all__ = ["Numbers", "chunks", "in_chunks", "planned_row", "read_records"]

CHUNK = 500  # ids in one query; some builds of SQLite take no more than 999 variables
ORDER = ("study", "scale", "kind", "attempt", "experiment", "replicate", "case", "arm")
RENAMED = {"id": "run_id", "data_hash": "data", "stack_size": "stacked"}
WHEN_NULL = {
    "owner": "",
    "host": "",
    "pid": 0,
    "wall_s": 0.0,
    "cpu_s": 0.0,
    "shared_s": 0.0,
    "peak_rss": 0,
    "device": "",
    "error_type": "",
    "error_text": "",
    "traceback": "",
    "env_id": "",
}


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids, so many at a time as a query takes."""
    rest = iter(ids)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def in_chunks(connection: sa.Connection, query: sa.Select, run_ids: Iterable[str]) -> Iterator[Any]:
    """Rows of a query on table ``run`` for some runs."""
    for chunk in chunks(run_ids):
        yield from connection.execute(query.where(run.c.id.in_(chunk)))


def planned_row(spec: RunSpec, study_id: str, now: float) -> dict[str, Any]:
    """The row of a run that is planned."""
    return {
        "id": spec.run_id,
        "study_id": study_id,
        "study": spec.study,
        "experiment": spec.experiment,
        "arm": spec.arm,
        "case": spec.case,
        "replicate": spec.replicate,
        "scale": spec.scale,
        "kind": spec.kind,
        "attempt": spec.attempt,
        "seed": spec.seed,
        "hyper": canonical_json(spec.hyper),
        "setting": canonical_json(spec.setting),
        "data_hash": spec.data,
        "fingerprint": spec.fingerprint,
        "stack_size": spec.stacked,
        "status": "planned",
        "attempts": 0,
        "planned": now,
        "diverged": "",
    }


class Numbers:
    """Values and counted costs of many runs."""

    def __init__(self) -> None:
        self._by_kind: dict[str, dict[str, dict[str, Any]]] = {"value": {}, "cost": {}}

    def of(self, kind: str, run_id: str) -> dict[str, Any]:
        """The ``value`` s or ``cost`` s of a run."""
        return self._by_kind[kind].get(run_id, {})

    def read(self, connection: sa.Connection, condition: Callable[[sa.Table], sa.ColumnElement[bool]]) -> None:
        """Add the numbers of the runs for which ``condition(table)`` holds."""
        query = sa.select(metric.c.run_id, metric.c.kind, metric.c.name, metric.c.value).where(condition(metric))
        for run_id, kind, name, value in connection.execute(query):
            self._by_kind[kind].setdefault(run_id, {})[name] = float("nan") if value is None else value
        arrays = sa.select(curve.c.run_id, curve.c.name, curve.c.dtype, curve.c.size, curve.c.data)
        for run_id, name, *packed in connection.execute(arrays.where((curve.c.kind == "value") & condition(curve))):
            self._by_kind["value"].setdefault(run_id, {})[name] = unpacked(*packed)[1]


def read_records(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Iterator[RunRecord]:
    """The runs for which a condition on table ``run`` holds, replicate by replicate."""
    numbers = Numbers()
    chosen = sa.select(run.c.id).where(condition)
    numbers.read(connection, lambda table: table.c.run_id.in_(chosen))
    columns = [column for column in run.c if column.name not in ("study_id", "lease_until", "hyper", "setting")]
    names = [RENAMED.get(column.name, column.name) for column in columns]
    query = sa.select(run.c.hyper, run.c.setting, *columns).where(condition).order_by(*(run.c[name] for name in ORDER))
    for hyper, setting, *fields in map(tuple, connection.execute(query)):
        known: dict[str, Any] = {
            name: WHEN_NULL.get(name) if value is None else value for name, value in zip(names, fields, strict=True)
        }
        yield RunRecord(
            **known,
            hyper=json.loads(hyper),
            setting=json.loads(setting),
            values=numbers.of("value", known["run_id"]),
            cost=numbers.of("cost", known["run_id"]),
        )
