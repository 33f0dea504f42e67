"""Claims: statements about the rows of an experiment that can come out false.

A row holds the outcomes of all arms in one replicate. Every claim maps a row to a score ``w`` in [0, 1]: 1 if the row
agrees, 0 if it does not, 1/2 for a tie, and the mean of these over several cases. One machinery
(:mod:`torchstone.bench.judge`) turns the scores of all replicates into a verdict, whatever the kind of the claim.

An arm that diverged loses every comparison of its replicate; two that diverged tie. A value that is NaN means "not
applicable": the score is NaN, and the replicate is excluded and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from torchstone.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchstone.bench.outcome import Row

__all__ = ["Claim", "ClosesGap", "Higher", "Lower", "Ratio", "Trend", "Within"]

Scores = np.ndarray  # 1-D float64: one score per case, and per element where the metric is an array


@dataclass(frozen=True)
class Claim:
    """What all claims share; use one of the kinds below.

    Args:
        metric: name of a value, a counted cost, or (with ``arm=""``) a derived value of the row.
        arm: the arm the claim is about; ``""`` for a derived value.
        than: another arm, or a number.
        cases: the cases it speaks about; ``()`` means all cases that the arms run on.
        always: a theorem: no statistics, one counterexample refutes it. A tie is no counterexample.
        primary: the one claim by which the study as a whole is judged.
        text: the claim in words; by default it is put together from its parts.
    """

    metric: str
    arm: str
    than: str | float = 0.0
    cases: tuple[str, ...] = ()
    always: bool = False
    primary: bool = False
    text: str = ""

    relation: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if type(self) is Claim:
            raise StudyError("Claim itself states nothing: use Higher, Lower, Within, Ratio, ClosesGap or Trend")
        if isinstance(self.cases, str):
            raise StudyError(f"cases of a claim must be a tuple of names, not the string {self.cases!r}")

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that the claim compares; none if it speaks about derived values."""
        names = (self.arm, self.than) if self.arm and isinstance(self.than, str) else (self.arm,)
        return tuple(dict.fromkeys(name for name in names if name))

    def sentence(self) -> str:
        """The claim in words."""
        where = f" [{', '.join(self.cases)}]" if self.cases else ""
        return self.text or f"{self._statement()}{where}"

    def _statement(self) -> str:
        subject = f"{self.metric} of {self.arm}" if self.arm else self.metric
        other = f"that of {self.than}" if isinstance(self.than, str) else f"{self.than:g}"
        return f"{subject} {self.relation} {other}"

    def scores(self, row: Row) -> Scores:
        """One score per case (and per element of an array-valued metric); NaN where not applicable."""
        cases = self.cases if self.cases or not self.arm else row.cases_of(*self.arms)
        parts = [self._score(row, case) for case in (cases or ("",))]
        return np.concatenate([np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in parts])

    def w(self, row: Row) -> float:
        """The score of the row: mean over its cases; NaN if the claim applies nowhere in it."""
        scores = self.scores(row)
        applicable = scores[~np.isnan(scores)]
        return float(applicable.mean()) if applicable.size else float("nan")

    def _score(self, row: Row, case: str) -> Scores | float:
        if not self.arm:
            value = row.derived_value(self.metric)
            if np.isnan(value) and row.any_diverged:  # a derived value lost to divergence counts against the claim
                return 0.0
            other = row.derived_value(self.than) if isinstance(self.than, str) else self.than
            return self._compare(np.asarray(value), np.asarray(other))
        lost = bool(row.diverged(self.arm, case))
        other_lost = isinstance(self.than, str) and bool(row.diverged(self.than, case))
        if lost or other_lost:
            return self._when_diverged(lost, other_lost)
        other = row.value(self.metric, self.than, case) if isinstance(self.than, str) else self.than
        return self._compare(np.asarray(row.value(self.metric, self.arm, case)), np.asarray(other))

    def _when_diverged(self, lost: bool, other_lost: bool) -> float:
        return 0.5 if lost and other_lost else float(other_lost)

    def _compare(self, a: Scores, b: Scores) -> Scores:
        raise StudyError(f"{type(self).__name__} does not compare two values")

    def effect(self, row: Row) -> float:
        """The difference (arm minus than) that describes the size of the effect; NaN where there is none."""
        if not self.arm:
            other = row.derived_value(self.than) if isinstance(self.than, str) else self.than
            return float(row.derived_value(self.metric) - other)
        differences = []
        for case in self.cases or row.cases_of(*self.arms):
            if any(row.diverged(arm, case) for arm in self.arms):
                return float("nan")
            other = row.value(self.metric, self.than, case) if isinstance(self.than, str) else self.than
            differences.append(np.mean(np.asarray(row.value(self.metric, self.arm, case)) - np.asarray(other)))
        return float(np.mean(differences))


def _sign_score(difference: Scores) -> Scores:
    """1 for positive, 0 for negative, 1/2 for zero, NaN stays NaN."""
    return (np.sign(difference) + 1.0) / 2.0


@dataclass(frozen=True)
class Higher(Claim):
    """``arm`` scores higher than ``than`` by more than ``by``; ``by=-delta`` states non-inferiority.

    Example:
        >>> print(Higher("accuracy", "sop", "ce", by=0.05).sentence())
        accuracy of sop is higher by more than 0.05 than that of ce
    """

    by: float = 0.0
    relation: ClassVar[str] = "is higher than"

    def _statement(self) -> str:
        return _with_margin(super()._statement(), self.relation, "higher", self.by)

    def _compare(self, a: Scores, b: Scores) -> Scores:
        return _sign_score(a - b - self.by)


@dataclass(frozen=True)
class Lower(Claim):
    """``arm`` scores lower than ``than`` by more than ``by``."""

    by: float = 0.0
    relation: ClassVar[str] = "is lower than"

    def _statement(self) -> str:
        return _with_margin(super()._statement(), self.relation, "lower", self.by)

    def _compare(self, a: Scores, b: Scores) -> Scores:
        return _sign_score(b - a - self.by)


def _with_margin(statement: str, relation: str, word: str, by: float) -> str:
    if by > 0:
        return statement.replace(relation, f"is {word} by more than {by:g} than")
    return (
        statement.replace(relation, f"is not {'lower' if word == 'higher' else 'higher'} by more than {-by:g} than")
        if by < 0
        else statement
    )


@dataclass(frozen=True)
class Within(Claim):
    """``arm`` agrees with ``than`` up to ``by + rtol * |than|``: equivalence, or with ``always`` an identity."""

    by: float = 0.0
    rtol: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by < 0 or self.rtol < 0:
            raise StudyError(f"the tolerance of Within must not be negative, but by={self.by} and rtol={self.rtol}")

    def _statement(self) -> str:
        subject = f"{self.metric} of {self.arm}" if self.arm else self.metric
        other = f"that of {self.than}" if isinstance(self.than, str) else f"{self.than:g}"
        tolerance = " + ".join(
            part for part in (f"{self.by:g}" * bool(self.by), f"{self.rtol:g} relative" * bool(self.rtol)) if part
        )
        return f"{subject} equals {other} up to {tolerance or '0'}"

    def _compare(self, a: Scores, b: Scores) -> Scores:
        inside = (np.abs(a - b) <= self.by + self.rtol * np.abs(b)).astype(np.float64)
        return np.where(np.isnan(a) | np.isnan(b), np.nan, inside)

    def _when_diverged(self, lost: bool, other_lost: bool) -> float:
        return 0.0  # a run that diverged equals nothing


@dataclass(frozen=True)
class Ratio(Claim):
    """``arm`` is at most (or at least) so many times ``than``: a counted cost, or a score. It never divides.

    Exactly one of ``at_most`` and ``at_least`` is given. Negative values have no meaningful ratio: not applicable.
    """

    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.at_most is None) == (self.at_least is None):
            raise StudyError("Ratio takes exactly one of at_most and at_least")

    def _statement(self) -> str:
        subject = f"{self.metric} of {self.arm}" if self.arm else self.metric
        other = f"that of {self.than}" if isinstance(self.than, str) else f"{self.than:g}"
        limit = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        return f"{subject} is {limit} times {other}"

    def _compare(self, a: Scores, b: Scores) -> Scores:
        score = (
            _sign_score(self.at_most * b - a)
            if self.at_most is not None
            else _sign_score(a - (self.at_least or 0.0) * b)
        )
        reached = np.where(score == 0.5, 1.0, score)  # "at most" and "at least" include the limit
        return np.where((a < 0) | (b < 0), np.nan, reached)


@dataclass(frozen=True)
class ClosesGap(Claim):
    """``arm`` closes at least the share ``by`` of the gap from ``than`` up to the arm ``to``.

    Linear, so that a small gap divides nothing: ``a - low >= by * (high - low)``. That there is a gap at all is a
    premise to state beside it.
    """

    to: str = ""
    by: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.to and self.arm and isinstance(self.than, str)):
            raise StudyError("ClosesGap compares three arms: arm, than (the lower end) and to (the upper end)")

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that the claim compares."""
        return tuple(dict.fromkeys((*super().arms, self.to)))

    def _statement(self) -> str:
        return f"{self.arm} closes at least {self.by:.0%} of the gap in {self.metric} from {self.than} to {self.to}"

    def _score(self, row: Row, case: str) -> Scores | float:
        if row.diverged(self.arm, case):
            return 0.0
        if any(row.diverged(arm, case) for arm in self.arms):
            return 1.0
        low, high = (np.asarray(row.value(self.metric, arm, case)) for arm in (str(self.than), self.to))
        score = _sign_score(np.asarray(row.value(self.metric, self.arm, case)) - low - self.by * (high - low))
        return np.where(score == 0.5, 1.0, score)


@dataclass(frozen=True)
class Trend(Claim):
    """``arm`` rises (or with ``falls=True`` falls) along the ordered ``cases`` of one replicate.

    The score is the sign of Kendall's statistic: 1 if more pairs of cases are in the stated order than against it.
    """

    falls: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.cases) < 2 or not self.arm:
            raise StudyError("Trend needs an arm and at least two ordered cases")
        if self.than != 0.0:
            raise StudyError("Trend speaks about one arm along its cases: it takes no `than`")

    def sentence(self) -> str:
        """The claim in words."""
        return (
            self.text
            or f"{self.metric} of {self.arm} {'falls' if self.falls else 'rises'} along {', '.join(self.cases)}"
        )

    def scores(self, row: Row) -> Scores:
        """One score: the sign of Kendall's statistic over the cases."""
        if any(row.diverged(self.arm, case) for case in self.cases):
            return np.zeros(1)
        values = np.array([float(np.mean(row.value(self.metric, self.arm, case))) for case in self.cases])
        agreement = np.sign(values[None, :] - values[:, None])[np.triu_indices(len(values), 1)].sum()
        return np.atleast_1d(_sign_score(np.asarray(-agreement if self.falls else agreement)))

    def effect(self, row: Row) -> float:
        """Mean step from one case to the next."""
        if any(row.diverged(self.arm, case) for case in self.cases):
            return float("nan")
        values: Sequence[float] = [float(np.mean(row.value(self.metric, self.arm, case))) for case in self.cases]
        return float(np.mean([late - early for early, late in pairwise(values)]))
