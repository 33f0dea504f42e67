from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import torchstone.data
from torchstone._imports import import_object
from torchstone.data import OWN_DATA_HELP, TensorData, available, load
from torchstone.errors import CorruptDataError, DataNotFoundError, UnknownNameError


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's in the working directory, with several kinds of data."""
    (tmp_path / "my_own_data.py").write_text(
        "import numpy as np, torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from torchstone.data import TensorData\n"
        "x, y = np.arange(8.0).reshape(4, 2), np.array(['b', 'a', 'b', 'a'])\n"
        "def pair(): return x, y\n"
        "def four(): return x, y, x[:1], ['a']\n"
        "def dataset(): return TensorDataset(torch.from_numpy(x), torch.tensor([0, 1, 1, 0]))\n"
        "def tensors(): return TensorData(torch.rand(2, 3), torch.tensor([0, 1]), ('p', 'q'), 'given')\n"
        "def neighbour():\n"
        "    import my_own_helper\n"
        "    return my_own_helper.x, y\n"
        "def one_class(): return x, ['a'] * 4\n"
        "def wrong(): return {'x': x}\n"
        "def fails(): raise RuntimeError('inside')\n"
        "class Nested:\n"
        "    make = staticmethod(pair)\n"
    )
    (tmp_path / "my_own_helper.py").write_text("import numpy as np\nx = np.ones((4, 2))\n")
    (tmp_path / "my_broken_module.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in ("my_own_data", "my_own_helper", "my_broken_module"):
        sys.modules.pop(name, None)


def test_functions_of_the_user(own_module):
    for name in ("pair", "Nested.make"):
        data = load(f"my_own_data:{name}")
        assert (data.name, data.class_names, data.y.tolist()) == (f"my_own_data:{name}", ("a", "b"), [1, 0, 1, 0])
    data = load("my_own_data:four")
    assert data.test is not None
    assert (data.test.y.tolist(), data.test.x.tolist()) == ([0], [[0, 1]])
    assert load("my_own_data:dataset").x.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert load("my_own_data:tensors").name == "given"
    assert load("my_own_data:neighbour").x.sum() == 8


def test_bad_functions_of_the_user(own_module):
    with pytest.raises(UnknownNameError, match=r"unknown data in my_own_data 'pear': did you mean 'pair'\?"):
        load("my_own_data:pear")
    with pytest.raises(UnknownNameError, match="there is no module 'my_data'"):
        load("my_data:pair")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        load("my_broken_module:x")
    with pytest.raises(TypeError, match=r"data 'my_own_data:wrong' must be .*, but is dict"):
        load("my_own_data:wrong")
    with pytest.raises(CorruptDataError, match="all 4 labels are 'a', but two classes are needed"):
        load("my_own_data:one_class")
    with pytest.raises(RuntimeError, match="inside"):
        load("my_own_data:fails")
    assert import_object("math:pi", kind="number") == pytest.approx(3.14159, abs=1e-5)


def test_objects():
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 1, 0])
    held = load((x, y, x[:2], y[:2])).test
    assert held is not None
    assert len(held) == 2
    for source in ((x, y), TensorDataset(x, y), lambda: (x, y), TensorData(x, y, ("0", "1"), "mine")):
        data = load(source)
        assert torch.equal(data.x, x)
        assert data.class_names == ("0", "1")
    with pytest.raises(TypeError, match=r"data 'data' must be .*, but is list"):
        load([x, y])  # pyright: ignore[reportArgumentType]  # on purpose
    with pytest.raises(CorruptDataError, match="two classes are needed"):
        load(TensorData(x, y * 0, ("0", "1"), "mine"))


def test_known_names_win_over_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()
    assert len(load("iris")) == 150
    with pytest.raises(CorruptDataError, match="iris: it holds no class folders"):
        load("./iris")
    with pytest.raises(CorruptDataError, match="iris: it holds no class folders"):
        load(Path("iris"))


def test_what_is_not_there(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown data set 'digts': did you mean 'digits'\?"):
        load("digts")
    with pytest.raises(DataNotFoundError, match=r"there is no file or folder some/where"):
        load("some/where")
    with pytest.raises(DataNotFoundError, match="there is no file or folder digits"):
        load(Path("digits"))
    for spec in (":function", "module:", ".module:function"):
        with pytest.raises(ValueError, match=f"data must be given as 'module:object', but is '{spec}'"):
            load(spec)
    message = (
        rf"'mnist' was not found \(looked in {tmp_path}/mnist/MNIST/raw, {tmp_path}/MNIST/raw\): "
        "run `torchstone data get mnist`, or set TORCHSTONE_DATA"
    )
    with pytest.raises(DataNotFoundError, match=message):
        load("mnist", root=tmp_path)
    (tmp_path / "data.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must be a folder, an \.npz or a \.csv file, but its suffix is '\.parquet'"):
        load(tmp_path / "data.parquet")


def test_options_that_do_not_apply(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 1)), y=[0, 1])
    cases: tuple[tuple[Any, dict[str, Any], str], ...] = (
        ("digits", {"test": "a.npz"}, "test does not apply to the known set 'digits'"),
        (tmp_path / "a.npz", {"label": "y"}, "label does not apply to .*a.npz"),
        (tmp_path / "a.npz", {"size": (2, 2)}, "size does not apply to .*a.npz"),
        (tmp_path, {"label": "y"}, "label does not apply to the image folder"),
        ("some:thing", {"test": "a.npz"}, "test does not apply to some:thing"),
        ((np.zeros(2), [0, 1]), {"test": "a.npz"}, "test does not apply to data given as an object"),
    )
    for source, options, message in cases:
        with pytest.raises(ValueError, match=message):
            load(source, **options)


def test_available(tmp_path):
    rows = {row.name: row for row in available(root=tmp_path)}
    assert {"digits", "mnist5k", "mnist", "fashion_mnist", "cifar10", "cifar10n"} <= rows.keys()
    assert rows["digits"].where == "embedded"
    assert (rows["mnist"].where, rows["mnist"].status) == ("files", "absent")
    assert all(row.summary and row.licence for row in rows.values())


def test_every_public_name_is_there_and_help_is_printable():
    for name in torchstone.data.__all__:
        assert getattr(torchstone.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = torchstone.data.nothing  # pyright: ignore[reportAttributeAccessIssue]  # on purpose
    assert max(map(len, OWN_DATA_HELP.splitlines())) <= 120


def test_the_stub_imports_agree_with_the_names():
    tree = ast.parse(Path(torchstone.data.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    stubs = [alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(stubs) == sorted(torchstone.data.__all__)


def test_listing_needs_no_torch():
    code = (
        "import sys, torchstone.data as d; d.available(); d.OWN_DATA_HELP; d.verify('mnist'); d.data_root(); "
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
