"""``report``: what the store holds, as a file to read or to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from torchstone.cli.options import Json, Store, print_json
from torchstone.errors import StoreError, TorchstoneError

if TYPE_CHECKING:
    from torchstone.bench.result import Result
    from torchstone.bench.store import Store as OpenStore

__all__ = ["report"]


def report(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="STUDY...", help="Studies in the store; all of them by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; by default reports/ beside the store.")
    ] = None,
    format: Annotated[
        Literal["html", "md", "json", "csv", "means.csv", "tex"] | None,
        typer.Option(help="By default what the name of FILE ends in, else html."),
    ] = None,
    scale: Annotated[
        Literal["smoke", "bench", "paper"] | None,
        typer.Option(help="Only this scale; by default the one run last, or of all studies every one."),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write what the store holds as a report: finished and unfinished studies.

    Nothing is computed, and the store is only read, so this can be asked while studies run. The page, html, is one file
    that needs no network; csv holds the verdicts, means.csv the means.

    Example:
      torchstone report sop
      torchstone report --out all.html
      torchstone report sop --format tex --out table.tex
    """
    from torchstone.bench.report import format_of, write
    from torchstone.bench.store import Store as Opened

    chosen = format or (format_of(out) if out else "html")
    with Opened.open(store, read_only=True) as opened:
        results, left_out = _read(opened, studies or [], scale)
        path = write(results, out or _place(results, chosen, everything=not studies), chosen, store=opened)
    if as_json:
        found = [
            {"study": one.study.name, "scale": one.scale, "verdict": str(one.verdict), "replicates": _replicates(one)}
            for one in results
        ]
        print_json({"file": str(path), "format": chosen, "studies": found, "left_out": left_out})
        return
    for name, why in left_out.items():
        typer.echo(f"left out: {name}: {why}", err=True)
    typer.echo(f"{len(results)} stud{'y' if len(results) == 1 else 'ies'}: {path}")


def _read(opened: OpenStore, names: list[str], scale: str | None) -> tuple[list[Result], dict[str, str]]:
    """The results of the studies named, or of all that can be read, with the reasons why others cannot."""
    from torchstone.bench.stored import stored_result

    if names:
        return [stored_result(opened, name, scale=scale) for name in dict.fromkeys(names)], {}
    results: list[Result] = []
    left_out: dict[str, str] = {}
    for one in opened.summary():
        if scale in (None, one.scale):
            try:
                results.append(stored_result(opened, one.study, scale=one.scale))
            except TorchstoneError as error:
                left_out[f"{one.study}, {one.scale} scale"] = str(error)
    if not results:
        what = f"no study at {scale} scale" if scale else "no study"
        raise StoreError("; ".join(left_out.values()) or f"there is {what} in {opened.url} to report")
    return results, left_out


def _replicates(result: Result) -> dict[str, int]:
    return {name: len(rows) for name, rows in result.rows.items()}


def _place(results: list[Result], format: str, *, everything: bool) -> Path:
    """Where a report lies if nobody says: beside the store, or here if the store is no file."""
    from torchstone.bench.report import report_path

    beside = report_path(results[0], format)
    if beside is None:
        return Path(f"report.{format}")
    return beside.with_name(f"report.{format}") if everything or len(results) > 1 else beside
