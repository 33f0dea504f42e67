"""Directive ``picture``: draws ``figures/<name>.py`` into the page; its content is the caption."""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class PictureDirective(SphinxDirective):
    """An inline SVG, which follows the theme of the page."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The picture with its caption."""
        module = importlib.import_module(f"figures.{self.arguments[0]}")
        self.env.note_dependency(str(module.__file__))
        return [figure_of(self, module.draw())]


def figure_of(directive: SphinxDirective, picture: Any) -> nodes.figure:
    """A picture, with the content of a directive as its caption."""
    figure = nodes.figure(classes=["picture"])
    figure += nodes.raw("", picture.svg, format="html")
    if directive.content:
        caption = nodes.caption()
        caption += directive.parse_inline(" ".join(directive.content))[0]
        figure += caption
    return figure


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("picture", PictureDirective)
    return {"parallel_read_safe": True}
