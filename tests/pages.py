"""Executes the code of a Markdown page, block after block, as its reader would in one empty folder.

A block under ``<!-- file: NAME -->``, or with ``:caption: NAME``, is written to that file. Other Python blocks are run,
those of one page in one namespace; ``pycon`` blocks are doctests; each line of a ``bash`` block is a command, and a
``text`` block after it is what the last one prints. ``<!-- skip: why -->`` leaves a block out.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Block", "Reader", "Shown", "blocks", "in_shell", "quick"]

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>file|skip): (?P<note>.+?) -->\n)?"
    r"^```(?:(?P<kind>\w+)|\{code-block\} *(?P<directive>\w+))\n"
    r"(?::caption: (?P<caption>\S+)\n\n?)?(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of code: what it is written in, its text, and where that stands in the page."""

    kind: str
    code: str
    file: str
    skip: str
    start: int
    end: int


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(page):
        note = {match["mark"]: match["note"]}
        file = match["caption"] or note.get("file") or ""
        kind = match["kind"] or match["directive"]
        found.append(Block(kind, match["code"], file, note.get("skip") or "", *match.span("code")))
    return found


def quick(command: str) -> str:
    """A command with a budget, which is for people, at the smallest scale: what is tested is that it works."""
    return re.sub(r"--budget \S+", "--replicates 2 --tries 1 --epochs 2", command)


def in_shell(command: str, folder: Path) -> str:
    """Run a command in a shell of its own and return what it printed."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Shown:
    """A command, what the page says that it prints, and what it printed."""

    command: str
    block: Block
    printed: str


class Reader:
    """Works through a page in ``folder``; commands of torchstone run in this process, which spares its start."""

    def __init__(self, folder: Path, adapt: Callable[[str], str] = lambda command: command) -> None:
        self.folder, self.adapt = folder, adapt
        self.names: dict[str, Any] = {"__name__": "__page__"}
        self.commands: list[str] = []

    def read(self, page: str) -> list[Shown]:
        """Execute the page; return the commands whose output it shows."""
        shown: list[Shown] = []
        last: tuple[str, str] | None = None
        with contextlib.chdir(self.folder), _modules_of(self.folder):
            for block in blocks(page):
                if block.kind == "text" and not block.file and last is not None:
                    shown.append(Shown(last[0], block, last[1]))
                last = self._execute(block)
        return shown

    def _execute(self, block: Block) -> tuple[str, str] | None:
        if block.skip:
            return None
        if block.file:
            (self.folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.file).write_text(block.code, encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.code, "<page>", "exec"), self.names)
        elif block.kind == "pycon":
            _doctest(block.code, self.names)
        elif block.kind == "bash":
            done = [
                (line, self._command(line)) for line in block.code.replace("\\\n", " ").splitlines() if line.strip()
            ]
            self.commands += [line for line, _ in done]
            return done[-1]
        return None

    def _command(self, line: str) -> str:
        command = self.adapt(" ".join(line.split()))
        words = shlex.split(command)
        if not set(command) & set("|<>&$;") and words[0] == "torchstone":
            return _torchstone(words[1:])
        if words[0] == "python" and len(words) == 2 and "__main__" not in (self.folder / words[1]).read_text():
            with contextlib.redirect_stdout(io.StringIO()) as output:
                runpy.run_path(words[1], run_name="__main__")
            return output.getvalue()
        return in_shell(command, self.folder)


def _torchstone(words: list[str]) -> str:
    from typer.testing import CliRunner

    from torchstone.cli.app import app

    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"torchstone {shlex.join(words)}\n{done.output}\n{done.exception!r}"
    return done.stdout


def _doctest(code: str, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(code, names, "page", None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with contextlib.redirect_stdout(io.StringIO()) as report:
        runner.run(test, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, report.getvalue()


@contextlib.contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """Modules of the folder can be imported inside, and are forgotten afterwards."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
