"""Directive ``public-api``: every public name of a package, and a check that none is left out.

A name is public if its module lists it in ``__all__`` and no part of the module's path begins with an underscore. An
object that a package takes over from one of its modules is described once, under the shortest path.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from functools import cache
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = "torchstone"
ELSEWHERE = ("torchstone.cli",)  # has a reference of its own: what is typed, not what is imported
LONG = 100  # characters of a value that are still worth showing

log = logging.getLogger(__name__)


@cache
def modules() -> dict[str, ModuleType]:
    """All public modules by name, packages before what is in them."""
    root = importlib.import_module(ROOT)
    names = [ROOT, *(found.name for found in pkgutil.walk_packages(root.__path__, f"{ROOT}."))]
    public = (n for n in names if "._" not in n and not any(f"{n}.".startswith(f"{e}.") for e in ELSEWHERE))
    return {name: importlib.import_module(name) for name in sorted(public)}


@cache
def homes() -> dict[str, str]:
    """Every public path -> the path under which its object is described."""
    paths: dict[tuple[str, int], list[str]] = {}
    for name, module in modules().items():
        for public in getattr(module, "__all__", ()):
            paths.setdefault((public, id(getattr(module, public))), []).append(f"{name}.{public}")
    return {path: min(same, key=_depth) for same in paths.values() for path in same}


def _depth(path: str) -> tuple[int, bool, str]:
    module, _, name = path.rpartition(".")
    origin = getattr(getattr(modules()[module], name), "__module__", module)
    return path.count("."), module != origin, path


def described_by(package: str) -> list[str]:
    """The modules on the page of a package: itself and those in it that are no packages."""
    inside = (n for n, m in modules().items() if n.rpartition(".")[0] == package and not hasattr(m, "__path__"))
    return [package, *inside]


def reference(package: str) -> str:
    """The page of a package as reStructuredText."""
    parts: list[str] = []
    for name in described_by(package):
        module = modules()[name]
        public = sorted(getattr(module, "__all__", ()), key=str.lower)
        own = [entry for entry in public if homes()[f"{name}.{entry}"] == f"{name}.{entry}"]
        moved = [homes()[f"{name}.{entry}"] for entry in public if f"{name}.{entry}" not in homes().values()]
        if not module.__doc__ or (name != package and not public):
            continue
        if name != package:
            parts += ["", name, "-" * len(name)]
        parts += ["", f".. automodule:: {name}", *(["    :no-index:"] if name in homes() else []), ""]
        if moved:
            parts += ["Public here too: " + ", ".join(f":py:obj:`{path}`" for path in moved) + ".", ""]
        for entry in own:
            parts += _entry(name, entry, getattr(module, entry))
    return "\n".join(parts)


def _entry(module: str, name: str, thing: Any) -> list[str]:
    path = f"{module}.{name}"
    if inspect.isclass(thing):
        kind = "autoexception" if issubclass(thing, BaseException) else "autoclass"
        return ["", f".. {kind}:: {path}", "    :members:", ""]
    if inspect.isroutine(thing):
        return ["", f".. autofunction:: {path}", ""]
    hidden = ["    :no-value:"] if len(repr(thing)) > LONG else []
    return ["", f".. autodata:: {path}", *hidden, ""]


class PublicApi(SphinxDirective):
    """All public names of a package."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The descriptions, parsed where the directive stands."""
        return self.parse_text_to_nodes(reference(self.arguments[0]), allow_section_headings=True)


def undescribed(described: set[str]) -> list[str]:
    """The public names that are not among those described."""
    return sorted(set(homes().values()) - described)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn, which ends the build, for every public name that no page describes."""
    for path in undescribed(set(env.domains.python_domain.objects)):
        log.warning("no page describes the public name %s", path, type="public-api")


def find(app: Sphinx, env: BuildEnvironment, node: pending_xref, inside: nodes.Node) -> nodes.Node | None:
    """Resolve a reference that names an object as its own module knows it."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    described = env.domains.python_domain.objects
    for path in (target, f"{node.get('py:module')}.{target}"):
        known = homes().get(path) or _by_origin().get(path)
        head, _, member = path.rpartition(".")
        if known is None and head in homes():
            known = f"{homes()[head]}.{member}"
        if known in described:
            break
    else:
        matches = [path for path in described if path.endswith(f".{target}")]
        if len(matches) != 1:
            return inside if _is_private(target) else None
        known = matches[0]
    entry = described[known]
    resolve = env.domains.python_domain.resolve_xref
    return resolve(env, node["refdoc"], app.builder, entry.objtype, known, _plain(node), inside)


def _is_private(target: str) -> bool:
    """Whether there is such an object that is not public: an annotation names it, and it stays plain text."""
    module, _, name = target.rpartition(".")
    return module.startswith(ROOT) and hasattr(sys.modules.get(module), name)


def _plain(node: pending_xref) -> pending_xref:
    """The reference without its context, which would lead back to where it was not found."""
    plain = node.copy()
    plain["py:module"] = plain["py:class"] = None
    return plain


@cache
def _by_origin() -> dict[str, str]:
    """Path of an object where it is defined, private modules too -> the path under which it is described."""
    found = {}
    for path in set(homes().values()):
        module, _, name = path.rpartition(".")
        thing = getattr(modules()[module], name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            found[f"{thing.__module__}.{thing.__qualname__}"] = path
    return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the check."""
    app.add_directive("public-api", PublicApi)
    app.connect("env-check-consistency", check)
    app.connect("missing-reference", find)
    return {"parallel_read_safe": True}
