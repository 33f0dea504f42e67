from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Normal, two_arm_study
from torchstone.bench import Arm, Cell, Experiment, Higher, Outcome, Study
from torchstone.bench.executors import Processes, Recipe
from torchstone.bench.identity import RunSpec
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.store import Store
from torchstone.errors import DivergedError, StudyError

ROOT = Path(__file__).parents[2]
PATHS = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Once:
    """An arm that does something terrible the first time it is called in a case, and works from then on."""

    folder: str
    deed: str
    always: bool = False

    def __call__(self, cell: Cell) -> Outcome:
        flag = Path(self.folder) / f"{cell.replicate}"
        if cell.replicate == 1 and (self.always or not flag.exists()):
            flag.touch()
            if self.deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.deed == "sleep":
                time.sleep(60)
            if self.deed == "raise":
                raise Unpicklable(lambda: None)
            if self.deed == "diverge":
                raise DivergedError("loss became nan")
            if self.deed == "cheat":
                return None  # pyright: ignore[reportReturnType]
        return Outcome({"accuracy": 0.9})


class Unpicklable(Exception):
    """An error that cannot be sent to another process."""


@dataclass(frozen=True)
class Hungry:
    """An arm that takes memory until it is stopped."""

    def __call__(self, cell: Cell) -> Outcome:
        block = bytearray(600 * 2**20)
        for place in range(0, len(block), 4096):
            block[place] = 1
        time.sleep(60)
        return Outcome({"accuracy": float(len(block))})


def study(run: Any, replicates: tuple[int, int] = (3, 3)) -> Study:
    arms = {"base": Arm(Normal(0.5)), "mine": Arm(run)}
    return Study(
        "s", (Experiment("main", arms, (Higher("accuracy", "mine", 0.5, primary=True),), replicates=replicates),)
    )


def values(result) -> list[tuple[int, str, float]]:
    return [
        (r, arm, value)
        for r, arm, value in zip(*(result.to_pandas()[c] for c in ("replicate", "arm", "value")), strict=True)
    ]


def run(study: Study, path: Path, **options: Any):
    with Store.open(path) as store:
        return run_study(study, store, Options(**{"jobs": 2, **options}))


def test_processes_give_the_table_of_one_process(tmp_path: Path) -> None:
    events: list[Event] = []
    fake = two_arm_study(0.6, 0.5, sd=0.3, tuned=True, cases=("x", "y"))
    many = run(fake, tmp_path / "many.db", listen=events.append)
    one = run(fake, tmp_path / "one.db", jobs=1)
    assert values(many) == values(one)
    assert many.verdict_records() == one.verdict_records()
    assert many.tunings == one.tunings
    assert [event.kind for event in events].count("run") >= 2 * 2 * len(many.rows["main"])


@pytest.mark.parametrize("deed", ["kill", "diverge"])
def test_a_killed_worker_costs_its_cell_a_second_start(tmp_path: Path, deed: str) -> None:
    result = run(study(Once(str(tmp_path), deed)), tmp_path / "r.db")
    assert not result.failures
    assert len(result.rows["main"]) == 3
    assert len(result.runs) == 6
    assert {record.status for record in result.runs} == {"done"}
    assert bool(result.rows["main"][1].diverged("mine", "default")) == (deed == "diverge")


def test_a_cell_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    result = run(study(Once(str(tmp_path), "kill", always=True)), tmp_path / "r.db")
    assert result.failures == (
        "main/mine/default/1: its process was killed 3 times by SIGKILL, perhaps for want of memory: "
        "fewer jobs need less",
    )
    assert result.stopped["main"] == "replicate 1 failed"
    failed = [record for record in result.runs if record.status == "failed"]
    assert [record.arm for record in failed] == ["mine"]


def test_an_error_that_cannot_be_pickled_is_one_sentence(tmp_path: Path) -> None:
    result = run(study(Once(str(tmp_path), "raise")), tmp_path / "r.db")
    assert result.failures[0].startswith("main/mine/default/1: Unpicklable: ")
    again = run(study(Once(str(tmp_path), "raise")), tmp_path / "r.db")
    assert not again.failures


def test_a_broken_protocol_stops_the_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="must return an Outcome"):
        run(study(Once(str(tmp_path), "cheat")), tmp_path / "r.db")


def limited(tmp_path: Path, arm: Any, cell_limit: float = math.inf, memory_limit: float = math.inf) -> list[str]:
    with Store.open(tmp_path / "r.db") as store:
        fake = study(arm)
        study_id = store.add_study("s", {})
        executor = Processes(Recipe(fake, study_id, store.where), 1, cell_limit=cell_limit, memory_limit=memory_limit)
        cell = [RunSpec("s", "main", arm, "default", 1, "bench") for arm in ("base", "mine")]
        done = list(executor.run([cell]))
        assert len(done) == 1
        assert len(done[0].outcomes) == 1
        return list(done[0].failures)


def test_a_cell_beyond_its_time_is_ended_and_its_finished_runs_kept(tmp_path: Path) -> None:
    failures = limited(tmp_path, Once(str(tmp_path), "sleep"), cell_limit=3.0)
    assert failures == [
        "main/mine/default/1: its cell took longer than cell_limit = 3 s: raise the limit, or compute less"
    ]


def test_a_cell_beyond_its_memory_is_ended(tmp_path: Path) -> None:
    failures = limited(tmp_path, Hungry(), memory_limit=400 * 2**20)
    assert failures == [
        "main/mine/default/1: its process used more memory than memory_limit = 400 MiB: raise the limit, "
        "or compute less at once"
    ]


def test_what_cannot_be_sent_is_told_before_anything_runs(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Local:
        def __call__(self, cell: Cell) -> Outcome:
            return Outcome({"accuracy": 1.0})

    Local.__qualname__ = "Local"
    with pytest.raises(StudyError, match="cannot be sent to worker processes"):
        run(study(Local()), tmp_path / "r.db")


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.fakes import two_arm_study\nfrom torchstone import api\n"
        f"api.run(two_arm_study(), store={str(tmp_path / 'r.db')!r}, jobs=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=ROOT, env=PATHS, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "torchstone.errors.TorchstoneError: a worker process died while it was"
    )


def test_stopping_early_leaves_no_process_and_no_claim(tmp_path: Path) -> None:
    import multiprocessing

    result = run(replace(two_arm_study()), tmp_path / "r.db")
    assert result.verdict == Verdict.REPRODUCED
    assert multiprocessing.active_children() == []
    assert len(result.rows["main"]) == 6
    with Store.open(tmp_path / "r.db") as store:
        assert len(run_study(two_arm_study(), store).rows["main"]) == 6
