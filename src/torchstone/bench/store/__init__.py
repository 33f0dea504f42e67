"""Where runs are kept: a SQLite file or a PostgreSQL database, behind one :class:`Store`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.bench.store.reading import Reader
    from torchstone.bench.store.store import RunRecord, Store, StudyRecord, owner_id
    from torchstone.bench.store.summary import StudySummary

__all__ = ["Reader", "RunRecord", "Store", "StudyRecord", "StudySummary", "owner_id"]

# Searched in this order on first use of a name; the first two need neither SQLAlchemy nor NumPy.
_MODULES = ("summary", "owner", "reading", "store")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            home = importlib.import_module(f"torchstone.bench.store.{module}")
            if name in home.__all__:
                return getattr(home, name)
    raise AttributeError(f"module 'torchstone.bench.store' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
