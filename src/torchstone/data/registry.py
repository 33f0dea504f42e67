"""The front door: a data set by name, by path, or from the user's own code. Loading this module imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchstone._imports import import_object, working_directory_on_path
from torchstone.data.files import best_layout, data_root, known_set
from torchstone.data.known import KNOWN, KnownSet
from torchstone.errors import DataNotFoundError, did_you_mean

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from torchstone.data.tensors import TensorData

__all__ = ["OWN_DATA_HELP", "DataRow", "available", "load"]

OWN_DATA_HELP = """\
The data are the name of a known set (`torchstone data list`), a path, or your own code:

  DIR              one sub-folder of images per class; or DIR/train and DIR/test, each of that kind
  FILE.npz         arrays x (n, ...), y (n,) and, for clean test data, x_test and y_test
  FILE.csv         a header, a column "label", and numbers in all other columns; "annotator" and columns
                   that begin with "pi_" tell who gave a label, and are no inputs
  module:function  called without arguments; returns (x, y), (x, y, x_test, y_test), a torch Dataset of
                   pairs, or a torchstone.data.TensorData; the module may lie in the working directory

Images of bytes are scaled to [0, 1]. Labels are class numbers 0 .. C-1, or strings.

Test labels must be clean, or a method that fits the noise looks good. They are taken, in this order, from
  1. test data of your own: DIR/test, x_test and y_test, TensorData.test, or a second DIR, .npz or .csv given as test;
  2. the official test part of a known set;
  3. otherwise a random part of the data, set aside before any noise is added. It is as clean as your labels are:
     if these are noisy already, have a test part labelled with care and give it as in 1.
Validation data are a random part of what is left, with the noise of the training labels: no method sees clean labels.
"""


@dataclass(frozen=True)
class DataRow:
    """A row of the table of known sets; ``status`` is ``ready``, ``partial``, ``absent`` or ``not installed``."""

    name: str
    where: str
    status: str
    summary: str
    licence: str


def available(*, root: Path | str | None = None) -> list[DataRow]:
    """List the known data sets and what of them is at hand below the data root (by name, not by checksum).

    Example:
        >>> [row.name for row in available() if row.where == "embedded"]
        ['digits', 'mnist5k', 'breast_cancer', 'wine', 'iris']
    """
    root = data_root(root)
    return [DataRow(k.name, k.where, _status(k, root), k.summary, k.licence) for k in KNOWN.values()]


def load(
    source: str | Path | TensorData | Dataset[Any] | tuple[Any, ...] | Callable[[], Any],
    *,
    root: Path | str | None = None,
    test: str | Path | None = None,
    label: str | None = None,
    size: tuple[int, int] | None = None,
) -> TensorData:
    """Load a labelled data set in memory and check it.

    Args:
        source: the name of a known set; the path of a folder of class folders, an ``.npz`` or a ``.csv`` file; a
            ``"module:function"``; or the data themselves: ``(x, y)``, ``(x, y, x_test, y_test)``, a dataset of pairs, a
            :class:`TensorData`, or a function that returns one of these. A known name wins over a path: write
            ``./digits`` for a folder of that name.
        root: where the files of known sets lie, by default ``$TORCHSTONE_DATA`` or the user's cache.
        test: path of clean test data in the same format as the path ``source``.
        label: the label column of a CSV file, by default ``"label"``.
        size: ``(height, width)`` to which the images of a folder are resized.

    Returns:
        The data, validated; ``.test`` is the clean test part if there is one.

    Raises:
        UnknownNameError: if ``source`` is neither a known name, nor a path, nor a function that exists.
        DataNotFoundError: if files are missing; the message says which and how to get them.
        CorruptDataError: if the data cannot be used; one sentence says why.
        ValueError: if ``test``, ``label`` or ``size`` does not apply to ``source``.

    Example:
        >>> load("iris")
        TensorData(iris: 150 samples of shape (4,), 3 classes)
    """
    options = {"test": test, "label": label, "size": size}
    if not isinstance(source, str | Path):
        _refuse(options, "data given as an object")
        return _from_object(source, getattr(source, "__name__", "data"))
    path = Path(source).expanduser()
    if isinstance(source, str) and source in KNOWN:
        _refuse(options, f"the known set {source!r}")
        return _load_known(KNOWN[source], data_root(root))
    if path.exists():
        return _load_path(path, test=None if test is None else Path(test), label=label, size=size)
    if (
        isinstance(source, Path)
        or path.suffix.lower() in (".npz", ".csv")
        or (len(path.parts) > 1 and ":" not in source)
    ):
        raise DataNotFoundError(f"there is no file or folder {path} (in {Path.cwd()})")
    if ":" not in source:
        raise did_you_mean("data set", source, KNOWN)
    _refuse(options, source)
    function = import_object(source, kind="data")
    with working_directory_on_path():
        return _from_object(function, source)


def _status(known: KnownSet, root: Path) -> str:
    if known.package:
        return "ready" if importlib.util.find_spec(known.package) else "not installed"
    layout, share = best_layout(known, root)
    status = "absent" if share == 0 else "ready" if share == 1 and layout.complete else "partial"
    if not known.base or status == "absent":
        return status
    base = _status(known_set(known.base), root)
    return base if status == "ready" else "absent" if base == "absent" else status


def _load_known(known: KnownSet, root: Path) -> TensorData:
    module, _, function = known.read.partition(":")
    read = getattr(importlib.import_module(module), function)
    if known.package:
        return read()
    layout, share = best_layout(known, root)
    if share == 0:
        folders = ", ".join(dict.fromkeys(str(root / one.folder) for one in known.layouts))
        raise DataNotFoundError(
            f"data set {known.name!r} was not found (looked in {folders}): run `torchstone data get {known.name}`, "
            "or set TORCHSTONE_DATA to the folder that holds it"
        )
    base = (_load_known(known_set(known.base), root),) if known.base else ()
    return read(root / layout.folder, *base)


def _load_path(path: Path, *, test: Path | None, label: str | None, size: tuple[int, int] | None) -> TensorData:
    if path.is_dir():
        from torchstone.data.image_folder import read_image_folder

        _refuse({"label": label}, f"the image folder {path}")
        return read_image_folder(path, size=size, test=test)
    if path.suffix.lower() == ".npz":
        from torchstone.data.arrays import read_npz

        _refuse({"label": label, "size": size}, f"{path}")
        return read_npz(path, test=test)
    if path.suffix.lower() == ".csv":
        from torchstone.data.csv_table import read_csv

        _refuse({"size": size}, f"{path}")
        return read_csv(path, label=label or "label", test=test)
    raise ValueError(f"data {path} must be a folder, an .npz or a .csv file, but its suffix is {path.suffix!r}")


def _from_object(value: Any, name: str) -> TensorData:
    from torchstone.data.arrays import from_arrays, from_dataset, with_test
    from torchstone.data.tensors import TensorData

    if callable(value) and (isinstance(value, type) or not hasattr(value, "__getitem__")):
        value = value()
    if isinstance(value, TensorData):
        return value.validate()
    if isinstance(value, tuple) and len(value) in (2, 4):
        data = from_arrays(value[0], value[1], name=name)
        return data if len(value) == 2 else with_test(data, value[2], value[3])
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, tuple | list | dict | str):
        return from_dataset(value, name=name)
    raise TypeError(
        f"data {name!r} must be (x, y), (x, y, x_test, y_test), a dataset of pairs or a TensorData, "
        f"but is {type(value).__name__}"
    )


def _refuse(options: dict[str, Any], what: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} does not apply to {what}, but is {value!r}")
