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
from torchstone.bench.result import Result
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.store import Store
from torchstone.bench.study import Study, Track
from torchstone.errors import TorchstoneError, UnknownNameError, did_you_mean

__all__ = ["Result", "compare", "find_study", "find_track", "refit_winner", "run", "study_names", "track_names"]


def study_names() -> tuple[str, ...]:
    """Slugs of the studies that can be run."""
    return _modules("torchstone.studies")


def track_names() -> tuple[str, ...]:
    """Names of the problems on which methods can be compared."""
    return _modules("torchstone.tracks")


def _modules(package: str) -> tuple[str, ...]:
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.replace("_", "-") for name in names if not name.startswith("_")))


def find_study(slug: str) -> Study:
    """The study of a paper.

    Raises:
        UnknownNameError: for an unknown slug, with the nearest one, and for a paper that has no study yet.
    """
    if slug not in study_names():
        if any(paper.slug == slug for paper in catalogue.papers()):
            raise UnknownNameError(f"there is no study of {slug!r} yet (there are: {', '.join(study_names())})")
        raise did_you_mean("study", slug, study_names())
    return importlib.import_module(f"torchstone.studies.{slug.replace('-', '_')}").STUDY


def find_track(name: str) -> Track:
    """The track of a problem.

    Raises:
        UnknownNameError: with the nearest name of a track.
    """
    if name not in track_names():
        raise did_you_mean("track", name, track_names())
    return importlib.import_module(f"torchstone.tracks.{name.replace('-', '_')}").TRACK


def run(
    study: str | Study,
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
    listen: Callable[[Event], None] | None = None,
) -> Result:
    """Run a study (again), or continue it, and judge its claims.

    Args:
        study: a paper's slug, or a :class:`~torchstone.bench.Study` of your own.
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
        listen: receives progress events.

    Returns:
        The verdicts and everything behind them.

    Raises:
        UnknownNameError: for an unknown study or experiment.
        StoreError: if the store cannot be used.
    """
    found = find_study(study) if isinstance(study, str) else study
    options = Options(
        scale=scale,
        only=tuple(only),
        budget=math.inf if budget is None else budget,
        replicates=replicates,
        device=device,
        e_threshold=e_threshold,
        fail_fast=fail_fast,
        jobs=jobs,
        listen=listen or (lambda event: None),
        available=missing_need,
    )
    if isinstance(store, Store):
        return run_study(found, store, options)
    with Store.open(store) as opened:
        return run_study(found, opened, options)


def compare(
    track: str | Track,
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
    jobs: int = 1,
    listen: Callable[[Event], None] | None = None,
    **options: Any,
) -> Result:
    """Compare the methods of one problem on your data, with your model, against a baseline.

    Args:
        track: name of the problem, e.g. ``"noisy-labels"``.
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
        jobs: worker processes, as for :func:`run`.
        listen: receives progress events.
        options: further options of the track, e.g. ``noise="symmetric:0.4"``.

    Returns:
        The verdicts and everything behind them.

    Raises:
        UnknownNameError: for an unknown track, arm, data set or model.
        ValueError: for data or a model that do not fit, with the reason.
    """
    found = find_track(track) if isinstance(track, str) else track
    study = found.study(data=data, model=model, arms=arms, baseline=baseline, tries=tries, **options)
    result = run(study, store=store, budget=budget, replicates=replicates, device=device, jobs=jobs, listen=listen)
    if refit is not None:
        refit_winner(found, result, refit, device=device)
    return result


def refit_winner(track: str | Track, result: Result, path: str | Path, *, device: str = "cpu") -> Path:
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
    found = find_track(track) if isinstance(track, str) else track
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
