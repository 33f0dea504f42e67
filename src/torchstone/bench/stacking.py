"""Many replicates in one pass: which ones go together, and whether it pays.

An arm may be able to train many replicates at once (``Arm.stacked``). Where that is faster than
one after another, replicates are run in blocks. Whether it is faster depends on the machine and on the arm, so it is
measured: a calibration runs some steps both ways and is stored like any other run. How many replicates share a pass
changes the order of float operations, so it is part of a run's identity; the blocks do not depend on how the study is
run, so that it can be continued with other options.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, pairwise, repeat
from statistics import median
from typing import Any

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Arm, Cell
from torchstone.errors import StudyError

__all__ = ["PAYS", "STACK", "TUNING_BLOCK", "blocks", "calibrate"]

STACK = ("auto", "never", "always")
TUNING_BLOCK = 4  # draws in one pass
LARGEST = 10  # replicates in one pass
PAYS = 1.1  # how many times as fast it must be
STEPS, WARM_UP, SECONDS = 20, 3, 0.5  # a calibration ends after so many steps, or so long after warming up


def blocks(low: int, high: int) -> list[range]:
    """The replicates that share a pass: as many as must be run before anything can be decided, then a few at a time.

    Args:
        low: smallest number of replicates of the experiment.
        high: largest number.

    Example:
        >>> [len(block) for block in blocks(6, 29)]
        [6, 4, 5, 5, 9]
        >>> [len(block) for block in blocks(25, 25)]
        [10, 10, 5]
    """
    sizes = repeat(LARGEST) if low == high else chain((min(low, LARGEST), 4, 5, 5, 9), repeat(LARGEST))
    found: list[range] = []
    start = 0
    while start < high:
        end = min(start + next(sizes), high)
        found.append(range(start, end))
        start = end
    return found


class _Enough(BaseException):
    """Ends a run that is only timed; no arm catches it by accident."""


class _Stopwatch:
    """Notes the time of every step, and ends the run when there are enough."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        self.times.append(time.perf_counter())
        steps = len(self.times) - WARM_UP - 1
        if steps >= STEPS or (steps >= 2 and self.times[-1] - self.times[WARM_UP] > SECONDS):
            raise _Enough

    def seconds(self) -> float:
        """Median time of a step after warming up."""
        times = self.times[WARM_UP:] if len(self.times) > WARM_UP + 1 else self.times
        return median(late - early for early, late in pairwise(times))


def calibrate(arm: Arm, cells: Sequence[Cell], hyper: Mapping[str, Any]) -> Outcome:
    """Measure how much faster an arm is if it trains the replicates of ``cells`` in one pass.

    Returns:
        Values ``single`` and ``stacked``, the seconds of a step for each replicate, and ``speedup``, their ratio.

    Raises:
        StudyError: if the arm does not call ``cell.tick()`` after each step.
    """
    stacked = arm.stacked
    if stacked is None:
        raise StudyError("only an arm that can stack replicates can be calibrated")
    single = _step_seconds(lambda cell: arm.run(cell, **hyper), cells[:1])
    together = _step_seconds(lambda *cells: stacked(cells, [hyper] * len(cells)), cells) / len(cells)
    return Outcome({"single": single, "stacked": together, "speedup": single / together})


def _step_seconds(run: Callable[..., Any], cells: Sequence[Cell]) -> float:
    watch = _Stopwatch()
    with suppress(_Enough):
        run(replace(cells[0], tick=watch.tick), *cells[1:])
    if len(watch.times) < 2:
        raise StudyError(
            f"an arm of experiment {cells[0].experiment!r} that can stack replicates made {len(watch.times)} steps in "
            "its calibration: it must call cells[0].tick() after each step, and make at least two"
        )
    return max(watch.seconds(), 1e-9)
