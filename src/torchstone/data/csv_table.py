"""The user's own table: a CSV file of numbers with a header and a label column."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from torchstone.data.arrays import from_arrays, with_test
from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError, did_you_mean

__all__ = ["read_csv"]

_ANNOTATOR, _PRIVILEGED = "annotator", "pi_"
_LARGEST = float(np.finfo(np.float32).max)


def read_csv(path: Path, *, label: str = "label", test: Path | None = None) -> TensorData:
    """Read a CSV file whose first line names the columns; all but ``label`` are numbers, the label may be any text.

    The classes are the distinct labels: in numerical order if all are whole numbers, else in alphabetical order. Rows
    are counted as a spreadsheet does, the header being row 1. ``test`` is a second file with the same columns.

    What is known of the labels, but not of samples without one, is kept out of the inputs: a column ``annotator`` (any
    text) becomes the column of that name, numbered as the classes are, and those that begin with ``pi_`` become the
    column ``pi``. A test file need not have them.

    Shapes:
        ``x`` (rows, features); ``annotator`` (rows,) int64; ``pi`` (rows, m) float32.

    Raises:
        DataNotFoundError: if there is no such file.
        UnknownNameError: if no column is called ``label``.
        CorruptDataError: if the file is empty, or a cell is missing or not a finite number (its row and column are
            named), or there is only one class.
    """
    table = _read(path, label, None)
    data = from_arrays(table.x, table.labels, name=path.stem, class_names=_names(table.labels))
    columns = {}
    if table.annotators:
        number = {name: i for i, name in enumerate(_names(table.annotators))}
        columns[_ANNOTATOR] = torch.tensor([number[name] for name in table.annotators])
    if table.pi.shape[1]:
        columns["pi"] = torch.from_numpy(table.pi)
    data = replace(data, columns=columns)
    if test is None:
        return data
    held = _read(test, label, table.features)
    return with_test(data, held.x, held.labels)


@dataclass(frozen=True)
class _Table:
    """A file: names of the features, features (rows, features), labels, annotators if any, pi (rows, m)."""

    features: list[str]
    x: np.ndarray
    labels: list[str]
    annotators: list[str]
    pi: np.ndarray


def _read(path: Path, label: str, features: list[str] | None) -> _Table:
    """Read a file; ``features`` fixes their names and order, and then nothing else is wanted of it."""
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
    aside = [name for name in header if name != label and (name == _ANNOTATOR or name.startswith(_PRIVILEGED))]
    names = features if features is not None else [name for name in header if name != label and name not in aside]
    if not names:
        raise CorruptDataError(f"{path}: it has no column but {', '.join(map(repr, [label, *aside]))}")
    wanted = [] if features is not None else aside
    numbers = [*names, *(name for name in wanted if name != _ANNOTATOR)]
    places = [header.index(name) for name in numbers]
    table = np.empty((len(rows) - 1, len(numbers)), np.float32)
    texts: dict[str, list[str]] = {name: [] for name in (label, *(n for n in wanted if n == _ANNOTATOR))}
    for i, (number, row) in enumerate(rows[1:]):
        if len(row) != len(header):
            raise CorruptDataError(f"{path}: row {number} has {len(row)} cells, but the header has {len(header)}")
        table[i] = [_number(row[p], path, number, name) for p, name in zip(places, numbers, strict=True)]
        for name, column in texts.items():
            column.append(row[header.index(name)].strip())
            if not column[-1]:
                raise CorruptDataError(f"{path}: row {number}, column {name!r} is empty")
    x, pi = np.split(table, [len(names)], 1)
    return _Table(names, x, texts[label], texts.get(_ANNOTATOR, []), np.ascontiguousarray(pi))


def _number(cell: str, path: Path, row: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        what = f"holds {cell!r}, which is not a number" if cell.strip() else "is empty"
        raise CorruptDataError(f"{path}: row {row}, column {column!r} {what}") from None
    if not abs(value) <= _LARGEST:  # NaN too
        raise CorruptDataError(f"{path}: row {row}, column {column!r} holds {cell!r}, not a finite number (of 32 bits)")
    return value


def _names(values: list[str]) -> list[str]:
    names = sorted(set(values))
    try:
        return sorted(names, key=int)
    except ValueError:
        return names
