"""Arms that behave badly, and studies of them, for worker processes to import."""

# ruff: noqa: T201 (what they print is to be heard)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes import Normal
from torchstone.bench import Arm, Cell, Experiment, Higher, Outcome, Study


def one_arm_study(run: Any, replicates: tuple[int, int] = (3, 3), **changes: Any) -> Study:
    """`mine`, which is to be watched, after `base`, which is not."""
    arms = {"base": Arm(Normal(0.5)), "mine": Arm(run)}
    claim = Higher("accuracy", "mine", 0.0, primary=True)
    return Study("s", (Experiment("main", arms, (claim,), replicates=replicates, **changes),))


@dataclass(frozen=True)
class Slow:
    """Takes a while unless $TORCHSTONE_TEST_CALM is a file; notes its beginning in $TORCHSTONE_TEST_BEGUN."""

    seconds: float
    name: str = "x"

    def __call__(self, cell: Cell) -> Outcome:
        if begun := os.environ.get("TORCHSTONE_TEST_BEGUN"):
            with Path(begun).open("a") as file:
                file.write(f"{os.getpid()} {cell.replicate}\n")
        end, calm = time.monotonic() + self.seconds, Path(os.environ.get("TORCHSTONE_TEST_CALM", "/none"))
        while time.monotonic() < end and not calm.exists():
            time.sleep(0.01)
        return Outcome({"accuracy": 1.0 + cell.seeds.numpy("noise", self.name).random()})


def slow_study(replicates: int, seconds: float) -> Study:
    """Two slow arms; every replicate is wanted."""
    arms = {"base": Arm(Slow(seconds, "b")), "mine": Arm(Slow(seconds, "m"))}
    claim = Higher("accuracy", "mine", "base", primary=True)
    return Study("slow", (Experiment("main", arms, (claim,), replicates=(replicates, replicates)),))


class Unprintable(Exception):
    """An error that cannot be put into words, nor be sent to another process."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    def __reduce__(self) -> Any:
        raise TypeError("no pickle")


@dataclass(frozen=True)
class Bad:
    """Does its deed in replicate 1."""

    deed: str

    def __call__(self, cell: Cell) -> Outcome:
        if cell.replicate == 1:
            getattr(self, self.deed)()
            if self.deed == "nan":
                return Outcome({"accuracy": float("nan")})
        return Outcome({"accuracy": 0.9})

    def nan(self) -> None:
        return None

    def unprintable(self) -> None:
        raise Unprintable

    def sys_exit(self) -> None:
        sys.exit(7)

    def os_exit(self) -> None:
        os._exit(7)

    def segfault(self) -> None:
        print("the last words")
        os.kill(os.getpid(), signal.SIGSEGV)

    def thread(self) -> None:
        threading.Thread(target=time.sleep, args=(3600,)).start()

    def child(self) -> None:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])

    def fork(self) -> None:
        if os.fork() == 0:  # holds every pipe that its parent has
            time.sleep(3600)
        os._exit(7)

    def out_of_memory(self) -> None:
        raise MemoryError

    def hang(self) -> None:
        print("nothing moves")
        time.sleep(3600)


@dataclass(frozen=True)
class Talking:
    """Says things in every way there is."""

    def __call__(self, cell: Cell) -> Outcome:
        print(f"printed in {cell.replicate}")
        print("written to stderr", file=sys.stderr)
        os.write(1, b"from C\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        if cell.replicate == 1:
            raise ValueError("and then it broke")
        return Outcome({"accuracy": 0.9})


@dataclass(frozen=True)
class Process:
    """Its score is the number of its process."""

    def __call__(self, cell: Cell) -> Outcome:
        return Outcome({"accuracy": float(os.getpid())})
