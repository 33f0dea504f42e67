"""Evidence: the verdicts of a real run, kept in the package as one JSON file per study.

The file also holds what replicate 0 gives at smoke scale. Whoever changes code so that these values move
(:func:`moved`) has changed what the method does, and must run the evidence again; whoever only tidies up need not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from torchstone.bench.result import Result
from torchstone.bench.statistics.multiplicity import adjust
from torchstone.bench.statistics.verdict import Verdict
from torchstone.errors import CorruptDataError

__all__ = ["adjusted_verdicts", "load", "moved", "names", "record", "save", "smoke_values"]


def _folder() -> Any:
    return files("torchstone") / "evidence"


def names(scale: str = "bench") -> tuple[str, ...]:
    """Studies with evidence at a scale."""
    suffix = ".json" if scale == "bench" else f".{scale}.json"
    found = (entry.name.removesuffix(suffix) for entry in _folder().iterdir() if entry.name.endswith(suffix))
    return tuple(sorted(name for name in found if "." not in name))


def load(study: str, scale: str = "bench") -> dict[str, Any] | None:
    """The evidence of a study, or ``None`` if there is none.

    Raises:
        CorruptDataError: if the file is not valid JSON.
    """
    entry = _folder() / (f"{study}.json" if scale == "bench" else f"{study}.{scale}.json")
    if not entry.is_file():
        return None
    try:
        return json.loads(entry.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptDataError(
            f"the evidence of {study} is not valid JSON ({error}): install torchstone again"
        ) from None


def record(result: Result, smoke: Result) -> dict[str, Any]:
    """What is kept of a run: verdicts, means, tuned hyper-parameters, environment, cost, and the smoke values."""
    runs = [run for run in result.runs if run.status == "done"]
    return {
        **{key: value for key, value in result.to_dict().items() if key not in ("store", "seconds")},
        "seed": result.study.seed,
        "e_threshold": result.e_threshold,
        "replicates": {name: len(rows) for name, rows in result.rows.items()},
        "means": {
            name: {
                metric: {
                    f"{arm}/{case}": [_plain(mean), _plain(sd), n]
                    for (arm, case), (mean, sd, n) in result.means(name, metric).items()
                }
                for metric in result.metrics(name)
            }
            for name in result.rows
        },
        "derived": {
            name: {key: [_plain(mean), _plain(sd), n] for key, (mean, sd, n) in result.derived_means(name).items()}
            for name in result.rows
        },
        "environment": dict(result.environment),
        "cost": {
            "runs": len(runs),
            "core_seconds": round(sum(run.cpu_s + run.shared_s for run in runs), 1),
            "wall_seconds": round(sum(run.wall_s + run.shared_s for run in runs), 1),
        },
        "smoke": smoke_values(smoke),
    }


def smoke_values(result: Result) -> dict[str, dict[str, float | None]]:
    """Every value of replicate 0, by ``experiment/arm/case`` and metric; arrays by their mean; derived ones apart."""
    found: dict[str, dict[str, float | None]] = {}
    for name, rows in result.rows.items():
        for row in rows[:1]:
            for (arm, case), outcome in row.outcomes.items():
                values = {metric: _plain(float(np.mean(value))) for metric, value in outcome.values.items()}
                found[f"{name}/{arm}/{case}"] = values
            if row.derived:
                found[name] = {metric: _plain(float(value)) for metric, value in row.derived.items()}
    return found


def moved(stored: Mapping[str, Any], smoke: Result, *, tolerance: float = 0.05) -> list[str]:
    """What replicate 0 at smoke scale gives now, where it differs from what it gave when the evidence was made.

    Values may differ by ``tolerance`` (relative to values above 1): another processor sums in another order.
    Experiments that cannot be run here, for want of data, are left out.
    """
    now, differences = smoke_values(smoke), []
    for slot, before in stored["smoke"].items():
        if slot.split("/")[0] in smoke.not_run:
            continue
        after = now.get(slot, {})
        for metric, old in before.items():
            new = after.get(metric)
            same = old == new or (
                old is not None and new is not None and abs(new - old) <= tolerance * max(1.0, abs(old))
            )
            if not same:
                differences.append(f"{slot} {metric}: {old} when the evidence was made, {new} now")
    return differences


def adjusted_verdicts(found: Mapping[str, Mapping[str, Any]], *, alpha: float = 0.05) -> dict[str, str]:
    """Verdict of every study's primary claim, marked where it does not survive the adjustment over all studies.

    The family are the studies whose verdict rests on an e-value, adjusted by e-BH: of those that survive, at most
    ``alpha`` are expected to be wrong, however the studies depend on each other. A theorem needs no adjustment.

    Args:
        found: evidence by study.
        alpha: share of wrong verdicts among the surviving ones.
    """
    primary = {name: next(v for v in stored["verdicts"] if v["primary"]) for name, stored in found.items()}
    e_value = {Verdict.REPRODUCED: "e_value", Verdict.NOT_MEANINGFUL: "e_value", Verdict.REFUTED: "e_against"}
    weighed = [name for name, claim in primary.items() if claim["verdict"] in e_value and not claim["always"]]
    others = [name for name, claim in primary.items() if name not in weighed and not claim["always"]]
    evidence = [primary[name][e_value[primary[name]["verdict"]]] for name in weighed] + [1.0] * len(others)
    survives = dict(zip(weighed + others, adjust(evidence, "e-bh") <= alpha, strict=True))
    return {
        name: claim["verdict"] + ("" if name not in weighed or survives[name] else " (not after adjustment)")
        for name, claim in primary.items()
    }


def save(evidence: Mapping[str, Any], path: Path) -> None:
    """Write evidence atomically."""
    text = json.dumps(evidence, indent=1, sort_keys=True, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else float(f"{number:.6g}")
