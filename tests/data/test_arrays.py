from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from torchstone.data import from_arrays, from_dataset, load
from torchstone.errors import CorruptDataError, DataNotFoundError


def test_inputs_of_bytes_are_pixels():
    y = [0, 1]
    grey = np.array([[[0, 255]], [[51, 102]]], np.uint8)
    assert torch.equal(from_arrays(grey, y, name="a").x, torch.tensor([[[[0.0, 1.0]]], [[[0.2, 0.4]]]]))
    last = np.zeros((2, 8, 6, 3), np.uint8)
    last[1, 5, 2, 1] = 255
    x = from_arrays(last, y, name="a").x
    assert x.shape == (2, 3, 8, 6)
    assert x[1, 1, 5, 2] == 1
    assert x.is_contiguous()
    for shape in ((2, 3, 8, 6), (2, 3, 8, 3), (2, 1, 4, 4), (2, 9)):
        assert from_arrays(np.zeros(shape, np.uint8), y, name="a").x.shape == shape


def test_other_inputs_stay_as_they_are():
    for dtype in (np.float64, np.float16, np.int64, bool):
        x = np.array([[1], [0]]).astype(dtype)
        assert from_arrays(x, [0, 1], name="a").x.tolist() == [[1.0], [0.0]]
    floats = np.random.default_rng(0).normal(size=(2, 8, 6, 3)).astype(np.float32)
    assert torch.equal(from_arrays(floats, [0, 1], name="a").x, torch.from_numpy(floats))
    assert torch.equal(
        from_arrays(torch.from_numpy(floats)[:, :4], [0, 1], name="a").x, torch.from_numpy(floats)[:, :4]
    )


def test_labels():
    x = np.zeros((3, 1))
    for y in ([0, 1, 0], np.array([0, 1, 0], np.uint8), torch.tensor([0, 1, 0]), [False, True, False]):
        assert from_arrays(x, y, name="a").y.tolist() == [0, 1, 0]
    for strings in (["b", "a", "b"], np.array(["b", "a", "b"]), pd.Series(["b", "a", "b"])):
        data = from_arrays(x, strings, name="a")
        assert (data.class_names, data.y.tolist()) == (("a", "b"), [1, 0, 1])
    data = from_arrays(x, [2, 0, 2], name="a", class_names=("p", "q", "r"))
    assert (data.class_names, data.y.tolist()) == (("p", "q", "r"), [2, 0, 2])
    data = from_arrays(x, ["r", "p", "r"], name="a", class_names=("p", "q", "r"))
    assert data.y.tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0], [2.0]], [0, 0], "all 2 labels are '0', but two classes are needed"),
        ([[1.0], [np.nan]], [0, 1], r"x holds 1 NaN or infinite values, the first at index \(1, 0\)"),
        ([[1.0], [1e300]], [0, 1], "x holds 1 NaN or infinite"),
        pytest.param([[1.0], [2.0]], [0, 1, 0], r"x has 2 samples, but y has shape \(3,\)", marks=pytest.mark.untyped),
        ([[1.0], [2.0]], [1, 2], r"without a gap, but 0 is missing from 1, 2; renumber them, or use strings"),
        ([[1.0], [2.0]], [0, 99], "but 1 is missing from 0, 99"),
        ([[1.0], [2.0]], [-1, 0], "but 0 is missing from -1, 0"),
        ([[1.0], [2.0]], [0.0, 1.0], r"must be class numbers or strings of shape \(n,\), but has dtype float64"),
        ([[1.0], [2.0]], [[0, 1], [1, 0]], r"and shape \(2, 2\)"),
        ([["a"], ["b"]], [0, 1], "x must hold numbers, but has dtype <U1"),
        ([1.0, 2.0], [0, 1], r"x must have shape \(n, features\) or more, but has \(2,\)"),
        (np.zeros((0, 3)), np.zeros(0, np.int64), "it is empty"),
    ],
)
def test_bad_arrays(x, y, message):
    with pytest.raises(CorruptDataError, match=f"data 'mine': .*{message}"):
        from_arrays(np.asarray(x), np.asarray(y), name="mine")


def test_labels_outside_the_named_classes():
    with pytest.raises(
        CorruptDataError, match=r"labels must lie in 0\.\.1, but 1 do not, the first being 2 at sample 1"
    ):
        from_arrays(np.zeros((2, 1)), [0, 2], name="a", class_names=("p", "q"))
    with pytest.raises(CorruptDataError, match="label 'z' of sample 1 is none of the classes p, q"):
        from_arrays(np.zeros((2, 1)), ["p", "z"], name="a", class_names=("p", "q"))


def test_datasets_are_stacked():
    class Pets(Dataset):
        classes = ("cat", "dog")

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return np.full((2, 2), index, np.float32), index % 2

    data = from_dataset(Pets(), name="pets")
    assert data.class_names == ("cat", "dog")
    assert data.x[:, 0, 0].tolist() == [0, 1, 2]
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 1, 0])
    data = from_dataset(TensorDataset(x, y), name="t")
    assert torch.equal(data.x, x)
    assert torch.equal(data.y, y)
    with pytest.raises(CorruptDataError, match="item 0 of the dataset is not a pair"):
        from_dataset(TensorDataset(x), name="t")
    with pytest.raises(CorruptDataError, match=r"item 0 has shape \(1,\), but item 1 has \(2,\)"):
        from_dataset([(np.zeros(1), 0), (np.zeros(2), 1)], name="t")
    with pytest.raises(CorruptDataError, match="the dataset is empty"):
        from_dataset([], name="t")


def test_npz(tmp_path):
    path = tmp_path / "mine.npz"
    x = np.random.default_rng(0).normal(size=(4, 5))
    np.savez(
        path,
        x=x, y=[0, 1, 2, 0], x_test=x[:2], y_test=[2, 2], class_names=["p", "q", "r"],
        who=np.array([3, 3, 4, 5], np.uint16), seconds=np.array([0.5, 1, 2, 3]),
    )  # fmt: skip
    data = load(path)
    assert data.test is not None
    assert (data.name, data.class_names, data.test.y.tolist()) == ("mine", ("p", "q", "r"), [2, 2])
    assert torch.equal(data.x, torch.from_numpy(x).float())
    assert data.columns["who"].tolist() == [3, 3, 4, 5]
    assert data.columns["who"].dtype == torch.int64
    assert data.columns["seconds"].tolist() == [0.5, 1, 2, 3]


def test_npz_with_a_second_file_for_test(tmp_path):
    x = np.zeros((3, 2))
    np.savez(tmp_path / "train.npz", x=x, y=["b", "a", "c"])
    np.savez(tmp_path / "test.npz", x=x + 1, y=["c", "c", "a"])
    data = load(tmp_path / "train.npz", test=tmp_path / "test.npz")
    assert data.test is not None
    assert (data.y.tolist(), data.test.y.tolist()) == ([1, 0, 2], [2, 2, 0])
    np.savez(tmp_path / "test.npz", x=x, y=["c", "d", "a"])
    with pytest.raises(CorruptDataError, match="label 'd' of sample 1 is none of the classes a, b, c"):
        load(tmp_path / "train.npz", test=tmp_path / "test.npz")
    np.savez(tmp_path / "test.npz", x=x[:, :1], y=["c", "c", "a"])
    with pytest.raises(CorruptDataError, match=r"test samples have shape \(1,\), but training samples \(2,\)"):
        load(tmp_path / "train.npz", test=tmp_path / "test.npz")


def test_bad_npz(tmp_path):
    path = tmp_path / "bad.npz"
    x, y = np.zeros((2, 2)), np.array([0, 1])
    cases = (
        ({"x": x}, "it must hold arrays x and y, but holds x"),
        ({"x": x, "y": np.array([0, None], dtype=object)}, "not an .npz file of plain arrays .*allow_pickle"),
        ({"x": x, "y": y, "x_test": x}, "it holds x_test: give one test part"),
        ({"x": x, "y": y, "extra": np.zeros(3)}, "array 'extra' is none of x, y, .*, nor a column of 2 numbers"),
        ({"x": x, "y": y, "note": "hello"}, "array 'note' is none of"),
    )
    for arrays, message in cases:
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]  # its stub forgets the named arrays
        with pytest.raises(CorruptDataError, match=message):
            load(path)
    np.savez(path, x=x, y=y, x_test=x, y_test=y)
    with pytest.raises(CorruptDataError, match=r"it holds x_test and y_test, and .*bad.npz is given as test data too"):
        load(path, test=path)
    whole = path.read_bytes()
    for content in (b"", b"PK", b"garbage", whole[:200]):
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match=r"not an .npz file"):
            load(path)
    with pytest.raises(DataNotFoundError, match=r"there is no file or folder .*gone\.npz"):
        load(tmp_path / "gone.npz")
