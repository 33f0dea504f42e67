"""Where cells are run. An executor takes cells in order and gives back what became of each, in the same order.

It begins a cell only when asked for the next result, or, with several processes, as soon as one of them is free; so
whoever stops asking stops the work. :class:`Inline` is for a debugger and for tiny studies, :class:`Processes` for all
cores: each worker computes with one thread, writes to the store itself, and may be killed at any time, as may the
process that asks for the work. A worker that is left alone finishes its run and ends.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from torchstone.bench.capture import tail
from torchstone.bench.identity import RunSpec
from torchstone.bench.serving import Recipe, error_from, serve
from torchstone.bench.store import RunRecord, Store, owner_id
from torchstone.bench.worker import CellDone, Event, Worker, where
from torchstone.errors import StudyError, TorchstoneError

__all__ = ["Executor", "Inline", "Processes", "Recipe"]

CELLS_PER_PROCESS = 50  # a fresh process after so many: third-party code leaks
DEATHS = 3  # of the worker, until a cell is given up
GRACE_S = 10.0  # between asking a process to end and ending it
WATCH_S = 0.5  # between two looks at memory and time
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has but one way


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


@dataclass
class _Process:
    """A worker process, and the cell it is busy with."""

    process: Any
    pipe: Any  # multiprocessing's connection; its class depends on the platform
    said: int  # descriptor of the file to which it prints
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
        cell_limit: wall-clock seconds after which a cell is ended and counts as failed; a block of replicates may
            take so many times as long.
        memory_limit: resident bytes (of a worker, without what it starts) at which its cell is ended and counts as
            failed; looked at twice a second.
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
        atexit.register(self._end)  # before multiprocessing waits for its children, whoever forgot to close this
        with _Interrupts() as interrupts:
            try:
                while True:
                    while not interrupts.count and (free := self._free()) is not None:
                        job = again.pop(0) if again else next(source, None)
                        if job is None:
                            drained = True
                            break
                        self._send(free, *job)
                    if following in ready:
                        following += 1
                        yield ready.pop(following - 1)
                        continue
                    if not any(worker.busy for worker in self._pool) and (drained or interrupts.count):
                        if interrupts.count:
                            raise KeyboardInterrupt
                        return
                    for worker, done in self._listen_once():
                        number, cell = worker.number, worker.cell
                        worker.number = -1
                        if done is not None:
                            ready[number] = done
                            continue
                        deaths[number] = deaths.get(number, 0) + 1
                        cause, said = self._bury(worker)
                        if deaths[number] < DEATHS and not worker.ended_for:
                            again.append((number, cell))
                        else:
                            ready[number] = self._give_up(cell, cause, said)
                    if interrupts.is_new():
                        self.listen(Event("interrupted"))
            finally:
                self._end()
                atexit.unregister(self._end)

    # ---------------------------------------------------------------- processes

    def _free(self) -> _Process | None:
        """An idle worker, a new one while there may be more, or ``None``."""
        for worker in [worker for worker in self._pool if not worker.busy]:
            if worker.served < CELLS_PER_PROCESS and worker.process.is_alive():
                return worker
            self._dismiss(worker)
        if len(self._pool) >= self.jobs:
            return None
        said, path = tempfile.mkstemp(prefix="torchstone-")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(self.recipe, theirs, path))
        try:
            with _one_thread():
                process.start()
        except OSError as error:
            os.close(said)
            os.unlink(path)
            reason = error.strerror or error
            raise TorchstoneError(f"a worker process cannot be started ({reason}): ask for fewer jobs") from None
        theirs.close()
        self._pool.append(_Process(process, ours, said))
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
            worker = busy.pop(pipe)
            try:
                kind, content = worker.pipe.recv()
            except (EOFError, OSError):
                finished.append((worker, None))
                continue
            if kind == "event":
                self.listen(content)
            elif kind == "ready":
                worker.started, worker.since = True, time.monotonic()
            elif kind == "done":
                finished.append((worker, content))
            else:
                raise error_from(*content)
        for worker in busy.values():  # nothing came from these
            worker.ended_for = self._beyond_limits(worker)
            if worker.ended_for:
                _signal(worker.process, signal.SIGTERM)
                worker.process.join(GRACE_S)
                finished.append((worker, None))
            elif not worker.process.is_alive() and not worker.pipe.poll():  # what it started still holds its pipe
                finished.append((worker, None))
        return finished

    def _beyond_limits(self, worker: _Process) -> str:
        replicates = len({(spec.replicate, spec.attempt) for spec in worker.cell})
        if worker.started and time.monotonic() - worker.since > self.cell_limit * replicates:
            return f"its cell took longer than cell_limit = {self.cell_limit:g} s: raise the limit, or compute less"
        if self.memory_limit < float("inf") and _resident(worker.process.pid) > self.memory_limit:
            limit = f"{self.memory_limit / 2**20:.0f} MiB"
            return f"its process used more memory than memory_limit = {limit}: raise the limit, or compute less at once"
        return ""

    def _bury(self, worker: _Process) -> tuple[str, str]:
        """Remove a dead worker; return why it died, and what its run said last."""
        worker.process.join(GRACE_S)
        said, code = tail(worker.said), worker.process.exitcode or 0
        self._dismiss(worker)
        if not worker.started and code >= 0:
            raise TorchstoneError(
                "a worker process died while it was starting; if you call this from a script, put the call under "
                "`if __name__ == '__main__':`, or ask for one job"
            )
        return worker.ended_for or f"its process {_death(code)}", said

    def _give_up(self, cell: Sequence[RunSpec], cause: str, said: str) -> CellDone:
        """Note the run in flight as failed; keep what was finished, and give back what had not begun."""
        ids, owner = [spec.run_id for spec in cell], owner_id()
        with Store.open(self.recipe.store) as store:
            done = store.outcomes(ids)
            raised = [record for record in store.records(ids) if record.status == "failed"]
            known = {*done, *(record.run_id for record in raised)}
            rest = [spec for spec in cell if spec.run_id not in known]
            claimed = store.claim([spec.run_id for spec in rest], owner)
            for spec in rest[:1]:
                store.fail(spec.run_id, owner, cause, text=said)
            store.release(claimed, owner)
        for spec in rest[:1]:
            self.listen(Event("failed", {"spec": spec, "error": cause}))
        failures = (*map(_failure, raised), *(f"{where(spec)}: {cause}" for spec in rest[:1]))
        return CellDone(tuple(cell), done, failures)

    def _dismiss(self, worker: _Process) -> None:
        """End an idle (or dead) worker, and whatever it has left running."""
        self._pool.remove(worker)
        with contextlib.suppress(OSError):
            worker.pipe.send(None)
        worker.pipe.close()
        worker.process.join(GRACE_S)
        _signal(worker.process, KILL)
        worker.process.join(GRACE_S)
        os.close(worker.said)

    def _end(self) -> None:
        """End all workers: idle ones are asked, busy ones are stopped; the store frees what they held."""
        for worker in self._pool:
            if worker.busy:
                _signal(worker.process, signal.SIGTERM)
        for worker in list(self._pool):
            self._dismiss(worker)


class _Interrupts:
    """Counts Ctrl-C in this block: the first is noted, the second raises ``KeyboardInterrupt``."""

    def __init__(self) -> None:
        self.count = self.seen = 0

    def is_new(self) -> bool:
        """Whether there was one since this was last asked."""
        seen, self.seen = self.seen, self.count
        return self.count > seen

    def __enter__(self) -> _Interrupts:
        # Only the main thread may listen, and whoever else handles the signal keeps it.
        alone = threading.current_thread() is threading.main_thread()
        self.ours = alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count == 2:  # further ones must not disturb the end
            raise KeyboardInterrupt

    def __exit__(self, *error: object) -> None:
        if self.ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


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


def _failure(record: RunRecord) -> str:
    place = f"{record.experiment}/{record.arm}/{record.case}/{record.replicate}"
    return f"{place}: {record.error_type}: {record.error_text}"


def _death(code: int) -> str:
    """How a process ended, time and again."""
    if code >= 0:
        return f"ended {DEATHS} times with exit code {code}: an arm must return or raise"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ", perhaps for want of memory: fewer jobs need less" if -code == KILL else ""
    return f"was killed {DEATHS} times by {name}{hint}"


def _signal(process: Any, number: int) -> None:
    """Send a signal to a worker and to all that it started."""
    try:
        os.killpg(process.pid, number)
    except (AttributeError, OSError):  # no such groups here, or it has not made its own yet
        if process.is_alive():
            os.kill(process.pid, number)


def _resident(pid: int) -> int:
    """Resident bytes of a process; 0 where that is not known."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
