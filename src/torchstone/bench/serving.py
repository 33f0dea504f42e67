"""A worker process: what it is made from, what it does, and how it ends."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchstone import errors
from torchstone.bench.capture import Descriptors
from torchstone.bench.identity import RunSpec
from torchstone.bench.store import Store
from torchstone.bench.study import Study
from torchstone.bench.worker import Worker, reason_of
from torchstone.errors import TorchstoneError

__all__ = ["Recipe", "error_from", "serve"]


@dataclass(frozen=True)
class Recipe:
    """What a worker process is made from."""

    study: Study
    study_id: str
    store: str
    device: str = "cpu"
    fail_fast: bool = False


def serve(recipe: Recipe, pipe: Any, path: str) -> None:
    """A worker process: cells in, events and outcomes out, until told to stop or left alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    with contextlib.suppress(AttributeError, OSError):
        os.setpgid(0, 0)  # so that it can be ended together with what it starts
    capture = Descriptors(path)
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGTERM, all_threads=False, chain=True)  # where it was when a limit ended it

    def tell(kind: str, content: Any) -> None:
        try:
            pipe.send((kind, content))
        except OSError:  # the driver is gone, and what is finished is stored
            raise SystemExit from None

    try:
        with Store.open(recipe.store) as store:
            worker = Worker(
                recipe.study,
                recipe.study_id,
                store,
                device=recipe.device,
                fail_fast=recipe.fail_fast,
                listen=lambda event: tell("event", event),
                capture=capture,
            )
            tell("ready", None)
            while (cell := _next(pipe)) is not None:
                try:
                    done = worker.run(cell)
                except Exception as error:
                    tell("raised", (type(error).__name__, _message(error)))
                else:
                    tell("done", done)
    except TorchstoneError as error:  # the store cannot be opened
        tell("raised", (type(error).__name__, str(error)))
    finally:
        _leave()


def _next(pipe: Any) -> Sequence[RunSpec] | None:
    try:
        return pipe.recv()
    except (EOFError, OSError):  # the driver is gone
        return None


def _leave() -> None:
    """End now if the arms have left threads or processes behind, for which Python would wait."""
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if multiprocessing.active_children() or not all(thread.daemon for thread in threads):
        os._exit(0)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, TorchstoneError) else reason_of(error)


def error_from(name: str, text: str) -> TorchstoneError:
    """What a worker raised, as far as it can be sent."""
    kind = getattr(errors, name, TorchstoneError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, TorchstoneError) else TorchstoneError(text)
