from __future__ import annotations

from pathlib import Path

import pytest

from torchstone.data import load
from torchstone.errors import CorruptDataError, DataNotFoundError, UnknownNameError


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_numbers_and_text_labels(write):
    data = load(write('\ufeffage , "label",height\n1,dog,-2.5\n\n3e1,"cat, big",0\n4,dog,7\n'))
    assert data.name == "mine"
    assert data.x.tolist() == [[1, -2.5], [30, 0], [4, 7]]
    assert data.class_names == ("cat, big", "dog")
    assert data.y.tolist() == [1, 0, 1]


def test_whole_numbers_are_sorted_as_numbers(write):
    data = load(write("quality,a\n10,1\n3,2\n-1,3\n"), label="quality")
    assert data.class_names == ("-1", "3", "10")
    assert data.y.tolist() == [2, 1, 0]


def test_second_file_for_test(write):
    train = write("a,b,label\n1,2,x\n3,4,y\n")
    data = load(train, test=write("label,b,a\ny,6,5\n", "held.csv"))
    assert data.test is not None
    assert data.test.x.tolist() == [[5, 6]]
    assert data.test.y.tolist() == [1]
    with pytest.raises(CorruptDataError, match="label 'z' of sample 0 is none of the classes x, y"):
        load(train, test=write("a,b,label\n1,2,z\n", "held.csv"))
    with pytest.raises(UnknownNameError, match=r"unknown column of .*held.csv 'b'"):
        load(train, test=write("a,label\n1,x\n", "held.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.csv: it is empty"),
        ("\n\n", "it is empty"),
        ("a,label\n", "it has a header but no rows"),
        ("a,label\n1,x\n,y\n", "row 3, column 'a' is empty"),
        ("a,label\n1,x\nNA,y\n", "row 3, column 'a' holds 'NA', which is not a number"),
        ("a,label\n1,x\nnan,y\n", "row 3, column 'a' holds 'nan', not a finite number"),
        ("a,label\n1,x\n-inf,y\n", "row 3, column 'a' holds '-inf', not a finite number"),
        ("a,label\n1,x\n1e39,y\n", "row 3, column 'a' holds '1e39', not a finite number"),
        ("a,sex,label\n1,male,x\n", "row 2, column 'sex' holds 'male', which is not a number"),
        ("a,label\n1,x\n2,\n", "row 3, column 'label' is empty"),
        ("a,label\n1,x\n2,y,3\n", "row 3 has 3 cells, but the header has 2"),
        ("a,label\n1,x\n2,x\n", "all 2 labels are 'x', but two classes are needed"),
        ("a,a,label\n1,1,x\n", "two columns are called 'a'"),
        ("label\nx\ny\n", "it has no column but 'label'"),
        ('a,label\n1,"x\n', "not a CSV file in UTF-8"),
    ],
)
def test_bad_tables(write, text, message):
    with pytest.raises(CorruptDataError, match=message):
        load(write(text))


def test_missing_label_column_and_file(write, tmp_path):
    with pytest.raises(UnknownNameError, match=r"'labl': did you mean 'label'\? .there are: a, label"):
        load(write("a,label\n1,x\n2,y\n"), label="labl")
    with pytest.raises(DataNotFoundError, match=r"gone\.csv"):
        load(write("a,label\n1,x\n2,y\n"), test=tmp_path / "gone.csv")
    (tmp_path / "binary.csv").write_bytes(b"a,label\n\xff\xfe,1\n")
    with pytest.raises(CorruptDataError, match="not a CSV file in UTF-8"):
        load(tmp_path / "binary.csv")


def test_what_is_known_of_a_label_is_no_input(write):
    train = write("a,annotator,label,pi_seconds,b,pi_sure\n1,zoe,x,9,2,0.5\n3,adam,y,8,4,1\n5,zoe,x,7,6,0\n")
    data = load(train, test=write("label,b,a\ny,6,5\n", "held.csv"))
    assert data.x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert data.columns["annotator"].tolist() == [1, 0, 1]
    assert data.columns["pi"].tolist() == [[9, 0.5], [8, 1], [7, 0]]
    assert data.test is not None
    assert (data.test.x.tolist(), dict(data.test.columns)) == ([[5, 6]], {})
    same = load(train, test=train)
    assert same.test is not None
    assert same.test.x.shape == (3, 2)
    nobody = load(train, test=write("annotator,pi_sure,a,b,label\n,?,1,2,y\n", "nobody.csv"))
    assert nobody.test is not None
    assert nobody.test.x.tolist() == [[1, 2]]
    assert load(write("annotator,a\nx,1\ny,2\n"), label="annotator").class_names == ("x", "y")
    numbers = load(write("annotator,a,label\n10,1,x\n9,2,y\n")).columns
    assert numbers["annotator"].tolist() == [1, 0]
    assert "pi" not in numbers
    with pytest.raises(CorruptDataError, match="row 3, column 'annotator' is empty"):
        load(write("annotator,a,label\nzoe,1,x\n,2,y\n"))
    with pytest.raises(CorruptDataError, match="row 2, column 'pi_s' holds 'long', which is not a number"):
        load(write("pi_s,a,label\nlong,1,x\n1,2,y\n"))
    with pytest.raises(CorruptDataError, match="it has no column but 'label', 'annotator', 'pi_s'"):
        load(write("annotator,label,pi_s\nzoe,x,1\nzoe,y,1\n"))
