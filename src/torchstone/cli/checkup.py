"""What ``torchstone doctor`` looks at: the installation, the machine, the store, the data, what packages announce.

Each check yields findings and may break; that is a finding too. Nothing here needs more than torchstone's own
dependencies, so that a broken installation can be looked at.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchstone.cli.store_checkup import check_store, writing_problem

__all__ = ["Finding", "as_text", "findings"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``ok``, ``note`` (works, but know this) or ``problem``, and what to do."""

    area: str
    state: str
    text: str
    remedy: str = ""


Report = Iterator[tuple[str, ...]]  # (state, text) or (state, text, remedy)


def findings(store: str | None = None) -> list[Finding]:
    """Look at everything; never raises."""
    found: list[Finding] = []
    for area, check in _checks(store):
        try:
            found += [Finding(area, *entry) for entry in check()]
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the doctor must not fall ill, whatever foreign code raises
            found.append(Finding(area, "problem", f"the check itself failed: {type(error).__name__}: {error}"))
    return found


def as_text(found: list[Finding], width: int = 80) -> str:
    """One line for each finding, wrapped, what to do about it below."""
    area = max(len(one.area) for one in found)
    wrapper = textwrap.TextWrapper(max(width, 60), break_long_words=False, break_on_hyphens=False)
    lines: list[str] = []
    for one in found:
        head = f"{one.state:<9}{one.area:<{area}}  "
        for first, text in ((head, one.text), (f"{' ' * len(head)}-> ", one.remedy)):
            wrapper.initial_indent, wrapper.subsequent_indent = first, " " * len(first)
            lines += wrapper.wrap(text)
    return "\n".join(lines)


def _checks(store: str | None) -> Iterator[tuple[str, Callable[[], Report]]]:
    yield "torchstone", _torchstone
    yield "Python", _python
    yield "torch", _torch
    yield "processor", _processor
    yield "packages", _packages
    yield "traps", _traps
    yield "workers", _workers
    yield "clock", _clock
    yield "folders", _folders
    yield "store", partial(check_store, store)
    yield "data", _data
    yield "own studies", partial(_announced, "STUDIES")
    yield "own tracks", partial(_announced, "TRACKS")


# ---------------------------------------------------------------- installation


def _torchstone() -> Report:
    from torchstone import __file__, __version__

    yield "ok", f"{__version__} in {Path(__file__).parent}"


def _python() -> Report:
    text = f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    if (3, 11) <= sys.version_info < (3, 14):
        yield "ok", text
    else:
        yield "note", f"{text}: tested are 3.11 to 3.13", "make an environment with one of these"


def _torch() -> Report:
    try:
        import torch
    except Exception as error:  # a broken build raises anything
        yield (
            "problem",
            f"torch cannot be imported: {type(error).__name__}: {error}",
            "pip install --force-reinstall torch",
        )
        return
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield "ok", f"{torch.__version__}; devices: {', '.join(devices)}"
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        yield "problem", f"torch and NumPy do not fit together: {error}", "pip install --upgrade torch numpy"


def _processor() -> Report:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    yield "ok", f"{cores} cores for --jobs; OMP_NUM_THREADS is {threads or 'not set'} (workers use one thread each)"
    if threads.isdigit() and int(threads) > cores:
        yield "note", f"OMP_NUM_THREADS={threads} is more than there are cores, which is slow", "unset OMP_NUM_THREADS"
    with contextlib.suppress(OSError, ValueError):
        share, period = map(float, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        if share / period < cores:
            jobs = max(1, int(share / period))
            yield "note", f"this container may use {share / period:.1f} of {cores} cores", f"give --jobs {jobs}"


def _packages() -> Report:
    """Each extra with what it lacks; the core's own packages must all be there."""
    try:
        lines = importlib.metadata.requires("torchstone") or []
    except importlib.metadata.PackageNotFoundError:
        yield "note", "torchstone is imported from a folder, not installed: what its extras need is not known"
        return
    groups: dict[str, list[str]] = {}
    for line in lines:
        wanted, _, condition = line.partition(";")
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)""", condition)
        groups.setdefault(extra[1] if extra else "", []).append(wanted.strip())
    lacks = [text for text in map(_lack, groups.pop("", [])) if text]
    if lacks:
        yield "problem", f"torchstone itself needs {', '.join(lacks)}", "pip install --upgrade torchstone"
    for extra, wanted in groups.items():
        if extra in ("all", "dev"):
            continue
        lacks = [text for text in map(_lack, wanted) if text]
        if not lacks:
            yield "ok", f"extra {extra}: complete"
        else:
            state = "problem" if extra == "bench" else "note"
            yield state, f"extra {extra} lacks {', '.join(lacks)}", f'pip install "torchstone[{extra}]"'


def _lack(requirement: str) -> str:
    """What is missing for a requirement such as ``rich>=14``, or the empty string."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    if name is None or name[0] == "torchstone":
        return ""
    try:
        installed = importlib.metadata.version(name[0])
    except importlib.metadata.PackageNotFoundError:
        return requirement
    try:
        from packaging.requirements import Requirement
    except ImportError:  # then a version that is too old is not noticed
        return ""
    fits = Requirement(requirement).specifier.contains(installed, prereleases=True)
    return "" if fits else f"{requirement} (installed is {installed})"


def _traps() -> Report:
    """Packages that break others by being there."""
    clean = True
    if importlib.util.find_spec("torchvision") is not None:
        try:
            with _silent():
                importlib.import_module("torchvision")
        except Exception as error:
            clean = False
            yield (
                "problem",
                f"torchvision is installed but does not work with this torch ({error}): what looks for it breaks too "
                "(timm, transformers, lightning)",
                "pip uninstall torchvision, which torchstone does not need",
            )
    if all(importlib.util.find_spec(name) is not None for name in ("highspy", "ortools")):
        clean = False
        yield "note", "highspy and ortools cannot be used in one process: the second one crashes", "use one of them"
    if clean:
        yield "ok", "no package that is known to break others"


# ---------------------------------------------------------------- machine


def _workers() -> Report:
    from multiprocessing import get_context

    try:
        with _silent():
            process = get_context("spawn").Process(target=int, daemon=True)
            process.start()
            process.join(60.0)
            code = process.exitcode
            process.kill()
    except OSError as error:
        code = error
    if code == 0:
        yield "ok", "worker processes can be started"
    else:
        yield "problem", f"worker processes cannot be started ({code})", "give --jobs 1"


def _clock() -> Report:
    if time.time() < 1.75e9:
        yield "problem", f"the clock says {time.strftime('%Y-%m-%d')}", "set it: leases of runs go by it"
    else:
        yield "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z")


def _folders() -> Report:
    from torchstone.data.files import data_root

    problem = writing_problem(Path(tempfile.gettempdir()))
    if problem:
        yield "problem", f"the folder for temporary files cannot be used: {problem}", "set TMPDIR to another folder"
    root = data_root()
    named = os.environ.get("TORCHSTONE_DATA", "")
    if named and not Path(named).is_dir():
        yield "note", f"TORCHSTONE_DATA names {named}, which is no folder", "set it to the folder that holds the data"
    elif problem := writing_problem(root):
        yield "note", f"nothing can be downloaded to {root}: {problem}", "set TORCHSTONE_DATA to a folder of yours"
    else:
        yield "ok", f"data are looked for in {root}"


def _data() -> Report:
    from torchstone.data.registry import available

    for row in available():
        if row.status == "ready":
            yield "ok", f"{row.name}: ready"
        elif row.status == "not installed":
            yield "note", f"{row.name}: its package is not installed", 'pip install "torchstone[bench]"'
        else:
            yield "note", f"{row.name}: {row.status}", f"torchstone data get {row.name}"


# ---------------------------------------------------------------- what packages announce


def _announced(kind_name: str) -> Report:
    from torchstone import _plugins, catalogue

    kind = getattr(_plugins, kind_name)
    plugins = _plugins.announced(kind)
    if not plugins:
        yield "ok", f"no package announces a {kind.word}"
        return
    from torchstone import api

    taken = {paper.slug for paper in catalogue.papers()} if kind is _plugins.STUDIES else set(api.track_names())
    for plugin in plugins:
        what = f"{plugin.name} ({plugin.value} of {plugin.package})"
        remove = f"put it right, or remove {plugin.package.partition(' ')[0]}"
        if plugin.problem:
            yield "problem", f"{plugin.package}: {plugin.problem}", remove
            continue
        if plugin.name in taken:
            yield "problem", f"{what} has the name of one of torchstone's own", "give it another name"
            continue
        try:
            with _silent():
                _plugins.load_plugin(kind, plugin.name)
        except Exception as error:
            yield "problem", f"{what}: {error}", remove
        else:
            yield "ok", what


@contextlib.contextmanager
def _silent() -> Iterator[Any]:
    """What foreign code prints goes to stderr: stdout may hold a JSON document."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
