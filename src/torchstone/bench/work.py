"""One experiment of a call: calibrate, tune, run replicate after replicate, stop when the verdicts are settled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from torchstone.bench.executors import Processes
from torchstone.bench.identity import RunSpec
from torchstone.bench.judge import judge_experiment, settled
from torchstone.bench.options import ignore
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.result import Tuning
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import draw
from torchstone.bench.stacking import PAYS, TUNING_BLOCK, blocks
from torchstone.bench.study import Experiment
from torchstone.bench.variance import variance_cells, variance_scores
from torchstone.bench.worker import CellDone

if TYPE_CHECKING:
    from torchstone.bench.runner import RunStudy

__all__ = ["UNFINISHED", "Stopped", "Work"]

Draws = dict[str, list[tuple[float, dict[str, Any]]]]  # arm -> objective and hyper-parameters of each draw

VARIANCE_RUNS = 10  # of each source of variation
UNFINISHED = "unfinished"  # how the reason begins if a study that was read back has not come to its end
TUNING_SHARE = 0.4  # of a time budget that tuning may use, so that replicates are left to decide anything


class Stopped(Exception):
    """Stops an experiment where it stands, with the reason; what is stored stays."""


class Work:
    """One experiment of one call.

    Args:
        run: the pass over the study.
        experiment: the experiment.
    """

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
        self.blocks = blocks(experiment.replicates[0], high)
        self.stacked = self._stacked(run.store.outcomes(spec.run_id for spec in self._calibrations()))
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
        draws = [spec for block in self._tuning_blocks() for spec in self._draws(block)]
        states = self.run.store.states(spec.run_id for spec in draws)
        ahead = [spec for spec in draws if states.get(spec.run_id) != "done"]
        tunings = self._stored_tunings(draws) if not ahead else {name: Tuning({}) for name in self.experiment.arms}
        places = [(case, block) for block in self._trial_blocks() for case in self.experiment.cases]
        trials = [spec for case, block in places for spec in self._cells(tunings, case, block)]
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
        """A run of this experiment."""
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

    def calibrate(self) -> None:
        """Find out which arms are faster if they train replicates in one pass."""
        found: dict[str, Outcome] = {}
        with closing(self.run.executor.run(self._begun([spec]) for spec in self._calibrations())) as cells:
            for done in cells:
                self.run.failures += done.failures
                if not done.complete:
                    raise Stopped("calibration failed" if done.failures else f"{UNFINISHED}: not calibrated yet")
                found |= done.outcomes
        self.stacked = self._stacked(found)

    def _calibrations(self) -> list[RunSpec]:
        """One run for each arm that can stack replicates, unless it is known without."""
        size = len(self.blocks[0])
        if self.run.options.stack != "auto" or size == 1:
            return []
        seeds, tuning_case = Seeds(self.run.study.seed), self.experiment.tuning_case
        return [
            self.spec(
                name,
                tuning_case if tuning_case in self.experiment.cases_of(name) else self.experiment.cases_of(name)[0],
                {**draw(arm.space, 0, seeds), **arm.hyper},
                replicate=0,
                kind="calibration",
                stacked=size,
            )
            for name, arm in self.experiment.arms.items()
            if arm.stacked is not None
        ]

    def _stacked(self, found: Mapping[str, Outcome]) -> dict[str, float]:
        """Arms that run replicates in one pass, and how many times as fast that is (NaN if it was not measured)."""
        if self.run.options.stack == "auto":
            measured = {spec.arm: found.get(spec.run_id) for spec in self._calibrations()}
            speedups = {arm: float(outcome.values["speedup"]) for arm, outcome in measured.items() if outcome}
            return {arm: speedup for arm, speedup in speedups.items() if speedup >= PAYS}
        wanted = self.run.options.stack == "always" and len(self.blocks[0]) > 1
        return {name: math.nan for name, arm in self.experiment.arms.items() if wanted and arm.stacked is not None}

    def _tuning_blocks(self) -> list[range]:
        size = TUNING_BLOCK if self.stacked.keys() & set(self.tunable) else 1
        return [range(start, min(start + size, self.tries)) for start in range(0, self.tries, size)]

    def _trial_blocks(self) -> list[range]:
        """What is run together; whole blocks, so that a run's identity does not depend on when to stop."""
        if self.stacked:
            return [block for block in self.blocks if block.start < self.limit]
        return [range(number, number + 1) for number in range(self.limit)]

    def tune(self) -> dict[str, Tuning]:
        """Draw after draw, all arms the same number; under a budget all stop after the same draw."""
        draws: Draws = {name: [] for name in self.tunable}
        with closing(self.run.executor.run(self._tuning_cells())) as cells:
            for done in cells:
                self.run.failures += done.failures
                if done.failures:
                    raise Stopped("tuning failed")
                if not done.complete:  # read back from a store: what is there decides, as under a time budget
                    break
                for spec in done.specs:
                    draws[spec.arm].append(_drawn(spec, done.outcomes[spec.run_id]))
        if not all(draws.values()):
            raise Stopped(f"{UNFINISHED}: not tuned yet")
        tunings = {name: self._tuning(name, draws) for name in self.experiment.arms}
        self.run.emit("tuned", experiment=self.experiment.name, tunings=tunings)
        return tunings

    def _tuning_cells(self) -> Iterator[list[RunSpec]]:
        for block in self._tuning_blocks():
            if block.start and self.run.elapsed() > self.run.options.budget * TUNING_SHARE:
                return
            yield self._begun(self._draws(block))

    def _draws(self, block: range) -> list[RunSpec]:
        """Some draws of every tunable arm."""
        seeds, case = Seeds(self.run.study.seed), self.experiment.tuning_case
        arms = {name: self.experiment.arms[name] for name in self.tunable}
        return [
            self.spec(
                name,
                case,
                {**arm.hyper, **draw(arm.space, attempt, seeds)},
                replicate=0,
                kind="hpo",
                attempt=attempt,
                stacked=len(block) if name in self.stacked else 1,
            )
            for attempt in block
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
        outcomes: dict[int, dict[tuple[str, str], Outcome]] = {}
        with closing(self.run.executor.run(self._trial_cells(tunings))) as cells:
            for done in cells:
                self.run.failures += done.failures
                if not done.complete:
                    number = next(spec.replicate for spec in done.specs if spec.run_id not in done.outcomes)
                    return (
                        f"replicate {number} failed"
                        if done.failures
                        else f"{UNFINISHED}: replicate {number} is missing"
                    )
                for spec in done.specs:
                    outcomes.setdefault(spec.replicate, {})[spec.arm, spec.case] = done.outcomes[spec.run_id]
                for number in sorted(outcomes):
                    complete = len(outcomes[number]) == len(self.experiment.slots)
                    if complete and number < self.limit and self._add_row(number, outcomes.pop(number)):
                        return "every claim is decided"
        return f"all {self.limit} replicates done" if len(self.rows) == self.limit else "time budget spent"

    def _add_row(self, number: int, outcomes: Mapping[tuple[str, str], Outcome]) -> bool:
        """Add a complete replicate; return whether every claim is decided."""
        self.rows.append(self.experiment.row(number, outcomes))
        self.run.keep_derived(self.experiment, self.rows[-1])
        judgements = judge_experiment(
            self.run.study.name, self.experiment, self.rows, self.run.options.e_threshold, describe=False
        )
        self.run.emit("replicate", experiment=self.experiment.name, number=number, judgements=judgements)
        return settled(judgements)

    def _trial_cells(self, tunings: Mapping[str, Tuning]) -> Iterator[list[RunSpec]]:
        """Cells in order; under a budget no replicate is begun that would not be finished at the pace so far."""
        started = self.run.elapsed()
        for block in self._trial_blocks():
            elapsed = self.run.elapsed()
            pace = (elapsed - started) / block.start if block.start else 0.0
            if elapsed + pace * len(block) > self.run.options.budget:
                return
            for case in self.experiment.cases:
                if self.run.elapsed() > self.run.options.budget:
                    return
                yield self._begun(self._cells(tunings, case, block))

    def _cells(self, tunings: Mapping[str, Tuning], case: str, block: range) -> list[RunSpec]:
        """The runs of all arms in one case of one or more replicates."""
        arms = [arm for arm in self.experiment.arms if case in self.experiment.cases_of(arm)]
        return [
            self.spec(
                arm,
                case,
                tunings[arm].hyper,
                replicate=number,
                stacked=len(block) if arm in self.stacked else 1,
            )
            for number in block
            for arm in arms
        ]

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
