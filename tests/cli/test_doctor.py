"""`doctor`: what it finds in sound and in broken surroundings, and that nothing makes it raise."""

from __future__ import annotations

import importlib.metadata
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.fakes import two_arm_study
from torchstone import api
from torchstone.bench.identity import RunSpec
from torchstone.bench.store import Store, sqlite
from torchstone.cli import checkup, store_checkup
from torchstone.cli.app import app
from torchstone.cli.checkup import Finding, as_text, findings

runner = CliRunner()
SPEC = RunSpec("fake", "main", "method", "default", 0, "bench")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No process is started but where that is tested; data are looked for in an empty folder."""
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    if "can_be_started" not in request.node.name:
        monkeypatch.setattr(checkup, "_workers", lambda: iter(()))


def found(area: str, store: object = None) -> list[Finding]:
    return [one for one in findings(None if store is None else str(store)) if one.area == area]


def texts(area: str, state: str, store: object = None) -> str:
    return "\n".join(f"{one.text} -> {one.remedy}" for one in found(area, store) if one.state == state)


def test_a_sound_installation_has_no_problem():
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 0, done.stdout
    assert done.stdout.endswith("\nno problems\n")
    assert max(len(line) for line in done.stdout.splitlines() if "/" not in line) <= 80  # a path is never broken
    for text in ("torch ", "devices: cpu", "extra bench: complete", "digits: ready", "torchstone data get mnist"):
        assert text in done.stdout
    document = json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)
    assert document["problems"] == 0
    assert {one["state"] for one in document["findings"]} <= {"ok", "note"}


def test_one_problem_is_exit_code_1(monkeypatch: pytest.MonkeyPatch):
    def sick() -> Iterator[tuple[str, ...]]:
        yield "ok", "so far"
        raise RuntimeError("the doctor is ill")

    monkeypatch.setattr(checkup, "_clock", sick)
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "the check itself failed: RuntimeError: the doctor is ill" in " ".join(done.stdout.split())
    assert done.stdout.endswith("\n1 problem\n")


def test_without_the_bench_extra_it_says_what_is_missing():
    code = (
        "import sys\nfor name in ('typer', 'sqlalchemy', 'rich'): sys.modules[name] = None\n"
        "from torchstone.cli import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == 'torchstone: the command line needs the bench extra: pip install "torchstone[bench]"\n'
    assert "the store cannot be looked at" in done.stdout
    assert "Traceback" not in done.stdout


def test_extras_name_what_they_lack_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    lines = ["numpy>=1", "rich>=99; extra == 'bench'", 'no_such_thing[fast]>=2; extra == "vision"', "x>1; extra=='dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert "extra bench lacks rich>=99 (installed is " in texts("packages", "problem")
    note = 'extra vision lacks no_such_thing[fast]>=2 -> pip install "torchstone[vision]"'
    assert texts("packages", "note") == note
    lines.append("no_core_thing>=1")
    assert "torchstone itself needs no_core_thing>=1" in texts("packages", "problem")


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert "imported from a folder, not installed" in texts("packages", "note")


def test_a_torchvision_that_does_not_fit_this_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "torchvision::nms does not exist" in texts("traps", "problem")
    assert "pip uninstall torchvision" in texts("traps", "problem")
    (tmp_path / "torchvision.py").write_text("print('noise on stdout')\nWORKS = True\n")
    assert json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)["problems"] == 0
    sys.modules.pop("torchvision", None)


def test_packages_that_cannot_live_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("highspy", "ortools"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "cannot be used in one process" in texts("traps", "note")


def test_a_worker_can_be_started():
    assert [one.state for one in found("workers")] == ["ok"]


# ---------------------------------------------------------------- the store


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path):
    assert "is not there yet" in texts("store", "ok", tmp_path / "deep" / "s.db")
    assert not (tmp_path / "deep").exists()


def test_what_a_store_holds(tmp_path: Path):
    api.run(two_arm_study(), replicates=2)
    with Store.open() as store:
        store.plan([SPEC], study_id=store.add_study("fake", {}))
        store.claim([SPEC.run_id], "me")
        store.fail(SPEC.run_id, "me", RuntimeError("out of memory"))
    text = texts("store", "ok")
    assert f"{tmp_path / 'results.db'}: " in text
    assert "schema " in text
    assert "holds 4 done, 0 running, 0 planned, 1 failed runs" in text
    assert "failed runs: 1 -> torchstone status names them" in texts("store", "note")


def test_runs_of_a_process_that_has_ended(monkeypatch: pytest.MonkeyPatch):
    with Store.open() as store:
        store.plan([SPEC], study_id=store.add_study("fake", {}))
        host = subprocess.run([sys.executable, "-c", _CLAIM], capture_output=True, text=True, check=True).stdout
    assert host == "1"
    assert "runs marked as running whose process has ended: 1" in texts("store", "note")


_CLAIM = f"""
from torchstone.bench.store import Store, owner_id
with Store.open() as store:
    print(len(store.claim([{SPEC.run_id!r}], owner_id())), end="")
"""


def test_a_clock_that_was_set_back(monkeypatch: pytest.MonkeyPatch):
    api.run(two_arm_study(), replicates=1)
    now = time.time()
    monkeypatch.setattr(store_checkup, "time", SimpleNamespace(time=lambda: now - 3600))
    assert "the clock was set back" in texts("store", "note")
    monkeypatch.setattr(checkup.time, "time", lambda: 1e9)
    assert "the clock says 2" in texts("clock", "problem")


def test_a_file_that_is_no_store(tmp_path: Path):
    (tmp_path / "s.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    assert "is not a SQLite database" in texts("store", "problem", tmp_path / "s.db")


def test_a_store_with_a_broken_page(tmp_path: Path):
    api.run(two_arm_study(), replicates=6)
    path = tmp_path / "results.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    for start in range(4096 * 3, len(content), 4096):
        content[start + 100 : start + 3000] = b"\xff" * 2900
    path.write_bytes(content)
    assert "damaged" in texts("store", "problem")


def test_a_network_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sqlite, "network_file_system", lambda path: "nfs4")
    assert "lies on a network file system (nfs4)" in texts("store", "problem")
    assert "PostgreSQL" in texts("store", "problem")


def test_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_checkup.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    assert "0.5 GiB are free" in texts("store", "note")
    monkeypatch.setattr(store_checkup.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert "0.0 GiB are free" in texts("store", "problem")


def test_folders_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(**place: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store_checkup.tempfile, "TemporaryFile", refuse)
    assert f"the store cannot be written: {tmp_path}: Permission denied" in texts("store", "problem")
    assert "temporary files cannot be used" in texts("folders", "problem")


def test_a_data_folder_that_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHSTONE_DATA", "/no/such/folder")
    assert "TORCHSTONE_DATA names /no/such/folder, which is no folder" in texts("folders", "note")


def test_a_server_that_is_not_there():
    assert found("store", "postgresql://nobody@localhost:1/none")[-1].state == "problem"


# ---------------------------------------------------------------- entry points


def install(folder: Path, package: str, *entries: str) -> None:
    """A package that announces studies."""
    place = folder / f"{package}-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text("\n".join(["[torchstone.studies]", *entries]))


def test_broken_announcements_are_named_and_break_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "menu", "spam = no_such_module:STUDY", "sop = math:pi", "eggs = math:pi")
    install(tmp_path, "kitchen", "nonsense")
    monkeypatch.syspath_prepend(tmp_path)
    text = texts("own studies", "problem")
    assert "spam (no_such_module:STUDY of menu 1.0): study 'spam' of menu 1.0: there is no module" in text
    assert "kitchen 1.0: entry_points.txt cannot be read" in text
    assert "sop (math:pi of menu 1.0) has the name of one of torchstone's own" in text
    assert "must be a torchstone.bench.Study, but is a float -> put it right, or remove menu" in text
    assert texts("own tracks", "ok") == "no package announces a track -> "
    listed = runner.invoke(app, ["list"])
    assert listed.exit_code == 0
    assert "spam        no_such_module:STUDY  menu 1.0" in listed.stdout
    assert "eggs" in listed.stdout
    assert listed.stdout.count("\nsop ") == 1, "the paper alone"
    rows = json.loads(runner.invoke(app, ["list", "--json"]).stdout)
    assert [(row["slug"], row["package"]) for row in rows if row["status"] == "own"] == [
        ("eggs", "menu 1.0"),
        ("spam", "menu 1.0"),
    ]
    assert "menu" not in runner.invoke(app, ["list", "--status", "ready"]).stdout
    assert "eggs" in runner.invoke(app, ["list", "--text", "egg"]).stdout
    shown = runner.invoke(app, ["show", "spam"])
    assert (shown.exit_code, shown.stderr.count("\n")) == (1, 1)


def test_a_sound_announcement_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "menu", "fake = tests.cli.test_doctor:STUDY")
    monkeypatch.syspath_prepend(tmp_path)
    assert "experiment main: 6 to 29 replicates" in runner.invoke(app, ["show", "fake"]).stdout
    assert json.loads(runner.invoke(app, ["show", "fake", "--json"]).stdout)["study"]["name"] == "fake"


STUDY = two_arm_study()


def test_long_texts_are_wrapped_under_their_column():
    lines = as_text([Finding("area", "note", "word " * 30, "do this")]).splitlines()
    assert lines[0].startswith("note     area  word word")
    assert lines[1].startswith("               word")
    assert lines[-1] == "               -> do this"
