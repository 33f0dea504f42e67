"""A study run by a process of its own, to be interrupted and killed: ``python -m tests.bench.driver STORE ...``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.arms import slow_study
from torchstone.bench.runner import Options, run_study
from torchstone.bench.store import Store

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def driving(store: Path, replicates: int, seconds: float, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A driver with two workers, in a session of its own; killed at the end if it still runs."""
    command = [sys.executable, "-m", "tests.bench.driver", str(store), str(replicates), str(seconds)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def workers_of(pid: int) -> list[int]:
    """Worker processes of a driver that runs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def wait_for(condition, seconds: float = 30.0) -> None:
    """Wait until something is true; fail if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def main(store: str, replicates: str, seconds: str) -> int:
    with Store.open(store) as opened:
        result = run_study(slow_study(int(replicates), float(seconds)), opened, Options(jobs=2))
    return int(len(result.rows["main"]) < int(replicates))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    sys.exit(main(*sys.argv[1:]))
