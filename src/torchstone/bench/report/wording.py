"""Numbers and sentences as people read them: the same in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.timespan import duration

__all__ = [
    "DASH",
    "LIMITS",
    "SCOPE",
    "SIGNS",
    "SMOKE",
    "TONES",
    "change",
    "duration",
    "evidence",
    "hyper",
    "interval",
    "number",
    "shortened",
    "signed",
    "spread",
    "visible",
]

DASH = "\N{EN DASH}"  # where there is no number

SCOPE = (
    "The replicates resample this data set and these seeds, given one tuning outcome per arm. "
    "They say nothing about other data sets or other tuning budgets."
)
SMOKE = "Smoke scale only checks that everything runs: its verdicts are not to be quoted."
LIMITS = {
    "smoke": SMOKE,
    "bench": "Bench scale is small data and short training, so that anybody can run it: it does not speak about the "
    "sizes at which a paper was written.",
    "paper": "Paper scale follows the protocol of the paper.",
}

TONES = {
    Verdict.REPRODUCED: "good",
    Verdict.HOLDS: "good",
    Verdict.NOT_MEANINGFUL: "doubt",
    Verdict.NOT_SIGNIFICANT: "doubt",
    Verdict.REFUTED: "bad",
    Verdict.PREMISE_NOT_MET: "doubt",
    Verdict.DEGENERATE: "doubt",
    Verdict.TOO_FEW: "open",
    Verdict.NOT_RUN: "open",
}
SIGNS = {"good": "✓", "bad": "✗", "doubt": "~", "open": "·"}  # for those who see no colours


_CONTROLS = {code: 0x2400 + code for code in range(0x20) if code not in (9, 10)} | {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), 0xFFFD)


def visible(text: str) -> str:
    r"""Text without what a page, a table or a terminal cannot hold: each control character becomes its picture.

    Example:
        >>> visible("a\0b")
        'a␀b'
    """
    return text.translate(_CONTROLS)


def shortened(text: str, length: int) -> str:
    """Text of at most so many characters, its end left out if need be.

    Example:
        >>> shortened("sop-published", 8), shortened("sop", 8)
        ('sop-pub…', 'sop')
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits; a dash where there is none.

    Example:
        >>> number(0.91234), number(1234.5), number(float("nan"))
        ('0.912', '1234', '–')
    """
    if not math.isfinite(value):
        return DASH if math.isnan(value) else f"{'-' * (value < 0)}∞"
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def signed(value: float, digits: int = 3) -> str:
    """A difference, always with its sign.

    Example:
        >>> signed(0.0512), signed(-0.3), signed(0.0)
        ('+0.0512', '-0.3', '0')
    """
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def interval(ends: tuple[float, float]) -> str:
    """Both ends of an interval, or nothing.

    Example:
        >>> interval((0.5432, 0.98))
        '[0.543, 0.98]'
    """
    return "" if any(map(math.isnan, ends)) else f"[{number(ends[0])}, {number(ends[1])}]"


def change(ends: tuple[float, float]) -> str:
    """The interval of a difference, or nothing; an end that is zero but for the last bits of a float is 0.

    Example:
        >>> change((-1.6e-17, 0.05432))
        '[0, +0.054]'
    """
    if any(map(math.isnan, ends)):
        return ""
    dust = 1e-9 * (ends[1] - ends[0])
    low, high = (signed(0.0 if abs(end) < dust else end, 2) for end in ends)
    return f"[{low}, {high}]"


def spread(mean: float, deviation: float) -> str:
    """Mean and standard deviation, both to two significant digits of the latter.

    Example:
        >>> spread(0.91234, 0.0134), spread(0.9, float("nan"))
        ('0.912 ± 0.013', '0.9')
    """
    if math.isnan(mean) or math.isnan(deviation) or deviation == 0:
        return number(mean)
    places = max(0, 1 - math.floor(math.log10(deviation)))
    if places > 6:
        return f"{number(mean)} ± {deviation:.1e}"
    return f"{mean:.{places}f} ± {deviation:.{places}f}"


def evidence(e_value: float) -> str:
    """An e-value, short.

    Example:
        >>> evidence(23.41), evidence(1234567.0), evidence(0.0021)
        ('23.4', '1.2e+06', '0.0021')
    """
    return f"{e_value:.1e}" if e_value >= 1e4 else f"{e_value:.3g}"


def hyper(values: Mapping[str, Any]) -> str:
    """Hyper-parameters in one line.

    Example:
        >>> hyper({"lr": 0.0312345, "q": 0.7, "norm": "batch"})
        'lr=0.0312, q=0.7, norm=batch'
    """
    return ", ".join(f"{name}={number(v) if isinstance(v, float) else v}" for name, v in values.items())
