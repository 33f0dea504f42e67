"""Directive ``methods-table``: the papers with their verdicts, from the catalogue and the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from torchstone import catalogue
from torchstone.bench import evidence


def verdicts() -> dict[str, str]:
    """Slug -> verdict of the primary claim, adjusted for the number of studies."""
    found = {name: evidence.load(name) for name in evidence.names()}
    return evidence.adjusted_verdicts({name: stored for name, stored in found.items() if stored is not None})


def markdown(status: str, methods: Path, verdict: dict[str, str]) -> str:
    """The table; a paper that has a page in ``methods`` is linked to it."""
    rows = catalogue.search(status=status)
    if status == "ready":
        lines = ["| method | paper | use | verdict |", "| --- | --- | --- | --- |"]
        for row in rows:
            name = f"[{row.slug}](/methods/{row.slug}.md)" if (methods / f"{row.slug}.md").exists() else f"`{row.slug}`"
            use = f"{{py:obj}}`{row.objects[0]}`" if row.objects else ""
            lines.append(f"| {name} | [{row.title}]({row.url}), {row.byline} | {use} | {verdict.get(row.slug, '')} |")
        return "\n".join(lines)
    lines = ["| slug | paper | field |", "| --- | --- | --- |"]
    lines += [f"| `{row.slug}` | [{row.title}]({row.url}), {row.byline} | `{row.field}` |" for row in rows]
    return "\n".join(lines)


class MethodsTable(SphinxDirective):
    """The table of the papers that are ``ready``, or ``planned``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, parsed where it stands."""
        status = directives.choice(self.arguments[0], ("ready", "planned"))
        return self.parse_text_to_nodes(markdown(status, Path(self.env.srcdir) / "methods", verdicts()))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("methods-table", MethodsTable)
    return {"parallel_read_safe": True}
