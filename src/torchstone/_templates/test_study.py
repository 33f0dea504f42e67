"""Tests of the study my-study: it runs, and its claims can come out false."""

from __future__ import annotations

import math
from pathlib import Path

import torchstone
from torchstone.api import find_study
from torchstone.bench import Outcome, Row
from torchstone.bench.judge import judge

FOLDER = Path(__file__).parent
STUDY = find_study(FOLDER / "my_study.py")
MAIN = STUDY.experiment("main")
GOOD = {"last": 0.85, "averaged": 0.9, "nearest": 0.8}


def verdicts(accuracy: dict[str, float], steps: int = 10) -> list[str]:
    """What is said of the claims if every replicate comes out like this."""
    outcomes = {}
    for arm, case in MAIN.slots:
        outcome = Outcome({"accuracy": accuracy[arm]}, cost={"steps": steps})
        outcomes[arm, case] = outcome
    rows = [MAIN.row(number, outcomes) for number in range(MAIN.replicates[1])]
    found = judge(STUDY, {"main": rows})
    return [str(one.verdict) for one in found if not one.premise]


def smoke() -> Row:
    """The one replicate of smoke scale, computed anew."""
    result = torchstone.run(STUDY, scale="smoke", store=":memory:")
    assert not result.failures
    (row,) = result.rows["main"]
    return row


def test_it_runs_at_smoke_scale():
    outcomes = smoke().outcomes
    assert set(outcomes) == set(MAIN.slots)
    for outcome in outcomes.values():
        assert not outcome.diverged
        assert 0.0 <= outcome.values["accuracy"] <= 1.0


def test_the_same_seeds_give_the_same_result():
    assert smoke() == smoke()


def test_it_is_reproduced_if_the_method_is_ahead():
    assert verdicts(GOOD) == ["reproduced", "reproduced", "holds"]


def test_it_is_refuted_if_the_method_is_behind():
    assert verdicts({**GOOD, "averaged": 0.7})[:2] == ["refuted", "refuted"]


def test_it_says_nothing_if_the_baseline_does_not_learn():
    assert set(verdicts({**GOOD, "last": 0.1})) == {"premise not met"}


def test_a_missing_value_is_no_win():
    assert verdicts({**GOOD, "averaged": math.nan})[0] != "reproduced"
