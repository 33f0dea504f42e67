"""Run one cell: take its runs from the store, call the arms, put the outcomes back.

A worker owns the runs it has claimed for as long as it renews its lease. Where another worker holds some runs of the
cell, this one waits for them instead of computing them twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchstone.bench.capture import Capture, Streams
from torchstone.bench.identity import RunSpec
from torchstone.bench.outcome import Outcome
from torchstone.bench.store import Store
from torchstone.bench.store.owner import owner_id
from torchstone.bench.study import Cell, Experiment, Study
from torchstone.errors import CorruptDataError, DivergedError, StoreError, StudyError, TorchstoneError

__all__ = ["CellDone", "Event", "Worker", "reason_of", "where"]

LEASE_S = 60.0
WAIT_S = 0.2  # between two looks at runs that another worker holds
REASON_LENGTH = 500  # of the text of an error in a message; the store keeps more


@dataclass(frozen=True)
class Event:
    """Something worth showing.

    ``plan``, ``planned``, ``tuned``, ``run``, ``replicate``, ``failed``, ``interrupted``, ``stopped``, ``done``.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CellDone:
    """What became of a cell: outcomes by run id, and one sentence for each run that raised."""

    specs: Sequence[RunSpec]
    outcomes: Mapping[str, Outcome]
    failures: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every run has an outcome."""
        return len(self.outcomes) == len(self.specs)


class Worker:
    """Runs cells of one study against one store.

    Args:
        study: the study.
        study_id: its id in the store.
        store: where runs are kept.
        device: where the arms compute.
        fail_fast: raise what an arm raises, instead of noting it.
        listen: receives ``run`` and ``failed`` events.
        capture: hears what the arms print.
    """

    def __init__(
        self,
        study: Study,
        study_id: str,
        store: Store,
        *,
        device: str = "cpu",
        fail_fast: bool = False,
        listen: Callable[[Event], None] = lambda event: None,
        capture: Capture | None = None,
    ) -> None:
        self.study, self.study_id, self.store = study, study_id, store
        self.device, self.fail_fast, self.listen = device, fail_fast, listen
        self.capture = capture or Streams()
        self.owner = owner_id()

    def run(self, specs: Sequence[RunSpec]) -> CellDone:
        """Run the arms of one cell that are not stored yet.

        Raises:
            StudyError: if an arm breaks the protocol (returns no outcome, or test values while being tuned).
        """
        ids = [spec.run_id for spec in specs]
        self.store.plan(specs, study_id=self.study_id)
        done = self.store.outcomes(ids)
        failures: dict[str, str] = {}
        shared = _Shared(self.study.experiment(specs[0].experiment))
        while waiting := [spec for spec in specs if spec.run_id not in done and spec.run_id not in failures]:
            claimed = self.store.claim([spec.run_id for spec in waiting], self.owner, lease_s=LEASE_S)
            if not claimed:
                time.sleep(WAIT_S)
            with self._holding(claimed) as held:
                for spec in waiting:
                    if spec.run_id in held:
                        outcome = self._run_arm(spec, shared, failures)
                        held.discard(spec.run_id)
                        if outcome is not None:
                            done[spec.run_id] = outcome
            done |= self.store.outcomes([run_id for run_id in ids if run_id not in done])
        return CellDone(tuple(specs), done, tuple(failures.values()))

    @contextlib.contextmanager
    def _holding(self, claimed: Sequence[str]) -> Iterator[set[str]]:
        """Renew the lease of what is still held; give back what is left, however the block is left."""
        held, over = set(claimed), threading.Event()

        def renew() -> None:
            while not over.wait(LEASE_S / 3):
                with contextlib.suppress(StoreError):  # the lease outlives two more tries
                    self.store.renew(sorted(held), self.owner, LEASE_S)

        heart = threading.Thread(target=renew, daemon=True)
        heart.start()
        try:
            yield held
        finally:
            over.set()
            heart.join()
            if held:
                with contextlib.suppress(StoreError):  # then the lease ends by itself; what broke the store is told
                    self.store.release(sorted(held), self.owner)

    def _run_arm(self, spec: RunSpec, shared: _Shared, failures: dict[str, str]) -> Outcome | None:
        experiment = shared.experiment
        curves: dict[str, list[tuple[int, float]]] = {}

        def log(name: str, value: float, step: int | None = None) -> None:
            points = curves.setdefault(name, [])
            points.append((len(points) if step is None else step, float(value)))

        checkpoint = _RunCheckpoint(_checkpoint_path(self.store.url, spec.run_id))
        cell = Cell(
            experiment=spec.experiment,
            case=spec.case,
            replicate=0 if spec.kind == "variance" else spec.replicate,
            seeds=spec.seeds,
            setting=experiment.settings.get(spec.scale),
            tuning=spec.kind == "hpo",
            device=self.device,
            checkpoint=checkpoint,
            log=log,
        )
        cell = replace(cell, shared=shared.bind(cell))
        shared.seconds = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        with self.capture() as said:
            try:
                outcome = _checked(experiment.arms[spec.arm].run(cell, **spec.hyper), spec)
            except DivergedError as error:
                outcome = Outcome(objective=-math.inf, diverged=_text(error) or "training diverged")
            except (Exception, SystemExit) as error:
                self.store.fail(spec.run_id, self.owner, error, text=said())
                if isinstance(error, StudyError) or _debugger_quit(error):
                    raise
                failures[spec.run_id] = f"{where(spec)}: {reason_of(error)}"
                self.listen(Event("failed", {"spec": spec, "error": reason_of(error)}))
                if self.fail_fast:
                    raise error if isinstance(error, Exception) else TorchstoneError(failures[spec.run_id]) from error
                return None
            text = said()
        stored = self.store.finish(
            spec.run_id,
            self.owner,
            outcome,
            wall_s=time.perf_counter() - wall - shared.seconds,
            cpu_s=time.process_time() - cpu,
            shared_s=shared.seconds,
            peak_rss=_peak_rss(),
            device=self.device,
            curves=curves,
            text=text,
        )
        if not stored:  # the lease was lost, to another worker that finishes the run
            return None
        checkpoint.remove()
        self.listen(Event("run", {"spec": spec, "outcome": outcome}))
        return outcome


class _Shared:
    """Work that several arms of a cell need: computed on first use, once per cell, and timed apart."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.value: Any = None
        self.ready = False
        self.seconds = 0.0

    def bind(self, cell: Cell) -> Callable[[], Any]:
        def shared() -> Any:
            if not self.ready:
                started = time.perf_counter()
                compute = self.experiment.shared
                self.value = None if compute is None else compute(cell)
                self.ready = True
                self.seconds += time.perf_counter() - started
            return self.value

        return shared


class _RunCheckpoint:
    """Checkpoint of one run, in a file beside the store; opened, and torch imported, only if the arm asks for it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        from torchstone.training.checkpoint import FileCheckpoint

        try:
            return FileCheckpoint(self.path).load()
        except CorruptDataError as error:  # a checkpoint only saves time
            warnings.warn(f"{error}; the run starts anew", RuntimeWarning, stacklevel=2)
            return None

    def save(self, state: dict[str, Any]) -> None:
        if self.path is not None:
            from torchstone.training.checkpoint import FileCheckpoint

            FileCheckpoint(self.path).save(state)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


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


def where(spec: RunSpec) -> str:
    """The name of a run in messages."""
    return f"{spec.experiment}/{spec.arm}/{spec.case}/{spec.replicate}"


def reason_of(error: BaseException) -> str:
    """What was raised, in one piece of text, whatever it was."""
    text = _text(error)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({text})"
    return f"{type(error).__name__}: {text[:REASON_LENGTH]}{'...' * (len(text) > REASON_LENGTH)}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error whose own text cannot be made is still an error
        return ""


def _debugger_quit(error: BaseException) -> bool:
    """Whether the user left a debugger, which stops all and not only the run."""
    bdb = sys.modules.get("bdb")
    return bdb is not None and isinstance(error, bdb.BdbQuit)


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
