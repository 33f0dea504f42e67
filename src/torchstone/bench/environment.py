"""Where results come from: versions, machine, and state of the source, told without importing torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torchstone.bench.identity import digest

__all__ = ["environment", "environment_id"]

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "mlxtend", "torch_geometric", "SQLAlchemy")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment() -> dict[str, Any]:
    """Python, packages, processor and source of this process, as plain data; found out once.

    Keys: ``torchstone``, ``python``, ``packages`` (name -> version, installed ones only), ``platform``, ``cpu``,
    ``cores`` (that this process may use), ``threads`` (the limits set in its environment), ``commit`` and ``dirty`` (of
    the checkout that torchstone is imported from; ``dirty`` hashes what is not committed, ``""`` if all is).
    """
    return {key: dict(value) if isinstance(value, dict) else value for key, value in _environment().items()}


def environment_id(env: Mapping[str, Any] | None = None) -> str:
    """Hash of an environment, by default this one."""
    return digest(environment() if env is None else env)


@functools.cache
def _environment() -> dict[str, Any]:
    versions = {name: _version(name) for name in ("torchstone", *PACKAGES)}
    commit, dirty = _checkout(Path(__file__).resolve().parents[3])
    return {
        "torchstone": versions.pop("torchstone"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "packages": {name: version for name, version in versions.items() if version},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "commit": commit,
        "dirty": dirty,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", "")  # of a checkout that is not installed


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _checkout(root: Path) -> tuple[str, str]:
    """Commit of a checkout and hash of what differs from it; empty strings if it is none or git is not there."""
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        return "", ""
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    changes = _git(root, "diff", "HEAD", "--no-ext-diff", "--", "src")
    for name in sorted(
        filter(None, _git(root, "ls-files", "-z", "--others", "--exclude-standard", "src").split(b"\0"))
    ):
        file = root / os.fsdecode(name)
        changes += name + (file.read_bytes() if file.is_file() else b"")
    return commit, blake2b(changes, digest_size=16).hexdigest() if changes else ""


def _git(root: Path, *arguments: str) -> bytes:
    try:
        environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, timeout=10, env=environ)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
