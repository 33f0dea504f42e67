"""Run a study: tune, run replicate after replicate, stop when the verdicts are settled.

The store is the memory. Every step first asks it what is done already, so running a study again continues it, and
running a finished one computes nothing. Nothing here knows a method; an arm is a function.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchstone.bench.environment import environment
from torchstone.bench.fingerprint import fingerprint
from torchstone.bench.identity import RunSpec
from torchstone.bench.judge import judge, judge_experiment, settled
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.result import Result, Tuning
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import draw
from torchstone.bench.store import Store, owner_id
from torchstone.bench.study import Cell, Experiment, Study
from torchstone.errors import DivergedError, StudyError

__all__ = ["Event", "Options", "run_study"]

TUNING_SHARE = 0.4  # of a time budget that tuning may use, so that replicates are left to decide anything


@dataclass(frozen=True)
class Event:
    """Something worth showing: ``plan``, ``tuned``, ``run``, ``replicate``, ``failed``, ``stopped``, ``done``."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)


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
    listen: Callable[[Event], None] = _ignore
    available: Callable[[str], str] = lambda need: ""


class _BudgetSpent(Exception):
    """Stops an experiment where it stands; what is stored stays."""


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
        self.owner = owner_id()
        self.study_id = store.add_study(study.name, describe(study))
        self.failures: list[str] = []

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
            try:
                tunings[name] = work.tune()
                stopped[name] = work.replicate(tunings[name])
            except _BudgetSpent:
                stopped[name] = "time budget spent"
            tunings.setdefault(name, {})
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
        high = experiment.replicates[1]
        self.limit = high if run.options.replicates is None else min(high, run.options.replicates)
        if run.options.scale == "smoke":
            self.limit = 1
        tries = 1 if run.options.scale == "smoke" else experiment.tries
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

    @property
    def tunable(self) -> list[str]:
        return [name for name, arm in self.experiment.arms.items() if arm.space]

    def spec(self, arm: str, case: str, replicate: int, hyper: Mapping[str, Any], kind: str, attempt: int) -> RunSpec:
        return RunSpec(
            study=self.run.study.name,
            experiment=self.experiment.name,
            arm=arm,
            case=case,
            replicate=replicate,
            scale=self.run.options.scale,
            kind=kind,
            attempt=attempt,
            seed=self.run.study.seed,
            hyper=hyper,
            setting=self.setting,
            data=self.experiment.data,
            fingerprint=self.prints[arm],
        )

    # ---------------------------------------------------------------- tuning

    def tune(self) -> dict[str, Tuning]:
        """Draw after draw, all arms the same number; under a budget all stop after the same draw."""
        seeds = Seeds(self.run.study.seed)
        case = self.experiment.tuning_case
        draws: dict[str, list[tuple[float, dict[str, Any]]]] = {name: [] for name in self.tunable}
        budget = self.run.options.budget * TUNING_SHARE
        for attempt in range(self.tries):
            if attempt and self.run.elapsed() > budget:
                break
            specs = []
            for name in self.tunable:
                arm = self.experiment.arms[name]
                hyper = {**arm.hyper, **draw(arm.space, attempt, seeds)}
                specs.append(self.spec(name, case, 0, hyper, "hpo", attempt))
            outcomes = self.execute(specs)
            if len(outcomes) < len(specs):
                raise _BudgetSpent
            for spec in specs:
                objective = outcomes[spec.run_id].objective
                draws[spec.arm].append((-math.inf if objective is None else objective, dict(spec.hyper)))
        tunings = {}
        for name, arm in self.experiment.arms.items():
            source = name if arm.space else arm.tuned_as
            if source is None:
                tunings[name] = Tuning(dict(arm.hyper))
                continue
            best, hyper = max(draws[source], key=lambda pair: pair[0])  # the first of equals
            if best == -math.inf:  # every draw diverged: the arm's own defaults are the only other honest choice
                hyper = dict(self.experiment.arms[source].hyper)
            chosen = {key: value for key, value in hyper.items() if key in self.experiment.arms[source].space}
            tunings[name] = Tuning({**arm.hyper, **chosen}, best, len(draws[source]), source)
        self.run.emit("tuned", experiment=self.experiment.name, tunings=tunings)
        return tunings

    # ---------------------------------------------------------------- replicates

    def replicate(self, tunings: Mapping[str, Tuning]) -> str:
        """Run replicates until settled, out of replicates, out of budget, or stuck; return which."""
        for number in range(self.limit):
            before = self.run.elapsed()
            outcomes: dict[tuple[str, str], Outcome] = {}
            for case in self.experiment.cases:
                specs = [
                    self.spec(arm, case, number, tunings[arm].hyper, "trial", 0)
                    for arm in self.experiment.arms
                    if case in self.experiment.cases_of(arm)
                ]
                done = self.execute(specs)
                outcomes |= {(spec.arm, case): done[spec.run_id] for spec in specs if spec.run_id in done}
                if self.run.elapsed() > self.run.options.budget and case != self.experiment.cases[-1]:
                    raise _BudgetSpent
            if len(outcomes) < len(self.experiment.slots):
                return f"replicate {number} failed"
            self.rows.append(self.experiment.row(number, outcomes))
            judgements = judge_experiment(
                self.run.study.name, self.experiment, self.rows, self.run.options.e_threshold, describe=False
            )
            self.run.emit("replicate", experiment=self.experiment.name, number=number, judgements=judgements)
            if settled(judgements):
                return "every claim is decided"
            last = self.run.elapsed() - before
            if number + 1 < self.limit and self.run.elapsed() + last > self.run.options.budget:
                return "time budget spent"
        return f"all {self.limit} replicates done"

    # ---------------------------------------------------------------- cells

    def execute(self, specs: Sequence[RunSpec]) -> dict[str, Outcome]:
        """Run the arms of one cell that are not stored yet; return the outcomes there are."""
        store, ids = self.run.store, [spec.run_id for spec in specs]
        self.run_ids += ids
        store.plan(specs, study_id=self.run.study_id)
        done = store.outcomes(ids)
        missing = [spec for spec in specs if spec.run_id not in done]
        claimed = set(store.claim([spec.run_id for spec in missing], self.run.owner))
        todo = [spec for spec in missing if spec.run_id in claimed]
        if todo:
            shared = _Shared(self.experiment)
            try:
                for spec in todo:
                    outcome = self._run_arm(spec, shared)
                    claimed.discard(spec.run_id)
                    if outcome is not None:
                        done[spec.run_id] = outcome
            finally:
                if claimed:
                    store.release(sorted(claimed), self.run.owner)
        return done

    def _run_arm(self, spec: RunSpec, shared: _Shared) -> Outcome | None:
        curves: dict[str, list[tuple[int, float]]] = {}

        def log(name: str, value: float, step: int | None = None) -> None:
            points = curves.setdefault(name, [])
            points.append((len(points) if step is None else step, float(value)))

        checkpoint = _RunCheckpoint(_checkpoint_path(self.run.store.url, spec.run_id))
        cell = Cell(
            experiment=spec.experiment,
            case=spec.case,
            replicate=spec.replicate,
            seeds=Seeds(spec.seed, spec.replicate),
            setting=self.setting,
            tuning=spec.kind == "hpo",
            device=self.run.options.device,
            checkpoint=checkpoint,
            log=log,
        )
        cell = replace(cell, shared=shared.bind(cell))
        shared.seconds = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            outcome = _checked(self.experiment.arms[spec.arm].run(cell, **spec.hyper), spec)
        except DivergedError as error:
            outcome = Outcome(objective=-math.inf, diverged=str(error))
        except StudyError:
            raise
        except Exception as error:
            self.run.store.fail(spec.run_id, self.run.owner, error)
            where = f"{spec.experiment}/{spec.arm}/{spec.case}/{spec.replicate}"
            self.run.failures.append(f"{where}: {type(error).__name__}: {error}")
            self.run.emit("failed", spec=spec, error=error)
            if self.run.options.fail_fast:
                raise
            return None
        self.run.store.finish(
            spec.run_id,
            self.run.owner,
            outcome,
            wall_s=time.perf_counter() - wall - shared.seconds,
            cpu_s=time.process_time() - cpu,
            shared_s=shared.seconds,
            peak_rss=_peak_rss(),
            device=self.run.options.device,
            curves=curves,
        )
        checkpoint.remove()
        self.run.emit("run", spec=spec, outcome=outcome)
        return outcome


class _RunCheckpoint:
    """Checkpoint of one run, in a file beside the store; opened, and torch imported, only if the arm asks for it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        from torchstone.training.checkpoint import FileCheckpoint

        return FileCheckpoint(self.path).load()

    def save(self, state: dict[str, Any]) -> None:
        if self.path is not None:
            from torchstone.training.checkpoint import FileCheckpoint

            FileCheckpoint(self.path).save(state)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class _Shared:
    """Work that several arms of a cell need: computed on first use, once per cell, and timed apart."""

    def __init__(self, experiment: Experiment) -> None:
        self.compute = experiment.shared
        self.value: Any = None
        self.ready = False
        self.seconds = 0.0

    def bind(self, cell: Cell) -> Callable[[], Any]:
        def shared() -> Any:
            if not self.ready and self.compute is not None:
                started = time.perf_counter()
                self.value = self.compute(cell)
                self.seconds += time.perf_counter() - started
            self.ready = True
            return self.value

        return shared


def _checked(outcome: Any, spec: RunSpec) -> Outcome:
    """Refuse what breaks the protocol: an arm that leaks test values while it is tuned would spoil every verdict."""
    where = f"arm {spec.arm!r} of experiment {spec.experiment!r}"
    if not isinstance(outcome, Outcome):
        raise StudyError(f"{where} must return an Outcome, but returned {type(outcome).__name__}")
    if spec.kind == "hpo":
        if outcome.values:
            raise StudyError(
                f"{where} returned {', '.join(outcome.values)} while being tuned: return only the objective"
            )
        if outcome.objective is None and not outcome.diverged:
            raise StudyError(f"{where} returned no objective while being tuned")
    return outcome


def _checkpoint_path(url: str, run_id: str) -> Path | None:
    """Beside the store where that is a file; no checkpoints otherwise."""
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url.endswith(":memory:"):
        return None
    return Path(url.removeprefix(prefix)).parent / "checkpoints" / f"{run_id}.pt"


def _peak_rss() -> int:
    """Largest resident size of this process so far, in bytes."""
    if os.name != "posix":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
