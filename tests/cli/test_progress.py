"""What is counted and shown while a study runs."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import two_arm_study
from torchstone.bench import Higher
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.store import Store
from torchstone.cli.progress import Tally, watch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def events(tally: Tally, *kinds: tuple[str, dict[str, Any]]) -> None:
    for kind, fields in kinds:
        tally.note(Event(kind, fields))


def done(arm: str, kind: str = "trial", replicate: int = 0) -> tuple[str, dict[str, Any]]:
    return "run", {"spec": SimpleNamespace(experiment="main", arm=arm, kind=kind, replicate=replicate)}


SIZES = {"experiment": "main", "arms": 2, "cases": 1, "draws": 4, "runs": 12, "replicates": 6}
PLAN = ("plan", {**SIZES, "done": 0, "estimate": None})


def test_time_to_go_comes_from_the_runs_so_far():
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    events(tally, PLAN, ("planned", {}))
    assert tally.remaining is None
    now[0] = 6.0
    events(tally, done("a", "hpo"), done("b", "hpo"))  # 3 s each; 2 draws and 12 runs are left
    assert tally.remaining == pytest.approx(42.0)
    events(tally, done("a", "hpo"), done("b", "hpo"))
    now[0] = 12.0
    events(tally, done("a"), done("b"), ("replicate", {"number": 0, "judgements": []}))  # 2 s each; 10 runs are left
    assert tally.remaining == pytest.approx(20.0)
    assert tally.pace == "12 s, at most 20 s to go"


def test_replicates_found_in_the_store_take_no_time():
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    events(tally, PLAN, ("planned", {}), *(("replicate", {"number": i, "judgements": []}) for i in range(4)))
    assert tally.remaining is None
    now[0] = 2.0
    events(tally, done("a", replicate=4))
    assert tally.remaining == pytest.approx(6.0)  # 3 of 12 runs are left


def test_processes_that_run_ahead_are_counted():
    tally = Tally()
    ahead = ("replicate", {"number": 0, "judgements": []})
    events(tally, PLAN, done("a"), done("a", replicate=1), done("b"), ahead)
    assert dict(tally.trials) == {("a", 1): 1}


def test_a_second_experiment_starts_afresh():
    tally = Tally()
    events(tally, PLAN, ("plan", {**PLAN[1], "experiment": "other", "runs": 8}), ("planned", {}), done("a"))
    assert (tally.experiment, tally.computed, tally.planned["runs"]) == ("main", 1, 12)
    events(tally, ("stopped", {"experiment": "main", "reason": "done", "replicates": 6}))
    assert (tally.experiment, tally.computed, dict(tally.trials), tally.planned["runs"]) == ("other", 0, {}, 8)


def test_runs_that_tell_sources_apart_are_no_trials():
    tally = Tally()
    events(tally, PLAN, done("a", "variance", 3))
    assert (tally.computed, dict(tally.trials)) == (1, {})


@pytest.mark.parametrize(
    ("changes", "jobs", "text"),
    [
        ({}, 1, "at most 16 runs; the first ones will tell how long they take with 1 job"),
        ({"done": 5}, 2, "at most 16 runs; 5 of them in the store, the first ones will tell how long"),
        ({"done": 5, "estimate": 370.0}, 2, "5 of them in the store, at most about 6 min with 2 jobs"),
        ({"estimate": 4.4}, 1, "at most 16 runs; at most about 4 s with 1 job"),
        ({"estimate": 9000.0}, 1, "at most about 2.5 h with 1 job"),
        ({"done": 16, "estimate": 0.0}, 1, "at most 16 runs; all of them in the store"),
    ],
)
def test_the_plan_says_what_is_ahead(changes: dict[str, Any], jobs: int, text: str):
    tally = Tally(jobs)
    events(tally, ("plan", {**SIZES, "done": 0, "estimate": None, **changes}), ("planned", {}))
    line = tally.lines(Event("planned"))[-1]
    assert line.startswith("plan: 1 experiment, ")
    assert text in line


def test_the_plan_of_several_experiments_is_added_up():
    tally = Tally(2)
    plans = [{**SIZES, "experiment": name, "done": 3, "estimate": 100.0} for name in ("a", "b")]
    events(tally, *(("plan", plan) for plan in plans))
    assert tally.lines(Event("planned")) == [
        "a: 2 arms on 1 case; 4 tuning draws, then at most 6 replicates",
        "b: 2 arms on 1 case; 4 tuning draws, then at most 6 replicates",
        "plan: 2 experiments, at most 32 runs; 6 of them in the store, at most about 3 min with 2 jobs",
    ]


def test_until_the_first_run_ends_time_to_go_comes_from_past_runs():
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    events(tally, ("plan", {**SIZES, "done": 0, "estimate": 50.0}), ("planned", {}))
    now[0] = 10.0
    assert tally.remaining == pytest.approx(40.0)


def shown(stream: io.StringIO, **changes: Any) -> str:
    with Store.open(":memory:") as store, watch(stream=stream) as listen:
        run_study(two_arm_study(**changes), store, Options(listen=listen))
    return stream.getvalue()


def test_plain_text_has_one_line_per_replicate():
    lines = shown(io.StringIO(), tuned=True, tries=2).splitlines()
    assert lines[0] == "main: 2 arms on 1 case; 4 tuning draws, then at most 29 replicates"
    assert lines[1] == "plan: 1 experiment, at most 62 runs; the first ones will tell how long they take with 1 job"
    assert lines[2].startswith("main: tuned baseline: scale=")
    assert len(lines) == 4 + 6 + 1
    for number, line in enumerate(lines[4:10], start=1):
        decided = int(number == 6)
        assert re.fullmatch(rf"main: replicate {number}/29: P=1 e=\S+, {decided}/1 claims decided; .*", line)
    assert lines[10] == "main: every claim is decided (6 replicates)"


def test_a_terminal_gets_a_live_table_with_names_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    claims = (Higher("accuracy", "method", "baseline", cases=("red",), primary=True),)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown(Terminal(), cases=("red", "b"), claims=claims))
    assert "█" in text
    assert "plan: 1 experiment, at most 116 runs" in text
    assert "accuracy of method is higher than that of baseline [red]  P=1" in text
    assert "main: every claim is decided (6 replicates)" in text


def test_a_terminal_may_get_lines_too():
    stream = Terminal()
    with Store.open(":memory:") as store, watch(plain=True, stream=stream) as listen:
        run_study(two_arm_study(), store, Options(listen=listen))
    assert "\x1b" not in stream.getvalue()
    assert "main: replicate 6/29" in stream.getvalue()


def test_quiet_is_silent():
    stream = Terminal()
    with Store.open(":memory:") as store, watch(quiet=True, stream=stream) as listen:
        run_study(two_arm_study(), store, Options(listen=listen))
    assert stream.getvalue() == ""


def test_the_work_goes_on_when_nobody_reads():
    with Store.open(":memory:") as store, watch(stream=Closed()) as listen:
        result = run_study(two_arm_study(), store, Options(listen=listen))
    assert str(result.verdict) == "reproduced"
