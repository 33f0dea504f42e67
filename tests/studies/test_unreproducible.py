from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchstone import api
from torchstone.bench.judge import Judgement, judge
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.study import Cell, Experiment
from torchstone.errors import SealedDataError
from torchstone.studies._unreproducible_published import PUBLISHED, published_orders
from torchstone.studies._unreproducible_rules import READ, RuleSizes, resampled, truth
from torchstone.studies._unreproducible_runs import (
    FAMILIES,
    NETWORKS,
    SGD_SPACE,
    Run,
    Sizes,
    dataset,
    draw_parts,
    fit_knn,
    small_cnn,
)
from torchstone.studies.unreproducible import DRAWS, STUDY, TUNED, Draw, Model, Spread, SpreadSizes

DIGITS = STUDY.experiment("digits")
NAMES = tuple(FAMILIES)
UP, DOWN = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
SWAP = (0.5, 0.4, 0.6, 0.7, 0.8, 0.9)  # one pair of 15 turned, the same best
TINY = Sizes(samples=120, epochs=4, trees=3)


def row(number: int, common: Sequence[Sequence[float]], tuned: Sequence[Sequence[float]], lost: str = "") -> Row:
    """A replicate with these accuracies of the six families in the first and in the second draw."""
    outcomes = {}
    for i, draw in enumerate(DRAWS):
        for suffix, scores in (("", common), (TUNED, tuned)):
            for name, score in zip(NAMES, scores[i], strict=True):
                here = Outcome(diverged="nan") if name + suffix == lost else Outcome({"accuracy": score})
                outcomes[name + suffix, draw] = here
    return DIGITS.row(number, outcomes)


def judged(name: str, rows: Sequence[Row]) -> dict[str, Judgement]:
    return {j.claim.sentence(): j for j in judge(STUDY, {name: rows}) if j.experiment == name}


def primary(*kinds: Any) -> Verdict:
    return judged("digits", [row(i, *kind) for i, kind in enumerate(kinds)])[STUDY.primary[1].sentence()].verdict


GOOD = ((UP, UP), (DOWN, DOWN))  # tuning turns all pairs, chance none
BAD = ((UP, DOWN), (UP, DOWN))  # the other way about
EQUAL = ((UP, UP), (UP, UP))


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        ([GOOD] * 6, Verdict.REPRODUCED),
        ([BAD] * 6, Verdict.REFUTED),
        ([EQUAL] * 29, Verdict.DEGENERATE),
        ([GOOD, BAD] * 14 + [GOOD], Verdict.NOT_SIGNIFICANT),
        ([((UP, (0.15, *UP[1:])), (DOWN, DOWN))] * 6, Verdict.PREMISE_NOT_MET),
        ([GOOD] * 5, Verdict.TOO_FEW),
        ([], Verdict.NOT_RUN),
    ],
)
def test_every_verdict_on_the_claim_can_come_out(kinds: list[Any], verdict: Verdict) -> None:
    assert primary(*kinds) == verdict


def test_orders_of_one_replicate_by_hand() -> None:
    derived = row(0, (UP, SWAP), (DOWN, DOWN)).derived
    assert derived["tau_tuning"] == pytest.approx((-1 - 13 / 15) / 2)
    assert derived["tau_chance"] == pytest.approx((13 / 15 + 1) / 2)
    assert (derived["turned_by_tuning"], derived["turned_by_chance"], derived["turned_by_chance_tuned"]) == (14.5, 1, 0)
    assert (derived["same_best_tuning"], derived["same_best_chance"], derived["same_best_chance_tuned"]) == (0, 1, 1)


def test_models_that_share_the_first_place_and_ties() -> None:
    tied = (0.9, 0.5, 0.6, 0.7, 0.8, 0.9)
    derived = row(0, (tied, UP), (UP, UP)).derived
    assert derived["same_best_chance"] == 0.5  # of two that are best in the first draw, one is in the second
    assert derived["turned_by_chance"] == 4  # the tied pair is not turned
    assert derived["tau_chance"] == pytest.approx(((10 - 4) / 15 + 1) / 2)


def test_a_model_that_diverged_comes_last() -> None:
    derived = row(0, (UP, UP), (UP, UP), lost="forest").derived  # the best of the common setting
    assert derived["same_best_tuning"] == 0
    assert derived["turned_by_tuning"] == 5
    assert derived["tau_chance"] == 1
    assert not any(np.isnan(value) for value in derived.values())


def test_each_claim_is_judged_by_itself() -> None:
    verdicts = {text: str(j.verdict) for text, j in judged("digits", [row(i, *GOOD) for i in range(6)]).items()}
    assert list(verdicts.values()) == ["reproduced"] * 4 + ["refuted"] * 4  # the first is the premise
    stable = judged("digits", [row(i, *EQUAL) for i in range(6)])
    assert [str(j.verdict) for j in stable.values()] == ["reproduced", "degenerate"] + ["refuted"] * 6


def test_the_claims_are_all_there() -> None:
    experiment, claim = STUDY.primary
    assert (experiment.name, claim.metric, claim.than, claim.arms) == ("digits", "tau_tuning", "tau_chance", ())
    assert not experiment.needs
    sizes = {experiment.name: len(experiment.claims) for experiment in STUDY.experiments}
    assert sizes == {"digits": 7, "mnist1d": 7, "sources": 3, "rules": 10, "published": 16, "cifar10": 9}
    for experiment in STUDY.experiments:
        texts = [claim.sentence() for claim in experiment.claims]
        assert len(set(texts)) == len(texts)


def test_every_family_runs_untuned_and_tuned_with_the_same_number_of_draws() -> None:
    for name, families in (("digits", FAMILIES), ("mnist1d", FAMILIES), ("cifar10", NETWORKS)):
        experiment = STUDY.experiment(name)
        assert len(families) == 6
        assert experiment.tries == 20
        assert set(experiment.arms) == {family + suffix for family in families for suffix in ("", TUNED)}
        for family, parts in families.items():
            common, tuned = experiment.arms[family], experiment.arms[family + TUNED]
            assert (common.run, common.hyper) == (tuned.run, tuned.hyper)
            assert not common.space
            assert tuned.space == parts.space
            assert set(tuned.space) == set(tuned.hyper)
            assert len(tuned.space) == 3
    assert {name: FAMILIES[name].space for name in NAMES[:4]} == dict.fromkeys(NAMES[:4], SGD_SPACE)


# ------------------------------------------------------------------ runs


def cell(draw: str = "first", replicate: int = 0, *, tuning: bool = False, setting: Any = TINY) -> Cell:
    one = Cell("digits", draw, replicate, Seeds(5, replicate), setting, tuning=tuning)
    samples = Draw("digits")(one)
    return replace(one, shared=lambda: samples)


def test_draws_differ_and_nothing_is_on_two_sides() -> None:
    seen = []
    for draw, replicate in (("first", 0), ("second", 0), ("first", 1)):
        train, val, test = draw_parts("digits", Run(Seeds(0, replicate), draw), Sizes(samples=300))
        rows = [{tuple(x.flatten().tolist()) for x in part.x} for part in (train, val, test)]
        assert not rows[0] & rows[1]
        assert not (rows[0] | rows[1]) & rows[2]
        assert len(rows[0]) < len(train)  # drawn with replacement
        assert len(rows[1]) == len(val) == pytest.approx(0.2 * 0.632 * 300, abs=8)
        assert len(test) == pytest.approx(0.368 * 300, abs=25)
        seen.append(frozenset(rows[2]))
    assert len(set(seen)) == 3


def test_one_source_alone_can_be_drawn_anew() -> None:
    seeds = Seeds(0, 0)
    base, other = Run(seeds, "0"), Run(seeds, "0", {"split": "1"})
    assert base.generator("init").initial_seed() == other.generator("init").initial_seed()
    assert base.generator("split").initial_seed() != other.generator("split").initial_seed()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_depends_on_its_cell_alone(name: str) -> None:
    family, pool = FAMILIES[name], cell()
    first, again = (Model(family.fit)(pool, **family.default) for _ in range(2))
    assert first == again
    assert first.objective is not None
    assert 0 <= first.values["accuracy"] <= 1
    tuning = Model(family.fit)(cell(tuning=True), **family.default)
    assert (tuning.values, tuning.objective) == ({}, first.objective)


def test_families_learn() -> None:
    pool = cell(setting=Sizes(samples=600, epochs=8, trees=20))
    for name, family in FAMILIES.items():
        assert Model(family.fit)(pool, **family.default).values["accuracy"] > 0.5, name


def test_tuning_cannot_open_the_test_samples() -> None:
    with pytest.raises(SealedDataError):
        cell(tuning=True).shared().test.open()


def test_neighbours_vote_by_distance() -> None:
    data = dataset("digits").subset(torch.tensor([0, 1, 2]))  # classes 0, 1, 2
    data = replace(data, x=torch.tensor([[0.0], [3.0], [4.0]]), y=torch.tensor([0, 1, 1]))
    near = torch.tensor([[0.5], [2.0]])
    run = Run(Seeds(), "x")
    assert fit_knn(data, run, TINY, neighbours=3, power=2.0, nearness=0.0)(near).tolist() == [1, 1]
    assert fit_knn(data, run, TINY, neighbours=3, power=2.0, nearness=3.0)(near).tolist() == [0, 1]
    assert fit_knn(data, run, TINY, neighbours=1, power=1.0, nearness=0.0)(near).tolist() == [0, 1]


def test_small_cnn_takes_signals_and_images() -> None:
    for shape in ((1, 8, 8), (1, 40), (3, 9, 7)):
        net = small_cnn(shape, 10)
        assert net(torch.zeros(2, *shape)).shape == (2, 10)
    assert isinstance(small_cnn((1, 40), 10), nn.Module)


def test_official_parts_where_nothing_is_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchstone.studies import _unreproducible_runs as runs

    digits = dataset("digits")
    with pytest.raises(ValueError, match="no official test part"):
        draw_parts("digits", Run(Seeds(), "first"), Sizes(bootstrap=False))
    whole = replace(digits.subset(torch.arange(1000)), test=digits.subset(torch.arange(1000, 1797)))
    monkeypatch.setattr(runs, "dataset", lambda name: whole)
    one, two = (draw_parts("x", Run(Seeds(0, i), "first"), Sizes(bootstrap=False)) for i in (0, 1))
    assert (len(one.train), len(one.val), len(one.test)) == (800, 200, 797)
    assert torch.equal(one.train.x, two.train.x)


# ------------------------------------------------------------------ sources of variation


def spread_rows(**sd: float) -> list[Row]:
    experiment = STUDY.experiment("sources")
    values = {"all": 0.01, "split": 0.009, "init": 0.004, "order": 0.004, **sd}
    outcomes = {(arm, "digits"): Outcome({"sd": values[arm]}) for arm in experiment.arms}
    return [experiment.row(i, outcomes) for i in range(6)]


def test_spreads_can_be_refuted() -> None:
    assert {str(j.verdict) for j in judged("sources", spread_rows()).values()} == {"reproduced"}
    verdicts = [str(j.verdict) for j in judged("sources", spread_rows(init=0.02)).values()]
    assert verdicts == ["refuted", "reproduced", "refuted"]


def test_a_source_that_does_not_vary_spreads_nothing() -> None:
    one = Cell("sources", "digits", 0, Seeds(5), SpreadSizes(3, TINY))
    none = Spread("mlp", ())(one, **FAMILIES["mlp"].default)
    assert none.values["sd"] == pytest.approx(0, abs=1e-12)
    split = Spread("mlp", ("split",))(one, **FAMILIES["mlp"].default)
    assert split.values["sd"] > 1e-3
    assert split.values["accuracy"][0] == none.values["accuracy"][0]


# ------------------------------------------------------------------ rules of comparison


def rule_rows(**changes: tuple[float, float]) -> list[Row]:
    experiment = STUDY.experiment("rules")
    rates = {**READ, "sequential": (0.046, 0.16), "probability": (0.03, 0.3), **changes}
    outcomes = {
        (arm, case): Outcome({"false_positives": rates[arm][0], "false_negatives": rates[arm][1]})
        for arm, case in experiment.slots
    }
    return [experiment.row(i, outcomes) for i in range(6)]


def test_error_rates_can_be_refuted() -> None:
    assert {str(j.verdict) for j in judged("rules", rule_rows()).values()} == {"reproduced"}
    verdicts = judged("rules", rule_rows(probability=(0.2, 0.8)))
    refuted = [text for text, j in verdicts.items() if j.verdict == Verdict.REFUTED]
    assert refuted == [
        "false_positives of probability equals 0.05 up to 0.05 [normal]",
        "false_negatives of probability equals 0.3 up to 0.05 [normal]",
        "false_negatives of probability is lower than that of single-run",
        "false_positives of probability is lower than 0.05",
    ]


@pytest.mark.parametrize("p", [0.5, 0.75])
def test_real_pairs_are_shifted_to_the_truth(p: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, size=40), rng.normal(size=40)
    x, y = resampled(a, b, p, 4000, 29, rng)
    assert x.shape == (4000, 29)
    assert (x > y).mean() == pytest.approx(p, abs=0.01)
    assert set(np.unique(y)) <= set(b)


@pytest.mark.parametrize("case", ["normal", "paired", "live"])
def test_truth_of_every_case(case: str) -> None:
    known = truth(Cell("rules", case, 1, Seeds(5, 1), RuleSizes(200, 8, pool=4, sizes=TINY)))
    for (a, b), p in ((known.equal, 0.5), (known.better, 0.75)):
        assert a.shape == b.shape == (200, 8)
        assert (a > b).mean() + (a == b).mean() / 2 == pytest.approx(p, abs=0.1)
    assert known.sd > 0


# ------------------------------------------------------------------ published scores


def published_row(**changes: float) -> Row:
    """What the published scores say, but for ``changes``."""
    experiment = STUDY.experiment("published")
    orders = {"mnist": (UP, UP), "cifar10": (UP, DOWN), "cifar100": (UP, SWAP)}
    share = {"default": (0.003, 0.810, 0.429), "tuned": (0.031, 0.529, 0.400)}
    outcomes = {
        (arm, case): Outcome(
            {
                "same_order": changes.get("same_order", share[arm][i]),
                "agreement": 0.9,
                "unsure_pairs": (23, 2, 1)[i],
                "mean_error": np.array(orders[case][arm == "tuned"]),
            }
        )
        for i, case in enumerate(PUBLISHED)
        for arm in ("default", "tuned")
    }
    return experiment.row(0, outcomes)


def test_a_re_analysis_holds_or_is_refuted() -> None:
    verdicts = judged("published", [published_row()])
    assert {str(j.verdict) for text, j in verdicts.items() if "same_order" in text or "unsure" in text} == {"holds"}
    assert verdicts["tuning makes another network the best [cifar10]"].verdict == Verdict.HOLDS
    assert verdicts["tau_cifar10 equals 0.5 up to 5e-05"].verdict == Verdict.REFUTED
    assert (
        judged("published", [published_row(same_order=0.5)])[
            "same_order of tuned equals 0.529 up to 0.01 [cifar10]"
        ].verdict
        == Verdict.REFUTED
    )
    assert published_orders(published_row()) == {
        **{"tau_mnist": 1.0, "tau_cifar10": -1.0, "tau_cifar100": pytest.approx(13 / 15)},
        **{f"single_run_tau_{case}": 0.9 for case in PUBLISHED},
        **{"best_changes_mnist": 0.0, "best_changes_cifar10": 1.0, "best_changes_cifar100": 1.0},
    }


@pytest.mark.real_data
@pytest.mark.study
def test_the_published_scores_say_what_the_paper_says() -> None:
    result = api.run("unreproducible", only=["published"], store=":memory:")
    assert not result.failures
    assert {str(j.verdict) for j in result.judgements if j.experiment == "published"} == {"holds"}


def test_without_the_scores_it_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    result = api.run("unreproducible", only=["published"], store=":memory:")
    assert "unreproducible_scores" in result.not_run["published"]
    assert result.verdict == Verdict.NOT_RUN


# ------------------------------------------------------------------ all of it


@pytest.mark.study
def test_the_study_runs_on_embedded_data() -> None:
    result = api.run("unreproducible", scale="smoke", store=":memory:")
    assert not result.failures
    assert {name: len(rows) for name, rows in result.rows.items()} == dict.fromkeys(
        ("digits", "mnist1d", "sources", "rules"), 1
    )
    assert result.verdict == Verdict.TOO_FEW
    for name in ("digits", "mnist1d"):
        tuned = {arm for arm, tuning in result.tunings[name].items() if tuning.draws}
        assert tuned == {family + TUNED for family in FAMILIES}


@pytest.mark.parametrize("experiment", STUDY.experiments[:2], ids=lambda experiment: experiment.name)
def test_smoke_is_the_bench_made_small(experiment: Experiment) -> None:
    smoke, bench = experiment.settings["smoke"], experiment.settings["bench"]
    assert replace(smoke, samples=bench.samples, epochs=bench.epochs, trees=bench.trees) == bench
