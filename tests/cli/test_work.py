"""`run` and `compare`: exit codes, JSON, reports, and what reaches the bench."""

from __future__ import annotations

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result as Done
from typer.testing import CliRunner

from tests.fakes import two_arm_study
from torchstone import api
from torchstone.bench import Arm, Cell, Outcome, Study, Track
from torchstone.bench.runner import Options
from torchstone.bench.store import Store
from torchstone.cli import show
from torchstone.cli.app import app
from torchstone.errors import did_you_mean

runner = CliRunner()


def broken(cell: Cell, **hyper: Any) -> Outcome:
    """An arm that never works."""
    raise RuntimeError("out of memory")


STUDIES = {
    "good": two_arm_study(),
    "bad": two_arm_study(good=0.5, bad=0.9),
    "even": two_arm_study(good=0.5, bad=0.5, replicates=(6, 6)),
    "tuned": two_arm_study(tuned=True, tries=2),
    "failing": two_arm_study(arms={"baseline": Arm(broken), "method": Arm(broken, role="method")}),
}

CALLS: list[dict[str, Any]] = []


def comparison(
    *,
    data: Any,
    model: Any = None,
    arms: Any = None,
    baseline: Any = None,
    tries: int = 8,
    noise: Any = None,
    size: int = 1,
) -> Study:
    """Builds the same study whatever it is given, and notes what that was."""
    CALLS.append(dict(locals()))
    return two_arm_study()


TRACK = Track("fake", {"baseline": Arm(broken), "method": Arm(broken)}, comparison, data_help="Bring anything.")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_study(slug: str) -> Study:
        if slug not in STUDIES:
            raise did_you_mean("study", slug, STUDIES)
        return STUDIES[slug]

    def find_track(name: str) -> Track:
        if name != "fake":
            raise did_you_mean("track", name, ["fake"])
        return TRACK

    monkeypatch.setattr(api, "find_study", find_study)
    monkeypatch.setattr(api, "find_track", find_track)
    CALLS.clear()


def run(*words: str) -> Done:
    return runner.invoke(app, [*words])


def test_run_prints_the_verdict_and_writes_the_report_beside_the_store(tmp_path: Path):
    done = run("run", "good")
    assert done.exit_code == 0
    page = tmp_path / "reports" / "fake-bench.html"
    assert "torchstone run good" in page.read_text(encoding="utf-8")
    for text in (
        "✓ reproduced",
        "accuracy of method is higher than that of baseline (primary)",
        "They say nothing about",
    ):
        assert text in done.stdout
    assert str(page) in done.stdout.replace("\n", "").replace("        ", "")
    assert "main: replicate 6/29" in done.stderr


def test_running_again_computes_nothing():
    run("run", "good", "--quiet")
    with Store.open() as store:
        before = store.summary()
    again = run("run", "good", "--quiet")
    with Store.open() as store:
        assert store.summary() == before
    assert (again.exit_code, again.stderr) == (0, "")


def test_json_is_one_document_and_progress_goes_to_stderr(tmp_path: Path):
    done = run("run", "good", "--json")
    (document,) = json.loads(done.stdout, parse_constant=pytest.fail)
    assert document["verdict"] == "reproduced"
    assert document["verdicts"][0]["primary"] is True
    assert document["report"] == str(tmp_path / "reports" / "fake-bench.html")
    assert "plan: 1 experiment, at most 58 runs; " in done.stderr


@pytest.mark.parametrize(
    ("study", "plain", "strict", "verdict"),
    [
        ("good", 0, 0, "reproduced"),
        ("bad", 0, 3, "refuted"),
        ("even", 0, 4, "not significant"),
        ("failing", 1, 1, "not run"),
    ],
)
def test_exit_codes(study: str, plain: int, strict: int, verdict: str):
    done = run("run", study, "-q", "--json")
    assert (done.exit_code, json.loads(done.stdout)[0]["verdict"]) == (plain, verdict)
    assert run("run", study, "-q", "--json", "--strict").exit_code == strict


def test_several_papers_the_worst_decides_and_all_are_shown():
    done = run("run", "good", "bad", "good", "-q", "--json", "--strict")
    assert done.exit_code == 3
    assert [one["verdict"] for one in json.loads(done.stdout)] == ["reproduced", "refuted"]


def test_a_failure_is_shown_at_once_and_in_the_end():
    done = run("run", "failing")
    assert "failed: main/baseline/default/0: RuntimeError: out of memory" in done.stderr
    assert "failed: main/baseline/default/0: RuntimeError: out of memory" in done.stdout
    stopped = run("run", "failing", "--fail-fast", "-q")
    assert (stopped.exit_code, stopped.stderr) == (
        1,
        "torchstone: RuntimeError: out of memory (--traceback shows where)\n",
    )


def test_smoke_scale_is_not_to_be_quoted():
    assert "not to be quoted" in run("run", "good", "--scale", "smoke", "-q").stdout
    assert "not to be quoted" not in run("run", "good", "-q").stdout


def test_budget_replicates_and_only():
    assert "2 replicates; all 2 replicates done" in run("run", "good", "-q", "--replicates", "2").stdout
    assert "did you mean 'main'" in run("run", "good", "-q", "--only", "mainn").stderr
    assert run("run", "bad", "--budget", "1s", "-q", "--json").exit_code == 0


def test_the_budget_is_that_of_the_whole_command(monkeypatch: pytest.MonkeyPatch):
    original, budgets = api.run, []

    def note(study: Study, **options: Any) -> Any:
        budgets.append(options["budget"])
        return original(study, **options)

    monkeypatch.setattr(api, "run", note)
    run("run", "good", "bad", "-q", "--budget", "1h")
    assert 3500 < budgets[1] < budgets[0] <= 3600


@pytest.mark.parametrize("words", ["run good", "compare fake --data d"])
def test_jobs_and_the_working_directory_reach_the_bench(words: str, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def note(study: Study, store: Store, options: Options) -> None:
        seen.append((options.jobs, os.getcwd() in sys.path))
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    monkeypatch.setattr(api, "run_study", note)
    assert run(*words.split(), "--jobs", "3", "-q").exit_code == 130
    monkeypatch.delenv("TORCHSTONE_JOBS")  # then it is one for each core
    assert run(*words.split(), "-q").exit_code == 130
    path = words.startswith("compare")
    assert seen == [(3, path), (len(os.sched_getaffinity(0)), path)]


@pytest.mark.parametrize("words", ["run good", "compare fake --data d"])
def test_how_runs_are_computed_reaches_the_bench(words: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[Options] = []

    def note(study: Study, store: Store, options: Options) -> None:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run_study", note)
    limits = "--executor process --cell-limit 30m --memory-limit 2GB --variance --fail-fast"
    assert run(*words.split(), "-q").exit_code == 130
    assert run(*words.split(), *limits.split(), "-q").exit_code == 130
    default, asked = seen
    assert (default.executor, default.limited, default.variance, default.fail_fast) == ("auto", False, False, False)
    assert (asked.executor, asked.cell_limit, asked.memory_limit) == ("process", 1800.0, 2e9)
    assert (asked.variance, asked.fail_fast) == (True, True)


@pytest.mark.parametrize("words", ["run good", "compare fake --data d"])
def test_inline_is_one_job_without_limits(words: str, monkeypatch: pytest.MonkeyPatch):
    jobs: list[int] = []

    def note(study: Study, store: Store, options: Options) -> None:
        jobs.append(options.jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run_study", note)
    assert run(*words.split(), "--executor", "inline", "--jobs", "4", "-q").exit_code == 130
    assert jobs == [1]
    assert run(*words.split(), "--executor", "inline", "--cell-limit", "1h").exit_code == 2
    assert run(*words.split(), "--memory-limit", "2 bananas").exit_code == 2


def test_variance_is_measured_on_request():
    assert run("run", "good", "-q", "--variance", "--replicates", "2").exit_code == 0
    with Store.open() as store:
        assert {one.kind for one in store.runs()} == {"trial", "variance"}


def test_a_worker_process_that_imports_the_entry_point_does_nothing():
    loaded = runpy.run_module("torchstone.cli.__main__", run_name="__mp_main__")  # as itself it would exit
    assert callable(loaded["main"])


def test_report_where_asked_for(tmp_path: Path):
    assert run("run", "good", "-q", "--report", str(tmp_path / "a" / "b.html")).exit_code == 0
    assert (tmp_path / "a" / "b.html").exists()
    assert run("run", "good", "bad", "--report", "x.html").exit_code == 2


def test_a_report_that_cannot_be_written_hides_no_verdict(tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = run("run", "good", "-q", "--report", str(tmp_path / "file" / "b.html"), "--json")
    assert done.exit_code == 1
    assert "the report could not be written" in done.stderr
    assert json.loads(done.stdout)[0]["verdict"] == "reproduced"
    assert json.loads(done.stdout)[0]["report"] is None


def test_what_is_finished_is_shown_if_a_later_study_breaks(monkeypatch: pytest.MonkeyPatch):
    original = api.run

    def breaks(study: Study, **options: Any) -> Any:
        if study is STUDIES["bad"]:
            raise KeyboardInterrupt
        return original(study, **options)

    monkeypatch.setattr(api, "run", breaks)
    done = run("run", "good", "bad", "-q", "--json")
    assert done.exit_code == 130
    assert [one["verdict"] for one in json.loads(done.stdout)] == ["reproduced"]


def test_an_unknown_slug_starts_nothing():
    done = run("run", "good", "godo", "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "did you mean 'good'" in done.stderr
    with Store.open() as store:
        assert store.summary() == []


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run("run", "tuned", "-q").stdout.splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for part in (
        "accuracy of method is higher than that of baseline (primary)",
        "(best of 2 draws, objective ",
        "scale=",
    ):
        assert part in text
    assert "…" not in text


def test_long_names_are_folded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "40")
    show.render(show.table(("arm", "score"), [("x" * 100, "[red]")]))
    out = capsys.readouterr().out
    assert (out.count("x"), out.count("[red]")) == (100, 1)


def test_compare_hands_over_what_was_asked_for():
    words = (
        "--data digits --model net --arms baseline,method --arm mine=mod:fit --baseline method --tries 3 --noise a:1"
    )
    done = run("compare", "fake", *words.split(), "--noise", "b:2", "--set", "size=5", "-q", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["verdict"] == "reproduced"
    assert CALLS == [
        {
            "data": "digits",
            "model": "net",
            "arms": {"baseline": None, "method": None, "mine": "mod:fit"},
            "baseline": "method",
            "tries": 3,
            "noise": ["a:1", "b:2"],
            "size": 5,
        }
    ]


def test_compare_leaves_defaults_to_the_track():
    assert run("compare", "fake", "--data", "d", "-q").exit_code == 0
    assert (CALLS[0]["arms"], CALLS[0]["noise"], CALLS[0]["size"]) == (None, None, 1)
    run("compare", "fake", "--data", "d", "--arm", "mine=m:f", "--noise", "a:1", "-q")
    assert CALLS[1]["arms"] == {"baseline": None, "method": None, "mine": "m:f"}  # an own arm joins all of the track's
    assert CALLS[1]["noise"] == "a:1"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--data", "d", "--set", "sizee=5"], 1, "did you mean 'size'"),
        (["--data", "d", "--device", "cudaa"], 1, "device 'cudaa' cannot be used"),
        (["--data", "d", "--labels", "worse"], 1, "unknown option 'labels'"),
        (["--data", "d", "--set", "noise=a"], 2, "noise has an option of its own"),
        (["--data", "d", "--arm", "mine"], 2, "name=module:object"),
        (["--data", "d", "--arm", "method=m:f"], 2, "two arms are called 'method'"),
        ([], 2, "Missing option '--data'"),
    ],
)
def test_compare_refuses(words: list[str], code: int, text: str):
    done = run("compare", "fake", *words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert text in done.stderr
    assert not CALLS


def test_compare_help_of_a_track():
    assert "Bring anything." in run("compare", "fake", "--help").stdout


def test_refit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "w.safetensors"
    refused = run("compare", "fake", "--data", "d", "-q", "--refit", str(path))
    assert refused.exit_code == 1
    assert "cannot refit" in refused.stderr
    assert "reproduced" in refused.stdout, "the verdict is shown all the same"

    def refit(result: Any, path: Path, device: str) -> Path:
        path.write_bytes(b"weights")
        return path

    monkeypatch.setattr(api, "find_track", lambda name: replace(TRACK, refit=refit))
    assert f"weights {path}" in run("compare", "fake", "--data", "d", "-q", "--refit", str(path)).stdout
    assert path.read_bytes() == b"weights"
    done = run("compare", "fake", "--data", "d", "-q", "--refit", str(path), "--json")
    assert json.loads(done.stdout)["weights"] == str(path)
