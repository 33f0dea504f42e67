"""Who holds a run: a process, told apart from others even when a number is used again."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["is_gone", "owner_id"]


def owner_id() -> str:
    """``host:pid:start`` of this process; ``start`` is its start time in clock ticks, 0 where that is not known."""
    return f"{_host()}:{os.getpid()}:{_start_time(os.getpid()) or 0}"


def is_gone(owner: str) -> bool:
    """Whether an owner is a process of this machine that has ended; False if that cannot be known.

    Example:
        >>> is_gone(owner_id()), is_gone("another-machine:1:1")
        (False, False)
    """
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    start = owner.rpartition(":")[2]
    if host != _host() or not (rest.isdigit() and start.isdigit()):
        return False
    pid = int(rest)
    if Path("/proc/self/stat").exists():
        return _start_time(pid) != int(start)
    if os.name != "posix":  # elsewhere os.kill(pid, 0) is no question but a signal
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _host() -> str:
    """Name of the machine, and of the process namespace: containers may share the one but not the other's numbers."""
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> int | None:
    """Start of a running process in ticks since boot; None if it has ended (a zombie has), or nobody can tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
