from __future__ import annotations

import copy
import json
import pickle

import pytest

from torchstone.bench.statistics.verdict import Verdict

WORDS = [
    "reproduced",
    "holds",
    "significant, not meaningful",
    "not significant",
    "refuted",
    "premise not met",
    "degenerate",
    "too few replicates",
    "not run",
]


def test_the_words_are_exactly_these():
    assert [str(verdict) for verdict in Verdict] == WORDS
    assert [Verdict(word) for word in WORDS] == list(Verdict)


@pytest.mark.parametrize("verdict", Verdict)
def test_each_has_a_meaning_of_one_sentence(verdict):
    assert verdict.meaning[0].isupper()
    assert verdict.meaning.endswith(".")
    assert verdict.meaning.count(".") == 1


def test_meanings_differ():
    assert len({verdict.meaning for verdict in Verdict}) == len(Verdict)


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_is_its_text_wherever_it_goes(verdict):
    assert json.loads(json.dumps({"verdict": verdict})) == {"verdict": str(verdict)}
    assert pickle.loads(pickle.dumps(verdict)) is verdict
    assert copy.deepcopy(verdict) is verdict
    assert f"{verdict}" == verdict.value


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="inconclusive"):
        Verdict("inconclusive")
