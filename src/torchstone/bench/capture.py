"""What a run says: standard output, standard error and warnings, kept with the run.

In a process of our own (:class:`Descriptors`) the descriptors themselves are taken over, so that C code is heard too,
and what a killed process said last can still be read. In the user's process (:class:`Streams`) the streams are only
listened to, so that everything is still seen and a debugger works.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TextIO

__all__ = ["LENGTH", "Capture", "Descriptors", "Streams", "tail"]

LENGTH = 64 * 1024  # of what a run says, its end is kept: so many bytes


class Capture(Protocol):
    """``with capture() as said: ...; said()`` gives what was said since the block began."""

    def __call__(self) -> AbstractContextManager[Callable[[], str]]:
        """Listen to one run."""
        ...


class Descriptors:
    """Sends everything this process and its children write to one file, for as long as it lives.

    Args:
        path: the file; it loses its name at once, and goes when the last process that knows it ends.
    """

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_APPEND)
        with contextlib.suppress(OSError):  # where an open file cannot lose its name, the driver removes it
            os.unlink(path)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(self.file, descriptor)
            # By lines: what is still in a buffer is lost when the process is killed.
            stream = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Callable[[], str]]:
        """Listen to one run."""
        self._flush()
        os.ftruncate(self.file, 0)
        with warnings.catch_warnings():  # forgets which ones were shown, so that every run shows its own
            yield self._said
        os.ftruncate(self.file, 0)

    def _said(self) -> str:
        self._flush()
        return tail(self.file)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # an arm may have closed or replaced it
                stream.flush()


def tail(file: int) -> str:
    """The end of an open file, with a line that says how much is left out."""
    size = os.lseek(file, 0, os.SEEK_END)
    os.lseek(file, max(0, size - LENGTH), os.SEEK_SET)
    return _marked(os.read(file, LENGTH).decode("utf-8", "replace"), size - LENGTH)


def _marked(text: str, missing: int) -> str:
    return f"[the first {missing} bytes are left out]\n{text}" if missing > 0 else text


class Streams:
    """Listens to ``sys.stdout``, ``sys.stderr`` and warnings while a run lasts; all of it is still seen."""

    def __init__(self) -> None:
        self._seen: set[tuple[Any, ...]] = set()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Callable[[], str]]:
        """Listen to one run."""
        end = _End()
        before = sys.stdout, sys.stderr
        with warnings.catch_warnings():
            show = warnings.showwarning

            def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
                end.add(warnings.formatwarning(message, category, filename, lineno))
                key = (category, str(message), filename, lineno)
                if key not in self._seen:  # each run keeps its own, but once is enough to see it
                    self._seen.add(key)
                    with end.closed():
                        show(message, category, filename, lineno, *rest)

            warnings.showwarning = note
            sys.stdout, sys.stderr = (stream and _Overheard(stream, end.add) for stream in before)
            try:
                yield end.text
            finally:
                sys.stdout, sys.stderr = before


class _Overheard:
    """A stream whose text is also given to a listener; all else is the stream's own."""

    def __init__(self, stream: TextIO, listen: Callable[[str], None]) -> None:
        self._stream, self._listen = stream, listen

    def write(self, text: str) -> int:
        self._listen(text)
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _End:
    """The end of a text that comes piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = self._missing = 0
        self._open = True

    def add(self, text: str) -> None:
        if self._open:
            self._pieces.append(text)
            self._size += len(text)
            if self._size > 4 * LENGTH:
                self._cut()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Add nothing in this block."""
        self._open = False
        try:
            yield
        finally:
            self._open = True

    def text(self) -> str:
        self._cut()
        return _marked("".join(self._pieces), self._missing)

    def _cut(self) -> None:
        text = "".join(self._pieces)
        kept = text.encode("utf-8", "backslashreplace")[-LENGTH:].decode("utf-8", "ignore")
        self._missing += len(text) - len(kept)
        self._pieces, self._size = [kept], len(kept)
