from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torchstone.bench.statistics import compare, probability_of_outperforming
from torchstone.bench.statistics.intervals import mean_interval
from torchstone.bench.statistics.verdict import Verdict

A = (0.912, 0.905, 0.921, 0.917, 0.909, 0.915, 0.920, 0.913, 0.918, 0.911)
B = (0.905, 0.907, 0.912, 0.910, 0.908, 0.906, 0.915, 0.909, 0.911, 0.904)

small_scores = st.lists(st.integers(0, 6), min_size=2, max_size=9)
pairs_of_scores = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n)] * 2)
)


# ------------------------------------------------------------------ P(A > B)


def test_known_probabilities():
    assert probability_of_outperforming(A, B) == 0.9
    assert probability_of_outperforming(A, B, paired=False) == pytest.approx(0.815, abs=1e-12)


def test_several_data_sets_are_averaged_not_pooled():
    """The unit case of rliable: three runs against four on two data sets."""
    x, y = [[1, 2], [2, 2], [1, 1], [2, 1]], [[1, 1], [2, 2], [3, 3]]
    assert probability_of_outperforming(x, y, paired=False) == pytest.approx(1 / 3, abs=1e-12)
    scaled = np.array(y) * [1, 100], np.array(x) * [1, 100]
    assert probability_of_outperforming(*scaled, paired=False) == pytest.approx(2 / 3, abs=1e-12)


@given(pairs_of_scores, st.booleans())
@settings(deadline=None, max_examples=50)
def test_the_two_directions_add_up_and_only_order_matters(scores, paired):
    a, b = scores
    p = probability_of_outperforming(a, b, paired)
    assert p + probability_of_outperforming(b, a, paired) == pytest.approx(1, abs=1e-12)
    assert p == probability_of_outperforming(np.exp(a), np.exp(b), paired)
    literal = [(x > y) + (x == y) / 2 for x, y in (zip(a, b, strict=True) if paired else product(a, b))]
    assert p == pytest.approx(np.mean(literal), abs=1e-12)


@given(small_scores, small_scores)
@settings(deadline=None, max_examples=30)
def test_unpaired_probability_is_mann_whitneys_u(a, b):
    u = stats.mannwhitneyu(a, b)[0] if np.ptp(a + b) else len(a) * len(b) / 2
    assert probability_of_outperforming(a, b, paired=False) == pytest.approx(u / len(a) / len(b), abs=1e-12)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda x: torch.tensor(x, requires_grad=True)])
def test_scores_come_as_people_hold_them(kind):
    assert probability_of_outperforming(kind(A), kind(B)) == 0.9


def test_pandas_columns_are_scores():
    import pandas as pd

    assert probability_of_outperforming(pd.Series(A), pd.Series(B, index=range(10, 20))) == 0.9


def test_mappings_are_matched_by_replicate():
    a, b = dict(enumerate(A)), dict(reversed(list(enumerate(B))))
    assert probability_of_outperforming(a, b) == 0.9
    del b[3]
    result = compare(a, b)
    assert (result.n, result.unmatched, result.wins) == ((9, 9), 1, 8)


# ------------------------------------------------------------------ compare


def test_known_comparison():
    result = compare(A, B)
    assert result.p == 0.9
    assert result.ci == pytest.approx((0.7, 1.0))
    assert result.p_value == result.wilcoxon_p == 0.005859375
    assert round(result.effect.d, 5) == 1.52803
    assert result.effect.cliffs_delta == pytest.approx(0.63, abs=1e-12)
    assert result.effect.mean_difference == pytest.approx(0.0054)
    assert result.effect.mean_difference_ci == pytest.approx((0.0032, 0.0073), abs=1.01e-4)
    assert (result.wins, result.ties, result.losses, result.n) == (9, 0, 1, (10, 10))
    assert 2 * result.one_sided_p == 0.021484375
    assert result.verdict == Verdict.REPRODUCED
    assert compare(B, A).verdict == Verdict.REFUTED


def test_known_unpaired_comparison():
    result = compare(A, B, paired=False)
    assert result.p == pytest.approx(0.815)
    assert (result.wins, result.ties, result.losses) == (79, 5, 16)
    expected = stats.bootstrap(
        (A, B),
        lambda a, b, axis: (
            ((a[..., :, None] > b[..., None, :]).mean((-1, -2)) + (a[..., :, None] >= b[..., None, :]).mean((-1, -2)))
            / 2
        ),
        method="percentile",
        vectorized=True,
        n_resamples=2000,
        rng=0,
        batch=500,
    ).confidence_interval
    assert result.ci == pytest.approx(tuple(expected), abs=0.02)
    assert result.p_value == pytest.approx(stats.mannwhitneyu(A, B)[1], rel=0.05)
    assert result.verdict == Verdict.REPRODUCED
    assert compare(A, B[:8], paired=False).n == (10, 8)


@given(pairs_of_scores)
@settings(deadline=None, max_examples=30)
def test_swapping_the_arms_mirrors_the_comparison(scores):
    ours, theirs = compare(*scores), compare(*reversed(scores))
    mirror = {Verdict.REPRODUCED: Verdict.REFUTED, Verdict.REFUTED: Verdict.REPRODUCED}
    assert theirs.verdict == mirror.get(ours.verdict, ours.verdict)
    assert ours.p + theirs.p == pytest.approx(1)
    assert ours.ci == pytest.approx(tuple(1 - end for end in reversed(theirs.ci)))
    assert ours.p_value == pytest.approx(theirs.p_value)
    assert ours.effect.mean_difference == pytest.approx(-theirs.effect.mean_difference)
    assert ours.effect.cliffs_delta == pytest.approx(-theirs.effect.cliffs_delta)


@given(pairs_of_scores)
@settings(deadline=None, max_examples=20)
def test_the_verdict_of_superiority_depends_on_order_alone(scores):
    a, b = scores
    assert compare(a, b).verdict == compare(np.exp(a), np.exp(b)).verdict


def _with_wins(wins, n):
    return np.arange(n) + np.where(np.arange(n) < wins, 0.5, -0.5), np.arange(n) * 1.0


@pytest.mark.parametrize(
    ("wins", "n", "verdict"),
    [
        (20, 29, Verdict.REPRODUCED),
        (19, 29, Verdict.NOT_SIGNIFICANT),
        (9, 29, Verdict.REFUTED),
        (62, 100, Verdict.NOT_MEANINGFUL),
        (6, 7, Verdict.NOT_SIGNIFICANT),
        (5, 5, Verdict.TOO_FEW),
    ],
)
def test_verdicts_by_the_number_of_wins(wins, n, verdict):
    assert compare(*_with_wins(wins, n)).verdict == verdict


def test_scores_that_never_differ_are_degenerate():
    for paired in (True, False):
        result = compare([0.5] * 8, [0.5] * 8, paired=paired)
        assert (result.verdict, result.p, result.p_value) == (Verdict.DEGENERATE, 0.5, 1.0)
    assert compare(A, A).verdict == Verdict.DEGENERATE
    assert compare([1, 1], [1, 1]).verdict == Verdict.TOO_FEW


def test_constant_but_different_scores_are_no_tie():
    result = compare([0.9] * 8, [0.8] * 8)
    assert (result.verdict, result.p, result.effect.d) == (Verdict.REPRODUCED, 1.0, math.inf)


def test_non_inferiority_needs_both_the_wins_and_the_mean():
    rng = np.random.default_rng(0)
    b = rng.normal(0.9, 0.01, size=29)
    a = b + rng.normal(-0.002, 0.004, size=29)
    assert compare(a, b).verdict in (Verdict.NOT_SIGNIFICANT, Verdict.REFUTED)
    result = compare(a, b, claim="noninferior", delta=0.01)
    assert result.verdict == Verdict.REPRODUCED
    assert result.p == np.mean(a > b - 0.01)
    rare_disasters = b + np.where(np.arange(29) < 5, -0.5, 0.001)
    assert compare(rare_disasters, b, claim="noninferior", delta=0.01).verdict == Verdict.NOT_SIGNIFICANT
    assert compare(b - 0.05, b, claim="noninferior", delta=0.01).verdict == Verdict.REFUTED


def test_equivalence():
    rng = np.random.default_rng(0)
    b = rng.normal(0.9, 0.01, size=20)
    a = b + rng.normal(0, 0.004, size=20)
    result = compare(a, b, claim="equivalent", delta=0.01)
    assert result.verdict == Verdict.REPRODUCED
    d = a - b
    bounds = [stats.ttest_1samp(d, -0.01, alternative="greater"), stats.ttest_1samp(d, 0.01, alternative="less")]
    assert result.p_value == pytest.approx(np.array(bounds)[:, 1].max(), rel=1e-9)
    assert compare(a, b, claim="equivalent", delta=0.001).verdict == Verdict.NOT_SIGNIFICANT
    assert compare(a + 0.05, b, claim="equivalent", delta=0.01).verdict == Verdict.REFUTED
    assert compare(a, b, paired=False, claim="equivalent", delta=0.02).verdict == Verdict.REPRODUCED
    assert compare(b, b, claim="equivalent", delta=0.001).verdict == Verdict.REPRODUCED
    assert compare(a[:5], b[:5], claim="equivalent", delta=1.0).verdict == Verdict.TOO_FEW


def test_unpaired_equivalence_uses_welchs_t():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.01, 0.1, size=12), rng.normal(0, 0.3, size=20)
    result = compare(a, b, paired=False, claim="equivalent", delta=0.5)
    bounds = [
        stats.ttest_ind(a, b - 0.5, equal_var=False, alternative="greater"),
        stats.ttest_ind(a, b + 0.5, equal_var=False, alternative="less"),
    ]
    assert result.p_value == pytest.approx(np.array(bounds)[:, 1].max(), rel=1e-9)


def test_ratio():
    rng = np.random.default_rng(0)
    b = rng.lognormal(0, 0.1, size=15)
    a = b * rng.lognormal(math.log(1.5), 0.1, size=15)
    result = compare(a, b, claim="ratio")
    assert result.verdict == Verdict.REPRODUCED
    assert result.effect.ratio == pytest.approx(stats.gmean(a / b))
    assert result.effect.ratio_ci == pytest.approx(tuple(np.exp(mean_interval(np.log(a / b)))))
    assert compare(a, b, claim="ratio", delta=1.5).verdict == Verdict.NOT_SIGNIFICANT
    assert compare(a, b, claim="ratio", delta=2.0).verdict == Verdict.REFUTED
    with pytest.raises(ValueError, match=r"arm 'b' has 0 in replicate 1"):
        compare([1, 2, 3], [1, 0, 1], claim="ratio")


def test_several_data_sets_paired():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(12, 3)) * [1, 10, 100]
    a = b + np.array([1, 10, -100])  # ahead on two of three, everywhere
    result = compare(a, b)
    assert result.p == pytest.approx(2 / 3)
    assert result.ci == pytest.approx((2 / 3, 2 / 3))
    assert (result.wins, result.losses) == (24, 12)
    assert math.isnan(result.wilcoxon_p)
    assert math.isnan(result.effect.d)  # infinite in both directions
    assert result.verdict == Verdict.NOT_SIGNIFICANT  # 8 of 12 wins by the sign test
    assert compare(b + np.array([1, 10, 100]), b).verdict == Verdict.REPRODUCED


@pytest.mark.parametrize("paired", [True, False])
def test_data_sets_are_resampled_independently(paired):
    a, b = np.random.default_rng(0).normal(size=(2, 20))
    one, four = (
        compare(np.stack([a] * copies, axis=1), np.stack([b] * copies, axis=1), paired=paired) for copies in (1, 4)
    )
    widths = [np.diff(result.effect.mean_difference_ci)[0] for result in (one, four)]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.05)
    assert np.diff(four.ci)[0] == pytest.approx(np.diff(one.ci)[0] / 2, rel=0.15)


def test_several_data_sets_unpaired():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.5, 1, size=(12, 3)), rng.normal(size=(9, 3))
    result = compare(a, b, paired=False)
    assert result.verdict == Verdict.REPRODUCED
    assert result.n == (12, 9)
    assert result.p == pytest.approx(np.mean([probability_of_outperforming(a[:, d], b[:, d], False) for d in range(3)]))


@pytest.mark.parametrize(
    ("claim", "paired", "shift", "delta"),
    [
        ("superior", True, 0.0, None),
        ("superior", False, 0.0, None),
        ("noninferior", True, -1.0, 1.0),
        ("equivalent", True, 1.0, 1.0),
        ("ratio", True, 0.0, None),
    ],
)
def test_a_claim_that_is_just_not_true_is_rarely_reproduced(claim, paired, shift, delta):
    rng = np.random.default_rng(7)
    studies = 150 if paired else 60
    runs = rng.normal(10, 1, size=(studies, 2, 12))
    verdicts = [compare(a + shift, b, paired=paired, claim=claim, delta=delta).verdict for a, b in runs]
    assert verdicts.count(Verdict.REPRODUCED) / studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.parametrize(
    ("a", "b", "kwargs", "message"),
    [
        ([1, math.nan, 2], [1, 2, 3], {}, r"arm 'a', replicate 1, is nan"),
        ([1, 2, 3], [1, 2, math.inf], {}, r"arm 'b', replicate 2, is inf"),
        ([[1, 2], [3, math.nan]], [[1, 2], [3, 4]], {}, r"replicate 1, data set 1, is nan"),
        ([1, 2, 3], [1, 2], {}, "replicate id"),
        ([1], [2], {}, "arm 'a' has 1 replicate, and at least 2"),
        ({0: 1.0, 1: 2.0}, {1: 1.0, 2: 2.0}, {}, "1 replicates in common"),
        ([[1, 2], [3, 4]], [1, 2], {}, "same data sets"),
        ([[[1]]], [1, 2], {}, "shape"),
        ([1, 2], [1, 2], {"claim": "better"}, "claim must be one of"),
        ([1, 2], [1, 2], {"claim": "equivalent"}, "needs delta"),
        ([1, 2], [1, 2], {"claim": "noninferior", "delta": 0.0}, "delta"),
        ([1, 2], [1, 2], {"delta": 0.1}, "delta has no meaning"),
        ([1, 2], [1, 2], {"gamma": 1.0}, "gamma"),
        ([1, 2], [1, 2], {"alpha": 0.0}, "alpha"),
    ],
)
def test_unusable_comparisons_are_refused(a, b, kwargs, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b, **kwargs)


def test_scores_must_be_numbers():
    with pytest.raises(TypeError, match="arm 'a' must be a rectangle of numbers"):
        compare(["x", "y"], [1, 2])


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 10))
    assert compare(a, b, paired=False) == compare(a, b, paired=False)
    assert compare(a, b, paired=False, seed=1).ci != compare(a, b, paired=False, seed=2).ci
