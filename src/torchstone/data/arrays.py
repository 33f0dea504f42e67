"""The user's own arrays: from numpy arrays, tensors, a dataset or an ``.npz`` file to :class:`TensorData`.

Conventions, the same for all of them: ``uint8`` inputs are pixels and are divided by 255, and images among them may
have their channels last; all other inputs are taken as they are. Labels are class numbers ``0 .. C-1`` without a gap,
or strings, which are numbered in sorted order.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError

__all__ = ["from_arrays", "from_dataset", "read_npz", "with_test"]

_CHANNELS = (1, 3, 4)


def from_arrays(x: Any, y: Any, *, name: str, class_names: Sequence[str] | None = None) -> TensorData:
    """Make a data set of inputs and labels (numpy arrays, tensors or nested lists) under the conventions above.

    Shapes:
        ``x`` (n, features) or more; ``y`` (n,). Of ``uint8``, grey images (n, height, width) become (n, 1, height,
        width), and (n, height, width, channels) becomes (n, channels, height, width).

    Raises:
        CorruptDataError: if lengths, types or values are not those of a labelled set (one sentence says which).

    Example:
        >>> data = from_arrays([[0.5], [1.5], [2.5]], ["cat", "dog", "cat"], name="pets")
        >>> data.class_names, data.y
        (('cat', 'dog'), tensor([0, 1, 0]))
    """
    labels, names = _labels(_numpy(y), name, class_names)
    return TensorData(_inputs(_numpy(x), name), labels, names, name).validate()


def from_dataset(dataset: Any, *, name: str) -> TensorData:
    """Stack a map-style dataset of pairs ``(x, y)`` in memory; its ``classes`` attribute, if any, names the classes.

    Raises:
        CorruptDataError: if an item is not a pair, the inputs differ in shape, or the values are not those of a
            labelled set.
    """
    pairs = [dataset[i] for i in range(len(dataset))]
    if not pairs:
        raise CorruptDataError(f"data {name!r}: the dataset is empty")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise CorruptDataError(f"data {name!r}: item {i} of the dataset is not a pair (x, y)")
    inputs = [_numpy(x) for x, _ in pairs]
    for i, x in enumerate(inputs):
        if x.shape != inputs[0].shape:
            raise CorruptDataError(f"data {name!r}: item 0 has shape {inputs[0].shape}, but item {i} has {x.shape}")
    return from_arrays(
        np.stack(inputs),
        np.array([_numpy(y) for _, y in pairs]),
        name=name,
        class_names=getattr(dataset, "classes", None),
    )


def read_npz(path: Path, *, test: Path | None = None) -> TensorData:
    """Read an ``.npz`` file with arrays ``x`` and ``y``, and optionally ``x_test``, ``y_test`` and ``class_names``.

    Every other array must have one entry per training sample and becomes a column. ``test`` is a second file whose
    ``x`` and ``y`` are the test part.

    Raises:
        DataNotFoundError: if there is no such file.
        CorruptDataError: if it is not an ``.npz`` file of plain arrays, or they are not those of a labelled set.
    """
    arrays = _read_arrays(path)
    names = arrays.pop("class_names").tolist() if "class_names" in arrays else None
    data = from_arrays(arrays.pop("x"), arrays.pop("y"), name=path.stem, class_names=names)
    inside = {"x_test", "y_test"} & arrays.keys()
    if len(inside) == 1 or (inside and test is not None):
        second = f", and {test} is given as test data too" if test is not None else ""
        raise CorruptDataError(f"{path}: it holds {' and '.join(sorted(inside))}{second}: give one test part, x and y")
    if test is not None:
        held = _read_arrays(test)
        data = with_test(data, held["x"], held["y"])
    elif inside:
        data = with_test(data, arrays.pop("x_test"), arrays.pop("y_test"))
    return replace(data, columns={key: _column(values, key, path, len(data)) for key, values in arrays.items()})


def with_test(data: TensorData, x: Any, y: Any) -> TensorData:
    """Return ``data`` with the test part ``x``, ``y``, whose labels are among the classes of ``data``.

    Raises:
        CorruptDataError: if a label is not, or the inputs differ in shape from those of ``data``.
    """
    name = f"{data.name} test"
    labels, _ = _labels(_numpy(y), name, data.class_names)
    return replace(data, test=TensorData(_inputs(_numpy(x), name), labels, data.class_names, name)).validate()


def _column(values: np.ndarray, key: str, path: Path, n: int) -> Tensor:
    if values.shape[:1] != (n,) or values.dtype.kind not in "biuf":
        known = "x, y, x_test, y_test, class_names"
        raise CorruptDataError(f"{path}: array {key!r} is none of {known}, nor a column of {n} numbers")
    return torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "iu" else values)


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _inputs(x: np.ndarray, name: str) -> Tensor:
    if x.dtype.kind not in "biuf":
        raise CorruptDataError(f"data {name!r}: x must hold numbers, but has dtype {x.dtype}")
    if x.ndim < 2:
        raise CorruptDataError(f"data {name!r}: x must have shape (n, features) or more, but has {x.shape}")
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such
            return torch.from_numpy(x.astype(np.float32))
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).div_(255)


def _labels(y: np.ndarray, name: str, class_names: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    if y.dtype.kind in "OT":  # strings of pandas, or of numpy's variable width
        y = np.array(y.tolist())
    if y.ndim != 1 or y.dtype.kind not in "biuUS":
        has = f"has dtype {y.dtype} and shape {y.shape}"
        raise CorruptDataError(f"data {name!r}: y must be class numbers or strings of shape (n,), but {has}")
    names = None if class_names is None else tuple(str(c) for c in class_names)
    if y.dtype.kind in "US":
        values = y.astype(str).tolist()
        names = tuple(sorted(set(values))) if names is None else names
        return _number(values, names, name), names
    if names is not None:
        return torch.from_numpy(y.astype(np.int64)), names
    present = np.unique(y).tolist()
    if present != list(range(len(present))):
        gap = next(i for i, c in enumerate(present) if c != i)
        rule = f"data {name!r}: class numbers must be 0 .. C-1 without a gap, but {gap} is missing"
        raise CorruptDataError(f"{rule} from {_short(present)}; renumber them, or use strings")
    return torch.from_numpy(y.astype(np.int64)), tuple(str(c) for c in present)


def _number(values: list[str], names: tuple[str, ...], name: str) -> Tensor:
    number = {value: i for i, value in enumerate(names)}
    for i, value in enumerate(values):
        if value not in number:
            known = _short(names)
            raise CorruptDataError(f"data {name!r}: label {value!r} of sample {i} is none of the classes {known}")
    return torch.tensor([number[value] for value in values], dtype=torch.int64)


def _short(values: Sequence[Any]) -> str:
    shown = [str(v) for v in values]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:10], "...", shown[-1]])


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, TypeError) as error:
        raise CorruptDataError(f"{path}: not an .npz file of plain arrays ({error})") from error
    if "x" not in arrays or "y" not in arrays:
        raise CorruptDataError(f"{path}: it must hold arrays x and y, but holds {_short(sorted(arrays)) or 'nothing'}")
    return arrays
