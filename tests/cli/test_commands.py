"""`show`, `judge`, `status`, `export` and `data`: what they print, and as JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.fakes import two_arm_study
from torchstone import api, catalogue, data
from torchstone.bench import evidence
from torchstone.bench.store import Store
from torchstone.cli.app import app
from torchstone.data.files import FileRow
from torchstone.errors import require

runner = CliRunner()


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    lines = [f"{i},{0.9 + i / 1000},{0.8 + i / 500},{0.85 - i / 300}" for i in range(8)]
    path.write_text("\n".join(["seed,ours,theirs,third", *lines]))
    return path


def invoke(*words: object) -> str:
    done = runner.invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_judge_ranks_or_compares_with_a_baseline(scores: Path):
    text = invoke("judge", scores)
    assert "ours outperforms theirs" in text
    assert "✓ reproduced" in text
    assert "mean rank" in text
    document = json.loads(invoke("judge", scores, "--baseline", "ours", "--json"))
    assert [(pair["method"], pair["versus"]) for pair in document["pairs"]] == [("theirs", "ours"), ("third", "ours")]
    assert {pair["verdict"] for pair in document["pairs"]} == {"refuted"}
    assert document["ranking"]["methods"][0] == "ours"


def test_judge_options_change_the_question(scores: Path):
    lower = json.loads(invoke("judge", scores, "--baseline", "ours", "--lower-is-better", "--json"))
    assert {pair["verdict"] for pair in lower["pairs"]} == {"reproduced"}
    unpaired = json.loads(invoke("judge", scores, "--unpaired", "--gamma", "0.6", "--json"))
    assert (unpaired["paired"], unpaired["gamma"]) == (False, 0.6)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is empty"),
        ("method,score,seed\na,1,0\na,2,0\nb,1,0\n", "is there twice"),
        ("method,score\na,nan\na,1\nb,1\nb,1\n", "is nan"),
    ],
)
def test_judge_says_what_is_wrong_with_a_table(content: str, text: str, tmp_path: Path):
    (tmp_path / "s.csv").write_text(content)
    done = runner.invoke(app, ["judge", str(tmp_path / "s.csv")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_status_and_export(tmp_path: Path):
    assert runner.invoke(app, ["status"]).stderr == f"torchstone: there is no store at {tmp_path / 'results.db'}\n"
    api.run(two_arm_study(), replicates=2)
    assert "4 done" in invoke("status")
    document = json.loads(invoke("status", "--json"))
    assert (document["studies"][0]["study"], document["studies"][0]["done"], document["failures"]) == ("fake", 4, [])
    assert "lines written" in invoke("export", tmp_path / "runs.csv", "--study", "fake")
    with (tmp_path / "runs.csv").open(newline="") as file:
        accuracies = [row for row in csv.DictReader(file) if row["metric"] == "accuracy"]
    assert len(accuracies) == 4
    assert json.loads(invoke("export", tmp_path / "runs.jsonl", "--json"))["format"] == "jsonl"
    assert all(map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines()))
    assert "did you mean 'fake'" in runner.invoke(app, ["export", "x.csv", "--study", "fkae"]).stderr


def test_status_shows_failed_runs():
    with Store.open() as store:
        from torchstone.bench.identity import RunSpec

        spec = RunSpec("fake", "main", "method", "default", 3, "bench")
        store.plan([spec], study_id=store.add_study("fake", {}))
        store.claim([spec.run_id], "me")
        store.fail(spec.run_id, "me", RuntimeError("out of memory"))
    text = invoke("status")
    assert f"failed {spec.run_id[:10]} fake/main/method/default/3: RuntimeError: out of memory\n" in text
    assert f"torchstone logs {spec.run_id[:10]} shows" in text
    (failure,) = json.loads(invoke("status", "--json"))["failures"]
    assert failure["id"] == spec.run_id


def test_show_a_paper_with_study_and_evidence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api, "study_names", lambda: ("sop",))
    monkeypatch.setattr(api, "find_study", lambda slug: two_arm_study(needs=()))
    kept = {"verdict": "reproduced", "verdicts": [{"verdict": "refuted", "claim": "a side claim"}]}
    monkeypatch.setattr(evidence, "load", lambda slug: kept)
    text = " ".join(invoke("show", "sop").split())
    for part in (
        catalogue.paper("sop").claim,
        "experiment main: 6 to 29 replicates",
        "baseline (baseline), method (method)",
        "primary accuracy of method is higher than that of baseline",
        "evidence: ✓ reproduced",
        "✗ refuted: a side claim",
    ):
        assert part in text
    document = json.loads(invoke("show", "sop", "--json"))
    assert document["slug"] == "sop"
    assert document["study"]["experiments"][0]["scales"] == ["smoke", "bench", "paper"]
    assert document["evidence"] == kept


def test_show_a_paper_without_a_study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api, "study_names", lambda: ())
    monkeypatch.setattr(evidence, "load", lambda slug: None)
    assert "there is no study of it yet" in invoke("show", "jtt")
    document = json.loads(invoke("show", "jtt", "--json"))
    assert (document["study"], document["evidence"]) == (None, None)


def test_show_says_what_a_study_lacks(monkeypatch: pytest.MonkeyPatch):
    def lacks(slug: str) -> None:
        raise require("kornia", "vision")

    monkeypatch.setattr(api, "study_names", lambda: ("sop",))
    monkeypatch.setattr(api, "find_study", lacks)
    assert 'pip install "torchstone[vision]"' in invoke("show", "sop")


def test_data_list_and_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    text = invoke("data", "list")
    assert "digits" in text
    assert str(tmp_path) in text
    assert {row["name"]: row["where"] for row in json.loads(invoke("data", "list", "--json"))}["digits"] == "embedded"
    assert invoke("data", "get", "digits") == "digits: embedded in a package, no files of its own\n"
    assert "did you mean 'digits'" in runner.invoke(app, ["data", "get", "digit"]).stderr


@pytest.mark.parametrize(("status", "named", "every"), [("ok", 0, 0), ("corrupt", 1, 1), ("missing", 1, 0)])
def test_data_verify(status: str, named: int, every: int, monkeypatch: pytest.MonkeyPatch):
    row = data.DataRow("mnist", "files", "partial", "digits", "CC")
    monkeypatch.setattr(data, "available", lambda: [row], raising=False)
    monkeypatch.setattr(data, "verify", lambda name: [FileRow(Path("a.gz"), status, "sha256:0")], raising=False)
    assert runner.invoke(app, ["data", "verify", "mnist"]).exit_code == named
    done = runner.invoke(app, ["data", "verify", "--json"])
    assert done.exit_code == every
    assert json.loads(done.stdout) == [{"name": "mnist", "path": "a.gz", "status": status, "checksum": "sha256:0"}]
