"""What a run is: :class:`RunSpec`, and the identity that follows from it.

Two runs with the same identity compute the same thing, so a stored one is never computed again; whatever changes the
result (code, data, hyper-parameters, sizes, seed) changes the identity, and the old run is kept beside the new one.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from torchstone.bench.seeds import SOURCES, Seeds
from torchstone.bench.study import SCALES
from torchstone.errors import StudyError, did_you_mean

__all__ = ["KINDS", "RunSpec", "canonical_json", "digest", "plain"]

KINDS = ("trial", "hpo", "variance", "calibration")


@dataclass(frozen=True)
class RunSpec:
    """Everything that makes a run what it is.

    Args:
        study: name of the study.
        experiment: name of the experiment.
        arm: name of the arm.
        case: name of the case.
        replicate: number of the replicate, from 0.
        scale: ``smoke``, ``bench`` or ``paper``.
        kind: ``trial`` counts; ``hpo`` is a tuning draw; in ``variance`` one source of variation alone is resampled;
            a ``calibration`` measures whether training replicates in one pass pays.
        attempt: number of the tuning draw, or of the source in :data:`~torchstone.bench.seeds.SOURCES`; 0 for a trial.
        seed: seed of the study.
        hyper: the final hyper-parameters passed to the arm.
        setting: the study's own sizes at that scale (a dataclass, a mapping, or nothing).
        data: identity of the data.
        fingerprint: identity of the code (:func:`torchstone.bench.fingerprint.fingerprint`).
        stacked: how many replicates are trained in one pass; it changes the order of float operations.

    Raises:
        StudyError: if a number is out of range, or (on ``run_id``) if a hyper-parameter has no stable identity.

    Example:
        >>> spec = RunSpec("sop", "digits", "ce", "40%", 3, "bench", hyper={"lr": 0.1})
        >>> spec.cell
        ('digits', '40%', 3, 'trial', 0)
        >>> spec.run_id == RunSpec("sop", "digits", "ce", "40%", 3, "bench", hyper={"lr": 0.1}).run_id
        True
    """

    study: str
    experiment: str
    arm: str
    case: str
    replicate: int
    scale: str
    kind: str = "trial"
    attempt: int = 0
    seed: int = 0
    hyper: Mapping[str, Any] = field(default_factory=dict)
    setting: Any = None
    data: str = ""
    fingerprint: str = ""
    stacked: int = 1

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise did_you_mean("scale", self.scale, SCALES)
        if self.kind not in KINDS:
            raise did_you_mean("kind of run", self.kind, KINDS)
        for name, low in (("replicate", 0), ("attempt", 0), ("seed", 0), ("stacked", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int) and low <= value < 2**63):
                raise StudyError(f"{name} of a run must be an integer from {low} to 2**63 - 1, but is {value!r}")
        if self.kind == "trial" and self.attempt:
            raise StudyError(f"attempt numbers tuning draws; it must be 0 for a trial, but is {self.attempt}")
        if self.kind == "variance" and self.attempt >= len(SOURCES):
            raise StudyError(f"attempt numbers a source of variation, of which there are {len(SOURCES)}")

    @functools.cached_property
    def run_id(self) -> str:
        """128-bit hash of all fields, in hexadecimal."""
        return digest({f.name: plain(getattr(self, f.name), f.name) for f in fields(self)})

    @property
    def seeds(self) -> Seeds:
        """Its random streams."""
        seeds = Seeds(self.seed, self.replicate)
        return seeds.varying(SOURCES[self.attempt]) if self.kind == "variance" else seeds

    @property
    def cell(self) -> tuple[str, str, int, str, int]:
        """``(experiment, case, replicate, kind, attempt)``: all arms of a cell get the same seeds."""
        return (self.experiment, self.case, self.replicate, self.kind, self.attempt)


def digest(obj: Any) -> str:
    """BLAKE2b-128 of :func:`canonical_json`, in hexadecimal."""
    return blake2b(canonical_json(obj).encode(), digest_size=16).hexdigest()


def canonical_json(obj: Any) -> str:
    """The one JSON text of a value: equal values give equal texts in every process and Python version.

    Keys are sorted and floats written by ``repr``. Functions and classes become ``module:qualname``, torch's dtypes
    and devices their names, dataclasses their class and fields (those with ``compare=False`` are left out), NumPy
    scalars the Python number; tuples become lists, and sets sorted lists.

    Raises:
        StudyError: naming the place of a value without a stable identity: NaN, infinity, a lambda, a tensor, ...

    Example:
        >>> canonical_json({"lr": 1e-5, "betas": (0.9, 0.99), "loss": math.fsum})
        '{"betas":[0.9,0.99],"loss":"math:fsum","lr":1e-05}'
    """
    return json.dumps(plain(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(obj: Any, where: str = "value") -> Any:
    """A value in terms of JSON, as :func:`canonical_json` writes it; ``where`` names it in errors."""
    if isinstance(obj, Enum):  # before int and str, which it may also be
        return f"{qualified_name(type(obj))}.{obj.name}"
    if obj is None or isinstance(obj, bool | int):
        return obj
    if isinstance(obj, str):
        return str(obj)
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise StudyError(f"{where} is {obj!r}: an identity is made of finite numbers")
        return float(obj)
    if isinstance(obj, np.generic) and not isinstance(obj.item(), np.generic):
        return plain(obj.item(), where)
    if isinstance(obj, Mapping):
        for key in obj:
            if not isinstance(key, str):
                raise StudyError(f"{where} has the key {key!r}: keys must be strings")
        return {key: plain(value, f"{where}[{key!r}]") for key, value in obj.items()}
    if isinstance(obj, tuple | list):
        return [plain(value, f"{where}[{i}]") for i, value in enumerate(obj)]
    if isinstance(obj, set | frozenset):
        return sorted((plain(value, where) for value in obj), key=canonical_json)
    if isinstance(obj, functools.partial):
        parts = {"func": obj.func, "args": obj.args, "keywords": obj.keywords}
        return {"class": "functools:partial", **plain(parts, where)}
    if is_dataclass(obj) and not isinstance(obj, type):
        kept = {f.name: plain(getattr(obj, f.name), f"{where}.{f.name}") for f in fields(obj) if f.compare}
        return {"class": plain(type(obj), where), **kept}  # no field can be called "class"
    if type(obj).__module__ == "torch" and type(obj).__name__ in ("device", "dtype", "layout", "memory_format"):
        return str(obj)
    if _is_named(obj):
        name = qualified_name(obj)
        if "<" in name.rpartition(":")[2]:
            raise StudyError(f"{where} is {name}: only functions and classes of a module have an identity")
        return name
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    raise StudyError(
        f"{where} is a {kind}, which has no stable identity: use numbers, strings, tuples, mappings, dataclasses, or "
        "functions and classes of a module"
    )


def _is_named(obj: Any) -> bool:
    """Whether a name says all about ``obj``: a function or class, not a method bound to some instance."""
    if isinstance(obj, types.MethodType | types.BuiltinFunctionType):
        return isinstance(obj.__self__, type | types.ModuleType | None)
    return isinstance(obj, type | types.FunctionType)


def qualified_name(obj: Any) -> str:
    """``module:qualname`` of a function or class."""
    return f"{module_name(obj.__module__ or '')}:{obj.__qualname__}"


def module_name(name: str) -> str:
    """Name of a module; that of a script is its own, however it was started (by a worker process, say)."""
    if name not in ("__main__", "__mp_main__"):
        return name
    module = sys.modules.get(name)
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    return spec.name if spec else Path(file).stem if file else "__main__"
