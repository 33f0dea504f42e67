"""Every line of the newcomer's path in README.md is executed, in order, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)```", re.DOTALL)
# What cannot be run from inside the tests, and what stands in for it.
INSTALLING = {"make demo", 'pip install "torchstone[bench]"'}


def _run(command: str, folder: Path) -> str:
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    # The budgets are for people; what is tested is that the commands work, not how far they get.
    quick = re.sub(r"--budget \S+", "--budget 4s --tries 1 --epochs 2", command)
    done = subprocess.run(
        quick, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.study
def test_the_newcomers_path_works_line_by_line(tmp_path: Path) -> None:
    ran: list[str] = []
    for block in BLOCK.finditer(README):
        file, kind, code = block["file"], block["kind"], block["code"]
        if file:
            (tmp_path / file).write_text(code)
        elif kind == "python":
            (tmp_path / "snippet.py").write_text(code)
            _run("python snippet.py", tmp_path)
        elif kind == "bash":
            for command in filter(None, code.splitlines()):
                if command not in INSTALLING:
                    output = _run(command, tmp_path)
                    assert output or command.startswith("python"), f"{command} printed nothing"
                ran.append(command)
    assert set(ran) >= INSTALLING
    assert sum(command.startswith("torchstone compare") for command in ran) == 2


def test_an_own_method_takes_at_most_fifteen_lines() -> None:
    code = next(block["code"] for block in BLOCK.finditer(README) if block["file"] == "my_method.py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_what_the_readme_installs_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "bench" in project["optional-dependencies"]
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "generated.py", "--check"], check=False)
    assert done.returncode == 0, "run `make generated`"
