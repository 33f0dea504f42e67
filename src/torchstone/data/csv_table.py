"""The user's own table: a CSV file of numbers with a header and a label column."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from torchstone.data.arrays import from_arrays, with_test
from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError, did_you_mean

__all__ = ["read_csv"]

_LARGEST = float(np.finfo(np.float32).max)


def read_csv(path: Path, *, label: str = "label", test: Path | None = None) -> TensorData:
    """Read a CSV file whose first line names the columns; all but ``label`` are numbers, the label may be any text.

    The classes are the distinct labels: in numerical order if all are whole numbers, else in alphabetical order. Rows
    are counted as a spreadsheet does, the header being row 1. ``test`` is a second file with the same columns.

    Shapes:
        ``x`` (rows, columns - 1).

    Raises:
        DataNotFoundError: if there is no such file.
        UnknownNameError: if no column is called ``label``.
        CorruptDataError: if the file is empty, or a cell is missing or not a finite number (its row and column are
            named), or there is only one class.
    """
    features, x, labels = _read(path, label, None)
    data = from_arrays(x, labels, name=path.stem, class_names=_class_names(labels))
    if test is None:
        return data
    _, x, labels = _read(test, label, features)
    return with_test(data, x, labels)


def _read(path: Path, label: str, features: list[str] | None) -> tuple[list[str], np.ndarray, list[str]]:
    """Return the feature names, the features (rows, features) and the labels; ``features`` fixes names and order."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if len(rows) < 2:
        raise CorruptDataError(f"{path}: it has a header but no rows" if rows else f"{path}: it is empty")
    header = [cell.strip() for cell in rows[0][1]]
    if len(set(header)) < len(header):
        raise CorruptDataError(f"{path}: two columns are called {next(c for c in header if header.count(c) > 1)!r}")
    for name in (label, *(features or ())):
        if name not in header:
            raise did_you_mean(f"column of {path}", name, header)
    features = features if features is not None else [name for name in header if name != label]
    if not features:
        raise CorruptDataError(f"{path}: it has no column but {label!r}")
    places, at = [header.index(name) for name in features], header.index(label)
    x, labels = np.empty((len(rows) - 1, len(features)), np.float32), []
    for i, (number, row) in enumerate(rows[1:]):
        if len(row) != len(header):
            raise CorruptDataError(f"{path}: row {number} has {len(row)} cells, but the header has {len(header)}")
        x[i] = [_number(row[p], path, number, name) for p, name in zip(places, features, strict=True)]
        labels.append(row[at].strip())
        if not labels[-1]:
            raise CorruptDataError(f"{path}: row {number}, column {label!r} is empty")
    return features, x, labels


def _number(cell: str, path: Path, row: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        what = f"holds {cell!r}, which is not a number" if cell.strip() else "is empty"
        raise CorruptDataError(f"{path}: row {row}, column {column!r} {what}") from None
    if not abs(value) <= _LARGEST:  # NaN too
        raise CorruptDataError(f"{path}: row {row}, column {column!r} holds {cell!r}, not a finite number (of 32 bits)")
    return value


def _class_names(labels: list[str]) -> list[str]:
    names = sorted(set(labels))
    try:
        return sorted(names, key=int)
    except ValueError:
        return names
