"""Where runs are kept: a SQLite file or a PostgreSQL database, behind one :class:`Store`."""

from torchstone.bench.store.reading import Reader
from torchstone.bench.store.store import RunRecord, Store, StudyRecord, StudySummary, owner_id

__all__ = ["Reader", "RunRecord", "Store", "StudyRecord", "StudySummary", "owner_id"]
