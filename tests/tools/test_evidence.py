from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench.driver import wait_for
from tests.fakes import two_arm_study
from torchstone import api

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, with its files in a folder of ours and a study that takes no time."""
    spec = importlib.util.spec_from_file_location("evidence_tool", ROOT / "tools" / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "src" / "torchstone" / "evidence").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(api, "find_study", lambda name: two_arm_study())
    return module


def test_evidence_is_written_and_a_second_call_computes_nothing(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["fake"]) == 0
    path = tmp_path / "src" / "torchstone" / "evidence" / "fake.json"
    first = json.loads(path.read_text())
    assert first["verdicts"][0]["verdict"] == "reproduced"
    path.unlink()
    assert tool.main(["fake"]) == 0
    assert json.loads(path.read_text())["cost"] == first["cost"]
    assert tool.main([""]) == 2


def test_one_at_a_time_on_a_machine_and_a_killed_one_holds_nobody_up(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(60)"
    )
    tool.lock_path().parent.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(tool.lock_path())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert tool.main(["fake"]) == 1
        assert "another evidence run is going on on this machine" in capsys.readouterr().err
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        wait_for(lambda: tool.main(["fake"]) == 0)


def test_the_lock_is_the_users_and_not_the_clones(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert tool.lock_path() == Path("/home/someone/.cache/torchstone/evidence.lock")
