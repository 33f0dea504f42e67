"""Scores that papers published run by run, for anybody's re-analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from torchstone.data.files import best_layout, data_root, known_set
from torchstone.errors import CorruptDataError, DataNotFoundError

__all__ = ["unreproducible_scores"]

Errors = dict[str, dict[str, Float[np.ndarray, " seeds"]]]

_PARTS = {"default": "seed.json", "tuned": "hpo.json"}
_NAME = "unreproducible_scores"


def unreproducible_scores(root: Path | str | None = None) -> dict[str, Errors]:
    """Test errors of 8 networks on 3 image sets with 10 seeds each, under one common setting and after tuning each.

    Args:
        root: the folder of all data files, by default ``$TORCHSTONE_DATA`` or the user's cache.

    Returns:
        ``scores[setting][data set][network]`` with settings ``default`` and ``tuned``, the networks in one order.

    Shapes:
        Each entry (10,), error rates in [0, 1].

    Raises:
        DataNotFoundError: if a file is missing; the message says how to get it.
        CorruptDataError: if a file is not such a table.

    Source:
        Bouthillier, Laurent and Vincent, *Unreproducible research is reproducible*, ICML 2019; the files of its
        repository (BSD-3).
    """
    layout, _ = best_layout(known_set(_NAME), data_root(root))
    folder = data_root(root) / layout.folder
    return {setting: _read(folder / file) for setting, file in _PARTS.items()}


def refuse_samples(folder: Path) -> Any:
    """Say that this set holds no samples to train on, where one is wanted."""
    raise CorruptDataError(f"{folder} holds published scores, not samples: read them with torchstone.data.{_NAME}()")


def _read(path: Path) -> Errors:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["data"]
        errors = {
            str(dataset): {str(model): np.array(runs, np.float64) for model, runs in sorted(models.items())}
            for dataset, models in table.items()
        }
    except FileNotFoundError:
        raise DataNotFoundError(f"there is no file {path}: run `torchstone data get {_NAME}`") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptDataError(f"{path}: not a table of scores by data set and model ({error!r})") from error
    for dataset, models in errors.items():
        for model, runs in models.items():
            if runs.ndim != 1 or len(runs) < 2 or not ((runs >= 0) & (runs <= 1)).all():
                raise CorruptDataError(f"{path}: the scores of {model!r} on {dataset!r} are no list of error rates")
    return errors
