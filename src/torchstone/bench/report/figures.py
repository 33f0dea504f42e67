"""The figures of a report as inline SVG: paired strips, the axis of P, learning curves, cost, variance.

An arm has the same colour in every figure of its study, and its name beside what is drawn of it, so that colour is
never needed to tell two arms apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchstone.bench.report.curves import Band
from torchstone.bench.report.svg import WIDTH, Scale, dodged, dots, element, fit, label, path, place, width
from torchstone.bench.report.wording import number
from torchstone.bench.statistics.variance import SourceVariance
from torchstone.bench.study import Study

__all__ = ["COLOURS", "Spot", "colours", "cost_plot", "curve_plot", "p_axis", "strip_plot", "variance_plot"]

COLOURS = 8  # that the style sheet has: the first is that of the arm of the primary claim, the second what it must beat
_ROW = 24.0
_NAME = 120.0  # room for the name of an arm


def colours(study: Study) -> dict[str, int]:
    """A colour for every arm of a study, the same in all its experiments."""
    claim = study.primary[1]
    found = {name: i for i, name in enumerate(claim.arms[:2])}
    others = dict.fromkeys(name for experiment in study.experiments for name in experiment.arms if name not in found)
    return {**found, **{name: 2 + i % (COLOURS - 2) for i, name in enumerate(others)}}


def p_axis(estimate: float, interval: tuple[float, float]) -> str:
    """P with its interval from 0 to 1, marked at 1/2 and 3/4; the numbers stand beside it in words."""
    at = Scale(0.0, 1.0, 5.0, 95.0)
    body = [f'<path class="rule" d="M{place(at(0))} 8H{place(at(1))}"/>']
    body.append(f'<path class="half" d="M{place(at(0.5))} 1V15"/><path class="meant" d="M{place(at(0.75))} 1V15"/>')
    if math.isfinite(estimate):
        low, high = (min(max(end, 0.0), 1.0) for end in interval)
        body.append(f'<path class="range" d="M{place(at(low))} 8H{place(at(high))}"/>')
        body.append(f'<path class="spot" d="M{place(at(estimate))} 8h0"/>')
    return f'<svg class="p" viewBox="0 0 100 16" aria-hidden="true">{"".join(body)}</svg>'


def strip_plot(
    scores: Mapping[str, Sequence[float]],
    *,
    title: str,
    colour: Mapping[str, int],
    lost: Mapping[str, int] | None = None,
) -> str:
    """The scores of every arm, a dot per replicate; a line joins the arms of one replicate, a bar is the mean.

    Args:
        scores: arm -> score of replicate 0, 1, ...; NaN where there is none.
        title: name of the figure; its description is the mean of every arm.
        colour: arm -> its colour.
        lost: arm -> how many of its runs diverged, and so have no dot.
    """
    table = np.array([list(values) for values in scores.values()], dtype=float).reshape(len(scores), -1)
    means = [float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else math.nan for row in table]
    left = min(_NAME, max(map(width, scores), default=0.0)) + 10
    at = Scale.over(table.ravel(), left, WIDTH - 48)
    heights = [14 + _ROW * i for i in range(len(scores))]
    bottom = heights[-1] + 14
    body = [*_x_axis(at, 4, bottom), label(WIDTH, bottom + 14, "mean", "end soft")]
    pairs = "".join(path((at(x), y) for x, y in zip(column, heights, strict=True)) for column in table.T)
    if len(scores) > 1:
        body.append(f'<path class="pair" d="{pairs}"/>')
    for arm, row, mean, y in zip(scores, table, means, heights, strict=True):
        many = (lost or {}).get(arm, 0)
        body.append(f'<path class="dots c{colour[arm]}" d="{dots((at(x), y) for x in row)}"/>')
        if math.isfinite(mean):
            body.append(f'<path class="mean" d="M{place(at(mean))} {place(y - 7)}v14"/>')
        body.append(label(left - 8, y + 4, fit(arm, left - 8), "end"))
        body.append(label(WIDTH, y + 4 - 3 * bool(many), at.reading(mean), "end"))
        if many:
            body.append(label(WIDTH, y + 10, f"{many} diverged", "end soft tiny"))
    said = ", ".join(f"{arm} {number(mean)}" for arm, mean in zip(scores, means, strict=True))
    return element(bottom + 20, body, title=title, description=f"Means: {said}.")


def _x_axis(at: Scale, top: float, bottom: float) -> list[str]:
    ticks = at.ticks()
    grid = "".join(f"M{place(at(value))} {place(top)}V{place(bottom)}" for value, _ in ticks)
    return [f'<path class="grid" d="{grid}"/>'] + [label(at(v), bottom + 14, text, "mid soft") for v, text in ticks]


def _y_axis(at: Scale, left: float, right: float) -> list[str]:
    ticks = at.ticks()
    grid = "".join(f"M{place(left)} {place(at(value))}H{place(right)}" for value, _ in ticks)
    return [f'<path class="grid" d="{grid}"/>'] + [label(left - 5, at(v) + 4, text, "end soft") for v, text in ticks]


def _spreads_far(values: Sequence[float]) -> bool:
    """Whether only a logarithmic axis shows all of the values."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > 300


def curve_plot(bands: Mapping[str, Band], *, title: str, colour: Mapping[str, int]) -> str:
    """The median of a curve over the replicates, arm by arm, in a band from its 10 % to its 90 % quantile."""
    high, top = 210.0, 8.0
    bottom = high - 24
    ends = [float(end) for band in bands.values() for end in (*band.low, *band.high)]
    y = Scale.over(ends, bottom, top, log=_spreads_far([float(m) for band in bands.values() for m in band.median]))
    left = 10 + max(width(text) for _, text in y.ticks())
    right = WIDTH - 8 - min(96.0, max(map(width, bands)))
    x = Scale.over([float(step) for band in bands.values() for step in band.steps], left, right)
    body = [*_y_axis(y, left, right), *(tick for tick in _x_axis(x, bottom, bottom)[1:])]
    for arm, band in bands.items():
        around = [*zip(band.steps, band.low, strict=True), *zip(band.steps[::-1], band.high[::-1], strict=True)]
        outline = path((round(x(s)), round(y(v))) for s, v in around)
        body.append(f'<path class="band c{colour[arm]}" d="{outline}Z"/>')
    for i, (arm, band) in enumerate(bands.items()):
        line = path((x(s), y(v)) for s, v in zip(band.steps, band.median, strict=True))
        body.append(f'<path class="line c{colour[arm]} d{i % 3}" d="{line}"/>')
    wanted = [y(float(band.median[-1])) for band in bands.values()]
    for arm, height, band in zip(bands, dodged(wanted, 12, top + 4, bottom), bands.values(), strict=True):
        end = x(float(band.steps[-1]))
        body.append(label(min(end, right) + 5, height + 4, fit(arm, WIDTH - right - 6), f"name c{colour[arm]}"))
    said = ", ".join(f"{arm} {number(float(band.median[-1]))}" for arm, band in bands.items())
    return element(high, body, title=title, description=f"Medians at the end: {said}.")


@dataclass(frozen=True)
class Spot:
    """An arm in the plane of cost and score, with the interval of its mean score."""

    cost: float
    score: float
    low: float = math.nan
    high: float = math.nan


def cost_plot(spots: Mapping[str, Spot], *, title: str, colour: Mapping[str, int]) -> str:
    """Mean score against cost, a point with its interval for each arm."""
    high, top = 190.0, 8.0
    bottom = high - 24
    y = Scale.over([v for spot in spots.values() for v in (spot.score, spot.low, spot.high)], bottom, top)
    left = 10 + max(width(text) for _, text in y.ticks())
    edge = WIDTH - min(_NAME, max(map(width, spots)))  # where the names stand, in a column
    costs = [spot.cost for spot in spots.values()]
    x = Scale.over(costs, left + 8, edge - 24, log=_spreads_far(costs))
    body = [*_y_axis(y, left, edge - 14), *(tick for tick in _x_axis(x, bottom, bottom)[1:])]
    heights = dodged([y(spot.score) for spot in spots.values()], 12, top + 4, bottom)
    for (arm, spot), height in zip(spots.items(), heights, strict=True):
        at = x(spot.cost), y(spot.score)
        ends = path([(at[0], y(spot.low)), (at[0], y(spot.high))])
        body.append(f'<path class="leader c{colour[arm]}" d="{path([at, (edge - 3, height)])}"/>')
        body.append(f'<path class="whisker c{colour[arm]}" d="{ends}"/>')
        body.append(f'<path class="dots big c{colour[arm]}" d="{dots([at])}"/>')
        body.append(label(edge, height + 4, fit(arm, WIDTH - edge), f"name c{colour[arm]}"))
    said = ", ".join(f"{arm} {number(spot.score)} at {number(spot.cost)}" for arm, spot in spots.items())
    return element(high, body, title=title, description=f"Score at cost: {said}.")


def variance_plot(sources: Mapping[str, SourceVariance], *, title: str) -> str:
    """Standard deviation of the score per source of variation, with its interval."""
    left = min(_NAME, max(map(width, sources))) + 10
    ends = [end for entry in sources.values() for end in (0.0, entry.sd, min(entry.ci[1], 3 * entry.sd))]
    top = max(ends) * 1.04 or 1.0
    at = Scale(0.0, top, left, WIDTH - 48)
    heights = [14 + _ROW * i for i in range(len(sources))]
    bottom = heights[-1] + 14
    body = [*_x_axis(at, 4, bottom), label(WIDTH, bottom + 14, "sd", "end soft")]
    for (source, entry), y in zip(sources.items(), heights, strict=True):
        low, high = at(entry.ci[0]), at(min(entry.ci[1], top))
        body.append(f'<path class="whisker c2" d="M{place(low)} {place(y)}H{place(high)}"/>')
        body.append(f'<path class="dots big c2" d="M{place(at(entry.sd))} {place(y)}h0"/>')
        body.append(label(left - 8, y + 4, fit(source, left - 8), "end"))
        body.append(label(WIDTH, y + 4, number(entry.sd, 2), "end"))
    said = ", ".join(f"{source} {number(entry.sd, 2)}" for source, entry in sources.items())
    return element(bottom + 20, body, title=title, description=f"Standard deviations: {said}.")
