"""Where cells are run. An executor takes cells in order and gives back what became of each, in the same order.

It begins a cell only when asked for the next result (or, with several processes, a few ahead of that), so whoever
stops asking stops the work.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from torchstone.bench.identity import RunSpec
from torchstone.bench.worker import CellDone, Worker

__all__ = ["Executor", "Inline"]


class Executor(Protocol):
    """Runs cells; closing the iterator cancels what has not begun."""

    def run(self, cells: Iterable[Sequence[RunSpec]]) -> Generator[CellDone]:
        """What became of each cell, in order."""
        ...


class Inline:
    """Runs cell after cell in this process: the simplest executor, and the one for a debugger."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run(self, cells: Iterable[Sequence[RunSpec]]) -> Generator[CellDone]:
        """What became of each cell, in order."""
        for cell in cells:
            yield self.worker.run(cell)
