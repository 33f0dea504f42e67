"""What `torchstone status` asks: the same answer and the same sentences as a `Store` gives, without what it loads."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

import torchstone.bench
import torchstone.bench.store
from tests.bench.runs import finished, planned, specs
from tests.bench.store import test_store_errors as wrong
from tests.bench.store.test_store_errors import failing
from torchstone.bench.outcome import Outcome
from torchstone.bench.store import Store, sqlite, summary
from torchstone.bench.store.summary import FailedRun, store_status
from torchstone.errors import StoreError


def test_it_tells_what_the_store_tells(store: Store) -> None:
    assert (store_status(store.where).studies, store_status(store.where).failed) == ([], [])
    finished(store, specs(2), Outcome())
    ids = planned(store, [*specs(9), *specs(3, scale="smoke", study="a")])
    store.claim(ids, "me")
    store.fail(ids[5], "me", "no")
    store.fail(ids[3], "me", ValueError('50 % of "it"'))
    found = store_status(store.where)
    assert (found.url, found.studies) == (store.url, store.summary())
    names = [field.name for field in fields(FailedRun)]
    expected = [FailedRun(*(getattr(run, name) for name in names)) for run in store.runs(status="failed")]
    assert found.failed == expected
    assert [(run.replicate, run.error_type, run.error_text) for run in expected] == [
        (3, "ValueError", '50 % of "it"'),
        (5, "", "no"),
    ]


def test_the_summary_reads_the_index_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "results.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "results.db")) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {summary.SUMMARY}").fetchall()
    assert [step[-1] for step in plan] == ["SCAN run USING COVERING INDEX run_summary"]


def test_failed_runs_are_asked_for_only_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "results.db") as store:
        finished(store, specs(2), Outcome())
    monkeypatch.setattr(summary, "FAILED", "no SQL")
    assert store_status(tmp_path / "results.db").failed == []


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 90_000)


@pytest.mark.parametrize(
    "change",
    [
        _missing,
        _empty,
        _damaged,
        wrong._newer,
        wrong._without_version,
        wrong._another_program,
        wrong._text,
        wrong._folder,
    ],
)
def test_what_is_wrong_is_said_as_a_store_says_it(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with Store.open(path) as store:
        finished(store, specs(2), Outcome())
    change(path)
    with pytest.raises(StoreError) as said, Store.open(path, read_only=True) as store:
        store.summary()
    with pytest.raises(StoreError) as told:
        store_status(path)
    assert str(told.value) == str(said.value)


@pytest.mark.parametrize("where", [":memory:", "mysql://me:secret@host/db", "no such://"])
def test_other_places_are_left_to_the_store(where: str) -> None:
    with pytest.raises(StoreError) as said:
        Store.open(where, read_only=True)
    with pytest.raises(StoreError) as told:
        store_status(where)
    assert str(told.value) == str(said.value)


def test_an_error_of_sqlite_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path | None, *, read_only: bool) -> sqlite3.Connection:
        raise failing("SQLITE_BUSY")

    monkeypatch.setattr(sqlite, "connect", fail)
    with pytest.raises(StoreError, match=r"another process has kept the store .* locked"):
        store_status(tmp_path / "results.db")


def test_it_can_be_asked_while_another_process_writes(tmp_path: Path) -> None:
    with Store.open(tmp_path / "results.db") as store:
        finished(store, specs(2), Outcome())
        with store._database.begin(write=True) as connection:
            connection.exec_driver_sql("DELETE FROM run WHERE replicate = 0")
            assert store_status(tmp_path / "results.db").studies[0].done == 2
        assert store_status(tmp_path / "results.db").studies[0].done == 1


# ---------------------------------------------------------------- the fronts, which load what is asked for


@pytest.mark.parametrize("front", [torchstone.bench, torchstone.bench.store])
def test_a_front_offers_all_its_names_and_no_others(front: ModuleType) -> None:
    assert set(front.__all__) <= set(dir(front))
    assert all(getattr(front, name) is not None for name in front.__all__)
    with pytest.raises(AttributeError, match=r"module 'torchstone\.bench.*' has no attribute 'Nothing'"):
        _ = front.Nothing


def test_a_front_by_itself_loads_nothing_heavy() -> None:
    code = "import sys, torchstone.bench.store.summary; print({'numpy', 'sqlalchemy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
