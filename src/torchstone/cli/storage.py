"""``status`` and ``export``: what is in the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from torchstone.cli.logs import SHORT_ID, run_error, run_name
from torchstone.cli.options import Json, Store, print_json
from torchstone.errors import did_you_mean

__all__ = ["export", "status"]

_STATES = ("done", "running", "planned", "failed")
_FAILURES = 20  # that are shown


def status(store: Store = None, as_json: Json = False) -> None:
    """Show how far every study in the store is.

    The store is only read, so this can be asked while studies run.

    Example:
      torchstone status
    """
    from torchstone.bench.store.summary import store_status
    from torchstone.bench.timespan import duration

    found = store_status(store)
    if as_json:
        failures = [{"id": run.run_id, "run": run_name(run), "error": run_error(run)} for run in found.failed]
        studies = [asdict(row) for row in found.studies]
        print_json({"store": found.url, "studies": studies, "failures": failures})
        return
    cells = [
        (
            row.study,
            row.scale,
            ", ".join(f"{count} {state}" for state in _STATES if (count := getattr(row, state))),
            duration(row.wall_s),
            "" if row.last_end is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row.last_end)),
        )
        for row in found.studies
    ]
    if cells:
        header, *lines = _columns(("study", "scale", "runs", "time", "last"), *cells)
        typer.secho(header, dim=True)
        for line in lines:
            typer.echo(line)
    else:
        typer.echo("the store is empty")
    for run in found.failed[:_FAILURES]:
        typer.echo(f"failed {run.run_id[:SHORT_ID]} {run_name(run)}: {run_error(run)}")
    if found.failed:
        first, hidden = found.failed[0].run_id[:SHORT_ID], len(found.failed) - _FAILURES
        more = f"; {hidden} more have failed" if hidden > 0 else ""
        typer.echo(f"torchstone logs {first} shows where the first one went wrong{more}")
    typer.echo(f"store {found.url}")


def _columns(*rows: Sequence[str]) -> list[str]:
    """Rows of words as lines, the columns below each other; rich, which draws the other tables, takes long to load."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The table to write; an old one is replaced.")],
    format: Annotated[
        Literal["csv", "jsonl"] | None, typer.Option(help="By default what the name of FILE ends in, else csv.")
    ] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Only this study.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write all stored runs to a table.

    FILE gets one line for each number of each run that ended: values, counted costs, seconds; and the errors of those
    that failed.

    Example:
      torchstone export runs.csv --study sop
    """
    from torchstone.bench.store import Store as Opened

    chosen = format or ("jsonl" if file.suffix.lower() == ".jsonl" else "csv")
    with Opened.open(store, read_only=True) as opened:
        known = {row.study for row in opened.summary()}
        if study is not None and study not in known:
            raise did_you_mean("study in the store", study, known)
        lines = opened.export(file, format=chosen, study=study)
    if as_json:
        print_json({"file": str(file.absolute()), "format": chosen, "lines": lines})
    else:
        typer.echo(f"{lines} lines written to {file}")
