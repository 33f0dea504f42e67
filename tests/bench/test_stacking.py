from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from torchstone.bench import Arm, Cell, Experiment, Higher, Outcome, Study, Uniform
from torchstone.bench.options import Options
from torchstone.bench.report import html
from torchstone.bench.runner import UNFINISHED, run_study
from torchstone.bench.stacking import blocks
from torchstone.bench.store import Store
from torchstone.bench.stored import stored_result
from torchstone.errors import DivergedError, StudyError

CALLS: list[tuple[str, tuple[int, ...], bool]] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        yield opened


def _outcome(cell: Cell, q: float) -> Outcome:
    score = 0.8 + 0.1 * q + 0.01 * cell.seeds.numpy("noise", cell.case).standard_normal()
    cell.log("loss", score)
    return Outcome(objective=score) if cell.tuning else Outcome({"accuracy": score}, objective=score)


def _steps(cell: Cell, seconds: float) -> None:
    for _ in range(30):
        time.sleep(seconds)
        cell.tick()


def single(cell: Cell, q: float = 0.0, slow: bool = False) -> Outcome:
    CALLS.append(("single", (cell.replicate,), cell.tuning))
    _steps(cell, 2e-4)
    return _outcome(cell, q)


def together(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    CALLS.append(("together", tuple(cell.replicate for cell in cells), cells[0].tuning))
    _steps(cells[0], 2e-3 * len(cells) if hypers[0].get("slow") else 2e-4)
    return [_outcome(cell, hyper.get("q", 0.0)) for cell, hyper in zip(cells, hypers, strict=True)]


def alternating(cell: Cell) -> Outcome:
    """Wins every other replicate, so that nothing is soon decided."""
    return Outcome({"accuracy": float(cell.replicate % 2)})


def study(arm: Arm | None = None, replicates: tuple[int, int] = (6, 12), **changes: Any) -> Study:
    arms = {"base": Arm(alternating), "mine": arm or Arm(single, stacked=together, role="method")}
    claims = (Higher("accuracy", "mine", "base", primary=True),)
    fields: dict[str, Any] = {"arms": arms, "claims": claims, "replicates": replicates, **changes}
    return Study("s", (Experiment("main", **fields),))


def trials(result: Any) -> list[tuple[str, int, float]]:
    rows = result.rows["main"]
    return [(arm, row.replicate, o.values["accuracy"]) for row in rows for (arm, _), o in row.outcomes.items()]


def test_blocks_cover_all_replicates_once() -> None:
    for low, high in ((1, 1), (3, 3), (6, 29), (6, 100), (25, 25), (20, 30)):
        found = blocks(low, high)
        assert [number for block in found for number in block] == list(range(high))
        assert max(map(len, found)) <= 10
    assert [len(block) for block in blocks(6, 29)] == [6, 4, 5, 5, 9]


def test_replicates_in_one_pass_give_the_rows_of_single_ones(store: Store) -> None:
    alone = run_study(study(cases=("x", "y")), store, Options(stack="never"))
    assert {kind for kind, *_ in CALLS} == {"single"}
    stacked = run_study(study(cases=("x", "y")), store, Options(stack="always"))
    assert trials(stacked) == trials(alone)
    assert [replicates for kind, replicates, _ in CALLS if kind == "together"][:2] == [tuple(range(6))] * 2
    runs = {run.arm for run in store.runs() if run.kind == "trial"}
    assert runs == {"base", "mine"}
    mine = [run for run in store.runs() if run.arm == "mine"]
    assert len({run.run_id for run in mine}) == len(mine) == 2 * len(trials(alone)) / 2  # both ways are kept apart


def test_a_pass_is_charged_to_its_runs_in_equal_parts(store: Store) -> None:
    run_study(study(), store, Options(stack="always", replicates=6))
    seconds = {run.wall_s for run in store.runs() if run.arm == "mine"}
    assert len(seconds) == 1
    assert 30 * 2e-4 / 6 <= seconds.pop() < 0.5


def test_calibration_decides_once_and_is_stored(store: Store) -> None:
    first = run_study(study(), store, Options())
    assert any(kind == "together" and not tuning for kind, _, tuning in CALLS)
    assert all(tuning for kind, _, tuning in CALLS if kind == "single")  # only to be timed, with test data sealed
    [calibration] = [run for run in store.runs() if run.kind == "calibration"]
    assert first.stacked == {"main": {"mine": calibration.values["speedup"]}}
    assert first.stacked["main"]["mine"] > 1.1
    assert "Trained many replicates in one pass" in html([stored_result(store, "s")])
    CALLS.clear()
    assert trials(run_study(study(), store, Options())) == trials(first)
    assert CALLS == []


def test_a_pass_that_is_slower_is_not_used(store: Store) -> None:
    arm = Arm(single, {"slow": True}, stacked=together, role="method")
    run_study(study(arm), store, Options(replicates=2))
    assert not any(kind == "together" and not tuning for kind, _, tuning in CALLS)


def test_a_calibration_ends_after_a_few_steps(store: Store) -> None:
    arm = Arm(Endless(), stacked=endless, role="method")
    started = time.monotonic()
    with pytest.raises(StudyError, match="endless"):  # so the calibration was over, and a run that counts began
        run_study(study(arm), store, Options())
    assert time.monotonic() - started < 10


@dataclass(frozen=True)
class Endless:
    def __call__(self, cell: Cell) -> Outcome:
        return endless([cell], [{}])[0]


def endless(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    if not cells[0].tuning:
        raise StudyError("an endless arm is run to its end")
    while True:
        time.sleep(1e-3)
        cells[0].tick()


def test_smoke_scale_and_single_replicates_are_never_stacked(store: Store) -> None:
    run_study(study(settings={"smoke": None, "bench": None}), store, Options(scale="smoke", stack="always"))
    run_study(study(replicates=(1, 1)), store, Options(stack="always"))
    assert {kind for kind, *_ in CALLS} == {"single"}


def test_draws_are_tuned_together_with_the_result_of_single_ones(store: Store) -> None:
    arm = Arm(single, space={"q": Uniform(0, 1)}, stacked=together, role="method")
    tuned = run_study(study(arm, tries=6), store, Options(stack="always", replicates=1)).tunings["main"]["mine"]
    assert [len(who) for kind, who, tuning in CALLS if kind == "together" and tuning] == [4, 2]
    alone = run_study(study(arm, tries=6), store, Options(stack="never", replicates=1)).tunings["main"]["mine"]
    assert tuned == alone
    assert tuned.draws == 6


def test_where_to_stop_does_not_change_what_is_computed(store: Store) -> None:
    short = run_study(study(replicates=(14, 14)), store, Options(stack="always", replicates=8))
    assert len(short.rows["main"]) == 8
    before = {run.run_id for run in store.runs()}
    CALLS.clear()
    long = run_study(study(replicates=(14, 14)), store, Options(stack="always"))
    assert trials(long)[: len(trials(short))] == trials(short)
    assert before <= {run.run_id for run in store.runs()}
    assert min(who[0] for _, who, _ in CALLS) == 10  # replicates 8 and 9 were there already


def test_an_interrupted_block_is_completed(store: Store) -> None:
    options = Options(stack="always", replicates=6)
    whole = run_study(study(), store, options)
    lost = [run.run_id for run in store.runs() if run.arm == "mine"][2:4]
    with store._database.begin(write=True) as connection:
        for run_id in lost:
            connection.exec_driver_sql(f"update run set status = 'planned', owner = null where id = '{run_id}'")
            for table in ("metric", "curve"):
                connection.exec_driver_sql(f"delete from {table} where run_id = '{run_id}'")
    CALLS.clear()
    again = run_study(study(), store, options)
    assert trials(again) == trials(whole)
    assert [who for _, who, _ in CALLS] == [tuple(range(6))]


def test_the_result_is_read_back_from_the_store(store: Store) -> None:
    result = run_study(study(cases=("x", "y")), store, Options())
    CALLS.clear()
    read = stored_result(store, "s")
    assert trials(read) == trials(result)
    assert read.stopped == result.stopped
    assert CALLS == []


def test_a_store_that_ends_before_the_calibration_says_so(store: Store) -> None:
    arm = Arm(silent_single, stacked=together, role="method")
    with pytest.raises(StudyError, match=r"tick\(\)"):
        run_study(study(arm), store, Options())
    assert stored_result(store, "s").stopped["main"] == "calibration failed"
    with store._database.begin(write=True) as connection:
        connection.exec_driver_sql("update run set status = 'planned' where kind = 'calibration'")
    assert stored_result(store, "s").stopped["main"] == f"{UNFINISHED}: not calibrated yet"


def silent_single(cell: Cell) -> Outcome:
    return _outcome(cell, 0.0)


def test_worker_processes_run_blocks_too(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        spread = run_study(study(cases=("x", "y")), store, Options(stack="always", jobs=2))
        assert trials(spread) == trials(run_study(study(cases=("x", "y")), store, Options(stack="never")))


@dataclass(frozen=True)
class Misbehaves:
    deed: str

    def __call__(self, cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> Any:
        if self.deed == "raises":
            raise RuntimeError("broken")
        if self.deed == "diverges":
            raise DivergedError("all of them")
        outcomes = together(cells, hypers)
        if self.deed == "one-diverges":
            outcomes[1] = Outcome(diverged="too steep")
        return outcomes[:-1] if self.deed == "loses-one" else outcomes


def misbehaving(deed: str) -> Study:
    return study(Arm(single, stacked=Misbehaves(deed), role="method"))


def test_one_diverged_replicate_is_that_replicates_own(store: Store) -> None:
    result = run_study(misbehaving("one-diverges"), store, Options(stack="always", replicates=6))
    diverged = [bool(row.diverged("mine", "default")) for row in result.rows["main"]]
    assert diverged == [False, True, False, False, False, False]


def test_what_raises_in_a_pass_fails_all_its_runs(store: Store) -> None:
    result = run_study(misbehaving("raises"), store, Options(stack="always", replicates=6))
    assert len(result.failures) == 6
    assert "RuntimeError: broken" in result.failures[0]
    assert {run.status for run in store.runs() if run.arm == "mine"} == {"failed"}


@pytest.mark.parametrize(
    ("deed", "said"), [("loses-one", "for each of 6 cells, but returned 5"), ("diverges", "one outcome for each")]
)
def test_breaking_the_protocol_is_an_error(store: Store, deed: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        run_study(misbehaving(deed), store, Options(stack="always", replicates=6))


def test_the_code_of_both_ways_identifies_an_arm(store: Store) -> None:
    one = run_study(study(), store, Options(stack="never", replicates=2))
    plain = replace(study().experiments[0].arms["mine"], stacked=None)
    other = run_study(study(plain), store, Options(replicates=2))
    assert {run.run_id for run in one.runs}.isdisjoint(run.run_id for run in other.runs if run.arm == "mine")


def test_stacked_must_be_found_by_workers() -> None:
    with pytest.raises(StudyError, match="stacked of an arm must be a module-level function"):
        Arm(single, stacked=lambda cells, hypers: [])
