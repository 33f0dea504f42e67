"""Anybody's table of scores, from a CSV file or a pandas table, checked line by line.

Two shapes are understood. *Long*: one score per line, with a column for the method (``method``, ``arm``, ``model`` or
``algorithm``), one for the score (``score``, ``value``, ``accuracy`` or ``acc``), and optionally one for the replicate
(``replicate``, ``seed``, ``run``, ``repeat``, ``fold``; several are combined) and one for the data set (``dataset``,
``data`` or ``task``). *Wide*: one line per replicate, one column per method, optionally with replicate and data set.
Other names are given as arguments.

Methods are paired where the same replicates are there for all of them: the same replicate must then mean the same
split and seed, which only its owner can know. A long table without a replicate column is unpaired. Where every method
has one score per data set, the data sets take the place of the replicates, and the verdict speaks about data sets.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchstone.errors import CorruptDataError, DataNotFoundError, did_you_mean

__all__ = ["ScoreTable", "from_frame", "read_scores"]

_METHOD = ("method", "arm", "model", "algorithm")
_SCORE = ("score", "value", "accuracy", "acc")
_REPLICATE = ("replicate", "seed", "run", "repeat", "fold")
_DATASET = ("dataset", "data", "task")


@dataclass(frozen=True)
class ScoreTable:
    """Scores by method, data set and replicate.

    Args:
        scores: method -> data set -> replicate -> score; every method has every data set.
        matched: whether replicates carry names, so that methods can be paired by them.
        higher_is_better: orientation of the scores as given.
    """

    scores: dict[str, dict[str, dict[str, float]]]
    matched: bool = True
    higher_is_better: bool = True

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order of the table."""
        return tuple(self.scores)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets; one without a name if the table has no such column."""
        return tuple(next(iter(self.scores.values())))

    def unmatched(self) -> str:
        """Why methods cannot be paired, in one sentence; empty if they can."""
        if not self.matched:
            return "the table has no column that names the replicates"
        first, *others = self.methods
        for dataset in self.datasets:
            expected = self.scores[first][dataset]
            for method in others:
                found = self.scores[method][dataset]
                if found.keys() != expected.keys():
                    odd = sorted(found.keys() ^ expected.keys())[0]
                    here, gone = (method, first) if odd in found else (first, method)
                    where = f" on {dataset}" if dataset else ""
                    return f"replicate {odd!r}{where} is there for {here!r} and not for {gone!r}"
        return ""

    def strata(self, method: str) -> list[list[float]]:
        """Scores of a method, oriented so that higher is better: one list per data set.

        Where methods share their replicates the order of the first method holds for all.
        """
        sign = 1.0 if self.higher_is_better else -1.0
        strata = []
        for dataset, own in self.scores[method].items():
            shared = self.scores[self.methods[0]][dataset]
            order = shared if shared.keys() == own.keys() else own
            strata.append([sign * own[replicate] for replicate in order])
        return strata

    def blocks(self) -> dict[str, list[float]]:
        """One oriented score per method and block: replicates of one data set, or means over those of several.

        Raises:
            ValueError: if there is one data set and its replicates cannot be matched.
        """
        if len(self.datasets) > 1:
            return {method: [math.fsum(s) / len(s) for s in self.strata(method)] for method in self.methods}
        if reason := self.unmatched():
            raise ValueError(f"ranking within replicates needs paired scores, but {reason}")
        return {method: self.strata(method)[0] for method in self.methods}


def read_scores(
    path: str | Path,
    *,
    method: str | None = None,
    score: str | None = None,
    replicate: str | None = None,
    dataset: str | None = None,
    higher_is_better: bool = True,
) -> ScoreTable:
    """Read a CSV file of scores, long or wide (see the module), separated by commas, semicolons or tabs.

    Args:
        path: the file, UTF-8.
        method: column that names the method; makes the table long.
        score: column of the score.
        replicate: column of the replicate.
        dataset: column of the data set.
        higher_is_better: False for errors and losses.

    Raises:
        DataNotFoundError: if there is no such file.
        CorruptDataError: if it is empty, has no header, a score that is not a finite number, a line of wrong length,
            or the same replicate of a method twice; the message says on which line.
        UnknownNameError: if a column that was named is not there.
    """
    file = Path(path)
    if not file.is_file():
        raise DataNotFoundError(f"there is no file {str(file)!r}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CorruptDataError(f"{file} is not UTF-8 text") from None
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise CorruptDataError(f"{file} is empty")
    separator = max(",;\t", key=lines[start].count)
    reader = csv.reader(lines[start:], delimiter=separator, skipinitialspace=True)
    header = [cell.strip() for cell in next(reader)]
    if all(_is_number(name) for name in header):
        raise CorruptDataError(f"{file} has no header: its first line holds numbers instead of names of columns")
    rows = [
        (f"line {start + reader.line_num}", [cell.strip() for cell in cells])
        for cells in reader
        if any(cell.strip() for cell in cells)
    ]
    return _build(str(file), header, rows, method, score, replicate, dataset, higher_is_better)


def from_frame(
    frame: Any,
    *,
    method: str | None = None,
    score: str | None = None,
    replicate: str | None = None,
    dataset: str | None = None,
    higher_is_better: bool = True,
) -> ScoreTable:
    """Take the scores of a pandas table, long or wide; a named index counts as columns.

    The arguments and errors are those of :func:`read_scores`.

    Example:
        >>> import pandas as pd
        >>> table = from_frame(pd.DataFrame({"seed": [0, 1], "ours": [0.9, 0.8], "theirs": [0.7, 0.9]}))
        >>> table.methods, table.blocks()["ours"]
        (('ours', 'theirs'), [0.9, 0.8])
    """
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    header = [str(column) for column in frame.columns]
    columns = [frame.iloc[:, i].tolist() for i in range(len(header))]
    rows = [(f"row {i}", list(cells)) for i, cells in enumerate(zip(*columns, strict=True))]
    return _build("the table", header, rows, method, score, replicate, dataset, higher_is_better)


@dataclass(frozen=True)
class _Columns:
    """Where things stand: positions in a row; ``scores`` pairs the name of a method (None: read it) with a position."""

    method: int | None
    dataset: int | None
    replicate: list[int]
    scores: list[tuple[str | None, int]]


def _build(
    source: str,
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Any]]],
    method: str | None,
    score: str | None,
    replicate: str | None,
    dataset: str | None,
    higher_is_better: bool,
) -> ScoreTable:
    """Enter the scores row by row; ``rows`` pairs each with its place in the source."""
    doubled = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if doubled is not None:
        raise CorruptDataError(f"{source} has two columns named {doubled!r}")
    if not rows:
        raise CorruptDataError(f"{source} has a header and no scores")
    columns = _columns(header, method, score, replicate, dataset)
    wide = columns.method is None
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for place, cells in rows:
        if len(cells) != len(header):
            raise CorruptDataError(f"{source}, {place} has {len(cells)} cells where the header has {len(header)}")
        where = _text(cells[columns.dataset]) if columns.dataset is not None else ""
        which = "/".join(_text(cells[i]) for i in columns.replicate)
        for name, at in columns.scores:
            label = _text(cells[columns.method]) if columns.method is not None else str(name)
            if not label:
                raise CorruptDataError(f"{source}, {place} names no method")
            if wide and cells[at] in (None, ""):
                continue  # this method lacks this replicate
            entry = scores.setdefault(label, {}).setdefault(where, {})
            # Without replicates wide tables are numbered by line, which is what pairs them; long ones per method.
            key = which or (place if wide else str(len(entry)))
            value = _number(f"{source}, {place}", header[at], cells[at], f"{label!r}, replicate {key!r},", wide=wide)
            if key in entry:
                on = f" on {where}" if where else ""
                raise CorruptDataError(f"{source}, {place}: replicate {key!r} of {label!r}{on} is there twice")
            entry[key] = value
    _check_complete(source, scores)
    matched = bool(columns.replicate) or wide
    if all(len(entries) > 1 and all(len(runs) == 1 for runs in entries.values()) for entries in scores.values()):
        matched = True
        scores = {
            label: {"": {where: next(iter(runs.values())) for where, runs in entries.items()}}
            for label, entries in scores.items()
        }
    return ScoreTable(scores, matched=matched, higher_is_better=higher_is_better)


def _columns(
    header: Sequence[str], method: str | None, score: str | None, replicate: str | None, dataset: str | None
) -> _Columns:
    """Find the columns by the names that were given, else by the usual ones."""
    methods, datasets = _find(header, method, _METHOD), _find(header, dataset, _DATASET)
    replicates = _find(header, replicate, _REPLICATE)
    data_at = datasets[0] if datasets else None
    free = [i for i in range(len(header)) if i not in (data_at, *methods[:1], *replicates)]
    if not methods:
        return _Columns(None, data_at, replicates, [(header[i], i) for i in free])
    found = _find(header, score, _SCORE)[:1] or (free if len(free) == 1 else [])
    if not found:
        raise did_you_mean("column", _SCORE[0], header)
    return _Columns(methods[0], data_at, replicates, [(None, found[0])])


def _find(header: Sequence[str], wanted: str | None, usual: Sequence[str]) -> list[int]:
    """Positions of a column asked for by name, else of those with a usual name."""
    if wanted is not None:
        if wanted not in header:
            raise did_you_mean("column", wanted, header)
        return [list(header).index(wanted)]
    lowered = [name.lower() for name in header]
    return [lowered.index(name) for name in usual if name in lowered]


def _number(place: str, column: str, cell: Any, whose: str, *, wide: bool) -> float:
    if not _is_number(cell):
        hint = "; a table with one score per line needs a column 'method'" if wide else ""
        raise CorruptDataError(f"{place}, column {column!r}: {cell!r} is not a number{hint}")
    value = float(cell)
    if not math.isfinite(value):
        raise CorruptDataError(
            f"{place}: the score of {whose} is {value}; "
            "give a run that diverged the worst attainable score, and leave out one that was never made"
        )
    return value


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _text(cell: Any) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()  # a missing cell of pandas is NaN


def _check_complete(source: str, scores: dict[str, dict[str, dict[str, float]]]) -> None:
    if not scores:
        raise CorruptDataError(f"{source} holds no scores")
    datasets = list(dict.fromkeys(name for entries in scores.values() for name in entries))
    for method, entries in scores.items():
        lacking = [name for name in datasets if name not in entries]
        if lacking:
            raise CorruptDataError(f"{source} has no score of {method!r} on {lacking[0]!r}")
        scores[method] = {name: entries[name] for name in datasets}  # one order for all
