from __future__ import annotations

import csv
import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bench.runs import finished, planned, specs
from torchstone.bench.environment import environment, environment_id
from torchstone.bench.outcome import Outcome
from torchstone.bench.store import Store, owner_id
from torchstone.errors import StoreError

# ---------------------------------------------------------------- planning


def test_a_study_has_the_same_id_for_the_same_statement(store: Store) -> None:
    first = store.add_study("s", {"claims": ["a"], "seed": 0})
    assert store.add_study("s", {"seed": 0, "claims": ["a"]}) == first
    assert store.add_study("s", {"seed": 1, "claims": ["a"]}) != first != store.add_study("t", {"seed": 0})


def test_planning_again_adds_only_what_is_new(store: Store) -> None:
    study_id = store.add_study("s", {})
    assert store.plan(specs(3), study_id=study_id) == 3
    assert store.plan([*specs(5), *specs(1)], study_id=study_id) == 2
    assert store.plan([], study_id=study_id) == 0
    assert store.states([*(spec.run_id for spec in specs(5)), "0" * 32]) == {s.run_id: "planned" for s in specs(5)}


def test_more_runs_than_a_query_takes(store: Store) -> None:
    runs = specs(1201)
    ids = planned(store, runs)
    assert store.plan(runs, study_id=store.add_study("s", {})) == 0
    assert store.claim(ids, "me") == ids
    assert set(store.states(ids).values()) == {"running"}
    assert store.release(ids, "me") == 1201
    assert [record.run_id for record in store.records(reversed(ids))] == ids[::-1]


def test_a_plan_needs_its_study(store: Store) -> None:
    with pytest.raises(StoreError, match="no study with id 'nowhere'"):
        store.plan(specs(), study_id="nowhere")


def test_two_runs_with_one_id_are_refused(store: Store) -> None:
    ids = planned(store, specs(1))
    impostor = replace(specs(1)[0], arm="other")
    vars(impostor)["run_id"] = ids[0]
    with pytest.raises(StoreError, match=f"run {ids[0]} is stored as"):
        planned(store, [impostor])


# ---------------------------------------------------------------- leases


def test_a_run_belongs_to_one_owner(store: Store) -> None:
    a, b, c, d = ids = planned(store, specs())
    assert store.claim([b, a, b, "unknown"], "me") == [b, a]
    assert store.claim(ids, "you") == [c, d]
    assert store.claim(ids, "me") == []
    assert not store.finish(c, "me", Outcome(), wall_s=1, cpu_s=1)
    assert not store.fail(c, "me", "no")
    assert store.release(ids, "me") == 2
    assert store.states(ids) == {a: "planned", b: "planned", c: "running", d: "running"}


def test_what_is_done_is_never_taken_again(store: Store) -> None:
    ids = finished(store, specs(2), Outcome({"a": 1.0}))
    assert store.claim(ids, "you", lease_s=0) == []
    assert not store.finish(ids[0], "me", Outcome({"a": 2.0}), wall_s=1, cpu_s=1)
    assert not store.fail(ids[0], "me", "late")
    assert store.outcomes(ids)[ids[0]].values == {"a": 1.0}


def test_a_killed_run_is_free_when_its_lease_ends(store: Store) -> None:
    ids = planned(store, specs(2))
    store.claim(ids, "dead", lease_s=0)
    assert store.claim(ids, "me") == ids
    assert [record.attempts for record in store.records(ids)] == [2, 2]
    assert not store.finish(ids[0], "dead", Outcome({"a": 1.0}), wall_s=1, cpu_s=1)
    assert store.outcomes(ids) == {}
    assert store.finish(ids[0], "me", Outcome({"a": 2.0}), wall_s=1, cpu_s=1)


def test_a_lease_that_is_renewed_holds(store: Store) -> None:
    ids = planned(store, specs(2))
    store.claim(ids, "me", lease_s=0)
    assert store.renew(ids, "me", 60) == 2
    assert store.claim(ids, "you") == []
    assert store.renew(ids, "you", 60) == 0


def test_a_failed_run_is_taken_when_asked_again(store: Store) -> None:
    ids = planned(store, specs(1))
    store.claim(ids, "me")
    assert store.fail(ids[0], "me", ValueError("bad lr"))
    record = store.records(ids)[0]
    assert (record.status, record.error_type, record.error_text) == ("failed", "ValueError", "bad lr")
    assert store.outcomes(ids) == {}
    assert store.claim(ids, "you") == ids
    assert store.records(ids)[0].error_text == ""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("worker was killed", "", "worker was killed"),
        (Unprintable(), "Unprintable", ""),
        (ValueError("nul \0, lone \udc80"), "ValueError", "nul , lone ?"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
    ],
)
def test_any_error_can_be_stored(error: Any, kind: str, text: str, store: Store) -> None:
    ids = planned(store, specs(1))
    store.claim(ids, "me")
    assert store.fail(ids[0], "me", error)
    record = store.records(ids)[0]
    assert (record.error_type, record.error_text) == (kind, text)


def test_long_errors_keep_head_and_tail(store: Store) -> None:
    ids = planned(store, specs(1))
    store.claim(ids, "me")
    store.fail(ids[0], "me", ValueError("head" + "x" * 10**6 + "tail"), traceback="there" + "y" * 10**6)
    record = store.records(ids)[0]
    assert record.error_text.startswith("head")
    assert record.error_text.endswith("tail")
    assert record.traceback.startswith("there")
    assert len(record.error_text) + len(record.traceback) < 25_000


def test_a_traceback_is_kept(store: Store) -> None:
    ids = planned(store, specs(1))
    store.claim(ids, "me")
    try:
        raise ValueError("here")
    except ValueError as error:
        store.fail(ids[0], "me", error)
    assert "test_a_traceback_is_kept" in store.records(ids)[0].traceback


# ---------------------------------------------------------------- outcomes


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and np.array_equal(a, b, equal_nan=True)


def assert_equal(a: Outcome, b: Outcome) -> None:
    assert (a.objective, a.diverged) == (b.objective, b.diverged)
    for mine, theirs in ((a.values, b.values), (a.cost, b.cost)):
        assert mine.keys() == theirs.keys()
        assert all(same(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(),
        Outcome({"accuracy": 0.1 + 0.2, "a b": math.nan, "ünï": -0.0}, objective=1e-300, cost={"steps": 10}),
        Outcome({"steps": 1.0}, cost={"steps": 2.0, "bytes": math.nan, "flops": math.inf}),
        Outcome({"w": np.array([0.1, math.nan, 1e300]), "empty": np.array([]), "exact": np.array([0.5, 1])}),
        Outcome(objective=-math.inf, diverged="loss is nan at step 3"),
        Outcome(objective=math.nan),
    ],
)
def test_an_outcome_comes_back_as_it_was(outcome: Outcome, store: Store) -> None:
    run_id = finished(store, specs(1), outcome)[0]
    assert_equal(store.outcomes([run_id])[run_id], outcome)


numbers = st.floats(allow_infinity=False)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), numbers | st.lists(numbers).map(np.array)))
def test_all_values_come_back_as_they_were(values: dict[str, Any]) -> None:
    with Store.open(":memory:") as store:
        run_id = finished(store, specs(1), Outcome(values))[0]
        assert_equal(store.outcomes([run_id])[run_id], Outcome(values))


def test_outcomes_hold_what_is_done_in_the_order_asked(store: Store) -> None:
    ids = finished(store, specs(2), Outcome({"a": 1.0}))
    open_ids = planned(store, specs(3))
    assert list(store.outcomes([open_ids[2], ids[1], "unknown", ids[0]])) == [ids[1], ids[0]]


def test_curves_come_back_as_they_were(store: Store) -> None:
    curves = {"loss": [(0, 0.1), (10**12, math.nan), (5, math.inf), (6, 1e300)], "half": [(1, 0.5)], "none": []}
    a, b = finished(store, specs(2), Outcome({"loss": np.array([1.0])}), curves=curves)
    found = store.curves([a, b])
    assert found[a].keys() == curves.keys() == found[b].keys()
    for name, points in curves.items():
        steps, values = found[a][name]
        assert steps.dtype == np.int64
        assert np.array_equal(steps, [step for step, _ in points])
        assert np.array_equal(values, [value for _, value in points], equal_nan=True)
    assert store.curves([]) == {}


# ---------------------------------------------------------------- reading


def test_a_record_tells_all(store: Store) -> None:
    spec = replace(specs(1)[0], kind="hpo", attempt=2, seed=7, data="d", fingerprint="f", stacked=10)
    finished(
        store,
        [spec],
        Outcome({"a": 1.0, "w": np.ones(2)}, objective=0.5, cost={"steps": 3}),
        shared_s=0.25,
        peak_rss=2**33,
        device="cuda:0",
    )
    record = store.records([spec.run_id])[0]
    for name in ("run_id", "study", "experiment", "arm", "case", "replicate", "scale", "kind", "attempt", "seed"):
        assert getattr(record, name) == getattr(spec, name)
    assert (record.data, record.fingerprint, record.stacked, record.cell) == ("d", "f", 10, spec.cell)
    assert record.hyper == {"lr": 0.1}
    assert record.setting["epochs"] == 3
    assert (record.wall_s, record.cpu_s, record.shared_s) == (2.0, 1.5, 0.25)
    assert (record.peak_rss, record.device, record.objective) == (2**33, "cuda:0", 0.5)
    assert (record.owner, record.pid, record.attempts) == ("me", os.getpid(), 1)
    assert record.values["a"] == 1.0
    assert record.values["w"].tolist() == [1, 1]
    assert record.cost == {"steps": 3.0}
    assert record.started is not None
    assert record.ended is not None
    assert record.planned <= record.started <= record.ended
    assert store.environments()[record.env_id] == environment()
    assert record.env_id == environment_id()


def test_runs_can_be_filtered(store: Store) -> None:
    finished(store, specs(2), Outcome({"a": 1.0}))
    planned(store, [*specs(3, kind="hpo"), *specs(1, scale="paper"), *specs(1, study="t", arm="b")])
    assert len(store.runs()) == 7
    assert len(store.runs(study="s")) == 6
    assert len(store.runs(study="s", scale="bench", kind="hpo", status="planned")) == 3
    assert [run.values for run in store.runs(status="done")] == [{"a": 1.0}] * 2
    assert store.runs(study="unknown") == []


def test_the_summary_counts_by_study_and_scale(store: Store) -> None:
    assert store.summary() == []
    finished(store, specs(2), Outcome())
    ids = planned(store, specs(6))
    store.claim(ids[2:4], "me")
    store.fail(ids[2], "me", "no")
    planned(store, specs(3, scale="smoke", study="a"))
    first, second = store.summary()
    assert (first.study, first.scale, first.planned, first.total, first.last_end) == ("a", "smoke", 3, 3, None)
    assert (second.planned, second.running, second.done, second.failed) == (2, 1, 2, 1)
    assert second.wall_s == 4.0
    assert second.last_end == max(run.ended or 0.0 for run in store.runs(study="s"))


def test_verdicts_are_logged_in_order(store: Store) -> None:
    study_id = store.add_study("s", {})
    store.log_verdicts(study_id, [])
    store.log_verdicts(
        study_id, [{"claim": "a", "verdict": "refuted", "p": 0.1}, {"claim": "b", "interval": [0, None]}]
    )
    store.log_verdicts(study_id, [{"claim": "a", "verdict": "reproduced"}])
    log = store.verdicts(study_id)
    assert [(entry["claim"], entry.get("verdict")) for entry in log] == [
        ("a", "refuted"),
        ("b", None),
        ("a", "reproduced"),
    ]
    assert log[0]["at"] == log[1]["at"] <= log[2]["at"]
    assert store.verdicts("another") == []
    with pytest.raises(StoreError, match="failed"):
        store.log_verdicts("another", [{"claim": "a"}])


def test_the_table_of_all_runs(store: Store, tmp_path: Path) -> None:
    finished(store, specs(1), Outcome({"a": math.nan, "w": np.array([1.0, 2.0])}, objective=-math.inf, cost={"n": 3}))
    ids = planned(store, specs(3))
    store.claim(ids[1:2], "me")
    store.fail(ids[1], "me", ValueError('a "quoted", long\nreason'))
    finished(store, specs(1, study="t"), Outcome(diverged="nan"))
    path = tmp_path / "out" / "table.csv"
    assert store.export(path, study="s") == 9
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    table = {(line["what"], line["metric"], line["element"]): line["value"] for line in lines}
    assert table["value", "a", ""] == "nan"
    assert (table["value", "w", "0"], table["value", "w", "1"]) == ("1.0", "2.0")
    assert (table["cost", "n", ""], table["objective", "objective", ""]) == ("3.0", "-inf")
    assert table["seconds", "wall_s", ""] == "2.0"
    assert [line["error"] for line in lines if line["status"] == "failed"] == ['ValueError: a "quoted", long\nreason']
    path = tmp_path / "table.jsonl"
    assert store.export(path, format="jsonl") == 12
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["value"] for row in rows if row["metric"] == "a"] == [None]
    assert {row["diverged"] for row in rows if row["study"] == "t"} == {"nan"}
    assert sorted(p.name for p in tmp_path.iterdir() if "table" in p.name) == ["table.jsonl"]


def test_a_table_that_cannot_be_written_is_one_sentence(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be one of 'csv', 'jsonl', but is 'xlsx'"):
        store.export(tmp_path / "a", format="xlsx")
    with pytest.raises(StoreError, match="the table cannot be written"):
        store.export(tmp_path)


# ---------------------------------------------------------------- sharing


def test_a_store_is_found_again(where: str) -> None:
    with Store.open(where) as store:
        ids = finished(store, specs(2), Outcome({"a": 1.0}))
        again = store.where
    with Store.open(again) as store:
        assert len(store.outcomes(ids)) == 2
    with Store.open(again, read_only=True) as store:
        assert len(store.outcomes(ids)) == 2
        with pytest.raises(StoreError, match="opened for reading only"):
            store.release(ids, "me")


def test_a_reader_does_not_wait_for_a_writer(store: Store) -> None:
    ids = finished(store, specs(1), Outcome({"a": 1.0}))
    with store._database.begin(write=True) as connection, Store.open(store.where, read_only=True) as reader:
        connection.exec_driver_sql("DELETE FROM metric")
        assert reader.outcomes(ids)[ids[0]].values == {"a": 1.0}


def test_a_writer_does_not_wait_for_a_reader(store: Store) -> None:
    ids = finished(store, specs(1), Outcome({"a": 1.0}))
    with Store.open(store.where, read_only=True) as reader, reader._database.begin() as connection:
        assert len(connection.exec_driver_sql("SELECT id FROM run").all()) == 1
        assert planned(store, specs(2))[:1] == ids


def test_threads_may_share_a_store(store: Store) -> None:
    ids = planned(store, specs(40))
    taken: list[str] = []

    def work(owner: str) -> None:
        for i in range(0, 40, 4):
            got = store.claim(ids[i : i + 4], owner)
            taken.extend(run_id for run_id in got if store.finish(run_id, owner, Outcome(), wall_s=0, cpu_s=0))

    threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


def test_a_failed_transaction_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = planned(store, specs(1))
    store.claim(ids, "me")
    double = [{"run_id": ids[0], "kind": "value", "name": "a", "value": 1.0, "status": "ok"}] * 2
    monkeypatch.setattr("torchstone.bench.store.store.metric_rows", lambda run_id, outcome: double)
    with pytest.raises(StoreError, match="failed"):
        store.finish(ids[0], "me", Outcome(), wall_s=1, cpu_s=1)
    monkeypatch.undo()
    assert store.states(ids) == {ids[0]: "running"}
    assert store.finish(ids[0], "me", Outcome({"a": 1.0}), wall_s=1, cpu_s=1)
    assert set(store.environments()) == {environment_id()}


def test_the_owner_is_this_process() -> None:
    assert owner_id() == owner_id()
    assert f":{os.getpid()}:" in owner_id()


# ---------------------------------------------------------------- statements and derived values


def test_statements_come_in_the_order_in_which_they_were_last_judged(store: Store) -> None:
    first, second = store.add_study("s", {"a": 1}), store.add_study("s", {"a": 2})
    assert [(record.study_id, record.name, record.stated) for record in store.studies()] == [
        (first, "s", {"a": 1}),
        (second, "s", {"a": 2}),
    ]
    store.log_verdicts(first, [{"verdict": "reproduced"}])
    assert [record.study_id for record in store.studies()] == [second, first]


def test_derived_values_are_replaced_and_belong_to_a_statement(store: Store) -> None:
    first, second = store.add_study("s", {"a": 1}), store.add_study("s", {"a": 2})
    store.keep_derived(first, "main", 0, {"slope": 1.0})
    store.keep_derived(first, "main", 0, {"slope": 2.5, "none": math.nan})
    store.keep_derived(first, "other", 3, {})
    found = store.derived(first)
    assert found.keys() == {("main", 0), ("other", 3)}
    assert found["main", 0]["slope"] == 2.5
    assert math.isnan(found["main", 0]["none"])
    assert store.derived(second) == {}
