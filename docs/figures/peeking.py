"""How often two equal methods are called different, by how one looks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from figures.style import BAD, GOOD, INK, Picture, canvas, finish
from torchstone.bench.statistics import operating_characteristics, percentile_interval

FIRST, LAST = 6, 29


def interval_error(looks: Iterable[int]) -> float:
    """Chance that the 95 % interval of P lies above 1/2 at some look although P = 1/2; exact."""
    looks = set(looks)
    alive = np.ones(1)  # probability of 0, 1, ... wins among the sequences not yet called different
    error = 0.0
    for n in range(1, max(looks) + 1):
        alive = (np.append(alive, 0.0) + np.append(0.0, alive)) / 2
        if n in looks:
            wins = np.arange(n + 1)
            called = np.array([percentile_interval(np.arange(n) < k)[0] > 0.5 for k in wins])
            error += float(alive[called].sum())
            alive = np.where(called, 0.0, alive)
    return error


def errors() -> dict[str, float]:
    """Error rates of three ways to look."""
    return {
        f"interval, one look\nafter {LAST} replicates": interval_error([LAST]),
        "interval, a look\nafter each replicate": interval_error(range(FIRST, LAST + 1)),
        "the rule here, a look\nafter each replicate": operating_characteristics(LAST, 0.5).ahead,
    }


def draw() -> Picture:
    """A bar for each way."""
    found = errors()
    with canvas(2.2) as (figure, axes):
        values = [100 * value for value in found.values()]
        axes.barh(list(found), values, color=[GOOD, BAD, GOOD], height=0.6)
        for row, value in enumerate(values):
            axes.text(1.05 * max(values), row, f"{value:.1f} %", va="center")
        axes.axvline(5, color=INK, lw=1, ls=":")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(values))
        axes.set_xlabel("equal methods, yet ours is called better (%)")
        told = "; ".join(f"{name.replace(chr(10), ' ')}: {value:.1%}" for name, value in found.items())
        return finish(figure, "False alarms by how one looks", f"{told}. The limit is 5 %.")
