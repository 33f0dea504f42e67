import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchstone.bench import ClosesGap, Higher, Lower, Outcome, Ratio, Row, Trend, Within
from torchstone.bench.claims import Claim
from torchstone.errors import StudyError, UnknownNameError


def row(derived: dict[str, float] | None = None, **arms: float | Sequence[float | Outcome] | Outcome) -> Row:
    """A row in which each arm has metric `m`; a list spreads over cases a, b, c, ..."""
    outcomes = {}
    for arm, value in arms.items():
        for case, v in zip("abcdef", value if isinstance(value, Sequence) else [value], strict=False):
            outcomes[arm, case] = v if isinstance(v, Outcome) else Outcome({"m": v}, cost={"steps": 100 * v})
    return Row(0, outcomes, derived or {})


LOST = Outcome(diverged="loss became nan")


@pytest.mark.parametrize(
    ("claim", "a", "b", "w"),
    [
        (Higher("m", "a", "b"), 2.0, 1.0, 1.0),
        (Higher("m", "a", "b"), 1.0, 1.0, 0.5),
        (Higher("m", "a", "b"), 1.0, 2.0, 0.0),
        (Higher("m", "a", "b", by=1.0), 2.0, 1.0, 0.5),
        (Higher("m", "a", "b", by=-0.5), 1.0, 1.25, 1.0),
        (Higher("m", "a", 1.5), 2.0, 9.0, 1.0),
        (Lower("m", "a", "b"), 1.0, 2.0, 1.0),
        (Lower("m", "a", "b", by=2.0), 1.0, 2.0, 0.0),
        (Within("m", "a", "b", by=0.5), 1.0, 1.5, 1.0),
        (Within("m", "a", "b", by=0.25), 1.0, 1.5, 0.0),
        (Within("m", "a", "b", rtol=0.1), 9.0, 10.0, 1.0),
        (Within("m", "a", 1.0), 1.0, 9.0, 1.0),
        (Ratio("m", "a", "b", at_most=2.0), 2.0, 1.0, 1.0),
        (Ratio("m", "a", "b", at_most=2.0), 2.5, 1.0, 0.0),
        (Ratio("m", "a", "b", at_least=2.0), 2.0, 1.0, 1.0),
        (Ratio("steps", "a", "b", at_most=1.0), 2.0, 1.0, 0.0),
        (Ratio("m", "a", "b", at_most=1.0), 0.0, 0.0, 1.0),
    ],
)
def test_known_scores(claim: Claim, a: float, b: float, w: float) -> None:
    assert claim.w(row(a=a, b=b)) == w


@pytest.mark.parametrize(("middle", "w"), [(0.5, 1.0), (0.49, 0.0), (1.0, 1.0)])
def test_closing_a_gap_is_linear_and_divides_nothing(middle: float, w: float) -> None:
    claim = ClosesGap("m", "jtt", "erm", to="dro", by=0.5)
    assert claim.w(row(jtt=middle, erm=0.0, dro=1.0)) == w
    assert claim.w(row(jtt=0.3, erm=0.3, dro=0.3)) == 1.0


@pytest.mark.parametrize(
    ("values", "falls", "w"),
    [
        ([1, 2, 3], False, 1.0),
        ([1, 3, 2], False, 1.0),
        ([3, 1, 2], False, 0.0),
        ([1, 1, 1], True, 0.5),
        ([3, 2, 1], True, 1.0),
    ],
)
def test_trend_is_the_sign_of_kendalls_statistic(values: list[float], falls: bool, w: float) -> None:
    from scipy.stats import kendalltau

    assert Trend("m", "a", cases=("a", "b", "c"), falls=falls).w(row(a=values)) == w
    tau = float(kendalltau([0, 1, 2], values)[0])  # pyright: ignore[reportArgumentType]  # scipy has no stubs
    assert (0 if math.isnan(tau) else np.sign(tau)) * (-1 if falls else 1) == 2 * w - 1


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_higher_and_lower_are_mirror_images(a: float, b: float) -> None:
    data = row(a=a, b=b)
    assert Higher("m", "a", "b").w(data) + Higher("m", "b", "a").w(data) == 1.0
    assert Higher("m", "a", "b").w(data) == Lower("m", "b", "a").w(data)


def test_scores_are_averaged_over_cases_and_elements() -> None:
    data = row(a=[2.0, 1.0, 0.0], b=[1.0, 1.0, 1.0])
    assert Higher("m", "a", "b").w(data) == 0.5
    assert Higher("m", "a", "b", cases=("a",)).w(data) == 1.0
    curves = row(a=Outcome({"m": np.array([1.0, 2.0, 3.0, 4.0])}), b=Outcome({"m": np.array([1.0, 2.0, 3.0, 0.0])}))
    assert Within("m", "a", "b").w(curves) == 0.75


def test_only_cases_in_which_all_compared_arms_run_count_by_default() -> None:
    assert Higher("m", "a", "b").w(row(a=[2.0, 2.0, 0.0], b=[1.0, 1.0])) == 1.0


@pytest.mark.parametrize(
    ("claim", "a_lost", "b_lost", "both"),
    [
        (Higher("m", "a", "b"), 0.0, 1.0, 0.5),
        (Lower("m", "a", "b"), 0.0, 1.0, 0.5),
        (Within("m", "a", "b", by=99.0), 0.0, 0.0, 0.0),
        (Ratio("m", "a", "b", at_most=99.0), 0.0, 1.0, 0.5),
    ],
)
def test_a_diverged_arm_loses_every_comparison(claim: Claim, a_lost: float, b_lost: float, both: float) -> None:
    assert claim.w(row(a=LOST, b=1.0)) == a_lost
    assert claim.w(row(a=1.0, b=LOST)) == b_lost
    assert claim.w(row(a=LOST, b=LOST)) == both


def test_a_claim_about_derived_values_names_no_arms() -> None:
    claim = Lower("tau", "", "other")
    assert claim.arms == ()
    assert claim.w(row({"tau": 0.2, "other": 0.5})) == 1.0
    assert claim.effect(row({"tau": 0.2, "other": 0.5})) == pytest.approx(-0.3)


def test_divergence_in_gaps_trends_and_derived_values() -> None:
    gap = ClosesGap("m", "a", "b", to="c")
    assert gap.w(row(a=LOST, b=0.0, c=1.0)) == 0.0
    assert gap.w(row(a=0.1, b=0.0, c=LOST)) == 1.0
    assert Trend("m", "a", cases=("a", "b")).w(row(a=[1.0, LOST])) == 0.0
    lost_slope = row({"slope": math.nan}, a=LOST)
    assert Higher("slope", "", 0.0).w(lost_slope) == 0.0
    assert math.isnan(Higher("slope", "", 0.0).w(row({"slope": math.nan}, a=1.0)))
    assert Higher("slope", "", 0.0).w(row({"slope": 0.5}, a=1.0)) == 1.0


def test_nan_means_not_applicable() -> None:
    assert math.isnan(Higher("m", "a", "b").w(row(a=math.nan, b=1.0)))
    assert math.isnan(Within("m", "a", "b").w(row(a=math.nan, b=1.0)))
    assert math.isnan(Ratio("m", "a", "b", at_most=1.0).w(row(a=-1.0, b=1.0)))
    assert Higher("m", "a", "b").w(row(a=[math.nan, 2.0], b=[1.0, 1.0])) == 1.0


def test_effects() -> None:
    assert Higher("m", "a", "b").effect(row(a=[3.0, 2.0], b=[1.0, 1.0])) == 1.5
    assert Trend("m", "a", cases=("a", "b", "c")).effect(row(a=[1.0, 2.0, 5.0])) == 2.0
    assert math.isnan(Higher("m", "a", "b").effect(row(a=LOST, b=1.0)))
    assert Higher("s", "", 0.25).effect(row({"s": 1.0}, a=1.0)) == 0.75


def test_misspelt_metrics_are_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric of arm '.' 'step': did you mean 'steps'"):
        Higher("step", "a", "b").w(row(a=1.0, b=1.0))
    with pytest.raises(UnknownNameError, match="derived value 'slop': did you mean 'slope'"):
        Higher("slop", "").w(row({"slope": 1.0}, a=1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Claim("m", "a", "b"),
        lambda: Within("m", "a", "b", by=-1.0),
        lambda: Ratio("m", "a", "b"),
        lambda: Ratio("m", "a", "b", at_most=1.0, at_least=1.0),
        lambda: ClosesGap("m", "a", "b"),
        lambda: ClosesGap("m", "a", 0.0, to="c"),
        lambda: Trend("m", "a", cases=("one",)),
        lambda: Trend("m", "a", "b", cases=("a", "b")),
        lambda: Higher("m", "a", "b", cases="ab"),  # type: ignore[arg-type]
    ],
)
def test_claims_that_state_nothing_are_refused(make) -> None:
    with pytest.raises(StudyError):
        make()


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (Higher("acc", "a", "b"), "acc of a is higher than that of b"),
        (Higher("acc", "a", "b", by=0.1), "acc of a is higher by more than 0.1 than that of b"),
        (Higher("acc", "a", "b", by=-0.01), "acc of a is not lower by more than 0.01 than that of b"),
        (Lower("loss", "a", 2.0, cases=("x",)), "loss of a is lower than 2 [x]"),
        (Within("f", "a", "b", rtol=1e-8), "f of a equals that of b up to 1e-08 relative"),
        (Ratio("steps", "a", "b", at_most=2.0), "steps of a is at most 2 times that of b"),
        (ClosesGap("acc", "a", "b", to="c"), "a closes at least 50% of the gap in acc from b to c"),
        (Trend("acc", "a", cases=("1", "2"), falls=True), "acc of a falls along 1, 2"),
        (Higher("slope", "", 0.0), "slope is higher than 0"),
        (Higher("acc", "a", "b", text="It works."), "It works."),
    ],
)
def test_claims_in_words(claim: Claim, words: str) -> None:
    assert claim.sentence() == words
