"""Whatever an arm does and whatever becomes of the store: what is finished stays, and one sentence says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.arms import Bad, Process, one_arm_study
from torchstone.bench import executors, worker
from torchstone.bench.result import Result
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.store import Store, sqlite
from torchstone.errors import StoreError, StudyError, TorchstoneError

ROOT = Path(__file__).parents[2]
UNPRINTABLE = "main/mine/default/1: Unprintable: "
SYS_EXIT = "main/mine/default/1: it called sys.exit(7)"
NO_MEMORY = "main/mine/default/1: MemoryError: "
OS_EXIT = "main/mine/default/1: its process ended 3 times with exit code 7: an arm must return or raise"


def run(path: Path, deed: str, **options: Any) -> Result:
    with Store.open(path) as store:
        return run_study(one_arm_study(Bad(deed)), store, Options(**options))


def finished(path: Path) -> list[tuple[str, int]]:
    with Store.open(path, read_only=True) as store:
        return [(record.arm, record.replicate) for record in store.runs(status="done")]


# ---------------------------------------------------------------- what arms do


@pytest.mark.parametrize("executor", ["inline", "process"])
@pytest.mark.parametrize(
    ("deed", "sentence"), [("unprintable", UNPRINTABLE), ("sys_exit", SYS_EXIT), ("out_of_memory", NO_MEMORY)]
)
def test_whatever_an_arm_raises_is_one_sentence(deed: str, sentence: str, executor: str, tmp_path: Path) -> None:
    result = run(tmp_path / "r.db", deed, executor=executor)
    assert result.failures == (sentence,)
    assert len(result.rows["main"]) == 1
    assert ("base", 1) in finished(tmp_path / "r.db")


def test_with_fail_fast_an_exit_is_an_error_and_not_an_exit(tmp_path: Path) -> None:
    for executor in ("inline", "process"):
        with pytest.raises(TorchstoneError, match=r"it called sys.exit\(7\)"):
            run(tmp_path / f"{executor}.db", "sys_exit", executor=executor, fail_fast=True)


@pytest.mark.parametrize("deed", ["os_exit", "fork"])
def test_an_arm_that_ends_its_process_is_given_up(deed: str, tmp_path: Path) -> None:
    events: list[Event] = []
    result = run(tmp_path / "r.db", deed, executor="process", listen=events.append)
    assert result.failures == (OS_EXIT,)
    assert ("base", 1) in finished(tmp_path / "r.db")
    assert [event.fields["error"] for event in events if event.kind == "failed"] == [OS_EXIT.partition(": ")[2]]
    assert len(run(tmp_path / "r.db", "nan", executor="process").rows["main"]) == 3  # other code, so other runs


@pytest.mark.parametrize("deed", ["thread", "child"])
def test_what_an_arm_leaves_behind_holds_nobody_up(deed: str, tmp_path: Path) -> None:
    started = time.monotonic()
    result = run(tmp_path / "r.db", deed, executor="process")
    assert len(result.rows["main"]) == 3
    assert time.monotonic() - started < executors.GRACE_S
    assert deed != "child" or "time.sleep(3600)" not in commands()


def commands() -> str:
    found = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return b"\n".join(found).decode(errors="replace")


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_a_value_that_is_nan_does_not_apply(executor: str, tmp_path: Path) -> None:
    first, again = (run(tmp_path / "r.db", "nan", executor=executor) for _ in range(2))
    assert not first.failures
    assert first.verdict_records() == again.verdict_records()
    assert (first.primary.n, first.primary.excluded) == (2, 1)
    assert first.means("main", "accuracy")["mine", "default"] == (0.9, 0.0, 2)


def test_limits_need_a_process_that_can_be_ended(tmp_path: Path) -> None:
    with Store.open(tmp_path / "r.db") as store:
        limits: list[dict[str, Any]] = [{"cell_limit": 1.0}, {"memory_limit": 2**30}]
        for limit in limits:
            with pytest.raises(StudyError, match="only a worker process can be held to cell_limit and memory_limit"):
                run_study(one_arm_study(Bad("nan")), store, Options(executor="inline", **limit))
    with Store.open(":memory:") as store:
        with pytest.raises(StudyError, match="cannot share a store in memory: name a file"):
            run_study(one_arm_study(Bad("nan")), store, Options(executor="process"))
        with pytest.raises(StudyError, match="with a file for the store"):
            run_study(one_arm_study(Bad("nan")), store, Options(cell_limit=1.0))
    mistakes: list[dict[str, Any]] = [{"cell_limit": 0.0}, {"memory_limit": -1.0}, {"executor": "ray"}, {"jobs": 0}]
    for wrong in mistakes:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**wrong)


@pytest.mark.parametrize(
    ("options", "here"),
    [
        ({}, True),
        ({"jobs": 2}, False),
        ({"jobs": 2, "executor": "inline"}, True),
        ({"executor": "process"}, False),
        ({"cell_limit": 60.0}, False),
    ],
)
def test_where_cells_are_run(options: dict[str, Any], here: bool, tmp_path: Path) -> None:
    with Store.open(tmp_path / "r.db") as store:
        result = run_study(one_arm_study(Process(), (1, 1)), store, Options(**options))
    assert (result.rows["main"][0].value("accuracy", "mine", "default") == os.getpid()) == here


def test_a_worker_is_replaced_after_some_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "CELLS_PER_PROCESS", 2)
    with Store.open(tmp_path / "r.db") as store:
        result = run_study(one_arm_study(Process(), (5, 5)), store, Options(executor="process"))
    pids = [row.value("accuracy", "mine", "default") for row in result.rows["main"]]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 1]


# ---------------------------------------------------------------- what becomes of the store


def fill_disk(store: Store) -> None:
    with store._database.begin() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def forbid_writing(store: Store) -> None:
    with store._database.begin() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")


def folder_of(store: Store) -> Path:
    return Path(store.where.removeprefix("sqlite:///")).parent


def delete(store: Store) -> None:
    for file in folder_of(store).glob("r.db*"):
        file.unlink()


def replace(store: Store) -> None:
    delete(store)
    Store.open(store.where).close()


def delete_folder(store: Store) -> None:
    shutil.rmtree(folder_of(store))


@pytest.mark.parametrize(
    ("trouble", "sentence", "saved"),
    [
        (fill_disk, r"the disk is full, so nothing was added .* what it holds is safe", ""),
        (forbid_writing, "cannot be written: make file and folder writable", ""),
        (delete, r"was deleted or replaced while it was in use; what it held is saved in .*rescued", "r.db.rescued-*"),
        (replace, r"was deleted or replaced while it was in use; what it held is saved in", "r.db.rescued-*"),
        (delete_folder, r"was deleted or replaced while it was in use; what it held is saved in", "r.db.rescued-*"),
    ],
)
def test_trouble_with_the_store_in_the_middle_of_a_study(
    trouble: Callable[[Store], None], sentence: str, saved: str, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "r.db"
    study = one_arm_study(Bad("nan"), (40, 40))

    def listen(event: Event) -> None:
        if event.kind == "replicate" and event.fields["number"] == 2:
            trouble(store)

    with Store.open(path) as store, pytest.raises(StoreError, match=sentence) as caught:
        run_study(study, store, Options(listen=listen))
    assert "\n" not in str(caught.value)
    (where,) = path.parent.glob(saved) if saved else [path]
    with Store.open(where) as store:
        done = {(record.arm, record.replicate) for record in store.runs(status="done")}
        assert {(arm, number) for arm in ("base", "mine") for number in range(3)} <= done
        assert len(run_study(study, store).rows["main"]) == 40


def test_a_store_deleted_under_workers_is_saved_once(tmp_path: Path) -> None:
    path = tmp_path / "r.db"

    def listen(event: Event) -> None:
        if event.kind == "replicate" and event.fields["number"] == 2:
            delete(store)

    with Store.open(path) as store, pytest.raises(StoreError, match="what it held is saved in"):
        run_study(one_arm_study(Bad("nan"), (400, 400)), store, Options(jobs=2, listen=listen))
    (copy,) = tmp_path.glob("r.db.rescued-*")
    assert len(finished(copy)) >= 6


def test_a_copy_that_cannot_be_made_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "r.db") as store:
        monkeypatch.setattr(sqlite, "save_copy", lambda connection, path: False)
        delete(store)
        with pytest.raises(StoreError, match="while it was in use; what it held is lost"):
            store.add_study("s", {})


def test_a_store_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    run(path, "nan")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"is damaged \(.*\): rescue it with"):
        run(path, "nan")


def test_a_log_cut_short_keeps_what_was_whole(tmp_path: Path) -> None:
    path, copy = tmp_path / "r.db", tmp_path / "copy.db"
    with Store.open(path) as store:
        run_study(one_arm_study(Bad("nan"), (40, 40)), store)
        for name in ("", "-wal"):  # as a power cut leaves them
            shutil.copy(f"{path}{name}", f"{copy}{name}")
    with open(f"{copy}-wal", "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) * 2 // 3)
    before = finished(copy)
    assert 0 < len(before) < 80
    with Store.open(copy) as store:
        assert len(run_study(one_arm_study(Bad("nan"), (40, 40)), store).rows["main"]) == 40


def test_a_heartbeat_that_cannot_be_written_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> int:
        beats.append(threading.current_thread())
        raise StoreError("locked")

    beats: list[threading.Thread] = []
    monkeypatch.setattr(worker, "LEASE_S", 0.03)
    monkeypatch.setattr(Store, "renew", fail)
    monkeypatch.setattr(Bad, "nan", lambda self: time.sleep(0.2))
    assert len(run(tmp_path / "r.db", "nan").rows["main"]) == 3
    assert len(beats) > 1


# ---------------------------------------------------------------- clocks and forks


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_loses_nothing(jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, shift = time.time, [0.0]
    monkeypatch.setattr("torchstone.bench.store.database.time.time", lambda: real() + shift[0])

    def jumping(self: Bad) -> None:
        shift[0] += jump

    monkeypatch.setattr(Bad, "nan", jumping)
    first = run(tmp_path / "r.db", "nan")
    assert len(first.rows["main"]) == 3
    assert all(record.wall_s >= 0 for record in first.runs)
    assert run(tmp_path / "r.db", "nan").verdict_records() == first.verdict_records()


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_leases_survive_a_clock_that_jumps(jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bench.runs import planned, specs
    from torchstone.bench.outcome import Outcome
    from torchstone.bench.store.owner import owner_id

    real, shift = time.time, [0.0]
    monkeypatch.setattr("torchstone.bench.store.database.time.time", lambda: real() + shift[0])
    host, pid, _ = owner_id().split(":")
    with Store.open(tmp_path / "r.db") as store:
        held, orphan = planned(store, specs(2))
        assert store.claim([held], owner_id()) == [held]
        assert store.claim([orphan], f"{host}:{pid}:1") == [orphan]  # of a process that is gone
        shift[0] = jump
        assert store.claim([orphan], "other") == [orphan]  # at once, whatever its lease says
        stolen = store.claim([held], "other")
        assert stolen == ([held] if jump > 0 else [])  # a lease that has run out for all that can be seen
        for owner in (owner_id(), "other"):
            store.finish(held, owner, Outcome({"owner": float(owner == "other")}), wall_s=1, cpu_s=1)
        assert store.outcomes([held])[held].values == {"owner": float(jump > 0)}  # recorded once, by whoever held it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_store_used_after_a_fork_is_refused_and_unharmed(tmp_path: Path) -> None:
    code = """
import os, sys
from torchstone.bench.store import Store
store = Store.open(sys.argv[1])
store.add_study("s", {})
if os.fork() == 0:
    try:
        store.add_study("t", {})
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    store.close()
    os._exit(0)
os.wait()
print([record.name for record in store.studies()])
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tmp_path / "r.db")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    refused, known = done.stdout.splitlines()
    assert refused.startswith("StoreError the store sqlite:///")
    assert refused.endswith("was opened in another process: open it again in this one")
    assert known == "['s']"
