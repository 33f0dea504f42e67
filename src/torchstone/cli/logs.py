"""``logs``: what one run printed, how it ended, and with what it ran."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchstone.cli.options import Json, Store, print_json
from torchstone.errors import UnknownNameError

if TYPE_CHECKING:
    from torchstone.bench.store import RunRecord
    from torchstone.bench.store.summary import FailedRun

__all__ = ["SHORT_ID", "logs", "run_error", "run_name"]

SHORT_ID = 10  # letters of an id that are shown: enough for millions of runs
LISTED = 20  # runs that are listed where several fit


def logs(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id, or its first letters; or the name of a run.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Show what a run printed, how it ended, and with what it ran.

    RUN is the id of a run, of which the first letters suffice, or its name as `torchstone status` shows it:
    study/experiment/arm/case/replicate. If several runs fit, they are listed. With --json a list is printed, with all
    that is known of every run that fits.

    Example:
      torchstone logs 3f9a2c
      torchstone logs sop/mnist/ce/sym40/0
    """
    from torchstone.bench.store import Store as Opened

    with Opened.open(store, read_only=True) as opened:
        found = opened.find_runs(run)
        if not found:
            raise UnknownNameError(
                f"no run in {opened.url} fits {run!r}: give an id or study/experiment/arm/case/number"
            )
        if as_json:
            print_json([{**asdict(record), "log": opened.log_text(record.run_id)} for record in found])
            return
        text = opened.log_text(found[0].run_id) if len(found) == 1 else ""
        environment = opened.environments().get(found[0].env_id, {})
    if len(found) > 1:
        _list(found, run)
    else:
        _show(found[0], text, environment)


def run_name(record: RunRecord | FailedRun) -> str:
    """``study/experiment/arm/case/replicate``."""
    return f"{record.study}/{record.experiment}/{record.arm}/{record.case}/{record.replicate}"


def run_error(record: RunRecord | FailedRun) -> str:
    """What a failed run raised, on one line."""
    return " ".join(": ".join(filter(None, (record.error_type, record.error_text))).split())


def _what(record: RunRecord) -> str:
    from torchstone.bench.seeds import SOURCES

    if record.kind == "variance":
        return f"{SOURCES[record.attempt]} varies alone"
    return f"tuning draw {record.attempt}" if record.kind == "hpo" else "trial"


def _state(record: RunRecord) -> str:
    return "diverged" if record.status == "done" and record.diverged else record.status


def _list(found: Sequence[RunRecord], asked: str) -> None:
    from torchstone.cli import show

    cells = [
        (one.run_id[:SHORT_ID], run_name(one), one.scale, _what(one), _state(one), _date(one.ended or one.started))
        for one in found[:LISTED]
    ]
    show.render(show.table(("id", "run", "scale", "kind", "state", "time"), cells))
    more = f", {len(found) - LISTED} of them not shown" if len(found) > LISTED else ""
    typer.echo(f"{len(found)} runs fit {asked!r}{more}: torchstone logs ID shows one")


def _show(record: RunRecord, text: str, environment: Mapping[str, Any]) -> None:
    from rich.text import Text

    from torchstone.cli import show

    parts: list[Any] = [Text(run_name(record), style="bold"), show.fields(_facts(record, environment)), Text("")]
    parts.append(Text("printed, and its traceback" if record.traceback else "printed", style="bold"))
    show.render(*parts)
    typer.echo(text.rstrip() or "(nothing)")  # as it is: rich would break its lines


def _facts(record: RunRecord, environment: Mapping[str, Any]) -> dict[str, str]:
    from torchstone.bench.report.wording import duration, hyper, number

    details = run_error(record) if record.status == "failed" else record.diverged
    state = f"{_state(record)}: {details}" if details else _state(record)
    tries = f", attempt {record.attempts}" if record.attempts > 1 else ""
    spent = ""
    if record.status == "done":
        shared = f", shared work {duration(record.shared_s)}" if record.shared_s else ""
        spent = f"{duration(record.wall_s)} ({duration(record.cpu_s)} of processor{shared})"
        spent += f", {record.peak_rss / 2**20:.0f} MiB at most" if record.peak_rss else ""
    values = {name: value for name, value in {**record.values, **record.cost}.items() if isinstance(value, float)}
    packages = environment.get("packages", {})
    versions = {"torchstone": environment.get("torchstone", ""), "torch": packages.get("torch", "")}
    return {
        "id": record.run_id,
        "state": f"{state}{tries}",
        "kind": f"{_what(record)}, {record.scale} scale",
        "hyper": hyper(record.hyper),
        "setting": hyper(record.setting) if isinstance(record.setting, Mapping) else str(record.setting or ""),
        "seed": f"{record.seed}, replicate {record.replicate}",
        "data": record.data,
        "code": record.fingerprint,
        "values": ", ".join(f"{name}={number(value)}" for name, value in values.items()),
        "objective": "" if record.objective is None else number(record.objective),
        "started": _date(record.started),
        "ended": _date(record.ended),
        "time": spent,
        "host": ", ".join(filter(None, (record.host, f"process {record.pid}", record.device))) if record.host else "",
        "with": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }


def _date(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
