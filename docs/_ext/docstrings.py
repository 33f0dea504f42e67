"""Docstrings as fields: ``Shapes``, ``Cost`` and ``Source`` stand beside the parameters, however they are written.

A block may follow its name on the next lines, indented, or on the same line; :mod:`sphinx.ext.napoleon` knows the first
form of ``Args``, ``Returns`` and ``Raises`` and nothing of the rest.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

BLOCK = re.compile(r"^(Shapes|Cost|Source|Raises):(?: +(.+))?$")
UNREADABLE = re.compile(r"= <(?:[^<>]|<[^<>]*>)*>")
LITERAL = re.compile(r"(`+.*?`+)")
MARKUP = re.compile(r"\||(?<=[(, ])\*(?=\w+[,)])")  # norms and the axes of *stack, not substitutions and emphasis
NAPOLEON = re.compile(r"^(Args|Returns|Yields|Raises|Example|Attributes|Shapes|Cost|Source):")


def as_fields(lines: list[str]) -> list[str]:
    """The docstring with those blocks as fields."""
    out: list[str] = []
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        found = BLOCK.match(line)
        if found is None or (found[1] == "Raises" and not found[2]):
            out.append(line)
            continue
        body = [found[2]] if found[2] else []
        belongs = _same_paragraph if found[2] else _indented_or_blank
        while rest and belongs(rest[0]):
            body.append(rest.pop(0))
        text = textwrap.dedent("\n".join(body[bool(found[2]) :])).strip("\n").splitlines()
        first = found[2] or (text.pop(0) if text else "")
        out += ["", f":{found[1]}: {first}", *(f"    {line}".rstrip() for line in text), ""]
    return out


def as_text(line: str) -> str:
    """A line in which bars and the stars of shapes are themselves, outside of examples and literals."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = LITERAL.split(line)
    return "".join(part if place % 2 else MARKUP.sub(r"\\\g<0>", part) for place, part in enumerate(parts))


def _same_paragraph(line: str) -> bool:
    return bool(line.strip()) and NAPOLEON.match(line) is None


def _indented_or_blank(line: str) -> bool:
    return not line.strip() or line.startswith(" ")


def process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place; a constant does not inherit the one of its type."""
    if what == "data" and inspect.getdoc(thing) == "\n".join(lines).strip():
        lines.clear()
    lines[:] = [as_text(line) for line in as_fields(lines)]


def readable(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A signature without defaults that are no Python, such as ``<factory>``: they would keep it from being parsed."""
    return (None if signature is None else UNREADABLE.sub("= ...", signature)), returns


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect before napoleon, which listens at 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-signature", readable)
    return {"parallel_read_safe": True}
