"""Stores to test on: every test that takes one runs on SQLite, and on PostgreSQL where a server is at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from torchstone.bench.store import Store


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place for a store; `$TORCHSTONE_POSTGRES` is the URL of a server to test on."""
    if request.param == "sqlite":
        yield str(tmp_path / "new" / "results.db")
        return
    url = os.environ.get("TORCHSTONE_POSTGRES", "")
    if not url:
        assert "postgres" not in os.environ.get("TORCHSTONE_REQUIRE", "").split(","), "TORCHSTONE_POSTGRES is not set"
        pytest.skip("TORCHSTONE_POSTGRES names no server")
    import sqlalchemy as sa

    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    schema = f"test_{uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{schema}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    with Store.open(where) as opened:
        yield opened
