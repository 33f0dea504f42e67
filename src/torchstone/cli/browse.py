"""``list``, ``show`` and ``cite``: what the catalogue knows. No torch is imported for it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from torchstone import catalogue
from torchstone.cli.options import Json, print_json
from torchstone.errors import MissingDependencyError

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
    """List the papers.

    Example:
      torchstone list --track noisy-labels --status ready
    """
    rows = catalogue.search(field=field, track=track, needs=needs, status=status, text=text)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    cells = [("slug", "field", "status", "paper")]
    cells += [(row.slug, row.field, row.status, _title(row)) for row in rows]
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:3]]
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for *short, title in cells:
        line = "  ".join([f"{cell:<{width}}" for cell, width in zip(short, widths, strict=True)] + [title])
        typer.echo(line if wide is None or len(line) <= wide else f"{line[: wide - 1]}…")
    if not rows:
        typer.echo("no paper fits all of these filters", err=True)


def _title(row: catalogue.Paper) -> str:
    needs = f"; needs {', '.join(row.needs)}" if row.needs else ""
    return f"{row.title} ({row.byline}){needs}"


def show(slug: Slug, as_json: Json = False) -> None:
    """Show a paper with its study and verdict.

    SLUG is the name of a paper in `torchstone list`.

    Example:
      torchstone show sop
    """
    row = catalogue.paper(slug)
    from torchstone.bench import evidence

    study, obstacle = _study(slug)
    found = evidence.load(slug)
    if as_json:
        print_json({**asdict(row), "study": study, "study_missing": obstacle, "evidence": found})
        return
    from torchstone.cli.show import paper

    paper(row, study, obstacle, found)


def _study(slug: str) -> tuple[dict[str, Any] | None, str]:
    """What the study of a paper states, or why there is none."""
    from torchstone import api

    if slug not in api.study_names():
        return None, "there is no study of it yet"
    from torchstone.bench.description import describe
    from torchstone.bench.study import SCALES

    try:
        study = api.find_study(slug)
    except MissingDependencyError as error:
        return None, str(error)
    described = describe(study)
    for entry, experiment in zip(described["experiments"], study.experiments, strict=True):
        entry["scales"] = list(experiment.settings or SCALES)
    return described, ""


def cite(slug: Slug, as_json: Json = False) -> None:
    """Print the BibTeX entry of a paper.

    SLUG is the name of a paper in `torchstone list`.

    Example:
      torchstone cite sop >> references.bib
    """
    entry = catalogue.citation(slug)
    print_json({"slug": slug, "bibtex": entry}) if as_json else typer.echo(entry)
