"""What all pictures share: colours that follow the page's theme, text in the page's font, a text alternative."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Stand-ins for colours that the style sheet gives, one set for light pages and one for dark ones.
INK, GOOD, BAD, DOUBT, OURS, THEIRS = "#010203", "#010303", "#010403", "#010503", "#010603", "#010703"
_VARIABLES = {
    INK: "--picture-ink",
    GOOD: "--picture-good",
    BAD: "--picture-bad",
    DOUBT: "--picture-doubt",
    OURS: "--picture-ours",
    THEIRS: "--picture-theirs",
}
WIDTH = 5.2  # inches: on a phone the picture is hardly made smaller, so its text stays readable


@dataclass(frozen=True)
class Picture:
    """An ``<svg>`` element; ``title`` and ``description`` are read out in its place."""

    title: str
    description: str
    svg: str


@contextmanager
def canvas(height: float, rows: int = 1, columns: int = 1, **grid: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in the style of the pages."""
    import matplotlib
    from matplotlib.figure import Figure

    rules: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "torchstone",
        "font.size": 10,
        "axes.titlesize": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(rules):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, **grid)


def finish(figure: Any, title: str, description: str) -> Picture:
    """The picture, ready to stand in a page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :].strip(), flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]+", r"\1 var(--font-stack)", svg)
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    words = f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    opening = f'<svg {view[0] if view else ""} role="img" aria-label="{html.escape(f"{title}. {description}")}">'
    return Picture(title, description, f"{opening}{words}{body}")
