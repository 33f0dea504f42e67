"""What runs said, runs by name, and how long runs take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.runs import finished, planned, specs
from tests.bench.store.test_store_errors import sql
from torchstone.bench.outcome import Outcome
from torchstone.bench.store import Store
from torchstone.errors import UnknownNameError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def test_what_a_run_said_comes_back(store: Store) -> None:
    quiet, loud = finished(store, specs(1), Outcome()) + finished(store, specs(1, arm="b"), Outcome(), text="a\nb\0\n")
    assert store.log_text(loud) == "a\nb\n"
    assert store.log_text(quiet) == store.log_text("unknown") == ""


def test_a_failed_run_ends_with_its_traceback_and_begins_anew(store: Store) -> None:
    ids = planned(store, specs(3))
    store.claim(ids, "me")
    assert store.fail(ids[0], "me", "killed", text="last words")
    assert store.fail(ids[1], "me", ValueError("bad lr"), text="said\n")
    assert store.fail(ids[2], "me", "lost", traceback="here\nlost\n")
    assert store.log_text(ids[0]) == "last words\nkilled"
    assert store.log_text(ids[1]) == "said\nValueError: bad lr\n"
    assert store.log_text(ids[2]) == "here\nlost\n"
    store.claim(ids, "you")
    assert {store.log_text(run_id) for run_id in ids} == {""}
    assert store.finish(ids[1], "you", Outcome(), wall_s=1, cpu_s=1, text="now")
    assert store.log_text(ids[1]) == "now"


def test_who_lost_the_lease_says_nothing(store: Store) -> None:
    ids = planned(store, specs(1))
    store.claim(ids, "me")
    assert not store.finish(ids[0], "you", Outcome(), wall_s=1, cpu_s=1, text="x")
    assert not store.fail(ids[0], "you", "no", text="x")
    assert store.log_text(ids[0]) == ""


def test_a_store_older_than_the_table_of_texts(path: Path) -> None:
    with Store.open(path) as store:
        finished(store, specs(1), Outcome({"a": 1.0}))
    sql(path, "DROP TABLE log")
    run_id = specs(1)[0].run_id
    with Store.open(path, read_only=True) as store:
        assert store.log_text(run_id) == ""
        assert store.outcomes([run_id])[run_id].values == {"a": 1.0}
    with Store.open(path) as store:
        (other,) = finished(store, specs(1, arm="b"), Outcome(), text="heard")
        assert store.log_text(other) == "heard"


def test_runs_are_found_by_the_beginning_of_their_id(store: Store) -> None:
    ids = planned(store, specs(300))
    assert [run.run_id for run in store.find_runs(ids[7])] == [ids[7]]
    assert [run.run_id for run in store.find_runs(ids[7][:12].upper())] == [ids[7]]
    assert {run.run_id for run in store.find_runs(ids[7][:4])} == {i for i in ids if i.startswith(ids[7][:4])}
    assert store.find_runs("nothing here") == store.find_runs("%%%%") == []
    for short in ("", "abc", ids[7][:3]):
        with pytest.raises(UnknownNameError, match="at least 4 characters of its id, or study/experiment/arm/case"):
            store.find_runs(short)


def test_runs_are_found_by_name(store: Store) -> None:
    first = specs(2)
    planned(store, [*first, *specs(1, arm="a/b", case="c/d"), *specs(1, scale="paper"), *specs(1, kind="hpo")])
    assert [run.run_id for run in store.find_runs("s/main/ce/40%/1")] == [first[1].run_id]
    assert [run.run_id for run in store.find_runs("main/ce/40%/1")] == [first[1].run_id]
    assert {(run.scale, run.kind) for run in store.find_runs("s/main/ce/40%/0")} == {
        ("bench", "trial"),
        ("paper", "trial"),
        ("bench", "hpo"),
    }
    assert len(store.find_runs("main/a/b/c/d/0")) == 1
    for nothing in ("t/main/ce/40%/1", "main/ce", "s/main/ce/40%/" + "9" * 30, "s/main/ce/40%/²"):
        assert store.find_runs(nothing) == []


def test_mean_seconds_are_those_of_finished_runs_of_any_code(store: Store) -> None:
    finished(store, specs(2), Outcome(), wall_s=1.0, shared_s=0.5)
    finished(store, [replace(spec, fingerprint="older") for spec in specs(1)], Outcome(), wall_s=4.0)
    finished(store, specs(1, kind="hpo"), Outcome(), wall_s=9.0)
    finished(store, specs(1, scale="paper"), Outcome(), wall_s=99.0)
    planned(store, specs(9, arm="b"))
    assert store.mean_seconds("s", "bench") == {
        ("trial", "main", "ce", "40%"): pytest.approx((1.5 + 1.5 + 4.0) / 3),
        ("hpo", "main", "ce", "40%"): 9.0,
    }
    assert store.mean_seconds("t", "bench") == {}
