"""How a study is run: :class:`Options`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchstone._checks import check_float, check_int, check_one_of
from torchstone.bench.stacking import STACK
from torchstone.bench.worker import Event

__all__ = ["EXECUTORS", "Options", "ignore"]

EXECUTORS = ("auto", "process", "inline")


def ignore(event: Event) -> None:
    """The listener that does nothing."""


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
        jobs: worker processes.
        executor: ``process`` for worker processes; ``inline`` to run everything in this process, where a debugger
            works; ``auto`` for worker processes if there are several jobs or a limit, and the store is a file.
        stack: train replicates in one pass where an arm can: ``auto`` measures whether it is faster.
        cell_limit: wall-clock seconds that a cell may take (a block of replicates so many times as long).
        memory_limit: resident bytes that a worker process may take.
        variance: then find out how much each source of variation moves the score of the primary claim.
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
    jobs: int = 1
    executor: str = "auto"
    stack: str = "auto"
    cell_limit: float = math.inf
    memory_limit: float = math.inf
    variance: bool = False
    listen: Callable[[Event], None] = ignore
    available: Callable[[str], str] = lambda need: ""

    def __post_init__(self) -> None:
        check_int("jobs", self.jobs, 1)
        check_one_of("executor", self.executor, EXECUTORS)
        check_one_of("stack", self.stack, STACK)
        check_float("cell_limit", self.cell_limit, 0.0, open_low=True)
        check_float("memory_limit", self.memory_limit, 0.0, open_low=True)

    @property
    def limited(self) -> bool:
        """Whether a cell may be ended."""
        return min(self.cell_limit, self.memory_limit) < math.inf
