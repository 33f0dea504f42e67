"""``status`` and ``export``: what is in the store."""

from __future__ import annotations

import time
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
    from torchstone.bench.report.wording import duration
    from torchstone.bench.store import Store as Opened

    with Opened.open(store, read_only=True) as opened:
        rows = opened.summary()
        failed = opened.runs(status="failed") if any(row.failed for row in rows) else []
        where = opened.url
    if as_json:
        failures = [{"id": run.run_id, "run": run_name(run), "error": run_error(run)} for run in failed]
        print_json({"store": where, "studies": [asdict(row) for row in rows], "failures": failures})
        return
    from torchstone.cli import show

    cells = [
        (
            row.study,
            row.scale,
            ", ".join(f"{count} {state}" for state in _STATES if (count := getattr(row, state))),
            duration(row.wall_s),
            "" if row.last_end is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row.last_end)),
        )
        for row in rows
    ]
    header = ("study", "scale", "runs", "time", "last")
    show.render(show.table(header, cells) if rows else "the store is empty")
    for run in failed[:_FAILURES]:
        typer.echo(f"failed {run.run_id[:SHORT_ID]} {run_name(run)}: {run_error(run)}")
    if failed:
        more = f"; {len(failed) - _FAILURES} more have failed" if len(failed) > _FAILURES else ""
        typer.echo(f"torchstone logs {failed[0].run_id[:SHORT_ID]} shows where the first one went wrong{more}")
    typer.echo(f"store {where}")


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
