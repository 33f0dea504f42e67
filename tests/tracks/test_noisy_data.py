from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell
from torchstone.data import TensorData
from torchstone.errors import SealedDataError
from torchstone.tracks._noisy_data import Problem, Setting, Task, part_sizes

CLASSES = ("a", "b", "c", "d")


def numbered(n: int, first: int = 0, **fields: Any) -> TensorData:
    """Sample i has the input i, so that it can be followed through every split."""
    x = torch.arange(first, first + n, dtype=torch.float32)[:, None]
    return TensorData(x, torch.arange(n) % 4, CLASSES, "numbers", **fields)


POOL = numbered(100)
SETTING = Setting(labels={"pair": "pair:0.5", "given": "given", "worse": "column:worse"})


def cell(case: str = "pair", replicate: int = 0, **fields: Any) -> Cell:
    return Cell("x", case, replicate, Seeds(5, replicate), **{"setting": SETTING, **fields})


def ids(data: TensorData) -> list[int]:
    return data.x[:, 0].long().tolist()


def test_the_parts_are_disjoint_balanced_and_of_the_size_asked_for() -> None:
    task = Problem(POOL)(cell())
    parts = [ids(task.train), ids(task.val), ids(task.test.open())]
    assert [len(part) for part in parts] == [64, 16, 20] == list(part_sizes(POOL, SETTING))
    assert sorted(i for part in parts for i in part) == list(range(100))
    assert torch.bincount(task.test.open().y).tolist() == [5, 5, 5, 5]


def test_training_and_validation_labels_are_noisy_and_test_labels_are_clean() -> None:
    task = Problem(POOL)(cell())
    truth = task.truth.open()
    assert truth is not None
    assert truth.tolist() == [i % 4 for i in ids(task.train)]
    assert 0.3 < float((task.train.y != truth).float().mean()) < 0.7
    assert [i % 4 for i in ids(task.val)] != task.val.y.tolist()
    assert task.test.open().y.tolist() == [i % 4 for i in ids(task.test.open())]
    clean = Problem(POOL)(cell(setting=replace(SETTING, val="clean")))
    assert clean.val.y.tolist() == [i % 4 for i in ids(clean.val)]
    assert torch.equal(clean.train.y, task.train.y)


def test_arms_and_cases_of_a_replicate_share_the_split_and_replicates_do_not() -> None:
    problem = Problem(POOL)
    first = problem(cell())
    assert ids(first.train) == ids(problem(cell("given")).train)
    assert torch.equal(first.train.y, problem(cell()).train.y)
    assert ids(first.train) != ids(problem(cell(replicate=1)).train)


def test_each_chance_has_its_own_stream() -> None:
    def task(*varied: str) -> Task:
        return Problem(POOL)(replace(cell(), seeds=Seeds(5, 1).varying(*varied)))

    still, split, noise = task(), task("split"), task("noise")
    assert ids(still.train) == ids(task("init", "order", "augment", "hpo").train) == ids(noise.train)
    assert ids(still.train) != ids(split.train)
    assert not torch.equal(still.train.y, noise.train.y)


def test_right_labels_and_test_data_cannot_be_opened_while_tuning() -> None:
    task = Problem(POOL)(cell(tuning=True))
    for sealed in (task.test, task.truth):
        with pytest.raises(SealedDataError, match="sealed while an arm is tuned"):
            sealed.open()


def test_a_test_part_of_its_own_is_used_and_a_column_is_hidden() -> None:
    worse = (POOL.y + 1) % 4
    data = replace(POOL, test=numbered(8, first=1000), columns={"worse": worse})
    task = Problem(data)(cell("worse"))
    assert sorted(ids(task.test.open())) == list(range(1000, 1008))
    assert len(task.train) + len(task.val) == 100
    assert task.train.y.tolist() == worse[ids(task.train)].tolist()
    truth = task.truth.open()
    assert truth is not None
    assert torch.equal(truth, POOL.y[ids(task.train)])
    for part in (task.train, task.val, task.test.open()):
        assert not part.columns
        assert part.test is None
    assert Problem(data)(cell("given")).truth.open() is None


def test_what_is_known_of_the_labels_goes_with_them() -> None:
    number = torch.arange(100)
    general = {"annotator": number, "answer": number[:, None] % 4, "pi": number[:, None].float()}
    data = replace(POOL, columns={"worse": POOL.y, "worse_annotator": number + 1000, "secret": POOL.y, **general})
    task = Problem(data)(cell("worse"))
    for part in (task.train, task.val):
        assert part.columns.keys() == {"annotator"}
        assert part.columns["annotator"].tolist() == [i + 1000 for i in ids(part)]
    assert not task.test.open().columns
    given = Problem(replace(data, test=replace(data, test=None)))(cell("given"))
    assert given.train.columns.keys() == {"annotator", "answer", "pi"}
    assert given.train.columns["pi"][:, 0].tolist() == ids(given.train)
    assert not given.test.open().columns
    assert not Problem(data)(cell("pair")).train.columns  # answers to right labels would give them away
    clean = Problem(data)(cell("worse", setting=replace(SETTING, val="clean")))
    assert (clean.train.columns.keys(), dict(clean.val.columns)) == ({"annotator"}, {})
    assert Problem(data).everything(SETTING, "worse").columns["annotator"].tolist() == (number + 1000).tolist()
    assert not Problem(data).everything(SETTING, "pair").columns


def test_fewer_samples_can_be_used() -> None:
    few = replace(SETTING, samples=40)
    assert part_sizes(POOL, few) == (26, 6, 8)
    data = replace(POOL, test=numbered(50, first=1000))
    assert part_sizes(data, few) == (26, 6, 8)
    task = Problem(data)(cell(setting=few))
    assert min(ids(task.test.open())) >= 1000
    assert part_sizes(data, replace(SETTING, samples=10**6)) == (80, 20, 50)


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match="have 3 samples, which leaves none to validate on with val_fraction"):
        part_sizes(numbered(3), SETTING)


def test_everything_has_the_labels_of_its_owner() -> None:
    worse = (POOL.y + 1) % 4
    problem = Problem(replace(POOL, test=numbered(8), columns={"worse": worse}))
    assert torch.equal(problem.everything(SETTING, "pair").y, POOL.y)
    assert torch.equal(problem.everything(SETTING, "worse").y, worse)
    assert len(problem.everything(SETTING, "pair")) == 100


def test_a_known_set_is_read_when_it_is_needed_and_a_problem_travels() -> None:
    problem = pickle.loads(pickle.dumps(Problem("digits")))
    assert len(problem.dataset()) == 1797
    assert ids(pickle.loads(pickle.dumps(Problem(POOL)))(cell()).train) == ids(Problem(POOL)(cell()).train)
