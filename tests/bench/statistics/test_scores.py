from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from torchstone.bench.statistics import compare
from torchstone.bench.statistics.multiplicity import adjust
from torchstone.bench.statistics.scores import from_frame, judge_scores, read_scores
from torchstone.bench.statistics.significance import sign_flip_test
from torchstone.bench.statistics.verdict import Verdict
from torchstone.errors import CorruptDataError, DataNotFoundError, UnknownNameError

OURS = [0.91, 0.92, 0.90, 0.93, 0.94, 0.92, 0.95, 0.91]
THEIRS = [0.90, 0.90, 0.89, 0.91, 0.92, 0.91, 0.93, 0.92]


@pytest.fixture
def write(tmp_path):
    def write(text, name="scores.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def _long(*columns, rows, separator=","):
    return "\n".join(separator.join(map(str, row)) for row in (columns, *rows)) + "\n"


def _both():
    return [
        (name, seed, score)
        for name, scores in (("ours", OURS), ("theirs", THEIRS))
        for seed, score in enumerate(scores)
    ]


# ------------------------------------------------------------------ reading


def test_a_long_table(write):
    table = read_scores(write(_long("method", "seed", "score", rows=_both())))
    assert table.methods == ("ours", "theirs")
    assert table.datasets == ("",)
    assert table.strata("ours") == [OURS]
    assert table.blocks() == {"ours": OURS, "theirs": THEIRS}
    assert table.unmatched() == ""


def test_a_wide_table_says_the_same(write):
    text = _long("seed", "ours", "theirs", rows=[(i, *pair) for i, pair in enumerate(zip(OURS, THEIRS, strict=True))])
    assert read_scores(write(text)).blocks() == {"ours": OURS, "theirs": THEIRS}
    without = _long("ours", "theirs", rows=zip(OURS, THEIRS, strict=True))
    assert read_scores(write(without)).blocks() == {"ours": OURS, "theirs": THEIRS}


def test_files_as_spreadsheets_write_them(write):
    rows = [(f' "{name}"', seed, score) for name, seed, score in _both()]
    text = "\n" + _long("Model", "Run", "Accuracy", rows=rows, separator=";").replace("\n", "\r\n") + "\r\n;;\r\n"
    assert read_scores(write(text, encoding="utf-8-sig")).blocks() == {"ours": OURS, "theirs": THEIRS}


def test_columns_can_be_named(write):
    path = write(_long("who", "i", "auc", "loss", rows=[(*row, 1) for row in _both()]))
    table = read_scores(path, method="who", replicate="i", score="auc")
    assert table.blocks() == {"ours": OURS, "theirs": THEIRS}
    with pytest.raises(UnknownNameError, match="unknown column 'acu': did you mean 'auc'"):
        read_scores(path, method="who", replicate="i", score="acu")


def test_the_order_of_lines_does_not_matter_for_pairing(write):
    shuffled = _both()[:8] + _both()[:7:-1]
    table = read_scores(write(_long("method", "seed", "score", rows=shuffled)))
    assert table.blocks() == {"ours": OURS, "theirs": THEIRS}


def test_several_replicate_columns_are_one_name(write):
    rows = [(name, i // 4, i % 4, score) for name, i, score in _both()]
    assert read_scores(write(_long("method", "seed", "fold", "score", rows=rows))).blocks()["theirs"] == THEIRS


def test_one_score_per_data_set_makes_the_data_sets_the_replicates(write):
    rows = [(f"set{i}", *pair) for i, pair in enumerate(zip(OURS, THEIRS, strict=True))]
    table = read_scores(write(_long("dataset", "ours", "theirs", rows=rows)))
    assert table.datasets == ("",)
    assert judge_scores(table).pairs[0].comparison.n == (8, 8)


def test_errors_as_scores_are_turned_round(write):
    path = write(_long("ours", "theirs", rows=zip(THEIRS, OURS, strict=True)))
    report = judge_scores(read_scores(path, higher_is_better=False), baseline="theirs")
    row = report.rows()[0]
    assert row["verdict"] == "reproduced"
    assert row["difference"] == pytest.approx(np.mean(np.subtract(THEIRS, OURS)))
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert [summary.method for summary in report.methods] == ["ours", "theirs"]
    assert report.methods[0].mean == pytest.approx(np.mean(THEIRS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"scores.csv is empty"),
        ("\n \n", r"scores.csv is empty"),
        ("0.1,0.2\n0.3,0.4\n", "has no header"),
        ("method,seed,score\n", "has a header and no scores"),
        ("method,seed,score\na,0,0.5\na,1,high\n", r"line 3, column 'score': 'high' is not a number"),
        ("a,b\n0.1,0.2\n0.1,x\n", r"line 3, column 'b': 'x' is not a number; .* needs a column 'method'"),
        ("method,seed,score\na,0,0.5\na,0,0.6\n", r"line 3: replicate '0' of 'a' is there twice"),
        ("method,seed,score\na,0,0.5\na,1,nan\n", r"line 3: the score of 'a', replicate '1', is nan"),
        ("seed,a,b\n7,0.5,-inf\n", r"line 2: the score of 'b', replicate '7', is -inf"),
        ("method,seed,score\na,0\n", r"line 2 has 2 cells where the header has 3"),
        ("method,seed,score\n,0,0.5\n", r"line 2 names no method"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ("seed\n1\n", "holds no scores"),
        ("method,dataset,score\na,x,1\na,x,2\nb,y,1\nb,y,2\n", "no score of 'a' on 'y'"),
    ],
)
def test_unusable_files_are_refused_in_one_sentence(write, text, message):
    with pytest.raises(CorruptDataError, match=message) as error:
        read_scores(write(text))
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(write, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no file '.*none.csv'"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(DataNotFoundError):
        read_scores(tmp_path)
    with pytest.raises(CorruptDataError, match="UTF-8"):
        read_scores(write("méthode,score\na,1\n", encoding="latin-1"))
    with pytest.raises(UnknownNameError, match=r"unknown column 'score': did you mean 'scor'"):
        read_scores(write("method,scor,time\na,1,2\n"))


def test_pandas_tables_long_and_wide():
    wide = pd.DataFrame({"ours": OURS, "theirs": THEIRS})
    long = pd.DataFrame(_both(), columns=["arm", "replicate", "value"])
    pivoted = long.pivot_table(index="replicate", columns="arm", values="value")
    for frame in (wide, long, pivoted):
        assert from_frame(frame).blocks() == {"ours": OURS, "theirs": THEIRS}
    wide.loc[3, "theirs"] = np.nan
    with pytest.raises(CorruptDataError, match="row 3: the score of 'theirs', replicate 'row 3', is nan"):
        from_frame(wide)
    long.loc[0, "arm"] = None
    with pytest.raises(CorruptDataError, match="row 0 names no method"):
        from_frame(long)


# ------------------------------------------------------------------ judging


def test_against_a_baseline():
    rng = np.random.default_rng(0)
    base = rng.normal(size=12)
    frame = pd.DataFrame({"base": base, "worse": base - rng.random(12), "better": base + rng.random(12), "same": base})
    report = judge_scores(frame, baseline="base")
    verdicts = {row["method"]: row["verdict"] for row in report.rows()}
    assert verdicts == {"worse": "refuted", "better": "reproduced", "same": "degenerate"}
    assert {row["versus"] for row in report.rows()} == {"base"}
    for pair in report.pairs:
        a, b = frame[pair.method].to_numpy(), frame["base"].to_numpy()
        assert pair.comparison == compare(a, b, alpha=0.05 / 3)
    raw = [sign_flip_test(frame[name].to_numpy() - base) for name in ("worse", "better", "same")]
    assert [pair.adjusted_p for pair in report.pairs] == pytest.approx(list(adjust(raw)))
    assert report.paired
    assert report.ranking is not None
    assert report.ranking.methods[0] == "better"


def test_all_pairs_name_the_better_method_first():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({name: rng.normal(mean, 1, size=10) for name, mean in (("a", 0), ("b", 3), ("c", 1))})
    report = judge_scores(frame)
    assert len(report.pairs) == 3
    assert all(row["p_outperforms"] >= 0.5 for row in report.rows())
    assert report.methods[0].method == "b"
    assert report.pairs[0].comparison.alpha == pytest.approx(0.05 / 3)


def test_the_majority_of_runs_decides_who_comes_first_not_the_mean():
    frame = pd.DataFrame({"steady": [1.0] * 10, "lucky": [0.9] * 9 + [100.0]})
    report = judge_scores(frame)
    assert report.methods[0].method == "lucky"
    assert (report.pairs[0].method, report.pairs[0].comparison.p) == ("steady", 0.9)


def test_long_tables_without_replicates_are_unpaired(write):
    rows = [(name, score) for name, _, score in _both()]
    report = judge_scores(read_scores(write(_long("method", "score", rows=rows))))
    assert not report.paired
    assert report.unpaired_reason == "the table has no column that names the replicates"
    assert report.pairs[0].comparison == compare(OURS, THEIRS, paired=False)
    assert report.ranking is None


def test_replicates_that_do_not_match_are_unpaired_unless_asked(write):
    table = read_scores(write(_long("method", "seed", "score", rows=_both()[:-1])))
    assert not judge_scores(table).paired
    assert judge_scores(table).pairs[0].comparison.n == (8, 7)
    with pytest.raises(ValueError, match="cannot be paired: replicate '7' is there for 'ours' and not for 'theirs'"):
        judge_scores(table, paired=True)
    gap = read_scores(write("seed,a,b\n0,1,2\n1,1,\n2,3,4\n"))
    assert gap.unmatched() == "replicate '1' is there for 'a' and not for 'b'"


def test_paired_tables_can_be_judged_unpaired():
    frame = pd.DataFrame({"ours": OURS, "theirs": THEIRS})
    report = judge_scores(frame, paired=False)
    assert (report.paired, report.unpaired_reason) == (False, "")
    assert report.pairs[0].comparison == compare(OURS, THEIRS, paired=False)


def test_several_data_sets_are_averaged_and_ranked_by_their_means(write):
    rng = np.random.default_rng(0)
    rows = [
        (name, dataset, seed, scale * (base + mean))
        for dataset, scale in (("small", 1), ("large", 100), ("huge", 1e4))
        for seed, base in enumerate(rng.normal(size=8))
        for name, mean in (("a", 0.0), ("b", 0.5), ("c", 1.0))
    ]
    table = read_scores(write(_long("method", "dataset", "seed", "score", rows=rows)))
    report = judge_scores(table, baseline="a")
    assert report.datasets == ("small", "large", "huge")
    assert [pair.comparison.p for pair in report.pairs] == [1.0, 1.0]
    assert [pair.comparison.verdict for pair in report.pairs] == [Verdict.REPRODUCED] * 2
    assert report.ranking is not None
    assert (report.ranking.blocks, report.ranking.methods) == (3, ("c", "b", "a"))


def test_unpaired_data_sets_may_differ_in_size(write):
    rows = [("a", "x", v) for v in OURS] + [("b", "x", v) for v in THEIRS[:7]]
    rows += [("a", "y", v) for v in OURS[:6]] + [("b", "y", v) for v in THEIRS]
    report = judge_scores(read_scores(write(_long("method", "dataset", "score", rows=rows))))
    expected = np.mean([compare(OURS, THEIRS[:7], paired=False).p, compare(OURS[:6], THEIRS, paired=False).p])
    assert report.pairs[0].comparison.p == pytest.approx(expected)
    assert report.pairs[0].comparison.n == (6, 7)


def test_rows_are_plain_data():
    import json

    rows = judge_scores(pd.DataFrame({"ours": OURS, "theirs": THEIRS})).rows()
    assert json.loads(json.dumps(rows)) == rows
    assert list(pd.DataFrame(rows).columns) == list(rows[0])


@pytest.mark.parametrize(
    ("frame", "kwargs", "error", "message"),
    [
        ({"ours": OURS}, {}, ValueError, "at least 2 methods, and the table has only ours"),
        ({"ours": OURS, "theirs": THEIRS}, {"baseline": "their"}, UnknownNameError, "did you mean 'theirs'"),
        ({"ours": [1.0], "theirs": [2.0]}, {}, ValueError, "method 'ours' has 1 replicate, and at least 2"),
        ({"ours": OURS, "theirs": THEIRS}, {"alpha": 2.0}, ValueError, "alpha"),
    ],
)
def test_unusable_tables_are_refused(frame, kwargs, error, message):
    with pytest.raises(error, match=message):
        judge_scores(pd.DataFrame(frame), **kwargs)
