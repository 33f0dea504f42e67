"""How far the studies in a store are, and which runs failed: the two questions of ``torchstone status``.

They are plain SQL that SQLite and PostgreSQL both take, so a store in a file is asked with the standard library alone:
loading SQLAlchemy would take longer than everything else together.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchstone.bench.store import sqlite
from torchstone.bench.store.place import check_version, file_of, name_of
from torchstone.errors import StoreError

__all__ = ["FailedRun", "StoreStatus", "StudySummary", "read_failed", "read_summary", "store_status"]

Ask = Callable[[str], Iterable[Any]]  # a query -> its rows

# The index `run_summary` covers it: no row of the table is read.
SUMMARY = """
SELECT study, scale, status, COUNT(*), MAX(ended), COALESCE(SUM(wall_s), 0.0)
FROM run GROUP BY study, scale, status ORDER BY study, scale, status
"""
FAILED = """
SELECT id, study, experiment, arm, "case", replicate, COALESCE(error_type, ''), COALESCE(error_text, '')
FROM run WHERE status = 'failed'
ORDER BY study, scale, kind, attempt, experiment, replicate, "case", arm
"""


@dataclass(frozen=True)
class StudySummary:
    """How far a study is at one scale; tuning draws are counted too."""

    study: str
    scale: str
    planned: int
    running: int
    done: int
    failed: int
    last_end: float | None
    wall_s: float

    @property
    def total(self) -> int:
        """All runs."""
        return self.planned + self.running + self.done + self.failed


@dataclass(frozen=True)
class FailedRun:
    """A run that failed: which, and what it raised."""

    run_id: str
    study: str
    experiment: str
    arm: str
    case: str
    replicate: int
    error_type: str
    error_text: str


@dataclass(frozen=True)
class StoreStatus:
    """What is in a store at one moment; ``url`` is where it is, fit to be shown."""

    url: str
    studies: list[StudySummary]
    failed: list[FailedRun]


def store_status(where: str | Path | None = None) -> StoreStatus:
    """How far every study in a store is, and which runs failed. Nothing is changed, and no writer is waited for.

    Args:
        where: as of :meth:`torchstone.bench.store.Store.open`.

    Raises:
        StoreError: if there is no store, or it cannot be read; the message says why and what to do.
        MissingDependencyError: for PostgreSQL without SQLAlchemy or its driver.
    """
    name = name_of(where)
    path = file_of(name)
    found = _status_of_file(path) if path else None
    return found or _status_of_any(name)


def _status_of_file(path: Path) -> StoreStatus | None:
    """The status of a store in a file; ``None`` if the file is a database, but of something else."""
    url = f"sqlite:///{path}"
    try:
        with closing(sqlite.connect(path, read_only=True)) as connection:
            connection.execute("BEGIN")  # both questions see the same moment
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                return None
            version = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
            check_version(version and version[0], url)
            return _status(connection.execute, url)
    except sqlite3.Error as error:
        raise StoreError(sqlite.explain(error, path)) from error


def _status_of_any(name: str) -> StoreStatus:
    from torchstone.bench.store.database import Database

    with closing(Database(name, read_only=True)) as database, database.begin() as connection:
        return _status(connection.exec_driver_sql, database.url)


def _status(ask: Ask, url: str) -> StoreStatus:
    studies = read_summary(ask)
    return StoreStatus(url, studies, read_failed(ask) if any(row.failed for row in studies) else [])


def read_summary(ask: Ask) -> list[StudySummary]:
    """Counts by study and scale."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for study, scale, status, count, last_end, seconds in ask(SUMMARY):
        empty = {"planned": 0, "running": 0, "done": 0, "failed": 0, "last_end": None, "wall_s": 0.0}
        counts = found.setdefault((study, scale), empty)
        counts[status] = count
        counts["wall_s"] += seconds
        counts["last_end"] = max(filter(None, (counts["last_end"], last_end)), default=None)
    return [StudySummary(study, scale, **counts) for (study, scale), counts in found.items()]


def read_failed(ask: Ask) -> list[FailedRun]:
    """The runs that failed, replicate by replicate."""
    return [FailedRun(*row) for row in ask(FAILED)]
