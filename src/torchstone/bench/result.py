"""What a run of a study gives back: verdicts first, then everything they rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from torchstone.bench.judge import Judgement
from torchstone.bench.outcome import Row
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from torchstone.bench.store import RunRecord

__all__ = ["Result", "Tuning"]


@dataclass(frozen=True)
class Tuning:
    """The hyper-parameters an arm runs with, and how they were found.

    Args:
        hyper: all hyper-parameters of the arm.
        objective: validation score of the chosen draw; NaN if nothing was tuned.
        draws: random draws tried.
        source: the arm whose draws they are (a control can be tuned as another arm), or ``""``.
    """

    hyper: Mapping[str, Any]
    objective: float = math.nan
    draws: int = 0
    source: str = ""


@dataclass(frozen=True)
class Result:
    """Verdicts of one study, with the rows, tuned hyper-parameters and run records behind them."""

    study: Study
    scale: str
    judgements: tuple[Judgement, ...]
    rows: Mapping[str, Sequence[Row]]
    tunings: Mapping[str, Mapping[str, Tuning]]
    stopped: Mapping[str, str]
    not_run: Mapping[str, str]
    failures: tuple[str, ...]
    runs: tuple[RunRecord, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    store: str = ""
    seconds: float = 0.0
    e_threshold: float = 20.0
    variance: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = field(default_factory=dict)
    """Experiment -> arm -> source -> scores of the primary claim's metric while that source alone is resampled."""
    stacked: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Experiment -> arm that trained many replicates in one pass -> how many times as fast that was in its calibration
    (NaN if it was not measured)."""

    @property
    def primary(self) -> Judgement:
        """The judgement of the study's primary claim."""
        return next(j for j in self.judgements if j.claim.primary)

    @property
    def verdict(self) -> Verdict:
        """The verdict of the primary claim."""
        return self.primary.verdict

    def means(self, experiment: str, metric: str) -> dict[tuple[str, str], tuple[float, float, int]]:
        """Mean, standard deviation and count of a metric over the replicates, by (arm, case); NaN left out."""
        table: dict[tuple[str, str], list[float]] = {}
        for row in self.rows.get(experiment, ()):
            for slot, outcome in row.outcomes.items():
                if metric in outcome.values:
                    table.setdefault(slot, []).append(float(np.mean(outcome.values[metric])))
        return {slot: _summary(values) for slot, values in table.items()}

    def derived_means(self, experiment: str) -> dict[str, tuple[float, float, int]]:
        """Mean, standard deviation and count of each value derived from whole replicates; NaN left out."""
        table: dict[str, list[float]] = {}
        for row in self.rows.get(experiment, ()):
            for name, value in row.derived.items():
                table.setdefault(name, []).append(float(value))
        return {name: _summary(values) for name, values in table.items()}

    def metrics(self, experiment: str) -> tuple[str, ...]:
        """Names of all metrics of an experiment, in the order of first appearance."""
        outcomes = (outcome for row in self.rows.get(experiment, ()) for outcome in row.outcomes.values())
        return tuple(dict.fromkeys(name for outcome in outcomes for name in outcome.values))

    def verdict_records(self) -> list[dict[str, Any]]:
        """One plain dictionary per claim, ready for JSON (NaN becomes ``None``)."""
        return [
            {
                "study": j.study,
                "experiment": j.experiment,
                "claim": j.claim.sentence(),
                "kind": type(j.claim).__name__,
                "metric": j.claim.metric,
                "primary": j.claim.primary,
                "premise": j.premise,
                "always": j.claim.always,
                "verdict": str(j.verdict),
                "decided": j.decided,
                "reason": j.reason,
                "replicates": j.n,
                "estimate": _plain(j.estimate),
                "interval": [_plain(end) for end in j.interval],
                "e_value": _plain(j.e_value),
                "e_against": _plain(j.e_against),
                "effect": _plain(j.effect),
                "effect_interval": [_plain(end) for end in j.effect_interval],
                "excluded": j.excluded,
                "diverged": j.diverged,
            }
            for j in self.judgements
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single runs, as plain data for JSON."""
        return {
            "study": self.study.name,
            "scale": self.scale,
            "verdict": str(self.verdict),
            "verdicts": self.verdict_records(),
            "tuned": {
                name: {arm: {"hyper": dict(t.hyper), "draws": t.draws} for arm, t in tunings.items() if t.draws}
                for name, tunings in self.tunings.items()
            },
            "stacked": {
                name: {arm: None if math.isnan(speed) else round(speed, 3) for arm, speed in arms.items()}
                for name, arms in self.stacked.items()
            },
            "stopped": dict(self.stopped),
            "not_run": dict(self.not_run),
            "failures": list(self.failures),
            "store": self.store,
            "seconds": self.seconds,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Long table of all counted runs: experiment, case, arm, replicate, metric, value."""
        import pandas as pd

        records = [
            (name, case, arm, row.replicate, metric, float(np.mean(value)), outcome.diverged)
            for name, rows in self.rows.items()
            for row in rows
            for (arm, case), outcome in row.outcomes.items()
            for metric, value in {**outcome.values, **outcome.cost}.items()
        ]
        columns = ["experiment", "case", "arm", "replicate", "metric", "value", "diverged"]
        return pd.DataFrame.from_records(records, columns=columns)

    def __str__(self) -> str:
        lines = [f"{self.study.name} ({self.scale} scale): {self.verdict}"]
        lines += [f"  {j.verdict:<28} {j.claim.sentence()}" for j in self.judgements]
        return "\n".join(lines)


def _summary(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, standard deviation and count of the values that are numbers."""
    finite = [value for value in values if not math.isnan(value)]
    mean = float(np.mean(finite)) if finite else math.nan
    spread = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return mean, spread, len(finite)


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else (float(number) if math.isfinite(number) else math.copysign(1e308, number))
