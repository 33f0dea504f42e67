"""The page: right, whole, harmless, and legible without colours, scripts or a network."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tests.bench.report.example import HOSTILE, result, store, study
from tests.fakes import Normal, silent
from torchstone.bench import Arm, Experiment, Higher, Outcome, Row, Study, Within
from torchstone.bench.judge import judge
from torchstone.bench.report import html
from torchstone.bench.report.tables import Mean, counts, score_rows, scores
from torchstone.bench.report.wording import spread
from torchstone.bench.result import Result
from torchstone.bench.statistics.verdict import Verdict

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects elements and texts, and checks that what is opened is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]


def of(found: Result) -> Result:
    """The result, judged again by its rows."""
    return replace(found, judgements=judge(found.study, found.rows, not_run=found.not_run))


@pytest.fixture(scope="module")
def plain() -> tuple[str, Page]:
    found = result()
    source = html([found], store=store(found), command="torchstone run fake --budget 5m")
    return source, Page(source)


@pytest.mark.parametrize(
    "text",
    [
        "About it.",
        "accuracy of method is higher than that of base",
        "main , primary",
        "main , premise",
        "0.535 ± 0.024",  # base: 0.50 to 0.57
        "n = 8",
        "lr=0.0312, norm=batch (best of 8 draws, objective 0.81)",
        "lr=0.05 (fixed)",
        "8 replicates; every claim is decided",
        "Not run: data set 'cifar10' is not there",
        "of the replicates, 1 with an arm that diverged",
        "diverged main method b 2 loss is NaN",
        "failed main base b 6 RuntimeError: out of memory",
        "diverged while tuned main method 40% 1 too large",
        "They say nothing about other data sets",
        "it does not speak about the sizes at which a paper was written",
        "torchstone run fake --budget 5m",
        "study seed 0",
        "Environment of 42 runs python 3.11.9",  # of the runs, not of the process that reads them
        "sqlite:////data/results.db",
        "test_accuracy , 40% (8 replicates)",
        "accuracy against seconds per run",
        "accuracy against steps per run",
        "digits 1.0",
        "print-1",
        "gap 0.235 ± 0.024",
        "42 runs, 2 min 25 s of computing",
    ],
)
def test_everything_is_in_the_report(plain: tuple[str, Page], text: str):
    assert text in plain[1].text


def test_the_verdict_comes_first_in_words_sign_and_shape(plain: tuple[str, Page]):
    source, read = plain
    assert read.text.index("✓ reproduced") < read.text.index("Skip") + 400
    assert "The claim held in 7.5 of 8 repetitions" in read.text  # one tie of the lost case with a won one
    assert "✗ refuted" in read.text  # the second claim: they are not equal
    assert '<strong class="badge good">' in source


def test_the_page_is_self_contained(plain: tuple[str, Page]):
    source, read = plain
    assert not {tag for tag, _ in read.tags} & {"link", "img", "iframe", "object", "embed", "form", "base"}
    assert [attrs for tag, attrs in read.tags if tag == "script"] == [{}]
    hrefs = [attrs.get("href") or "" for tag, attrs in read.tags if tag == "a"]
    assert hrefs
    assert all(href.startswith("#") for href in hrefs)
    assert not re.search(r"url\(|@import|src=", source)
    assert len(source) < 60_000


def test_a_paper_of_the_catalogue_is_named():
    found = result()
    text = html([replace(found, study=replace(found.study, name="sop"))])
    assert '<a href="https://proceedings.mlr.press/v162/liu22w.html">Robust Training under Label Noise' in text
    assert "torchstone run sop --scale bench --store /data/results.db" in text


def test_how_to_run_again_where_no_command_was_typed():
    text = Page(html([result()])).text
    assert "torchstone.run(study, scale='bench', store='/data/results.db')" in text


def test_ids_are_unique_and_every_link_resolves():
    names = ("fake", "fake--1", "fake 3", "fake", "fake", "雪")
    found = [result() for _ in names]
    read = Page(
        html([replace(one, study=replace(one.study, name=name)) for one, name in zip(found, names, strict=True)])
    )
    ids = read.ids()
    assert len(ids) == len(set(ids))
    used = {(attrs[key] or "") for _, attrs in read.tags for key in ("aria-labelledby", "href") if key in attrs}
    assert {name.removeprefix("#") for name in used} <= set(ids)


@pytest.mark.parametrize("bad", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text(bad: str):
    found = result(lambda name: f"{name} {bad}")
    honest, hostile = (Page(html([one, one], store=store(one))) for one in (result(), found))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in honest.tags]
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    assert not set("".join(hostile.texts)) & set(map(chr, (*range(9), *range(14, 32), *range(127, 160), 0xD800)))
    assert len("".join(hostile.texts)) > 2000


def test_several_studies_share_a_front_page():
    found = [result(), replace(result(), scale="smoke"), result()]
    read = Page(html(found))
    assert read.text.startswith("3 studies · torchstone")
    assert read.text.count("survives") == 2  # those that are no smoke
    assert "fake bench" in read.text
    assert "fake smoke" in read.text
    rows = [attrs for tag, attrs in read.tags if tag == "tr" and "data-study" in attrs]
    assert ["primary" in (attrs["class"] or "") for attrs in rows] == [True] * 3 + [False] * 12


def test_a_verdict_that_does_not_survive_says_so():
    found = [result()] + [of(result(replicates=3)) for _ in range(20)]
    assert "does not survive" in Page(html(found)).text


def test_failures_without_records_of_their_runs_are_told():
    found = result(runs=())
    assert "failed: main/base/b/6: RuntimeError: out of memory" in Page(html([found])).text


def test_no_study_at_all():
    assert "The store holds no study" in Page(html([])).text


def test_smoke_scale_says_that_it_is_not_to_be_quoted():
    assert "not to be quoted" in Page(html([replace(result(), scale="smoke")])).text
    assert "not to be quoted" not in Page(html([result()])).text


def test_an_unfinished_study_says_so_at_the_top():
    text = Page(html([of(result(replicates=3))])).text
    warning = "Unfinished : main: 3 of at most 29 replicates. The verdict may change."
    assert warning in text
    assert text.index(warning) < text.index("Claims")
    assert "too few replicates" in text
    assert "Unfinished" not in Page(html([result()])).text


def test_a_study_at_its_last_replicate_is_finished_even_if_a_claim_stays_open():
    claim = Within("x", "a", 0.0, always=True, primary=True)
    main = Experiment("main", {"a": Arm(silent)}, (claim,), replicates=(2, 2))
    rows = [Row(i, {slot: Outcome({"x": math.nan}) for slot in main.slots}) for i in range(2)]
    stated = Study("open", (main,))
    found = Result(stated, "bench", judge(stated, {"main": rows}), {"main": rows}, {}, {}, {}, ())
    assert not found.primary.decided
    assert "Unfinished" not in Page(html([found])).text
    one = replace(found, rows={"main": rows[:1]})
    assert "main: 1 of 2 replicates" in Page(html([one])).text


@pytest.mark.parametrize("replicates", [0, 1, 2, 6, 29])
def test_any_number_of_replicates(replicates: int):
    found = of(result(replicates=replicates))
    read = Page(html([found], store=store(found)))
    assert f"{replicates} replicate" in read.text


def test_nothing_was_run():
    found = result(rows={}, tunings={}, stopped={}, environment={}, runs=(), failures=())
    found = replace(found, judgements=judge(found.study, {}))
    assert "· not run Nothing was run, so nothing is known." in Page(html([found])).text


@pytest.mark.parametrize("outcome", [Outcome(diverged="loss is NaN"), Outcome({"accuracy": math.nan}), Outcome()])
def test_all_runs_lost(outcome: Outcome):
    found = result(runs=(), failures=())
    main = found.study.experiments[0]
    lost = [Row(i, dict.fromkeys(main.slots, outcome), {"gap": math.nan}) for i in range(7)]
    if not outcome.values and not outcome.diverged:
        lost = []
    found = of(replace(found, rows={"main": lost}))
    read = Page(html([found]))
    assert "nan" not in read.text.lower().replace("loss is nan", "")


def wide(arms: int, cases: int, metrics: int) -> Result:
    """So many arms on so many cases, all claims about the first two arms."""
    names = [f"arm-{i}" for i in range(arms)]
    main = Experiment(
        "main",
        {name: Arm(Normal(0.5)) for name in names},
        (Higher("m0", "arm-0", "arm-1", primary=True),),
        cases=tuple(f"case-{i}" for i in range(cases)),
    )
    rng = np.random.default_rng(0)
    rows = [
        Row(i, {slot: Outcome({f"m{k}": rng.normal() for k in range(metrics)}) for slot in main.slots})
        for i in range(6)
    ]
    stated = Study("wide", (main,))
    return Result(stated, "bench", judge(stated, {"main": rows}), {"main": rows}, {}, {}, {}, ())


def test_forty_arms_and_six_cases():
    source = html([wide(40, 6, 2)])
    read = Page(source)
    assert sum(tag == "svg" and attrs.get("class") == "plot" for tag, attrs in read.tags) == 6
    assert len(source) < 250_000


def test_the_numbers_are_those_of_the_result():
    found = result()
    means = found.means("main", "accuracy")
    for row in score_rows(found, "main"):
        mean, sd, n = means[row.arm, row.case]
        shown = row.means["accuracy"]
        assert (shown.mean, shown.sd, shown.n) == pytest.approx((mean, sd, n), rel=1e-12)
        assert shown.low <= shown.mean <= shown.high
        assert spread(mean, sd) in Page(html([found])).text
    assert scores(found, "main", "accuracy", "method", "b")[1:4] == [0.72, pytest.approx(math.nan, nan_ok=True), 0.76]


def test_the_mean_of_nothing_and_of_one():
    assert Mean.of([math.nan]).n == 0
    one = Mean.of([2.0, math.nan])
    assert (one.mean, one.n) == (2.0, 1)
    assert math.isnan(one.sd + one.low + one.high)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5], "0-2, 5"), ([1, 2, 4, 5], "1-2, 4-5")]
)
def test_replicates_in_words(numbers: list[int], text: str):
    assert counts(numbers) == text


def test_variation_by_source_is_shown_where_the_result_has_it():
    found = result()
    spread_of = {"main": {"method": {"init": [1.0, 2.0, 3.0], "all": [0.0, 2.0, 4.0]}}}
    text = Page(html([replace(found, variance=spread_of)])).text
    assert "Where the variation comes from" in text
    assert "init 1 [0.521, 6.28] 3 0.25" in text


def test_every_verdict_has_plain_words():
    from torchstone.bench.report.summary import in_plain_words

    j = result().primary
    said = {in_plain_words(replace(j, verdict=verdict)) for verdict in Verdict}
    assert len(said) == len(Verdict)
    assert all(text.endswith(".") for text in said)


def test_it_says_when_jinja_is_missing(monkeypatch: pytest.MonkeyPatch):
    import sys

    from torchstone.bench.report import page
    from torchstone.errors import MissingDependencyError

    page._templates.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match="bench"):
        html([result()])


def test_a_study_of_arms_that_never_ran():
    stated = Study("none", (Experiment("main", {"a": Arm(silent)}, (Higher("x", "a", 0.0, primary=True),)),))
    found: Any = Result(stated, "bench", judge(stated, {}), {}, {}, {}, {}, ())
    assert "not run" in Page(html([found])).text
    assert study().name == "fake"
