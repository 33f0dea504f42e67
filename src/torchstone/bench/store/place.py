"""Where a store is, and whether its tables are of a version that this torchstone can read."""

from __future__ import annotations

import os
from pathlib import Path

from torchstone.errors import StoreError

__all__ = ["SCHEMA_VERSION", "check_version", "default_path", "file_of", "is_server", "name_of"]

SCHEMA_VERSION = 1


def default_path() -> Path:
    """The user's own store: ``$XDG_DATA_HOME/torchstone/results.db``, by default in ``~/.local/share``."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "torchstone" / "results.db"


def name_of(where: str | Path | None = None) -> str:
    """What a store is called: as asked, or else ``$TORCHSTONE_STORE``, or else :func:`default_path`."""
    return str(where or os.environ.get("TORCHSTONE_STORE") or default_path())


def is_server(name: str) -> bool:
    """Whether a name is the address of a database server.

    Example:
        >>> is_server("postgresql://me@host/results"), is_server("sqlite:///results.db"), is_server("results.db")
        (True, False, False)
    """
    return "://" in name and not name.startswith("sqlite:///")


def file_of(name: str) -> Path | None:
    """The file that a name means; ``None`` for a server, and for a store in memory.

    Example:
        >>> file_of("sqlite:////tmp/results.db").name, file_of(":memory:")
        ('results.db', None)
    """
    path = name.removeprefix("sqlite:///")
    return None if is_server(name) or path in ("", ":memory:") else Path(path).expanduser().absolute()


def check_version(found: str | None, url: str) -> None:
    """Raise ``StoreError`` unless the tables of the store at ``url`` can be read; ``found`` is what it says of them."""
    if found is None or not found.isdigit():
        raise StoreError(f"{url} is no store of torchstone: it has no schema version")
    if int(found) > SCHEMA_VERSION:
        raise StoreError(
            f"the store {url} was made by a newer torchstone (schema {found}, this one knows "
            f"{SCHEMA_VERSION}): run `pip install -U torchstone`, or use another store"
        )
