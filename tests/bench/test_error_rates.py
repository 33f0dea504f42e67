"""How often whole studies come out wrong: exactly, and in simulated studies that are judged as real ones are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from tests.fakes import rows, two_arm_study
from torchstone.bench.judge import Judgement, judge, judge_experiment, settled
from torchstone.bench.outcome import Row
from torchstone.bench.statistics.sequential import operating_characteristics
from torchstone.bench.statistics.verdict import Verdict

STUDY = two_arm_study()
EXPERIMENT = STUDY.experiments[0]
STUDIES = 1000


@cache
def simulated(p: float) -> list[Sequence[Row]]:
    """Studies in which the method is ahead with probability ``p`` in each replicate."""
    ahead = np.random.default_rng(1).random((STUDIES, EXPERIMENT.replicates[1])) < p
    return [rows(EXPERIMENT, *({"method": float(win), "baseline": 0.5} for win in wins)) for wins in ahead]


def as_they_stop(studies: Sequence[Sequence[Row]]) -> list[Judgement]:
    """The judgement of each, which counts no replicate after the one at which the study was settled."""
    return [judge(STUDY, {"main": study})[0] for study in studies]


def one_by_one(study: Sequence[Row]) -> Judgement:
    """The judgement when replicates come in one at a time until every claim is settled."""
    for number in range(1, len(study) + 1):
        judgements = judge_experiment("fake", EXPERIMENT, study[:number], describe=False)
        if settled(judgements):
            return judgements[0]
    raise AssertionError("the last replicate settles every claim")


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_judging_all_at_once_is_judging_one_by_one(p: float) -> None:
    for study, judgement in zip(simulated(p)[:25], as_they_stop(simulated(p)[:25]), strict=True):
        alone = one_by_one(study)
        assert (alone.verdict, alone.n, alone.e_value) == (judgement.verdict, judgement.n, judgement.e_value)


def test_of_1000_studies_without_an_effect_at_most_67_find_one() -> None:
    exact = operating_characteristics(29, 0.5)
    assert max(exact.ahead, exact.behind) <= 0.05
    verdicts = [judgement.verdict for judgement in as_they_stop(simulated(0.5))]
    assert set(verdicts) == {Verdict.REPRODUCED, Verdict.REFUTED, Verdict.NOT_SIGNIFICANT}
    assert verdicts.count(Verdict.REPRODUCED) <= 67
    assert verdicts.count(Verdict.REFUTED) <= 67


def test_an_effect_in_nine_of_ten_replicates_is_found_after_ten() -> None:
    exact = operating_characteristics(29, 0.9)
    assert exact.ahead > 0.99
    assert exact.expected_n <= 10.1
    judgements = as_they_stop(simulated(0.9))
    found = [judgement.verdict == Verdict.REPRODUCED for judgement in judgements]
    assert np.mean(found) > 0.99
    assert np.mean([judgement.n for judgement in judgements]) == pytest.approx(exact.expected_n, abs=0.4)
