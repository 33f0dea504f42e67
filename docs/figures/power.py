"""How often the rule ends with which verdict, and after how many replicates, by the true P."""

from __future__ import annotations

import numpy as np

from figures.style import BAD, DOUBT, GOOD, INK, Picture, canvas, finish
from torchstone.bench.statistics import operating_characteristics

LAST = 29


def draw() -> Picture:
    """Shares of the verdicts above, replicates below."""
    p = np.linspace(0, 1, 101)
    rule = [operating_characteristics(LAST, float(x)) for x in p]
    ahead, undecided, behind = (np.array([getattr(r, name) for r in rule]) for name in ("ahead", "undecided", "behind"))
    with canvas(4.0, 2, 1, sharex=True, height_ratios=[2, 1]) as (figure, (shares, length)):
        shares.stackplot(p, behind, undecided, ahead, colors=[BAD, DOUBT, GOOD], alpha=0.55, lw=0)
        for x, word in ((0.14, "refuted"), (0.5, "not\nsignificant"), (0.86, "reproduced")):
            shares.text(x, 0.5, word, ha="center", va="center", weight="bold")
        shares.set(ylim=(0, 1), ylabel="share of studies")
        length.plot(p, [r.expected_n for r in rule], color=INK, lw=1.6)
        length.set(ylim=(0, LAST), xlim=(0, 1), xlabel="true P of being ahead", ylabel="replicates\non average")
        for axes in (shares, length):
            for x in (0.5, 0.75):
                axes.axvline(x, color=INK, lw=0.8, ls=":")
        length.set_xticks([0, 0.25, 0.5, 0.75, 0.9, 1])
        told = "; ".join(
            f"at {x:g} reproduced in {operating_characteristics(LAST, x).ahead:.1%} of studies, "
            f"{operating_characteristics(LAST, x).expected_n:.0f} replicates"
            for x in (0.5, 0.6, 0.75, 0.9)
        )
        return finish(figure, "Verdicts and replicates by the true P", f"{told}.")
