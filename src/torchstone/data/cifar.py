"""Readers of CIFAR-10 (the *python version*) and of CIFAR-10N, human labels for its training images.

The batches are pickles; they are read by :func:`~torchstone.data.safe_pickle.safe_loads`, which runs nothing. What is
present is taken: a folder may hold some of the batches only, and each may be xz-compressed; the notes of the set say
what is missing.
"""

from __future__ import annotations

import csv
import lzma
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchstone.data.safe_pickle import read_torch_zip, safe_loads
from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError

__all__ = ["CIFAR10_ARCHIVE", "add_cifar10n", "read_cifar10"]

CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
_FOLDER = "cifar-10-batches-py"
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCH = 10_000
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
# The files that may hold each batch; the last one holds the first 1 000 test images.
_FILES = {
    **{name: (name, f"{name}.xz") for name in _TRAIN},
    "test_batch": ("test_batch", "test_batch.xz", "test_batch_first1000.xz"),
}
_HUMAN = {
    "aggre": "aggre_label",
    "worse": "worse_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
}
_SIDE = ("worker1", "time1", "worker2", "time2", "worker3", "time3")


def read_cifar10(folder: Path | str) -> TensorData:
    """Read CIFAR-10 from the unpacked folder or from ``cifar-10-python.tar.gz``, either in ``folder``.

    The column ``index`` holds each image's place in the official order, which other files (CIFAR-10N) refer to.

    Shapes:
        ``x`` (50000, 3, 32, 32) in [0, 1], fewer if batches are missing; ``index`` (n,) int64.

    Raises:
        DataNotFoundError: if there is no training batch.
        CorruptDataError: if a batch is damaged or holds anything but arrays and plain values.

    Source:
        Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
    """
    folder = Path(folder)
    files = max(_find(folder), _find(folder / _FOLDER), key=len)
    archive = folder / CIFAR10_ARCHIVE
    if len(files) < len(_FILES) and archive.is_file():
        batches = _read_archive(archive)
    else:
        batches = {name: _read_batch(path.read_bytes(), str(path)) for name, path in files.items()}
    train = {name: batch for name, batch in batches.items() if name in _TRAIN}
    if not train:
        raise DataNotFoundError(f"there is no data_batch_1 .. 5 (plain or .xz) and no {CIFAR10_ARCHIVE} in {folder}")
    notes = []
    if missing := [name for name in _TRAIN if name not in train]:
        present = sum(len(y) for _, y in train.values())
        notes.append(f"{present} of 50000 training images: {', '.join(missing)} missing")
    test = None
    if "test_batch" not in batches:
        notes.append("no test images: test_batch missing")
    else:
        test = _join({"test_batch": batches["test_batch"]}, ("test_batch",), "cifar10 test")
        if len(test) < _BATCH:
            notes.append(f"{len(test)} of 10000 test images")
    return replace(_join(train, _TRAIN, "cifar10"), test=test, notes=tuple(notes)).validate()


def add_cifar10n(folder: Path | str, cifar10: TensorData) -> TensorData:
    """Add the human labels of CIFAR-10N to CIFAR-10, as columns; ``y`` stays clean.

    ``random1`` to ``random3`` are the labels of single annotators, ``aggre`` their majority, ``worse`` a wrong one
    among them where there is one. If ``side_info_cifar10N.csv`` is there too, ``worker1`` to ``worker3`` and ``time1``
    to ``time3`` are the annotators' ids and the seconds they took, recorded per ten images. The same stand a second
    time as privileged information on the labels: ``answer``, ``annotator`` and ``pi`` (logarithm of the seconds) of all
    three annotators, and ``random1_annotator``, ``random1_pi``, ``worse_annotator``, ... of single label columns.

    Shapes:
        each column (n,) int64; ``answer`` and ``annotator`` (n, 3) int64, ``pi`` (n, 3, 1) float32; a single label's
        ``..._pi`` (n, 1).

    Raises:
        DataNotFoundError: if ``CIFAR-10_human.pt`` is missing.
        CorruptDataError: if a file is damaged, or its clean labels are not those of ``cifar10``.

    Source:
        Wei et al., *Learning with noisy labels revisited*, ICLR 2022.
    """
    path = Path(folder) / "CIFAR-10_human.pt"
    if not path.is_file():
        raise DataNotFoundError(f"there is no file {path}")
    labels = read_torch_zip(path)
    for key in ("clean_label", *_HUMAN.values()):
        values = labels.get(key) if isinstance(labels, dict) else None
        if not isinstance(values, np.ndarray) or values.shape != (50_000,) or values.dtype.kind not in "iu":
            raise CorruptDataError(f"{path}: it holds no 50000 integers under {key!r}")
    index = cifar10.columns["index"].cpu()
    if not torch.equal(torch.from_numpy(labels["clean_label"])[index], cifar10.y.cpu()):
        raise CorruptDataError(f"{path}: its clean labels are not those of the images")
    columns = {name: torch.from_numpy(labels[key].astype(np.int64))[index] for name, key in _HUMAN.items()}
    side = path.with_name("side_info_cifar10N.csv")
    notes = cifar10.notes
    if side.is_file():
        columns |= {name: values[index // 10] for name, values in _read_side(side).items()}
        columns |= _privileged(columns)
    else:
        notes = (*notes, f"no worker ids and times: {side.name} missing")
    columns = {name: values.to(cifar10.y.device) for name, values in columns.items()}
    return replace(cifar10, name="cifar10n", columns={**cifar10.columns, **columns}, notes=notes)


def _privileged(columns: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Who gave the labels of each column, and how long it took; of ``worse`` the first one who gave that label."""
    answer, annotator, seconds = (
        torch.stack([columns[f"{name}{i}"] for i in (1, 2, 3)], 1) for name in ("random", "worker", "time")
    )
    pi = seconds.clamp(min=1).float().log().unsqueeze(2)
    found = {"answer": answer, "annotator": annotator, "pi": pi}
    whose = {f"random{i + 1}": torch.full((len(answer),), i) for i in range(3)}
    whose["worse"] = (answer == columns["worse"].unsqueeze(1)).int().argmax(1)
    for name, place in whose.items():
        row = torch.arange(len(place))
        found |= {f"{name}_annotator": annotator[row, place], f"{name}_pi": pi[row, place]}
    return found


def _find(folder: Path) -> dict[str, Path]:
    found = {}
    for name, files in _FILES.items():
        if present := [folder / file for file in files if (folder / file).is_file()]:
            found[name] = present[0]
    return found


def _read_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    batches = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in _FILES and (file := archive.extractfile(member)) is not None:
                    batches[name] = _read_batch(file.read(), f"{path}: {name}")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise CorruptDataError(f"{path}: damaged archive ({error})") from error
    return batches


def _read_batch(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3072) uint8 and labels (n,) int64 of one batch."""
    if content.startswith(b"\xfd7zXZ"):
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise CorruptDataError(f"{source}: damaged xz file ({error})") from error
    batch: Any = safe_loads(content, source=source)
    images = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise CorruptDataError(f"{source}: it holds no images under 'data' (n x 3072 bytes)")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(y in range(10) for y in labels):
        raise CorruptDataError(f"{source}: it holds no {len(images)} labels 0 .. 9 under 'labels'")
    return images, np.array(labels, dtype=np.int64)


def _join(batches: dict[str, tuple[np.ndarray, np.ndarray]], order: tuple[str, ...], name: str) -> TensorData:
    images, labels, index = [], [], []
    for place, key in enumerate(order):
        if key in batches:
            images.append(batches[key][0])
            labels.append(batches[key][1])
            index.append(place * _BATCH + np.arange(len(labels[-1])))
    x = torch.from_numpy(np.concatenate(images).astype(np.float32)).div_(255).reshape(-1, 3, 32, 32)
    columns = {"index": torch.from_numpy(np.concatenate(index))}
    return TensorData(x, torch.from_numpy(np.concatenate(labels)), _CLASSES, name, columns)


def _read_side(path: Path) -> dict[str, torch.Tensor]:
    """Read 5 000 lines ``first--last, worker, seconds, worker, seconds, worker, seconds``, one per ten images."""
    try:
        with path.open(newline="") as file:
            rows = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
        table = np.array(rows, dtype=np.int64)
    except ValueError as error:
        raise CorruptDataError(f"{path}: not a table of integers ({error})") from error
    if table.shape != (5_000, len(_SIDE)):
        raise CorruptDataError(f"{path}: expected 5000 rows of {len(_SIDE)} numbers, but found shape {table.shape}")
    return {name: torch.from_numpy(table[:, i].copy()) for i, name in enumerate(_SIDE)}
