"""Where the files of known data sets lie; download and verification. This module imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchstone.data.known import KNOWN, DataFile, KnownSet, Layout
from torchstone.errors import DataNotFoundError, did_you_mean, require

__all__ = ["FileRow", "best_layout", "data_root", "get", "known_set", "verify"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileRow:
    """One file of a set: its place, and its status ``ok``, ``corrupt``, ``missing`` or ``downloaded``."""

    path: Path
    status: str
    checksum: str


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder of all data files: ``root``, else ``$TORCHSTONE_DATA``, else the user's cache.

    The cache is ``$XDG_CACHE_HOME/torchstone``, by default ``~/.cache/torchstone``.

    Example:
        >>> data_root("here")
        PosixPath('here')
    """
    if root is not None:
        return Path(root).expanduser()
    if given := os.environ.get("TORCHSTONE_DATA"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "torchstone"


def known_set(name: str) -> KnownSet:
    """Return the table's row for ``name``.

    Raises:
        UnknownNameError: if there is none; the message holds the nearest name.
    """
    if name not in KNOWN:
        raise did_you_mean("data set", name, KNOWN)
    return KNOWN[name]


def best_layout(known: KnownSet, root: Path) -> tuple[Layout, float]:
    """Return the layout of which most is present below ``root``, and the share of its files that are."""

    def share(layout: Layout) -> float:
        return sum((root / layout.folder / file.path).is_file() for file in layout.files) / len(layout.files)

    best = max(known.layouts, key=share)
    return best, share(best)


def verify(name: str, *, root: Path | str | None = None) -> list[FileRow]:
    """Compare the files of a known set (and of the set it builds on) with their checksums.

    They are looked for in the layout of which most is present below the data root. An embedded set has no files of its
    own, so the list is empty.

    Raises:
        UnknownNameError: if there is no such set.
    """
    known, root = known_set(name), data_root(root)
    rows = verify(known.base, root=root) if known.base else []
    if known.layouts:
        layout, _ = best_layout(known, root)
        rows += [_check(root / layout.folder, file) for file in layout.files]
    return rows


def get(
    name: str, *, root: Path | str | None = None, progress: Callable[[str, int, int | None], None] | None = None
) -> list[FileRow]:
    """Download what is missing of a known set (and of the set it builds on) below the data root.

    A file appears under its name only once it is whole and its checksum is right. What is already there in any complete
    layout is kept. ``progress`` is called with the file's name, the bytes so far and the bytes in all, if known.

    Raises:
        UnknownNameError: if there is no such set.
        DataNotFoundError: if a file cannot be had; the message says which, why, and how to get it by hand.
        MissingDependencyError: for an embedded set whose package is not installed.
    """
    known, root = known_set(name), data_root(root)
    if known.package and importlib.util.find_spec(known.package) is None:
        raise require(known.package, "bench")
    rows = get(known.base, root=root, progress=progress) if known.base else []
    if not known.layouts:
        return rows
    layout, share = best_layout(known, root)
    if share < 1 or not layout.complete:
        layout = known.layouts[0]
    for file in layout.files:
        row = _check(root / layout.folder, file)
        rows.append(row if row.status == "ok" else _download(row.path, file, progress))
    return rows


def _check(folder: Path, file: DataFile) -> FileRow:
    path = folder / file.path
    if not path.is_file():
        return FileRow(path, "missing", file.checksum)
    algorithm, _, expected = file.checksum.partition(":")
    with path.open("rb") as stream:
        right = hashlib.file_digest(stream, algorithm).hexdigest() == expected
    return FileRow(path, "ok" if right else "corrupt", file.checksum)


def _download(path: Path, file: DataFile, progress: Callable[[str, int, int | None], None] | None) -> FileRow:
    failures = []
    for url in file.urls:
        try:
            _fetch(url, path, file.checksum, progress)
            return FileRow(path, "downloaded", file.checksum)
        # URLError and refused writes are OSErrors; a checksum that differs and a bad URL are ValueErrors.
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    tried = "; ".join(failures) or "no address of it is known"
    raise DataNotFoundError(
        f"{path.name} could not be downloaded ({tried}); get it by hand ({file.checksum}) and put it at {path}, "
        "or set TORCHSTONE_DATA to the folder that holds your data"
    )


def _fetch(url: str, path: Path, checksum: str, progress: Callable[[str, int, int | None], None] | None) -> None:
    """Download to a temporary file beside ``path``, compare, and only then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    algorithm, _, expected = checksum.partition(":")
    digest, done = hashlib.new(algorithm), 0
    with contextlib.ExitStack() as cleanup:
        response = cleanup.enter_context(urllib.request.urlopen(url, timeout=60))
        part = cleanup.enter_context(tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False))
        cleanup.callback(Path(part.name).unlink, missing_ok=True)
        length = response.headers.get("Content-Length")
        while block := response.read(_CHUNK):
            part.write(block)
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(path.name, done, int(length) if length else None)
        part.close()
        if digest.hexdigest() != expected:
            raise ValueError(f"its checksum is {algorithm}:{digest.hexdigest()}")
        Path(part.name).replace(path)
