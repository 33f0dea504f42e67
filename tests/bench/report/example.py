"""A result with everything in it that a report can show; every name can be made as bad as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tests.fakes import Normal, silent
from torchstone.bench import Arm, Experiment, Higher, Outcome, Row, Study, Within
from torchstone.bench.judge import judge
from torchstone.bench.result import Result, Tuning
from torchstone.bench.store import RunRecord
from torchstone.bench.store.records import Curve

Rename = Callable[[str], str]

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "]]></title></style></script><svg onload=alert(1)>",
    "javascript:alert(1)",
    "&lt;b&gt; &#60;i&#62; &amp; <!-- %26",
    "{{ 7 * 7 }} {% raw %} ${7*7} $\\frac{|[x](javascript:1)",
    "\u202eabc\u2066 שלום مرحبا",
    "a\0b\x07c\x1b[31m\x85\ud800",
    "\U0001f600 雪 é\u0301",
    "long " * 2000,
)


@dataclass
class Curves:
    """Stands in for an open store: what a report reads from one."""

    found: dict[str, dict[str, Curve]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def curves(self, run_ids: Iterable[str]) -> dict[str, dict[str, Curve]]:
        return {run_id: self.found[run_id] for run_id in run_ids if run_id in self.found}

    def environments(self) -> dict[str, dict[str, Any]]:
        return self.facts


def record(**changes: Any) -> RunRecord:
    """A finished run."""
    fields: dict[str, Any] = dict.fromkeys(RunRecord.__dataclass_fields__, "")
    fields |= dict.fromkeys(("replicate", "attempt", "seed", "attempts", "pid", "peak_rss"), 0)
    fields |= {"stacked": 1, "planned": 0.0, "started": 0.0, "ended": 1.0, "wall_s": 2.0, "cpu_s": 1.0, "shared_s": 0.5}
    fields |= {"scale": "bench", "kind": "trial", "status": "done", "env_id": "e", "objective": None, "hyper": {}}
    return RunRecord(**{**fields, "values": {}, "cost": {}, **changes})


def study(rename: Rename = str) -> Study:
    base, method, rival, metric = (rename(name) for name in ("base", "method", "rival", "accuracy"))
    arms = {
        base: Arm(Normal(0.5), about=rename("what everybody does")),
        method: Arm(Normal(0.9), role="method"),
        rival: Arm(Normal(0.6), role="rival", cases=(rename("40%"),)),
    }
    claims = (
        Higher(metric, method, base, primary=True),
        Within(metric, method, base, by=0.01),
        Higher(rename("gap"), "", 0.0),
    )
    main = Experiment(
        rename("main"),
        arms,
        claims,
        cases=(rename("40%"), rename("b")),
        premises=(Higher(metric, base, 0.1),),
        derive=silent_derive,
        data=rename("digits 1.0"),
    )
    other = Experiment(rename("other"), {base: Arm(silent)}, (Higher(metric, base, 0.3),), needs=("cifar10",))
    return Study(rename("fake"), (main, other), about=rename("About it."))


def silent_derive(row: Row) -> dict[str, float]:
    return {}


def rows(stated: Experiment, number: int, rename: Rename = str) -> list[Row]:
    """Rows in which the method is ahead, and its run on the second case of replicate 2 diverged."""
    by_role = {"baseline": (0.5, 0.01), "method": (0.7, 0.02), "rival": (0.6, 0.0)}
    found = []
    for i in range(number):
        outcomes = {}
        for arm, case in stated.slots:
            start, step = by_role[stated.arms[arm].role]
            outcomes[arm, case] = Outcome({rename("accuracy"): start + step * i, rename("loss"): 1.0 - i / 100})
            if (i, stated.arms[arm].role, case) == (2, "method", stated.cases[1]):
                outcomes[arm, case] = Outcome(diverged=rename("loss is NaN"))
        found.append(Row(i, outcomes, {rename("gap"): 0.2 + i / 100}))
    return found


def result(rename: Rename = str, replicates: int = 8, **changes: Any) -> Result:
    """So many replicates of three arms on two cases; a second experiment was not run."""
    stated = study(rename)
    main, other = stated.experiments
    found = rows(main, replicates, rename)
    not_run = {other.name: rename("data set 'cifar10' is not there")}
    base, method, rival = main.arms
    fields: dict[str, Any] = {
        "study": stated,
        "scale": "bench",
        "judgements": judge(stated, {main.name: found}, not_run=not_run),
        "rows": {main.name: found},
        "tunings": {
            main.name: {
                base: Tuning({rename("lr"): 0.05}),
                method: Tuning({rename("lr"): 0.0312345, rename("norm"): rename("batch")}, 0.81, 8, method),
                rival: Tuning({}),
            }
        },
        "stopped": {main.name: rename("every claim is decided")},
        "not_run": not_run,
        "failures": (rename("main/base/b/6: RuntimeError: out of memory"),),
        "runs": tuple(runs(main, found, rename)),
        "environment": {rename("python"): "3.11.2", "packages": {"torch": rename("2.13.0")}},
        "store": rename("sqlite:////data/results.db"),
        "seconds": 83.0,
    }
    return Result(**{**fields, **changes})


def runs(main: Experiment, found: list[Row], rename: Rename = str) -> Iterable[RunRecord]:
    """The runs behind the rows, two tuning draws and a run that failed."""
    base, method, _ = main.arms
    for row in found:
        for number, ((arm, case), outcome) in enumerate(row.outcomes.items()):
            yield record(
                run_id=f"{row.replicate}/{arm}/{case}",
                experiment=main.name,
                arm=arm,
                case=case,
                replicate=row.replicate,
                wall_s=1.0 + number,
                fingerprint=f"print-{number}",
                data=main.data,
                values=outcome.values,
                cost={rename("steps"): 100.0 * (1 + number % 3)},
                diverged=outcome.diverged,
            )
    draw = record(run_id="d0", experiment=main.name, arm=method, case=main.cases[0], kind="hpo")
    yield replace(draw, hyper={rename("lr"): 0.0312345}, objective=0.81)
    yield replace(draw, run_id="d1", attempt=1, hyper={rename("lr"): 0.9}, diverged=rename("too large"))
    yield record(
        run_id="f",
        experiment=main.name,
        arm=base,
        case=main.cases[1],
        replicate=6,
        status="failed",
        env_id="",
        error_type="RuntimeError",
        error_text=rename("out of memory"),
    )


def store(*results: Result) -> Any:
    """The learning curves and the environment of the runs of results."""
    steps = np.arange(1, 11)
    rng = np.random.default_rng(0)
    curves = {}
    for found in results:
        name = f"test_{found.study.primary[1].metric}"
        for run in found.runs:
            if run.kind == "trial" and run.status == "done":
                curves[run.run_id] = {name: (steps, 1 - 1 / steps + 0.02 * rng.standard_normal(10))}
    return Curves(curves, {"e": {"python": "3.11.9"}})
