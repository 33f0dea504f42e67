"""The result store: what is planned, running and done.

The table of runs is the plan. A run is claimed under a lease, finished in one transaction, and neither lost nor
written twice: a process that has lost its lease writes nothing. Several processes may share a store, each with its own
:class:`Store`; the threads of one process may share one.
"""

from __future__ import annotations

import json
import math
import os
import socket
import traceback as tracebacks
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchstone.bench.environment import environment
from torchstone.bench.identity import RunSpec, canonical_json, digest
from torchstone.bench.outcome import Outcome
from torchstone.bench.store.database import Database, sa
from torchstone.bench.store.owner import is_gone, owner_id
from torchstone.bench.store.queries import chunks, in_chunks, planned_row
from torchstone.bench.store.reading import Reader
from torchstone.bench.store.records import RunRecord, StudyRecord, curve_rows, metric_rows
from torchstone.bench.store.schema import comparison, curve, derived, env, log, metric, run, study
from torchstone.bench.store.summary import StudySummary
from torchstone.errors import StoreError

__all__ = ["RunRecord", "Store", "StudyRecord", "StudySummary", "owner_id"]

ERROR_LENGTH, TRACEBACK_LENGTH, LOG_LENGTH = 2_000, 20_000, 100_000
NAMES = ("study", "experiment", "arm", "case", "replicate", "scale", "kind", "attempt")


class Store(Reader):
    """Runs and their outcomes in a SQLite file or a PostgreSQL database; a context manager.

    Make one with :meth:`open`. Every method is one transaction.

    Example:
        >>> spec = RunSpec("study", "main", "ce", "default", 0, "smoke")
        >>> with Store.open(":memory:") as store:
        ...     new = store.plan([spec], study_id=store.add_study("study", {}))
        ...     mine = store.claim([spec.run_id], owner_id())
        ...     written = store.finish(spec.run_id, owner_id(), Outcome({"accuracy": 0.9}), wall_s=1.0, cpu_s=1.0)
        ...     store.outcomes([spec.run_id])[spec.run_id].values
        {'accuracy': 0.9}
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._env_id = ""

    @classmethod
    def open(cls, where: str | Path | None = None, *, read_only: bool = False) -> Store:
        """Open a store, making it if it is not there.

        Args:
            where: a path, ``postgresql://user@host/database``, or ``":memory:"``; by default ``$TORCHSTONE_STORE`` or
                else ``~/.local/share/torchstone/results.db`` (``$XDG_DATA_HOME`` is honoured).
            read_only: open what is there, without ever waiting for a writer.

        Raises:
            StoreError: if it cannot be used; the message says why and what to do.
            MissingDependencyError: for PostgreSQL without its driver.
        """
        return cls(Database(where, read_only=read_only))

    # ---------------------------------------------------------------- planning and leases

    def add_study(self, name: str, spec: Mapping[str, Any]) -> str:
        """Record what a study states; return its id, the same for the same statement."""
        text = canonical_json({"name": name, "spec": spec})
        study_id = digest({"name": name, "spec": spec})
        with self._database.begin(write=True) as connection:
            row = {"id": study_id, "name": name, "spec": text, "created": self._database.now(connection)}
            connection.execute(self._database.insert(study), row)
        return study_id

    def plan(self, specs: Sequence[RunSpec], *, study_id: str) -> int:
        """Add the runs that are not there yet, as ``planned``; return how many those are.

        Raises:
            StoreError: for an unknown study, or if a stored run has the same id but other names.
        """
        wanted = {spec.run_id: spec for spec in specs}
        with self._database.begin(write=True) as connection:
            if connection.scalar(sa.select(study.c.id).where(study.c.id == study_id)) is None:
                raise StoreError(f"there is no study with id {study_id!r} in {self.url}: add_study() comes first")
            query = sa.select(run.c.id, *(run.c[name] for name in NAMES))
            for known in in_chunks(connection, query, list(wanted)):
                spec = wanted.pop(known.id)
                if known[1:] != tuple(getattr(spec, name) for name in NAMES):
                    raise StoreError(f"run {spec.run_id} is stored as {known[1:]}, but asked for as {spec}")
            now = self._database.now(connection)
            # Sorted, so that two processes that plan the same runs cannot wait for each other.
            rows = [planned_row(wanted[run_id], study_id, now) for run_id in sorted(wanted)]
            if rows:
                connection.execute(self._database.insert(run), rows)
        return len(rows)

    def claim(self, run_ids: Sequence[str], owner: str, *, lease_s: float = 60.0) -> list[str]:
        """Take the runs that are free, for so many seconds; return which, in the order given.

        Free is what is planned or failed, what is running under a lease that has expired, and what is running in a
        process of this machine that has ended. No two owners ever get the same run.
        """
        gone: dict[str, bool] = {}
        with self._database.begin(write=True) as connection:
            now = self._database.now(connection)
            query = sa.select(run.c.id, run.c.status, run.c.owner, run.c.lease_until).where(run.c.status != "done")
            taken, again = set(), set()
            for row in in_chunks(connection, query.with_for_update(skip_locked=True), run_ids):
                if row.status == "running" and row.lease_until > now:
                    if row.owner not in gone:
                        gone[row.owner] = is_gone(row.owner)
                    if not gone[row.owner]:
                        continue
                taken.add(row.id)
                if row.status != "planned":
                    again.add(row.id)
            changes = {
                "status": "running",
                "owner": owner,
                "lease_until": now + lease_s,
                "attempts": run.c.attempts + 1,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": now,
                "ended": None,
                "error_type": None,
                "error_text": None,
                "traceback": None,
            }
            for chunk in chunks(taken):
                connection.execute(run.update().where(run.c.id.in_(chunk)).values(changes))
            for chunk in chunks(again):
                connection.execute(log.delete().where(log.c.run_id.in_(chunk)))
        return [run_id for run_id in dict.fromkeys(run_ids) if run_id in taken]

    def renew(self, run_ids: Iterable[str], owner: str, lease_s: float = 60.0) -> int:
        """Hold claimed runs for so many seconds from now; return how many are still held."""
        with self._database.begin(write=True) as connection:
            until = self._database.now(connection) + lease_s
            return self._update_held(connection, run_ids, owner, {"lease_until": until})

    def release(self, run_ids: Iterable[str], owner: str) -> int:
        """Give claimed runs back, as ``planned``; return how many were held."""
        with self._database.begin(write=True) as connection:
            free = {"status": "planned", "owner": None, "lease_until": None, "started": None}
            return self._update_held(connection, run_ids, owner, free)

    def _update_held(
        self, connection: sa.Connection, run_ids: Iterable[str], owner: str, changes: Mapping[str, Any]
    ) -> int:
        held = (run.c.owner == owner) & (run.c.status == "running")
        return sum(
            connection.execute(run.update().where(run.c.id.in_(chunk) & held).values(changes)).rowcount
            for chunk in chunks(run_ids)
        )

    # ---------------------------------------------------------------- what came out

    def finish(
        self,
        run_id: str,
        owner: str,
        outcome: Outcome,
        *,
        wall_s: float,
        cpu_s: float,
        shared_s: float = 0.0,
        peak_rss: int = 0,
        device: str = "cpu",
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
        text: str = "",
    ) -> bool:
        """Store the outcome of a claimed run with its cost (seconds, bytes), curves and what it said, all or nothing.

        Returns:
            False, with nothing written, if the run is no longer the owner's.
        """
        changes = {
            "status": "done",
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "shared_s": shared_s,
            "peak_rss": peak_rss,
            "device": device,
            "objective": outcome.objective,
            "diverged": _clean(outcome.diverged, ERROR_LENGTH),
        }
        with self._database.begin(write=True) as connection:
            env_id = self._env_id or self._add_environment(connection)
            if not self._end(connection, run_id, owner, {**changes, "env_id": env_id}):
                return False
            for table, rows in (
                (metric, list(metric_rows(run_id, outcome))),
                (curve, list(curve_rows(run_id, outcome, curves or {}))),
                (log, _log_rows(run_id, text)),
            ):
                if rows:
                    connection.execute(table.insert(), rows)
        self._env_id = env_id  # only now is it sure to be stored
        return True

    def fail(self, run_id: str, owner: str, error: BaseException | str, *, traceback: str = "", text: str = "") -> bool:
        """Store that a claimed run raised, and what it said; ``traceback`` is for an error from another process.

        Returns:
            False, with nothing written, if the run is no longer the owner's.
        """
        changes = {"status": "failed", "error_type": "", "error_text": str(error) if isinstance(error, str) else ""}
        if isinstance(error, BaseException):
            changes["error_type"] = type(error).__name__
            with suppress(Exception):  # an error whose own text cannot be made is still an error
                changes["error_text"] = str(error)
            traceback = traceback or "".join(tracebacks.format_exception(error))
        changes["error_text"] = _clean(changes["error_text"], ERROR_LENGTH)
        changes["traceback"] = _clean(traceback, TRACEBACK_LENGTH)
        with self._database.begin(write=True) as connection:
            ended = self._end(connection, run_id, owner, changes)
            if ended and (rows := _log_rows(run_id, text)):
                connection.execute(log.insert(), rows)
        return ended

    def _end(self, connection: sa.Connection, run_id: str, owner: str, changes: Mapping[str, Any]) -> bool:
        ended = {**changes, "ended": self._database.now(connection), "lease_until": None}
        return self._update_held(connection, [run_id], owner, ended) == 1

    def _add_environment(self, connection: sa.Connection) -> str:
        spec = environment()
        connection.execute(self._database.insert(env), {"id": digest(spec), "spec": canonical_json(spec)})
        return digest(spec)

    # ---------------------------------------------------------------- about whole studies

    def keep_derived(self, study_id: str, experiment: str, replicate: int, values: Mapping[str, float]) -> None:
        """Keep the values that were derived from all runs of a replicate, in place of older ones."""
        place = {"study_id": study_id, "experiment": experiment, "replicate": replicate}
        text = json.dumps({name: None if math.isnan(value) else float(value) for name, value in values.items()})
        with self._database.begin(write=True) as connection:
            connection.execute(derived.delete().where(*(derived.c[name] == value for name, value in place.items())))
            connection.execute(derived.insert(), {**place, "values": text})

    def log_verdicts(self, study_id: str, judgements: Sequence[Mapping[str, Any]]) -> None:
        """Note verdicts with the time. It is a log: verdicts shown are always computed from runs."""
        with self._database.begin(write=True) as connection:
            at = self._database.now(connection)
            rows = [
                {
                    "study_id": study_id,
                    "at": at,
                    "verdict": str(judgement.get("verdict", "")),
                    "spec": json.dumps(dict(judgement), default=str, sort_keys=True),
                }
                for judgement in judgements
            ]
            if rows:
                connection.execute(comparison.insert(), rows)


def _log_rows(run_id: str, text: str) -> list[dict[str, Any]]:
    return [{"run_id": run_id, "text": _clean(text, LOG_LENGTH)}] if text else []


def _clean(text: str, length: int) -> str:
    """Text that every database takes, the middle left out if it is long."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}\n[...]\n{text[-half:]}"
