"""A result in lines of text, for the terminal, the report and Markdown alike."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from torchstone.bench.judge import Judgement
from torchstone.bench.report.wording import DASH, TONES, change, evidence, hyper, interval, number, signed, spread
from torchstone.bench.result import Result
from torchstone.bench.statistics.verdict import Verdict
from torchstone.catalogue import papers

__all__ = [
    "ArmLine",
    "ClaimLine",
    "arm_lines",
    "claim_lines",
    "command_of",
    "in_plain_words",
    "notes",
    "state",
    "tuning_lines",
    "unfinished",
]


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
    judgement: Judgement


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
        judgement=j,
    )


def in_plain_words(j: Judgement) -> str:
    """What a verdict means, in one sentence for a reader who knows no statistics."""
    held, times = f"{sum(j.scores):.4g} of {j.n}", f"{j.n} time{'s' * (j.n != 1)}"
    often = f"The claim held in {held} repetitions, each with fresh random choices"
    match j.verdict:
        case Verdict.REPRODUCED:
            return f"{often}: too often to be luck and, as far as these runs can tell, often enough to matter."
        case Verdict.NOT_MEANINGFUL:
            return f"{often}: too often to be luck, but too rarely to matter in a single run."
        case Verdict.NOT_SIGNIFICANT:
            return f"{often}: {'luck' if j.decided else 'so far luck'} alone can do that, in either direction."
        case Verdict.REFUTED if j.claim.always:
            return f"The claim says what must always be so, and it was put to the test {times}: once was not so."
        case Verdict.REFUTED:
            return f"{often}: mostly it is the other way round."
        case Verdict.HOLDS:
            return f"The claim says what must always be so, was put to the test {times}, and never failed."
        case Verdict.PREMISE_NOT_MET:
            return "What the claim takes for granted did not happen here, so the claim itself was not put to the test."
        case Verdict.DEGENERATE:
            return "Both sides came out the same every time, so this test cannot tell them apart."
        case Verdict.TOO_FEW:
            return f"The claim was put to the test {times}: too few to say anything."
        case Verdict.NOT_RUN:
            return "Nothing was run, so nothing is known."


def unfinished(result: Result) -> list[str]:
    """How far those experiments are in which more replicates could change a verdict; empty if all are settled."""
    if result.scale == "smoke":  # runs a single replicate and never gives a verdict
        return []
    found = []
    for experiment in result.study.experiments:
        name, most = experiment.name, experiment.replicates[1]
        count = len(result.rows.get(name, ()))
        open_claims = [j for j in result.judgements if j.experiment == name and not j.decided]
        if open_claims and name not in result.not_run and count < most:
            found.append(f"{name}: {count} of {'at most ' * (not experiment.fixed)}{most} replicates")
    return found


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


def command_of(result: Result) -> str:
    """How to run the study again, where nobody says which command it was."""
    place = result.store.removeprefix("sqlite:///")
    if result.study.name in {row.slug for row in papers()}:
        return shlex.join(["torchstone", "run", result.study.name, "--scale", result.scale, "--store", place])
    return f"torchstone.run(study, scale={result.scale!r}, store={place!r})  # or the same call of torchstone.compare"
