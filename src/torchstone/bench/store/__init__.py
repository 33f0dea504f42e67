"""Where runs are kept: a SQLite file or a PostgreSQL database, behind one :class:`Store`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchstone._imports import lazy_front

if TYPE_CHECKING:
    from torchstone.bench.store.reading import Reader
    from torchstone.bench.store.store import RunRecord, Store, StudyRecord, owner_id
    from torchstone.bench.store.summary import StudySummary

__all__ = ["Reader", "RunRecord", "Store", "StudyRecord", "StudySummary", "owner_id"]

# Searched in this order on first use of a name; the first two need neither SQLAlchemy nor NumPy.
_MODULES = ("summary", "owner", "reading", "store")
__getattr__, __dir__ = lazy_front(__name__, __all__, _MODULES)
