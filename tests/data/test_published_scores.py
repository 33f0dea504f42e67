from __future__ import annotations

import json

import numpy as np
import pytest

from torchstone.data import load, unreproducible_scores, verify
from torchstone.errors import CorruptDataError, DataNotFoundError

FOLDER = "unreproducible_scores"


def write(root, tables):
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        (folder / name).write_text(table if isinstance(table, str) else json.dumps(table))


GOOD = {"data": {"mnist": {"b": [0.1, 0.2], "a": [0.0, 1.0]}}, "colors": {}}


def test_scores_by_setting_data_set_and_model(tmp_path, monkeypatch):
    write(tmp_path, {"seed.json": GOOD, "hpo.json": {"data": {"mnist": {"a": [0.3, 0.4], "b": [0.5, 0.5]}}}})
    scores = unreproducible_scores(tmp_path)
    assert list(scores) == ["default", "tuned"]
    assert list(scores["default"]["mnist"]) == ["a", "b"]
    assert scores["tuned"]["mnist"]["a"].tolist() == [0.3, 0.4]
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path))
    assert unreproducible_scores().keys() == scores.keys()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", "not a table of scores"),
        ({"scores": {}}, "not a table of scores"),
        ({"data": {"mnist": [1, 2]}}, "not a table of scores"),
        ({"data": {"mnist": {"a": ["x"]}}}, "not a table of scores"),
        ({"data": {"mnist": {"a": [0.1, 1.1]}}}, "scores of 'a' on 'mnist' are no list of error rates"),
        ({"data": {"mnist": {"a": [0.1]}}}, "no list of error rates"),
        ({"data": {"mnist": {"a": [0.1, float("nan")]}}}, "no list of error rates"),
    ],
)
def test_other_files_are_refused(tmp_path, table, message):
    write(tmp_path, {"seed.json": table, "hpo.json": GOOD})
    with pytest.raises(CorruptDataError, match=message):
        unreproducible_scores(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"seed.json: run `torchstone data get unreproducible_scores`"):
        unreproducible_scores(tmp_path)


def test_they_are_no_samples(tmp_path):
    write(tmp_path, {"seed.json": GOOD, "hpo.json": GOOD})
    with pytest.raises(CorruptDataError, match=r"holds published scores, not samples: .*unreproducible_scores\(\)"):
        load(FOLDER, root=tmp_path)


@pytest.mark.real_data
def test_the_published_files(data_root):
    assert [row.status for row in verify(FOLDER, root=data_root)] == ["ok", "ok"]
    scores = unreproducible_scores(data_root)
    assert {setting: list(table) for setting, table in scores.items()} == {
        setting: ["mnist", "cifar10", "cifar100"] for setting in ("default", "tuned")
    }
    models = {tuple(models) for table in scores.values() for models in table.values()}
    assert len(models) == 1
    assert len(next(iter(models))) == 8
    assert {len(runs) for table in scores.values() for models in table.values() for runs in models.values()} == {10}
    means = {
        setting: {model: np.mean(runs) for model, runs in scores[setting]["cifar10"].items()} for setting in scores
    }
    assert means["default"]["vgg19"] == pytest.approx(0.1101, abs=5e-5)
    assert means["tuned"]["resnet101"] == pytest.approx(0.1072, abs=5e-5)
