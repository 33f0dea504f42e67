"""The doctor's look at a store: where it is, whether it can be written, and what it holds. It changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from torchstone.errors import StoreError, TorchstoneError

__all__ = ["check_store", "writing_problem"]

LITTLE_SPACE, NO_SPACE = 2**30, 2**26  # bytes on the disk of the store
LARGEST_CHECKED = 2**28  # bytes up to which every page of a store is read

Report = Iterator[tuple[str, ...]]


def check_store(where: str | None = None) -> Report:
    """Yield (state, text, what to do) for the store at ``where``, by default the user's own."""
    try:
        from torchstone.bench.store.database import default_path
    except TorchstoneError as error:  # the bench extra is missing
        yield "note", f"the store cannot be looked at: {error}"
        return
    named = str(where or os.environ.get("TORCHSTONE_STORE") or default_path())
    if "://" in named and not named.startswith("sqlite:///"):
        yield from _content(named)
        return
    path = Path(named.removeprefix("sqlite:///")).expanduser().absolute()
    yield from _place(path)
    if path.is_file():
        yield from _file(path)
        yield from _content(str(path))
    else:
        yield "ok", f"{path} is not there yet: the first run makes it"


def _place(path: Path) -> Report:
    from torchstone.bench.store.sqlite import network_file_system

    kind = network_file_system(path)
    if kind:
        yield (
            "problem",
            f"{path} lies on a network file system ({kind}), where two machines that write damage it",
            "use a local disk (--store FILE, or TORCHSTONE_STORE), or a PostgreSQL server",
        )
    problem = writing_problem(path.parent)
    if not problem and path.exists() and not os.access(path, os.W_OK):
        problem = f"{path} may not be written"
    if problem:
        yield "problem", f"the store cannot be written: {problem}", "change the permissions, or name another store"
    free = shutil.disk_usage(_nearest(path.parent)).free
    text = f"{free / 2**30:.1f} GiB are free on the disk of the store"
    if free < LITTLE_SPACE:
        yield ("problem" if free < NO_SPACE else "note"), text, "free some space, or name a store on another disk"
    else:
        yield "ok", text


def _file(path: Path) -> Report:
    size = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*") if part.is_file())
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            version = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
            broken = size < LARGEST_CHECKED and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
        except sqlite3.Error:  # opening it as a store says what is wrong
            return
    text = f"{path}: {size / 2**20:.1f} MiB, schema {version[0] if version else 'unknown'}"
    if broken:
        yield "problem", f"{text}; it is damaged", f"rescue it: sqlite3 {path} .recover"
    else:
        yield "ok", text


def _content(where: str) -> Report:
    from torchstone.bench.store import Store
    from torchstone.bench.store.owner import is_gone

    try:
        with Store.open(where, read_only=True) as store:
            rows = store.summary()
            running = store.runs(status="running")
            url = store.url
    except (StoreError, TorchstoneError) as error:
        yield "problem", str(error)
        return
    counts = {state: sum(getattr(row, state) for row in rows) for state in ("done", "running", "planned", "failed")}
    yield "ok", f"{url} holds {', '.join(f'{count} {state}' for state, count in counts.items())} runs"
    if counts["failed"]:
        yield "note", f"failed runs: {counts['failed']}", "torchstone status names them, torchstone logs shows why"
    gone = sum(is_gone(run.owner) for run in running)
    if gone:
        text = f"runs marked as running whose process has ended: {gone}"
        yield "note", text, "nothing: the next call of their study takes them over"
    last = max((row.last_end for row in rows if row.last_end is not None), default=0.0)
    if last > time.time() + 60.0:
        yield "note", "the last run ended in the future: the clock was set back", "set the clock: leases go by it"


def writing_problem(folder: Path) -> str:
    """Why no file can be made in a folder (or in the one in which it would be made), or the empty string."""
    place = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{place}: {error.strerror or error}"


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())
