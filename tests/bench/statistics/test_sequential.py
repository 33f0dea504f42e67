from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from torchstone.bench.statistics.design import critical_wins, operating_characteristics, sample_size, sign_test
from torchstone.bench.statistics.evalues import confidence_sequence, e_value, log_e_value
from torchstone.bench.statistics.sequential import SequentialComparison, decide, fixed_verdict
from torchstone.bench.statistics.verdict import Verdict

half_scores = st.sampled_from([0.0, 0.5, 1.0])


# ------------------------------------------------------------------ evidence


@pytest.mark.parametrize(
    ("wins", "n", "expected", "digits"),
    [(6, 6, 28.78, 2), (9, 10, 18.92, 2), (20, 29, 2.444, 3), (22, 29, 17.20, 2), (24, 29, 254.9, 1)],
)
def test_known_e_values(wins, n, expected, digits):
    assert round(e_value(wins, n), digits) == expected


@pytest.mark.parametrize(("wins", "n"), [(0, 0), (0, 5), (3, 4), (7.5, 12), (29, 29), (40, 60)])
def test_e_value_is_the_mixture_of_likelihood_ratios(wins, n):
    def integrand(p):
        prior = 2 / (math.pi * math.sqrt(p * (1 - p)))  # Beta(1/2, 1/2) on the upper half, of mass 1
        return prior * (2 * p) ** wins * (2 - 2 * p) ** (n - wins)

    assert e_value(wins, n) == pytest.approx(integrate.quad(integrand, 0.5, 1)[0], rel=1e-7)


def test_e_values_are_a_martingale_under_the_coin_and_ties_only_lower_them():
    for n in range(60):
        wins = np.arange(2 * n + 1) / 2
        now = np.exp(log_e_value(wins, n))
        win, tie, loss = (np.exp(log_e_value(wins + w, n + 1)) for w in (1.0, 0.5, 0.0))
        np.testing.assert_allclose((win + loss) / 2, now, rtol=1e-10)
        assert (tie <= now).all()


def test_evidence_for_a_fair_coin_rarely_ever_reaches_twenty():
    rng = np.random.default_rng(1)
    wins = np.cumsum(rng.random((3000, 100)) < 0.5, axis=1)
    reached = (log_e_value(wins, np.arange(1, 101)) >= math.log(20)).any(axis=1)
    assert 0.01 < reached.mean() <= 0.05


@pytest.mark.parametrize(("wins", "n"), [(1000, 1000), (0, 5000), (1000, 5000), (2600, 5000), (20000, 20000)])
def test_log_e_value_stays_finite(wins, n):
    assert math.isfinite(float(log_e_value(wins, n)))


def test_known_confidence_sequences():
    assert [round(end, 4) for end in confidence_sequence(10, 10)] == [0.6230, 1.0]
    assert [round(end, 4) for end in confidence_sequence(24, 29)] == [0.5528, 0.9699]
    assert confidence_sequence(0, 0) == (0.0, 1.0)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0.001, 0.5))
@settings(deadline=None, max_examples=30)
def test_confidence_sequence_solves_its_equation(n, share, alpha):
    wins = n * share
    low, high = confidence_sequence(wins, n, alpha=alpha)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1

    def covered(p):
        mixture = math.lgamma(wins + 0.5) + math.lgamma(n - wins + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
        return mixture - wins * math.log(p) - (n - wins) * math.log1p(-p) < -math.log(alpha)

    for end, inward in ((low, 1e-7), (high, -1e-7)):
        if 1e-6 < end < 1 - 1e-6:
            assert covered(end + inward)
            assert not covered(end - inward)


@pytest.mark.parametrize("p", [0.5, 0.75])
def test_confidence_sequence_misses_p_at_any_time_in_at_most_five_percent(p):
    alive, missed = np.ones(1), 0.0
    for n in range(1, 81):
        alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        covers = np.array([low < p < high for low, high in (confidence_sequence(k, n) for k in range(n + 1))])
        missed += alive[~covers].sum()
        alive = np.where(covers, alive, 0)
    assert 0.005 < missed <= 0.05


@pytest.mark.parametrize("bad", [(-1, 5), (6, 5), (math.nan, 5)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ValueError, match=r"wins must lie in 0\.\.n"):
        e_value(*bad)
    with pytest.raises(ValueError, match=r"wins must lie in 0\.\.n"):
        confidence_sequence(*bad)


# ------------------------------------------------------------------ design


@pytest.mark.parametrize(("n_max", "wins"), [(13, 11), (23, 17), (29, 20), (33, 23), (200, 138), (6, 6), (5, 5)])
def test_known_critical_wins(n_max, wins):
    assert critical_wins(n_max) == wins


def test_two_hundred_replicates_need_138_wins_because_the_interval_must_reach_beyond_gamma():
    assert [round(200 * q) for q in stats.binom.ppf(0.975, 200, [137 / 200, 138 / 200]) / 200] == [150, 151]
    assert critical_wins(200, gamma=0.5) == 115


@pytest.mark.parametrize("n_max", [1, 2, 3, 4])
def test_four_replicates_cannot_decide(n_max):
    assert critical_wins(n_max) == n_max + 1


@pytest.mark.parametrize("e_threshold", [20, 100])
def test_size_is_at_most_five_percent_and_one_win_fewer_breaks_a_rule(e_threshold):
    for n in (*range(6, 31), 45, 60):
        wins = critical_wins(n, e_threshold=e_threshold)
        assert operating_characteristics(n, 0.5, e_threshold).ahead <= 0.05
        fewer = operating_characteristics(n, 0.5, e_threshold, wins_needed=wins - 1)
        low, high = stats.binom.ppf([0.025, 0.975], n, (wins - 1) / n)
        allowed = low > n / 2 and high > 0.75 * n and stats.binom.sf(wins - 2, n, 0.5) <= 0.05 and fewer.ahead <= 0.05
        assert not allowed


@pytest.mark.parametrize(
    ("p", "ahead", "expected_n"),
    [(0.5, 0.0468, 22.5), (0.6, 0.2439, 22.9), (0.75, 0.8449, 19.6), (0.9, 0.9997, 10.0), (0.97, 1.0, 7.0)],
)
def test_operating_characteristics_of_the_default_rule(p, ahead, expected_n):
    rule, mirror = operating_characteristics(29, p), operating_characteristics(29, 1 - p)
    assert round(rule.ahead, 4) == ahead
    assert round(rule.expected_n, 1) == expected_n
    assert mirror.behind == pytest.approx(rule.ahead, abs=1e-12)
    assert rule.ahead + rule.behind + rule.undecided == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "ahead", "digits", "expected_n"),
    [(0.5, 0.034, 3, 23.1), (0.75, 0.836, 3, 22.9), (0.9, 0.9997, 4, 13.5)],
)
def test_operating_characteristics_at_threshold_100(p, ahead, digits, expected_n):
    rule = operating_characteristics(29, p, 100)
    assert round(rule.ahead, digits) == ahead
    assert round(rule.expected_n, 1) == expected_n


@pytest.mark.parametrize(("p", "ahead"), [(0.5, 0.0307), (0.75, 0.8337), (0.9, 0.9997)])
def test_operating_characteristics_without_looking_early(p, ahead):
    rule = operating_characteristics(29, p, math.inf)
    assert round(rule.ahead, 4) == ahead
    assert rule.ahead == pytest.approx(stats.binom.sf(19, 29, p), abs=1e-12)


@pytest.mark.parametrize("ties", [0.05, 0.3, 0.8, 1.0])
def test_ties_make_the_rule_conservative(ties):
    for n in (6, 13, 29, 33):
        assert operating_characteristics(n, 0.5, ties=ties).ahead <= operating_characteristics(n, 0.5).ahead


@pytest.mark.parametrize(("n_max", "p", "e_threshold"), [(9, 0.5, 20), (9, 0.8, 20), (10, 0.7, 100)])
def test_dynamic_programme_equals_the_decision_on_every_sequence(n_max, p, e_threshold):
    ahead = behind = expected = 0.0
    for w in product([0.0, 1.0], repeat=n_max):
        decision = decide(w, n_max=n_max, e_threshold=e_threshold)
        weight = p ** sum(w) * (1 - p) ** (n_max - sum(w))
        ahead += weight * (decision.verdict == Verdict.REPRODUCED)
        behind += weight * (decision.verdict == Verdict.REFUTED)
        expected += weight * decision.n
        assert decision.stopped
    rule = operating_characteristics(n_max, p, e_threshold)
    assert (rule.ahead, rule.behind, rule.expected_n) == pytest.approx((ahead, behind, expected), abs=1e-12)


def test_dynamic_programme_with_ties_equals_the_decision_on_every_sequence():
    chance = {0.0: 0.1, 0.5: 0.2, 1.0: 0.7}
    ahead = expected = 0.0
    for w in product(chance, repeat=7):
        decision = decide(w, n_max=7)
        weight = math.prod(chance[score] for score in w)
        ahead += weight * (decision.verdict == Verdict.REPRODUCED)
        expected += weight * decision.n
    rule = operating_characteristics(7, 0.8, ties=0.2)
    assert (rule.ahead, rule.expected_n) == pytest.approx((ahead, expected), abs=1e-12)


def test_peeking_at_the_interval_would_quadruple_the_error():
    """The reason for all this: what the rule replaces."""

    def error(looks):
        alive, wrong = np.ones(1), 0.0
        for n in range(1, 30):
            alive = (np.append(alive, 0) + np.append(0, alive)) / 2
            if n in looks:
                stop = stats.binom.ppf(0.025, n, np.arange(n + 1) / n) > n / 2
                wrong += alive[stop].sum()
                alive = np.where(stop, 0, alive)
        return wrong

    assert error([29]) == pytest.approx(0.0307, abs=1e-4)
    assert error(range(6, 30)) == pytest.approx(0.12, abs=1e-4)


@pytest.mark.parametrize(("gamma", "n"), [(0.6, 181), (0.65, 81), (0.7, 46), (0.75, 29), (0.8, 21), (0.9, 12)])
def test_sample_size_by_noether(gamma, n):
    assert sample_size(gamma) == n


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (3, 7), (7, 7), (60, 100)])
def test_sign_test_is_the_binomial_tail(wins, n):
    assert sign_test(wins, n) == pytest.approx(stats.binomtest(wins, n, alternative="greater").pvalue, rel=1e-12)


def test_small_samples_need_the_guard():
    """The percentile interval alone calls 3 of 3, 4 of 4 and 6 of 7 wins significant."""
    sizes = [
        float(stats.binom.pmf(range(n + 1), n, 0.5) @ (stats.binom.ppf(0.025, n, np.arange(n + 1) / n) > n / 2))
        for n in (3, 4, 7)
    ]
    assert sizes == pytest.approx([0.125, 0.0625, 0.0625])
    assert fixed_verdict(7, (0.57, 1.0), sign_test(6, 7), 1.0) == Verdict.NOT_SIGNIFICANT


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: operating_characteristics(0, 0.5), "n_max"),
        (lambda: operating_characteristics(9, 1.2), "p"),
        (lambda: operating_characteristics(9, 0.9, ties=0.5), "ties"),
        (lambda: critical_wins(9, alpha=0.0), "alpha"),
        (lambda: critical_wins(9, gamma=0.4), "gamma"),
        (lambda: critical_wins(9, e_threshold=5), "e_threshold"),
        (lambda: sample_size(0.5), "gamma"),
    ],
)
def test_designs_out_of_range_are_refused(call, name):
    with pytest.raises(ValueError, match=name):
        call()


# ------------------------------------------------------------------ decisions


def test_clean_wins_stop_at_six_and_for_published_evidence_at_eight():
    decision = decide([1.0] * 29)
    assert (decision.verdict, decision.n, decision.stopped) == (Verdict.REPRODUCED, 6, True)
    assert decide([1.0] * 5).verdict == Verdict.TOO_FEW
    published = decide([1.0] * 29, e_threshold=100)
    assert (published.n, round(published.e_ahead)) == (8, 100)


def test_the_rule_for_the_full_number_is_cut_short_on_both_sides():
    w = [1.0, 0.0] * 8 + [1.0] * 12
    decision = decide(w)
    assert (decision.verdict, decision.n, decision.wins) == (Verdict.REPRODUCED, 28, 20)
    assert decision.e_ahead < 20
    assert decision.reason == "20 wins decide a comparison of 29"
    mirror = decide([1 - score for score in w])
    assert (mirror.verdict, mirror.n, mirror.losses) == (Verdict.REFUTED, 28, 20)
    undecided = decide([1.0, 0.0] * 14)
    assert (undecided.verdict, undecided.n, undecided.stopped) == (Verdict.NOT_SIGNIFICANT, 20, True)
    assert undecided.reason == "neither side can reach 20 wins in 29 replicates"


def test_running_out_before_a_decision_is_said():
    decision = decide([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert (decision.verdict, decision.stopped) == (Verdict.NOT_SIGNIFICANT, False)
    assert decision.reason == "no decision yet after 6 replicates of at most 29"
    early = decide([1.0] * 3)
    assert (early.verdict, early.stopped) == (Verdict.TOO_FEW, False)
    nothing = decide([])
    assert (nothing.verdict, nothing.stopped, nothing.n) == (Verdict.NOT_RUN, False, 0)
    assert math.isnan(nothing.estimate)


def test_ties_alone_are_degenerate():
    assert decide([0.5] * 29).verdict == Verdict.DEGENERATE
    assert decide([0.5] * 7).verdict == Verdict.DEGENERATE
    assert decide([0.5] * 5).verdict == Verdict.TOO_FEW
    assert decide([0.5] * 12, n_min=12, n_max=12).verdict == Verdict.DEGENERATE
    assert decide([0.5] * 28 + [1.0], e_threshold=20).verdict == Verdict.DEGENERATE  # it stopped before the last


def test_scores_that_do_not_apply_are_left_out_and_counted():
    decision = decide([math.nan, 1, 1, math.nan, 1, 1, 1, 1])
    assert (decision.n, decision.excluded, decision.verdict) == (6, 2, Verdict.REPRODUCED)
    nothing = decide([math.nan] * 29)
    assert (nothing.verdict, nothing.stopped, nothing.excluded) == (Verdict.TOO_FEW, True, 29)
    # Their places are used up: with 15 gone nobody can get 20 wins of 29, but evidence still can decide.
    assert decide([math.nan] * 15 + [1, 1, 1, 0, 1, 1]).reason.startswith("neither side")


def test_half_wins_count_half():
    decision = decide([1, 1, 1, 1, 1, 0.5, 1, 1])
    assert decision.wins == 7.5
    assert decision.e_ahead == pytest.approx(e_value(7.5, 8))
    assert decision.verdict == Verdict.REPRODUCED


def test_a_small_margin_is_significant_but_not_meaningful():
    w = np.tile([1.0, 1.0, 1.0, 0.0, 0.0], 120)  # P = .6
    decision = decide(w, n_max=600)
    assert decision.verdict == Verdict.NOT_MEANINGFUL
    assert decision.e_ahead >= 20
    assert decision.interval[1] <= 0.75
    assert decide(w, n_max=600, gamma=0.55).verdict == Verdict.REPRODUCED
    assert decide(1 - w, n_max=600).verdict == Verdict.REFUTED


@pytest.mark.parametrize(
    ("wins", "n", "verdict"),
    [
        (20, 29, Verdict.REPRODUCED),
        (19, 29, Verdict.NOT_SIGNIFICANT),
        (9, 29, Verdict.REFUTED),
        (10, 29, Verdict.NOT_SIGNIFICANT),
        (62, 100, Verdict.NOT_MEANINGFUL),
        (6, 6, Verdict.REPRODUCED),
        (6, 7, Verdict.NOT_SIGNIFICANT),
        (5, 5, Verdict.TOO_FEW),
    ],
)
def test_a_fixed_number_of_replicates(wins, n, verdict):
    w = [1.0] * wins + [0.0] * (n - wins)
    decision = decide(w, n_min=n, n_max=n)
    assert decision.verdict == verdict
    assert decision.stopped
    assert decision.interval == tuple(stats.binom.ppf([0.025, 0.975], n, wins / n) / n)
    if n > 6:
        assert decide(w[:-1], n_min=n, n_max=n).verdict == Verdict.TOO_FEW  # no peeking


def test_a_fixed_number_can_be_asked_for():
    assert decide([1.0] * 10, n_min=6, n_max=29, fixed=True).verdict == Verdict.TOO_FEW
    assert decide([1.0] * 10, n_min=10, n_max=10, fixed=False).n == 10


def test_interval_is_the_confidence_sequence_until_the_last_replicate_is_in():
    early = decide([1.0] * 6)
    assert (early.n, early.interval) == (6, confidence_sequence(6, 6))
    complete = decide([0, 0] + [1] * 11, n_max=13)
    assert (complete.n, complete.wins) == (13, 11)
    assert complete.interval == tuple(stats.binom.ppf([0.025, 0.975], 13, 11 / 13) / 13)


@given(st.lists(half_scores, max_size=40))
@settings(deadline=None, max_examples=60)
def test_swapping_the_arms_mirrors_the_decision(w):
    ours, theirs = decide(w), decide([1 - score for score in w])
    mirror = {Verdict.REPRODUCED: Verdict.REFUTED, Verdict.REFUTED: Verdict.REPRODUCED}
    assert theirs.verdict == mirror.get(ours.verdict, ours.verdict)
    assert (ours.n, ours.wins, ours.stopped) == (theirs.n, theirs.losses, theirs.stopped)
    assert ours.e_ahead == theirs.e_behind
    assert ours.interval == pytest.approx(tuple(1 - end for end in reversed(theirs.interval)), abs=1e-9)


@given(st.lists(st.floats(0, 1), max_size=29), st.lists(st.floats(0, 1), max_size=10))
@settings(deadline=None, max_examples=60)
def test_a_stop_is_final(w, more):
    first = decide(w)
    if first.stopped:
        assert decide(w + more) == first


@given(st.lists(half_scores | st.just(math.nan), max_size=30))
@settings(deadline=None, max_examples=30)
def test_one_at_a_time_equals_all_at_once(w):
    comparison = SequentialComparison()
    for i, score in enumerate(w):
        decision = comparison.update(score)
        assert repr(decision) == repr(decide(w[: i + 1]))
    assert repr(comparison.decision) == repr(decide(w))


def test_bad_scores_are_refused_and_not_kept():
    comparison = SequentialComparison()
    with pytest.raises(ValueError, match=r"w must lie in \[0, 1\], but is 1.5 in replicate 0"):
        comparison.update(1.5)
    assert comparison.w == []
    with pytest.raises(ValueError, match="shape"):
        decide(np.ones((2, 2)))
    with pytest.raises(ValueError, match="n_max"):
        decide([1.0], n_max=0)


# ------------------------------------------------------------------ calibration


def test_equal_arms_are_called_different_in_at_most_five_percent_of_studies():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(5000, 29)), rng.normal(size=(2, 5000, 29))
    a, b = math.sqrt(0.7) * shared + math.sqrt(0.3) * own  # correlation .7 between the arms of a replicate
    verdicts = [decide(w).verdict for w in (a > b).astype(float)]
    for verdict in (Verdict.REPRODUCED, Verdict.REFUTED):
        share = verdicts.count(verdict) / 5000
        assert share <= 0.05
        assert share == pytest.approx(0.0468, abs=3 * math.sqrt(0.0468 * 0.9532 / 5000))
