"""Real signals to a real driver with real workers: nothing finished is lost, nothing is recorded twice."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.arms import slow_study
from tests.bench.driver import driving, wait_for, workers_of
from torchstone.bench.runner import run_study
from torchstone.bench.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """In this block, who loses its parent becomes our child, so that its exit code is seen."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(set_child_subreaper, 1)
    try:
        yield
    finally:
        prctl(set_child_subreaper, 0)


def statuses(path: Path) -> list[str]:
    with Store.open(path, read_only=True) as store:
        return [run.status for run in store.runs()]


def test_one_interrupt_lets_running_cells_finish(tmp_path: Path) -> None:
    store, begun = tmp_path / "r.db", tmp_path / "begun"
    with driving(store, 20, 0.8, TORCHSTONE_TEST_BEGUN=str(begun)) as driver:
        wait_for(lambda: len(lines(begun)) >= 2)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        _, errors = driver.communicate(timeout=30)
    assert driver.returncode in (-signal.SIGINT, 130)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert len(lines(begun)) == 4  # two cells of two arms
    assert statuses(store) == ["done"] * 4


def test_two_interrupts_stop_at_once(tmp_path: Path) -> None:
    store, begun = tmp_path / "r.db", tmp_path / "begun"
    with driving(store, 20, 60.0, TORCHSTONE_TEST_BEGUN=str(begun)) as driver:
        wait_for(lambda: len(lines(begun)) >= 2)
        workers = [int(line.split()[0]) for line in lines(begun)]
        os.killpg(driver.pid, signal.SIGINT)
        time.sleep(0.3)
        assert driver.poll() is None
        os.killpg(driver.pid, signal.SIGINT)
        os.killpg(driver.pid, signal.SIGINT)  # an impatient third changes nothing
        driver.communicate(timeout=8)
    assert not any(alive(pid) for pid in workers)
    with Store.open(store) as opened:
        ids = [run.run_id for run in opened.runs()]
        assert opened.claim(ids, "me") == ids  # nobody holds them any more


def test_a_worker_whose_driver_was_killed_stores_its_run_and_ends_quietly(tmp_path: Path) -> None:
    store, begun = tmp_path / "r.db", tmp_path / "begun"
    with driving(store, 20, 0.8, TORCHSTONE_TEST_BEGUN=str(begun)) as driver:
        wait_for(lambda: len(lines(begun)) >= 2)
        workers = [int(line.split()[0]) for line in lines(begun)]
        with adopting_orphans():
            driver.kill()
            driver.wait()
            assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers] == [0, 0]
    assert statuses(store).count("done") == 2
    assert "running" not in statuses(store)
    assert len(lines(begun)) == 2  # no worker began another


def survive(tmp_path: Path, replicates: int, kills: int, pause: float) -> None:
    """Kill workers and drivers at random, begin again, and compare with a run that nobody disturbed."""
    store, calm, chance = tmp_path / "r.db", tmp_path / "calm", random.Random(0)
    seconds = 2.0  # so that the last kill comes before the last trial
    victims = [chance.choice(["driver", "worker"]) for _ in range(kills)]
    while victims:
        with driving(store, replicates, seconds, TORCHSTONE_TEST_CALM=str(calm)) as driver:
            while victims and driver.poll() is None:
                time.sleep(chance.uniform(0.0, pause))
                found = [driver.pid] if victims[-1] == "driver" else workers_of(driver.pid)
                if found and driver.poll() is None:
                    os.kill(chance.choice(found), signal.SIGKILL)
                    if victims.pop() == "driver":
                        driver.wait()
            assert not victims or driver.returncode != 0  # 1 after three deaths in one cell, which is then given up
    calm.touch()
    errors = ""
    for _ in range(3):
        with driving(store, replicates, seconds, TORCHSTONE_TEST_CALM=str(calm)) as driver:
            _, errors = driver.communicate(timeout=120)
        if driver.returncode == 0:
            break
    assert errors == ""
    with Store.open(store) as opened, Store.open(":memory:") as fresh:
        study = slow_study(replicates, 0.0)
        killed_often = run_study(slow_study(replicates, seconds), opened)
        undisturbed = run_study(study, fresh)
        assert [row.outcomes for row in killed_often.rows["main"]] == [row.outcomes for row in undisturbed.rows["main"]]
        assert killed_often.verdict_records() == undisturbed.verdict_records()
        assert opened.summary()[0].total == opened.summary()[0].done == 2 * replicates
    connection = sqlite3.connect(store)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*), count(DISTINCT run_id) FROM metric").fetchone() == (2 * replicates,) * 2
    connection.close()


def test_random_kills_end_in_the_table_of_an_undisturbed_run(tmp_path: Path) -> None:
    survive(tmp_path, replicates=6, kills=6, pause=1.0)


@pytest.mark.nightly
def test_fifty_random_kills_in_a_study_of_sixty_trials(tmp_path: Path) -> None:
    survive(tmp_path, replicates=30, kills=50, pause=1.5)
