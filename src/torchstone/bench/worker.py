"""Run one cell: take its runs from the store, call the arms, put the outcomes back.

Cells whose replicates are trained in one pass come as a block.

A worker owns the runs it has claimed for as long as it renews its lease. Where another worker holds some runs of the
cell, this one waits for them instead of computing them twice.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchstone.bench.capture import Capture, Streams
from torchstone.bench.identity import RunSpec
from torchstone.bench.outcome import Outcome
from torchstone.bench.passes import Pass, passes, text_of
from torchstone.bench.store import Store
from torchstone.bench.store.owner import owner_id
from torchstone.bench.study import Study
from torchstone.errors import CorruptDataError, StoreError, StudyError, TorchstoneError

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
    """What became of a cell or block of cells: outcomes by run id, and one sentence for each run that raised."""

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
        """Run the arms of one cell, or of a block of cells, that are not stored yet.

        Raises:
            StudyError: if an arm breaks the protocol (returns no outcome, or test values while being tuned).
        """
        ids = [spec.run_id for spec in specs]
        self.store.plan(specs, study_id=self.study_id)
        done = self.store.outcomes(ids)
        failures: dict[str, str] = {}
        jobs = list(passes(specs, self.study.experiment(specs[0].experiment)))
        while waiting := [spec for spec in specs if spec.run_id not in done and spec.run_id not in failures]:
            claimed = self.store.claim([spec.run_id for spec in waiting], self.owner, lease_s=LEASE_S)
            if not claimed:
                time.sleep(WAIT_S)
            with self._holding(claimed) as held:
                for job in jobs:
                    if not held.isdisjoint(job.curves):
                        done |= self._run_arm(job, held, failures)
                        held.difference_update(job.curves)
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

    def _run_arm(self, job: Pass, held: Set[str], failures: dict[str, str]) -> dict[str, Outcome]:
        """Run an arm in one cell, or in many in one pass; store and return the outcomes of the runs that are held."""
        ours = [spec for spec in job.specs if spec.run_id in held]
        checkpoint = _RunCheckpoint(_checkpoint_path(self.store.url, job.specs[0].run_id))
        wall, cpu = time.perf_counter(), time.process_time()
        with self.capture() as said:
            try:
                outcomes = job.run(self.device, checkpoint)
            except (Exception, SystemExit) as error:
                for spec in ours:
                    self.store.fail(spec.run_id, self.owner, error, text=said())
                if isinstance(error, StudyError) or _debugger_quit(error):
                    raise
                for spec in ours:
                    failures[spec.run_id] = f"{where(spec)}: {reason_of(error)}"
                    self.listen(Event("failed", {"spec": spec, "error": reason_of(error)}))
                if self.fail_fast:
                    problem = f"{where(job.specs[0])}: {reason_of(error)}"
                    raise error if isinstance(error, Exception) else TorchstoneError(problem) from error
                return {}
            text = said()
        count, (shared_wall, shared_cpu) = len(job.specs), job.shared_seconds
        cost = {
            "wall_s": (time.perf_counter() - wall - shared_wall) / count,
            "cpu_s": (time.process_time() - cpu - shared_cpu) / count,
            "shared_s": shared_wall / count,
        }
        stored: dict[str, Outcome] = {}
        for spec in ours:
            outcome, curves = outcomes[spec.run_id], job.curves[spec.run_id]
            kept = {"peak_rss": _peak_rss(), "device": self.device, "curves": curves, "text": text}
            if self.store.finish(spec.run_id, self.owner, outcome, **cost, **kept):
                stored[spec.run_id] = outcome  # else the lease was lost, to a worker that finishes the run
                self.listen(Event("run", {"spec": spec, "outcome": outcome}))
        if stored:
            checkpoint.remove()
        return stored


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


def where(spec: RunSpec) -> str:
    """The name of a run in messages."""
    return f"{spec.experiment}/{spec.arm}/{spec.case}/{spec.replicate}"


def reason_of(error: BaseException) -> str:
    """What was raised, in one piece of text, whatever it was."""
    text = text_of(error)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({text})"
    return f"{type(error).__name__}: {text[:REASON_LENGTH]}{'...' * (len(text) > REASON_LENGTH)}"


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
