"""The identity of an arm's code: change what a run computes and it is run again, change its prose and it is not.

A fingerprint hashes syntax trees, not text, of the module that defines the arm's function and of all modules that it
imports, transitively, as far as they belong to the methods: ``torchstone``'s fields and floors, and the user's own
package or folder. Imports are found in the source, those inside functions too; nothing is imported to find them.
Names that a package merely re-exports are looked through, so a new method in a package does not touch its neighbours.

Not in it, because none of it changes what a run computes:

* comments, docstrings, formatting, and what stands under ``if TYPE_CHECKING:``;
* claims, the keywords ``claims=``, ``premises=`` and ``about=``, and the arguments of ``Arm``, ``Experiment``,
  ``Study`` and ``Track`` but ``shared=`` (hyper-parameters, sizes and data are part of a run's identity on their own);
* the bench itself but for its seeds, the command line, argument checks, and other libraries (the environment records
  their versions).

A function without a source file (typed at a prompt or in a notebook) is known by its byte code, with that of the
functions and the plain values that it uses from there. Byte code differs between Python versions.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torchstone.bench.identity import canonical_json, digest, module_name, qualified_name
from torchstone.bench.syntax import Import, Source, left_out, read_source
from torchstone.errors import StudyError

__all__ = ["fingerprint", "sources"]

TORCHSTONE = Path(__file__).resolve().parents[1]
SEEDS = TORCHSTONE / "bench" / "seeds.py"  # the one part of the bench that every run's chance depends on
STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
INSTALLED = frozenset({"site-packages", "dist-packages"})


# File and home of a module -> the module and all that it imports.
Closures = dict[tuple[Path, "_Home"], Mapping[str, Source]]


def fingerprint(run: Callable[..., Any], *, known: Closures | None = None) -> str:
    """The identity of an arm's code, in hexadecimal: see the module's description.

    Of a ``functools.partial`` and of an instance of a dataclass it holds the function or class together with the
    arguments or fields (those with ``compare=False`` left out).

    Args:
        run: a function, a partial, or an instance of a dataclass with ``__call__``.
        known: what was read for other arms, and now is for this one; given to the fingerprints of one moment, it saves
            them reading the same modules again.

    Raises:
        StudyError: for a lambda, a local function, or an argument or field without a stable identity.

    Example:
        >>> from torchstone.bench import Seeds
        >>> fingerprint(Seeds) == fingerprint(Seeds), fingerprint(Seeds) == fingerprint(functools.partial(Seeds, 1))
        (True, False)
    """
    return digest({"run": run, "sources": sources(run, known=known), "seeds": read_source(SEEDS).digest})


def sources(run: Callable[..., Any], *, known: Closures | None = None) -> dict[str, str]:
    """The arm's own code: name of a module (or of a function without a file) -> hash, to see what changed."""
    found: dict[str, str] = {}
    canonical_json(run)  # refuses what has no identity before anything is read
    known = {} if known is None else known
    for number, part in enumerate(_named_parts(run)):
        found |= _sources_of(part, known, own=number == 0)
    return found


def _named_parts(value: Any) -> Iterator[Any]:
    """The functions and classes in an arm's callable: the callable itself first, then those in its arguments."""
    if isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            yield from _named_parts(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for field in fields(value):
            if field.compare:
                yield from _named_parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _named_parts(tuple(value.values()))
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from _named_parts(item)
    elif hasattr(value, "__qualname__"):
        yield value


def _sources_of(part: Any, known: Closures, *, own: bool) -> dict[str, str]:
    """The code behind a function or class; libraries have a version, unless the arm's ``own`` function is of one."""
    file = _source_file(part)
    if file is None:
        return _loose_code(part, known)
    is_library = file.is_relative_to(STANDARD) or not INSTALLED.isdisjoint(file.parts)
    if is_library and not own and not file.is_relative_to(TORCHSTONE):
        return {}
    name = part.__name__ if isinstance(part, types.ModuleType) else part.__module__
    place = (file, _home(module_name(name), file))
    if place not in known:
        known[place] = _closure(*place)
    return {name: source.digest for name, source in known[place].items()}


def _source_file(part: Any) -> Path | None:
    """The Python file that defines a function, class or module."""
    inner: Any = inspect.unwrap(part)  # what a decorator stands before; its own code may be from anywhere
    code = getattr(inner, "__code__", None)
    module = part if isinstance(part, types.ModuleType) else sys.modules.get(part.__module__ or "")
    file = Path(getattr(module, "__file__", None) or (code.co_filename if code else "")).resolve()
    return file if file.is_file() and file.suffix not in (".so", ".pyd", ".pyc") else None


# ---------------------------------------------------------------- modules with a file


@dataclass(frozen=True)
class _Home:
    """A folder from which modules are imported, and the one package in it that counts (``""``: all it holds)."""

    folder: Path
    package: str = ""

    def find(self, module: str) -> Path | None:
        """File of a module of this home."""
        if not module or left_out(module) or self.package not in ("", module.partition(".")[0]):
            return None
        path = self.folder.joinpath(*module.split("."))
        candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
        return next((file for file in candidates if file.is_file()), None)

    def name_of(self, file: Path) -> str:
        """Name of the module in a file of this home."""
        parts = file.relative_to(self.folder).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


HERE = _Home(TORCHSTONE.parent, "torchstone")


def _home(name: str, file: Path) -> _Home:
    """Where the imports of a module are looked for: in its own package, or beside a script."""
    if file.is_relative_to(TORCHSTONE):
        return HERE
    parts = name.split(".")
    is_package = file.name == "__init__.py"
    path = file.parent if is_package else file.with_suffix("")
    if [*path.parts[-len(parts) :]] == parts and (len(parts) > 1 or is_package):
        return _Home(path.parents[len(parts) - 1], parts[0])
    return _Home(file.parent, file.stem if file.parent.name in INSTALLED else "")


def _closure(start: Path, home: _Home) -> dict[str, Source]:
    """The module in file ``start`` and all that it imports, transitively: name -> source."""
    found: dict[str, Source] = {}
    pending = {home.name_of(start): start}
    while pending:
        name, file = pending.popitem()
        found[name] = source = read_source(file)
        for target in _targets(name, source, home):
            path = _find(target, home)
            if path is not None and target not in found:
                pending[target] = path
    return found


def _find(module: str, home: _Home) -> Path | None:
    return home.find(module) or HERE.find(module)


def _targets(name: str, source: Source, home: _Home) -> Iterator[str]:
    """The modules that module ``name`` imports, or imports something from."""
    for statement in source.imports:
        base = _absolute(statement, name, source)
        if not statement.names:
            yield base
        for wanted in statement.names:
            yield _definer(base, wanted, home)


def _absolute(statement: Import, name: str, source: Source) -> str:
    """The module named by an import statement of module ``name``."""
    if not statement.level:
        return statement.module
    parts = name.split(".")
    up = statement.level - source.is_package
    return ".".join(filter(None, (*parts[: len(parts) - up], statement.module)))


def _definer(module: str, wanted: str, home: _Home) -> str:
    """Where ``from module import wanted`` finds it: behind a re-export, in a submodule, or in the module itself."""
    seen = set()
    while (module, wanted) not in seen:
        seen.add((module, wanted))
        file = _find(module, home)
        source = read_source(file) if file else None
        if source is not None and source.is_package and wanted in source.exports:
            statement, wanted = source.exports[wanted]
            module = _absolute(statement, module, source)
    inside = f"{module}.{wanted}".lstrip(".")
    return inside if _find(inside, home) else module


# ---------------------------------------------------------------- code without a file


def _loose_code(part: Any, known: Closures) -> dict[str, str]:
    """Byte code of a function or class without a file, and of what it takes from where it was typed in."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [(qualified_name(part), part)]
    while pending:
        name, item = pending.pop()
        if not (isinstance(item, types.ModuleType) or hasattr(item, "__qualname__")):
            with contextlib.suppress(StudyError):  # what has no identity (a table of data, say) cannot count
                found[name] = canonical_json(item)
        elif id(item) not in seen:
            seen.add(id(item))
            if _source_file(item) is not None:
                found |= _sources_of(item, known, own=False)
            elif isinstance(item, type):
                members = {key: getattr(value, "fget", value) for key, value in vars(item).items()}
                pending += [
                    (f"{name}.{key}", value) for key, value in members.items() if _is_code(value) or key[:2] != "__"
                ]
                pending += [(f"{name}({base.__name__})", base) for base in item.__bases__]
            elif _is_code(item):
                function = getattr(item, "__func__", item)  # of a class or static method
                found[name] = blake2b(
                    _code_text(function.__code__, function.__doc__).encode(), digest_size=16
                ).hexdigest()
                pending += [(f"{name}.{key}", value) for key, value in sorted(_used(function).items())]
    return found


def _is_code(value: Any) -> bool:
    return isinstance(value, types.FunctionType | classmethod | staticmethod)


def _used(function: Any) -> dict[str, Any]:
    """What a function takes from outside: globals, defaults, the function that it decorates."""
    names = _global_names(function.__code__) & function.__globals__.keys()
    wrapped = getattr(function, "__wrapped__", None)
    defaults = {"()": (function.__defaults__, function.__kwdefaults__), "@": wrapped}
    return {name: function.__globals__[name] for name in names} | defaults


def _code_text(code: types.CodeType, doc: str | None = None) -> str:
    constants = [_constant_text(constant) for constant in code.co_consts if doc is None or constant != doc]
    return ascii((code.co_code, code.co_names, constants))


def _constant_text(constant: Any) -> str:
    if isinstance(constant, types.CodeType):
        return _code_text(constant)
    if isinstance(constant, frozenset):  # its order differs from process to process
        return ascii(sorted(map(_constant_text, constant)))
    return f"{type(constant).__name__}:{constant!a}"


def _global_names(code: types.CodeType) -> set[str]:
    nested = (_global_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*nested)
