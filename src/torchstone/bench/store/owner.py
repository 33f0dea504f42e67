"""Who holds a run: a process, told apart from a later one with the same number."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["is_gone", "owner_id"]

PROC = Path("/proc")


def owner_id() -> str:
    """``host:pid:start`` of this process; ``start`` is its start in clock ticks since boot, 0 where that is unknown."""
    return f"{_host()}:{os.getpid()}:{_start_time(os.getpid()) or 0}"


def is_gone(owner: str) -> bool:
    """Whether an owner is a process of this machine that has ended; False if that cannot be known.

    Example:
        >>> is_gone(owner_id()), is_gone("another-machine:1:1")
        (False, False)
    """
    host, _, numbers = owner.partition(":")
    pid, _, start = numbers.partition(":")
    if host != _host() or not (pid.isdigit() and start.isdigit()):
        return False
    if start != "0":
        return _start_time(int(pid)) != int(start)
    if os.name != "posix":  # elsewhere os.kill(pid, 0) is no question but a signal
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _host() -> str:
    """Name of the machine and its process namespace: containers may share a name, but not each other's numbers."""
    try:
        return f"{socket.gethostname()}/{(PROC / 'self' / 'ns' / 'pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> int | None:
    """Start of a running process in ticks since boot; None if it has ended (a zombie has) or cannot be seen."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
