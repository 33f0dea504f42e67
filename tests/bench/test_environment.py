from __future__ import annotations

import subprocess
from pathlib import Path

import numpy
import pytest

from torchstone.bench import environment as module
from torchstone.bench.environment import environment, environment_id


def test_the_environment_names_what_results_depend_on() -> None:
    env = environment()
    assert env["packages"]["numpy"] == numpy.__version__
    assert "torch" in env["packages"]
    assert env["python"].startswith("3.")
    assert env["cores"] >= 1
    assert env["cpu"]


def test_it_is_a_copy_and_its_id_follows_its_contents() -> None:
    before = environment_id()
    env = environment()
    env["packages"]["numpy"] = "0.0"
    assert environment_id() == before != environment_id(env)


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_the_state_of_a_checkout(tmp_path: Path) -> None:
    assert module._checkout(tmp_path) == ("", "")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "src").mkdir()
    code = tmp_path / "src" / "a.py"
    code.write_text("a = 1\n")
    _git(tmp_path, "init")
    assert module._checkout(tmp_path)[0] == ""  # no commit yet
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    commit, dirty = module._checkout(tmp_path)
    assert len(commit) == 40
    assert dirty == ""
    code.write_text("a = 2\n")
    changed = module._checkout(tmp_path)
    states = {dirty, changed[1]}
    for text in ("b = 1\n", "b = 2\n"):
        (tmp_path / "src" / "new.py").write_text(text)
        states.add(module._checkout(tmp_path)[1])
    assert len(states) == 4
    assert changed[0] == commit


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert module._checkout(tmp_path) == ("", "")
