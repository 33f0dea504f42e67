"""The Typer app: which commands there are, and what becomes of an error."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import click
import typer
from typer.core import TyperGroup

from torchstone.cli import (
    BENCH_PACKAGES,
    INSTALL_BENCH,
    browse,
    datasets,
    doctor,
    logs,
    new_study,
    report,
    scores,
    storage,
    work,
)
from torchstone.cli.options import Command
from torchstone.errors import TorchstoneError

__all__ = ["Invocation", "app"]

INTERRUPTED = "interrupted: everything finished is kept; run the same command again to go on"


@dataclass(frozen=True)
class Invocation:
    """What was typed after ``torchstone``, and whether an error should show its traceback."""

    words: tuple[str, ...]
    traceback: bool

    @property
    def command(self) -> str:
        """The line that runs it again."""
        return shlex.join(["torchstone", *self.words])


class Commands(TyperGroup):
    """All commands; an error becomes one sentence on stderr and exit code 1."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        """Take ``--traceback`` out, which may stand anywhere, and go on as usual."""
        words = [word for word in args if word != "--traceback"]
        typed = Invocation(tuple(words), traceback=len(words) < len(args))
        return super().make_context(info_name, words, *rest, obj=typed, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _stop()
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if type(error).__name__ == "BdbQuit":  # so a debugger is left; its module need not be imported to know
                _stop()
            if ctx.obj.traceback:
                raise
            typer.echo(f"torchstone: {sentence(error)}", err=True)
            raise typer.Exit(1) from None


def _stop() -> NoReturn:
    typer.echo(f"\n{INTERRUPTED}", err=True)
    raise typer.Exit(130) from None


def sentence(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in BENCH_PACKAGES:
        return INSTALL_BENCH
    if isinstance(error, OSError) and not isinstance(error, TorchstoneError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        text = f"{place}{error.strerror}"
    elif isinstance(error, TorchstoneError | ValueError | TypeError | ImportError | OSError) and str(error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (--traceback shows where)"
    if text.startswith("BdbQuit"):
        text = "breakpoint() in a worker process, where nobody can answer: use --executor inline"
    return " ".join(text.split())


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: readable at 80 columns, and rich is not imported for it
    suggest_commands=False,  # click suggests by itself
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from torchstone import __version__

        typer.echo(f"torchstone {__version__}")
        raise typer.Exit


@app.callback()
def _torchstone(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from; may stand after any command.")
    ] = False,
) -> None:
    """Deep-learning methods from the literature, and the bench that puts their claims to the test.

    A command exits with 0 when its work was done, whatever the verdict; 1 for a failure, 2 for a wrong option, 130 when
    interrupted. With --strict, 3 means refuted and 4 undecided.
    """


app.command("list", cls=Command)(browse.list_papers)
app.command("show", cls=Command)(browse.show)
app.command("run", cls=Command)(work.run)
app.command("compare", cls=work.CompareCommand)(work.compare)
app.command("judge", cls=Command)(scores.judge)
app.command("status", cls=Command)(storage.status)
app.command("report", cls=Command)(report.report)
app.command("logs", cls=Command)(logs.logs)
app.command("export", cls=Command)(storage.export)
app.command("cite", cls=Command)(browse.cite)
app.command("new-study", cls=Command)(new_study.new_study)
app.command("doctor", cls=Command)(doctor.doctor)
app.add_typer(datasets.app, name="data")
