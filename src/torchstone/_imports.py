"""Imports that wait: names of a package on first use, objects of the user's own modules by ``module:object``."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torchstone.errors import UnknownNameError, did_you_mean

__all__ = ["import_object", "lazy_front", "working_directory_on_path"]


def lazy_front(
    package: str, names: Sequence[str], modules: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported on first use.

    Args:
        package: its name.
        names: its ``__all__``.
        modules: of the package, searched in this order.
    """

    def get(name: str) -> Any:
        if name in names:
            for module in modules:
                home = importlib.import_module(f"{package}.{module}")
                if name in home.__all__:
                    return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*vars(sys.modules[package]), *names})


@contextlib.contextmanager
def working_directory_on_path() -> Iterator[None]:
    """Let modules of the working directory be imported, as ``python -m`` does."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def import_object(spec: str, *, kind: str) -> Any:
    """Return the object that ``module:object`` names; ``object`` may be dotted.

    Raises:
        ValueError: if ``spec`` has another form.
        UnknownNameError: if there is no such module, or it holds no such object. An error inside the module passes
            through unchanged.

    Example:
        >>> import_object("math:pi", kind="data")
        3.141592653589793
    """
    path, _, name = spec.partition(":")
    if not path or not name or path.startswith("."):
        raise ValueError(f"{kind} must be given as 'module:object', but is {spec!r}")
    try:
        with working_directory_on_path():
            found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # Missing is the module itself (or a package it lies in), not something that it imports.
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise UnknownNameError(f"{kind} {spec!r}: there is no module {path!r} (looked in {os.getcwd()} too)") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise did_you_mean(f"{kind} in {path}", name, [n for n in dir(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found
