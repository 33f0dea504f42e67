from __future__ import annotations

import builtins
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from torchstone.data.safe_pickle import read_torch_zip, safe_loads
from torchstone.errors import CorruptDataError


class _Call:
    """Pickles as the call ``function(*args)``, optionally followed by setting state on its result."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.eye(2, dtype=np.float32)),
        np.arange(3).astype(">i4"),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array([1, "a", None], dtype=object),
        np.array([], dtype=np.int64),
    ],
    ids=str,
)
def test_arrays(value, protocol):
    loaded = safe_loads(pickle.dumps(value, protocol=protocol), source="f")
    assert loaded.shape == value.shape
    assert (loaded == value).all()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(protocol):
    value = {
        "a": [1, -2.5, True, None, "ü", b"\x00\xff", 10**30, 1 + 2j],
        "b": ({1, 2}, frozenset("x"), bytearray(b"y"), (), slice(1, 2), range(3)),
        "c": collections.OrderedDict(z=1),
        "d": collections.defaultdict(list, {0: [1, 2]}),
        "e": np.float32(2.5),
    }
    assert safe_loads(pickle.dumps(value, protocol=protocol), source="f") == value


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array"])
def test_sparse_matrices(form):
    matrix = getattr(sp, form)(np.array([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]))
    content = pickle.dumps(matrix)
    assert (safe_loads(content, source="f") != matrix).nnz == 0
    old_name = pickle.dumps(matrix, protocol=2).replace(b"scipy.sparse._cs", b"scipy.sparse.cs")
    assert (safe_loads(old_name, source="f") != matrix).nnz == 0


def test_strings_of_python_2_are_latin_1():
    assert safe_loads(b"\x80\x02}q\x00U\x04dataq\x01U\x02\xff\xfes.", source="f") == {"data": "ÿþ"}


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (_Call(os.system, "touch {}"), "(posix|nt).system"),
        (_Call(builtins.eval, "open('{}', 'w')"), "(builtins|__builtin__).eval"),
        (_Call(builtins.exec, "open('{}', 'w')"), "(builtins|__builtin__).exec"),
        (_Call(builtins.getattr, "x", "upper"), "(builtins|__builtin__).getattr"),
        (_Call(builtins.__import__, "os"), "(builtins|__builtin__).__import__"),
        (_Call(builtins.open, "{}", "w"), "(_io|io).open"),
        (_Call(np.load, "{}"), "numpy.load"),
        (_Call(np.memmap, "{}", "u1", "w+", 0, 8), "numpy.memmap"),
        (_Call(torch.load, "{}"), "torch.serialization.load"),
        (_Call(pickle.loads, b""), "_?pickle.loads"),
        (_Call(sp.load_npz, "{}"), "scipy.sparse.*load_npz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_named_and_not_run(payload, name, protocol, tmp_path):
    marker = tmp_path / "executed"
    function, args = payload.call
    armed = _Call(function, *(a.format(marker) if isinstance(a, str) else a for a in args))
    content = pickle.dumps({"data": [np.zeros(2), armed]}, protocol=protocol)
    with pytest.raises(CorruptDataError, match=rf"batch 7: it refers to '{name}', which data may not"):
        safe_loads(content, source="batch 7")
    assert not marker.exists()


def test_names_reached_through_other_opcodes():
    with pytest.raises(CorruptDataError, match=r"'os\.system'"):
        safe_loads(b"(S'true'\nios\nsystem\n.", source="f")  # INST
    with pytest.raises(CorruptDataError, match=r"'builtins\.list\.append'"):
        safe_loads(b"\x80\x04\x8c\x08builtins\x8c\x0blist.append\x93.", source="f")  # dotted STACK_GLOBAL
    with pytest.raises(CorruptDataError, match=r"'numpy\.ndarray\.tofile'"):
        safe_loads(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", source="f")


def test_state_that_would_turn_bytes_into_pointers_is_refused():
    forged = {
        "O": (3, "|", None, None, None, -1, -1, 0),  # objects that claim to be none
        "u8": (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 0),
        "i8": (3, "|", (np.dtype("O"), (1,)), None, None, 8, 8, 0),
        "S8": (3, "|", None, None, None, 10**6, 1, 0),
    }
    for kind, state in forged.items():
        with pytest.raises(CorruptDataError, match="it sets the state of dtype"):
            safe_loads(pickle.dumps(_Call(np.dtype, kind, False, True, state=state)), source="f")


def test_state_of_functions_and_classes_is_refused():
    reconstruct = np.zeros(1).__reduce__()[0]
    for target in (reconstruct, np.ndarray, collections.OrderedDict, sp.csr_matrix):
        content = pickle.dumps(target)[:-1] + pickle.dumps((None, {"x": 1}), protocol=2)[2:-1] + b"b."
        with pytest.raises(CorruptDataError, match="it sets the state of"):
            safe_loads(content, source="f")


def test_sparse_indices_outside_the_shape_are_refused():
    matrix = sp.csr_matrix(np.eye(3))
    matrix.indices = np.array([0, 1, 10**6], dtype=np.int32)
    with pytest.raises(CorruptDataError, match="indices"):
        safe_loads(pickle.dumps(matrix), source="f")


def test_damaged_pickles():
    content = pickle.dumps({"data": np.arange(100)})
    for damaged in (b"", b"not a pickle", content[: len(content) // 2], content[:-1]):
        with pytest.raises(CorruptDataError, match="f: not a readable pickle"):
            safe_loads(damaged, source="f")


def test_torch_zip(tmp_path):
    path = tmp_path / "labels.pt"
    torch.save({"clean": np.arange(5), "names": ["a"]}, path)
    loaded = read_torch_zip(path)
    assert loaded["clean"].tolist() == [0, 1, 2, 3, 4]
    torch.save({"clean": torch.arange(5)}, path)
    with pytest.raises(CorruptDataError, match=r"labels\.pt: it refers to 'torch\._utils\._rebuild_tensor_v2'"):
        read_torch_zip(path)
    torch.save(_Call(os.system, f"touch {tmp_path / 'executed'}"), path)
    with pytest.raises(CorruptDataError, match="system"):
        read_torch_zip(path)
    assert not (tmp_path / "executed").exists()
    path.write_bytes(b"PK nothing")
    with pytest.raises(CorruptDataError, match=r"not a file written by torch\.save"):
        read_torch_zip(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(CorruptDataError, match=r"not a file written by torch\.save"):
        read_torch_zip(path)
