from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from torchstone.data import load
from torchstone.data.idx import read_idx, read_mnist
from torchstone.errors import CorruptDataError, DataNotFoundError


def idx_bytes(array: np.ndarray, code: int) -> bytes:
    """An IDX file, written from the description of the format."""
    head = struct.pack(">BBBB", 0, 0, code, array.ndim) + b"".join(struct.pack(">I", s) for s in array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder: Path, *, train: int = 20, test: int = 10, pack=gzip.compress, suffix: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(pixels, 0x08)))
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels, 0x08)))


@pytest.mark.parametrize(
    ("dtype", "code"), [("u1", 0x08), ("i1", 0x09), ("i2", 0x0B), ("i4", 0x0C), ("f4", 0x0D), ("f8", 0x0E)]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx(dtype, code, pack, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype) - (0 if dtype == "u1" else 5)
    path = tmp_path / "file"
    path.write_bytes(pack(idx_bytes(array, code)))
    read = read_idx(path)
    assert (read.shape, read.dtype.kind, read.dtype.itemsize) == (array.shape, array.dtype.kind, array.dtype.itemsize)
    assert np.array_equal(read, array)


def test_damaged_idx(tmp_path):
    path = tmp_path / "images"
    whole = idx_bytes(np.zeros((2, 3), np.uint8), 0x08)
    cases = {
        b"": "not an IDX file .it starts with nothing",
        b"\x89PNG": "not an IDX file .it starts with 89 50 4e 47",
        b"\0\0\x08\x03\0": "not an IDX file",
        whole[:-1]: r"announces 18 bytes \(shape \(2, 3\)\), but it has 17",
        whole + b"\0": "but it has 19",
        gzip.compress(whole)[:-4]: "damaged gzip file",
        gzip.compress(whole)[:12] + b"\xff" * 9: "damaged gzip file",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match=message):
            read_idx(path)
    with pytest.raises(DataNotFoundError, match=r"there is no file .*gone"):
        read_idx(tmp_path / "gone")


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (bytes, "")])
@pytest.mark.parametrize("place", ["mnist/MNIST/raw", "MNIST/raw"])
def test_mnist_layouts(pack, suffix, place, tmp_path):
    write_mnist(tmp_path / place, pack=pack, suffix=suffix)
    data = load("mnist", root=tmp_path)
    assert data.test is not None
    assert (data.x.shape, data.test.x.shape) == ((20, 1, 28, 28), (10, 1, 28, 28))
    assert data.y.tolist() == [*range(10), *range(10)]
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert np.array_equal(data.x[:, 0].numpy(), pixels.astype(np.float32) / np.float32(255))


@pytest.mark.untyped
def test_mnist_with_files_missing_or_mixed_up(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataNotFoundError, match=r"neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte\.gz in"):
        read_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8), 0x08))
    with pytest.raises(CorruptDataError, match=r"x has 20 samples, but y has shape \(19,\)"):
        read_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8), 0x08))
    with pytest.raises(CorruptDataError, match="expected bytes of shape"):
        read_mnist(tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)])
def test_the_real_sets_have_their_published_statistics(name, mean, std, data_root):
    data = load(name, root=data_root)
    assert data.test is not None
    assert (len(data), len(data.test)) == (60_000, 10_000)
    assert torch.bincount(data.test.y).tolist() == ([1000] * 10 if name == "fashion_mnist" else MNIST_TEST)
    assert data.y[:5].tolist() == ([5, 0, 4, 1, 9] if name == "mnist" else [9, 0, 0, 3, 0])
    assert float(data.x.double().mean()) == pytest.approx(mean, abs=1e-4)
    assert float(data.x.double().std()) == pytest.approx(std, abs=1e-4)


MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
