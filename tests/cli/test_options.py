"""How words of the command line are read, and how JSON is written."""

from __future__ import annotations

import json
import typing
from typing import Any

import numpy as np
import pytest
import typer

from torchstone.bench.options import EXECUTORS
from torchstone.bench.study import SCALES
from torchstone.cli import work
from torchstone.cli.options import parse_duration, parse_settings, parse_size, print_json, split_names
from torchstone.errors import UnknownNameError


def takes(*, epochs: int = 1, name: str = "", note: str | None = None, **_: Any) -> None: ...


def strict(*, epochs: int = 1) -> None: ...


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("1D", 86400), ("2h5m10s", 7510)]
)
def test_durations(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["5", "", "m5", "5m!", "-5m", "0s", "5 m", "nan", "1e3s"])
def test_no_duration(text: str):
    with pytest.raises(typer.BadParameter, match="90s, 5m or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("512MB", 512e6), ("2gb", 2e9), ("1.5GiB", 1.5 * 2**30), ("64 KiB", 2**16), ("1TB", 1e12)]
)
def test_sizes(text: str, size: float):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["2", "", "GB", "0GB", "-1GB", "2GG", "2 G B", "nanGB", "1e3MB"])
def test_no_size(text: str):
    with pytest.raises(typer.BadParameter, match="write 512MB"):
        parse_size(text)


def test_settings_are_typed():
    words = ["epochs=3", "lr=1e-3", "augment=none", "clean=TRUE", "kind=pair", "name=007", "note=7", "batch-size=64"]
    assert parse_settings(words, takes) == {
        "epochs": 3,
        "lr": 0.001,
        "augment": None,
        "clean": True,
        "kind": "pair",
        "name": "007",
        "note": 7,
        "batch_size": 64,
    }


def test_settings_refuse_typos_and_nonsense():
    with pytest.raises(UnknownNameError, match="did you mean 'epochs'"):
        parse_settings(["epoch=3"], strict)
    for words in (["epochs"], ["=3"], ["epochs=1", "epochs=2"]):
        with pytest.raises(typer.BadParameter):
            parse_settings(words, strict)


def test_names_by_comma_or_repetition():
    assert split_names(["ce, sop", "elr", ","]) == ["ce", "sop", "elr"]


def test_json_has_no_nan_and_no_numpy(capsys: pytest.CaptureFixture[str]):
    print_json(
        {"a": float("nan"), "b": [np.float64("inf"), np.int64(3)], "c": np.array([0.5, np.nan]), "d": {1: (True,)}}
    )
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 3],
        "c": [0.5, None],
        "d": {"1": [True]},
    }


def test_the_scales_on_offer_are_those_of_the_bench():
    hint = typing.get_type_hints(work.run)["scale"]
    assert typing.get_args(hint) == SCALES


@pytest.mark.parametrize("command", [work.run, work.compare])
def test_the_executors_on_offer_are_those_of_the_bench(command: Any):
    hint = typing.get_type_hints(command)["executor"]
    assert set(typing.get_args(hint)) == set(EXECUTORS)
