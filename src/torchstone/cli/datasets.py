"""``data``: the known data sets, where their files are, and whether they are right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from torchstone.cli.options import Command, Json, print_json

if TYPE_CHECKING:
    from torchstone.data import FileRow

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, download and verify data sets.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set, as `torchstone data list` names it.")]


@app.command("list", cls=Command)
def list_sets(as_json: Json = False) -> None:
    """List the known data sets, and what is at hand.

    Example:
      torchstone data list
    """
    from torchstone import data

    rows = data.available()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from torchstone.cli import show

    cells = [(row.name, row.status, row.where, f"{row.summary}; licence: {row.licence}") for row in rows]
    show.render(show.table(("name", "status", "where", "what"), cells))
    typer.echo(f"\nfiles are looked for in {data.data_root()} (set TORCHSTONE_DATA to change that)")


@app.command("get", cls=Command)
def get(name: Name, as_json: Json = False) -> None:
    """Download what is missing of a data set.

    NAME is a data set of `torchstone data list`. Every file is compared with its checksum before it counts as there.

    Example:
      torchstone data get cifar10
    """
    from torchstone import data

    rows = data.get(name, progress=_counter())
    print_json([_plain(name, row) for row in rows]) if as_json else _print(name, rows)


@app.command("verify", cls=Command)
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A data set; all that are at hand by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare files with their checksums.

    NAME is a data set of `torchstone data list`; without it, all that are at hand are compared. Exits with 1 if a
    file is corrupt, or missing from a set that was named.

    Example:
      torchstone data verify cifar10n
    """
    from torchstone import data

    at_hand = [row.name for row in data.available() if row.where == "files" and row.status != "absent"]
    found = {each: data.verify(each) for each in ([name] if name else at_hand)}
    if as_json:
        print_json([_plain(each, row) for each, rows in found.items() for row in rows])
    else:
        for each, rows in found.items():
            _print(each, rows)
        if not found:
            typer.echo(f"no data set has files in {data.data_root()}")
    bad = {row.status for rows in found.values() for row in rows} - {"ok"}
    raise typer.Exit(int("corrupt" in bad or bool(name and bad)))


def _print(name: str, rows: Sequence[FileRow]) -> None:
    for row in rows:
        typer.echo(f"{name}: {row.status:<10}  {row.path}")
    if not rows:
        typer.echo(f"{name}: embedded in a package, no files of its own")


def _plain(name: str, row: FileRow) -> dict[str, str]:
    return {"name": name, "path": str(row.path), "status": row.status, "checksum": row.checksum}


def _counter() -> Callable[[str, int, int | None], None] | None:
    """Megabytes so far on one line of a terminal; silent elsewhere."""
    if not sys.stderr.isatty():
        return None

    def count(file: str, done: int, size: int | None) -> None:
        of = f" of {size / 1e6:.1f}" if size else ""
        sys.stderr.write(f"\r{file}: {done / 1e6:.1f}{of} MB" + "\n" * (done == size))
        sys.stderr.flush()

    return count
