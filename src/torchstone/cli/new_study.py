"""``new-study``: a small study that works, to start one's own from."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from torchstone import catalogue
from torchstone.cli.options import Json, print_json

__all__ = ["new_study"]

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 40


def new_study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study: words joined by hyphens.")],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write; made if need be.")] = Path(),
    as_json: Json = False,
) -> None:
    """Write a study of your own to start from, with its tests.

    Two files are written, NAME.py and test_NAME.py, with underscores for hyphens. They work as they are: two ways to
    train and one that does not learn are compared on real digits. No file is ever overwritten.

    Example:
      torchstone new-study my-idea
    """
    module = _module_name(name)
    texts = {
        folder / f"{module}.py": _template("study.py", name, module),
        folder / f"test_{module}.py": _template("test_study.py", name, module),
    }
    for path in texts:
        if path.exists() or path.is_symlink():
            raise FileExistsError(f"{path} is there already: choose another name or --dir")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    study, test = texts
    if as_json:
        print_json({"name": name, "study": str(study.absolute()), "test": str(test.absolute())})
        return
    typer.echo(f"written: {study} and {test}")
    typer.echo(f"  pytest {test}\n  torchstone run {study}")


def _template(file: str, name: str, module: str) -> str:
    text = (files("torchstone") / "_templates" / file).read_text(encoding="utf-8")
    return text.replace("my-study", name).replace("my_study", module)


def _module_name(name: str) -> str:
    """The module for a study, or ``ValueError`` if that name would be in somebody's way."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        proposal = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:LONGEST].strip("-")
        hint = f": write {proposal!r}" if NAME.fullmatch(proposal) else ""
        raise ValueError(
            f"{name!r} is no name for a study{hint} (lower-case words and digits, joined by hyphens, at most {LONGEST} "
            "letters)"
        )
    if any(paper.slug == name for paper in catalogue.papers()):
        raise ValueError(f"{name!r} is the name of a paper: choose another one")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise ValueError(f"a module {module!r} exists already: choose another name")
    return module
