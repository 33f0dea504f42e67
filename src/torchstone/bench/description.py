"""A study as plain data: fit to be stored, shown, and read back where its code is not at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torchstone.bench import claims as claim_kinds
from torchstone.bench import space as distributions
from torchstone.bench.claims import Claim
from torchstone.bench.identity import plain
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.study import Arm, Cell, Experiment, Study
from torchstone.errors import StoreError, StudyError

__all__ = ["describe", "restore"]

DISTRIBUTIONS = ("Uniform", "LogUniform", "Integers", "Choice")


def describe(study: Study) -> dict[str, Any]:
    """What a study states, in terms of JSON: arms with their search spaces, cases, claims, sizes, replicates.

    Raises:
        StudyError: naming a hyper-parameter or size without a stable identity.
    """
    return {
        "name": study.name,
        "about": study.about,
        "seed": study.seed,
        "experiments": [_experiment(experiment) for experiment in study.experiments],
    }


def _experiment(experiment: Experiment) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "arms": [_arm(arm, name) for name, arm in experiment.arms.items()],  # a list: it has an order
        "cases": list(experiment.cases),
        "claims": list(_claims(experiment)),
        "settings": {scale: plain(setting, f"setting {scale!r}") for scale, setting in experiment.settings.items()},
        "replicates": list(experiment.replicates),
        "tries": experiment.tries,
        "tune_on": experiment.tuning_case,
        "derives": experiment.derive is not None,
        "needs": list(experiment.needs),
        "data": experiment.data,
    }


def _arm(arm: Arm, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "role": arm.role,
        "about": arm.about,
        "hyper": plain(arm.hyper, f"hyper of arm {name!r}"),
        "space": {key: plain(dist, f"space[{key!r}] of arm {name!r}") for key, dist in arm.space.items()},
        "tuned_as": arm.tuned_as,
        "cases": list(arm.cases),
        **({"stacked": True} if arm.stacked else {}),
    }


def _claims(experiment: Experiment) -> Iterator[dict[str, Any]]:
    for premise, group in ((True, experiment.premises), (False, experiment.claims)):
        for claim in group:
            parts = {part.name: plain(getattr(claim, part.name), part.name) for part in fields(claim)}
            yield {**parts, "text": claim.sentence(), "kind": type(claim).__name__, "premise": premise}


def restore(stated: Mapping[str, Any], derived: Mapping[tuple[str, int], Mapping[str, float]] | None = None) -> Study:
    """The study that :func:`describe` described. It can be judged, not run.

    Args:
        stated: what :func:`describe` gave, perhaps through JSON.
        derived: (experiment, replicate) -> the values that were derived from that row.

    Raises:
        StoreError: if it holds a kind of claim or distribution that is not torchstone's own.
    """
    experiments = tuple(_restored(entry, derived or {}) for entry in stated["experiments"])
    return Study(stated["name"], experiments, seed=stated["seed"], about=stated["about"])


def _restored(stated: Mapping[str, Any], derived: Mapping[tuple[str, int], Mapping[str, float]]) -> Experiment:
    claims = [(entry["premise"], _claim(entry)) for entry in stated["claims"]]
    named = [claim for _, claim in claims if not claim.arm]
    wanted = {name for claim in named for name in (claim.metric, claim.than) if isinstance(name, str)}
    return Experiment(
        name=stated["name"],
        arms={entry["name"]: _restored_arm(entry) for entry in stated["arms"]},
        claims=tuple(claim for premise, claim in claims if not premise),
        premises=tuple(claim for premise, claim in claims if premise),
        cases=tuple(stated["cases"]),
        settings=stated["settings"],
        replicates=(stated["replicates"][0], stated["replicates"][1]),
        tries=stated["tries"],
        tune_on=stated["tune_on"],
        derive=_Derived(stated["name"], derived, frozenset(wanted)) if stated["derives"] else None,
        needs=tuple(stated["needs"]),
        data=stated["data"],
    )


def _restored_arm(stated: Mapping[str, Any]) -> Arm:
    return Arm(
        run=_not_at_hand,
        hyper=stated["hyper"],
        space={name: _distribution(entry) for name, entry in stated["space"].items()},
        tuned_as=stated["tuned_as"],
        role=stated["role"],
        cases=tuple(stated["cases"]),
        about=stated["about"],
        stacked=_none_at_hand if stated.get("stacked") else None,
    )


def _claim(stated: Mapping[str, Any]) -> Claim:
    kind = getattr(claim_kinds, stated["kind"], None) if stated["kind"] in claim_kinds.__all__ else None
    if kind is None:
        raise StoreError(f"the stored study makes a claim of kind {stated['kind']!r}, which torchstone does not know")
    parts = {part.name: stated[part.name] for part in fields(kind) if part.name in stated}
    return kind(**{**parts, "cases": tuple(stated["cases"])})


def _distribution(stated: Any) -> Any:
    module, _, name = str(stated.get("class", "") if isinstance(stated, Mapping) else stated).partition(":")
    if module != distributions.__name__ or name not in DISTRIBUTIONS:
        raise StoreError(f"the stored study searches with {stated!r}, a distribution that torchstone does not know")
    parts = {key: value for key, value in stated.items() if key != "class"}
    return distributions.Choice(*parts["options"]) if name == "Choice" else getattr(distributions, name)(**parts)


def _not_at_hand(cell: Cell, **hyper: Any) -> Outcome:
    raise StudyError("this study was read back from a store: it can be shown and judged, not run")


def _none_at_hand(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> Sequence[Outcome]:
    return [_not_at_hand(cell) for cell in cells]


@dataclass(frozen=True)
class _Derived:
    """Gives the values that were derived from a row when it was complete; NaN where none were stored."""

    experiment: str
    values: Mapping[tuple[str, int], Mapping[str, float]] = field(repr=False)
    wanted: frozenset[str]

    def __call__(self, row: Row) -> Mapping[str, float]:
        stored = self.values.get((self.experiment, row.replicate), {})
        return {**stored, **dict.fromkeys(sorted(self.wanted - stored.keys()), math.nan)}
