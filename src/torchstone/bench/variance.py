"""Where the variation of a score comes from: runs in which one source of variation alone is resampled.

All other streams stay those of replicate 0. The runs describe the arms of the primary claim in its first case; no
verdict sees them. :func:`torchstone.bench.statistics.variance_by_source` turns the scores into spreads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from torchstone.bench.claims import Claim
from torchstone.bench.identity import RunSpec
from torchstone.bench.outcome import Row
from torchstone.bench.seeds import SOURCES
from torchstone.bench.study import Experiment
from torchstone.bench.worker import CellDone

__all__ = ["variance_cells", "variance_scores"]

VARIED = tuple(source for source in SOURCES if source != "hpo")  # tuning is done once


def variance_cells(
    claim: Claim, experiment: Experiment, runs: int, spec: Callable[..., RunSpec]
) -> Iterator[list[RunSpec]]:
    """The cells: so many runs of each source, of all arms that the claim compares.

    A claim about a value derived from all arms has none.
    """
    shared = [case for case in experiment.cases if all(case in experiment.cases_of(arm) for arm in claim.arms)]
    for source in VARIED if claim.arms else ():
        for number in range(1, runs + 1):
            place = {"kind": "variance", "replicate": number, "attempt": SOURCES.index(source)}
            yield [spec(arm, (*claim.cases, *shared)[0], **place) for arm in claim.arms]


def variance_scores(claim: Claim, cells: Iterable[CellDone]) -> dict[str, dict[str, list[float]]]:
    """Arm -> source -> scores; a run that diverged, or to which the metric does not apply, has none."""
    scores: dict[str, dict[str, list[float]]] = {arm: {source: [] for source in VARIED} for arm in claim.arms}
    for cell in cells:
        for spec in cell.specs:
            if spec.run_id in cell.outcomes:
                row = Row(0, {(spec.arm, spec.case): cell.outcomes[spec.run_id]})
                score = float(np.mean(row.value(claim.metric, spec.arm, spec.case)))
                if not math.isnan(score):
                    scores[spec.arm][SOURCES[spec.attempt]].append(score)
    return scores
