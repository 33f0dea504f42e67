"""What is computed in one pass: an arm in one cell, or, where it stacks replicates, in a block of cells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchstone.bench.identity import RunSpec
from torchstone.bench.outcome import Outcome
from torchstone.bench.seeds import Seeds
from torchstone.bench.stacking import calibrate
from torchstone.bench.study import Arm, Cell, Checkpoint, Experiment
from torchstone.errors import DivergedError, StudyError

__all__ = ["Pass", "passes", "text_of"]


def passes(specs: Sequence[RunSpec], experiment: Experiment) -> Iterator[Pass]:
    """What is computed in one pass, in order: the runs of an arm that stacks replicates, else every run by itself."""
    shared = {spec.replicate: _Shared(experiment) for spec in specs}
    groups: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault((spec.arm, spec.run_id if spec.stacked == 1 else ""), []).append(spec)
    for group in groups.values():
        yield Pass(group, experiment, shared)


class Pass:
    """An arm, and the run or runs that it computes in one pass."""

    def __init__(self, specs: Sequence[RunSpec], experiment: Experiment, shared: Mapping[int, _Shared]) -> None:
        self.specs, self.experiment = specs, experiment
        self.shared = {spec.replicate: shared[spec.replicate] for spec in specs}
        self.curves: dict[str, dict[str, list[tuple[int, float]]]] = {spec.run_id: {} for spec in specs}

    @property
    def shared_seconds(self) -> tuple[float, float]:
        """What the shared work took that was done in this pass: wall clock, processor."""
        return sum(one.seconds for one in self.shared.values()), sum(one.cpu for one in self.shared.values())

    def run(self, device: str, checkpoint: Checkpoint) -> dict[str, Outcome]:
        """Outcomes by run id."""
        for one in self.shared.values():
            one.seconds = one.cpu = 0.0
        arm, first = self.experiment.arms[self.specs[0].arm], self.specs[0]
        if first.kind == "calibration":
            cells = [self._cell(first, device, replicate) for replicate in range(first.stacked)]
            return {first.run_id: calibrate(arm, cells, first.hyper)}
        if first.stacked == 1:
            cell = replace(self._cell(first, device), checkpoint=checkpoint)
            return {first.run_id: _checked(_run_alone(arm, cell, first.hyper), first)}
        cells = [self._cell(spec, device) for spec in self.specs]
        outcomes = _run_together(arm, cells, self.specs)
        return {spec.run_id: _checked(outcome, spec) for spec, outcome in zip(self.specs, outcomes, strict=True)}

    def _cell(self, spec: RunSpec, device: str, replicate: int | None = None) -> Cell:
        curves = self.curves[spec.run_id]

        def log(name: str, value: float, step: int | None = None) -> None:
            points = curves.setdefault(name, [])
            points.append((len(points) if step is None else step, float(value)))

        cell = Cell(
            experiment=spec.experiment,
            case=spec.case,
            replicate=0 if spec.kind == "variance" else spec.replicate,
            seeds=spec.seeds,
            setting=self.experiment.settings.get(spec.scale),
            tuning=spec.kind in ("hpo", "calibration"),
            device=device,
            log=log,
        )
        shared = self.shared[spec.replicate]
        if replicate is not None:  # a calibration has replicates of its own, whose test data stay sealed
            cell = replace(cell, replicate=replicate, seeds=Seeds(spec.seed, replicate), log=lambda *point: None)
            shared = _Shared(self.experiment)
        return replace(cell, shared=shared.bind(cell))


def _run_alone(arm: Arm, cell: Cell, hyper: Mapping[str, Any]) -> Outcome:
    try:
        return arm.run(cell, **hyper)
    except DivergedError as error:
        return Outcome(objective=-math.inf, diverged=text_of(error) or "training diverged")


def _run_together(arm: Arm, cells: Sequence[Cell], specs: Sequence[RunSpec]) -> Sequence[Outcome]:
    place = f"arm {specs[0].arm!r} of experiment {specs[0].experiment!r}"
    if arm.stacked is None:
        raise StudyError(f"{place} cannot stack replicates")
    try:
        outcomes = arm.stacked(cells, [spec.hyper for spec in specs])
    except DivergedError as error:
        raise StudyError(
            f"{place} raised DivergedError ({text_of(error)}) for many replicates at once: it must return one outcome "
            "for each, with the reason in those that diverged"
        ) from error
    if not isinstance(outcomes, Sequence) or len(outcomes) != len(cells):
        found = len(outcomes) if isinstance(outcomes, Sequence) else type(outcomes).__name__
        raise StudyError(f"{place} must return one outcome for each of {len(cells)} cells, but returned {found}")
    return outcomes


class _Shared:
    """Work that several arms of a cell need: computed on first use, once per cell, and timed apart."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.value: Any = None
        self.ready = False
        self.seconds = self.cpu = 0.0

    def bind(self, cell: Cell) -> Callable[[], Any]:
        def shared() -> Any:
            if not self.ready:
                started, cpu = time.perf_counter(), time.process_time()
                compute = self.experiment.shared
                self.value = None if compute is None else compute(cell)
                self.ready = True
                self.seconds += time.perf_counter() - started
                self.cpu += time.process_time() - cpu
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


def text_of(error: BaseException) -> str:
    """The text of an error, or nothing if it has none to give."""
    try:
        return str(error)
    except Exception:  # an error whose own text cannot be made is still an error
        return ""
