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
    return "run", {"spec": SimpleNamespace(arm=arm, kind=kind, replicate=replicate)}


PLAN = ("plan", {"experiment": "main", "arms": 2, "cases": 1, "draws": 4, "runs": 12, "replicates": 6})


def test_time_to_go_comes_from_the_runs_so_far():
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    events(tally, PLAN)
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
    events(tally, PLAN, *(("replicate", {"number": i, "judgements": []}) for i in range(4)))
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
    events(tally, PLAN, done("a"), ("plan", {**PLAN[1], "experiment": "other"}))
    assert (tally.experiment, tally.computed, dict(tally.trials)) == ("other", 0, {})


def shown(stream: io.StringIO, **changes: Any) -> str:
    with Store.open(":memory:") as store, watch(stream=stream) as listen:
        run_study(two_arm_study(**changes), store, Options(listen=listen))
    return stream.getvalue()


def test_plain_text_has_one_line_per_replicate():
    lines = shown(io.StringIO(), tuned=True, tries=2).splitlines()
    assert lines[0] == "main: 2 arms on 1 case; 4 tuning draws, then at most 29 replicates (58 runs)"
    assert lines[1].startswith("main: tuned baseline: scale=")
    assert len(lines) == 3 + 6 + 1
    for number, line in enumerate(lines[3:9], start=1):
        decided = int(number == 6)
        assert re.fullmatch(rf"main: replicate {number}/29: P=1 e=\S+, {decided}/1 claims decided; .*", line)
    assert lines[9] == "main: every claim is decided (6 replicates)"


def test_a_terminal_gets_a_live_table_with_names_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    claims = (Higher("accuracy", "method", "baseline", cases=("red",), primary=True),)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown(Terminal(), cases=("red", "b"), claims=claims))
    assert "█" in text
    assert "accuracy of method is higher than that of baseline [red]  P=1" in text
    assert "main: every claim is decided (6 replicates)" in text


def test_quiet_is_silent():
    stream = Terminal()
    with Store.open(":memory:") as store, watch(quiet=True, stream=stream) as listen:
        run_study(two_arm_study(), store, Options(listen=listen))
    assert stream.getvalue() == ""


def test_the_work_goes_on_when_nobody_reads():
    with Store.open(":memory:") as store, watch(stream=Closed()) as listen:
        result = run_study(two_arm_study(), store, Options(listen=listen))
    assert str(result.verdict) == "reproduced"
