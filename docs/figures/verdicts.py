"""What each verdict looks like: the estimated P and its interval."""

from __future__ import annotations

from figures.style import BAD, DOUBT, GOOD, INK, Picture, canvas, finish
from torchstone.bench.statistics import Decision, decide
from torchstone.bench.statistics.verdict import Verdict

COLOURS = {Verdict.REPRODUCED: GOOD, Verdict.REFUTED: BAD}
LONG = 200  # replicates that it takes to show that a difference does not matter


def examples() -> list[Decision]:
    """A sequence of replicates for every verdict that statistics can reach."""
    long = (decide([1.0] * k + [0.0] * (LONG - k), n_min=LONG, n_max=LONG) for k in range(LONG // 2, LONG))
    return [
        decide([1.0] * 6),
        decide([1.0, 1.0, 0.0] * 10),
        next(decision for decision in long if decision.verdict is Verdict.NOT_MEANINGFUL),
        decide([1.0, 0.0] * 15),
        decide([0.0] * 6),
        decide([1.0] * 4),
    ]


def draw() -> Picture:
    """A line for each."""
    found = examples()
    with canvas(2.9) as (figure, axes):
        for row, decision in enumerate(found):
            colour = COLOURS.get(decision.verdict, DOUBT)
            axes.plot(decision.interval, [row, row], color=colour, lw=3, solid_capstyle="round")
            axes.plot(decision.estimate, row, "o", color=colour, ms=7)
        for x in (0.5, 0.75):
            axes.axvline(x, color=INK, lw=0.8, ls=":")
        names = [f"{d.verdict}\n{d.wins:g} of {d.n}" for d in found]
        axes.set_yticks(range(len(found)), names)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set(xlim=(0, 1.02), xlabel="P of being ahead, with its 95 % interval")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        told = "; ".join(
            f"{d.wins:g} wins of {d.n}, interval {d.interval[0]:.2f} to {d.interval[1]:.2f}: {d.verdict}" for d in found
        )
        return finish(figure, "Verdicts as intervals", f"{told}.")
