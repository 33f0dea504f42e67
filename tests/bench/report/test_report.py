"""Formats, files, Markdown, JSON, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.report.example import HOSTILE, result
from torchstone.bench.report import (
    FORMATS,
    format_of,
    latex,
    markdown,
    means_csv,
    report_path,
    to_csv,
    to_json,
    write,
    write_report,
)
from torchstone.bench.report import report as reports
from torchstone.bench.report.latex import escaped
from torchstone.bench.report.summary import arm_lines, claim_lines


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("several", [False, True])
def test_every_format_takes_one_result_or_several(tmp_path: Path, format: str, several: bool):
    found = [result(), result()] if several else result()
    path = write(found, tmp_path / "new" / f"r.{format}")
    assert path == tmp_path / "new" / f"r.{format}"
    text = path.read_text(encoding="utf-8")
    assert text.count("accuracy of method is higher than that of base") >= 1 + several or format == "means.csv"
    assert text.endswith(("\n", "</html>"))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", HOSTILE, ids=range(len(HOSTILE)))
def test_every_format_takes_hostile_names(tmp_path: Path, format: str, bad: str):
    assert write(result(lambda name: f"{name} {bad}"), tmp_path / "r", format).stat().st_size > 500


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_takes_a_result_without_replicates(tmp_path: Path, format: str):
    found = result(rows={}, tunings={}, stopped={}, runs=())
    assert write(found, tmp_path / "r", format).is_file()


def test_the_name_of_a_file_says_its_format():
    assert [format_of(f"a.b.{format}") for format in FORMATS] == list(FORMATS)
    with pytest.raises(ValueError, match=r"must end in one of \.html, .*, but is 'report\.pdf'"):
        format_of("x/report.pdf")
    with pytest.raises(ValueError, match="format must be one of"):
        write(result(), "r.html", "pdf")


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    found = replace(result(), store="sqlite:////data/results.db")
    assert report_path(found) == Path("/data/reports/fake-bench.html")
    assert report_path(found, "tex") == Path("/data/reports/fake-bench.tex")
    named = replace(found, study=replace(found.study, name="../noisy labels@C:\\x"))
    assert report_path(named) == Path("/data/reports/noisy-labels-C--x-bench.html")
    assert report_path(replace(found, store="sqlite:///:memory:")) is None
    assert report_path(replace(found, store="postgresql://user@host/results")) is None


def test_markdown():
    text = markdown(result())
    assert text.startswith("# fake: reproduced\n\n*accuracy of method is higher than that of base*\n")
    assert "| accuracy of method is higher than that of base | primary | reproduced | 8 |" in text
    assert "| 40% | method | 0.770 ± 0.049 | 0.965 ± 0.024 | lr=0.0312, norm=batch |" in text
    assert "not run: data set 'cifar10' is not there." in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {10, 6}


@pytest.mark.parametrize("bad", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_escapes(bad: str):
    text = markdown(result(lambda name: f"{name}{bad}"))
    bare = re.sub(r"\\.", "", text)
    assert "<" not in bare
    assert "](" not in bare
    assert {line.count("|") for line in bare.splitlines() if line.startswith("|")} == {10, 6}


def test_json():
    found = result()
    document = json.loads(to_json(found), parse_constant=pytest.fail)
    assert document["verdict"] == "reproduced"
    assert document["unfinished"] == []
    (mean,) = (m for m in document["means"] if (m["arm"], m["case"], m["metric"]) == ("base", "b", "accuracy"))
    assert mean["mean"] == found.means("main", "accuracy")["base", "b"][0]
    assert len(json.loads(to_json([found, found]))) == 2


def test_csv_has_a_line_for_every_claim_and_every_mean():
    found = result(lambda name: f'{name},"x"\n')
    verdicts = list(csv.DictReader(io.StringIO(to_csv(found), newline="")))
    assert [line["verdict"] for line in verdicts] == [str(j.verdict) for j in found.judgements]
    assert verdicts[1]["study"] == found.study.name
    primary = next(line for line in verdicts if line["primary"] == "True")
    assert float(primary["effect"]) == found.primary.effect
    assert float(primary["low"]) == found.primary.interval[0]
    means = list(csv.DictReader(io.StringIO(means_csv([found, found]), newline="")))
    assert len(means) == 2 * 5 * 2  # results, arms and cases, metrics
    assert {float(line["mean"]) for line in means if line["role"] == "baseline" and "accuracy" in line["metric"]} == {
        found.means(found.study.experiments[0].name, 'accuracy,"x"\n')[slot][0]
        for slot in found.study.experiments[0].slots[:1]
    }


def test_latex():
    text = latex(result())
    assert r"accuracy of method is higher than that of base (primary) & reproduced & 8 & 0.938 [0.5" not in text
    assert "accuracy of method is higher than that of base (primary) & reproduced & 8 & 0.938 {[}" in text
    assert r"40\% & method & 0.770 $\pm$ 0.049 & 0.965 $\pm$ 0.024 \\" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {4, 3}


@given(st.text())
def test_escaped_latex_has_no_bare_special_character_and_reads_back(text: str):
    from torchstone.bench.report.latex import _SPECIAL
    from torchstone.bench.report.wording import visible

    made = escaped(text)
    back, bare, i = "", "", 0
    by_code = sorted(((code, letter) for letter, code in _SPECIAL.items()), key=lambda pair: -len(pair[0]))
    while i < len(made):
        code, letter = next(((c, x) for c, x in by_code if made.startswith(c, i)), ("", made[i]))
        bare += "" if code else letter
        back += letter
        i += len(code) or 1
    assert back == " ".join(visible(text).split())
    assert not set(bare) & set("\\{}$&#%_^~")


def test_diverged_runs_are_counted_arm_by_arm():
    lines = {(line.arm, line.case): line.diverged for line in arm_lines(result(), "main") if line.diverged}
    assert lines == {("method", "b"): 1}


def test_the_dust_of_rounding_is_no_number():
    found = result()
    change = replace(found.primary, effect_interval=(-1.6e-17, 0.2))
    assert claim_lines(replace(found, judgements=(change,)))[0].effect_interval == "[0, +0.2]"
