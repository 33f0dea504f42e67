"""Source files as normalised syntax trees: what is left of a module when prose, claims and layout are taken away."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torchstone.errors import StudyError

__all__ = ["Import", "Source", "left_out", "read_source"]

CLAIMS = frozenset({"Higher", "Lower", "Within", "Ratio", "ClosesGap", "Trend"})
DECLARATIONS = frozenset({"Arm", "Experiment", "Study", "Track"})
PROSE = frozenset({"claims", "premises", "about"})
UNIMPORTANT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})

LEFT_OUT = frozenset({"bench", "cli", "api", "errors", "catalogue", "evidence", "testing", "_checks"})


@dataclass(frozen=True)
class Import:
    """``import module`` (no names) or ``from module import names``, with the level of a relative import."""

    module: str
    names: tuple[str, ...] = ()
    level: int = 0


@dataclass(frozen=True)
class Source:
    """One source file: hash of its normalised tree, its imports, and what it imports by name at the top level."""

    path: Path
    digest: str
    imports: tuple[Import, ...]
    exports: dict[str, tuple[Import, str]]  # local name -> the statement, and the name there

    @property
    def is_package(self) -> bool:
        """Whether it is the ``__init__.py`` of a package."""
        return self.path.name == "__init__.py"


def left_out(module: str) -> bool:
    """Whether a module of torchstone changes nothing that a run computes."""
    package, _, rest = module.partition(".")
    return package == "torchstone" and rest.partition(".")[0] in LEFT_OUT


def read_source(path: Path) -> Source:
    """Read and normalise a file; read again only if it has changed.

    Raises:
        StudyError: if it is not Python.
    """
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _read(path: Path, mtime_ns: int, size: int) -> Source:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise StudyError(f"{path} cannot be read as Python, so the code of an arm has no identity: {error}") from None
    writer = _Writer(tree)
    digest = blake2b(writer.text(tree).encode(), digest_size=16).hexdigest()
    exports = {
        alias.asname or alias.name: (Import(node.module or "", (alias.name,), node.level), alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name != "*"
    }
    return Source(path, digest, tuple(dict.fromkeys(writer.imports)), exports)


class _Writer:
    """Writes a tree as text that is the same for all Python versions, and notes the imports it passes.

    ``ast.dump`` will not do: versions differ in the fields they have and in whether they show empty ones.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.imports: list[Import] = []
        self.words = dict(_bench_words(tree))

    def text(self, node: Any) -> str:
        if isinstance(node, ast.Constant):
            return f"{type(node.value).__name__}:{node.value!a}"  # ascii: printable characters differ by version
        if isinstance(node, list):
            return f"[{','.join(self.text(item) for item in self._kept(node))}]"
        if not isinstance(node, ast.AST):
            return ascii(node)
        if isinstance(node, ast.Import):
            self.imports += [Import(alias.name) for alias in _aliases(node)]
        elif isinstance(node, ast.ImportFrom):
            self.imports.append(Import(node.module or "", tuple(a.name for a in _aliases(node)), node.level))
        parts = []
        for name, value in self._fields(node):
            if value is None or value == [] or name in UNIMPORTANT or self._is_claim(value):
                continue
            written = self.text(value)
            if written != "[]":
                parts.append(f"{name}={written}")
        return f"{type(node).__name__}({','.join(parts)})"

    def _fields(self, node: ast.AST) -> Iterator[tuple[str, Any]]:
        if isinstance(node, ast.Call) and self._word(node.func) in DECLARATIONS:
            yield "func", node.func
            calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
            yield "shared", [k.value for inner in calls for k in inner.keywords if k.arg == "shared"]
        elif isinstance(node, ast.Call):
            yield "func", node.func
            yield "args", node.args
            yield "keywords", [keyword for keyword in node.keywords if keyword.arg not in PROSE]
        elif isinstance(node, ast.JoinedStr):
            yield "values", _merged(node.values)
        elif isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
            yield "value", node.value
            yield "conversion", node.conversion
            yield "format_spec", _merged(node.format_spec.values)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield "names", _aliases(node)
            yield "module", getattr(node, "module", None)
            yield "level", getattr(node, "level", 0)
        else:
            yield from ast.iter_fields(node)

    def _kept(self, nodes: list[Any]) -> Iterator[Any]:
        """The items of a list without docstrings and other bare constants, type-checking branches, and claims."""
        for node in nodes:
            if isinstance(node, ast.If) and _is_type_checking(node.test):
                yield from self._kept(node.orelse)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                if _aliases(node):
                    yield node
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                if not self._is_claim(node.value):
                    yield node
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) and not self._is_claim(node):
                yield node

    def _is_claim(self, node: Any) -> bool:
        """Whether an expression is a claim, or claims and nothing else."""
        if isinstance(node, ast.Call):
            if self._word(node.func) in CLAIMS:
                return True
            wraps = isinstance(node.func, ast.Name) and node.func.id in ("tuple", "list")
            return wraps and bool(node.args) and all(map(self._is_claim, node.args))
        if isinstance(node, ast.Tuple | ast.List):
            return bool(node.elts) and all(map(self._is_claim, node.elts))
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            return self._is_claim(node.elt)
        if isinstance(node, ast.Starred):
            return self._is_claim(node.value)
        return isinstance(node, ast.BinOp) and self._is_claim(node.left) and self._is_claim(node.right)

    def _word(self, function: ast.expr) -> str:
        """The bench's own name of a called function; the empty string if it is not the bench's."""
        if isinstance(function, ast.Name):
            return self.words.get(function.id, "")
        if not isinstance(function, ast.Attribute):
            return ""
        root = function.value
        while isinstance(root, ast.Attribute):
            root = root.value
        return function.attr if isinstance(root, ast.Name) and root.id in self.words else ""


def _bench_words(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name -> the bench's name, for all that a module imports from the bench."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("torchstone.bench."):
            for alias in node.names:
                if alias.name == "*":
                    yield from ((name, name) for name in CLAIMS | DECLARATIONS)
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module == "torchstone":
            yield from ((alias.asname or alias.name, "bench") for alias in node.names if alias.name == "bench")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if f"{alias.name}.".startswith("torchstone."):
                    yield alias.asname or "torchstone", "torchstone"


def _aliases(node: ast.Import | ast.ImportFrom) -> list[ast.alias]:
    """What an import statement imports, without what is left out."""
    prefix = "" if isinstance(node, ast.Import) or node.level else f"{node.module}."
    return [alias for alias in node.names if not left_out(prefix + alias.name)]


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """Parts of an f-string, neighbouring literals joined and empty ones dropped: versions split them differently."""
    merged: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and not value.value:
            continue
        last = merged[-1] if merged else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            merged[-1] = ast.Constant(f"{last.value}{value.value}")
        else:
            merged.append(value)
    return merged
