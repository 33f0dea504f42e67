"""A restricted unpickler: reads the pickles in which this field publishes its data, and runs no code doing so.

A pickle is a program: it may call whatever it can name. Here it can name nothing but the few constructors that
arrays, sparse matrices and containers are made of, and every other name is refused before anything is called.

Three holes of the usual "allow numpy and scipy" recipe are closed as well. A pickle may overwrite the state of a
``numpy.dtype``, and so declare raw bytes to be object pointers: here only its byte order. It may set attributes of the
functions and classes it can name: here state may be set on arrays and matrices only. And it may give a sparse matrix
indices outside its shape, which compiled code trusts: here every matrix is checked in full.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from torchstone.errors import CorruptDataError

__all__ = ["read_torch_zip", "safe_loads"]


def safe_loads(content: bytes, *, source: str, encoding: str = "latin1") -> Any:
    r"""Unpickle ``content``, which may hold numpy arrays, CSR and CSC matrices of scipy, and plain Python values only.

    ``source`` names the file in messages; ``encoding`` is for strings written by Python 2.

    Cost:
        Containers are read by a Python loop (about 1 us a value), the contents of arrays at once.

    Raises:
        CorruptDataError: if the pickle names anything else (the message says what), or is damaged.

    Example:
        >>> safe_loads(pickle.dumps({"labels": [3, 1]}), source="a file")
        {'labels': [3, 1]}
        >>> safe_loads(b"cos\nsystem\n(S'true'\ntR.", source="a file")
        Traceback (most recent call last):
        ...
        torchstone.errors.CorruptDataError: a file: it refers to 'os.system', which data may not; it was not executed
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding=encoding, source=source).load()
    except CorruptDataError:
        raise
    # Damaged bytes can make any opcode fail in its own way.
    except Exception as error:
        raise CorruptDataError(f"{source}: not a readable pickle ({type(error).__name__}: {error})") from error


def read_torch_zip(path: Path) -> Any:
    """Read a file that ``torch.save`` wrote from numpy arrays and plain Python values, without trusting it.

    Raises:
        CorruptDataError: if the file is damaged, holds tensors, or names anything but arrays and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            content = archive.read(name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, EOFError) as error:
        raise CorruptDataError(f"{path}: not a file written by torch.save ({error})") from error
    return safe_loads(content, source=str(path))


# The C unpickler has no hook for setting state; the Python one, which the standard library keeps beside it, has. Its
# stub is incomplete, hence Any.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    def __init__(self, file: io.BytesIO, *, encoding: str, source: str) -> None:
        super().__init__(file, encoding=encoding)
        self.source = source
        self.matrices: list[Any] = []

    def load(self) -> Any:
        result = super().load()
        for matrix in self.matrices:
            type(matrix).check_format(matrix)
        return result

    def find_class(self, module: str, name: str) -> Any:
        try:
            return (_sparse() if module.startswith("scipy.sparse") else _constructors())[module, name]
        except KeyError:
            raise CorruptDataError(
                f"{self.source}: it refers to {f'{module}.{name}'!r}, which data may not; it was not executed"
            ) from None

    def load_build(self) -> None:
        state, target = self.stack[-1], self.stack[-2]
        if isinstance(target, np.dtype):
            own = target.__reduce__()[2]  # (version, byte order, everything else)
            harmless = isinstance(state, tuple) and state[2:] == own[2:]
        elif type(target).__module__.startswith("scipy.sparse"):
            harmless = isinstance(state, dict)
            self.matrices.append(target)
        else:
            harmless = isinstance(target, np.ndarray)
        if not harmless:
            raise CorruptDataError(f"{self.source}: it sets the state of {target!r}, which data may not")
        super().load_build()

    dispatch: ClassVar[dict[int, Any]] = {**_PythonUnpickler.dispatch, pickle.BUILD[0]: load_build}


def _latin1(text: str, encoding: str) -> bytes:
    """What ``_codecs.encode`` is called for in pickles of bytes under protocol 2."""
    if encoding != "latin1":
        raise ValueError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


@functools.cache
def _constructors() -> dict[tuple[str, str], Any]:
    plain = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)
    allowed: dict[tuple[str, str], Any] = {
        (module, kind.__name__): kind for kind in plain for module in ("builtins", "__builtin__")
    }
    allowed |= {("__builtin__", "xrange"): range, ("__builtin__", "unicode"): str, ("__builtin__", "long"): int}
    allowed["collections", "OrderedDict"] = collections.OrderedDict
    allowed["collections", "defaultdict"] = collections.defaultdict
    allowed["_codecs", "encode"] = _latin1
    allowed["numpy", "ndarray"] = np.ndarray
    allowed["numpy", "dtype"] = np.dtype
    # numpy's own (private) helpers, taken from what it puts into pickles, under the names of numpy 1 and 2.
    for package in ("numpy.core", "numpy._core"):
        allowed[f"{package}.multiarray", "_reconstruct"] = np.zeros(1).__reduce__()[0]
        allowed[f"{package}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
        allowed[f"{package}.numeric", "_frombuffer"] = np.zeros(1).__reduce_ex__(5)[0]
    return allowed


@functools.cache
def _sparse() -> dict[tuple[str, str], Any]:
    import scipy.sparse as sp

    return {
        (f"scipy.sparse.{module}", f"{form}_{kind}"): getattr(sp, f"{form}_{kind}")
        for form in ("csc", "csr")
        for kind in ("array", "matrix")
        for module in (form, f"_{form}")  # the older and the present place
    }
