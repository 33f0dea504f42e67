"""Figures: every value is drawn in its place, every text is escaped."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.report.example import HOSTILE, result, store, study
from torchstone.bench.report.curves import POINTS, band, learning_curves
from torchstone.bench.report.figures import Spot, colours, cost_plot, curve_plot, p_axis, strip_plot, variance_plot
from torchstone.bench.report.svg import Scale, dodged, fit, path, width
from torchstone.bench.statistics.variance import variance_by_source

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def dots(svg: str, colour: int) -> list[tuple[float, float]]:
    """Places of the dots of a colour."""
    drawn = re.findall(rf'class="dots(?: big)? c{colour}" d="([^"]*)"', svg)
    return [(float(x), float(y)) for path in drawn for x, y in re.findall(r"M(\S+) (\S+?)h0", path)]


def test_a_strip_draws_every_value_in_its_place():
    scores = {"a": [0.1, 0.2, math.nan], "b": [0.3, 0.4, 0.5], "none": [math.nan] * 3}
    svg = strip_plot(scores, title="t", colour={"a": 0, "b": 1, "none": 2}, lost={"none": 3})
    a, b = dots(svg, 0), dots(svg, 1)
    assert (len(a), len(b), len(dots(svg, 2))) == (2, 3, 0)
    assert b[2][0] - b[1][0] == pytest.approx(a[1][0] - a[0][0], abs=0.2)  # equal steps
    assert len({y for _, y in a}) == 1
    assert "3 diverged" in texts(svg)
    assert "Means: a 0.15, b 0.4, none –." in svg
    assert svg == strip_plot(scores, title="t", colour={"a": 0, "b": 1, "none": 2}, lost={"none": 3})


@pytest.mark.parametrize("bad", HOSTILE, ids=range(len(HOSTILE)))
def test_figures_are_xml_whatever_the_names(bad: str):
    arms = {f"a {bad}": 0, f"b {bad}": 1}
    steps = np.arange(3)
    made = band([(steps, np.array([1.0, 2.0, 4.0]))])
    assert made is not None
    source = variance_by_source({f"s {bad}": [1.0, 2.0], "all": [1.0, 3.0]})
    for svg in (
        strip_plot({arm: [0.1, 0.2] for arm in arms}, title=bad, colour=arms),
        curve_plot(dict.fromkeys(arms, made), title=bad, colour=arms),
        cost_plot({arm: Spot(1.0, 2.0) for arm in arms}, title=bad, colour=arms),
        variance_plot(source, title=bad),
    ):
        root = ElementTree.fromstring(svg)
        assert root.tag == "svg"
        assert {element.tag for element in root.iter()} <= {"svg", "title", "desc", "path", "text"}
        assert root.get("role") == "img"
        assert root.get("aria-label")


def test_p_lies_between_zero_and_one():
    svg = p_axis(0.75, (0.5, 1.4))
    assert 'class="spot" d="M72.5 8h0"' in svg
    assert 'class="range" d="M50 8H95"' in svg
    assert "range" not in p_axis(math.nan, (0.0, 1.0))


def test_an_arm_has_one_colour_in_all_experiments():
    found = colours(study())
    assert (found["method"], found["base"], found["rival"]) == (0, 1, 2)


@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans())
def test_a_scale_holds_its_values_and_ticks_are_on_it(values: list[float], log: bool):
    at = Scale.over(values, 10.0, 90.0, log=log)
    for value in values:
        if abs(value) < 1e250 and (not log or value > 1e-150):
            assert 10 - 1e-6 <= at(value) <= 90 + 1e-6
    ticks = at.ticks()
    assert len(ticks) <= 14
    assert all(10 - 1e-6 <= at(value) <= 90 + 1e-6 for value, _ in ticks)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.0, 1.0), ["0.0", "0.5", "1.0"]),
        ((0.9, 0.93), ["0.90", "0.91", "0.92", "0.93"]),
        ((0.0, 2e6), ["0", "5e+05"]),
    ],
)
def test_ticks_are_round(values: tuple[float, float], texts: list[str]):
    assert [text for _, text in Scale.over(values, 0.0, 1.0).ticks()][: len(texts)] == texts


def test_ticks_of_a_logarithmic_scale_are_powers_of_ten():
    assert [text for _, text in Scale.over([0.001, 100.0], 0.0, 1.0, log=True).ticks()] == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
    ][::2]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_do_not_overlap(wanted: list[float]):
    found = sorted(dodged(wanted, 10, 0, 100))
    assert all(b - a >= 10 - 1e-6 for a, b in pairwise(found))
    assert found[0] >= -1e-6


def test_a_path_is_broken_where_there_is_nothing():
    assert path([(math.nan, 1), (1, 1), (2, 2), (3, math.inf)]) == "M1 1L2 2"


@given(st.text(max_size=60), st.integers(20, 120))
def test_a_text_fits_its_room(text: str, room: int):
    assert width(fit(text, room)) <= max(room, 11)


def test_a_band_is_made_of_quantiles():
    steps = np.arange(11)
    found = band([(steps, np.full(11, float(i))) for i in range(11)])
    assert found is not None
    assert (found.low[0], found.median[0], found.high[0], found.replicates) == (1.0, 5.0, 9.0, 11)


def test_a_band_of_long_short_and_broken_curves():
    long, short = np.arange(1000), np.arange(10)
    broken = np.full(1000, np.nan)
    found = band([(long, long / 1000), (short[::-1], short[::-1] / 1000), (long, broken)])
    assert found is not None
    assert (found.replicates, len(found.steps)) == (2, POINTS)
    assert found.median.tolist() == pytest.approx((found.steps / 1000).tolist())
    assert band([(long, broken)]) is None
    assert band([]) is None


def test_curves_of_runs_that_count():
    found = result()
    curves = learning_curves(found, store(found))
    assert set(curves) == {"main"}
    assert set(curves["main"]) == {("test_accuracy", "40%"), ("test_accuracy", "b")}
    assert {arm: made.replicates for arm, made in curves["main"]["test_accuracy", "40%"].items()} == {
        "base": 8,
        "method": 8,
        "rival": 8,
    }


def test_costs_that_differ_far_get_a_logarithmic_axis():
    svg = cost_plot({"a": Spot(1.0, 0.5), "b": Spot(1e5, 0.6, 0.5, 0.7)}, title="t", colour={"a": 0, "b": 1})
    assert {"1", "100", "10000"} <= set(texts(svg))
    assert "Score at cost: a 0.5 at 1, b 0.6 at 100000." in svg
