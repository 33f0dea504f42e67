"""Several processes on one store: nothing twice, nothing lost, whoever is killed when."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import torchstone
from tests.bench.runs import planned, specs
from torchstone.bench.store import Store
from torchstone.bench.store import owner as module
from torchstone.bench.store.owner import is_gone, owner_id

HEAD = """
import sys, time
from torchstone.bench.store import Store, owner_id
from torchstone.bench.outcome import Outcome
path, *ids = sys.argv[1:]
def say(*words):
    print(*words, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python processes that use a store; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, path: Path, *ids: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "PYTHONPATH": str(Path(torchstone.__file__).parents[1])}
        command = [sys.executable, "-c", HEAD + code, str(path), *ids]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_two_processes_share_200_runs_without_overlap(path: Path, start: Start) -> None:
    with Store.open(path) as store:
        ids = planned(store, specs(200))
    code = """
with Store.open(path) as store:
    say("ready")
    got = [run for i in range(0, len(ids), 5) for run in store.claim(ids[i:i + 5], owner_id())]
    say(*got)
    time.sleep(60)
"""
    workers = [start(code, path, *order) for order in (ids, ids[::-1])]
    for worker in workers:
        assert line(worker) == ["ready"]
    shares = [line(worker) for worker in workers]
    assert not set(shares[0]) & set(shares[1])
    assert {*shares[0], *shares[1]} == set(ids)


def test_a_new_store_may_be_made_by_several_at_once(path: Path, start: Start) -> None:
    code = "with Store.open(path) as store: say(store.add_study('s', {}))"
    workers = [start(code, path) for _ in range(3)]
    assert len({line(worker)[0] for worker in workers}) == 1
    assert [worker.wait() for worker in workers] == [0] * 3


def test_the_runs_of_a_killed_process_are_free_at_once(path: Path, start: Start) -> None:
    with Store.open(path) as store:
        ids = planned(store, specs(3))
        code = "with Store.open(path) as store: say(*store.claim(ids, owner_id(), lease_s=3600)); time.sleep(60)"
        worker = start(code, path, *ids)
        assert line(worker) == ids
        assert store.claim(ids, owner_id()) == []  # alive, so they are its own
        worker.kill()
        deadline = time.monotonic() + 20
        while store.claim(ids[:1], owner_id()) == []:  # killed, though nobody has waited for it yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker.wait()
        assert store.claim(ids, owner_id()) == ids[1:]


def test_a_kill_at_any_instant_loses_at_most_the_run_in_flight(path: Path, start: Start) -> None:
    code = """
with Store.open(path) as store:
    for run in store.claim(ids, owner_id()):
        say(run)
        values = {f"m{i}": float(i) for i in range(20)}
        store.finish(run, owner_id(), Outcome(values), wall_s=1, cpu_s=1, curves={"loss": [(0, 1.0)]})
"""
    with Store.open(path) as store:
        ids = planned(store, specs(60))
        for kills in range(2):
            worker = start(code, path, *ids)
            begun = [line(worker)[0] for _ in range(7 + 5 * kills)]
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
            states = store.states(ids)
            assert all(states[run_id] == "done" for run_id in begun[:-1])
            done = [run_id for run_id in ids if states[run_id] == "done"]
            assert all(len(outcome.values) == 20 for outcome in store.outcomes(done).values())
            assert len(store.curves(done)) == len(done)
        worker = start(code, path, *ids)
        assert worker.wait() == 0
        assert set(store.states(ids).values()) == {"done"}
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM metric").fetchone() == (60 * 20,)
    connection.close()


def test_eight_processes_finish_runs_without_a_lock_error(path: Path, start: Start) -> None:
    code = """
with Store.open(path) as store:
    mine = store.claim(ids, owner_id())
    say(*(store.finish(run, owner_id(), Outcome({"a": 1.0}), wall_s=0, cpu_s=0) for run in mine))
"""
    with Store.open(path) as store:
        ids = planned(store, specs(200))
        workers = [start(code, path, *ids[i::8]) for i in range(8)]
        assert [line(worker) for worker in workers] == [["True"] * 25] * 8
        assert [worker.wait() for worker in workers] == [0] * 8
        assert set(store.states(ids).values()) == {"done"}


# ---------------------------------------------------------------- owners


def test_an_owner_is_gone_only_if_that_is_sure() -> None:
    host, pid, started = owner_id().split(":")
    assert not is_gone(owner_id())
    assert is_gone(f"{host}:{pid}:{int(started) + 1}")  # the number belongs to another process now
    assert is_gone(f"{host}:{2**22 + 1}:5")
    assert not is_gone(f"elsewhere:{2**22 + 1}:5")
    assert not any(is_gone(owner) for owner in ("", "me", host, f"{host}:x:y", f"{host}:1"))


@pytest.mark.skipif(os.name != "posix", reason="asks with a signal")
def test_without_proc_a_process_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PROC", tmp_path)
    assert owner_id().endswith(f":{os.getpid()}:0")
    assert not is_gone(owner_id())
    assert not is_gone(owner_id().replace(f":{os.getpid()}:", ":1:"))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert is_gone(owner_id().replace(f":{os.getpid()}:", f":{child.pid}:"))
