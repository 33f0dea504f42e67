"""Inline SVG by hand: scales with round ticks, short numbers, escaped text.

Strokes and colours are those of the page's style sheet, so that a figure follows it into the dark and onto paper, and a
point costs ten bytes.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchstone.bench.report.wording import DASH, shortened, visible

__all__ = ["WIDTH", "Scale", "dodged", "dots", "element", "fit", "label", "path", "place", "width"]

WIDTH = 380.0  # of every figure, in its own units; on a phone these are about 0.75 pixels
_EM = 11.0  # size of the letters in a figure
_HUGE = 1e250  # from where on differences overflow
_LETTER = 0.62 * _EM  # how wide one is on average, in a wide font


def place(x: float) -> str:
    """A coordinate to a tenth of a unit.

    Example:
        >>> place(12.04), place(-0.01), place(3.26)
        ('12', '0', '3.3')
    """
    return f"{round(x, 1) + 0.0:g}"


def path(points: Iterable[tuple[float, float]]) -> str:
    """A line through points; it is interrupted where one is not finite.

    Example:
        >>> path([(0, 1), (2, 3), (4, math.nan), (5, 6), (7, 8)])
        'M0 1L2 3M5 6L7 8'
    """
    parts, pen = [], "M"
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{pen}{place(x)} {place(y)}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Lines of no length, which round caps make into dots.

    Example:
        >>> dots([(1, 2), (3, 4)])
        'M1 2h0M3 4h0'
    """
    return "".join(f"M{place(x)} {place(y)}h0" for x, y in points if math.isfinite(x) and math.isfinite(y))


def label(x: float, y: float, text: str, kind: str = "") -> str:
    """Text at a place; ``kind`` is its class."""
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{place(x)}" y="{place(y)}"{mark}>{_escaped(text)}</text>'


def width(text: str) -> float:
    """About how wide a text is; wide letters count as two."""
    return sum(_EM if unicodedata.east_asian_width(letter) in "WF" else _LETTER for letter in text)


def fit(text: str, room: float) -> str:
    """The text, shortened to the room there is."""
    text = shortened(visible(text), max(1, int(room / _LETTER + 0.01)))
    while width(text) > room + 0.01 and len(text) > 1:
        text = f"{text[:-2]}…"
    return text


def element(height: float, body: Iterable[str], *, title: str, description: str) -> str:
    """The figure with its name and its description in words."""
    words = "".join(f"<{tag}>{_escaped(text)}</{tag}>" for tag, text in (("title", title), ("desc", description)))
    head = f'<svg class="plot" viewBox="0 0 {place(WIDTH)} {place(height)}" role="img"'
    drawn = "".join(part for part in body if 'd=""' not in part)
    return f'{head} aria-label="{_escaped(title)}">{words}{drawn}</svg>'


def _escaped(text: str) -> str:
    return html.escape(shortened(visible(text), 2000))


def dodged(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights of labels: near where they are wanted, at least ``gap`` apart, between ``low`` and ``high`` if they fit.

    Example:
        >>> dodged([10, 12, 40], 10, 0, 100)
        [10, 20, 40]
        >>> dodged([95, 96], 10, 0, 100)
        [90, 100]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = [0.0] * len(wanted)
    floor = low
    for i in order:
        found[i] = max(wanted[i], floor)
        floor = found[i] + gap
    ceiling = max(high, low + gap * (len(wanted) - 1))
    for i in reversed(order):
        found[i] = min(found[i], ceiling)
        ceiling = found[i] - gap
    return found


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` onto places from ``start`` to ``end``, evenly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, log: bool = False) -> Scale:
        """A scale that holds all values but absurd ones, with some room at both ends."""
        finite = [value for value in values if abs(value) < _HUGE and (value > 0 or not log)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if log:
            low, high = (max(value, 1e-150) for value in (low, high or 1.0))
            room = max(1.1, math.exp(0.05 * (math.log(high) - math.log(low))))
            return cls(low / room, high * room, start, end, log)
        room = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """The place of a value."""
        if self.log:
            if value <= 0:
                return math.nan
            value, low, high = math.log(value), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[tuple[float, str]]:
        """About so many round values on the scale, each with its text."""
        if self.log:
            whole = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            if len(whole) > 1:
                step = max(1, math.ceil(len(whole) / (count + 1)))
                return [(10.0**power, f"{10.0**power:g}") for power in list(whole)[::step]]
        step, places = self._step(count)
        values = [step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        return [(value, self._text(value, places)) for value in values]

    def reading(self, value: float) -> str:
        """A value as read off the scale, all with the same digits: one more than the ticks have."""
        return self._text(value, self._step(4)[1] + 1) if math.isfinite(value) else DASH

    def _step(self, count: int) -> tuple[float, int]:
        """From one tick to the next, and the digits after the point that this takes."""
        span = self.high - self.low
        size = 10 ** math.floor(math.log10(span / count))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor * count >= span * 0.8)
        return step, max(0, -math.floor(math.log10(step) + 1e-9))

    def _text(self, value: float, places: int) -> str:
        huge = max(abs(self.low), abs(self.high)) >= 1e5 or places > 7
        return f"{value:.3g}" if huge else f"{value:.{places}f}"
