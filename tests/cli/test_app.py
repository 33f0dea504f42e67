"""What every command shares: errors, exit codes, light imports, closed pipes, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from torchstone import __version__, catalogue
from torchstone.bench.identity import RunSpec
from torchstone.bench.store import Store
from torchstone.cli.app import app, sentence
from torchstone.errors import DataNotFoundError, UnknownNameError

runner = CliRunner()
COMMANDS = (
    "list",
    "show",
    "run",
    "compare",
    "judge",
    "status",
    "report",
    "logs",
    "export",
    "cite",
    "new-study",
    "doctor",
    "data list",
    "data get",
    "data verify",
)
HEAVY = ("torch", "numpy", "pandas", "scipy", "sqlalchemy", "rich", "jinja2", "matplotlib", "sklearn")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_version():
    assert runner.invoke(app, ["--version"]).stdout == f"torchstone {__version__}\n"


@pytest.mark.parametrize("command", ["--help", *(f"{command} --help" for command in COMMANDS)])
def test_help_fits_80_columns_and_shows_an_example(command: str):
    result = runner.invoke(app, command.split())
    assert result.exit_code == 0
    assert "\\[" not in result.stdout
    own = result.stdout.partition("\nData:\n")[0]
    wide = [line for line in own.splitlines() if len(line) > 80 and not line.strip().startswith("torchstone")]
    assert not wide
    if command != "--help":
        assert f"Example:\n    torchstone {command.removesuffix(' --help')}" in result.stdout


def test_help_of_compare_says_where_clean_labels_come_from():
    assert "Test labels must be clean" in runner.invoke(app, ["compare", "--help"]).stdout


def test_without_typer_one_sentence_says_what_to_install():
    done = python("import sys; sys.modules['typer'] = None; from torchstone.cli import main; main(['list'])")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'torchstone: the command line needs the bench extra: pip install "torchstone[bench]"\n'


@pytest.mark.parametrize(("package", "command"), [("sqlalchemy", "logs 3f9a2c"), ("rich", "data list")])
def test_without_another_bench_package_too(package: str, command: str):
    done = python(
        f"import sys; sys.modules[{package!r}] = None\nfrom torchstone.cli import main; main({command.split()})"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert 'pip install "torchstone[bench]"' in done.stderr


def naming_heavy_imports(command: str) -> subprocess.CompletedProcess[str]:
    return python(
        "import sys\nfrom torchstone.cli import main\n"
        f"try: main({command.split()})\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )


@pytest.mark.parametrize("command", ["list", "--help", "cite sop"])
def test_light_commands_import_nothing_heavy(command: str):
    assert naming_heavy_imports(command).stderr.endswith("[]\n")


@pytest.mark.parametrize("command", ["status", "status --json"])
def test_status_imports_nothing_heavy_even_where_runs_have_failed(command: str):
    with Store.open() as store:
        spec = RunSpec("fake", "main", "method", "default", 3, "bench")
        store.plan([spec], study_id=store.add_study("fake", {}))
        store.claim([spec.run_id], "me")
        store.fail(spec.run_id, "me", "out of memory")
    done = naming_heavy_imports(command)
    assert "fake/main/method/default/3" in done.stdout
    assert done.stderr == "[]\n"


def test_an_error_is_one_sentence_and_exit_code_1():
    result = runner.invoke(app, ["show", "spo"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("torchstone: unknown paper 'spo': did you mean 'sop'?")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--traceback", "cite", "spo"], ["cite", "spo", "--traceback"]])
def test_traceback_on_request_anywhere(words: list[str]):
    result = runner.invoke(app, words)
    assert result.exit_code == 1
    assert isinstance(result.exception, UnknownNameError)


@pytest.mark.parametrize("words", [["listt"], ["cite"], ["list", "--colour"], ["run", "sop", "--budget", "5"]])
def test_wrong_usage_is_exit_code_2(words: list[str]):
    assert runner.invoke(app, words).exit_code == 2


def test_interrupt_says_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch):
    def interrupt(slug: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue, "citation", interrupt)
    result = runner.invoke(app, ["cite", "sop"])
    assert result.exit_code == 130
    assert "everything finished is kept; run the same command again" in result.stderr


@pytest.mark.parametrize("command", ["list", "data list"])
def test_a_reader_that_has_left_is_no_error(command: str):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = [sys.executable, "-m", "torchstone.cli", *command.split()]
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("lr must be\n  positive"), "lr must be positive"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "a.csv: No such file or directory"),
        (DataNotFoundError("there is no file a.csv"), "there is no file a.csv"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero (--traceback shows where)"),
        (ValueError(), "ValueError: (--traceback shows where)"),
    ],
)
def test_sentence(error: Exception, text: str):
    assert sentence(error) == text


def test_an_encoding_without_our_signs_is_no_error(tmp_path: Path):
    (tmp_path / "s.csv").write_text("a,b\n" + "2,1\n" * 8)
    words = [sys.executable, "-m", "torchstone.cli", "judge", str(tmp_path / "s.csv")]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"? reproduced" in done.stdout


def test_list_filters_and_json():
    rows = json.loads(runner.invoke(app, ["list", "--track", "noisy-labels", "--json"]).stdout)
    assert [row["slug"] for row in rows] == [row.slug for row in catalogue.search(track="noisy-labels")]
    text = runner.invoke(app, ["list", "--track", "noisy-labels"]).stdout
    assert len(text.splitlines()) == 1 + len(rows)
    assert next(row for row in rows if row["slug"] == "sop")["title"] in text


def test_list_says_when_nothing_fits():
    result = runner.invoke(app, ["list", "--text", "no paper says this"])
    assert (result.exit_code, result.stderr) == (0, "no paper fits all of these filters\n")


def test_cite():
    assert runner.invoke(app, ["cite", "sop"]).stdout == catalogue.citation("sop") + "\n"
    assert json.loads(runner.invoke(app, ["cite", "sop", "--json"]).stdout)["bibtex"] == catalogue.citation("sop")
