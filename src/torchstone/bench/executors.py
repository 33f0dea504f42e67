"""Where cells are run. An executor takes cells in order and gives back what became of each, in the same order.

It begins a cell only when asked for the next result, or, with several processes, as soon as one of them is free; so
whoever stops asking stops the work. :class:`Inline` is for a debugger and for tiny studies, :class:`Processes` for all
cores: each worker computes with one thread, writes to the store itself, and may be killed at any time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, Protocol

from torchstone.bench.identity import RunSpec
from torchstone.bench.study import Study
from torchstone.bench.worker import CellDone, Event, Worker
from torchstone.errors import StudyError, TorchstoneError

__all__ = ["Executor", "Inline", "Processes", "Recipe"]

CELLS_PER_PROCESS = 50  # a fresh process after so many: third-party code leaks
DEATHS = 3  # of the worker, until a cell is given up
GRACE_S = 10.0  # between asking a process to end and ending it
WATCH_S = 0.5  # between two looks at memory and time


class Executor(Protocol):
    """Runs cells; closing the generator cancels what has not begun."""

    def run(self, cells: Iterable[Sequence[RunSpec]]) -> Generator[CellDone]:
        """What became of each cell, in order."""
        ...


class Inline:
    """Runs cell after cell in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run(self, cells: Iterable[Sequence[RunSpec]]) -> Generator[CellDone]:
        """What became of each cell, in order."""
        for cell in cells:
            yield self.worker.run(cell)


@dataclass(frozen=True)
class Recipe:
    """What a worker process is made from."""

    study: Study
    study_id: str
    store: str
    device: str = "cpu"
    fail_fast: bool = False


@dataclass
class _Process:
    """A worker process, and the cell it is busy with."""

    process: Any
    pipe: Any  # multiprocessing's connection; its class depends on the platform
    served: int = 0
    number: int = -1
    cell: Sequence[RunSpec] = ()
    since: float = 0.0
    ended_for: str = ""
    started: bool = False

    @property
    def busy(self) -> bool:
        return self.number >= 0


@dataclass
class Processes:
    """Runs cells in spawned processes, one thread each; a killed worker costs its cell a second start, nothing else.

    Args:
        recipe: what each worker is made from; it is sent there, so all of it must live at module level.
        jobs: number of processes.
        listen: receives the workers' events.
        cell_limit: wall-clock seconds after which a cell is ended and counts as failed.
        memory_limit: resident bytes at which a worker is ended and its cell counts as failed.
    """

    recipe: Recipe
    jobs: int
    listen: Callable[[Event], None] = lambda event: None
    cell_limit: float = float("inf")
    memory_limit: float = float("inf")
    _pool: list[_Process] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            pickle.dumps(self.recipe)
        except Exception as error:
            raise StudyError(
                f"study {self.recipe.study.name!r} cannot be sent to worker processes ({error}): define its functions "
                "and classes at the top level of a module, or run it with one job"
            ) from None

    def run(self, cells: Iterable[Sequence[RunSpec]]) -> Generator[CellDone]:
        """What became of each cell, in order.

        Raises:
            StudyError: if an arm breaks the protocol.
            KeyboardInterrupt: after the running cells are finished, or at once if interrupted again.
        """
        source, drained = enumerate(cells), False
        ready: dict[int, CellDone] = {}
        deaths: dict[int, int] = {}
        again: list[tuple[int, Sequence[RunSpec]]] = []
        following = 0
        interrupted = False
        try:
            while True:
                while not interrupted and (free := self._free()) is not None:
                    job = again.pop(0) if again else next(source, None)
                    if job is None:
                        drained = True
                        break
                    self._send(free, *job)
                if following in ready:
                    following += 1
                    yield ready.pop(following - 1)
                    continue
                if not any(worker.busy for worker in self._pool) and (drained or interrupted):
                    if interrupted:
                        raise KeyboardInterrupt
                    return
                try:
                    for worker, done in self._listen_once():
                        number, cell = worker.number, worker.cell
                        worker.number = -1
                        if done is not None:
                            ready[number] = done
                            continue
                        deaths[number] = deaths.get(number, 0) + 1
                        cause = self._bury(worker)
                        if deaths[number] < DEATHS and not cause:
                            again.append((number, cell))
                        else:
                            cause = cause or f"its process died {DEATHS} times, perhaps for want of memory"
                            ready[number] = self._give_up(cell, cause)
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
        finally:
            self._end()

    # ---------------------------------------------------------------- processes

    def _free(self) -> _Process | None:
        """An idle worker, a new one while there may be more, or ``None``."""
        for worker in [worker for worker in self._pool if not worker.busy]:
            if worker.served < CELLS_PER_PROCESS and worker.process.is_alive():
                return worker
            self._dismiss(worker)
        if len(self._pool) >= self.jobs:
            return None
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.recipe, theirs), daemon=True)
        with _one_thread():
            process.start()
        theirs.close()
        self._pool.append(_Process(process, ours))
        return self._pool[-1]

    def _send(self, worker: _Process, number: int, cell: Sequence[RunSpec]) -> None:
        worker.number, worker.cell, worker.since = number, cell, time.monotonic()
        worker.served += 1
        with contextlib.suppress(OSError):  # it died while idle: listening finds out, and the cell is sent again
            worker.pipe.send(cell)

    def _listen_once(self) -> list[tuple[_Process, CellDone | None]]:
        """Wait a little; return the workers that finished their cell, or died (``None``)."""
        finished: list[tuple[_Process, CellDone | None]] = []
        busy: dict[Any, _Process] = {worker.pipe: worker for worker in self._pool if worker.busy}
        for pipe in connection.wait(list(busy), timeout=WATCH_S):
            worker = busy[pipe]
            try:
                kind, content = worker.pipe.recv()
            except (EOFError, OSError):
                finished.append((worker, None))
                continue
            worker.started = True
            if kind == "event":
                self.listen(content)
            elif kind == "ready":
                continue
            elif kind == "done":
                finished.append((worker, content))
            else:
                name, text = content
                raise (StudyError if name == "StudyError" else TorchstoneError)(text)
        for worker in busy.values():
            if not worker.busy or any(worker is other for other, _ in finished):
                continue
            reason = self._beyond_limits(worker)
            if reason:
                worker.process.terminate()
                worker.process.join(GRACE_S)
                worker.process.kill()
                worker.ended_for = reason
                finished.append((worker, None))
        return finished

    def _beyond_limits(self, worker: _Process) -> str:
        if time.monotonic() - worker.since > self.cell_limit:
            return f"it took longer than {self.cell_limit:g} s"
        if self.memory_limit < float("inf") and _resident(worker.process.pid) > self.memory_limit:
            return f"it used more than {self.memory_limit / 2**20:.0f} MiB of memory"
        return ""

    def _bury(self, worker: _Process) -> str:
        """Remove a dead worker; return why it was ended, if it was us."""
        self._dismiss(worker)
        if not worker.started:
            raise TorchstoneError(
                "a worker process died while it was starting; if you call this from a script, put the call under "
                "`if __name__ == '__main__':`, or ask for one job"
            )
        return worker.ended_for

    def _give_up(self, cell: Sequence[RunSpec], cause: str) -> CellDone:
        """Note the runs that are missing as failed, and take those that were finished."""
        from torchstone.bench.store import Store, owner_id

        with Store.open(self.recipe.store) as store:
            done = store.outcomes([spec.run_id for spec in cell])
            missing = [spec for spec in cell if spec.run_id not in done]
            for run_id in store.claim([spec.run_id for spec in missing], owner_id()):
                store.fail(run_id, owner_id(), cause)
        failures = tuple(f"{s.experiment}/{s.arm}/{s.case}/{s.replicate}: {cause}" for s in missing)
        for spec in missing:
            self.listen(Event("failed", {"spec": spec, "error": cause}))
        return CellDone(tuple(cell), done, failures)

    def _dismiss(self, worker: _Process) -> None:
        """End an idle (or dead) worker."""
        self._pool.remove(worker)
        with contextlib.suppress(OSError):
            worker.pipe.send(None)
        worker.pipe.close()
        worker.process.join(GRACE_S)
        if worker.process.is_alive():
            worker.process.kill()

    def _end(self) -> None:
        """End all workers: idle ones are asked, busy ones are stopped; the store frees what they held."""
        for worker in self._pool:
            if worker.busy:
                worker.process.terminate()
        for worker in list(self._pool):
            self._dismiss(worker)


class _one_thread:
    """Processes started in this block compute with one thread: two such beat one process with two threads."""

    NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.NAMES}
        os.environ.update(dict.fromkeys(self.NAMES, "1"))

    def __exit__(self, *error: object) -> None:
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(recipe: Recipe, pipe: Any) -> None:
    """A worker process: cells in, events and outcomes out, until told to stop or left alone."""
    from torchstone.bench.store import Store

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    with Store.open(recipe.store) as store:
        worker = Worker(
            recipe.study,
            recipe.study_id,
            store,
            device=recipe.device,
            fail_fast=recipe.fail_fast,
            listen=lambda event: pipe.send(("event", event)),
        )
        pipe.send(("ready", None))
        while True:
            try:
                cell = pipe.recv()
            except EOFError:  # the driver is gone
                return
            if cell is None:
                return
            try:
                message: tuple[str, Any] = ("done", worker.run(cell))
            except Exception as error:
                message = ("raised", (type(error).__name__, f"{error}"))
            pipe.send(message)


def _resident(pid: int) -> int:
    """Resident bytes of a process; 0 where that is not known."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
