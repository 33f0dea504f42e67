"""``list``, ``show`` and ``cite``: what the catalogue knows, and studies of your own. ``list`` imports no torch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchstone import catalogue
from torchstone._plugins import STUDIES, Plugin, announced, is_place
from torchstone.cli.options import Json, print_json
from torchstone.errors import MissingDependencyError

if TYPE_CHECKING:
    from torchstone.bench.study import Study

__all__ = ["cite", "list_papers", "show"]

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="Name of a paper, as `torchstone list` shows it.")]


def list_papers(
    field: Annotated[str | None, typer.Option(help="Package of the method: noise, shift, graph, ...")] = None,
    track: Annotated[str | None, typer.Option(help="Problem: noisy-labels, groups, ...")] = None,
    needs: Annotated[str | None, typer.Option(help="What you must bring: groups, graphs, images, ...")] = None,
    status: Annotated[str | None, typer.Option(help="ready (can be run) or planned.")] = None,
    text: Annotated[str | None, typer.Option(help="Words in name, title, authors or claim.")] = None,
    as_json: Json = False,
) -> None:
    """List the papers, and the studies that installed packages announce.

    Example:
      torchstone list --track noisy-labels --status ready
    """
    rows = catalogue.search(field=field, track=track, needs=needs, status=status, text=text)
    own = [] if any((field, track, needs, status)) else _own_studies(text or "")
    if as_json:
        print_json([asdict(row) for row in rows] + [_as_row(plugin) for plugin in own])
        return
    _print_columns(("slug", "field", "status", "paper"), [(r.slug, r.field, r.status, _title(r)) for r in rows])
    if own:
        typer.echo("")
        _print_columns(("your study", "from", "package"), [(p.name, p.value, p.package) for p in own])
    if not rows and not own:
        typer.echo("no paper fits all of these filters", err=True)


def _print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be; a terminal cuts the last one."""
    widths = [max(map(len, column)) for column in list(zip(header, *rows, strict=True))[:-1]]
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for *short, last in (header, *rows):
        line = "  ".join([f"{cell:<{width}}" for cell, width in zip(short, widths, strict=True)] + [last])
        typer.echo(line if wide is None or len(line) <= wide else f"{line[: wide - 1]}…")


def _own_studies(text: str) -> list[Plugin]:
    """Studies that installed packages announce under a name that no paper has; nothing of them is imported."""
    papers = {paper.slug for paper in catalogue.papers()}
    words = text.casefold().split()
    plugins = [plugin for plugin in announced(STUDIES) if not plugin.problem and plugin.name not in papers]
    return [plugin for plugin in plugins if all(word in plugin.name.casefold() for word in words)]


def _as_row(plugin: Plugin) -> dict[str, Any]:
    """A study of one's own under the keys of a paper."""
    empty: dict[str, Any] = {part.name: None for part in fields(catalogue.Paper)}
    return {**empty, "slug": plugin.name, "status": "own", "objects": [plugin.value], "package": plugin.package}


def _title(row: catalogue.Paper) -> str:
    needs = f"; needs {', '.join(row.needs)}" if row.needs else ""
    return f"{row.title} ({row.byline}){needs}"


def show(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="A paper of `torchstone list`, or a study of yours.")],
    as_json: Json = False,
) -> None:
    """Show a paper with its study and verdict, or a study of your own.

    SLUG is the name of a paper or study in `torchstone list`, a file, or module:object.

    Example:
      torchstone show sop
      torchstone show my_study.py
    """
    if is_place(slug) or any(plugin.name == slug for plugin in _own_studies("")):
        _show_own(slug, as_json)
        return
    row = catalogue.paper(slug)
    from torchstone.bench import evidence

    study, obstacle = _study(slug)
    found = evidence.load(slug)
    if as_json:
        print_json({**asdict(row), "study": study, "study_missing": obstacle, "evidence": found})
        return
    from torchstone.cli.show import paper

    paper(row, study, obstacle, found)


def _show_own(name: str, as_json: bool) -> None:
    from torchstone import api

    stated = _stated(api.find_study(name))
    if as_json:
        print_json({"slug": stated["name"], "study": stated})
        return
    from torchstone.cli.show import study

    study(stated)


def _study(slug: str) -> tuple[dict[str, Any] | None, str]:
    """What the study of a paper states, or why there is none."""
    from torchstone import api

    if slug not in api.study_names():
        return None, "there is no study of it yet"
    try:
        return _stated(api.find_study(slug)), ""
    except MissingDependencyError as error:
        return None, str(error)


def _stated(study: Study) -> dict[str, Any]:
    """What a study states, and at which scales."""
    from torchstone.bench.description import describe
    from torchstone.bench.study import SCALES

    described = describe(study)
    for entry, experiment in zip(described["experiments"], study.experiments, strict=True):
        entry["scales"] = list(experiment.settings or SCALES)
    return described


def cite(slug: Slug, as_json: Json = False) -> None:
    """Print the BibTeX entry of a paper.

    SLUG is the name of a paper in `torchstone list`.

    Example:
      torchstone cite sop >> references.bib
    """
    entry = catalogue.citation(slug)
    print_json({"slug": slug, "bibtex": entry}) if as_json else typer.echo(entry)
