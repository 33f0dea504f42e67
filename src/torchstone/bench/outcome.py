"""What a run returns (:class:`Outcome`) and what a claim looks at (:class:`Row`: all arms of one replicate)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchstone.errors import StudyError, did_you_mean

__all__ = ["Outcome", "Row", "complete_prefix"]

Value = float | np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What one arm returns for one cell.

    Args:
        values: metric -> number or 1-D array. NaN means "not applicable": excluded and counted.
        objective: validation score, higher is better; all that tuning ever sees.
        cost: counted costs (steps, forwards, bytes, parameters); seconds come from the runner.
        diverged: the reason, if training diverged; such an arm loses every comparison of its replicate.

    Raises:
        StudyError: if a value is neither a number nor a 1-D array, or is infinite (then say ``diverged``).

    Example:
        >>> Outcome({"accuracy": 0.9}, objective=0.88, cost={"steps": 100}).values["accuracy"]
        0.9
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    objective: float | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    diverged: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {name: _number(name, value) for name, value in self.values.items()})
        object.__setattr__(self, "cost", {name: float(value) for name, value in self.cost.items()})
        if self.objective is not None:
            objective = float(self.objective)
            object.__setattr__(self, "objective", -math.inf if math.isnan(objective) else objective)


def _number(name: str, value: Any) -> Value:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.kind not in "biuf" or array.ndim > 1:
        raise StudyError(f"value {name!r} must be a number or a 1-D array of numbers, but is {value!r}")
    if np.isinf(array.astype(np.float64)).any():
        raise StudyError(f"value {name!r} is infinite: return Outcome(diverged=reason) for a run that diverged")
    return float(array) if array.ndim == 0 else array.astype(np.float64)


@dataclass(frozen=True)
class Row:
    """The outcomes of all arms in one replicate, over all cases."""

    replicate: int
    outcomes: Mapping[tuple[str, str], Outcome]
    derived: Mapping[str, float] = field(default_factory=dict)

    def cases_of(self, *arms: str) -> tuple[str, ...]:
        """Cases in which all of ``arms`` ran, in order."""
        cases = dict.fromkeys(case for _, case in self.outcomes)
        return tuple(case for case in cases if all((arm, case) in self.outcomes for arm in arms))

    def outcome(self, arm: str, case: str) -> Outcome:
        """The outcome of one arm in one case."""
        try:
            return self.outcomes[arm, case]
        except KeyError:
            raise StudyError(f"arm {arm!r} has no outcome in case {case!r} of replicate {self.replicate}") from None

    def value(self, metric: str, arm: str, case: str) -> Value:
        """A metric or a counted cost; NaN if the arm diverged."""
        outcome = self.outcome(arm, case)
        if metric in outcome.values:
            return outcome.values[metric]
        if metric in outcome.cost:
            return outcome.cost[metric]
        if outcome.diverged:
            return math.nan
        raise did_you_mean(f"metric of arm {arm!r}", metric, {*outcome.values, *outcome.cost})

    def derived_value(self, name: str) -> float:
        """A value that ``Experiment.derive`` computed from this row."""
        if name not in self.derived:
            raise did_you_mean("derived value", name, self.derived)
        return float(self.derived[name])

    def diverged(self, arm: str, case: str) -> str:
        """Why the arm diverged, or the empty string."""
        return self.outcome(arm, case).diverged

    @property
    def any_diverged(self) -> bool:
        """Whether any run of the row diverged."""
        return any(outcome.diverged for outcome in self.outcomes.values())


def complete_prefix(rows: Sequence[Row]) -> list[Row]:
    """The rows 0, 1, 2, ... up to the first gap: all that stopping and verdicts may look at.

    Looking past a gap would favour runs that finish fast.
    """
    by_replicate = {row.replicate: row for row in rows}
    prefix: list[Row] = []
    while len(prefix) in by_replicate:
        prefix.append(by_replicate[len(prefix)])
    return prefix
