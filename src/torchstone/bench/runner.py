"""Run a study: tune, run replicate after replicate, stop when the verdicts are settled.

The store is the memory. Every step first asks it what is done already, so running a study again continues it, and
running a finished one computes nothing. Nothing here knows a method; an arm is a function.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from torchstone.bench.description import describe
from torchstone.bench.environment import environment
from torchstone.bench.executors import Executor, Inline, Processes, Recipe
from torchstone.bench.fingerprint import Closures, fingerprint
from torchstone.bench.identity import RunSpec
from torchstone.bench.judge import judge, judge_experiment, settled
from torchstone.bench.options import Options, ignore
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.result import Result, Tuning
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import draw
from torchstone.bench.store import Store
from torchstone.bench.study import Experiment, Study
from torchstone.bench.variance import variance_cells, variance_scores
from torchstone.bench.worker import CellDone, Event, Worker
from torchstone.errors import StudyError

__all__ = ["UNFINISHED", "Event", "Options", "RunStudy", "run_study"]

Draws = dict[str, list[tuple[float, dict[str, Any]]]]  # arm -> objective and hyper-parameters of each draw

VARIANCE_RUNS = 10  # of each source of variation
UNFINISHED = "unfinished"  # how the reason begins if a study that was read back has not come to its end
TUNING_SHARE = 0.4  # of a time budget that tuning may use, so that replicates are left to decide anything


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
    known: Closures = {}
    return {
        **({"variance": True} if options.variance else {}),
        "scale": options.scale,
        "e_threshold": options.e_threshold,
        "replicates": options.replicates,
        "not_run": {experiment.name: _obstacle(experiment, options) for experiment in study.experiments},
        "fingerprints": {
            experiment.name: {name: fingerprint(arm.run, known=known) for name, arm in experiment.arms.items()}
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
    in_memory = store.url == ":memory:"
    if options.executor == "process" and in_memory:
        raise StudyError("worker processes cannot share a store in memory: name a file for the store")
    wanted = options.executor == "process" or (options.executor == "auto" and (options.jobs > 1 or options.limited))
    if wanted and not in_memory:
        recipe = Recipe(study, study_id, store.where, device=options.device, fail_fast=options.fail_fast)
        limits = {"cell_limit": options.cell_limit, "memory_limit": options.memory_limit}
        return Processes(recipe, options.jobs, listen=options.listen, **limits)
    if options.limited:
        raise StudyError(
            "only a worker process can be held to cell_limit and memory_limit: leave them out, or use "
            "executor='process' with a file for the store"
        )
    return Inline(
        Worker(study, study_id, store, device=options.device, fail_fast=options.fail_fast, listen=options.listen)
    )


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
        variance: dict[str, dict[str, dict[str, list[float]]]] = {}
        run_ids: list[str] = []
        works: list[_Work] = []
        for experiment in self.study.experiments:
            not_run[experiment.name] = self.plan["not_run"][experiment.name]
            if not not_run[experiment.name]:
                works.append(_Work(self, experiment))
        self.emit("planned")
        for work in works:
            experiment, name = work.experiment, work.experiment.name
            tunings[name] = {}
            try:
                tunings[name] = work.tune()
                stopped[name] = work.replicate(tunings[name])
                if self.options.variance and experiment is self.study.primary[0] and not self.failures:
                    variance[name] = work.vary(tunings[name])
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
            variance=variance,
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
        if run.options.listen is not ignore:
            done, estimate = self._ahead()
            run.emit(
                "plan",
                experiment=experiment.name,
                arms=len(experiment.arms),
                cases=len(experiment.cases),
                draws=self.tries * len(self.tunable),
                runs=self.limit * len(experiment.slots),
                replicates=self.limit,
                done=done,
                estimate=estimate,
            )

    def _ahead(self) -> tuple[int, float | None]:
        """How many draws and runs are stored, and how many seconds all others will take.

        The seconds are those of past runs, of older code or other hyper-parameters too; None if there are none.
        """
        draws = [spec for attempt in range(self.tries) for spec in self._draws(attempt)]
        states = self.run.store.states(spec.run_id for spec in draws)
        ahead = [spec for spec in draws if states.get(spec.run_id) != "done"]
        tunings = self._stored_tunings(draws) if not ahead else {name: Tuning({}) for name in self.experiment.arms}
        places = [(case, number) for number in range(self.limit) for case in self.experiment.cases]
        trials = [spec for case, number in places for spec in self._cell(tunings, case, number)]
        if not ahead:  # before tuning is over it is not known which runs there will be
            states |= self.run.store.states(spec.run_id for spec in trials)
        ahead += [spec for spec in trials if states.get(spec.run_id) != "done"]
        seconds = self.run.store.mean_seconds(self.run.study.name, self.run.options.scale)
        known = [seconds.get((spec.kind, spec.experiment, spec.arm, spec.case)) for spec in ahead]
        jobs = self.run.executor.jobs if isinstance(self.run.executor, Processes) else 1
        total = None if None in known else math.fsum(filter(None, known)) / jobs
        return len(draws) + len(trials) - len(ahead), total

    def _stored_tunings(self, specs: Sequence[RunSpec]) -> dict[str, Tuning]:
        outcomes = self.run.store.outcomes(spec.run_id for spec in specs)
        draws: Draws = {name: [] for name in self.tunable}
        for spec in specs:
            draws[spec.arm].append(_drawn(spec, outcomes[spec.run_id]))
        return {name: self._tuning(name, draws) for name in self.experiment.arms}

    def spec(self, arm: str, case: str, hyper: Mapping[str, Any], **place: Any) -> RunSpec:
        return RunSpec(
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

    def _begun(self, cell: list[RunSpec]) -> list[RunSpec]:
        self.run_ids += [spec.run_id for spec in cell]
        return cell

    def tune(self) -> dict[str, Tuning]:
        """Draw after draw, all arms the same number; under a budget all stop after the same draw."""
        draws: Draws = {name: [] for name in self.tunable}
        with closing(self.run.executor.run(self._tuning_cells())) as cells:
            for done in cells:
                self.run.failures += done.failures
                if done.failures:
                    raise _Stopped("tuning failed")
                if not done.complete:  # read back from a store: what is there decides, as under a time budget
                    break
                for spec in done.specs:
                    draws[spec.arm].append(_drawn(spec, done.outcomes[spec.run_id]))
        if not all(draws.values()):
            raise _Stopped(f"{UNFINISHED}: not tuned yet")
        tunings = {name: self._tuning(name, draws) for name in self.experiment.arms}
        self.run.emit("tuned", experiment=self.experiment.name, tunings=tunings)
        return tunings

    def _tuning_cells(self) -> Iterator[list[RunSpec]]:
        for attempt in range(self.tries):
            if attempt and self.run.elapsed() > self.run.options.budget * TUNING_SHARE:
                return
            yield self._begun(self._draws(attempt))

    def _draws(self, attempt: int) -> list[RunSpec]:
        """One draw of every tunable arm."""
        seeds, case = Seeds(self.run.study.seed), self.experiment.tuning_case
        arms = {name: self.experiment.arms[name] for name in self.tunable}
        return [
            self.spec(
                name, case, {**arm.hyper, **draw(arm.space, attempt, seeds)}, replicate=0, kind="hpo", attempt=attempt
            )
            for name, arm in arms.items()
        ]

    def _tuning(self, name: str, draws: Draws) -> Tuning:
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
                yield self._begun(self._cell(tunings, case, number))

    def _cell(self, tunings: Mapping[str, Tuning], case: str, number: int) -> list[RunSpec]:
        """The runs of all arms in one case of a replicate."""
        arms = [arm for arm in self.experiment.arms if case in self.experiment.cases_of(arm)]
        return [self.spec(arm, case, tunings[arm].hyper, replicate=number) for arm in arms]

    def vary(self, tunings: Mapping[str, Tuning]) -> dict[str, dict[str, list[float]]]:
        """Scores of the arms of the primary claim: arm -> source that alone was resampled -> scores."""
        claim, runs = self.run.study.primary[1], 2 if self.run.options.scale == "smoke" else VARIANCE_RUNS

        def spec(arm: str, case: str, **place: Any) -> RunSpec:
            return self.spec(arm, case, tunings[arm].hyper, **place)

        cells = list(variance_cells(claim, self.experiment, runs, spec))
        self.run.emit("variance", experiment=self.experiment.name, runs=sum(map(len, cells)))
        done: list[CellDone] = []
        with closing(self.run.executor.run(self._within_budget(cells))) as finished:
            for one in finished:
                self.run.failures += one.failures
                if one.failures:
                    break
                done.append(one)
        return variance_scores(claim, done)

    def _within_budget(self, cells: Iterable[list[RunSpec]]) -> Iterator[list[RunSpec]]:
        for cell in cells:
            if self.run.elapsed() > self.run.options.budget:
                return
            yield self._begun(cell)


def _drawn(spec: RunSpec, outcome: Outcome) -> tuple[float, dict[str, Any]]:
    """What tuning knows of a draw."""
    return (-math.inf if outcome.objective is None else outcome.objective, dict(spec.hyper))
