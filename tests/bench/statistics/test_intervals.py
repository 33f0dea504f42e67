from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torchstone.bench.statistics.intervals import mean_interval, percentile_interval, rank_interval, resampled_means
from torchstone.bench.statistics.multiplicity import adjust
from torchstone.bench.statistics.significance import rank_sum_test, sign_flip_test, sign_test, signed_rank_test

A = (0.912, 0.905, 0.921, 0.917, 0.909, 0.915, 0.920, 0.913, 0.918, 0.911)
B = (0.905, 0.907, 0.912, 0.910, 0.908, 0.906, 0.915, 0.909, 0.911, 0.904)
DIFFERENCES = np.subtract(A, B)


# ------------------------------------------------------------------ intervals


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(20, 29, 0.5172, 0.8621), (24, 29, 0.6897, 0.9655), (15, 20, 0.55, 0.9), (9, 10, 0.7, 1.0), (62, 100, 0.52, 0.71)],
)
def test_known_percentile_intervals(wins, n, low, high):
    w = [1.0] * wins + [0.0] * (n - wins)
    assert [round(end, 4) for end in percentile_interval(w)] == [low, high]
    drawn = np.quantile(resampled_means(np.array(w)), [0.025, 0.975])
    assert np.abs(drawn - [low, high]).max() <= 1 / n + 1e-4  # one lattice step


def test_percentile_interval_without_ties_is_binomial():
    for n in (1, 2, 6, 29, 200):
        for wins in range(0, n + 1, 1 + n // 40):
            expected = stats.binom.ppf([0.025, 0.975], n, wins / n) / n
            assert percentile_interval(np.arange(n) < wins) == tuple(expected)


@pytest.mark.parametrize("strata", [1, 3])
def test_percentile_interval_with_ties_is_what_drawing_tends_to(strata):
    rng = np.random.default_rng(5)
    w = [rng.choice([0, 0.5, 1], size=20, p=[0.3, 0.3, 0.4]) for _ in range(strata)]
    picked = rng.integers(20, size=(strata, 100_000, 20))
    means = np.mean([x[i].mean(axis=1) for x, i in zip(w, picked, strict=True)], axis=0)
    np.testing.assert_allclose(percentile_interval(*w), np.quantile(means, [0.025, 0.975]), atol=1.01 / (40 * strata))


def test_percentile_interval_draws_where_there_is_no_grid():
    w = np.random.default_rng(0).random(25)
    expected = stats.bootstrap((w,), np.mean, method="percentile", rng=1).confidence_interval
    np.testing.assert_allclose(percentile_interval(w), expected, atol=0.01)


def test_known_mean_intervals():
    np.testing.assert_allclose(mean_interval(DIFFERENCES), [0.0032, 0.0073], atol=1.01e-4)
    np.testing.assert_allclose(mean_interval(DIFFERENCES, method="bca"), [0.0027, 0.0071], atol=1.01e-4)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_mean_interval_agrees_with_scipy(method):
    x = np.random.default_rng(2).exponential(size=30)
    expected = stats.bootstrap((x,), np.mean, method=method, rng=3).confidence_interval
    np.testing.assert_allclose(mean_interval(x, method=method), expected, atol=0.02)


def test_means_of_long_samples_are_resampled_in_pieces():
    x = np.random.default_rng(0).normal(size=(3000, 2))
    means = resampled_means(x, draws=2000)
    assert means.shape == (2000, 2)
    np.testing.assert_allclose(means.mean(axis=0), x.mean(axis=0), atol=0.002)
    np.testing.assert_allclose(means.std(axis=0), 1 / math.sqrt(3000), rtol=0.06)


def test_rank_interval_agrees_with_resampling_by_hand():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 8, size=15) + 1.0, rng.integers(0, 8, size=12) + 0.0
    draws = []
    for _ in range(4000):
        x, y = rng.choice(a, 15), rng.choice(b, 12)
        draws.append(((x[:, None] > y).mean() + (x[:, None] >= y).mean()) / 2)
    np.testing.assert_allclose(rank_interval((a, b)), np.quantile(draws, [0.025, 0.975]), atol=0.02)
    narrower = rank_interval((a, b), (a, b), (a, b), (a, b))
    assert np.diff(narrower)[0] == pytest.approx(np.diff(rank_interval((a, b)))[0] / 2, rel=0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: percentile_interval([]),
        lambda: percentile_interval(),
        lambda: percentile_interval([1.0], alpha=0.0),
        lambda: mean_interval([]),
        lambda: mean_interval([1.0, 2.0], method="normal"),
        lambda: rank_interval(),
        lambda: rank_interval(([], [1.0])),
        lambda: resampled_means(np.ones((0, 2))),
    ],
)
def test_unusable_samples_have_no_interval(call):
    with pytest.raises(ValueError, match=r"must|method"):
        call()


# ------------------------------------------------------------------ tests


def test_known_p_values():
    assert sign_flip_test(DIFFERENCES) == 0.005859375
    assert signed_rank_test(DIFFERENCES) == 0.005859375
    assert 2 * sign_test(9, 10) == 0.021484375


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
@settings(deadline=None, max_examples=50)
def test_sign_flips_are_counted_exactly(d):
    d = np.array(d, float)
    sums = [abs(np.dot(signs, d)) for signs in product([-1, 1], repeat=len(d))]
    assert sign_flip_test(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum())), abs=1e-12)


def test_sign_flips_are_drawn_beyond_thirty_and_normal_beyond_a_thousand():
    rng = np.random.default_rng(0)
    d = rng.normal(0.3, 1, size=31)
    assert sign_flip_test(d) == pytest.approx(sign_flip_test(d[:30]), rel=0.5)
    assert sign_flip_test(d) == pytest.approx(stats.ttest_1samp(d, 0)[1], rel=0.25)
    long = rng.normal(0.05, 1, size=1500)
    assert sign_flip_test(long) == pytest.approx(stats.ttest_1samp(long, 0)[1], rel=0.05)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
@settings(deadline=None, max_examples=50)
def test_signed_ranks_are_exact_with_ties(d):
    d = np.array([x for x in d if x] or [1], float)
    ranks = stats.rankdata(np.abs(d))
    sums = np.array([np.dot(signs, ranks) for signs in product([0, 1], repeat=len(d))])
    seen = ranks[d > 0].sum()
    expected = min(1, 2 * min(np.mean(sums >= seen - 1e-9), np.mean(sums <= seen + 1e-9)))
    assert signed_rank_test(d) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [5, 29, 50])
def test_signed_ranks_agree_with_scipy(n):
    d = np.random.default_rng(n).normal(0.2, 1, size=n)
    assert signed_rank_test(d) == pytest.approx(stats.wilcoxon(d, method="exact")[1], rel=1e-12)


def test_signed_ranks_are_normal_beyond_a_hundred_and_blind_to_zeros():
    d = np.random.default_rng(0).normal(0.1, 1, size=150)
    assert signed_rank_test(d) == pytest.approx(stats.wilcoxon(d, method="approx")[1], rel=1e-9)
    assert signed_rank_test([0.0, 1.0, 0.0, 2.0]) == signed_rank_test([1.0, 2.0])
    assert signed_rank_test([0.0, 0.0]) == 1.0


def test_rank_sums_agree_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, size=12), rng.normal(size=9)
    samples = [
        (a, b, "exact"),
        (a.round(), b.round(), "asymptotic"),
        (np.repeat(a, 20), np.repeat(b, 20), "asymptotic"),
    ]
    for x, y, method in samples:
        expected = [stats.mannwhitneyu(x, y, alternative=side, method=method)[1] for side in ("greater", "less")]
        assert rank_sum_test((x, y)) == pytest.approx(expected, rel=1e-12)
    assert rank_sum_test(([1.0, 1.0], [1.0])) == (1.0, 1.0)


def test_rank_sums_of_several_data_sets_are_calibrated():
    rng = np.random.default_rng(0)
    p = [
        rank_sum_test(*[tuple(rng.integers(0, 9, size=(2, 8)).astype(float)) for _ in range(4)])[0] for _ in range(400)
    ]
    assert stats.kstest(p, "uniform")[1] > 0.01


def test_ties_narrow_the_rank_sum_of_several_data_sets():
    a, b = np.array([1, 1, 1, 1, 0, 1, 1.0]), np.array([0, 1, 0, 0, 1, 0.0])
    one = stats.mannwhitneyu(a, b, alternative="greater", method="asymptotic", use_continuity=False)[1]
    twice = stats.norm.sf(math.sqrt(2) * stats.norm.isf(one))
    assert rank_sum_test((a, b), (a, b))[0] == pytest.approx(twice, rel=1e-9)


def test_known_adjustments():
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.01, 0.04, 0.03, 0.005], "bh") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert (adjust([40, 25, 3, 100, 1.2], "e-bh") <= 0.05).tolist() == [False, False, False, True, False]


def test_adjustments_agree_with_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(40).round(2) ** 2  # some are equal
    assert adjust(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert adjust(p, "bh") == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_adjustments_equal_the_stepwise_procedures(p):
    m, order = len(p), np.argsort(p)
    holm, bh = np.empty(m), np.empty(m)
    for i in range(m):
        holm[order[i]] = min(1, max((m - j) * p[order[j]] for j in range(i + 1)))
        bh[order[i]] = min(1, min(m / (j + 1) * p[order[j]] for j in range(i, m)))
    assert adjust(p) == pytest.approx(holm, abs=1e-12)
    assert adjust(p, "bh") == pytest.approx(bh, abs=1e-12)
    assert adjust(p, "bh") == pytest.approx(stats.false_discovery_control(p), abs=1e-12)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_e_bh_rejects_the_k_largest_that_reach_m_over_k_alpha(e):
    m, ordered = len(e), sorted(e, reverse=True)
    k = max((k for k in range(1, m + 1) if k * ordered[k - 1] >= 20 * m), default=0)
    rejected = adjust(e, "e-bh") <= 0.05 + 1e-12
    assert rejected.sum() == k
    assert sorted((e[i] for i in np.flatnonzero(rejected)), reverse=True) == ordered[:k]


@pytest.mark.parametrize(
    ("p", "method", "message"),
    [
        ([0.1, 1.2], "holm", "number 1 is 1.2"),
        ([math.nan], "bh", "number 0 is nan"),
        ([-1], "e-bh", "e-values"),
        ([[0.1]], "holm", "shape"),
        ([0.1], "bonferroni", "method must be one of"),
    ],
)
def test_bad_families_are_refused(p, method, message):
    with pytest.raises(ValueError, match=message):
        adjust(p, method)
