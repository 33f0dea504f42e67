"""Reader of IDX files, the format of MNIST and of the sets that replace it (Fashion-MNIST, KMNIST, ...)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError

__all__ = ["read_fashion_mnist", "read_idx", "read_mnist"]

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_idx(path: Path | str) -> np.ndarray:
    """Read one IDX file, plain or gzipped (told by its content), as an array of its own dtype and shape.

    Raises:
        DataNotFoundError: if there is no such file.
        CorruptDataError: if it is not IDX, or holds more or fewer values than its header says.

    Source:
        LeCun, Cortes and Burges, *The MNIST database*, "File formats".
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptDataError(f"{path}: damaged gzip file ({error})") from error
    dtype = _DTYPES.get(content[2]) if len(content) >= 4 and content[:2] == b"\0\0" else None
    if dtype is None or len(content) < 4 + 4 * content[3]:
        raise CorruptDataError(f"{path}: not an IDX file (it starts with {content[:4].hex(' ') or 'nothing'})")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = start + math.prod(shape) * np.dtype(dtype).itemsize
    if len(content) != expected:
        raise CorruptDataError(
            f"{path}: its header announces {expected} bytes (shape {shape}), but it has {len(content)}"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def read_mnist(folder: Path | str) -> TensorData:
    """Read MNIST from its four files: 60 000 training and 10 000 test images of 28 x 28 pixels, 10 digits.

    Shapes:
        ``x`` (60000, 1, 28, 28) in [0, 1].

    Raises:
        DataNotFoundError: if a file is missing.
        CorruptDataError: if a file is damaged, or images and labels do not belong together.

    Source:
        LeCun et al., *Gradient-based learning applied to document recognition*, Proc. IEEE 1998.
    """
    return _read_four(Path(folder), "mnist", tuple("0123456789"))


def read_fashion_mnist(folder: Path | str) -> TensorData:
    """Read Fashion-MNIST from its four files: 60 000 training and 10 000 test images of 28 x 28 pixels, 10 garments.

    Shapes:
        ``x`` (60000, 1, 28, 28) in [0, 1].

    Raises:
        DataNotFoundError: if a file is missing.
        CorruptDataError: if a file is damaged, or images and labels do not belong together.

    Source:
        Xiao et al., *Fashion-MNIST*, arXiv:1708.07747.
    """
    return _read_four(Path(folder), "fashion_mnist", _FASHION)


def _read_four(folder: Path, name: str, class_names: tuple[str, ...]) -> TensorData:
    test = _read_pair(folder, "t10k", f"{name} test", class_names)
    train = _read_pair(folder, "train", name, class_names)
    return TensorData(train.x, train.y, class_names, name, test=test).validate()


def _read_pair(folder: Path, part: str, name: str, class_names: tuple[str, ...]) -> TensorData:
    images, labels = (_plain_or_gz(folder / f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    pixels, y = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or y.ndim != 1:
        raise CorruptDataError(f"{images}: expected bytes of shape (n, height, width), but found {pixels.shape}")
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255).unsqueeze(1)
    return TensorData(x, torch.from_numpy(y.astype(np.int64)), class_names, name)


def _plain_or_gz(path: Path) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise DataNotFoundError(f"there is neither {path.name} nor {path.name}.gz in {path.parent}")
