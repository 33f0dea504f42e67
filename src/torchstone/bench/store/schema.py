"""Tables of the result store, the same for SQLite and PostgreSQL.

Few rows a run: one in ``run``, one for each number in ``metric``, one for each array or curve (compressed) in
``curve``. Times are seconds since 1970; JSON is text, so that any tool can read it.
"""

from __future__ import annotations

from torchstone.bench.store.place import SCHEMA_VERSION
from torchstone.errors import require

try:
    import sqlalchemy as sa
except ImportError:
    raise require("sqlalchemy", "bench") from None

__all__ = [
    "SCHEMA_VERSION",
    "comparison",
    "curve",
    "derived",
    "env",
    "log",
    "meta",
    "metadata",
    "metric",
    "run",
    "study",
]

metadata = sa.MetaData()
Id = sa.String(32)  # BLAKE2b-128 in hexadecimal

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

study = sa.Table(
    "study",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)

env = sa.Table(
    "env",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
)

run = sa.Table(
    "run",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("study_id", Id, sa.ForeignKey("study.id"), nullable=False),  # the study that asked first
    sa.Column("study", sa.Text, nullable=False),
    sa.Column("experiment", sa.Text, nullable=False),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("case", sa.Text, nullable=False),
    sa.Column("replicate", sa.BigInteger, nullable=False),
    sa.Column("scale", sa.String(16), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("hyper", sa.Text, nullable=False),
    sa.Column("setting", sa.Text, nullable=False),
    sa.Column("data_hash", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("stack_size", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("host", sa.Text),
    sa.Column("pid", sa.BigInteger),
    sa.Column("planned", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double),
    sa.Column("wall_s", sa.Double),
    sa.Column("cpu_s", sa.Double),
    sa.Column("shared_s", sa.Double),
    sa.Column("peak_rss", sa.BigInteger),
    sa.Column("device", sa.Text),
    sa.Column("objective", sa.Double),
    sa.Column("diverged", sa.Text, nullable=False),
    sa.Column("error_type", sa.Text),
    sa.Column("error_text", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Column("env_id", Id, sa.ForeignKey("env.id")),
    sa.CheckConstraint("status IN ('planned', 'running', 'done', 'failed')", name="run_status"),
    # Covers the summary of all studies; also finds the runs of one.
    sa.Index("run_summary", "study", "scale", "status", "ended", "wall_s"),
)

metric = sa.Table(
    "metric",
    metadata,
    sa.Column("run_id", Id, sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),  # value or cost
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Double),
    sa.Column("status", sa.String(8), nullable=False),  # ok, or nan: SQLite keeps a NaN as NULL
    sqlite_with_rowid=False,
)

curve = sa.Table(
    "curve",
    metadata,
    sa.Column("run_id", Id, sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),  # value (an array) or curve (steps, then values)
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("dtype", sa.String(4), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

# Values derived from all runs of a replicate. A table younger than the schema: older stores get it when written to.
derived = sa.Table(
    "derived",
    metadata,
    sa.Column("study_id", Id, sa.ForeignKey("study.id"), primary_key=True),
    sa.Column("experiment", sa.Text, primary_key=True),
    sa.Column("replicate", sa.BigInteger, primary_key=True),
    sa.Column("values", sa.Text, nullable=False),
)

# What a run printed and warned, its end. Younger than the schema, too.
log = sa.Table(
    "log",
    metadata,
    sa.Column("run_id", Id, sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
)

comparison = sa.Table(
    "comparison",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study_id", Id, sa.ForeignKey("study.id"), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Index("comparison_study", "study_id", "at"),
)
