"""`new-study`: what it writes works as it is, and it never writes over anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from torchstone.cli.app import app

runner = CliRunner()


def new(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a study; give its file and that of its tests."""
    done = runner.invoke(app, ["new-study", name, "--dir", str(folder), "--json"])
    assert done.exit_code == 0, done.stderr
    written = json.loads(done.stdout)
    return Path(written["study"]), Path(written["test"])


def call(folder: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"


@pytest.mark.study
def test_the_template_passes_its_own_tests(tmp_path: Path):
    study, test = new("eggs", tmp_path / "new" / "folder")
    assert (study, test) == (tmp_path / "new" / "folder" / "eggs.py", tmp_path / "new" / "folder" / "test_eggs.py")
    call(study.parent, "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")


@pytest.mark.parametrize("name", ["eggs", "spam-and-eggs-" + "x" * 26])
def test_the_template_passes_the_linter_whatever_its_name_and_line_length(name: str, tmp_path: Path):
    new(name, tmp_path)
    call(tmp_path, "ruff", "check", "--isolated")
    for length in ("88", "120"):
        call(tmp_path, "ruff", "format", "--isolated", "--check", "--line-length", length)


def test_the_template_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    new("ham-study", tmp_path)
    done = runner.invoke(app, ["run", "ham_study.py", "--scale", "smoke", "--json", "-q"])
    assert done.exit_code == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["study"], result["failures"]) == ("ham-study", [])
    shown = runner.invoke(app, ["show", "ham_study.py"]).stdout
    assert "Does averaging the weights" in shown
    assert "primary accuracy of averaged is higher than that of last" in " ".join(shown.split())
    assert json.loads(runner.invoke(app, ["show", "ham_study:STUDY", "--json"]).stdout)["slug"] == "ham-study"


def test_the_template_has_what_a_study_needs():
    from torchstone import _plugins

    folder = Path(_plugins.__file__).parent / "_templates"
    study = _plugins.load_place(_plugins.STUDIES, folder / "study.py")
    (main,) = study.experiments
    assert {arm.role for arm in main.arms.values()} == {"baseline", "method", "heuristic"}
    assert main.arms["last"].space == main.arms["averaged"].space
    assert set(main.settings) == {"smoke", "bench"}
    assert main.premises
    assert study.primary[1].arm == "averaged"
    del sys.modules["study"]
    sys.path.remove(str(folder))


def test_no_file_is_written_over(tmp_path: Path):
    (tmp_path / "test_eggs.py").write_text("mine")
    done = runner.invoke(app, ["new-study", "eggs", "--dir", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr == f"torchstone: {tmp_path / 'test_eggs.py'} is there already: choose another name or --dir\n"
    assert [path.name for path in tmp_path.iterdir()] == ["test_eggs.py"]
    assert (tmp_path / "test_eggs.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("My_Idea", "'My_Idea' is no name for a study: write 'my-idea'"),
        ("2nd", "is no name for a study: write 'nd'"),
        ("a--b", "write 'a-b'"),
        ("..", "is no name for a study (lower-case words"),
        ("x" * 41, "at most 40 letters"),
        ("sop", "'sop' is the name of a paper"),
        ("class", "a module 'class' exists already"),
        ("random", "a module 'random' exists already"),
        ("torch", "a module 'torch' exists already"),
    ],
)
def test_names_that_would_be_in_the_way(name: str, sentence: str, tmp_path: Path):
    done = runner.invoke(app, ["new-study", name, "--dir", str(tmp_path / "x")])
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert not (tmp_path / "x").exists()


def test_what_is_printed_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, ["new-study", "eggs-ham"])
    assert done.stdout.splitlines() == [
        "written: eggs_ham.py and test_eggs_ham.py",
        "  pytest test_eggs_ham.py",
        "  torchstone run eggs_ham.py",
    ]
