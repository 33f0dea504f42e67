"""Bad input, from the command line: one clear sentence that names the culprit, the right exit code, nothing lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from torchstone.cli.app import app

RUN = "--noise symmetric:0.4 --arms ce,gce --epochs 1 --tries 1 --replicates 1"


def invoke(words: str, code: int) -> str:
    """Run a command; return the one sentence it printed."""
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("torchstone: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def save(name: str, x: np.ndarray, y: np.ndarray) -> None:
    np.savez(name, x=x, y=y)


def good() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.random((60, 5), dtype=np.float32), np.arange(60) % 3


def one_class() -> None:
    x, y = good()
    save("d.npz", x, y * 0)


def nan_pixels() -> None:
    x, y = good()
    x[7, 2] = np.nan
    save("d.npz", x, y)


def labels_out_of_range() -> None:
    x, y = good()
    save("d.npz", x, y - 1)


def no_data() -> None:
    x, y = good()
    save("d.npz", x[:0], y[:0])


def not_an_archive() -> None:
    Path("d.npz").write_bytes(b"PK\x03\x04 but nothing else")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (one_class, "two classes are needed"),
        (nan_pixels, "NaN"),
        (labels_out_of_range, "-1"),
        (no_data, "is empty"),
        (not_an_archive, "d.npz"),
    ],
)
def test_data_that_cannot_be_used(
    make: Callable[[], None], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make()
    assert sentence in invoke(f"compare noisy-labels --data d.npz {RUN} -q", 1)
    assert not (tmp_path / "results.db").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("compare noisy-labels --data digits --arms ce,spo --noise symmetric:0.4", "did you mean 'sop'"),
        ("compare noisy-labels --data digitz --noise symmetric:0.4", "did you mean 'digits'"),
        ("compare noisy-label --data digits", "did you mean 'noisy-labels'"),
        ("compare noisy-labels --data digits --noise symetric:0.4", "did you mean 'symmetric'"),
        ("compare noisy-labels --data digits --noise symmetric:1.4", "rate in [0, 1]"),
        ("compare noisy-labels --data digits", "no clean labels to test on"),
        ("compare noisy-labels --data missing.csv --noise symmetric:0.4", "there is no file or folder missing.csv"),
        ("compare noisy-labels --data digits --noise symmetric:0.4 --model wide:net", "there is no module 'wide'"),
        ("run sopp", "did you mean 'sop'"),
        ("run jtt", "no study of 'jtt' yet"),
        ("run sop --only mnisst", "did you mean 'mnist'"),
        ("show spo", "did you mean 'sop'"),
        ("cite sopp", "did you mean 'sop'"),
        ("data verify mnst", "did you mean 'mnist'"),
        ("judge nothing.csv", "nothing.csv"),
    ],
)
def test_names_and_words_that_are_off(words: str, sentence: str) -> None:
    assert sentence in invoke(words, 1)


def test_a_model_with_the_wrong_output_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "narrow_nets.py").write_text(
        "from torch import nn\n\n"
        "def net(input_shape, num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    said = invoke(f"compare noisy-labels --data digits --model narrow_nets:net {RUN} -q", 1)
    assert "narrow_nets:net" in said
    assert "7" in said
    assert "10" in said


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    CliRunner().invoke(app, ["status", "--store", str(path)])
    CliRunner().invoke(app, f"compare noisy-labels --data digits {RUN} -q --store {path}".split())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99'")
    before = path.read_bytes()
    assert "newer" in invoke(f"status --store {path}", 1)
    assert "newer" in invoke(f"compare noisy-labels --data digits {RUN} -q --store {path}", 1)
    assert path.read_bytes() == before


def test_a_corrupt_batch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(b"\x80\x02}q\x00(U\x04data")
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    assert "data_batch_1" in invoke(f"compare noisy-labels --data cifar10 {RUN} -q", 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "empty"),
        ("method,replicate,score\n", "no scores"),
        ("method,replicate,score\na,0,1\na,0,2\nb,0,1\nb,1,1\n", "twice"),
        ("method,replicate,score\na,0,1\na,1,nan\nb,0,1\nb,1,1\n", "nan"),
        ("method,replicate,score\na,0,1\na,1,high\nb,0,1\nb,1,1\n", "high"),
        ("method,replicate,score\na,0,1\na,1,2\n", "only a"),
    ],
)
def test_scores_that_cannot_be_judged(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    assert sentence in invoke(f"judge {path}", 1).lower()


def test_an_empty_csv_of_data(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("")
    assert "empty" in invoke(f"compare noisy-labels --data {path} {RUN} -q", 1)
