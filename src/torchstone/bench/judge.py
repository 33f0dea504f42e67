"""From rows to verdicts: a pure function, so that a study can be judged without training anything.

Every claim is a score in [0, 1] per replicate (:mod:`torchstone.bench.claims`). A statistical claim asks whether the
arm is ahead more often than not, and meaningfully so; :mod:`torchstone.bench.statistics.sequential` decides that while
replicates come in. A claim with ``always=True`` is a theorem: one counterexample refutes it, no number proves it.
Premises are judged first; where one does not hold, the other claims of its experiment mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchstone.bench.claims import Claim
from torchstone.bench.outcome import Row, complete_prefix
from torchstone.bench.statistics.intervals import mean_interval
from torchstone.bench.statistics.sequential import decide
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Experiment, Study

__all__ = ["Judgement", "judge", "judge_experiment", "settled"]

_PREMISE_HOLDS = (Verdict.REPRODUCED, Verdict.HOLDS)


@dataclass(frozen=True)
class Judgement:
    """What the rows say about one claim.

    Args:
        study: name of the study.
        experiment: name of the experiment.
        claim: the claim.
        premise: whether it is a premise of the experiment.
        verdict: the verdict.
        decided: whether further replicates can no longer change it.
        reason: why this verdict, in one sentence.
        n: replicates that count: up to the one at which the claim was decided.
        estimate: mean score, the estimated probability that the claim holds in a replicate.
        interval: 95 % interval of that probability, valid at any stopping time.
        e_value: evidence for the claim (against "no more often than not").
        e_against: evidence for the opposite.
        effect: mean difference between the two sides over the replicates.
        effect_interval: 95 % percentile bootstrap interval of ``effect``.
        scores: the score of every counted replicate.
        excluded: replicates in which the claim did not apply.
        diverged: replicates in which one of its arms diverged.
    """

    study: str
    experiment: str
    claim: Claim
    premise: bool
    verdict: Verdict
    decided: bool
    reason: str
    n: int = 0
    estimate: float = float("nan")
    interval: tuple[float, float] = (0.0, 1.0)
    e_value: float = 1.0
    e_against: float = 1.0
    effect: float = float("nan")
    effect_interval: tuple[float, float] = (float("nan"), float("nan"))
    scores: tuple[float, ...] = ()
    excluded: int = 0
    diverged: int = 0


def judge(
    study: Study,
    rows: Mapping[str, Sequence[Row]],
    *,
    e_threshold: float = 20.0,
    not_run: Mapping[str, str] | None = None,
) -> tuple[Judgement, ...]:
    """Judge every premise and claim of a study.

    Args:
        study: the study.
        rows: experiment name -> its complete rows; only the prefix 0, 1, 2, ... counts.
        e_threshold: evidence at which a claim is decided early (20; 100 for published evidence).
        not_run: experiment name -> why it was not run.

    Raises:
        UnknownNameError: if ``rows`` names an experiment that the study does not have.
    """
    for name in rows:
        study.experiment(name)
    judgements: list[Judgement] = []
    for experiment in study.experiments:
        reason = (not_run or {}).get(experiment.name, "")
        judgements += judge_experiment(study.name, experiment, rows.get(experiment.name, ()), e_threshold, reason)
    return tuple(judgements)


def judge_experiment(
    study: str,
    experiment: Experiment,
    rows: Sequence[Row],
    e_threshold: float = 20.0,
    not_run: str = "",
    *,
    describe: bool = True,
) -> list[Judgement]:
    """Judge the premises, then the claims, of one experiment; without ``describe`` leave out the effect sizes."""
    prefix = complete_prefix(rows)[: experiment.replicates[1]]
    if not prefix:
        reason = not_run or "no replicate is complete"
        verdict = Verdict.NOT_RUN
        return [
            Judgement(study, experiment.name, claim, premise, verdict, bool(not_run), reason)
            for premise, claim in _all_claims(experiment)
        ]
    judgements = [
        _judge_claim(study, experiment, claim, premise, prefix, e_threshold, describe)
        for premise, claim in _all_claims(experiment)
    ]
    broken = next((j for j in judgements if j.premise and j.verdict not in _PREMISE_HOLDS), None)
    if broken is None:
        return judgements
    # A premise that is merely undecided leaves the claims undecided too; one that failed takes their meaning away.
    waiting = broken.verdict == Verdict.TOO_FEW
    verdict = Verdict.TOO_FEW if waiting else Verdict.PREMISE_NOT_MET
    reason = f"the premise '{broken.claim.sentence()}' came out: {broken.verdict}"
    return [j if j.premise else replace(j, verdict=verdict, decided=broken.decided, reason=reason) for j in judgements]


def settled(judgements: Sequence[Judgement]) -> bool:
    """Whether no further replicate can change any verdict."""
    return all(judgement.decided for judgement in judgements)


def _all_claims(experiment: Experiment) -> list[tuple[bool, Claim]]:
    return [(True, claim) for claim in experiment.premises] + [(False, claim) for claim in experiment.claims]


def _judge_claim(
    study: str,
    experiment: Experiment,
    claim: Claim,
    premise: bool,
    rows: Sequence[Row],
    e_threshold: float,
    describe: bool,
) -> Judgement:
    scores = np.array([claim.w(row) for row in rows])
    applicable = scores[~np.isnan(scores)]
    effect, effect_interval = _effect(claim, rows if describe else [])
    common = Judgement(
        study,
        experiment.name,
        claim,
        premise,
        Verdict.NOT_RUN,
        decided=False,
        reason="",
        n=int(applicable.size),
        effect=effect,
        effect_interval=effect_interval,
        scores=tuple(float(score) for score in applicable),
        excluded=int(scores.size - applicable.size),
        diverged=sum(_any_diverged(claim, row) for row in rows),
    )
    if claim.always:
        return _judge_theorem(common, experiment, rows)
    low, high = experiment.replicates
    decision = decide(scores, n_max=high, n_min=low, e_threshold=e_threshold, fixed=experiment.fixed)
    return replace(
        common,
        verdict=decision.verdict,
        decided=decision.stopped,
        reason=decision.reason,
        n=decision.n,
        scores=common.scores[: decision.n],
        estimate=decision.estimate,
        interval=decision.interval,
        e_value=decision.e_ahead,
        e_against=decision.e_behind,
    )


def _judge_theorem(common: Judgement, experiment: Experiment, rows: Sequence[Row]) -> Judgement:
    """Counterexamples are looked for in every case and element: a mean over them would hide one."""
    if not common.n:
        return replace(common, verdict=Verdict.TOO_FEW, reason="it applied in no replicate")
    estimate = float(np.mean(common.scores))
    for row in rows:
        if (common.claim.scores(row) < 0.5).any():  # NaN compares false: not applicable is no counterexample
            reason = f"replicate {row.replicate} is a counterexample"
            return replace(common, verdict=Verdict.REFUTED, decided=True, reason=reason, estimate=estimate)
    reason = f"no counterexample in {common.n} replicate{'s' * (common.n != 1)}"
    enough = len(rows) >= experiment.replicates[0]
    return replace(common, verdict=Verdict.HOLDS, decided=enough, reason=reason, estimate=estimate)


def _any_diverged(claim: Claim, row: Row) -> bool:
    if not claim.arm:
        return row.any_diverged
    cases = claim.cases or row.cases_of(*claim.arms)
    return any(row.diverged(arm, case) for arm in claim.arms for case in cases)


def _effect(claim: Claim, rows: Sequence[Row]) -> tuple[float, tuple[float, float]]:
    """Mean effect over the replicates with its percentile bootstrap interval (description, never a verdict)."""
    effects = np.array([claim.effect(row) for row in rows])
    effects = effects[~np.isnan(effects)]
    if effects.size < 2:
        return (float(effects[0]) if effects.size else float("nan")), (float("nan"), float("nan"))
    return float(effects.mean()), mean_interval(effects)
