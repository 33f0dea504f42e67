"""Studies and tracks from outside: announced by installed packages, or named by file or module.

A package announces ``name = "package.module:STUDY"`` under the entry point group ``torchstone.studies`` (a track:
``package.module:TRACK`` under ``torchstone.tracks``). A file is imported from its own folder, under the name it has
there, and the folder stays on ``sys.path``: worker processes import what they run by name, and find it there too.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torchstone.errors import StudyError, TorchstoneError, UnknownNameError, did_you_mean

__all__ = ["STUDIES", "TRACKS", "Kind", "Plugin", "announced", "is_place", "load_place", "load_plugin"]


@dataclass(frozen=True)
class Kind:
    """What is looked for: its name in sentences, its class, its usual name in a module, and its entry point group."""

    word: str
    type_name: str
    attribute: str
    group: str

    def check(self, found: Any, where: str) -> Any:
        """Return ``found``, or raise ``StudyError`` if it is something else."""
        from torchstone.bench import study

        if not isinstance(found, getattr(study, self.type_name)):
            raise StudyError(f"{where} must be a torchstone.bench.{self.type_name}, but is a {type(found).__name__}")
        return found


STUDIES = Kind("study", "Study", "STUDY", "torchstone.studies")
TRACKS = Kind("track", "Track", "TRACK", "torchstone.tracks")


@dataclass(frozen=True)
class Plugin:
    """What an installed package announces; nothing of the package is imported to know this."""

    name: str
    value: str  # "package.module:STUDY"
    package: str  # name and version of the distribution
    problem: str = ""  # of a package whose announcements cannot be read; then it has no name


def announced(kind: Kind) -> tuple[Plugin, ...]:
    """What the installed packages announce, sorted by name; one broken package does not hide the others."""
    from importlib.metadata import distributions

    found: dict[str, list[Plugin]] = {}
    for distribution in distributions():
        text = distribution.read_text("entry_points.txt")
        if text and kind.group in text:
            metadata = distribution.metadata.json  # a missing entry is no error in it
            name, version = str(metadata.get("name", "?")), str(metadata.get("version", "?"))
            package = f"{name} {version}"
            try:
                points = distribution.entry_points.select(group=kind.group)
                plugins = [Plugin(point.name, point.value, package) for point in points]
            except Exception as error:  # whatever the parser trips over
                plugins = [Plugin("", "", package, f"entry_points.txt cannot be read: {error}")]
            found.setdefault(name, plugins)  # the first on the path is the one that is imported
    return tuple(sorted(itertools.chain(*found.values()), key=lambda plugin: (plugin.name, plugin.value)))


def load_plugin(kind: Kind, name: str) -> Any:
    """Import what is announced under ``name``.

    Raises:
        UnknownNameError: if nothing is, or the module or object does not exist.
        StudyError: if it cannot be imported, is something else, calls itself differently, or is announced twice.
    """
    plugins = [plugin for plugin in announced(kind) if plugin.name == name]
    if not plugins:
        raise did_you_mean(kind.word, name, {plugin.name for plugin in announced(kind)})
    if len(plugins) > 1:
        packages = " and by ".join(plugin.package for plugin in plugins)
        raise StudyError(f"{kind.word} {name!r} is announced by {packages}: remove one of them")
    module, _, attribute = plugins[0].value.partition("[")[0].strip().partition(":")
    where = f"{kind.word} {name!r} of {plugins[0].package}"
    found = _object(kind, _import_named(module, where), attribute, where, module)
    if found.name != name:
        raise StudyError(f"{where} calls itself {found.name!r}: it must be announced under its own name")
    return found


def is_place(text: str | Path) -> bool:
    """Whether a text names a file or an object of a module, rather than something known by its own name.

    Example:
        >>> [is_place(text) for text in ("my_study.py", "my_study.py:OTHER", "package.module:STUDY", "sop")]
        [True, True, True, False]
    """
    return isinstance(text, Path) or ":" in text or _is_file_name(text)


def _is_file_name(text: str) -> bool:
    return text.endswith(".py") or "/" in text or os.sep in text


def load_place(kind: Kind, place: str | Path) -> Any:
    """Import from ``file.py``, ``file.py:OBJECT`` or ``package.module:OBJECT``; a file that has changed is read anew.

    Raises:
        UnknownNameError: if there is no such file, module or object.
        StudyError: if it cannot be imported, with the line, or is something else.
    """
    path, colon, attribute = str(place).rpartition(":")
    if isinstance(place, Path) or not colon or _is_file_name(attribute):
        path, attribute = str(place), ""
    if isinstance(place, Path) or _is_file_name(path):
        return _object(kind, _import_file(Path(path).expanduser(), path), attribute, path, path)
    _allow_imports_from(Path.cwd())
    return _object(kind, _import_named(path, f"{kind.word} {str(place)!r}"), attribute, path, path)


def _object(kind: Kind, module: ModuleType, attribute: str, where: str, place: str) -> Any:
    """The study or track that a module calls ``attribute``; ``place`` is how the module is named."""
    name = attribute or kind.attribute
    if hasattr(module, name):
        return kind.check(getattr(module, name), f"{name} in {where}")
    others = []
    for other, value in vars(module).items():
        with contextlib.suppress(StudyError):
            kind.check(value, other)
            others.append(f"{place}:{other}")
    raise UnknownNameError(f"{where} defines no {name}" + (f": did you mean {' or '.join(others)}?" if others else ""))


# ---------------------------------------------------------------- modules

_texts: dict[str, bytes] = {}  # text of the file behind a module, when it was imported from there


def _import_named(name: str, where: str) -> ModuleType:
    file = None
    try:
        spec = importlib.util.find_spec(name) if name else None
        if spec is not None:
            file = spec.origin
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # Missing may be the module itself (or a package it lies in), or something that it imports.
        if not (isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")):
            raise _explained(error, where, file) from error
    raise UnknownNameError(f"{where}: there is no module {name!r} (looked in {Path.cwd()} too)")


def _import_file(path: Path, shown: str) -> ModuleType:
    """The module in a file, under the name that the file has in its package, or in its folder."""
    if path.is_dir():
        raise UnknownNameError(f"{shown} is a folder: name a Python file in it")
    if not path.is_file():
        raise UnknownNameError(f"there is no file {shown} (looked in {Path.cwd()})")
    path = Path(os.path.abspath(path))
    name, folder = _place_of(path)
    if path.suffix != ".py" or not all(part.isidentifier() for part in name.split(".")):
        raise UnknownNameError(f"{shown} is no module: it must be called NAME.py, NAME being letters, digits and _")
    _allow_imports_from(folder)
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    known, text = sys.modules.get(name), path.read_bytes()
    try:
        if known is not None and _is_from(known, path) and _texts.get(name, text) != text:
            module = importlib.reload(known)
        else:
            module = known or importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _explained(error, shown, str(path)) from error
    if not _is_from(module, path):
        other = getattr(module, "__file__", None) or "a module of Python itself"
        raise StudyError(f"{shown} cannot be imported: its name {name!r} is that of {other}; rename the file")
    _texts[name] = text
    return module


def _place_of(path: Path) -> tuple[str, Path]:
    """Dotted name of the module in a file, and the folder from which it is imported by that name."""
    parts, folder = ([] if path.name == "__init__.py" else [path.stem]), path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder


def _allow_imports_from(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _is_from(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and os.path.exists(file) and path.samefile(file)


def _explained(error: BaseException, where: str, file: str | None) -> StudyError:
    """One sentence for an error that was raised while a module was imported, with the line in its file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    what = str(error) if isinstance(error, TorchstoneError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        what = f"SyntaxError: {error.msg}"
        lines += [error.lineno] if error.filename == file else []
    elif isinstance(error, SystemExit):
        what = "it ends the process when it is imported: put that under `if __name__ == '__main__':`"
    return StudyError(f"{where}{f', line {lines[-1]}' if lines else ''}: {what}")
