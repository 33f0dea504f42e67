"""Directive ``curves``: mean scores of a study, drawn from its evidence; its content is the caption.

```{curves} momentum dose
:metric: test_small
:arms: momentum
:cases: gamma0, gamma0.5
:x: momentum
Test accuracy on small margins.
```
"""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from figures import curves
from pictures import figure_of
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


class CurvesDirective(SphinxDirective):
    """An inline SVG with a line for each arm; see :func:`figures.curves.draw` for the options."""

    required_arguments = 2
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "metric": _names,
        "arms": _names,
        "cases": _names,
        "labels": _names,
        "against": directives.unchanged,
        "x": directives.unchanged,
        "y": directives.unchanged,
        "log": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """The picture with its caption."""
        study, experiment = self.arguments
        given = {name: self.options[name] for name in ("labels", "against", "x", "y") if name in self.options}
        metric, arms, cases = (self.options[name] for name in ("metric", "arms", "cases"))
        try:
            picture = curves.draw(study, experiment, metric, arms, cases, log="log" in self.options, **given)
        except (KeyError, ValueError) as problem:
            raise self.error(f"the evidence of {study} has no such curve: {problem}") from problem
        return [figure_of(self, picture)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("curves", CurvesDirective)
    return {"parallel_read_safe": True}
