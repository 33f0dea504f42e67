"""Mean and standard deviation over three seeds, of two methods that are the same."""

from __future__ import annotations

import numpy as np

from figures.style import INK, OURS, THEIRS, Picture, canvas, finish

PAPERS, SEEDS = 20, 3


def experiments(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of both methods (count, 2), each over :data:`SEEDS` runs of the same normal law."""
    scores = np.random.default_rng(seed).normal(size=(count, 2, SEEDS))
    return scores.mean(axis=2), scores.std(axis=2, ddof=1)


def apart(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Where the bars, mean plus and minus one standard deviation, do not overlap."""
    return np.abs(mean[:, 0] - mean[:, 1]) > sd.sum(axis=1)


def share_apart(count: int = 400_000) -> float:
    """How often the bars of two equal methods do not overlap."""
    return float(apart(*experiments(count, seed=1)).mean())


def draw() -> Picture:
    """Twenty such comparisons; those with separate bars stand out."""
    mean, sd = experiments(PAPERS)
    split = apart(mean, sd)
    with canvas(2.9) as (figure, axes):
        for i in range(PAPERS):
            for j, colour in enumerate((OURS, THEIRS)):
                strong = {"alpha": 1.0 if split[i] else 0.4, "color": colour}
                axes.errorbar(i + (j - 0.5) * 0.3, mean[i, j], yerr=sd[i, j], fmt="o", ms=3.5, lw=1.6, **strong)
            if split[i]:
                axes.annotate("!", (i, float((mean[i] + sd[i]).max()) + 0.1), color=INK, ha="center", weight="bold")
        axes.plot([], [], "o", color=OURS, label="ours")
        axes.plot([], [], "o", color=THEIRS, label="theirs (the same method)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        axes.set_xlabel(f"{PAPERS} comparisons, {SEEDS} seeds each")
        axes.set_ylabel("score")
        axes.set_xticks([])
        axes.set_yticks([])
        return finish(
            figure,
            "Two equal methods, three seeds each, twenty times",
            f"In {int(split.sum())} of {PAPERS} comparisons the bars do not overlap although nothing differs; "
            f"ours has the higher mean in {int((mean[:, 0] > mean[:, 1]).sum())}.",
        )
