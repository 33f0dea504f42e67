"""What holds for SQLite alone: opening a file so that many processes may write, and what its errors mean.

Write-ahead logging lets readers go on while one process writes; ``synchronous=NORMAL`` keeps every finished run through
a crash or kill of any process, and the file whole through a power cut (which may take the last seconds).
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchstone.errors import StoreError

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["connect", "create_engine", "explain", "network_file_system", "save_copy"]

BUSY_TIMEOUT_S = 30.0
MOUNTS = Path("/proc/mounts")
NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|afs|ceph|glusterfs|lustre|gpfs|beegfs|pvfs2|fuse\.(sshfs|glusterfs|ceph\S*)"
)


def create_engine(path: Path | None, *, read_only: bool) -> sa.Engine:
    """An engine with one connection to a file (None: in memory); begin a write with ``execution_options(write=True)``.

    Raises:
        StoreError: if the file cannot be used by several processes, or not at all.
    """
    import sqlalchemy as sa
    from sqlalchemy import event
    from sqlalchemy.pool import StaticPool

    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: connect(path, read_only=read_only),
        poolclass=StaticPool,  # the store lets one thread in at a time
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A write takes the lock at once: one that began by reading could not wait for it without a deadlock.
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def connect(path: Path | None, *, read_only: bool) -> sqlite3.Connection:
    """A connection to a file (None: in memory) that begins transactions only where it is told to.

    Raises:
        StoreError: if the file cannot be used by several processes, or not at all.
        sqlite3.Error: see :func:`explain`.
    """
    if path is not None and path.is_dir():
        raise StoreError(f"{path} is a folder: name a file in it, for example {path / 'results.db'}")
    if path is not None and read_only:
        return _connect_to_read(path)
    if path is not None:
        _make_folder(path)
    connection = sqlite3.connect(
        path or ":memory:", timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys=ON")
        if path is not None:
            _use_log(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise StoreError(f"there is no store at {path}")
    address = path.absolute().as_uri()
    try:
        return _open(f"{address}?mode=ro")
    except sqlite3.OperationalError as error:
        log = path.with_name(f"{path.name}-wal")
        if _name(error).startswith("SQLITE_BUSY") or (log.exists() and log.stat().st_size):
            raise
        return _open(f"{address}?immutable=1")  # where the log's index cannot be written; all is in the file itself


def _open(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("SELECT 1 FROM sqlite_master").close()
    except BaseException:
        connection.close()
        raise
    return connection


def _make_folder(path: Path) -> None:
    """Make the folder of a store; refuse one where several processes would damage it."""
    kind = network_file_system(path)
    if kind:
        raise StoreError(
            f"{path} lies on a network file system ({kind}), where SQLite files are damaged when two machines write: "
            "use a local disk, or a PostgreSQL server (postgresql://user@host/database)"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {path.parent} for the store cannot be made: {error.strerror}") from None


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; when several processes make a new file SQLite does not wait by itself."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if tables and "meta" not in tables:  # not ours: to be refused, but not to be changed
        return
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if not _name(error).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def network_file_system(path: Path) -> str:
    """Kind of the network file system that a path lies on, or the empty string."""
    try:
        mounts = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:  # no Linux: nothing to know
        return ""
    path = path.resolve()
    best, found = -1, ""
    for line in mounts:
        _, point, kind, *_ = line.split()
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)  # \040 is a blank
        if path.is_relative_to(point) and len(point) >= best:
            best, found = len(point), kind
    return found if NETWORK.fullmatch(found) else ""


def save_copy(connection: Any, path: Path) -> bool:
    """Copy an open database to a new file; True if a whole copy is there, whoever of its users made it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection.driver_connection.execute("VACUUM INTO ?", (str(partial),))
            os.replace(partial, path)
        except (OSError, sqlite3.Error):
            partial.unlink(missing_ok=True)
            return False
    return True


def explain(error: BaseException | None, path: Path | str) -> str:
    """One sentence for an error of SQLite: what is wrong with the store, and what to do; empty if it is another's."""
    if not isinstance(error, sqlite3.Error):
        return ""
    name = _name(error)
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED") or name.startswith("SQLITE_BUSY_"):
        return (
            f"another process has kept the store {path} locked for more than {BUSY_TIMEOUT_S:g} s: end it, or use "
            "another store"
        )
    if name == "SQLITE_FULL":
        return f"the disk is full, so nothing was added to the store {path}; what it holds is safe: free some space"
    if name == "SQLITE_NOTADB":
        return f"{path} is not a SQLite database: name another file for the store"
    if name.startswith("SQLITE_CORRUPT"):
        return f"the store {path} is damaged ({error}): rescue it with `sqlite3 {path} .recover`, or use another one"
    if name.startswith("SQLITE_READONLY"):
        return f"the store {path} cannot be written: make file and folder writable, or use another store"
    if name.startswith("SQLITE_CANTOPEN"):
        return f"the store {path} cannot be opened: check that you may read and write the file and its folder"
    if name.startswith("SQLITE_IOERR"):
        return f"the disk failed while the store {path} was in use ({name}); check disk and file system"
    return f"the store {path} failed: {error}"


def _name(error: Any) -> str:
    return getattr(error, "sqlite_errorname", "")
