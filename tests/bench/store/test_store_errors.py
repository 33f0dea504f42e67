"""Everything that can go wrong with a store: one clear sentence, and nothing that was stored is lost."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import torchstone
from tests.bench.runs import finished, planned, specs
from torchstone.bench.outcome import Outcome
from torchstone.bench.store import Store, sqlite
from torchstone.bench.store.database import default_path
from torchstone.errors import MissingDependencyError, StoreError

DONE = Outcome({"a": 1.0})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with two runs that are done."""
    path = tmp_path / "results.db"
    with Store.open(path) as store:
        finished(store, specs(2), DONE)
    return path


def assert_safe(path: Path) -> None:
    with Store.open(path) as store:
        assert len(store.outcomes([spec.run_id for spec in specs(2)])) == 2


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def failing(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("text")
    error.sqlite_errorname = name
    return error


# ---------------------------------------------------------------- where it is


def test_the_store_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHSTONE_STORE", str(tmp_path / "mine.db"))
    with Store.open() as store:
        assert store.url == f"sqlite:///{tmp_path}/mine.db"
    with Store.open(f"sqlite:///{tmp_path}/a b?#%20.db") as store:
        assert store.where == store.url
    assert (tmp_path / "a b?#%20.db").exists()
    with Store.open(":memory:") as store:
        assert store.url == store.where == ":memory:"


def test_by_default_it_is_in_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHSTONE_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with Store.open():
        assert (tmp_path / "data" / "torchstone" / "results.db").exists()
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local" / "share" / "torchstone" / "results.db"


def test_paths_start_at_home_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for where in ("~/here.db", "here.db", Path("here.db")):
        with Store.open(where) as store:
            assert store.url == f"sqlite:///{tmp_path}/here.db"


# ---------------------------------------------------------------- what is there instead


def _newer(path: Path) -> None:
    sql(path, "UPDATE meta SET value = '2'")


def _without_version(path: Path) -> None:
    sql(path, "DELETE FROM meta")


def _another_program(path: Path) -> None:
    path.unlink()
    sql(path, "CREATE TABLE trials (number INTEGER)")


def _text(path: Path) -> None:
    path.write_text("run,arm,value\n" * 100)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_newer, r"made by a newer torchstone \(schema 2, this one knows 1\): run `pip install -U torchstone`"),
        (_without_version, "no store of torchstone: it has no schema version"),
        (_another_program, "is a database of something else: name another one"),
        (_text, "results.db is not a SQLite database"),
        (_folder, "is a folder: name a file in it, for example .*results.db"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_store_is_refused_and_left_alone(
    change: Callable[[Path], None], message: str, read_only: bool, path: Path
) -> None:
    change(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreError, match=message):
        Store.open(path, read_only=read_only)
    assert before == (path.read_bytes() if path.is_file() else b"")


def test_a_newer_store_is_safe(path: Path) -> None:
    _newer(path)
    with pytest.raises(StoreError):
        Store.open(path)
    sql(path, "UPDATE meta SET value = '1'")
    assert_safe(path)


def test_a_damaged_store_is_told_apart(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged \(.*\): rescue it"):
        Store.open(path).summary()


@pytest.mark.parametrize("where", ["mysql://host/db", "postgresql+asyncpg://:bad", "no such://"])
def test_other_databases_are_refused(where: str) -> None:
    with pytest.raises(StoreError, match=r"address of a store|a store is a SQLite file or a PostgreSQL database"):
        Store.open(where)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(StoreError, match=r"mysql://me:\*\*\*@host/db") as caught:
        Store.open("mysql://me:secret@host/db")
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- places that do not work


def test_a_folder_is_made_or_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a" / "b" / "results.db"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"the folder .*file/a for the store cannot be made"):
        Store.open(tmp_path / "file" / "a" / "results.db")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which not even root can write")
def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(StoreError, match=r"the store /proc/results.db cannot be opened"):
        Store.open("/proc/results.db")


def test_nothing_can_be_read_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*none.db"):
        Store.open(tmp_path / "none.db", read_only=True)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="is empty: nothing has been run yet"):
        Store.open(tmp_path / "empty.db", read_only=True)


def test_a_store_that_cannot_be_written(path: Path) -> None:
    with Store.open(path) as store:
        with store._database.begin() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="cannot be written: make file and folder writable"):
            planned(store, specs(3))
        assert len(store.runs(status="done")) == 2
    assert_safe(path)


def test_a_store_on_a_read_only_disk_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, open_really = [], sqlite._open

    def no_room_for_the_index(address: str) -> sqlite3.Connection:
        opened.append(address)
        if len(opened) == 1:
            return open_really("file:/proc/none.db?mode=ro")
        return open_really(address)

    monkeypatch.setattr(sqlite, "_open", no_room_for_the_index)
    with Store.open(path, read_only=True) as store:
        assert len(store.runs(status="done")) == 2
    assert opened[1].endswith("?immutable=1")


def test_a_store_that_others_write_is_never_taken_for_unchanging(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def fail_with(name: str) -> None:
        def fail(address: str) -> sqlite3.Connection:
            opened.append(address)
            raise failing(name)

        monkeypatch.setattr(sqlite, "_open", fail)

    fail_with("SQLITE_BUSY")
    with pytest.raises(StoreError, match="locked for more than 30 s"):
        Store.open(path, read_only=True)
    fail_with("SQLITE_CANTOPEN")
    path.with_name("results.db-wal").write_bytes(b"what was written last")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(path, read_only=True)
    assert not any("immutable" in address for address in opened)


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    share, local = tmp_path / "my share", tmp_path / "my share" / "scratch"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\n"
        f"server:/x {str(share).replace(' ', chr(92) + '040')} nfs4 rw 0 0\n"
        f"/dev/sdb {str(local).replace(' ', chr(92) + '040')} xfs rw 0 0\n"
    )
    monkeypatch.setattr(sqlite, "MOUNTS", mounts)
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*a PostgreSQL server"):
        Store.open(share / "results.db")
    assert not share.exists()
    for place in (local, tmp_path / "my share 2"):
        with Store.open(place / "results.db"):
            pass
    monkeypatch.setattr(sqlite, "MOUNTS", tmp_path / "none")
    assert sqlite.network_file_system(share) == ""


def test_a_full_disk_loses_nothing(path: Path) -> None:
    with Store.open(path) as store:
        ids = planned(store, specs(4))[2:]
        store.claim(ids, "me")
        with store._database.begin() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        large = {"loss": [(i, 1 / (i + 1)) for i in range(10_000)]}
        with pytest.raises(StoreError, match=r"the disk is full, so nothing was added .* what it holds is safe"):
            store.finish(ids[0], "me", DONE, wall_s=1, cpu_s=1, curves=large)
        assert store.states(ids) == dict.fromkeys(ids, "running")
        assert len(store.runs(status="done")) == 2
        with store._database.begin() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        assert store.finish(ids[0], "me", DONE, wall_s=1, cpu_s=1, curves=large)
    assert_safe(path)


def test_a_lock_that_nobody_opens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    with Store.open(path) as store:
        other.execute("BEGIN IMMEDIATE")
        for use in (lambda: planned(store, specs(3)), lambda: Store.open(path)):
            with pytest.raises(StoreError, match=r"kept the store .* locked for more than 0.05 s: end it"):
                use()
        assert len(store.runs(status="done")) == 2  # reading goes on
        other.execute("ROLLBACK")
        assert planned(store, specs(3))
    other.close()
    assert_safe(path)


def test_other_errors_of_sqlite_name_the_store() -> None:
    assert "the disk failed while the store x was in use" in sqlite.explain(failing("SQLITE_IOERR_FSYNC"), "x")
    assert sqlite.explain(failing("SQLITE_ERROR"), "x") == "the store x failed: text"
    assert sqlite.explain(ValueError(), "x") == sqlite.explain(None, "x") == ""


def test_numbers_can_be_read_with_plain_sql(tmp_path: Path) -> None:
    with Store.open(tmp_path / "results.db") as store:
        finished(store, specs(1), Outcome({"a": 0.5, "b": math.nan}, cost={"n": 2}))
    connection = sqlite3.connect(tmp_path / "results.db")
    rows = connection.execute(
        'SELECT arm, "case", metric.kind, name, value, metric.status FROM run JOIN metric ON run_id = id'
    )
    expected = {("value", "a", 0.5, "ok"), ("value", "b", None, "nan"), ("cost", "n", 2.0, "ok")}
    assert set(rows) == {("ce", "40%", *row) for row in expected}
    connection.close()


# ---------------------------------------------------------------- use after the end


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store.open(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.summary()


def test_a_store_is_not_carried_into_a_fork(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(path) as store:
        parent = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: parent + 1)
        with pytest.raises(StoreError, match="opened in another process: open it again in this one"):
            store.summary()
        monkeypatch.undo()
        assert len(store.summary()) == 1


# ---------------------------------------------------------------- what is not installed


def test_without_sqlalchemy_the_command_to_install_it() -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "try: from torchstone.bench.store import Store\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    assert (
        _python(code) == "MissingDependencyError this needs the package 'sqlalchemy': pip install \"torchstone[bench]\""
    )


def test_the_bench_loads_without_torch_and_its_front_without_sqlalchemy() -> None:
    code = "import sys, torchstone.bench; print('sqlalchemy' in sys.modules, end=' ');"
    assert _python(code + "from torchstone.bench.store import Store; print('torch' in sys.modules)") == "False False"


def _python(code: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(Path(torchstone.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_without_its_driver_postgresql_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"torchstone\[postgres\]"):
        Store.open("postgresql://me@host/results")


@pytest.mark.postgres
def test_a_server_that_does_not_answer_and_no_password_in_the_message() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match=r"the store postgresql://me:\*\*\*@127.0.0.1:1/x failed") as caught:
        Store.open("postgres://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
