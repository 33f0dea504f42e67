"""Runs as a long table for other tools: one line for each number."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchstone._checks import check_one_of
from torchstone.bench.store.records import RunRecord
from torchstone.errors import StoreError

__all__ = ["COLUMNS", "FORMATS", "write_table"]

FORMATS = ("csv", "jsonl")
RUN_COLUMNS = ("run_id", "study", "experiment", "arm", "case", "replicate", "scale", "kind", "attempt", "status")
COLUMNS = (*RUN_COLUMNS, "diverged", "error", "what", "metric", "element", "value")


def write_table(records: Iterable[RunRecord], path: str | Path, format: str) -> int:
    """Write runs to a file and return the number of lines (without the head).

    ``what`` is ``value``, ``cost``, ``objective`` or ``seconds``; ``element`` numbers the elements of an array. A run
    that failed has one line with its error and no number. NaN is ``nan`` in CSV and ``null`` in JSON lines. The file
    appears when it is complete.

    Raises:
        ValueError: for an unknown format.
        StoreError: if the file cannot be written.
    """
    check_one_of("format", format, FORMATS)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="", encoding="utf-8") as file:
            write = _csv(file) if format == "csv" else _jsonl(file)
            count = 0
            for record in records:
                for line in _lines(record):
                    write(line)
                    count += 1
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"the table cannot be written to {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return count


def _csv(file: Any) -> Any:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    return lambda line: writer.writerow("" if item is None else item for item in line)


def _jsonl(file: Any) -> Any:
    def write(line: tuple[Any, ...]) -> None:
        plain = (None if isinstance(item, float) and not math.isfinite(item) else item for item in line)
        file.write(json.dumps(dict(zip(COLUMNS, plain, strict=True))) + "\n")

    return write


def _lines(record: RunRecord) -> Iterator[tuple[Any, ...]]:
    error = f"{record.error_type}: {record.error_text}" if record.status == "failed" else ""
    head = (*(getattr(record, name) for name in RUN_COLUMNS), record.diverged, error)
    if record.status != "done":
        yield (*head, "", "", None, None)
        return
    for what, numbers in (("value", record.values), ("cost", record.cost)):
        for name, value in numbers.items():
            if isinstance(value, np.ndarray):
                yield from ((*head, what, name, i, element) for i, element in enumerate(value.tolist()))
            else:
                yield (*head, what, name, None, value)
    if record.objective is not None:
        yield (*head, "objective", "objective", None, record.objective)
    for name in ("wall_s", "cpu_s", "shared_s"):
        yield (*head, "seconds", name, None, getattr(record, name))
