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

from torchstone.bench.description import describe
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

__all__ = ["UNFINISHED", "Event", "Options", "RunStudy", "run_study"]

UNFINISHED = "unfinished"  # how the reason begins if a study that was read back has not come to its end
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
    plan = _plan(study, options)
    study_id = store.add_study(study.name, {**describe(study), "plan": plan})
    result = RunStudy(study, store, options, _executor(study, study_id, store, options), plan, study_id).all()
    store.log_verdicts(study_id, result.verdict_records())
    options.listen(Event("done", {"seconds": result.seconds}))
    return result


def _plan(study: Study, options: Options) -> dict[str, Any]:
    """What of a study is run, and the identity of its code; stored with it, so that its runs are found again."""
    return {
        "scale": options.scale,
        "e_threshold": options.e_threshold,
        "replicates": options.replicates,
        "not_run": {experiment.name: _obstacle(experiment, options) for experiment in study.experiments},
        "fingerprints": {
            experiment.name: {name: fingerprint(arm.run) for name, arm in experiment.arms.items()}
            for experiment in study.experiments
        },
    }


def _obstacle(experiment: Experiment, options: Options) -> str:
    """Why an experiment is not run, or the empty string."""
    if options.only and experiment.name not in options.only:
        return "not asked for"
    if experiment.settings and options.scale not in experiment.settings:
        return f"it has no {options.scale} scale"
    return next(filter(None, map(options.available, experiment.needs)), "")


def _executor(study: Study, study_id: str, store: Store, options: Options) -> Executor:
    if options.jobs == 1 or store.url == ":memory:":
        worker = Worker(
            study, study_id, store, device=options.device, fail_fast=options.fail_fast, listen=options.listen
        )
        return Inline(worker)
    recipe = Recipe(study, study_id, store.where, device=options.device, fail_fast=options.fail_fast)
    return Processes(recipe, options.jobs, listen=options.listen)


class RunStudy:
    """One pass over a study: tune, add replicates until settled, judge. What a cell costs is the executor's affair.

    Args:
        study: the study.
        store: where outcomes are.
        options: see :class:`Options`.
        executor: computes cells, or reads them.
        plan: what of the study is run, with the fingerprints of its code.
        study_id: id of study and plan in the store.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        options: Options,
        executor: Executor,
        plan: Mapping[str, Any],
        study_id: str,
    ) -> None:
        self.study, self.store, self.options, self.executor = study, store, options, executor
        self.plan, self.study_id = plan, study_id
        self.started = time.monotonic()
        self.failures: list[str] = []

    def all(self) -> Result:
        """Run (or read) every experiment and judge."""
        rows: dict[str, list[Row]] = {}
        tunings: dict[str, Mapping[str, Tuning]] = {}
        not_run: dict[str, str] = {}
        stopped: dict[str, str] = {}
        run_ids: list[str] = []
        for experiment in self.study.experiments:
            name = experiment.name
            not_run[name] = self.plan["not_run"][name]
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
        return Result(
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

    def keep_derived(self, experiment: Experiment, row: Row) -> None:
        """Store what was derived from a row, for those who read it back without the study's code."""
        if experiment.derive is not None:
            self.store.keep_derived(self.study_id, experiment.name, row.replicate, row.derived)

    def emit(self, kind: str, **fields: Any) -> None:
        """Tell whoever listens."""
        self.options.listen(Event(kind, fields))

    def elapsed(self) -> float:
        """Seconds since the pass began."""
        return time.monotonic() - self.started


class _Work:
    """One experiment of one call."""

    def __init__(self, run: RunStudy, experiment: Experiment) -> None:
        self.run, self.experiment = run, experiment
        self.rows: list[Row] = []
        self.run_ids: list[str] = []
        self.setting = experiment.settings.get(run.options.scale)
        self.prints = run.plan["fingerprints"][experiment.name]
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
                if done.failures:
                    raise _Stopped("tuning failed")
                if not done.complete:  # read back from a store: what is there decides, as under a time budget
                    break
                for spec in done.specs:
                    objective = done.outcomes[spec.run_id].objective
                    draws[spec.arm].append((-math.inf if objective is None else objective, dict(spec.hyper)))
        if not all(draws.values()):
            raise _Stopped(f"{UNFINISHED}: not tuned yet")
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
                    return (
                        f"replicate {number} failed"
                        if done.failures
                        else f"{UNFINISHED}: replicate {number} is missing"
                    )
                outcomes |= {(spec.arm, case): done.outcomes[spec.run_id] for spec in done.specs}
                if len(outcomes) < len(self.experiment.slots):
                    continue
                self.rows.append(self.experiment.row(number, outcomes))
                self.run.keep_derived(self.experiment, self.rows[-1])
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
