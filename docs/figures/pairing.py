"""The same scores, compared as two clouds and as pairs."""

from __future__ import annotations

import numpy as np

from figures.style import INK, OURS, THEIRS, Picture, canvas, finish
from torchstone.bench.statistics import compare

REPLICATES = 12


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Made-up accuracies: splits differ by points, the two methods by tenths of a point."""
    rng = np.random.default_rng(2)
    theirs = rng.normal(0.86, 0.025, REPLICATES)
    return theirs + rng.normal(0.006, 0.004, REPLICATES), theirs


def draw() -> Picture:
    """Left the clouds, right the pairs."""
    ours, theirs = scores()
    cloud, pairs = compare(ours, theirs, paired=False), compare(ours, theirs, paired=True)
    with canvas(2.8, 1, 2, sharey=True) as (figure, (left, right)):
        jitter = np.random.default_rng(0).uniform(-0.12, 0.12, REPLICATES)
        left.scatter(jitter, theirs, s=18, color=THEIRS)
        left.scatter(1 + jitter, ours, s=18, color=OURS)
        left.set_title(f"as two clouds:\n{cloud.verdict}")
        for a, b in zip(theirs, ours, strict=True):
            right.plot([0, 1], [a, b], color=INK, alpha=0.35, lw=1)
        right.scatter(np.zeros(REPLICATES), theirs, s=18, color=THEIRS)
        right.scatter(np.ones(REPLICATES), ours, s=18, color=OURS)
        right.set_title(f"as pairs:\n{pairs.verdict}")
        left.set_ylabel("accuracy")
        for axes in (left, right):
            axes.set_xticks([0, 1], ["theirs", "ours"])
            axes.set_xlim(-0.4, 1.4)
        return finish(
            figure,
            "The same scores as two clouds and as pairs",
            f"{REPLICATES} replicates. As clouds ours wins {cloud.p:.0%} of all comparisons: {cloud.verdict}. "
            f"Replicate by replicate it wins {pairs.wins} of {REPLICATES}: {pairs.verdict}.",
        )
