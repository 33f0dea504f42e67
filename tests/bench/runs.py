"""Runs to fill a store with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchstone.bench.identity import RunSpec
from torchstone.bench.outcome import Outcome
from torchstone.bench.store import Store


@dataclass(frozen=True)
class Sizes:
    epochs: int = 3


def specs(number: int = 4, **changes: Any) -> list[RunSpec]:
    first = RunSpec("s", "main", "ce", "40%", 0, "bench", hyper={"lr": 0.1}, setting=Sizes())
    return [replace(first, replicate=i, **changes) for i in range(number)]


def planned(store: Store, runs: Sequence[RunSpec]) -> list[str]:
    """Plan runs and return their ids."""
    store.plan(runs, study_id=store.add_study("s", {"claims": ["a"]}))
    return [spec.run_id for spec in runs]


def finished(store: Store, runs: Sequence[RunSpec], outcome: Outcome, **cost: Any) -> list[str]:
    """Plan, claim and finish runs, all with one outcome."""
    ids = planned(store, runs)
    assert store.claim(ids, "me") == ids
    assert all(store.finish(i, "me", outcome, **{"wall_s": 2.0, "cpu_s": 1.5, **cost}) for i in ids)
    return ids
