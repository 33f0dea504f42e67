"""Results as data for other programs: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from torchstone.bench.report.summary import unfinished
from torchstone.bench.report.tables import Mean, score_rows
from torchstone.bench.report.wording import visible
from torchstone.bench.result import Result

__all__ = ["means_csv", "to_csv", "to_json"]

VERDICTS = (
    "study", "scale", "experiment", "claim", "kind", "primary", "premise", "always", "verdict", "decided", "reason",
    "replicates", "estimate", "low", "high", "e_value", "e_against", "effect", "effect_low", "effect_high", "excluded",
    "diverged",
)  # fmt: skip
MEANS = ("study", "scale", "experiment", "case", "arm", "role", "metric", "mean", "sd", "n", "low", "high", "diverged")


def to_json(results: Result | Iterable[Result]) -> str:
    """Verdicts, means, tuned hyper-parameters, what was not run and what failed; several results become a list."""
    document: Any = _document(results) if isinstance(results, Result) else [_document(result) for result in results]
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _document(result: Result) -> dict[str, Any]:
    means = [{**dict(zip(MEANS, line, strict=True))} for line in _means(result)]
    return _plain({**result.to_dict(), "unfinished": unfinished(result), "means": means})


def _plain(value: Any) -> Any:
    """In terms of JSON: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {visible(str(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return visible(str(value)) if isinstance(value, str) else value


def to_csv(results: Result | Iterable[Result]) -> str:
    """A line for every claim, with its verdict."""
    return _csv(VERDICTS, (line for result in _several(results) for line in _verdicts(result)))


def means_csv(results: Result | Iterable[Result]) -> str:
    """A line for every arm, case and metric, with its mean."""
    return _csv(MEANS, (line for result in _several(results) for line in _means(result)))


def _several(results: Result | Iterable[Result]) -> Iterable[Result]:
    return [results] if isinstance(results, Result) else results


def _verdicts(result: Result) -> Iterable[Sequence[Any]]:
    for record in result.verdict_records():
        for name in ("interval", "effect_interval"):
            low, high = record.pop(name)
            record |= {name.replace("interval", "low"): low, name.replace("interval", "high"): high}
        record["scale"] = result.scale
        yield [record[name] for name in VERDICTS]


def _means(result: Result) -> Iterable[Sequence[Any]]:
    for experiment in result.study.experiments:
        for row in score_rows(result, experiment.name):
            for metric, one in row.means.items():
                place = (result.study.name, result.scale, experiment.name, row.case, row.arm, row.role, metric)
                yield (*place, *_numbers(one), row.diverged)


def _numbers(one: Mean) -> tuple[float | None, ...]:
    numbers = (one.mean, one.sd, one.n, one.low, one.high)
    return tuple(None if math.isnan(value) else value for value in numbers)


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for line in lines:
        writer.writerow(["" if cell is None else visible(cell) if isinstance(cell, str) else cell for cell in line])
    return text.getvalue()
