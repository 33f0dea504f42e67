"""Directive ``command-line``: all commands and options of ``torchstone``, from the Typer app itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
import typer.main
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z-]*)(?!`)")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, the app itself first."""
    from torchstone.cli.app import app

    def walk(name: str, command: Any) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        for child, sub in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {child}", sub)

    return walk("torchstone", typer.main.get_command(app))


def reference() -> str:
    """The whole command line as reStructuredText."""
    parts: list[str] = []
    for name, command in commands():
        context = click.Context(command, info_name=name)
        parts += [] if name == "torchstone" else ["", name, "-" * len(name)]
        parts += ["", f".. program:: {name}", ""]
        if not hasattr(command, "commands"):
            usage = " ".join([name, *command.collect_usage_pieces(context)])
            parts += [".. code-block:: text", "", f"    {usage}", ""]
        parts += [*_text(command.help or ""), ""]
        for parameter in command.get_params(context):
            if "--help" not in parameter.opts:
                parts += _option(parameter, context)
        if name == "torchstone compare":
            parts += _data()
    return "\n".join(parts)


def _text(help: str) -> list[str]:
    """The help of a command; its example keeps its lines, and what it quotes becomes code."""
    words, _, example = inspect.cleandoc(help.replace("\b", "")).partition("\nExample:\n")
    lines = _literal(words).strip().splitlines()
    if example:
        lines += ["", ".. code-block:: bash", "", *(f"    {line.strip()}" for line in example.strip().splitlines())]
    return lines


def _option(parameter: click.Parameter, context: click.Context) -> list[str]:
    record = getattr(parameter, "get_help_record", lambda _: None)(context)
    if record is None:
        return []
    names, text = record
    if isinstance(parameter, click.Argument):
        return [f"``{names}``", f"    {_literal(text)}", ""]
    return [f".. option:: {names}", "", f"    {_literal(text)}", ""]


def _data() -> list[str]:
    """Which data each track takes, as ``torchstone compare TRACK --help`` says it."""
    from torchstone import api

    parts: list[str] = []
    for track in api.track_names():
        parts += [f"Data for ``{track}``::", ""]
        parts += [f"    {line}" for line in api.find_track(track).data_help.splitlines()] + [""]
    return parts


def _literal(text: str) -> str:
    """Text that holds no mark-up but `code`, as reStructuredText."""
    pieces = _OPTION.sub(r"`\1`", text.replace("\\[", "[")).split("`")
    for i, piece in enumerate(pieces):
        pieces[i] = f"``{piece}``" if i % 2 else piece.replace("\\", "\\\\").replace("*", "\\*").replace("|", "\\|")
    return "".join(pieces)


class CommandLine(SphinxDirective):
    """The reference of all commands."""

    def run(self) -> list[nodes.Node]:
        """The reference, parsed where it stands."""
        return self.parse_text_to_nodes(reference(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
