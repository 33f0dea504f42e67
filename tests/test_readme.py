"""Every line of the newcomer's path in README.md is executed, in order, in one empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, in_shell, quick

README = (ROOT / "README.md").read_text(encoding="utf-8")
# What cannot be run from inside the tests, and what stands in for it.
INSTALLING = {"make demo", 'pip install "torchstone[bench]"'}


@pytest.mark.study
def test_the_newcomers_path_works_line_by_line(tmp_path: Path) -> None:
    ran: list[str] = []
    for block in blocks(README):
        if block.file:
            (tmp_path / block.file).write_text(block.code)
        elif block.kind == "python":
            (tmp_path / "snippet.py").write_text(block.code)
            in_shell("python snippet.py", tmp_path)
        elif block.kind == "bash":
            for command in filter(None, block.code.splitlines()):
                if command not in INSTALLING:
                    output = in_shell(quick(command), tmp_path)
                    assert output or command.startswith("python"), f"{command} printed nothing"
                ran.append(command)
    assert set(ran) >= INSTALLING
    assert sum(command.startswith("torchstone compare") for command in ran) == 2


def test_an_own_method_takes_at_most_fifteen_lines() -> None:
    code = next(block.code for block in blocks(README) if block.file == "my_method.py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_what_the_readme_installs_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "bench" in project["optional-dependencies"]
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "generated.py", "--check"], check=False)
    assert done.returncode == 0, "run `make generated`"
