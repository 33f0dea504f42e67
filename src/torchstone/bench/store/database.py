"""The database behind a store: where it is, how it is opened, and one sentence for everything that can go wrong."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchstone.bench.store import schema  # first: it says how to install SQLAlchemy
from torchstone.errors import StoreError, require

# isort: split
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import ArgumentError, DBAPIError

from torchstone.bench.store import sqlite
from torchstone.bench.store.place import SCHEMA_VERSION, check_version, default_path, file_of, is_server, name_of

__all__ = ["Database", "default_path"]

CREATION_LOCK = 0x746F726368  # any number that every torchstone knows


class Database:
    """An open SQLite file or PostgreSQL database with the tables of :mod:`torchstone.bench.store.schema`.

    Args:
        where: a path, ``sqlite:///path``, ``postgresql://user@host/database``, ``":memory:"``, or ``None`` for
            ``$TORCHSTONE_STORE`` or else :func:`default_path`.
        read_only: open what is there, without ever waiting for a writer.

    Raises:
        StoreError: if it cannot be opened; the message says why and what to do.
        MissingDependencyError: for PostgreSQL without its driver.
    """

    def __init__(self, where: str | Path | None = None, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self.where = name_of(where)
        self.path = file_of(self.where)
        if is_server(self.where):
            engine = self._connect_to_server()
        else:
            self.where = self.url = f"sqlite:///{self.path}" if self.path else ":memory:"
            engine = sqlite.create_engine(self.path, read_only=read_only)
        self._engine = engine
        self._writer = engine.execution_options(write=True)
        self._lock = threading.RLock()
        self._pid: int | None = os.getpid()
        self._file: tuple[int, int] | None = None
        try:
            self._prepare()
            self._file = self._find_file()
        except BaseException:
            self.close()
            raise

    def _connect_to_server(self) -> sa.Engine:
        try:
            url = sa.make_url(self.where.replace("postgres://", "postgresql://", 1))
        except (ArgumentError, ValueError):
            raise StoreError(f"{self.where!r} is no address of a store: use a path or postgresql://...") from None
        self.url = url.render_as_string(hide_password=True)
        if url.get_backend_name() != "postgresql":
            raise StoreError(f"a store is a SQLite file or a PostgreSQL database, not {self.url}")
        try:
            engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        except ModuleNotFoundError:
            raise require("psycopg", "postgres") from None
        return engine.execution_options(postgresql_readonly=self.read_only)

    def _prepare(self) -> None:
        """Create the tables of a new store; refuse a database that is none, or of a newer version."""
        with self.begin(write=not self.read_only) as connection:
            if connection.dialect.name == "postgresql" and not self.read_only:  # two may create it at once
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATION_LOCK)))
            tables = set(sa.inspect(connection).get_table_names())
            if schema.meta.name in tables:
                self._check_version(connection)
                if not self.read_only:
                    schema.metadata.create_all(connection, tables=self._younger(tables), checkfirst=False)
            elif tables & set(schema.metadata.tables) or (tables and self.path):
                raise StoreError(f"{self.url} is a database of something else: name another one for the store")
            elif self.read_only:
                raise StoreError(f"the store {self.url} is empty: nothing has been run yet")
            else:
                schema.metadata.create_all(connection, checkfirst=False)
                version = {"key": "schema_version", "value": str(SCHEMA_VERSION)}
                connection.execute(schema.meta.insert(), version)

            self.absent = frozenset(table.name for table in self._younger(tables)) if self.read_only else frozenset()

    @staticmethod
    def _younger(tables: set[str]) -> list[sa.Table]:
        """Tables that the store lacks because it was made before there were any such."""
        return [table for name, table in schema.metadata.tables.items() if name not in tables]

    def _check_version(self, connection: sa.Connection) -> None:
        query = sa.select(schema.meta.c.value).where(schema.meta.c.key == "schema_version")
        check_version(connection.scalar(query), self.url)

    def _find_file(self) -> tuple[int, int] | None:
        """What now has the store's name: device and number of the file; None if nothing has, or there is no file."""
        try:
            found = os.stat(self.path) if self.path else None
        except FileNotFoundError:
            return None
        return found and (found.st_dev, found.st_ino)

    def _check_file(self) -> None:
        """Refuse to write to a file that lost its name: what is written there is gone with the last who has it open."""
        if not self._file or not self.path or self._find_file() == self._file:
            return
        copy = self.path.with_name(f"{self.path.name}.rescued-{self._file[1]}")
        with self._lock:
            saved = sqlite.save_copy(self._engine.raw_connection(), copy)
        raise StoreError(
            f"the store {self.path} was deleted or replaced while it was in use; "
            + (f"what it held is saved in {copy}: move that back to go on" if saved else "what it held is lost")
        )

    @contextmanager
    def begin(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction: all of it is stored, or nothing if an error is raised inside."""
        if write and self.read_only:
            raise StoreError(f"the store {self.url} was opened for reading only")
        if self._pid is None:
            raise StoreError(f"the store {self.url} is closed")
        if self._pid != os.getpid():
            raise StoreError(f"the store {self.url} was opened in another process: open it again in this one")
        if write:
            self._check_file()
        with self._lock:
            try:
                with (self._writer if write else self._engine).begin() as connection:
                    yield connection
            except DBAPIError as error:
                raise StoreError(self._explain(error)) from error

    def _explain(self, error: DBAPIError) -> str:
        cause = " ".join(str(error.orig).split())
        return sqlite.explain(error.orig, self.path or self.url) or f"the store {self.url} failed: {cause}"

    def insert(self, table: sa.Table) -> Any:
        """Insert the rows that are not there yet."""
        make = postgresql_insert if self._engine.dialect.name == "postgresql" else sqlite_insert
        return make(table).on_conflict_do_nothing()

    def now(self, connection: sa.Connection) -> float:
        """Seconds since 1970 by the clock that all users of the database share."""
        if connection.dialect.name == "postgresql":
            return float(connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
        return time.time()

    def close(self) -> None:
        """Close the connection; safe to call again."""
        if self._pid == os.getpid():  # a forked child must not close its parent's connection
            with self._lock:
                self._engine.dispose()
        self._pid = None
