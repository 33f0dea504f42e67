"""``run`` and ``compare``: from a question to a stored verdict."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import click
import typer

from torchstone.cli.logs import SHORT_ID
from torchstone.cli.options import (
    CellLimit,
    Command,
    Device,
    Executor,
    FailFast,
    Jobs,
    Json,
    MemoryLimit,
    Quiet,
    Replicates,
    Report,
    Stack,
    Store,
    Strict,
    TimeBudget,
    Variance,
    check_device,
    check_takes,
    job_count,
    parse_settings,
    print_json,
    split_names,
)
from torchstone.errors import MissingDependencyError, StoreError, TorchstoneError

if TYPE_CHECKING:
    from torchstone.bench.result import Result
    from torchstone.bench.runner import Event

__all__ = ["CompareCommand", "compare", "run"]


def run(
    ctx: typer.Context,
    slugs: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Papers of `torchstone list`, or studies of your own.")
    ],
    scale: Annotated[
        Literal["smoke", "bench", "paper"],
        typer.Option(help="smoke only checks that it runs; bench takes minutes; paper is the paper's own protocol."),
    ] = "bench",
    only: Annotated[
        list[str] | None, typer.Option(metavar="EXPERIMENT", help="Only these experiments; may be repeated.")
    ] = None,
    budget: TimeBudget = None,
    replicates: Replicates = None,
    variance: Variance = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    executor: Executor = "auto",
    stack: Stack = "auto",
    cell_limit: CellLimit = None,
    memory_limit: MemoryLimit = None,
    fail_fast: FailFast = False,
    store: Store = None,
    report: Report = None,
    strict: Strict = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Put the claims of papers to the test, or those of your own studies.

    STUDY is the name of a paper or study in `torchstone list`, a file such as my_study.py (or my_study.py:OBJECT), or
    package.module:OBJECT. What an earlier call finished is not computed again: the same command goes on where it
    stopped. With --json, a list with one result for each study is printed.

    Example:
      torchstone run sop --budget 10m
      torchstone run my_study.py --jobs 2
    """
    from torchstone import api

    if report is not None and len(slugs) > 1:
        raise typer.BadParameter("--report names one file: give it with one study")
    check_device(device)
    how = _execution(executor, stack, jobs, device, cell_limit, memory_limit)
    studies = [api.find_study(slug) for slug in dict.fromkeys(slugs)]
    end = None if budget is None else time.monotonic() + budget
    finished: list[Finished] = []
    try:
        for study in studies:
            with _watched(how, quiet, as_json) as listen:
                result = api.run(
                    study,
                    scale=scale,
                    only=split_names(only or ()),
                    store=store,
                    budget=None if end is None else max(0.0, end - time.monotonic()),
                    replicates=replicates,
                    device=device,
                    fail_fast=fail_fast,
                    variance=variance,
                    listen=listen,
                    **how,
                )
            finished.append(_deliver(ctx, result, store, report, as_json))
    finally:  # what is finished is shown even if a later study breaks
        if as_json:
            print_json([one.document() for one in finished])
    raise typer.Exit(_exit_code(finished, strict))


def _execution(
    executor: str, stack: str, jobs: int | None, device: str, cell_limit: float | None, memory_limit: float | None
) -> dict[str, Any]:
    """How runs are computed, as :func:`torchstone.run` takes it."""
    if executor == "inline" and (cell_limit or memory_limit):
        raise typer.BadParameter(
            "only a worker can be ended: --cell-limit and --memory-limit exclude --executor inline"
        )
    return {
        "executor": executor,
        "stack": stack,
        "jobs": 1 if executor == "inline" else job_count(jobs, device),
        "cell_limit": cell_limit,
        "memory_limit": memory_limit,
    }


@contextlib.contextmanager
def _watched(how: Mapping[str, Any], quiet: bool, as_json: bool) -> Iterator[Callable[[Event], None]]:
    """Show progress while studies run; what arms print must stay out of a JSON document."""
    from torchstone.cli.progress import watch

    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with aside, watch(quiet=quiet, plain=how["executor"] == "inline", jobs=how["jobs"]) as listen:
        yield listen


class CompareCommand(Command):
    """``compare``; its help ends with how data are given and where clean test labels come from."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, with that of the track if one is named: ``torchstone compare noisy-labels --help``."""
        super().format_help(ctx, formatter)
        formatter.write(f"\nData:\n{textwrap.indent(_data_help(ctx.obj.words), '  ')}")


def _data_help(words: Sequence[str]) -> str:
    from torchstone.data import OWN_DATA_HELP

    named = [word for word in words[1:] if not word.startswith("-")][:1]
    for name in named:
        from torchstone import api

        with contextlib.suppress(TorchstoneError):
            return api.find_track(name).data_help or OWN_DATA_HELP
    return f"{OWN_DATA_HELP}\nWhat a problem asks beyond that: torchstone compare noisy-labels --help"


def compare(
    ctx: typer.Context,
    track: Annotated[str, typer.Argument(metavar="TRACK", help="The problem, e.g. noisy-labels.")],
    data: Annotated[str, typer.Option(metavar="DATA", help="Known set, path, or module:function; see below.")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Known model, or module:factory; a small one by default.")
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Option(metavar="A,B,...", help="Arms of the track; all by default.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODULE:OBJECT", help="A method of your own; may be repeated."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(metavar="ARM", help="The arm that the others must beat.")] = None,
    tries: Annotated[int, typer.Option(min=1, help="Random draws to tune each arm, the same for all.")] = 8,
    noise: Annotated[
        list[str] | None, typer.Option(metavar="KIND:RATE", help="Noise to put into right labels; may be repeated.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column of noisy labels; may be repeated.")
    ] = None,
    val: Annotated[str | None, typer.Option(metavar="noisy|clean", help="Labels of the validation data.")] = None,
    test: Annotated[str | None, typer.Option(metavar="PATH", help="Clean test data, in the format of --data.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any further option of the track; may be repeated."),
    ] = None,
    refit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Train the best arm on all data and save it (.safetensors).")
    ] = None,
    budget: TimeBudget = None,
    replicates: Replicates = None,
    variance: Variance = False,
    device: Device = "cpu",
    jobs: Jobs = None,
    executor: Executor = "auto",
    stack: Stack = "auto",
    cell_limit: CellLimit = None,
    memory_limit: MemoryLimit = None,
    fail_fast: FailFast = False,
    store: Store = None,
    report: Report = None,
    strict: Strict = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods on your own data.

    TRACK is the problem, e.g. noisy-labels, or a track of your own: my_track.py or package.module:OBJECT. The model can
    be yours too, and so can a method.

    Example:
      torchstone compare noisy-labels --data digits --noise symmetric:0.4 --budget 2m
      torchstone compare noisy-labels --data photos/ --model nets:small --arms ce,sop --arm mine=methods:fit
    """
    from torchstone import api
    from torchstone._imports import working_directory_on_path

    check_device(device)
    how = _execution(executor, stack, jobs, device, cell_limit, memory_limit)
    found = api.find_track(track)
    given = {"noise": noise, "labels": labels, "val": val, "test": test, "epochs": epochs}
    named = {key: _single(value) for key, value in given.items() if value}
    check_takes(found.study, named)
    further = parse_settings(settings or (), found.study)
    twice = sorted({*given, "data", "model", "arms", "baseline", "tries"} & further.keys())
    if twice:
        raise typer.BadParameter(f"{twice[0]} has an option of its own: --{twice[0]}")
    with (
        working_directory_on_path(),
        _watched(how, quiet, as_json) as listen,
    ):  # worker processes find modules there too
        result = api.compare(
            found,
            data=data,
            model=model,
            arms=_arms(arms, arm, found.arms),
            baseline=baseline,
            tries=tries,
            store=store,
            budget=budget,
            replicates=replicates,
            device=device,
            fail_fast=fail_fast,
            variance=variance,
            listen=listen,
            **how,
            **named,
            **further,
        )
    finished = _deliver(ctx, result, store, report, as_json)
    try:
        weights = None if refit is None else api.refit_winner(found, result, refit, device=device)
    finally:  # the result is shown even if the winner cannot be trained
        if as_json:
            print_json({**finished.document(), "weights": None if refit is None else str(refit.absolute())})
    if weights is not None and not as_json:
        typer.echo(f"weights {weights}")
    raise typer.Exit(_exit_code([finished], strict))


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _arms(named: Sequence[str] | None, own: Sequence[str] | None, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arms as :func:`torchstone.compare` takes them; own methods join those named, or all of the track's."""
    if not named and not own:
        return None
    arms: dict[str, Any] = dict.fromkeys(split_names(named) if named else known)
    for word in own or ():
        name, equals, path = word.partition("=")
        if not equals or ":" not in path:
            raise typer.BadParameter(f"--arm {word!r} is not of the form name=module:object")
        if name in arms:
            raise typer.BadParameter(f"two arms are called {name!r}")
        arms[name] = path
    return arms


class Finished(NamedTuple):
    """A result with its report, or with the reason why there is none."""

    result: Result
    report: Path | None
    problem: str = ""

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.result.to_dict(), "report": None if self.report is None else str(self.report)}


def _deliver(ctx: typer.Context, result: Result, store: str | None, report: Path | None, as_json: bool) -> Finished:
    """Write the report and show the result; a report that cannot be written must not hide the verdict."""
    from torchstone.bench.report import report_path, write_report
    from torchstone.bench.store import Store as Opened

    path, problem = report or report_path(result), ""
    if path is not None:
        try:
            with Opened.open(store, read_only=True) as opened:
                path = write_report(result, path, store=opened, command=ctx.obj.command)
        except (OSError, MissingDependencyError, StoreError) as error:
            path, problem = None, f"the report could not be written: {error}"
    if not as_json:
        from torchstone.cli import show

        show.result(result, report=path, command=ctx.obj.command)
    if problem:
        typer.echo(f"torchstone: {problem}", err=True)
    failed = next((run for run in result.runs if run.status == "failed"), None)
    if failed is not None:
        typer.echo(f"torchstone logs {failed.run_id[:SHORT_ID]} shows where it went wrong", err=True)
    return Finished(result, path, problem)


def _exit_code(finished: Sequence[Finished], strict: bool) -> int:
    """0 when the work was done, 1 if some failed; with ``strict`` 3 for a refuted and 4 for an undecided claim."""
    if any(one.problem or one.result.failures for one in finished):
        return 1
    from torchstone.bench.statistics.verdict import Verdict

    verdicts = {one.result.verdict for one in finished} - {Verdict.REPRODUCED, Verdict.HOLDS}
    if not strict or not verdicts:
        return 0
    return 3 if Verdict.REFUTED in verdicts else 4
