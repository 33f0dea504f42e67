"""Results as files: the formats there are, and how one is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from torchstone._checks import check_one_of
from torchstone.bench.report.data import means_csv, to_csv, to_json
from torchstone.bench.report.latex import latex
from torchstone.bench.report.markdown import markdown
from torchstone.bench.report.page import html
from torchstone.bench.result import Result

if TYPE_CHECKING:
    from torchstone.bench.store import Store

__all__ = ["FORMATS", "file_name", "format_of", "report_path", "write", "write_report"]

FORMATS: Mapping[str, Callable[..., str]] = MappingProxyType(
    {"html": html, "md": markdown, "json": to_json, "csv": to_csv, "means.csv": means_csv, "tex": latex}
)
"""What the name of a file ends in -> the function that turns a sequence of results into its text."""


def format_of(path: str | Path) -> str:
    """The format that the name of a file asks for.

    Raises:
        ValueError: if it ends in none of :data:`FORMATS`.

    Example:
        >>> format_of("table.means.csv"), format_of("report.HTML")
        ('means.csv', 'html')
    """
    name = Path(path).name.lower()
    found = max((format for format in FORMATS if name.endswith(f".{format}")), key=len, default="")
    if not found:
        endings = ", ".join(f".{format}" for format in FORMATS)
        raise ValueError(f"the name of a report must end in one of {endings}, but is {Path(path).name!r}")
    return found


def report_path(result: Result, format: str = "html") -> Path | None:
    """Where the report lies by default: ``reports/`` beside the store, or ``None`` if the store is no file."""
    path = result.store.removeprefix("sqlite:///")
    if path == result.store or path in ("", ":memory:"):
        return None
    return Path(path).parent / "reports" / f"{file_name(result.study.name)}-{result.scale}.{format}"


def file_name(name: str) -> str:
    """A name of letters and digits that every file system takes."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return kept.strip(".-")[:80] or "study"


def write_report(
    results: Result | Iterable[Result], path: str | Path, *, store: Store | None = None, command: str = ""
) -> Path:
    """Write one self-contained HTML page about one or several results, atomically.

    Args:
        results: what to report.
        path: the file; its folder is made if need be.
        store: the open store of the results; it holds the learning curves.
        command: the command that runs a single study again; by default put together from the result.

    Returns:
        The absolute path of the file.

    Raises:
        MissingDependencyError: without jinja2.
        OSError: if the file cannot be written.
    """
    return write(results, path, "html", store=store, command=command)


def write(
    results: Result | Iterable[Result],
    path: str | Path,
    format: str | None = None,
    *,
    store: Store | None = None,
    command: str = "",
) -> Path:
    """Write results in one of :data:`FORMATS`, atomically; see :func:`write_report`.

    Args:
        results: what to report.
        path: the file; its folder is made if need be.
        format: by default what the name of the file ends in.
        store: the open store of the results, for the learning curves of a page.
        command: the command that runs a single study again, for a page.

    Returns:
        The absolute path of the file.

    Raises:
        ValueError: for an unknown format.
        MissingDependencyError: for a page without jinja2.
        OSError: if the file cannot be written.
    """
    chosen = check_one_of("format", format, tuple(FORMATS)) if format else format_of(path)
    found = [results] if isinstance(results, Result) else list(results)
    text = html(found, store=store, command=command) if chosen == "html" else FORMATS[chosen](found)
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
