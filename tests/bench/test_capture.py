from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.bench.arms import Bad, Talking, one_arm_study
from tests.fakes import two_arm_study
from torchstone.bench.capture import LENGTH, Streams
from torchstone.bench.runner import Options, run_study
from torchstone.bench.store import Store

ROOT = Path(__file__).parents[2]


def texts(path: Path, arm: str = "mine") -> dict[int, str]:
    with Store.open(path, read_only=True) as store:
        return {run.replicate: store.log_text(run.run_id) for run in store.runs() if run.arm == arm}


def test_a_worker_keeps_all_that_a_run_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path / "r.db") as store:
        result = run_study(one_arm_study(Talking()), store, Options(executor="process"))
    assert result.failures == ("main/mine/default/1: ValueError: and then it broke",)
    said = texts(tmp_path / "r.db")
    for line in ("printed in 0", "written to stderr", "from C", "from a child", "UserWarning: mind the gap"):
        assert said[0].count(f"{line}\n") == 1
    assert "printed in 0" not in said[1]
    assert "UserWarning: mind the gap" in said[1]  # in each run, not once in the process
    assert said[1].index("printed in 1") < said[1].index("Traceback (most recent call last)")
    assert said[1].rstrip().endswith("ValueError: and then it broke")
    assert set(texts(tmp_path / "r.db", "base").values()) == {""}
    assert capfd.readouterr() == ("", "")


def test_in_this_process_all_is_kept_and_still_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path / "r.db") as store, pytest.warns(UserWarning, match="mind the gap") as caught:
        run_study(one_arm_study(Talking()), store)
    said = texts(tmp_path / "r.db")
    assert "printed in 0\nwritten to stderr\n" in said[0]
    assert said[0].count("UserWarning: mind the gap") == said[1].count("UserWarning: mind the gap") == 1
    assert "ValueError: and then it broke" in said[1]
    assert len(caught) == 1  # once is enough to see it
    assert capsys.readouterr() == ("printed in 0\nprinted in 1\n", "written to stderr\nwritten to stderr\n")


def test_a_warning_that_is_an_error_stays_one() -> None:
    with Streams()() as said, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no"):
            warnings.warn("no", stacklevel=1)
    assert said() == ""


def test_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before, show = (sys.stdout, sys.stderr), warnings.showwarning
    with pytest.raises(KeyboardInterrupt), Streams()():
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before
    assert warnings.showwarning is show


def test_of_a_long_text_the_end_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with Streams()() as said:
        for number in range(100_000):
            sys.stdout.write(f"{number}\n")
        text = said()
    assert text.endswith("99998\n99999\n")
    assert text.startswith(f"[the first {588_890 - LENGTH} bytes are left out]\n")
    assert len(text) < LENGTH + 100


def test_a_worker_keeps_the_end_of_a_long_text(tmp_path: Path) -> None:
    code = f"""
from torchstone.bench.capture import Descriptors
import sys
path = {str(tmp_path / "said")!r}
open(path, "x").close()
result = open({str(tmp_path / "result")!r}, "w")
capture = Descriptors(path)
for number in range(2):
    with capture() as said:
        print("x" * 200_000)
        print("end of", number, chr(0x1F600), chr(0xDC80))
        result.write(said() + "|")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert not (tmp_path / "said").exists()
    for number, text in enumerate((tmp_path / "result").read_text().split("|")[:2]):
        assert text.startswith("[the first 134")
        assert text.endswith(f"x\nend of {number} \U0001f600 \\udc80\n")
        assert len(text) < LENGTH + 100


@pytest.mark.parametrize(("deed", "words"), [("segfault", "the last words"), ("hang", "nothing moves")])
def test_what_a_killed_worker_said_last_is_kept(deed: str, words: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "r.db") as store:
        options = Options(executor="process", cell_limit=2.0)
        assert len(run_study(one_arm_study(Bad(deed)), store, options).failures) == 1
    said = texts(tmp_path / "r.db")[1]
    assert said.startswith(words)
    assert f"in {deed}" in said  # the place in the code where it stood
    assert ("SIGSEGV" if deed == "segfault" else "longer than cell_limit = 2 s") in said.splitlines()[-1]


def test_a_debugger_works_in_this_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from torchstone import api\nfrom torchstone.bench import Arm, Experiment, Higher, Outcome, Study\n"
        "def mine(cell):\n    secret = 41\n    breakpoint()\n    return Outcome({'accuracy': secret})\n"
        "claim = Higher('accuracy', 'mine', 0.5, primary=True)\n"
        "study = Study('s', (Experiment('main', {'mine': Arm(mine)}, (claim,), replicates=(1, 1)),))\n"
        f"result = api.run(study, store={str(tmp_path / 'r.db')!r})\n"
        "print('value', result.rows['main'][0].value('accuracy', 'mine', 'default'))\n"
    )
    command = [sys.executable, str(script)]
    going_on = subprocess.run(command, input="p secret + 1\nsecret = 7\nc\n", capture_output=True, text=True, cwd=ROOT)
    assert "(Pdb) 42\n" in going_on.stdout
    assert going_on.stdout.rstrip().endswith("value 7.0")
    (tmp_path / "r.db").unlink()
    leaving = subprocess.run(command, input="q\n", capture_output=True, text=True, cwd=ROOT, check=False)
    assert leaving.returncode == 1
    assert leaving.stderr.rstrip().endswith("BdbQuit")


def test_runs_that_say_nothing_leave_no_text(tmp_path: Path) -> None:
    with Store.open(tmp_path / "r.db") as store:
        result = run_study(two_arm_study(), store)
        assert {store.log_text(run.run_id) for run in result.runs} == {""}
