"""`--executor inline` leaves room for a debugger: `breakpoint()` in an arm, with and without a terminal."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchstone.bench.store import Store

STUDY = """
from torchstone.bench import Arm, Experiment, Higher, Outcome, Study

def base(cell):
    return Outcome({"accuracy": 0.5})

def mine(cell):
    if cell.replicate == 1:
        breakpoint()
    return Outcome({"accuracy": 0.7})

ARMS = {"base": Arm(base), "mine": Arm(mine, role="method")}
CLAIMS = (Higher("accuracy", "mine", "base", primary=True),)
STUDY = Study("spam", (Experiment("main", ARMS, CLAIMS, replicates=(3, 3)),))
"""
RUN = [sys.executable, "-m", "torchstone.cli", "run", "spam.py"]


@pytest.fixture(autouse=True)
def _study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spam.py").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHSTONE_JOBS")


def answer(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *options], input=text, capture_output=True, text=True, timeout=60, check=False)


def test_a_breakpoint_asks_and_the_study_goes_on():
    done = answer("p cell.replicate + 41\nc\n", "--executor", "inline")
    assert done.returncode == 0, done.stderr
    before, prompt, after = done.stdout.partition("(Pdb) ")
    assert "mine()" in before
    assert prompt
    assert after.startswith("42\n(Pdb) ")
    assert "3 replicates" in after
    assert "main: replicate 3/3" in done.stderr


def test_what_the_debugger_says_stays_out_of_a_json_document():
    done = answer("c\n", "--executor", "inline", "--json")
    assert json.loads(done.stdout)[0]["study"] == "spam"
    assert "(Pdb) " in done.stderr


def test_leaving_the_debugger_stops_the_study():
    done = answer("q\n", "--executor", "inline")
    assert done.returncode == 130
    assert done.stderr.endswith("run the same command again to go on\n")
    with Store.open() as store:
        assert {run.status for run in store.runs()} == {"done", "failed"}
    assert answer("c\n", "--executor", "inline").returncode == 0


def test_in_a_worker_nobody_can_answer():
    done = answer("", "--jobs", "2", "-q")
    assert done.returncode == 1
    assert "--executor inline" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_on_a_terminal_nothing_is_drawn_over_the_prompt():
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen([*RUN, "--executor", "inline"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    answers = [b"p cell.replicate + 41\n", b"c\n"]
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline and select.select([ours], [], [], 30.0)[0]:
        try:
            said += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if answers and said.count(b"(Pdb) ") == 3 - len(answers):
            os.write(ours, answers.pop(0))
    os.close(ours)  # whoever still waits for an answer gets none
    assert process.wait(timeout=30.0) == 0, said
    text = said.decode()
    assert "42\r\n(Pdb) c\r\n" in text
    during = text[text.index("plan:") : text.index("every claim is decided")]
    assert "\x1b" not in during
    assert "too few replicates" in text
