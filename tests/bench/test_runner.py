from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import two_arm_study
from torchstone.bench import Arm, Cell, Experiment, Higher, Outcome, Study, Uniform
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.store import Store
from torchstone.errors import DivergedError, StudyError, UnknownNameError


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        yield opened


CALLS: list[tuple[str, str, int, bool, dict[str, Any]]] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


@dataclasses.dataclass(frozen=True)
class Counting:
    """An arm that notes its calls."""

    name: str
    score: float = 0.5

    def __call__(self, cell: Cell, **hyper: Any) -> Outcome:
        CALLS.append((self.name, cell.case, cell.replicate, cell.tuning, hyper))
        score = self.score + 0.01 * hyper.get("q", 0.0)
        return Outcome(objective=score) if cell.tuning else Outcome({"accuracy": score}, objective=score)


def study(claims=None, **changes) -> Study:
    space = {"q": Uniform(0, 1)}
    fields: dict[str, Any] = {
        "name": "main",
        "arms": {
            "base": Arm(Counting("base", 0.5), space=space),
            "mine": Arm(Counting("mine", 0.9), hyper={"q": 0.0, "fixed": 3}, space=space, role="method"),
            "control": Arm(Counting("control", 0.4), tuned_as="mine", role="control"),
        },
        "claims": claims or (Higher("accuracy", "mine", "base", primary=True),),
        "cases": ("x", "y"),
        **changes,
    }
    return Study("s", (Experiment(**fields),))


def test_a_clear_win_stops_at_six_replicates_and_resumes_for_free(store) -> None:
    result = run_study(study(), store)
    assert result.verdict == Verdict.REPRODUCED
    assert result.stopped == {"main": "every claim is decided"}
    assert len(result.rows["main"]) == 6
    assert sum(tuning for *_, tuning, _ in CALLS) == 2 * 8
    assert len(CALLS) == 2 * 8 + 6 * 2 * 3
    CALLS.clear()
    again = run_study(study(), store)
    assert CALLS == []
    assert again.verdict_records() == result.verdict_records()


def test_every_tunable_arm_gets_the_same_draws_and_the_control_those_of_its_arm(store) -> None:
    result = run_study(study(tries=5, tune_on="y"), store)
    draws = {name: [h["q"] for n, _, _, tuning, h in CALLS if tuning and n == name] for name in ("base", "mine")}
    assert draws["base"] == draws["mine"]
    assert len(set(draws["mine"])) == 5
    assert {case for _, case, replicate, tuning, _ in CALLS if tuning and replicate == 0} == {"y"}
    best = max(draws["mine"])
    tuning = result.tunings["main"]
    assert tuning["mine"].hyper == {"q": best, "fixed": 3}
    assert tuning["control"].hyper == {"q": best}
    assert (tuning["mine"].draws, tuning["control"].source) == (5, "mine")
    assert {h["q"] for n, _, _, tuning, h in CALLS if n == "control" and not tuning} == {best}


def test_changed_claims_reuse_the_runs_and_changed_settings_do_not(store) -> None:
    run_study(study(), store)
    CALLS.clear()
    run_study(study(claims=(Higher("accuracy", "mine", 0.1, primary=True),)), store)
    assert CALLS == []
    run_study(study(data="other"), store)
    assert CALLS != []


def test_results_do_not_depend_on_other_arms_or_cases(store) -> None:
    def values(result, arm):
        return [row.value("accuracy", arm, "x") for row in result.rows["main"]]

    wide = two_arm_study(0.6, 0.5, sd=0.3, cases=("x", "y"), replicates=(7, 7))
    narrow = two_arm_study(0.6, 0.5, sd=0.3, cases=("x",), replicates=(7, 7))
    assert values(run_study(wide, store), "method") == values(run_study(narrow, store), "method")


def test_stopping_early_leaves_a_verdict_and_more_replicates_continue(store) -> None:
    coin = two_arm_study(0.5, 0.5)
    few = run_study(coin, store, Options(replicates=4))
    assert (few.verdict, len(few.rows["main"])) == (Verdict.TOO_FEW, 4)
    more = run_study(coin, store, Options(replicates=9))
    assert more.rows["main"][:4] == few.rows["main"]
    assert len(run_study(two_arm_study(0.5, 0.5), store, Options(replicates=99)).rows["main"]) <= 29


class _Clock:
    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_spent_budget_keeps_what_is_done_and_an_equal_number_of_draws(store, monkeypatch) -> None:
    monkeypatch.setattr("torchstone.bench.runner.time.monotonic", _Clock(1.0))
    result = run_study(study(tries=50), store, Options(budget=25.0))
    tuning = result.tunings["main"]
    assert 1 <= tuning["base"].draws == tuning["mine"].draws < 50
    assert result.stopped["main"] == "time budget spent"
    assert result.verdict in (Verdict.TOO_FEW, Verdict.NOT_RUN)


@dataclasses.dataclass(frozen=True)
class Breaking:
    """An arm that raises, diverges or cheats as told."""

    how: str
    at: int = 0

    def __call__(self, cell: Cell, **hyper: Any) -> Outcome:
        if cell.replicate < self.at:
            return Outcome({"accuracy": 0.1})
        if self.how == "raise":
            raise RuntimeError("out of cheese")
        if self.how == "diverge":
            raise DivergedError("loss became nan at step 3")
        if self.how == "leak":
            return Outcome({"accuracy": 1.0}, objective=1.0)
        if self.how == "peek" and cell.tuning:
            cell.seal("test data").open()
        if self.how == "silent":
            return Outcome()
        return None  # pyright: ignore[reportReturnType]


def breaking(how: str, at: int = 0, **arm: Any) -> Study:
    arms = {"base": Arm(Counting("base")), "mine": Arm(Breaking(how, at), **arm)}
    claim = Higher("accuracy", "mine", "base", primary=True)
    return Study("s", (Experiment("main", arms, (claim,)),))


def test_a_run_that_raises_fails_alone_and_ends_its_experiment(store) -> None:
    events: list[Event] = []
    result = run_study(breaking("raise", at=2), store, Options(listen=events.append))
    assert result.failures == ("main/mine/default/2: RuntimeError: out of cheese",)
    assert result.stopped["main"] == "replicate 2 failed"
    assert (result.verdict, len(result.rows["main"])) == (Verdict.TOO_FEW, 2)
    assert [event.kind for event in events].count("failed") == 1
    assert [c[2] for c in CALLS] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="out of cheese"):
        run_study(breaking("raise", at=2), store, Options(fail_fast=True))
    assert len(CALLS) == 3


def test_divergence_is_scored_not_dropped(store) -> None:
    result = run_study(breaking("diverge"), store)
    assert result.verdict == Verdict.REFUTED
    assert not result.failures
    assert result.primary.diverged == 6
    assert result.rows["main"][0].diverged("mine", "default") == "loss became nan at step 3"


def test_if_every_draw_diverges_the_defaults_are_used(store) -> None:
    result = run_study(breaking("diverge", hyper={"q": 0.25}, space={"q": Uniform(0, 1)}), store)
    assert result.tunings["main"]["mine"].hyper == {"q": 0.25}
    assert result.tunings["main"]["mine"].objective == -math.inf


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("leak", "returned accuracy while being tuned"),
        ("silent", "returned no objective while being tuned"),
        ("none", "must return an Outcome, but returned NoneType"),
    ],
)
def test_arms_that_break_the_protocol_stop_the_study(store, how, message) -> None:
    with pytest.raises(StudyError, match=message):
        run_study(breaking(how, space={"q": Uniform(0, 1)}), store)


def test_a_peek_at_the_test_data_while_tuning_is_caught(store) -> None:
    result = run_study(breaking("peek", space={"q": Uniform(0, 1)}), store)
    assert "SealedDataError" in result.failures[0]
    assert result.verdict == Verdict.NOT_RUN


def test_shared_work_is_done_once_per_cell_and_timed_apart(store) -> None:
    computed: list[tuple[str, int, bool]] = []

    def shared(cell: Cell) -> str:
        computed.append((cell.case, cell.replicate, cell.tuning))
        return f"{cell.case}{cell.replicate}"

    @dataclasses.dataclass(frozen=True)
    class Sharing:
        def __call__(self, cell: Cell) -> Outcome:
            assert cell.shared() == cell.shared() == f"{cell.case}{cell.replicate}"
            return Outcome({"accuracy": 1.0})

    Sharing.__qualname__ = "Sharing"
    claim = Higher("accuracy", "a", 0.5, primary=True)
    e = Experiment("main", {"a": Arm(Sharing()), "b": Arm(Sharing())}, (claim,), cases=("x", "y"), shared=shared)
    result = run_study(Study("s", (e,)), store, Options(replicates=2))
    assert computed == [("x", 0, False), ("y", 0, False), ("x", 1, False), ("y", 1, False)]
    assert len(result.runs) == 8


def test_missing_needs_unknown_experiments_and_scales(store) -> None:
    both = Study(
        "s",
        (
            two_arm_study().experiments[0],
            dataclasses.replace(
                two_arm_study().experiments[0],
                name="other",
                claims=(Higher("accuracy", "method", "baseline"),),
                needs=("moon",),
            ),
        ),
    )
    result = run_study(both, store, Options(available=lambda need: f"{need} is far"))
    assert result.not_run == {"other": "moon is far"}
    assert [j.verdict for j in result.judgements] == [Verdict.REPRODUCED, Verdict.NOT_RUN]
    only = run_study(both, store, Options(only=("other",), available=lambda need: ""))
    assert only.not_run == {"main": "not asked for"}
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        run_study(both, store, Options(only=("othr",)))
    paper_only = two_arm_study(settings={"paper": None})
    assert run_study(paper_only, store).not_run == {"main": "it has no bench scale"}


def test_smoke_scale_runs_one_replicate_and_one_draw(store) -> None:
    result = run_study(study(), store, Options(scale="smoke"))
    assert len(result.rows["main"]) == 1
    assert result.tunings["main"]["mine"].draws == 1
    assert result.verdict == Verdict.TOO_FEW


def test_curves_and_checkpoints_reach_the_store(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Logging:
        def __call__(self, cell: Cell) -> Outcome:
            for step in range(3):
                cell.log("loss", 1.0 / (step + 1))
            state = cell.checkpoint.load() or {"epoch": 0}
            cell.checkpoint.save({"epoch": state["epoch"] + 1})
            if cell.replicate == 1 and state["epoch"] == 0:
                raise KeyboardInterrupt
            return Outcome({"accuracy": float(state["epoch"])})

    Logging.__qualname__ = "Logging"
    claim = Higher("accuracy", "a", 0.5, primary=True)
    logging = Study("s", (Experiment("main", {"a": Arm(Logging())}, (claim,), replicates=(2, 2)),))
    path = tmp_path / "r.db"
    with Store.open(path) as store, pytest.raises(KeyboardInterrupt):
        run_study(logging, store)
    with Store.open(path) as store:
        result = run_study(logging, store)
    assert [row.value("accuracy", "a", "default") for row in result.rows["main"]] == [0.0, 1.0]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_result_tables(store) -> None:
    result = run_study(two_arm_study(tuned=True), store)
    frame = result.to_pandas()
    assert set(frame.columns) == {"experiment", "case", "arm", "replicate", "metric", "value", "diverged"}
    assert len(frame) == 6 * 2 * 2
    mean, sd, n = result.means("main", "accuracy")["method", "default"]
    picked = frame[(frame.arm == "method") & (frame.metric == "accuracy")].value
    assert (mean, sd, n) == pytest.approx((picked.mean(), picked.std(), 6))
    import json

    text = json.dumps(result.to_dict(), allow_nan=False)
    assert "reproduced" in text
    assert str(result).startswith("fake (bench scale): reproduced")
