"""Run a study: tune, run replicate after replicate, stop when the verdicts are settled.

The store is the memory. Every step first asks it what is done already, so running a study again continues it, and
running a finished one computes nothing. Nothing here knows a method; an arm is a function.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torchstone.bench.description import describe
from torchstone.bench.environment import environment
from torchstone.bench.executors import Executor, Inline, Processes, Recipe
from torchstone.bench.fingerprint import Closures, fingerprint
from torchstone.bench.identity import digest
from torchstone.bench.judge import judge
from torchstone.bench.options import Options
from torchstone.bench.outcome import Row
from torchstone.bench.result import Result, Tuning
from torchstone.bench.store import Store
from torchstone.bench.study import Arm, Experiment, Study
from torchstone.bench.work import UNFINISHED, Stopped, Work
from torchstone.bench.worker import Event, Worker
from torchstone.errors import StudyError

__all__ = ["UNFINISHED", "Event", "Options", "RunStudy", "run_study"]


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
    stacks = any(arm.stacked for experiment in study.experiments for arm in experiment.arms.values())
    return {
        **({"variance": True} if options.variance else {}),
        **({"stack": options.stack} if stacks else {}),
        "scale": options.scale,
        "e_threshold": options.e_threshold,
        "replicates": options.replicates,
        "not_run": {experiment.name: _obstacle(experiment, options) for experiment in study.experiments},
        "fingerprints": {
            experiment.name: {name: _fingerprint(arm, known) for name, arm in experiment.arms.items()}
            for experiment in study.experiments
        },
    }


def _fingerprint(arm: Arm, known: Closures) -> str:
    """The identity of an arm's code, of both its ways to run."""
    own = fingerprint(arm.run, known=known)
    return own if arm.stacked is None else digest([own, fingerprint(arm.stacked, known=known)])


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
        stacked: dict[str, Mapping[str, float]] = {}
        works: list[Work] = []
        for experiment in self.study.experiments:
            not_run[experiment.name] = self.plan["not_run"][experiment.name]
            if not not_run[experiment.name]:
                works.append(Work(self, experiment))
        self.emit("planned")
        for work in works:
            experiment, name = work.experiment, work.experiment.name
            tunings[name] = {}
            try:
                work.calibrate()
                tunings[name] = work.tune()
                stopped[name] = work.replicate(tunings[name])
                if self.options.variance and experiment is self.study.primary[0] and not self.failures:
                    variance[name] = work.vary(tunings[name])
            except Stopped as stop:
                stopped[name] = str(stop)
            rows[name] = work.rows
            run_ids += work.run_ids
            stacked |= {name: work.stacked} if work.stacked else {}
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
            stacked=stacked,
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
