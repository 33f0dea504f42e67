from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.fakes import Normal, two_arm_study
from torchstone.bench import (
    Arm,
    Cell,
    Choice,
    ClosesGap,
    Experiment,
    Higher,
    Integers,
    LogUniform,
    Lower,
    Outcome,
    Ratio,
    Row,
    Study,
    Trend,
    Uniform,
    Within,
)
from torchstone.bench.description import describe, restore
from torchstone.bench.identity import canonical_json
from torchstone.bench.result import Result
from torchstone.bench.runner import UNFINISHED, Options, run_study
from torchstone.bench.store import Store
from torchstone.bench.stored import stored_result, stored_studies
from torchstone.errors import DivergedError, StoreError, StudyError, UnknownNameError


@dataclass(frozen=True)
class Sizes:
    epochs: int
    widths: tuple[int, ...] = (8, 4)


def noisy(cell: Cell, **hyper: Any) -> Outcome:
    score = 0.5 + 0.1 * cell.seeds.numpy("noise", cell.case).standard_normal() + 0.01 * hyper.get("depth", 0)
    if cell.tuning:
        return Outcome(objective=score)
    if hyper.get("breaks") and cell.replicate == 2 and cell.case == "b":
        raise DivergedError("too steep")
    cell.log("loss", 1.0 - score, step=0)
    return Outcome({"accuracy": score, "curve": [score, score + 1]}, cost={"steps": 10})


def half_of(row: Row) -> Mapping[str, float]:
    value = float(row.value("accuracy", "plain", "a"))
    return {"half": value / 2, "none": math.nan if row.replicate == 1 else 0.0}


def full_study(**changes: Any) -> Study:
    """A study with every kind of claim, distribution and hyper-parameter."""
    space = {"depth": Integers(1, 4), "q": Uniform(0, 1), "lr": LogUniform(0.01, 0.1), "act": Choice("relu", math.tanh)}
    main = Experiment(
        name="main",
        arms={
            "plain": Arm(noisy, hyper={"loss": math.fsum}, space=space, about="the <plain> one"),
            "mine": Arm(noisy, hyper={"breaks": True}, space={"q": Uniform(0, 1)}, role="method"),
            "control": Arm(noisy, tuned_as="plain", role="control", cases=("a",)),
        },
        cases=("a", "b"),
        tune_on="b",
        settings={"smoke": Sizes(1), "bench": Sizes(3)},
        premises=(Within("accuracy", "plain", 0.5, by=2.0),),
        claims=(
            Higher("accuracy", "mine", "plain", by=0.1, primary=True),
            Lower("accuracy", "mine", "plain", cases=("a",)),
            Ratio("steps", "mine", "plain", at_most=1.0, always=True),
            ClosesGap("accuracy", "mine", "plain", to="control", cases=("a",)),
            Trend("accuracy", "mine", cases=("a", "b"), falls=True),
            Higher("half", "", 0.2),
            Lower("none", "", 1.0, text="nothing is below one"),
        ),
        replicates=(4, 6),
        tries=3,
        derive=half_of,
    )
    paper = Experiment(
        name="paper", arms={"x": Arm(noisy), "y": Arm(noisy)}, claims=(Higher("accuracy", "x", "y"),), needs=("gpu",)
    )
    return Study("full", (replace(main, **changes), paper), seed=5, about="A study & more.")


def no_gpu(need: str) -> str:
    return "it needs a GPU"


def same(read: Result, run: Result) -> None:
    assert read.verdict_records() == run.verdict_records()
    assert canonical_json(read.to_dict() | {"seconds": 0}) == canonical_json(run.to_dict() | {"seconds": 0})
    assert [one.run_id for one in read.runs] == [one.run_id for one in run.runs]
    assert read.environment == run.environment
    assert read.e_threshold == run.e_threshold
    for name, rows in run.rows.items():
        assert [row.replicate for row in read.rows[name]] == [row.replicate for row in rows]
        for one, other in zip(read.rows[name], rows, strict=True):
            assert json.dumps(dict(one.derived)) == json.dumps(dict(other.derived))


def test_a_result_is_read_back_as_it_was_returned(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        run = run_study(full_study(), store, Options(available=no_gpu, e_threshold=100.0))
    with Store.open(tmp_path / "s.db", read_only=True) as store:
        read = stored_result(store, "full")
    assert len(run.rows["main"]) == 6
    assert read.not_run == {"paper": "it needs a GPU"}
    assert any(j.diverged for j in read.judgements)
    same(read, run)
    assert [claim.sentence() for claim in read.study.experiments[0].claims] == [
        claim.sentence() for claim in run.study.experiments[0].claims
    ]


def test_an_unfinished_study_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event.kind == "replicate" and event.fields["number"] == 1:
            raise KeyboardInterrupt

    with Store.open(tmp_path / "s.db") as store:
        with pytest.raises(KeyboardInterrupt):
            run_study(full_study(), store, Options(available=no_gpu, listen=stop))
        read = stored_result(store, "full")
        assert [row.replicate for row in read.rows["main"]] == [0, 1]
        assert read.stopped["main"].startswith(UNFINISHED)
        assert str(read.verdict) == "too few replicates"
        finished = run_study(full_study(), store, Options(available=no_gpu, replicates=2))
    assert read.verdict_records() == finished.verdict_records()


@pytest.mark.parametrize("runs", [0, 2])
def test_before_and_while_tuning_there_are_no_replicates(runs: int) -> None:
    seen: list[str] = []

    def stop(event: Any) -> None:
        seen.append(event.kind)
        if seen.count("run") == runs:
            raise KeyboardInterrupt

    with Store.open(":memory:") as store:
        with pytest.raises(KeyboardInterrupt):
            run_study(full_study(), store, Options(available=no_gpu, listen=stop))
        read = stored_result(store, "full")
    assert not read.rows["main"]
    assert str(read.verdict) == "not run"
    assert read.stopped["main"].startswith(UNFINISHED)


@dataclass(frozen=True)
class Breaks:
    at: int

    def __call__(self, cell: Cell) -> Outcome:
        if cell.replicate == self.at:
            raise RuntimeError("out of <luck>")
        return Outcome({"accuracy": 0.1})


def test_failures_are_read_too() -> None:
    claims = (Higher("accuracy", "good", "bad", primary=True),)
    arms = {"good": Arm(Normal(0.9)), "bad": Arm(Breaks(3))}
    study = Study("failing", (Experiment(name="main", arms=arms, claims=claims),))
    with Store.open(":memory:") as store:
        run = run_study(study, store)
        same(stored_result(store, "failing"), run)
    assert run.failures == ("main/bad/default/3: RuntimeError: out of <luck>",)
    assert run.stopped["main"] == "replicate 3 failed"


def test_each_scale_and_the_last_statement() -> None:
    sizes = {"smoke": Sizes(1), "bench": Sizes(2)}
    first, second = two_arm_study(settings=sizes), two_arm_study(good=0.1, settings=sizes)
    with Store.open(":memory:") as store:
        run_study(first, store, Options(scale="smoke"))
        run_study(first, store)
        later = run_study(second, store)
        assert set(stored_studies(store)) == {("fake", "smoke"), ("fake", "bench")}
        same(stored_result(store, "fake"), later)
        assert stored_result(store, "fake", scale="smoke").scale == "smoke"
        same(stored_result(store, "fake", scale="bench"), later)
        again = run_study(first, store)  # judged again: now it is the last
        same(stored_result(store, "fake", scale="bench"), again)
        with pytest.raises(UnknownNameError, match="fake"):
            stored_result(store, "fakes")
        with pytest.raises(UnknownNameError, match="smoke"):
            stored_result(store, "fake", scale="smok")


def test_reading_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store.open(path) as store:
        run_study(full_study(), store, Options(available=no_gpu))
    before = path.read_bytes()
    with Store.open(path, read_only=True) as store:
        stored_result(store, "full")
    assert path.read_bytes() == before


def test_a_store_older_than_the_table_of_derived_values(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store.open(path) as store:
        run_study(full_study(), store, Options(available=no_gpu))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE derived"))
    engine.dispose()
    with Store.open(path, read_only=True) as store:
        read = stored_result(store, "full")
    half = next(j for j in read.judgements if j.claim.metric == "half")
    assert (half.excluded, half.diverged) == (5, 1)
    with Store.open(path) as store:  # writing makes the table, and running again fills it
        run = run_study(full_study(), store, Options(available=no_gpu))
        same(stored_result(store, "full"), run)


def test_a_study_stored_without_its_claims_is_named() -> None:
    with Store.open(":memory:") as store:
        result = run_study(two_arm_study(), store)
        with store._database.begin(write=True) as connection:
            spec = {"name": "fake", "spec": {"name": "fake"}}
            connection.execute(sa.text("UPDATE study SET spec = :spec"), {"spec": json.dumps(spec)})
        assert result.runs
        with pytest.raises(StoreError, match="run it again"):
            stored_result(store, "fake")


def test_description_survives_json_and_describes_the_same() -> None:
    stated = describe(full_study())
    again = restore(json.loads(json.dumps(stated)))
    assert describe(again) == stated
    with pytest.raises(StudyError, match="not run"):
        again.experiments[0].arms["plain"].run(None)


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [("kind", "Claim2", "kind 'Claim2'"), ("kind", "np", "kind 'np'")],
)
def test_unknown_claims_are_refused(place: str, value: str, word: str) -> None:
    stated = describe(full_study())
    stated["experiments"][0]["claims"][0][place] = value
    with pytest.raises(StoreError, match=word):
        restore(stated)


@pytest.mark.parametrize("entry", [{"class": "os:system", "low": 1}, "torchstone.bench.space:draw", {"low": 1}])
def test_unknown_distributions_are_refused(entry: Any) -> None:
    stated = describe(full_study())
    stated["experiments"][0]["arms"][0]["space"]["q"] = entry
    with pytest.raises(StoreError, match="distribution"):
        restore(stated)
