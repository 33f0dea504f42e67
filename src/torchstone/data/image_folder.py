"""The user's own images: a folder with one sub-folder per class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from torchstone._checks import check_int
from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError, require

__all__ = ["read_image_folder"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GREY, _COLOUR = ("1", "L", "LA"), ("CMYK", "HSV", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")


def read_image_folder(folder: Path, *, size: tuple[int, int] | None = None, test: Path | None = None) -> TensorData:
    """Read ``folder/<class>/**/<image>``; with ``folder/train`` and ``folder/test`` the latter is the test part.

    Classes are numbered in the sorted order of their folders' names, images sorted by path. Images are grey if all
    are, else RGB (transparency is dropped). They must share one size unless ``size=(height, width)`` resizes them
    (bilinear). ``test`` is a second folder for the test part. Files that are not named like images are left out and
    counted in the notes.

    Shapes:
        ``x`` (n, 1 or 3, height, width) in [0, 1].

    Raises:
        DataNotFoundError: if there is no such folder.
        CorruptDataError: if an image cannot be read or is not of 8 bits a channel, sizes differ, a class folder is
            empty, or there are fewer than two.
        MissingDependencyError: without Pillow.
    """
    if size is not None:
        size = (check_int("height", size[0], 1), check_int("width", size[1], 1))
    if test is None and (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = folder / "train", folder / "test"
    else:
        train = folder
    classes, paths, notes = _list(train)
    images = [_read_image(path, size) for path in paths]
    test_classes, test_paths, test_notes = ([], [], []) if test is None else _list(test)
    if unknown := sorted(set(test_classes) - set(classes)):
        raise CorruptDataError(f"{test}: class {unknown[0]!r} has no folder in {train}")
    images += [_read_image(path, size) for path in test_paths]
    x = _stack(images, paths + test_paths)

    class_names = tuple(sorted(set(classes)))
    y = torch.tensor([class_names.index(c) for c in classes + test_classes], dtype=torch.int64)
    n, name = len(classes), folder.name
    data = TensorData(x[:n], y[:n], class_names, name, notes=tuple(notes + test_notes))
    if test is not None:
        data = replace(data, test=TensorData(x[n:], y[n:], class_names, f"{name} test"))
    return data.validate()


def _list(folder: Path) -> tuple[list[str], list[Path], list[str]]:
    """Return the class and the path of each image below ``folder``, and a note on what is left out."""
    if not folder.is_dir():
        raise DataNotFoundError(f"there is no folder {folder}")
    classes, paths, left_out = [], [], []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = sorted(p for p in sub.rglob("*") if p.is_file() and not p.name.startswith("."))
        images = [p for p in files if p.suffix.lower() in _SUFFIXES]
        left_out += [p for p in files if p.suffix.lower() not in _SUFFIXES]
        if not images:
            raise CorruptDataError(f"{folder}: class folder {sub.name!r} holds no image")
        classes += [sub.name] * len(images)
        paths += images
    if not paths:
        raise CorruptDataError(f"{folder}: it holds no class folders with images")
    notes = [f"{len(left_out)} files are not images, such as {left_out[0]}"] if left_out else []
    return classes, paths, notes


def _read_image(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise require("PIL", "bench") from None
    try:
        with Image.open(path) as image:
            if image.mode not in (*_GREY, *_COLOUR):
                raise CorruptDataError(f"{path}: it is not of 8 bits a channel (mode {image.mode})")
            image = image.convert("L" if image.mode in _GREY else "RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except CorruptDataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptDataError(f"{path}: not a readable image ({error})") from error


def _stack(images: list[np.ndarray], paths: list[Path]) -> torch.Tensor:
    for image, path in zip(images, paths, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            (h0, w0), (h, w) = images[0].shape[:2], image.shape[:2]
            raise CorruptDataError(
                f"images differ in size: {paths[0]} is {h0} x {w0}, but {path} is {h} x {w}; give a size to resize them"
            )
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2) for image in images]
        stacked = np.stack(images).transpose(0, 3, 1, 2)
    else:
        stacked = np.stack(images)[:, None]
    return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32)).div_(255)
