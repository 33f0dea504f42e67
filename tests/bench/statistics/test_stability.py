from __future__ import annotations

from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torchstone.bench.statistics import kendall_tau, probability_of_outperforming, ranking_instability
from torchstone.data import unreproducible_scores

# ------------------------------------------------------------------ Kendall's tau


def test_tau_by_hand():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert kendall_tau([1, 2, 3, 4], [8, 6, 4, 2]) == -1
    assert kendall_tau([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(1 - 2 / 6)  # one pair of six changes places
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 3)  # the tied pair counts 0


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_tau_agrees_with_scipy_and_knows_no_side(a, b):
    tau = kendall_tau(a, b)
    assert tau == pytest.approx(stats.kendalltau(a, b)[0])
    assert tau == kendall_tau(b, a) == pytest.approx(-kendall_tau([-x for x in a], b))


@pytest.mark.parametrize(
    ("a", "b"), [([1], [1]), ([1, 2], [1, 2, 3]), ([1, float("nan")], [1, 2]), ([[1, 2]], [[1, 2]])]
)
def test_orders_that_cannot_be_compared(a, b):
    with pytest.raises(ValueError, match="scores of the same methods"):
        kendall_tau(a, b)


# ------------------------------------------------------------------ single-run rankings


def test_two_overlapping_methods_are_ranked_wrong_as_often_as_runs_cross():
    result = ranking_instability({"b": [1.0, 3.0], "a": [2.0, 4.0, 2.5]})
    p = probability_of_outperforming([2.0, 4.0, 2.5], [1.0, 3.0], paired=False)
    assert result.methods == ("a", "b")
    assert result.same_order == pytest.approx(p)
    assert result.same_best == pytest.approx(p)
    assert result.agreement == pytest.approx(2 * p - 1)
    np.testing.assert_allclose(result.rank_variance, p * (1 - p))


def test_equal_runs_are_ranked_by_lot():
    result = ranking_instability([[1.0, 1.0]] * 3)
    assert result.same_order == pytest.approx(1 / 6)
    assert result.same_best == pytest.approx(1 / 3)
    assert result.agreement == 0
    np.testing.assert_allclose(result.rank_variance, 2 / 3)  # of 0, 1, 2, all alike


def test_separated_methods_are_always_ranked_alike():
    result = ranking_instability([[5.0, 6.0], [1.0, 2.0], [3.0, 4.0]])
    assert (result.methods, result.same_order, result.same_best, result.agreement) == (("0", "2", "1"), 1, 1, 1)
    np.testing.assert_allclose(result.rank_variance, 0, atol=1e-15)


def every_ranking(rows):
    """All choices of one run each with all lots: every order of the methods, and its probability."""
    weights = {}
    k = len(rows)
    lots = list(permutations(range(k)))
    for runs in product(*rows):
        for lot in lots:
            order = tuple(sorted(range(k), key=lambda i: (-runs[i], lot[i])))
            weights[order] = weights.get(order, 0) + 1 / np.prod([len(row) for row in rows]) / len(lots)
    return weights


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=4), min_size=2, max_size=4))
def test_it_is_the_mean_over_all_single_run_rankings(rows):
    result = ranking_instability([[float(x) for x in row] for row in rows])
    by_name = [rows[int(name)] for name in result.methods]
    assert all(np.mean(a) >= np.mean(b) for a, b in pairwise(by_name))
    weights = every_ranking(by_name)
    right = tuple(range(len(rows)))
    assert result.same_order == pytest.approx(weights.get(right, 0))
    assert result.same_best == pytest.approx(sum(p for order, p in weights.items() if order[0] == 0))
    ranks = np.array([np.argsort(order) for order in weights])
    p = np.array(list(weights.values()))
    mean = p @ ranks
    np.testing.assert_allclose(result.rank_variance, p @ (ranks - mean) ** 2, atol=1e-12)
    tau = p @ [kendall_tau(-rank.astype(float), -np.arange(len(rows))) for rank in ranks]
    assert result.agreement == pytest.approx(tau)


def test_unusable_scores_are_refused():
    with pytest.raises(ValueError, match="at least 2 methods"):
        ranking_instability({"a": [1, 2]})
    with pytest.raises(ValueError, match="score of arm 'a', replicate 1, is nan"):
        ranking_instability({"a": [1, float("nan")], "b": [1, 2]})


@pytest.mark.real_data
def test_published_scores_of_eight_networks(data_root):
    expected = {
        "default": {"mnist": 0.003, "cifar10": 0.810, "cifar100": 0.429},
        "tuned": {"mnist": 0.031, "cifar10": 0.529, "cifar100": 0.400},
    }
    unsure, best = {}, {}
    for setting, errors in unreproducible_scores(data_root).items():
        for dataset, share in expected[setting].items():
            scores = {model: -runs for model, runs in errors[dataset].items()}
            result = ranking_instability(scores)
            assert result.same_order == pytest.approx(share, abs=0.01)
            best[setting, dataset] = result.methods[0]
            p = [probability_of_outperforming(a, b, paired=False) for a, b in combinations(scores.values(), 2)]
            unsure[setting, dataset] = sum(max(x, 1 - x) < 0.95 for x in p)
    assert [unsure["default", dataset] for dataset in ("mnist", "cifar10", "cifar100")] == [23, 2, 1]
    assert (best["default", "cifar10"], best["tuned", "cifar10"]) == ("vgg19", "resnet101")
