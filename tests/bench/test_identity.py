from __future__ import annotations

import enum
import functools
import json
import math
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchstone
from torchstone.bench.identity import RunSpec, canonical_json
from torchstone.errors import StudyError, UnknownNameError


@dataclass(frozen=True)
class Sizes:
    epochs: int = 3
    widths: tuple[int, ...] = (64, 32)
    cache: Any = field(default=None, compare=False)


class Colour(enum.StrEnum):
    RED = "red"


def module_level() -> None: ...


SPEC = RunSpec(
    "sop",
    "digits",
    "ce",
    "40%",
    3,
    "bench",
    hyper={"lr": 1e-5, "betas": (0.9, 0.999), "loss": math.fsum, "name": "ünï"},
    setting={"epochs": 3},
    data="digits abc",
    fingerprint="0" * 32,
)
GOLDEN = "9804f02c5667119c6ce96dac741a9320"


def test_the_id_is_known_and_equal_in_a_fresh_process() -> None:
    """Known once and for all: a change would make every stored run of every user unknown."""
    code = (
        "import math; from torchstone.bench.identity import RunSpec;"
        "print(RunSpec('sop', 'digits', 'ce', '40%', 3, 'bench', setting={'epochs': 3}, data='digits abc',"
        "fingerprint='0' * 32, hyper={'name': 'ünï', 'loss': math.fsum, 'betas': [0.9, 0.999], 'lr': 1e-5}).run_id)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(torchstone.__file__).parents[1]), "PYTHONHASHSEED": "123"}
    there = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == SPEC.run_id == GOLDEN


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *((name, "other") for name in ("study", "experiment", "arm", "case", "data", "fingerprint")),
        *((name, 4) for name in ("replicate", "seed", "stacked")),
        ("scale", "paper"),
        ("kind", "hpo"),
        ("hyper", {"lr": 1e-4}),
        ("setting", Sizes()),
    ],
)
def test_every_field_is_part_of_the_id(name: str, other: Any) -> None:
    assert replace(SPEC, **{name: other}).run_id != SPEC.run_id


def test_the_parametrisation_above_forgets_no_field() -> None:
    assert {f.name for f in fields(RunSpec)} == {
        *("study", "experiment", "arm", "case", "data", "fingerprint", "replicate", "seed", "stacked", "scale", "kind"),
        *("hyper", "setting", "attempt"),
    }
    draw = replace(SPEC, kind="hpo")
    assert replace(draw, attempt=1).run_id != draw.run_id


def test_the_cell_is_what_arms_share() -> None:
    assert SPEC.cell == ("digits", "40%", 3, "trial", 0)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(max_examples=40)
@given(values)
def test_canonical_json_reads_back_as_the_same_value(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@settings(max_examples=40)
@given(st.dictionaries(st.text(), scalars))
def test_the_order_of_keys_does_not_matter(mapping: dict[str, Any]) -> None:
    assert canonical_json(OrderedDict(reversed(mapping.items()))) == canonical_json(mapping)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float64(0.1), "0.1"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (1e16, "1e+16"),
        (-0.0, "-0.0"),
        ((1, [2]), "[1,[2]]"),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        (torch.float32, '"torch.float32"'),
        (torch.device("cpu"), '"cpu"'),
        (torch.nn.ReLU, '"torch.nn.modules.activation:ReLU"'),
        (torch.nn.functional.relu, '"torch.nn.functional:relu"'),
        (Colour.RED, f'"{__name__}:Colour.RED"'),
        (module_level, f'"{__name__}:module_level"'),
        (Sizes(), f'{{"class":"{__name__}:Sizes","epochs":3,"widths":[64,32]}}'),
        (functools.partial(max, 1), '{"args":[1],"class":"functools:partial","func":"builtins:max","keywords":{}}'),
    ],
)
def test_canonical_json_of_what_arms_are_given(value: Any, text: str) -> None:
    assert canonical_json(value) == text


def test_a_dataclass_and_a_mapping_of_the_same_fields_differ() -> None:
    assert canonical_json(Sizes()) != canonical_json({"epochs": 3, "widths": (64, 32)})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, r"hyper\['x'\] is nan"),
        (np.float32("inf"), r"hyper\['x'\] is inf"),
        ({"y": [0, lambda: 0]}, r"hyper\['x'\]\['y'\]\[1\] is .*<lambda>"),
        (torch.ones(1), r"hyper\['x'\] is a torch.Tensor"),
        (np.ones(2), r"hyper\['x'\] is a numpy.ndarray"),
        (np.longdouble(1), r"hyper\['x'\] is a numpy.longdouble"),
        (torch.nn.ReLU(), r"hyper\['x'\] is a torch.nn.modules.activation.ReLU"),
        ([].append, r"hyper\['x'\] is a builtins.builtin_function_or_method"),
        ({1: 2}, r"hyper\['x'\] has the key 1"),
    ],
)
def test_what_has_no_identity_is_refused_with_its_place(value: Any, where: str) -> None:
    with pytest.raises(StudyError, match=where):
        replace(SPEC, hyper={"x": value}).run_id  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scale": "benhc"}, UnknownNameError, "did you mean 'bench'"),
        ({"kind": "tuning"}, UnknownNameError, "kind of run"),
        ({"replicate": -1}, StudyError, "replicate of a run must be an integer from 0"),
        ({"replicate": 1.0}, StudyError, "replicate of a run must be an integer"),
        ({"seed": 2**63}, StudyError, "seed of a run"),
        ({"stacked": 0}, StudyError, "stacked of a run must be an integer from 1"),
        ({"attempt": 1}, StudyError, "attempt numbers tuning draws"),
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(SPEC, **changes)


@pytest.mark.parametrize("start", [["study_of_mine.py"], ["-m", "study_of_mine"], ["-c", "import study_of_mine"]])
def test_a_script_has_the_same_name_however_it_is_started(start: list[str], tmp_path: Path) -> None:
    (tmp_path / "study_of_mine.py").write_text(
        "from torchstone.bench.identity import canonical_json\ndef f(): ...\nprint(canonical_json(f))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(torchstone.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *start], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '"study_of_mine:f"'
