"""What is told before a study runs, and what each source of variation does to a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Normal, two_arm_study
from torchstone.bench import SOURCES, Arm, Cell, Experiment, Higher, Outcome, Row, Study
from torchstone.bench.identity import RunSpec
from torchstone.bench.result import Result
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics import variance_by_source
from torchstone.bench.store import Store
from torchstone.bench.stored import stored_result
from torchstone.errors import DivergedError, StudyError


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        yield opened


# ---------------------------------------------------------------- the plan


def plan(study: Study, store: Store, **options: Any) -> Mapping[str, Any]:
    """The plan that is told; nothing is run."""
    plans: list[Mapping[str, Any]] = []

    def stop(event: Event) -> None:
        plans.append(event.fields)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, store, Options(listen=stop, **options))
    return plans[0]


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run takes two seconds, and its shared work half a second."""
    finish: Callable[..., bool] = Store.finish
    cost = {"wall_s": 2.0, "shared_s": 0.5}
    monkeypatch.setattr(Store, "finish", lambda *args, **given: finish(*args, **{**given, **cost}))


@pytest.mark.usefixtures("two_seconds")
def test_the_plan_says_what_is_done_and_how_long_the_rest_takes(store: Store) -> None:
    coin = two_arm_study(0.5, 0.5, cases=("x", "y"), replicates=(6, 29))
    before = plan(coin, store)
    assert (before["runs"], before["done"], before["estimate"]) == (29 * 4, 0, None)
    run_study(coin, store, Options(replicates=5))
    after = plan(coin, store)
    assert (after["done"], after["estimate"]) == (5 * 4, pytest.approx(24 * 4 * 2.5))
    assert plan(coin, store, replicates=5)["estimate"] == 0.0
    older = plan(replace(coin, seed=1), store)  # other runs, that take as long
    assert (older["done"], older["estimate"]) == (0, pytest.approx(29 * 4 * 2.5))
    assert plan(coin, store, scale="paper")["estimate"] is None


@pytest.mark.usefixtures("two_seconds")
def test_the_estimate_is_shared_among_processes(tmp_path: Path) -> None:
    coin = two_arm_study(0.5, 0.5, replicates=(6, 29))
    with Store.open(tmp_path / "r.db") as store:
        run_study(coin, store, Options(replicates=5))
        assert plan(coin, store, jobs=4)["estimate"] == pytest.approx(24 * 2 * 2.5 / 4)


@pytest.mark.usefixtures("two_seconds")
def test_the_plan_counts_tuning(store: Store) -> None:
    tuned = two_arm_study(0.5, 0.5, tuned=True, tries=4, replicates=(6, 29))

    def stop(event: Event) -> None:
        if event.kind == "run" and event.fields["spec"].attempt == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(tuned, store, Options(listen=stop))
    half_tuned = plan(tuned, store)
    assert (half_tuned["draws"], half_tuned["done"], half_tuned["estimate"]) == (8, 3, None)
    run_study(tuned, store, Options(replicates=3))
    after = plan(tuned, store)
    assert (after["done"], after["estimate"]) == (8 + 6, pytest.approx(26 * 2 * 2.5))


# ---------------------------------------------------------------- variance by source


@dataclass(frozen=True)
class Depends:
    """An arm whose score depends on one stream alone."""

    source: str
    diverges: str = ""

    def __call__(self, cell: Cell) -> Outcome:
        assert cell.replicate == 0 or cell.seeds == Seeds(0, cell.replicate)
        if self.diverges and cell.seeds.integer(self.diverges) % 3 == 0:
            raise DivergedError("now and then")
        return Outcome({"accuracy": cell.seeds.numpy(self.source, "x").random()}, cost={"steps": 3})


def study(**claim: Any) -> Study:
    arms = {"a": Arm(Depends("init")), "b": Arm(Depends("split")), "c": Arm(Normal(0.5))}
    primary = Higher(**{"metric": "accuracy", "arm": "a", "than": "b", "primary": True, **claim})
    main = Experiment("main", arms, (primary,), cases=("x", "y"), replicates=(2, 2))
    other = Experiment("other", {"c": Arm(Normal(0.5))}, (Higher("accuracy", "c", 0.0),), replicates=(2, 2))
    return Study("s", (other, main))


def varied(result: Result) -> dict[str, dict[str, int]]:
    """How many different scores there are, by arm and source."""
    return {
        arm: {source: len(set(scores)) for source, scores in by_source.items()}
        for arm, by_source in result.variance["main"].items()
    }


def test_an_arm_that_depends_on_one_source_varies_with_that_alone(store: Store) -> None:
    plain = run_study(study(), store)
    assert plain.variance == {}
    events: list[Event] = []
    result = run_study(study(), store, Options(variance=True, listen=events.append))
    assert list(result.variance) == ["main"]
    assert varied(result) == {
        "a": {"split": 1, "init": 10, "order": 1, "augment": 1, "noise": 1},
        "b": {"split": 10, "init": 1, "order": 1, "augment": 1, "noise": 1},
    }
    assert [event.fields["runs"] for event in events if event.kind == "variance"] == [5 * 10 * 2]
    spread = variance_by_source(result.variance["main"]["a"])
    assert next(iter(spread)) == "init"
    assert [entry.sd for entry in spread.values()][1:] == pytest.approx([0.0] * 4, abs=1e-12)
    assert result.verdict_records() == plain.verdict_records()
    assert {(run.kind, run.case) for run in result.runs if run.arm == "a"} == {
        ("trial", "x"),
        ("trial", "y"),
        ("variance", "x"),
    }


def test_a_run_that_diverges_has_no_score(store: Store) -> None:
    main = study().experiments[1]
    arms = {**main.arms, "a": Arm(Depends("init", diverges="order"))}
    result = run_study(Study("s", (replace(main, arms=arms),)), store, Options(variance=True))
    lost = sum(Seeds(0, number).integer("order") % 3 == 0 for number in range(1, 11))
    assert 0 < lost < 10
    assert {source: len(scores) for source, scores in result.variance["main"]["a"].items()} == {
        "split": 10,
        "init": 10,
        "order": 10 - lost,
        "augment": 10,
        "noise": 10,
    }


def test_variance_is_resumed_and_read_back(store: Store) -> None:
    first = run_study(study(), store, Options(variance=True))
    events: list[Event] = []
    again = run_study(study(), store, Options(variance=True, listen=events.append))
    assert not [event for event in events if event.kind == "run"]
    assert again.variance == first.variance == stored_result(store, "s").variance
    run_study(study(), store)
    assert stored_result(store, "s").variance == {}


def test_variance_is_about_the_claim(store: Store) -> None:
    costs = run_study(study(metric="steps", than=1.0, cases=("y",)), store, Options(variance=True))
    assert set(varied(costs)) == {"a"}
    assert set(costs.variance["main"]["a"]["init"]) == {3.0}
    assert {run.case for run in costs.runs if run.kind == "variance"} == {"y"}
    smoke = run_study(study(), store, Options(variance=True, scale="smoke"))
    assert {len(scores) for scores in smoke.variance["main"]["a"].values()} <= {1, 2}


def test_a_claim_about_derived_values_has_no_variance_by_source(store: Store) -> None:
    main = replace(study().experiments[1], derive=half_of, claims=(Higher("half", "", 0.1, primary=True),), name="main")
    assert run_study(Study("s", (main,)), store, Options(variance=True)).variance == {"main": {}}


def half_of(row: Row) -> Mapping[str, float]:
    return {"half": float(row.value("accuracy", "c", "x")) / 2}


def test_a_run_of_variance_has_its_own_identity() -> None:
    first = RunSpec("s", "main", "a", "x", 1, "bench", kind="variance")
    assert first.seeds.integer("split") == Seeds(0, 1).integer("split")
    assert first.seeds.integer("init") == Seeds(0, 0).integer("init")
    others = [replace(first, attempt=place) for place in range(len(SOURCES))] + [replace(first, kind="trial")]
    assert len({spec.run_id for spec in others}) == len(SOURCES) + 1
    with pytest.raises(StudyError, match="of which there are 6"):
        replace(first, attempt=6)
