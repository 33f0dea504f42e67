"""The command line: ``torchstone list``, ``run``, ``compare``, ``judge`` and the rest, over :mod:`torchstone.api`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

__all__ = ["main"]

BENCH_PACKAGES = ("PIL", "click", "jinja2", "mlxtend", "pandas", "rich", "sklearn", "sqlalchemy", "typer")
INSTALL_BENCH = 'the command line needs the bench extra: pip install "torchstone[bench]"'


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and leave the process with its exit code.

    Args:
        args: the words after ``torchstone``; by default those of the process.
    """
    try:
        from torchstone.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in BENCH_PACKAGES:
            raise
        sys.stderr.write(f"torchstone: {INSTALL_BENCH}\n")
        if [*(sys.argv[1:] if args is None else args)][:1] == ["doctor"]:  # which is there to say what else is missing
            from torchstone.cli.checkup import as_text, findings

            sys.stdout.write(f"{as_text(findings())}\n")
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that the terminal's encoding lacks must not end a run
    app(args=args, prog_name="torchstone")
