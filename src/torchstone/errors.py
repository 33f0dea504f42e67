"""The errors of torchstone: each says in one sentence what is wrong, where, and what to do.

A bad argument raises Python's own ``ValueError`` or ``TypeError``; the classes here are for what has no
built-in name. All derive from :class:`TorchstoneError`, so a caller (the command line is one) can catch them together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CorruptDataError",
    "DataNotFoundError",
    "DivergedError",
    "MissingDependencyError",
    "SealedDataError",
    "StoreError",
    "StudyError",
    "TorchstoneError",
    "UnknownNameError",
    "did_you_mean",
    "require",
]


class TorchstoneError(Exception):
    """Base of all errors that torchstone defines."""


class DataNotFoundError(TorchstoneError, FileNotFoundError):
    """A data file is not there; the message says which, where it was looked for, and how to get it."""


class CorruptDataError(TorchstoneError, ValueError):
    """Data are there but cannot be used: a wrong checksum or format, forbidden content, NaN, one class, no samples."""


class MissingDependencyError(TorchstoneError, ImportError):
    """An optional package is missing; the message holds the exact install command."""


class DivergedError(TorchstoneError, ArithmeticError):
    """Training left the finite numbers; the bench counts such a run as lost, with this reason."""


class SealedDataError(TorchstoneError, RuntimeError):
    """Test data were asked for while an arm is being tuned."""


class StoreError(TorchstoneError, RuntimeError):
    """The result store cannot be used (corrupt, read-only, newer version, disk full)."""


class StudyError(TorchstoneError, ValueError):
    """A study, experiment, arm or claim contradicts itself."""


class UnknownNameError(TorchstoneError, LookupError):
    """A name (of an arm, a study, a data set, ...) is not among those that exist."""


def did_you_mean(kind: str, name: str, options: Iterable[str]) -> UnknownNameError:
    """Return (not raise) the error for an unknown ``name``, with the nearest of ``options`` as a hint.

    Example:
        >>> print(did_you_mean("arm", "spo", ["ce", "sop"]))
        unknown arm 'spo': did you mean 'sop'? (there are: ce, sop)
    """
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}(there are: {', '.join(known) or 'none'})")


def require(module: str, extra: str) -> MissingDependencyError:
    """Return the error for a missing optional package, with the command that installs it.

    Example:
        >>> print(require("sklearn", "bench"))
        this needs the package 'sklearn': pip install "torchstone[bench]"
    """
    return MissingDependencyError(f'this needs the package {module!r}: pip install "torchstone[{extra}]"')
