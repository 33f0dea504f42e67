"""Mean scores of a study along its cases, or against another metric, read from its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figures.style import BAD, DOUBT, GOOD, INK, OURS, THEIRS, Picture, canvas, finish
from torchstone.bench import evidence

COLOURS = (OURS, THEIRS, GOOD, BAD, DOUBT, INK)
MARKS = "os^Dvx"

Summary = tuple[float, float]  # mean and standard deviation over the replicates


def draw(
    study: str,
    experiment: str,
    metrics: Sequence[str],
    arms: Sequence[str],
    cases: Sequence[str],
    *,
    against: str = "",
    labels: Sequence[str] = (),
    x: str = "",
    y: str = "",
    log: bool = False,
) -> Picture:
    """One line for each arm, with a band of one standard deviation.

    The horizontal axis holds the cases, or, if there are several, the metrics; with ``against`` the other metric, a
    point for each case. ``labels`` name its ticks.
    """
    stored = evidence.load(study)
    if stored is None:
        raise ValueError(f"study {study!r} has no evidence")
    means = stored["means"][experiment]
    ticks = list(labels or (metrics if len(metrics) > 1 else cases))
    with canvas(2.9) as (figure, axes):
        told = []
        for arm, colour, mark in zip(arms, COLOURS, MARKS, strict=False):
            found = [_summary(means, metric, arm, case) for metric in metrics for case in cases]
            if against:
                across = [_summary(means, against, arm, case) for case in cases]
                known = [(name, a[0], b[0]) for name, a, b in zip(cases, across, found, strict=True) if a and b]
                axes.plot([a for _, a, _ in known], [b for _, _, b in known], mark, color=colour, label=arm, mfc="none")
                told.append(f"{arm}: " + ", ".join(f"{name} {a:.3g} {b:.3g}" for name, a, b in known))
            else:
                at = [place for place, value in enumerate(found) if value]
                mean, deviation = np.array([value for value in found if value]).T
                axes.plot(at, mean, f"-{mark}", color=colour, label=arm, lw=1.6, ms=4)
                if not log:
                    axes.fill_between(at, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)
                told.append(
                    f"{arm}: " + ", ".join(f"{ticks[i]} {value:.3g}" for i, value in zip(at, mean, strict=True))
                )
        if not against:
            axes.set_xticks(range(len(ticks)), ticks)
        axes.set(xlabel=x, ylabel=y or metrics[0], yscale="log" if log else "linear")
        if len(arms) > 1:
            figure.legend(loc="outside upper center", ncols=min(len(arms), 4), fontsize=9)
        title = f"{y or metrics[0]} in {experiment} of {study}" + (f", {x}" if x else "")
        return finish(figure, title, "; ".join(told) + ".")


def _summary(means: Mapping[str, Any], metric: str, arm: str, case: str) -> Summary | None:
    """Mean and deviation; None where no replicate has the value, or all diverged."""
    if not any(slot.startswith(f"{arm}/") for slot in means[metric]):
        raise KeyError(arm)
    mean, deviation, count = means[metric].get(f"{arm}/{case}", (None, None, 0))
    return (mean, deviation or 0.0) if count and mean is not None else None
