"""A training checkpoint in one file: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torchstone.errors import CorruptDataError

__all__ = ["Checkpoint", "FileCheckpoint"]


@runtime_checkable
class Checkpoint(Protocol):
    """Where :func:`~torchstone.training.fit` keeps its state: anything with these two methods."""

    def load(self) -> dict[str, Any] | None:
        """Return the state saved last, or None if there is none."""
        ...

    def save(self, state: dict[str, Any], /) -> None:
        """Keep ``state``; its tensors go on changing, so write or copy them before returning."""
        ...


class FileCheckpoint:
    """One state in one file, replaced atomically.

    The state goes to a new file beside the old one, is forced to the disk, and takes the old one's name: whoever
    reads sees the old state or the new one, never half of one, even if the power fails. Reading uses
    ``torch.load(weights_only=True)``, so a file from elsewhere cannot run code.

    Args:
        path: the file; its folder is made when first needed.

    Raises:
        TypeError: from ``save``, if the state holds something else than tensors, numbers, text and containers of these.
        CorruptDataError: from ``load``, if the file is not such a checkpoint.

    Example:
        >>> import tempfile
        >>> checkpoint = FileCheckpoint(Path(tempfile.mkdtemp()) / "run.pt")
        >>> checkpoint.load()
        >>> checkpoint.save({"epoch": 3})
        >>> checkpoint.load()
        {'epoch': 3}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state with its tensors on the CPU, or None if the file is not there."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
                raise CorruptDataError(
                    f"{self.path} is not a readable checkpoint; delete it to start anew ({type(error).__name__})"
                ) from error

    def save(self, state: dict[str, Any], /) -> None:
        """Write ``state`` in place of the last one."""
        _check_plain(state, "state")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise
        if hasattr(os, "O_DIRECTORY"):  # the new name itself must reach the disk too; Windows cannot open a folder
            folder = os.open(self.path.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _check_plain(value: Any, where: str) -> None:
    """Raise ``TypeError`` at the first thing in ``value`` that ``weights_only`` would refuse to read back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check_plain(item, f"{where}[{place}]")
    elif not (value is None or isinstance(value, Tensor | int | float | str)):
        raise TypeError(
            f"a checkpoint holds tensors, numbers, text and containers of these, but {where} is a "
            f"{type(value).__name__}"
        )
