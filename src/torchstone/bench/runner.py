"""Run a study: tune, run replicate after replicate, stop when the verdicts are settled.

The store is the memory. Every step first asks it what is done already, so running a study again continues it, and
running a finished one computes nothing. Nothing here knows a method; an arm is a function.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from torchstone.bench.environment import environment
from torchstone.bench.executors import Executor, Inline, Processes, Recipe
from torchstone.bench.fingerprint import fingerprint
from torchstone.bench.identity import RunSpec
from torchstone.bench.judge import judge, judge_experiment, settled
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.result import Result, Tuning
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import draw
from torchstone.bench.store import Store
from torchstone.bench.study import Experiment, Study
from torchstone.bench.worker import Event, Worker

__all__ = ["Event", "Options", "run_study"]

TUNING_SHARE = 0.4  # of a time budget that tuning may use, so that replicates are left to decide anything


def _ignore(event: Event) -> None:
    return None


@dataclass(frozen=True)
class Options:
    """How to run a study; nothing in here changes what a run computes, except ``scale``.

    Args:
        scale: ``smoke`` (never a verdict), ``bench`` or ``paper``.
        only: names of experiments; ``()`` means all.
        budget: wall-clock seconds after which no new work is begun.
        replicates: stop after so many, even if undecided; it cannot raise the study's own maximum.
        device: where the arms compute.
        e_threshold: evidence that decides a claim early: 20, or 100 for published evidence.
        fail_fast: stop at the first run that raises.
        jobs: worker processes; with 1, or a store in memory, everything runs in this process.
        listen: receives every :class:`Event`.
        available: ``available(need) -> ""`` or the reason why it is missing.
    """

    scale: str = "bench"
    only: tuple[str, ...] = ()
    budget: float = math.inf
    replicates: int | None = None
    device: str = "cpu"
    e_threshold: float = 20.0
    fail_fast: bool = False
    jobs: int = 1
    listen: Callable[[Event], None] = _ignore
    available: Callable[[str], str] = lambda need: ""


class _Stopped(Exception):
    """Stops an experiment where it stands, with the reason; what is stored stays."""


def run_study(study: Study, store: Store, options: Options | None = None) -> Result:
    """Run what is not in the store yet, and judge.

    Args:
        study: the study.
        store: where runs are kept.
        options: see :class:`Options`.

    Returns:
        The verdicts with everything needed to show them. Runs that raised are in ``result.failures``; they are not
        repeated in this call and their experiment stops there, since replicates behind a gap cannot count.

    Raises:
        UnknownNameError: for an experiment in ``options.only`` that the study does not have.
        StudyError: if an arm breaks the protocol (returns no outcome, or test values while being tuned).
    """
    options = options or Options()
    for name in options.only:
        study.experiment(name)
    return _Run(study, store, options).all()


class _Run:
    """One call of :func:`run_study`: the study, the store, the clock."""

    def __init__(self, study: Study, store: Store, options: Options) -> None:
        self.study, self.store, self.options = study, store, options
        self.started = time.monotonic()
        self.failures: list[str] = []
        self.study_id = store.add_study(study.name, describe(study))
        self.executor = self._executor()

    def _executor(self) -> Executor:
        options, store = self.options, self.store
        if options.jobs == 1 or store.url == ":memory:":
            worker = Worker(
                self.study,
                self.study_id,
                store,
                device=options.device,
                fail_fast=options.fail_fast,
                listen=options.listen,
            )
            return Inline(worker)
        recipe = Recipe(self.study, self.study_id, store.where, device=options.device, fail_fast=options.fail_fast)
        return Processes(recipe, options.jobs, listen=options.listen)

    def all(self) -> Result:
        rows: dict[str, list[Row]] = {}
        tunings: dict[str, Mapping[str, Tuning]] = {}
        not_run: dict[str, str] = {}
        stopped: dict[str, str] = {}
        run_ids: list[str] = []
        for experiment in self.study.experiments:
            name = experiment.name
            not_run[name] = self._obstacle(experiment)
            if not_run[name]:
                continue
            work = _Work(self, experiment)
            tunings[name] = {}
            try:
                tunings[name] = work.tune()
                stopped[name] = work.replicate(tunings[name])
            except _Stopped as stop:
                stopped[name] = str(stop)
            rows[name] = work.rows
            run_ids += work.run_ids
            self.emit("stopped", experiment=name, reason=stopped[name], replicates=len(work.rows))
        judgements = judge(self.study, rows, e_threshold=self.options.e_threshold, not_run=not_run)
        result = Result(
            study=self.study,
            scale=self.options.scale,
            judgements=judgements,
            rows=rows,
            tunings=tunings,
            stopped=stopped,
            not_run={name: reason for name, reason in not_run.items() if reason},
            failures=tuple(self.failures),
            runs=tuple(self.store.records(run_ids)),
            environment=environment(),
            store=self.store.url,
            seconds=time.monotonic() - self.started,
            e_threshold=self.options.e_threshold,
        )
        self.store.log_verdicts(self.study_id, result.verdict_records())
        self.emit("done", seconds=result.seconds)
        return result

    def _obstacle(self, experiment: Experiment) -> str:
        """Why an experiment is not run, or the empty string."""
        if self.options.only and experiment.name not in self.options.only:
            return "not asked for"
        if experiment.settings and self.options.scale not in experiment.settings:
            return f"it has no {self.options.scale} scale"
        return next(filter(None, map(self.options.available, experiment.needs)), "")

    def emit(self, kind: str, **fields: Any) -> None:
        self.options.listen(Event(kind, fields))

    def elapsed(self) -> float:
        return time.monotonic() - self.started


class _Work:
    """One experiment of one call."""

    def __init__(self, run: _Run, experiment: Experiment) -> None:
        self.run, self.experiment = run, experiment
        self.rows: list[Row] = []
        self.run_ids: list[str] = []
        self.setting = experiment.settings.get(run.options.scale)
        self.prints = {name: fingerprint(arm.run) for name, arm in experiment.arms.items()}
        self.tunable = [name for name, arm in experiment.arms.items() if arm.space]
        high, tries = experiment.replicates[1], experiment.tries
        if run.options.scale == "smoke":
            high = tries = 1
        self.limit = high if run.options.replicates is None else min(high, run.options.replicates)
        self.tries = tries if self.tunable else 0
        run.emit(
            "plan",
            experiment=experiment.name,
            arms=len(experiment.arms),
            cases=len(experiment.cases),
            draws=self.tries * len(self.tunable),
            runs=self.limit * len(experiment.slots),
            replicates=self.limit,
        )

    def spec(self, arm: str, case: str, hyper: Mapping[str, Any], **place: Any) -> RunSpec:
        spec = RunSpec(
            study=self.run.study.name,
            experiment=self.experiment.name,
            arm=arm,
            case=case,
            scale=self.run.options.scale,
            seed=self.run.study.seed,
            hyper=hyper,
            setting=self.setting,
            data=self.experiment.data,
            fingerprint=self.prints[arm],
            **place,
        )
        self.run_ids.append(spec.run_id)
        return spec

    def tune(self) -> dict[str, Tuning]:
        """Draw after draw, all arms the same number; under a budget all stop after the same draw."""
        draws: dict[str, list[tuple[float, dict[str, Any]]]] = {name: [] for name in self.tunable}
        with closing(self.run.executor.run(self._tuning_cells())) as cells:
            for done in cells:
                self.run.failures += done.failures
                if not done.complete:
                    raise _Stopped("tuning failed")
                for spec in done.specs:
                    objective = done.outcomes[spec.run_id].objective
                    draws[spec.arm].append((-math.inf if objective is None else objective, dict(spec.hyper)))
        tunings = {name: self._tuning(name, draws) for name in self.experiment.arms}
        self.run.emit("tuned", experiment=self.experiment.name, tunings=tunings)
        return tunings

    def _tuning_cells(self) -> Iterator[list[RunSpec]]:
        seeds, case = Seeds(self.run.study.seed), self.experiment.tuning_case
        for attempt in range(self.tries):
            if attempt and self.run.elapsed() > self.run.options.budget * TUNING_SHARE:
                return
            cell = []
            for name in self.tunable:
                arm = self.experiment.arms[name]
                hyper = {**arm.hyper, **draw(arm.space, attempt, seeds)}
                cell.append(self.spec(name, case, hyper, replicate=0, kind="hpo", attempt=attempt))
            yield cell

    def _tuning(self, name: str, draws: Mapping[str, list[tuple[float, dict[str, Any]]]]) -> Tuning:
        arm = self.experiment.arms[name]
        source = name if arm.space else arm.tuned_as
        if source is None:
            return Tuning(dict(arm.hyper))
        origin = self.experiment.arms[source]
        best, hyper = max(draws[source], key=lambda pair: pair[0])  # the first of equals
        if best == -math.inf:  # every draw diverged: the arm's own defaults are the only other honest choice
            hyper = dict(origin.hyper)
        chosen = {key: value for key, value in hyper.items() if key in origin.space}
        return Tuning({**arm.hyper, **chosen}, best, len(draws[source]), source)

    def replicate(self, tunings: Mapping[str, Tuning]) -> str:
        """Run replicates until settled, out of replicates, out of time, or stuck; return which."""
        outcomes: dict[tuple[str, str], Outcome] = {}
        with closing(self.run.executor.run(self._trial_cells(tunings))) as cells:
            for done in cells:
                self.run.failures += done.failures
                number, case = done.specs[0].replicate, done.specs[0].case
                if not done.complete:
                    return f"replicate {number} failed"
                outcomes |= {(spec.arm, case): done.outcomes[spec.run_id] for spec in done.specs}
                if len(outcomes) < len(self.experiment.slots):
                    continue
                self.rows.append(self.experiment.row(number, outcomes))
                outcomes = {}
                judgements = judge_experiment(
                    self.run.study.name, self.experiment, self.rows, self.run.options.e_threshold, describe=False
                )
                self.run.emit("replicate", experiment=self.experiment.name, number=number, judgements=judgements)
                if settled(judgements):
                    return "every claim is decided"
        return f"all {self.limit} replicates done" if len(self.rows) == self.limit else "time budget spent"

    def _trial_cells(self, tunings: Mapping[str, Tuning]) -> Iterator[list[RunSpec]]:
        """Cells in order; under a budget no replicate is begun that would not be finished at the pace so far."""
        started = self.run.elapsed()
        for number in range(self.limit):
            elapsed = self.run.elapsed()
            pace = (elapsed - started) / number if number else 0.0
            if elapsed + pace > self.run.options.budget:
                return
            for case in self.experiment.cases:
                if self.run.elapsed() > self.run.options.budget:
                    return
                yield [
                    self.spec(arm, case, tunings[arm].hyper, replicate=number)
                    for arm in self.experiment.arms
                    if case in self.experiment.cases_of(arm)
                ]


def describe(study: Study) -> dict[str, Any]:
    """What a study states, in plain data: arms, cases, claims, replicates."""

    def claims(experiment: Experiment) -> Iterator[dict[str, Any]]:
        for premise, group in ((True, experiment.premises), (False, experiment.claims)):
            for claim in group:
                yield {
                    "text": claim.sentence(),
                    "kind": type(claim).__name__,
                    "premise": premise,
                    "primary": claim.primary,
                }

    return {
        "name": study.name,
        "seed": study.seed,
        "experiments": [
            {
                "name": e.name,
                "arms": {name: arm.role for name, arm in e.arms.items()},
                "cases": list(e.cases),
                "claims": list(claims(e)),
                "replicates": list(e.replicates),
                "tries": e.tries,
                "tune_on": e.tuning_case,
                "needs": list(e.needs),
                "data": e.data,
            }
            for e in study.experiments
        ],
    }
