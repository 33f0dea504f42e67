"""`report`: from the store alone, whatever state a study is in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result as Done
from typer.testing import CliRunner

from tests.fakes import two_arm_study
from torchstone.bench import Study
from torchstone.bench.runner import Options, run_study
from torchstone.bench.store import Store
from torchstone.cli.options import Command
from torchstone.cli.report import report

app = typer.Typer(pretty_exceptions_enable=False)
app.command("report", cls=Command)(report)


class Killed(BaseException):
    """What a signal does to a run."""


@pytest.fixture(autouse=True)
def _stored() -> None:
    """A finished study, and one that was killed while it ran."""

    def stop(event: Any) -> None:
        if event.kind == "replicate" and event.fields["number"] == 2:
            raise Killed

    with Store.open() as store:
        run_study(two_arm_study(), store, Options())
        other = two_arm_study(good=0.6, sd=0.3)
        with pytest.raises(Killed):
            run_study(Study("killed", other.experiments), store, Options(listen=stop))


def call(*words: str) -> Done:
    return CliRunner().invoke(app, [*words])


def test_all_studies_in_one_page_beside_the_store(tmp_path: Path):
    done = call()
    page = tmp_path / "reports" / "report.html"
    assert (done.exit_code, done.stdout) == (0, f"2 studies: {page}\n")
    text = page.read_text(encoding="utf-8")
    assert "2 studies" in text
    assert "main: 3 of at most 29 replicates" in text


def test_one_study_has_a_page_of_its_own(tmp_path: Path):
    done = call("fake")
    assert done.stdout == f"1 study: {tmp_path / 'reports' / 'fake-bench.html'}\n"


@pytest.mark.parametrize(("name", "start"), [("r.md", "# fake"), ("r.tex", r"\begin"), ("r.means.csv", "study,")])
def test_the_name_of_the_file_chooses_the_format(tmp_path: Path, name: str, start: str):
    assert call("fake", "--out", str(tmp_path / name)).exit_code == 0
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_json_says_what_was_written(tmp_path: Path):
    done = call("--json", "--format", "csv", "--scale", "bench")
    document = json.loads(done.stdout)
    assert document["file"] == str(tmp_path / "reports" / "report.csv")
    assert document["format"] == "csv"
    assert [(one["study"], one["replicates"]["main"]) for one in document["studies"]] == [("fake", 6), ("killed", 3)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fkae"], "did you mean 'fake'"),
        (["fake", "--scale", "paper"], "unknown scale"),
        (["--scale", "paper"], "no study at paper scale"),
        (["--out", "report.pdf"], "must end in one of"),
    ],
)
def test_what_is_not_there_is_said(words: list[str], message: str):
    done = call(*words)
    assert done.exit_code == 1
    assert message in str(done.exception)


def test_the_store_is_only_read(tmp_path: Path):
    before = (tmp_path / "results.db").read_bytes()
    assert call().exit_code == 0
    assert (tmp_path / "results.db").read_bytes() == before


def test_a_study_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch):
    from torchstone.bench import stored
    from torchstone.errors import StoreError

    read = stored.stored_result

    def broken(store: Store, name: str, **options: Any) -> Any:
        if name == "killed":
            raise StoreError("stored by an older version")
        return read(store, name, **options)

    monkeypatch.setattr(stored, "stored_result", broken)
    done = call()
    assert done.exit_code == 0
    assert "left out: killed, bench scale: stored by an older version" in done.stderr
    assert done.stdout.startswith("1 study: ")
