"""``doctor``: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import typer

from torchstone.cli.options import Json, Store, print_json

__all__ = ["doctor"]


def doctor(store: Store = None, as_json: Json = False) -> None:
    """Look at the installation, the store and the data.

    Every line is ok, a note (it works, but you should know) or a problem, with what to do about it. Exits with 1 if
    there is a problem. Nothing is changed.

    Example:
      torchstone doctor
    """
    from torchstone.cli.checkup import as_text, findings

    found = findings(store)
    problems = sum(one.state == "problem" for one in found)
    if as_json:
        print_json({"problems": problems, "findings": [asdict(one) for one in found]})
    else:
        typer.echo(as_text(found, min(100, shutil.get_terminal_size().columns)))
        typer.echo(f"\n{problems or 'no'} problem{'s' * (problems != 1)}")
    raise typer.Exit(int(problems > 0))
