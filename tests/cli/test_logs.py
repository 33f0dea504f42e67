"""`logs`: what a run printed, how it ended, and with what it ran."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import pytest
from click.testing import Result as Done
from typer.testing import CliRunner

from tests.fakes import two_arm_study
from torchstone import api
from torchstone.bench import Arm, Cell, Outcome
from torchstone.bench.store import RunRecord, Store
from torchstone.cli.app import app

runner = CliRunner()


def talkative(cell: Cell, lr: float = 0.5) -> Outcome:
    """An arm with much to say, which fails in replicate 2."""
    print("a line on stdout")  # noqa: T201
    print("a line on stderr", file=sys.stderr)  # noqa: T201
    warnings.warn("beware", stacklevel=1)
    if cell.replicate == 2:
        raise RuntimeError("out of\nmemory")
    return Outcome({"accuracy": 0.5 + cell.replicate / 8}, cost={"steps": 12})


def silent(cell: Cell) -> Outcome:
    """An arm that diverges without a word."""
    return Outcome(diverged="loss became nan")


@pytest.fixture
def runs() -> dict[tuple[str, int], RunRecord]:
    arms = {"baseline": Arm(silent), "method": Arm(talkative, hyper={"lr": 0.25}, role="method")}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        api.run(two_arm_study(arms=arms))
    with Store.open() as store:
        return {(run.arm, run.replicate): run for run in store.runs()}


def logs(*words: str) -> Done:
    return runner.invoke(app, ["logs", *words])


def test_what_a_run_printed_and_with_what_it_ran(runs: dict[tuple[str, int], RunRecord]):
    done = logs("fake/main/method/default/1")
    assert done.exit_code == 0
    for text in (
        "fake/main/method/default/1",
        runs["method", 1].run_id,
        "done",
        "trial, bench scale",
        "lr=0.25",
        "0, replicate 1",
        "accuracy=0.625, steps=12",
        "a line on stdout\na line on stderr\n",
        "UserWarning: beware",
    ):
        assert text in done.stdout
    assert "traceback" not in done.stdout


def test_a_failed_run_shows_where(runs: dict[tuple[str, int], RunRecord]):
    done = logs(runs["method", 2].run_id[:10])
    assert "failed: RuntimeError: out of memory" in done.stdout
    assert "a line on stdout" in done.stdout
    assert 'raise RuntimeError("out of\\nmemory")' in done.stdout


def test_a_run_that_diverged_in_silence(runs: dict[tuple[str, int], RunRecord]):
    done = logs(runs["baseline", 0].run_id)
    assert "diverged: loss became nan" in done.stdout
    assert "printed\n(nothing)\n" in done.stdout


def test_several_runs_are_listed_with_their_ids(runs: dict[tuple[str, int], RunRecord]):
    api.run(two_arm_study(tuned=True, tries=2), replicates=1)
    done = logs("fake/main/method/default/0")
    assert done.exit_code == 0
    assert "4 runs fit 'fake/main/method/default/0'" in done.stdout
    assert runs["method", 0].run_id[:10] in done.stdout
    assert done.stdout.count("tuning draw") == 2


def test_json_holds_every_run_that_fits(runs: dict[tuple[str, int], RunRecord]):
    (document,) = json.loads(logs("main/method/default/2", "--json").stdout)
    assert document["run_id"] == runs["method", 2].run_id
    assert (document["hyper"], document["status"], document["error_type"]) == ({"lr": 0.25}, "failed", "RuntimeError")
    assert "a line on stdout" in document["log"]
    assert len(json.loads(logs("fake/main/baseline/default/0", "--json").stdout)) == 1


@pytest.mark.parametrize("name", ["fake/main/method/default/9", "zzzz", "0", ""])
def test_a_run_that_is_not_there(name: str, runs: dict[tuple[str, int], RunRecord]):
    done = logs(name)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("torchstone: ")
    assert done.stderr.count("\n") == 1


def test_run_says_how_to_see_what_went_wrong(monkeypatch: pytest.MonkeyPatch):
    arms: dict[str, Any] = {"baseline": Arm(silent), "method": Arm(talkative, role="method")}
    monkeypatch.setattr(api, "find_study", lambda name: two_arm_study(arms=arms))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        done = runner.invoke(app, ["run", "fake", "-q", "--json"])
    assert done.exit_code == 1
    (hint,) = [line for line in done.stderr.splitlines() if "torchstone logs" in line]
    assert "out of memory" in logs(hint.split()[2]).stdout
    json.loads(done.stdout)  # what the arm printed is not in the document
