"""What can be asked of a store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from torchstone.bench.outcome import Outcome
from torchstone.bench.store.database import Database, sa
from torchstone.bench.store.export import write_table
from torchstone.bench.store.queries import Numbers, chunks, in_chunks, read_records
from torchstone.bench.store.records import Curve, RunRecord, StudyRecord, restored, unpacked
from torchstone.bench.store.schema import comparison, curve, derived, env, log, run, study
from torchstone.bench.store.summary import StudySummary, read_summary
from torchstone.errors import UnknownNameError

__all__ = ["Reader"]


class Reader:
    """The half of a :class:`~torchstone.bench.store.Store` that changes nothing; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def url(self) -> str:
        """Where it is, fit to be shown: a password is hidden."""
        return self._database.url

    @property
    def where(self) -> str:
        """Where it is, as another process needs it to open the same store."""
        return self._database.where

    def close(self) -> None:
        """Close the store; safe to call again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---------------------------------------------------------------- runs

    def states(self, run_ids: Iterable[str]) -> dict[str, str]:
        """``planned``, ``running``, ``done`` or ``failed`` of those runs that are stored."""
        with self._database.begin() as connection:
            return {row.id: row.status for row in in_chunks(connection, sa.select(run.c.id, run.c.status), run_ids)}

    def outcomes(self, run_ids: Iterable[str]) -> dict[str, Outcome]:
        """The outcomes of those runs that are done."""
        ids = list(run_ids)
        with self._database.begin() as connection:
            query = sa.select(run.c.id, run.c.objective, run.c.diverged).where(run.c.status == "done")
            done = {row[0]: row for row in in_chunks(connection, query, ids)}
            numbers = Numbers()
            for chunk in chunks(done):
                numbers.read(connection, lambda table, chunk=chunk: table.c.run_id.in_(chunk))
        return {
            run_id: restored(numbers.of("value", run_id), numbers.of("cost", run_id), *done[run_id][1:])
            for run_id in ids
            if run_id in done
        }

    def curves(self, run_ids: Iterable[str]) -> dict[str, dict[str, Curve]]:
        """The curves of runs: run -> name -> (steps, values)."""
        found: dict[str, dict[str, Curve]] = {}
        query = sa.select(curve.c.run_id, curve.c.name, curve.c.dtype, curve.c.size, curve.c.data)
        with self._database.begin() as connection:
            for chunk in chunks(run_ids):
                mine = query.where((curve.c.kind == "curve") & curve.c.run_id.in_(chunk))
                for run_id, name, *packed in connection.execute(mine):
                    found.setdefault(run_id, {})[name] = unpacked(*packed)
        return found

    def records(self, run_ids: Iterable[str]) -> list[RunRecord]:
        """Those runs that are stored, in the order given."""
        ids = list(dict.fromkeys(run_ids))
        found: dict[str, RunRecord] = {}
        with self._database.begin() as connection:
            for chunk in chunks(ids):
                found |= {record.run_id: record for record in read_records(connection, run.c.id.in_(chunk))}
        return [found[run_id] for run_id in ids if run_id in found]

    def runs(
        self,
        *,
        study: str | None = None,
        scale: str | None = None,
        kind: str | None = None,
        status: str | None = None,
    ) -> list[RunRecord]:
        """All runs with the given study, scale, kind and status, replicate by replicate."""
        wanted = {"study": study, "scale": scale, "kind": kind, "status": status}
        condition = sa.and_(sa.true(), *(run.c[name] == value for name, value in wanted.items() if value is not None))
        with self._database.begin() as connection:
            return list(read_records(connection, condition))

    def find_runs(self, name: str) -> list[RunRecord]:
        """The runs of a name, replicate by replicate; more than one where scale, kind or code differ.

        Args:
            name: at least 4 characters from the beginning of a run's id, or ``study/experiment/arm/case/replicate``
                (the study may be left out).

        Raises:
            UnknownNameError: if it is neither.
        """
        if "/" not in name and len(name) < 4:
            raise UnknownNameError(
                f"{name!r} names no run: give at least 4 characters of its id, or study/experiment/arm/case/replicate"
            )
        if "/" in name:
            place, _, number = name.rpartition("/")
            if not (number.isdecimal() and number.isascii() and len(number) < 19):
                return []
            slot = run.c.experiment + "/" + run.c.arm + "/" + run.c.case
            condition = (run.c.replicate == int(number)) & ((slot == place) | (run.c.study + "/" + slot == place))
        else:
            prefix = name.lower()
            condition = (run.c.id >= prefix) & (run.c.id < f"{prefix}g")  # of hexadecimal digits none is beyond f
        with self._database.begin() as connection:
            return list(read_records(connection, condition))

    def log_text(self, run_id: str) -> str:
        """What a run printed and warned (its end, if that is long), and its traceback if it failed."""
        query = sa.select(run.c.traceback, run.c.error_text).where((run.c.id == run_id) & (run.c.status == "failed"))
        with self._database.begin() as connection:
            said = ""
            if log.name not in self._database.absent:
                said = connection.scalar(sa.select(log.c.text).where(log.c.run_id == run_id)) or ""
            failed = connection.execute(query).first()
        end = (failed.traceback or failed.error_text or "") if failed else ""
        return f"{said}\n{end}" if said and end and not said.endswith("\n") else said + end

    def mean_seconds(self, study: str, scale: str) -> dict[tuple[str, str, str, str], float]:
        """What the runs of a study took on average, with the work they shared: (kind, experiment, arm, case) -> s."""
        key = (run.c.kind, run.c.experiment, run.c.arm, run.c.case)
        seconds = sa.func.avg(run.c.wall_s + sa.func.coalesce(run.c.shared_s, 0.0))
        done = (run.c.study == study) & (run.c.scale == scale) & (run.c.status == "done")
        with self._database.begin() as connection:
            rows = connection.execute(sa.select(*key, seconds).where(done).group_by(*key))
            return {(kind, experiment, arm, case): mean for kind, experiment, arm, case, mean in rows}

    # ---------------------------------------------------------------- studies

    def summary(self) -> list[StudySummary]:
        """How far every study is, at every scale."""
        with self._database.begin() as connection:
            return read_summary(connection.exec_driver_sql)

    def environments(self) -> dict[str, dict[str, Any]]:
        """The environments in which runs were finished: id -> environment."""
        with self._database.begin() as connection:
            return {row.id: json.loads(row.spec) for row in connection.execute(sa.select(env))}

    def studies(self) -> list[StudyRecord]:
        """What was asked of this store: one record for each statement of a study, the last asked last."""
        logged = sa.select(comparison.c.study_id, sa.func.max(comparison.c.at).label("at")).group_by("study_id")
        last = logged.subquery()
        at = sa.func.coalesce(last.c.at, study.c.created)
        query = sa.select(study.c.id, study.c.name, study.c.spec, at.label("at"))
        query = query.select_from(study.outerjoin(last, last.c.study_id == study.c.id)).order_by("at", study.c.created)
        with self._database.begin() as connection:
            return [
                StudyRecord(row.id, row.name, json.loads(row.spec)["spec"], row.at) for row in connection.execute(query)
            ]

    def derived(self, study_id: str) -> dict[tuple[str, int], dict[str, float]]:
        """The derived values of a study: (experiment, replicate) -> name -> value."""
        if derived.name in self._database.absent:
            return {}
        query = sa.select(derived.c.experiment, derived.c.replicate, derived.c["values"])
        with self._database.begin() as connection:
            rows = list(connection.execute(query.where(derived.c.study_id == study_id)))
        return {
            (experiment, number): {
                name: math.nan if value is None else value for name, value in json.loads(values).items()
            }
            for experiment, number, values in rows
        }

    def verdicts(self, study_id: str) -> list[dict[str, Any]]:
        """The log of verdicts of a study, oldest first, each with its time ``at``."""
        query = sa.select(comparison.c.at, comparison.c.spec).where(comparison.c.study_id == study_id)
        with self._database.begin() as connection:
            rows = connection.execute(query.order_by(comparison.c.at, comparison.c.id))
            return [{**json.loads(row.spec), "at": row.at} for row in rows]

    def export(self, path: str | Path, *, format: str = "csv", study: str | None = None) -> int:
        """Write all runs that ended, of all studies or one, as a long table; return its number of lines.

        Raises:
            ValueError: for a format other than ``csv`` and ``jsonl``.
            StoreError: if the file cannot be written.
        """
        ended = (record for record in self.runs(study=study) if record.status in ("done", "failed"))
        return write_table(ended, path, format)
