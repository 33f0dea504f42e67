"""The numbers of a result as rows: scores with intervals, counted costs and seconds, runs that went wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchstone.bench.result import Result
from torchstone.bench.statistics.intervals import mean_interval
from torchstone.bench.statistics.variance import SourceVariance, variance_by_source

__all__ = [
    "Mean",
    "ScoreRow",
    "Trouble",
    "claimed_metrics",
    "cost_rows",
    "derived_values",
    "score_rows",
    "scores",
    "sources_of_variance",
    "troubles",
]


@dataclass(frozen=True)
class Mean:
    """A mean over replicates: with its standard deviation, its 95 % bootstrap interval, and of how many."""

    mean: float = math.nan
    sd: float = math.nan
    n: int = 0
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """The mean of those values that are numbers."""
        finite = [value for value in values if not math.isnan(value)]
        if len(finite) < 2:
            return cls(*finite, n=len(finite))
        low, high = mean_interval(finite)
        return cls(float(np.mean(finite)), float(np.std(finite, ddof=1)), len(finite), low, high)


@dataclass(frozen=True)
class ScoreRow:
    """One arm on one case: a mean for each metric, and how many of its runs diverged."""

    case: str
    arm: str
    role: str
    means: Mapping[str, Mean]
    diverged: int


@dataclass(frozen=True)
class Trouble:
    """Runs that diverged or failed for the same reason."""

    kind: str
    experiment: str
    arm: str
    case: str
    reason: str
    replicates: tuple[int, ...]


def scores(result: Result, experiment: str, metric: str, arm: str, case: str) -> list[float]:
    """A metric of one arm in one case, replicate by replicate; arrays by their mean, NaN where there is no value."""
    found = []
    for row in result.rows.get(experiment, ()):
        value = row.outcomes[arm, case].values.get(metric, math.nan)
        found.append(float(np.mean(value)) if np.size(value) else math.nan)
    return found


def score_rows(result: Result, experiment: str) -> list[ScoreRow]:
    """All means of an experiment, case by case; a metric that an arm never has is left out of its row."""
    rows = result.rows.get(experiment, ())
    if not rows:
        return []
    stated = result.study.experiment(experiment)
    table = []
    for arm, case in stated.slots:
        outcomes = [row.outcomes[arm, case] for row in rows]
        means = {
            metric: Mean.of(scores(result, experiment, metric, arm, case))
            for metric in result.metrics(experiment)
            if any(metric in outcome.values for outcome in outcomes)
        }
        diverged = sum(bool(outcome.diverged) for outcome in outcomes)
        table.append(ScoreRow(case, arm, stated.arms[arm].role, means, diverged))
    return table


def claimed_metrics(result: Result, experiment: str) -> tuple[str, ...]:
    """The metrics that claims speak about, the primary claim's first; the first metric there is if none is measured."""
    stated = result.study.experiment(experiment)
    claims = sorted((*stated.claims, *stated.premises), key=lambda claim: not claim.primary)
    known = result.metrics(experiment)
    return tuple(dict.fromkeys(claim.metric for claim in claims if claim.metric in known)) or known[:1]


def derived_values(result: Result, experiment: str) -> dict[str, Mean]:
    """What the experiment derives from whole rows."""
    rows = result.rows.get(experiment, ())
    names = dict.fromkeys(name for row in rows for name in row.derived)
    return {name: Mean.of(float(row.derived.get(name, math.nan)) for row in rows) for name in names}


def cost_rows(result: Result, experiment: str) -> dict[tuple[str, str], dict[str, float]]:
    """Mean cost of a run by (case, arm): seconds, those of shared work apart, and whatever the arm counts."""
    gathered: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in result.runs:
        if (run.experiment, run.kind, run.status) == (experiment, "trial", "done"):
            costs = gathered.setdefault((run.case, run.arm), {})
            counted = {"seconds": run.wall_s, **run.cost}
            if run.peak_rss:
                counted["peak memory, MiB"] = run.peak_rss / 2**20
            for name, value in counted.items():
                costs.setdefault(name, []).append(value)
    stated = result.study.experiment(experiment)
    return {
        (case, arm): {name: float(np.mean(values)) for name, values in gathered[case, arm].items()}
        for arm, case in stated.slots
        if (case, arm) in gathered
    }


def sources_of_variance(result: Result, experiment: str) -> dict[str, dict[str, SourceVariance]]:
    """Spread of the score by source of variation, arm by arm, where the result has it."""
    found = {}
    for arm, by_source in result.variance.get(experiment, {}).items():
        kept = {source: [score for score in values if math.isfinite(score)] for source, values in by_source.items()}
        kept = {source: values for source, values in kept.items() if len(values) > 1}
        if kept:
            found[arm] = variance_by_source(kept)
    return found


def troubles(result: Result) -> list[Trouble]:
    """Every run that diverged or failed with its reason; the same reason in many replicates is told once."""
    grouped: dict[tuple[str, ...], list[int]] = {}
    for key, replicate in _troubled(result):
        grouped.setdefault(key, []).append(replicate)
    return [Trouble(*key, replicates=tuple(sorted(set(which)))) for key, which in grouped.items()]


def _troubled(result: Result) -> Iterator[tuple[tuple[str, str, str, str, str], int]]:
    for name, rows in result.rows.items():
        for row in rows:
            for (arm, case), outcome in row.outcomes.items():
                if outcome.diverged:
                    yield ("diverged", name, arm, case, outcome.diverged), row.replicate
    for run in result.runs:
        if run.status == "failed":
            reason = ": ".join(filter(None, (run.error_type, run.error_text)))
            yield ("failed", run.experiment, run.arm, run.case, reason), run.replicate
        elif run.status == "done" and run.kind == "hpo" and run.diverged:
            yield ("diverged while tuned", run.experiment, run.arm, run.case, run.diverged), run.attempt


def counts(numbers: Sequence[int]) -> str:
    """Numbers of replicates in words, runs of neighbours together.

    Example:
        >>> counts([0, 1, 2, 5])
        '0-2, 5'
    """
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)
