"""Made-up replicates of a study, so that its claims can be judged without training anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from torchstone.bench.judge import Judgement, judge
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Experiment, Study

Change = Outcome | Mapping[str, float]


def made_up(experiment: Experiment, number: int, values: Mapping[str, Mapping[str, float]], **changes: Change) -> Row:
    """A replicate with the same ``values`` (by arm) in all cases, but for ``changes``: arm -> values, or an outcome.

    ``forwards`` is a counted cost. Hyphens of an arm are underscores in a keyword.
    """

    def outcome(arm: str) -> Outcome:
        change = changes.get(arm.replace("-", "_"), {})
        if isinstance(change, Outcome):
            return change
        found = {**values[arm], **change}
        cost = {"forwards": found.pop("forwards")} if "forwards" in found else {}
        return Outcome(found, cost=cost)

    return experiment.row(number, {(arm, case): outcome(arm) for arm, case in experiment.slots})


def judged(study: Study, experiment: str, rows: Sequence[Row]) -> dict[str, Judgement]:
    """What is said of each claim of an experiment."""
    return {j.claim.sentence(): j for j in judge(study, {experiment: rows}) if j.experiment == experiment}


def primary(study: Study, rows: Sequence[Row]) -> Verdict:
    """The verdict on the study's primary claim."""
    experiment, claim = study.primary
    return judged(study, experiment.name, rows)[claim.sentence()].verdict


def every_verdict(
    worse: Mapping[str, Any], equal: Mapping[str, Any], broken: Mapping[str, Any], lost: Mapping[str, Any], most: int
) -> pytest.MarkDecorator:
    """Parametrises a test over changes of replicates and the verdict that they must lead to.

    Args:
        worse: the method is behind.
        equal: it ties.
        broken: the premise does not hold.
        lost: the method diverged.
        most: the largest number of replicates.
    """
    good: dict[str, Any] = {}
    return pytest.mark.parametrize(
        ("changes", "verdict"),
        [
            ([good] * 6, Verdict.REPRODUCED),
            ([worse] * 6, Verdict.REFUTED),
            ([equal] * most, Verdict.DEGENERATE),
            ([good if number % 2 == 0 else worse for number in range(most)], Verdict.NOT_SIGNIFICANT),
            ([broken] * 6, Verdict.PREMISE_NOT_MET),
            ([lost] * 6, Verdict.REFUTED),
            ([good] * 5, Verdict.TOO_FEW),
            ([], Verdict.NOT_RUN),
        ],
    )
