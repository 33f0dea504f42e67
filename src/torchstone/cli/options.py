"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer
from typer.core import TyperCommand

from torchstone.errors import did_you_mean

__all__ = [
    "CellLimit",
    "Command",
    "Device",
    "Executor",
    "FailFast",
    "Jobs",
    "Json",
    "MemoryLimit",
    "Quiet",
    "Replicates",
    "Report",
    "Stack",
    "Store",
    "Strict",
    "TimeBudget",
    "Variance",
    "check_device",
    "check_takes",
    "job_count",
    "parse_duration",
    "parse_settings",
    "parse_size",
    "print_json",
    "split_names",
]


class Command(TyperCommand):
    """A command whose help is plain text and keeps the lines of its example."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = (self.help or "").replace("\n\nExample:\n", "\n\n\b\nExample:\n")  # click keeps such lines

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help without the backslashes by which Typer escapes brackets for rich."""
        super().format_help(ctx, formatter)
        formatter.buffer[:] = [part.replace("\\[", "[") for part in formatter.buffer]


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def parse_duration(text: str) -> float:
    """Seconds of a time span such as ``90s``, ``5m`` or ``1h30m``.

    Raises:
        typer.BadParameter: for anything else.
    """
    word = text.strip().lower()
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([dhms])", word))
    if not _DURATION.fullmatch(word) or seconds <= 0:
        raise typer.BadParameter(f"{text!r} is no time span: write 90s, 5m or 1h30m")
    return seconds


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt])(i?)b")


def parse_size(text: str) -> float:
    """Bytes of a size such as ``512MB``, ``2GB`` (powers of 1000) or ``1.5GiB`` (powers of 1024).

    Raises:
        typer.BadParameter: for anything else.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"{text!r} is no size: write 512MB, 2GB or 1.5GiB")
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** ("kmgt".index(match[2]) + 1)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Store = Annotated[
    str | None,
    typer.Option(metavar="FILE|URL", help="Where results are kept; by default $TORCHSTONE_STORE, else your own file."),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(parser=parse_duration, metavar="TIME", help="Begin no new work after 90s, 5m, 1h30m."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        envvar="TORCHSTONE_JOBS",
        help="Worker processes, each with one thread; by default one per core, or one in all on an accelerator.",
    ),
]
Executor = Annotated[
    Literal["auto", "inline", "process"],
    typer.Option(help="inline computes in this process, where breakpoint() works; process in workers."),
]
Stack = Annotated[
    Literal["auto", "never", "always"],
    typer.Option(help="Train many replicates in one pass: auto does where it is faster."),
]
CellLimit = Annotated[
    float | None,
    typer.Option(parser=parse_duration, metavar="TIME", help="End a worker that takes longer for one cell: 30m, 2h."),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option(parser=parse_size, metavar="SIZE", help="End a worker that takes more memory: 512MB, 2GB, 1.5GiB."),
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first run that fails.")]
Variance = Annotated[
    bool, typer.Option("--variance", help="Then measure how much of the spread each source of chance causes.")
]
Replicates = Annotated[int | None, typer.Option(min=1, help="Stop after so many replicates, even if undecided.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 3 if the primary claim is refuted, 4 if it is undecided.")
]
Report = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Where to write the HTML report; by default beside the store.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def job_count(asked: int | None, device: str) -> int:
    """Number of worker processes: what was asked for, or as many as there are cores to use."""
    if asked is not None:
        return asked
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device(name: str) -> None:
    """Raise ``ValueError`` unless torch can compute on the device; better now than in the first run."""
    if name == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises both
        raise ValueError(f"device {name!r} cannot be used: {str(error).partition(chr(10))[0]}") from None


def split_names(values: Iterable[str]) -> list[str]:
    """Names from options that may be repeated or hold commas: ``--arms ce,sop --arms elr``."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def parse_settings(pairs: Iterable[str], function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword arguments from ``key=value`` words, typed as ``function`` expects them.

    A value is ``none``, ``true`` or ``false``, an integer, a number, or a text; a text stays a text (``007``) where the
    function is annotated with ``str`` alone.

    Raises:
        typer.BadParameter: if a word is not ``key=value`` or a key is there twice.
        UnknownNameError: for a key that the function does not take.
    """
    parameters = inspect.signature(function).parameters
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is not of the form key=value")
        if key in settings:
            raise typer.BadParameter(f"{key} is set twice")
        check_takes(function, [key])
        annotation = parameters[key].annotation if key in parameters else ""
        settings[key] = value if annotation in (str, "str") else _typed(value)
    return settings


def check_takes(function: Callable[..., Any], keys: Iterable[str]) -> None:
    """Raise ``UnknownNameError`` unless ``function`` takes all ``keys`` as keyword arguments."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for key in keys:
        if key not in named:
            raise did_you_mean("option", key, named)


def _typed(text: str) -> Any:
    word = text.strip().lower()
    if word in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[word]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return text


def print_json(document: Any) -> None:
    """Print a document as JSON; NaN and infinity, which JSON does not know, become ``null``."""
    typer.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "item") and not hasattr(value, "__len__"):  # a NumPy number
        value = value.item()
        return _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
