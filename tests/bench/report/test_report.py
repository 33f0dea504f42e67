"""The report: right, whole, harmless, and legible without colours, scripts or a network."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Normal, rows, silent
from torchstone.bench import Arm, Experiment, Higher, Outcome, Study, Within
from torchstone.bench.judge import judge
from torchstone.bench.report import markdown, report_path, write_report
from torchstone.bench.report import report as reports
from torchstone.bench.report.stripplot import strip_plot
from torchstone.bench.report.summary import arm_lines, claim_lines
from torchstone.bench.result import Result, Tuning

HOSTILE = "<script>alert(1)</script>\"&'$\\frac{|[x](javascript:1)\u202e\U0001f600"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects elements, texts and ids, and checks that what is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
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
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def result(name: str = "method", case: str = "40%", **changes: Any) -> Result:
    """Eight replicates of two arms on two cases, one run diverged; a second experiment was not run."""
    arms = {"base": Arm(Normal(0.5)), name: Arm(Normal(0.9), role="method")}
    claims = (Higher("accuracy", name, "base", primary=True), Within("accuracy", name, "base", by=0.01))
    main = Experiment("main", arms, claims, cases=(case, "b"), premises=(Higher("accuracy", "base", 0.1),))
    other = Experiment("other", {"base": Arm(silent)}, (Higher("accuracy", "base", 0.3),), needs=("cifar10",))
    study = Study("fake", (main, other), about="About it.")
    found = list(rows(main, *({"base": 0.5 + i / 100, name: 0.7 + i / 50} for i in range(8))))
    lost = {**found[2].outcomes, (name, "b"): Outcome(diverged="loss is NaN")}
    found[2] = replace(found[2], outcomes=lost)
    not_run = {"other": "data set 'cifar10' is not there"}
    fields: dict[str, Any] = {
        "study": study,
        "scale": "bench",
        "judgements": judge(study, {"main": found}, not_run=not_run),
        "rows": {"main": found},
        "tunings": {"main": {"base": Tuning({"lr": 0.05}), name: Tuning({"lr": 0.0312345}, 0.81, 8, name)}},
        "stopped": {"main": "every claim is decided"},
        "not_run": not_run,
        "failures": ("main/base/b/6: RuntimeError: out of memory",),
        "environment": {"python": "3.11.2", "packages": {"torch": "2.13.0"}},
        "store": "sqlite:////data/results.db",
        "seconds": 83.0,
    }
    return Result(**{**fields, **changes})


def page(tmp_path: Path, found: Result, **options: Any) -> tuple[str, Page]:
    html = write_report(found, tmp_path / "r.html", **options).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return page(tmp_path_factory.mktemp("report"), result(), command="torchstone run fake --budget 5m")


@pytest.fixture
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "strip_plot", lambda *args, **options: "")


def test_everything_is_in_the_report(plain: tuple[str, Page]):
    read = plain[1]
    for text in (
        "fake About it. bench scale, 1 min 23 s in this run.",
        "accuracy of method is higher than that of base",
        "main, primary",
        "main, premise",
        "0.535 ± 0.024",  # base: 0.50 to 0.57
        "lr=0.0312 (best of 8 draws, objective 0.81)",
        "lr=0.05 (fixed)",
        "8 replicates; every claim is decided",
        "Not run: data set 'cifar10' is not there",
        "of the replicates, 1 with an arm that diverged",
        "failed: main/base/b/6: RuntimeError: out of memory",
        "They say nothing about other data sets",
        "torchstone run fake --budget 5m",
        "study seed 0",
        "packages.torch 2.13.0",
        "sqlite:////data/results.db",
    ):
        assert text in read.text, text


def test_the_verdict_comes_first_in_words_colour_and_sign(plain: tuple[str, Page]):
    html, read = plain
    assert read.text.index("✓ reproduced") < read.text.index("Claims")
    assert 'class="headline good"' in html
    assert "✗ refuted" in read.text  # the second claim: they are not equal


def test_the_page_is_self_contained(plain: tuple[str, Page]):
    html, read = plain
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form"}
    addresses = [
        value or "" for _, attrs in read.tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")
    ]
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"url\((?!#)|@import", html)
    assert len(html) < 200_000


def test_ids_are_unique_and_every_reference_resolves(plain: tuple[str, Page]):
    html, read = plain
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in re.findall(r'(?:href="|url\()(#[^")]+)', html)} <= set(ids)


def test_hostile_names_stay_text(tmp_path: Path):
    found = result(
        HOSTILE,
        case=HOSTILE,
        failures=(HOSTILE,),
        stopped={"main": HOSTILE},
        environment={HOSTILE: {HOSTILE: HOSTILE}},
        store=f"sqlite:///{HOSTILE}",
    )
    found = replace(found, study=replace(found.study, about=HOSTILE))
    _, read = page(tmp_path, found, command=HOSTILE)
    assert "script" not in {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert read.text.count("<script>alert(1)</script>") > 15


def test_the_page_adapts_to_dark_print_and_narrow(plain: tuple[str, Page]):
    html, read = plain
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert rule in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in read.tags
    assert ("html", {"lang": "en"}) in read.tags


def test_a_picture_per_case_with_words_for_those_who_see_none(plain: tuple[str, Page]):
    read = plain[1]
    labels = [attrs["aria-label"] for tag, attrs in read.tags if tag == "svg"]
    assert labels == [f"accuracy of every arm in 8 paired replicates, main, {case}" for case in ("40%", "b")]
    assert "Mean accuracy: base 0.535, method 0.77." in read.texts


@pytest.mark.usefixtures("_no_plots")
def test_smoke_scale_says_that_it_is_not_to_be_quoted(tmp_path: Path):
    assert "not to be quoted" in page(tmp_path, result(scale="smoke"))[1].text
    assert "not to be quoted" not in page(tmp_path, result())[1].text


def test_a_result_without_any_replicate_has_a_report_too(tmp_path: Path):
    found = result(rows={}, tunings={}, stopped={}, environment={})
    study = found.study
    found = replace(found, judgements=judge(study, {}))
    assert "· not run" in page(tmp_path, found)[1].text
    assert markdown(found).startswith("# fake: not run\n")


@pytest.mark.usefixtures("_no_plots")
def test_how_to_run_again_where_no_command_was_typed(tmp_path: Path):
    assert "torchstone.run(study, scale='bench', store='/data/results.db')" in page(tmp_path, result())[1].text
    known = replace(result().study, name="sop")
    text = page(tmp_path, result(study=known))[1].text
    assert "torchstone run sop --scale bench --store /data/results.db" in text


@pytest.mark.usefixtures("_no_plots")
def test_a_report_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_report(result(), tmp_path / "new" / "r.html")
    before = path.read_text(encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(result(scale="smoke"), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["r.html"]
    assert path.read_text(encoding="utf-8") == before


def test_where_the_report_lies():
    assert report_path(result()) == Path("/data/reports/fake-bench.html")
    study = replace(result().study, name="../noisy labels@C:\\x")
    assert report_path(result(study=study)) == Path("/data/reports/noisy-labels-C--x-bench.html")
    assert report_path(result(store="sqlite:///:memory:")) is None
    assert report_path(result(store="postgresql://user@host/results")) is None


def test_markdown():
    text = markdown(result())
    assert text.startswith("# fake: reproduced\n\n*accuracy of method is higher than that of base*\n")
    assert "| accuracy of method is higher than that of base | primary | reproduced | 8 |" in text
    assert "| 40% | method | 0.770 ± 0.049 | lr=0.0312 |" in text
    assert "not run: data set 'cifar10' is not there." in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {10, 5}


def test_markdown_escapes():
    text = markdown(result(HOSTILE))
    assert "<script>" not in re.sub(r"\\.", "", text)
    assert "](" not in re.sub(r"\\.", "", text)
    tables = [re.sub(r"\\.", "", line) for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {10, 5}


def test_strip_plot_draws_every_value_and_leaves_no_trace():
    import matplotlib

    before = dict(matplotlib.rcParams)
    scores = {"a": [0.1, 0.2, float("nan")], "b": [0.3, 0.4, 0.5], "none": [float("nan")] * 3}
    svg = strip_plot(scores, metric="accuracy", title="t", roles={"b": "method"}, prefix="p")
    assert dict(matplotlib.rcParams) == before
    assert (svg.count('style="fill: #3a86c8'), svg.count('style="fill: #d9772b')) == (2, 3)
    assert "<title>t</title><desc>Mean accuracy: a 0.15, b 0.4.</desc>" in svg
    assert "#010203" not in svg
    assert svg.count("currentColor") > 10  # text and axes follow the page into dark mode
    assert svg == strip_plot(scores, metric="accuracy", title="t", roles={"b": "method"}, prefix="p")


def test_strip_plot_takes_no_name_for_a_formula():
    svg = strip_plot({r"a$\frac{$": [0.1, 0.2], "雪": [0.3, 0.4]}, metric=r"$\foo{$", title="t")
    assert r"a$\frac{$</text>" in svg
    assert r"$\foo{$</text>" in svg
    assert "雪</text>" in svg


def test_diverged_runs_are_counted_arm_by_arm():
    lines = {(line.arm, line.case): line.diverged for line in arm_lines(result(), "main")}
    assert lines == {("base", "40%"): 0, ("method", "40%"): 0, ("base", "b"): 0, ("method", "b"): 1}


def test_the_dust_of_rounding_is_no_number():
    found = result()
    change = replace(found.primary, effect_interval=(-1.6e-17, 0.2))
    assert claim_lines(replace(found, judgements=(change,)))[0].effect_interval == "[0, +0.2]"
