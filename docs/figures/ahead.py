"""What a probability of being ahead looks like."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from figures.style import OURS, THEIRS, Picture, canvas, finish

LEVELS = (0.5, 0.75, 0.95)


def distance(p: float) -> float:
    """How many standard deviations two normal laws lie apart if a draw of one exceeds one of the other with p."""
    return math.sqrt(2) * NormalDist().inv_cdf(p)


def draw() -> Picture:
    """Two laws of scores at three distances."""
    x = np.linspace(-3, 5.5, 200)
    with canvas(2.1, 1, len(LEVELS), sharey=True) as (figure, panels):
        for axes, p in zip(panels, LEVELS, strict=True):
            for centre, colour in ((0.0, THEIRS), (distance(p), OURS)):
                density = np.exp(-((x - centre) ** 2) / 2)
                axes.plot(x, density, color=colour, lw=1.6)
                axes.fill_between(x, density, color=colour, alpha=0.18, lw=0)
            axes.set_title(f"P = {p:g}")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        panels[1].set_xlabel("score of a run: theirs left, ours right")
        apart = ", ".join(f"{distance(p):.1f} standard deviations at P = {p:g}" for p in LEVELS)
        return finish(figure, "Scores of two methods at three values of P", f"The laws lie apart by {apart}.")
