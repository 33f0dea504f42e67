"""Which methods are compared: names of a track's arms, and the user's own methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchstone._imports import import_object
from torchstone.bench.identity import canonical_json
from torchstone.bench.study import Arm
from torchstone.errors import did_you_mean

__all__ = ["ArmChoice", "choose_arms"]

ArmChoice = str | Sequence[str] | Mapping[str, Any]


def choose_arms(
    choice: ArmChoice | None, known: Mapping[str, Arm], trial: Callable[[Any], Any], positional: int
) -> tuple[dict[str, Arm], list[str]]:
    """Arms by name, in the order of ``choice``, and the names of those that are the user's own.

    Args:
        choice: names of ``known`` arms (all of them if ``None``), or a mapping name -> ``None`` for a known arm, a
            function or ``"module:function"`` for an own one. Among names an own method is written
            ``"module:function"`` or ``"name=module:function"``; a string holds names with commas between.
        known: the track's arms.
        trial: makes the ``run`` of an arm from an own method.
        positional: number of positional arguments that a method takes.

    Raises:
        UnknownNameError: for a name, module or function that does not exist.
        TypeError: if an own method cannot be called as a method is.
        StudyError: if an own method is a lambda or a local function, which has no identity.
        ValueError: if two arms have the same name.
    """
    arms: dict[str, Arm] = {}
    own: list[str] = []
    for name, method in _entries(choice, known):
        if name in arms:
            raise ValueError(f"two arms are called {name!r}")
        if method is not None:
            function = import_object(method, kind="method") if isinstance(method, str) else method
            arms[name] = _own_arm(name, function, trial, positional)
            own.append(name)
        elif name in known:
            arms[name] = known[name]
        else:
            raise did_you_mean("arm", name, [*known, "name=module:function"])
    return arms, own


def _entries(choice: ArmChoice | None, known: Mapping[str, Arm]) -> list[tuple[str, Any]]:
    if choice is None:
        return [(name, None) for name in known]
    if isinstance(choice, Mapping):
        return list(choice.items())
    entries: list[tuple[str, Any]] = []
    for item in choice.split(",") if isinstance(choice, str) else choice:
        if not isinstance(item, str):
            raise TypeError(f"arms must be names, or a mapping name -> function for own methods; got {item!r}")
        name, named, path = item.strip().partition("=")
        if not named and ":" in name:
            name, path = name.rpartition(":")[2], name
        entries.append((name, path or None))
    return entries


def _own_arm(name: str, method: Any, trial: Callable[[Any], Any], positional: int) -> Arm:
    """The arm of a user's own method; its attributes ``hyper`` and ``space`` say with what it is run."""
    if not callable(method):
        raise TypeError(f"arm {name!r} must be a function, but is of type {type(method).__name__}")
    canonical_json({name: method})  # a method without an identity is refused here, not after the first run
    qualname = getattr(method, "__qualname__", type(method).__qualname__)
    hyper, space = dict(getattr(method, "hyper", {})), dict(getattr(method, "space", {}))
    try:
        inspect.signature(method).bind(*range(positional), **{**hyper, **space})
    except TypeError as error:
        keywords = ", ".join({**hyper, **space}) or "none"
        raise TypeError(
            f"arm {name!r} must take {positional} arguments and the keywords of its hyper and space ({keywords}), but "
            f"{qualname} does not: {error}"
        ) from None
    return Arm(trial(method), hyper=hyper, space=space, role="method", about=f"own method {qualname}")
