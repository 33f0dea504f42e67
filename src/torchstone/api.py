"""The bench from Python: find studies and tracks, run them, compare methods on your own data.

The command line is a thin cover over this module.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchstone import catalogue
from torchstone._plugins import STUDIES, TRACKS, Kind, announced, is_place, load_place, load_plugin
from torchstone.bench.result import Result
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.store import Store
from torchstone.bench.study import Study, Track
from torchstone.errors import StudyError, TorchstoneError, UnknownNameError, did_you_mean

__all__ = ["Result", "compare", "find_study", "find_track", "refit_winner", "run", "study_names", "track_names"]


def study_names() -> tuple[str, ...]:
    """Slugs of the papers whose study can be run."""
    return _modules("torchstone.studies")


def track_names() -> tuple[str, ...]:
    """Names of the problems on which methods can be compared."""
    return _modules("torchstone.tracks")


def _modules(package: str) -> tuple[str, ...]:
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.replace("_", "-") for name in names if not name.startswith("_")))


def find_study(name: str | Path) -> Study:
    """The study of a paper, or one of your own.

    Args:
        name: a paper's slug; the name under which an installed package announces a study (entry point group
            ``torchstone.studies``); or a place: ``"file.py"``, ``"file.py:OBJECT"``, ``"package.module:OBJECT"``. Where
            no object is named, it is ``STUDY``.

    Raises:
        UnknownNameError: for an unknown name, with the nearest one, for a paper that has no study yet, and for a file,
            module or object that does not exist.
        StudyError: if it cannot be imported, is no study, or has the name of a paper.
    """
    if name in study_names():
        return importlib.import_module(f"torchstone.studies.{str(name).replace('-', '_')}").STUDY
    if not is_place(name):
        return _known(STUDIES, str(name), study_names(), [paper.slug for paper in catalogue.papers()])
    found = load_place(STUDIES, name)
    if found.name in study_names() and found is find_study(found.name):
        return found
    if any(paper.slug == found.name for paper in catalogue.papers()):
        raise StudyError(f"the study in {name} is called {found.name!r}, as a paper is: give it another name")
    return found


def find_track(name: str | Path) -> Track:
    """The track of a problem, or one of your own.

    Args:
        name: name of the problem; the name under which an installed package announces a track (entry point group
            ``torchstone.tracks``); or a place, as for :func:`find_study`, the object being ``TRACK``.

    Raises:
        UnknownNameError: with the nearest name of a track, or for a file, module or object that does not exist.
        StudyError: if it cannot be imported, or is no track.
    """
    if name in track_names():
        return importlib.import_module(f"torchstone.tracks.{str(name).replace('-', '_')}").TRACK
    return load_place(TRACKS, name) if is_place(name) else _known(TRACKS, str(name), track_names(), ())


def _known(kind: Kind, name: str, built_in: Sequence[str], reserved: Sequence[str]) -> Any:
    """What an installed package announces under a name that is not reserved."""
    own = {plugin.name for plugin in announced(kind)}.difference(built_in, reserved, ("",))
    if name in own:
        return load_plugin(kind, name)
    if name in reserved:
        raise UnknownNameError(f"there is no {kind.word} of {name!r} yet (there are: {', '.join(built_in)})")
    if Path(f"{name}.py").is_file():
        raise UnknownNameError(f"unknown {kind.word} {name!r}: did you mean the file {name}.py?")
    raise did_you_mean(kind.word, name, own.union(built_in))


def run(
    study: str | Path | Study,
    *,
    scale: str = "bench",
    only: Sequence[str] = (),
    store: Store | str | Path | None = None,
    budget: float | None = None,
    replicates: int | None = None,
    device: str = "cpu",
    e_threshold: float = 20.0,
    fail_fast: bool = False,
    jobs: int = 1,
    executor: str = "auto",
    stack: str = "auto",
    cell_limit: float | None = None,
    memory_limit: float | None = None,
    variance: bool = False,
    listen: Callable[[Event], None] | None = None,
) -> Result:
    """Run a study (again), or continue it, and judge its claims.

    Args:
        study: a paper's slug, or a study of your own: the name under which a package announces it, ``"file.py"``,
            ``"package.module:OBJECT"`` (see :func:`find_study`), or the :class:`~torchstone.bench.Study` itself.
        scale: ``"smoke"`` (a check that it runs, no verdict to quote), ``"bench"`` or ``"paper"``.
        only: names of experiments to run; all by default.
        store: an open store, a file, or a database URL; by default the user's own file.
        budget: wall-clock seconds after which no new work is begun.
        replicates: stop after so many.
        device: where to compute.
        e_threshold: evidence at which a claim is decided early.
        fail_fast: stop at the first run that raises.
        jobs: worker processes. A script that asks for more than one must guard its start with
            ``if __name__ == "__main__":``, as :mod:`multiprocessing` demands.
        executor: ``"inline"`` computes in this process, where a debugger works; ``"process"`` in worker processes;
            ``"auto"`` in worker processes if there are several jobs or a limit.
        stack: whether arms that can train many replicates in one pass do so: ``"never"``, ``"always"``, or ``"auto"``,
            where a short calibration finds it faster.
        cell_limit: wall-clock seconds after which a worker is ended; its cell counts as failed.
        memory_limit: resident bytes at which a worker is ended; its cell counts as failed.
        variance: then measure how much of the spread each source of chance causes.
        listen: receives progress events.

    Returns:
        The verdicts and everything behind them.

    Raises:
        UnknownNameError: for an unknown study or experiment.
        StoreError: if the store cannot be used.
    """
    found = study if isinstance(study, Study) else find_study(study)
    options = Options(
        scale=scale,
        only=tuple(only),
        budget=math.inf if budget is None else budget,
        replicates=replicates,
        device=device,
        e_threshold=e_threshold,
        fail_fast=fail_fast,
        jobs=jobs,
        executor=executor,
        stack=stack,
        cell_limit=math.inf if cell_limit is None else cell_limit,
        memory_limit=math.inf if memory_limit is None else memory_limit,
        variance=variance,
        available=missing_need,
        **({} if listen is None else {"listen": listen}),
    )
    if isinstance(store, Store):
        return run_study(found, store, options)
    with Store.open(store) as opened:
        return run_study(found, opened, options)


def compare(
    track: str | Path | Track,
    *,
    data: Any,
    model: Any = None,
    arms: Sequence[str] | Mapping[str, Any] | None = None,
    baseline: str | None = None,
    tries: int = 8,
    refit: str | Path | None = None,
    store: Store | str | Path | None = None,
    budget: float | None = None,
    replicates: int | None = None,
    device: str = "cpu",
    fail_fast: bool = False,
    jobs: int = 1,
    executor: str = "auto",
    stack: str = "auto",
    cell_limit: float | None = None,
    memory_limit: float | None = None,
    variance: bool = False,
    listen: Callable[[Event], None] | None = None,
    **options: Any,
) -> Result:
    """Compare the methods of one problem on your data, with your model, against a baseline.

    Args:
        track: name of the problem, e.g. ``"noisy-labels"``, or a track of your own (see :func:`find_track`).
        data: what the track takes: the name of a known set, a path, ``"module:function"``, or the data themselves.
        model: a known name, ``"module:factory"``, or the factory itself.
        arms: names of the track's arms; a mapping adds your own: ``{"ce": None, "mine": my_fit}`` or
            ``{"mine": "module:function"}``.
        baseline: the arm that the others are compared with.
        tries: random draws for each tunable arm, the same number for all.
        refit: then train the best arm on all data and save its weights here, as :func:`refit_winner` does.
        store: an open store, a file, or a database URL; by default the user's own file.
        budget: wall-clock seconds after which no new work is begun.
        replicates: stop after so many.
        device: where to compute.
        fail_fast: stop at the first run that raises.
        jobs: worker processes, as for :func:`run`.
        executor: where runs are computed, as for :func:`run`.
        stack: whether replicates are trained in one pass, as for :func:`run`.
        cell_limit: wall-clock seconds that a cell may take.
        memory_limit: resident bytes that a worker may take.
        variance: then measure how much of the spread each source of chance causes.
        listen: receives progress events.
        options: further options of the track, e.g. ``noise="symmetric:0.4"``.

    Returns:
        The verdicts and everything behind them.

    Raises:
        UnknownNameError: for an unknown track, arm, data set or model.
        ValueError: for data or a model that do not fit, with the reason.
    """
    found = track if isinstance(track, Track) else find_track(track)
    study = found.study(data=data, model=model, arms=arms, baseline=baseline, tries=tries, **options)
    result = run(
        study,
        store=store,
        budget=budget,
        replicates=replicates,
        device=device,
        fail_fast=fail_fast,
        jobs=jobs,
        executor=executor,
        stack=stack,
        cell_limit=cell_limit,
        memory_limit=memory_limit,
        variance=variance,
        listen=listen,
    )
    if refit is not None:
        refit_winner(found, result, refit, device=device)
    return result


def refit_winner(track: str | Path | Track, result: Result, path: str | Path, *, device: str = "cpu") -> Path:
    """Train the best arm of a comparison on all data, with its tuned hyper-parameters, and save its weights.

    Args:
        track: the track of the comparison.
        result: what :func:`compare` gave.
        path: file to write (``.safetensors``).
        device: where to train.

    Returns:
        The path.

    Raises:
        TorchstoneError: if the track has no single winner to train, or no replicate is complete.
    """
    found = track if isinstance(track, Track) else find_track(track)
    if found.refit is None:
        raise TorchstoneError(f"track {found.name!r} cannot refit: it has no single winner to train")
    return found.refit(result, path, device=device)


def missing_need(need: str) -> str:
    """Why something a study needs is not at hand, or the empty string."""
    if need == "gpu":
        import torch

        return "" if torch.cuda.is_available() else "it needs a GPU"
    from torchstone.data import available

    rows = {row.name: row for row in available()}
    if need not in rows:
        raise did_you_mean("data set", need, rows)
    if rows[need].status in ("ready", "partial"):
        return ""
    return f"it needs the data set {need!r}, which is {rows[need].status}: see `torchstone data get {need}`"
