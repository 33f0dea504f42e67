from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torchstone.bench.statistics import probability_of_outperforming
from torchstone.bench.statistics.aggregate import aggregate_scores, performance_profile
from torchstone.bench.statistics.multiplicity import adjust
from torchstone.bench.statistics.ranking import critical_difference, friedman, rank_methods
from torchstone.bench.statistics.trend import trend_test
from torchstone.bench.statistics.variance import variance_by_source
from torchstone.bench.statistics.verdict import Verdict


def _example(n=20):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=n)
    return {name: shared + rng.normal(mean, 1, size=n) for name, mean in [("c", 0), ("a", 2), ("b", 1.8), ("d", 0.2)]}


# ------------------------------------------------------------------ ranking


def test_known_friedman_statistics():
    """Four variants of C4.5 on 14 data sets (Demsar 2006, section 3.2.2)."""
    chi2, chi2_p, f, f_p = friedman([3.143, 2.000, 2.893, 1.964], 14)
    assert (round(chi2, 2), round(f, 2)) == (9.28, 3.69)
    assert f > stats.f.ppf(0.95, 3, 39) == pytest.approx(2.85, abs=0.005)
    assert chi2_p == pytest.approx(stats.chi2.sf(chi2, 3))
    assert f_p == pytest.approx(stats.f.sf(f, 3, 39))
    assert round(critical_difference(4, 14), 2) == 1.25


@given(st.integers(2, 5), st.integers(2, 8), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_friedman_agrees_with_scipy_with_ties(k, n, seed):
    scores = np.random.default_rng(seed).integers(0, 4, size=(k, n)).astype(float)
    ranking = rank_methods(scores)
    np.testing.assert_allclose(ranking.mean_rank, np.sort(stats.rankdata(-scores, axis=0).mean(axis=1)), atol=1e-12)
    if k > 2 and (np.ptp(scores, axis=0) > 0).any():
        expected = stats.friedmanchisquare(*scores)
        assert (ranking.friedman, ranking.friedman_p) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-9)


def test_ranking_of_four_methods():
    scores = _example()
    ranking = rank_methods(scores)
    assert ranking.methods == ("a", "b", "d", "c")
    assert ranking.cliques == (("a", "b"), ("d", "c"))
    assert ranking.first.sum() == pytest.approx(1)
    assert (ranking.mean_rank_ci[:, 0] <= ranking.mean_rank).all()
    assert (ranking.mean_rank_ci[:, 1] >= ranking.mean_rank).all()
    assert ranking.mean_rank.sum() == pytest.approx(10)
    names = ranking.methods
    raw = []
    for i, j in combinations(range(4), 2):
        a, b = scores[names[i]], scores[names[j]]
        assert ranking.outperforms[i, j] == pytest.approx(probability_of_outperforming(a, b))
        assert ranking.outperforms[i, j] + ranking.outperforms[j, i] == pytest.approx(1)
        raw.append(stats.wilcoxon(a - b, method="exact")[1])
    np.testing.assert_allclose(ranking.pairwise_p[np.triu_indices(4, 1)], adjust(raw), rtol=1e-9)
    assert ranking.iman_davenport_p < ranking.friedman_p < 1e-6


def test_neighbours_that_differ_from_their_ends_overlap_in_cliques():
    rng = np.random.default_rng(3)
    scores = [rng.normal(mean, 1, size=40) for mean in (0, 0.55, 1.1)]
    ranking = rank_methods(scores, names=["low", "middle", "high"])
    significant = ranking.pairwise_p < 0.05
    assert significant[0, 2]
    expected = tuple(
        pair
        for pair, far in ((("high", "middle"), significant[0, 1]), (("middle", "low"), significant[1, 2]))
        if not far
    )
    assert ranking.cliques == expected


def test_identical_methods_share_everything():
    ranking = rank_methods(np.tile(np.arange(6.0), (3, 1)), names=["x", "y", "z"])
    np.testing.assert_allclose(ranking.mean_rank, 2)
    np.testing.assert_allclose(ranking.first, 1 / 3)
    assert (ranking.friedman, ranking.friedman_p) == (0.0, 1.0)
    assert ranking.cliques == (("x", "y", "z"),)


def test_a_constant_order_is_as_significant_as_can_be():
    ranking = rank_methods(np.arange(3.0)[:, None] + np.zeros(10))
    assert ranking.methods == ("2", "1", "0")
    assert ranking.friedman == pytest.approx(20)
    assert (ranking.iman_davenport, ranking.iman_davenport_p) == (math.inf, 0.0)
    assert ranking.cliques == ()


def test_scores_to_rank_come_as_people_hold_them():
    scores = _example()
    expected = rank_methods(scores)
    wide = pd.DataFrame(scores)
    long = wide.reset_index(names="seed").melt(id_vars="seed", var_name="method", value_name="score")
    arrays = np.stack(list(scores.values()))
    for given_, names in ((wide, None), (long, None), (arrays, list(scores)), (torch.tensor(arrays), list(scores))):
        ranking = rank_methods(given_, names=names)
        assert ranking.methods == expected.methods
        np.testing.assert_allclose(ranking.outperforms, expected.outperforms)


@pytest.mark.parametrize(
    ("scores", "names", "message"),
    [
        ([[1, 2]], None, "at least 2 methods"),
        ([[1, 2], [1, 2, 3]], None, "every block"),
        ([[1, 2], [1, math.nan]], ["a", "b"], "arm 'b', replicate 1, is nan"),
        ([[1], [2]], None, "at least 2"),
        ([[1, 2], [3, 4]], ["a"], "names must be 2"),
        ([[1, 2], [3, 4]], ["a", "a"], "different"),
        ({"a": [1, 2], "b": [3, 4]}, ["x", "y"], "leave out"),
        (np.ones((2, 2, 2)), None, "shape"),
    ],
)
def test_unusable_rankings_are_refused(scores, names, message):
    with pytest.raises(ValueError, match=message):
        rank_methods(scores, names=names)


# ------------------------------------------------------------------ trend, variance, aggregates


def test_trend_counts_the_signs_of_kendalls_tau():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(15, 5)) + np.arange(5) * 0.8
    result = trend_test(scores)
    np.testing.assert_allclose(result.tau, np.array([stats.kendalltau(range(5), row) for row in scores])[:, 0])
    assert result.decision.wins == (result.tau > 0).sum() + (result.tau == 0).sum() / 2
    assert result.decision.verdict == Verdict.REPRODUCED
    page = stats.page_trend_test(scores, method="asymptotic")
    assert (result.page_l, result.page_p) == pytest.approx((page.statistic, page.pvalue))
    assert trend_test(-scores).decision.verdict == Verdict.REFUTED
    assert trend_test(np.ones((8, 3))).decision.verdict == Verdict.DEGENERATE


def test_trends_need_two_levels():
    with pytest.raises(ValueError, match="levels"):
        trend_test([[1.0], [2.0]])
    with pytest.raises(ValueError, match="levels"):
        trend_test([1.0, 2.0])


def test_variance_by_source():
    rng = np.random.default_rng(0)
    scores = {"init": rng.normal(0, 1, size=10), "all": rng.normal(0, 3, size=200), "split": rng.normal(0, 2, size=40)}
    spread = variance_by_source(scores)
    assert list(spread) == ["all", "split", "init"]
    assert spread["all"].share == 1
    assert spread["split"].sd == pytest.approx(np.std(scores["split"], ddof=1))
    assert spread["init"].share == pytest.approx(np.var(scores["init"], ddof=1) / np.var(scores["all"], ddof=1))
    low, high = spread["init"].ci
    assert low**2 == pytest.approx(9 * spread["init"].sd ** 2 / stats.chi2.ppf(0.975, 9))
    assert high**2 == pytest.approx(9 * spread["init"].sd ** 2 / stats.chi2.ppf(0.025, 9))
    assert math.isnan(variance_by_source({"init": [1.0, 2.0]})["init"].share)
    with pytest.raises(ValueError, match="'init' has 1 replicate"):
        variance_by_source({"init": [1.0]})


def test_aggregates_agree_with_scipy_and_by_hand():
    x = np.random.default_rng(0).random((10, 6)) * 1.2
    summary = aggregate_scores(x)
    assert summary.iqm == pytest.approx(stats.trim_mean(x.ravel(), 0.25))
    assert summary.optimality_gap == pytest.approx(np.mean([max(0, 1 - score) for score in x.ravel()]))
    assert summary.median == pytest.approx(np.median(x.mean(axis=0)))
    assert summary.iqm_ci[0] < summary.iqm < summary.iqm_ci[1]
    assert summary.optimality_gap_ci[0] < summary.optimality_gap < summary.optimality_gap_ci[1]
    profile = performance_profile(x, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(profile, [(x > tau).mean() for tau in (0.0, 0.5, 1.0)])


def test_data_sets_are_resampled_one_by_one():
    x = np.tile([0.1, 0.5, 0.9, 1.3], (5, 1))  # runs of a data set never differ, so nothing varies
    summary = aggregate_scores(x)
    assert summary.iqm_ci == pytest.approx((0.7, 0.7))
    with pytest.raises(ValueError, match="data sets"):
        aggregate_scores([1.0, 2.0])
