"""A result in lines of text, for the terminal, the report and Markdown alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchstone.bench.judge import Judgement
from torchstone.bench.report.wording import DASH, TONES, change, evidence, hyper, interval, number, signed, spread
from torchstone.bench.result import Result

__all__ = ["ArmLine", "ClaimLine", "arm_lines", "claim_lines", "notes", "state", "tuning_lines"]


@dataclass(frozen=True)
class ClaimLine:
    """One claim with its verdict; ``mark`` is ``primary``, ``premise`` or empty."""

    experiment: str
    claim: str
    mark: str
    verdict: str
    tone: str
    meaning: str
    reason: str
    replicates: str
    estimate: str
    interval: str
    e_value: str
    effect: str
    effect_interval: str


@dataclass(frozen=True)
class ArmLine:
    """One arm on one case: a cell per metric, and how many of its runs diverged."""

    case: str
    arm: str
    role: str
    cells: tuple[str, ...]
    seconds: str
    diverged: int


def claim_lines(result: Result) -> list[ClaimLine]:
    """All claims and premises, the primary one first."""
    return [_claim_line(j) for j in sorted(result.judgements, key=lambda j: not j.claim.primary)]


def _claim_line(j: Judgement) -> ClaimLine:
    statistical = j.n > 0 and not j.claim.always
    return ClaimLine(
        experiment=j.experiment,
        claim=j.claim.sentence(),
        mark="primary" if j.claim.primary else "premise" if j.premise else "",
        verdict=str(j.verdict),
        tone=TONES[j.verdict],
        meaning=j.verdict.meaning,
        reason=j.reason,
        replicates=str(j.n),
        estimate=number(j.estimate),
        interval=interval(j.interval) if statistical else "",
        e_value=evidence(j.e_value) if statistical else DASH,
        effect=signed(j.effect),
        effect_interval=change(j.effect_interval),
    )


def state(result: Result, experiment: str) -> str:
    """How far an experiment came: its replicates and why there are no more, or why it was not run."""
    if experiment in result.not_run:
        return f"not run: {result.not_run[experiment]}"
    count = len(result.rows.get(experiment, ()))
    reason = result.stopped.get(experiment, "")
    return f"{count} replicate{'s' * (count != 1)}" + f"; {reason}" * bool(reason)


def arm_lines(result: Result, experiment: str) -> list[ArmLine]:
    """Means and standard deviations over the replicates, case by case; one cell per ``result.metrics(experiment)``."""
    rows = result.rows.get(experiment, ())
    if not rows:
        return []
    arms = result.study.experiment(experiment).arms
    means = [result.means(experiment, metric) for metric in result.metrics(experiment)]
    lines = []
    for arm, case in result.study.experiment(experiment).slots:
        absent = (math.nan, math.nan, 0)
        cells = tuple(spread(*table.get((arm, case), absent)[:2]) for table in means)
        diverged = sum(bool(row.diverged(arm, case)) for row in rows)
        lines.append(ArmLine(case, arm, arms[arm].role, cells, _seconds(result, experiment, arm, case), diverged))
    return lines


def _seconds(result: Result, experiment: str, arm: str, case: str) -> str:
    wanted = (experiment, arm, case, "trial", "done")
    times = [run.wall_s for run in result.runs if (run.experiment, run.arm, run.case, run.kind, run.status) == wanted]
    return number(sum(times) / len(times), 2) if times else DASH


def tuning_lines(result: Result, experiment: str) -> list[tuple[str, str, str]]:
    """``(arm, hyper-parameters, how they were found)`` for every arm that has any."""
    lines = []
    for arm, tuning in result.tunings.get(experiment, {}).items():
        how = "fixed"
        if tuning.draws:
            how = f"best of {tuning.draws} draws, objective {number(tuning.objective)}"
            if tuning.source != arm:
                how = f"tuned as {tuning.source}"
        if tuning.hyper:
            lines.append((arm, hyper(tuning.hyper), how))
    return lines


def notes(result: Result) -> list[str]:
    """What a reader must know beside the verdicts: what was left out, and what failed."""
    lines = []
    for j in result.judgements:
        counts = [f"{j.excluded} excluded as not applicable"] * bool(j.excluded)
        counts += [f"{j.diverged} with an arm that diverged"] * bool(j.diverged)
        if counts:
            lines.append(f"{j.claim.sentence()}: of the replicates, {' and '.join(counts)}")
    lines += [f"failed: {' '.join(failure.split())}" for failure in result.failures]
    return lines
