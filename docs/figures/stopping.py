"""Where the rule stops: the lead that decides, and some courses."""

from __future__ import annotations

import numpy as np

from figures.style import BAD, DOUBT, GOOD, INK, Picture, canvas, finish
from torchstone.bench.statistics import Decision, critical_wins, decide, e_value

FIRST, LAST = 6, 29
COURSES = ((0.92, 3), (0.65, 6), (0.5, 1), (0.2, 5))  # true P, seed
COLOURS = {"reproduced": GOOD, "refuted": BAD}


def deciding_lead(n: int, e_threshold: float = 20.0) -> int | None:
    """Smallest lead, wins minus losses, that decides after n replicates; none may."""
    needed = critical_wins(LAST)
    for wins in range(n // 2 + 1, n + 1):
        if wins >= needed or e_value(wins, n) >= e_threshold:
            return 2 * wins - n
    return None


def hopeless_lead(n: int) -> int | None:
    """Largest lead from which, after n replicates, the wins that are needed cannot be reached any more."""
    most = critical_wins(LAST) - 1 - (LAST - n)
    return 2 * most - n if 2 * most >= n else None


def course(p: float, seed: int) -> tuple[np.ndarray, Decision]:
    """Wins and losses at a true P, up to where the rule stops, and what it says."""
    w = (np.random.default_rng(seed).random(LAST) < p).astype(float)
    decision = decide(w, n_max=LAST)
    return w[: decision.n], decision


def draw() -> Picture:
    """The zones, and a line for each course."""
    n = np.arange(FIRST, LAST + 1)
    lead = np.array([deciding_lead(int(i)) or np.nan for i in n], float)
    hopeless = [(i, hopeless_lead(int(i))) for i in n]
    told = []
    with canvas(3.4) as (figure, axes):
        axes.fill_between(n, lead, LAST, color=GOOD, alpha=0.16, lw=0, step="mid")
        axes.fill_between(n, -lead, -LAST, color=BAD, alpha=0.16, lw=0, step="mid")
        gone = np.array([(i, most) for i, most in hopeless if most is not None])
        axes.fill_between(gone[:, 0], gone[:, 1], -gone[:, 1], color=DOUBT, alpha=0.3, lw=0, step="mid")
        for p, seed in COURSES:
            w, decision = course(p, seed)
            path = np.concatenate([[0], np.cumsum(2 * w - 1)])
            colour = COLOURS.get(str(decision.verdict), DOUBT)
            axes.plot(path, color=colour, lw=1.6)
            axes.plot(len(w), path[-1], "o", color=colour, ms=5)
            told.append(f"true P = {p:g}: {decision.verdict} after {decision.n} replicates")
        top = 18
        axes.text(FIRST + 0.5, top - 1.5, "reproduced", color=GOOD, va="top", weight="bold")
        axes.text(FIRST + 0.5, 1.5 - top, "refuted", color=BAD, va="bottom", weight="bold")
        axes.text(LAST, 0, "not significant ", color=DOUBT, ha="right", va="center", weight="bold")
        axes.axhline(0, color=INK, lw=0.6, alpha=0.5)
        axes.set(xlim=(0, LAST + 0.5), ylim=(-top, top), xlabel="replicates", ylabel="wins minus losses")
        return finish(figure, "When the rule stops", f"Four courses: {'; '.join(told)}.")
