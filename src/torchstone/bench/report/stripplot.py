"""The paired replicates of one case as an inline SVG: a point per run, a thin line through the arms of a replicate."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchstone.errors import require

__all__ = ["strip_plot"]

_INK = "#010203"  # stands for the colour of the page's text, which is light or dark
_COLOURS = {"method": "#d9772b", "published": "#d9772b"}
_OTHER = "#3a86c8"
_LABEL = 26  # characters of an arm's name that fit beside the plot


def strip_plot(
    scores: Mapping[str, Sequence[float]],
    *,
    metric: str,
    title: str,
    roles: Mapping[str, str] | None = None,
    prefix: str = "plot",
) -> str:
    """Draw the scores of every arm, one per replicate, and connect those of the same replicate.

    Args:
        scores: arm -> score of replicate 0, 1, ...; NaN where there is none.
        metric: what the scores are.
        title: read out in place of the picture, followed by the mean of every arm.
        roles: arm -> role; methods have a colour of their own.
        prefix: of the ids inside, unique on the page.

    Returns:
        An ``<svg>`` element without fixed size and without any reference outside itself.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise require("matplotlib", "bench") from None

    table = np.array([list(values) for values in scores.values()], dtype=float)  # arms x replicates
    arms = range(len(table))
    rules: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 11}
    rules["axes.formatter.useoffset"] = False
    with warnings.catch_warnings(), matplotlib.rc_context(rules):
        warnings.simplefilter("ignore")  # a font without some letter of a name: the page's own font draws the text
        figure = Figure(figsize=(5.2, 0.9 + 0.42 * len(table)), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(table, np.arange(len(table)), color=_INK, alpha=0.18, linewidth=0.8, zorder=1)
        for i, arm in enumerate(scores):
            colour = _COLOURS.get((roles or {}).get(arm, ""), _OTHER)
            axes.scatter(table[i], np.full(table.shape[1], i), s=26, color=colour, alpha=0.75, linewidths=0, zorder=2)
            if not np.isnan(table[i]).all():
                axes.scatter(np.nanmean(table[i]), i, s=190, marker="|", color=_INK, linewidths=2, zorder=3)
        names = [arm if len(arm) <= _LABEL else f"{arm[: _LABEL - 1]}…" for arm in scores]
        axes.set_yticks(list(arms), names, parse_math=False)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xlabel(metric, parse_math=False)
        axes.tick_params(color=_INK, labelcolor=_INK, length=3)
        axes.xaxis.label.set_color(_INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_INK)
        axes.grid(axis="x", color=_INK, alpha=0.1, linewidth=0.8)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    means = (f"{arm} {np.nanmean(row):.4g}" for arm, row in zip(scores, table, strict=True) if not np.isnan(row).all())
    return _inline(buffer.getvalue(), title, f"Mean {metric}: {', '.join(means)}.", prefix)


def _inline(svg: str, title: str, description: str, prefix: str) -> str:
    """The bare element: no prolog, metadata, style or size; unique ids, the page's text colour, a text alternative."""
    svg = svg[svg.index("<svg") :].strip().replace(_INK, "currentColor")
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    label = html.escape(title)
    words = f"<title>{label}</title><desc>{html.escape(description)}</desc>"
    return f'<svg {view[0] if view else ""} role="img" aria-label="{label}">{words}{body}'
