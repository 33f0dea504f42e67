from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from torchstone.bench.fingerprint import fingerprint
from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell
from torchstone.data import TensorData, load
from torchstone.errors import SealedDataError
from torchstone.noise import RobustGenerativeClassifier
from torchstone.tracks import _measure
from torchstone.tracks._post_hoc import PostHoc, as_trained
from torchstone.tracks._rog_fit import fit_rog, repair_rog
from torchstone.tracks.noisy_labels import Problem, Setting, Trial, fit_ce

DIGITS = load("digits").subset(torch.arange(600))
SETTING = Setting(labels={"sym40": "symmetric:0.4"}, epochs=2)


def a_cell(**fields: Any) -> Cell:
    cell = Cell("x", "sym40", 0, Seeds(3), SETTING, **fields)
    task = Problem(DIGITS)(cell)
    return replace(cell, shared=lambda: task)


class Counted:
    """A training that notes its learning rate."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def __call__(self, make_model: Any, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> nn.Module:
        self.rates.append(lr)
        return fit_ce(make_model, train, val, cell, lr=lr)


def spoil(network: nn.Module, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network


def curious(network: nn.Module, train: TensorData, val: TensorData, cell: Cell, *, passes: int) -> nn.Module:
    assert cell.shared() is None
    assert cell.checkpoint.load() is None
    for _ in range(passes):
        network(train.x)
    cell.snapshot(network)
    return network


class Remembering:
    """A checkpoint that is never empty once something was saved."""

    state: dict[str, Any] | None = None

    def load(self) -> dict[str, Any] | None:
        return self.state

    def save(self, state: dict[str, Any]) -> None:
        self.state = state


def test_the_network_as_it_was_trained_scores_as_in_a_trial() -> None:
    cell = a_cell()
    ours, trial = PostHoc(as_trained)(cell, lr=0.1), Trial(fit_ce)(cell, lr=0.1)
    for name in ("accuracy", "memorised"):
        assert ours.values[name] == trial.values[name]
    assert ours.objective == trial.objective
    assert ours.cost == {**trial.cost, "repair_forwards": 0}
    assert ours.values["best_accuracy"] == ours.values["accuracy"]


def test_arms_with_the_same_rate_share_one_training() -> None:
    cell, counted = a_cell(), Counted()
    first = PostHoc(as_trained, counted)(cell, lr=0.1)
    ruined = PostHoc(spoil, counted)(cell, lr=0.1)
    again = PostHoc(as_trained, counted)(cell, lr=0.1)
    assert counted.rates == [0.1]
    assert ruined.values["accuracy"] < first.values["accuracy"]
    assert (again.values["accuracy"], again.cost) == (first.values["accuracy"], first.cost)
    PostHoc(as_trained, counted)(cell, lr=0.2)
    PostHoc(as_trained, fit_ce)(cell, lr=0.1)
    assert counted.rates == [0.1, 0.2]


def test_costs_of_the_repair_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "SAVE_EVERY", -1.0)
    cell = a_cell(checkpoint=Remembering())
    base = PostHoc(as_trained)(cell, lr=0.1)
    assert cell.checkpoint.load()
    for passes in (2, 1):
        outcome = PostHoc(curious)(cell, lr=0.1, passes=passes)
        assert outcome.cost["repair_forwards"] == passes * len(cell.shared().train)
        assert outcome.cost["forwards"] == base.cost["forwards"] + outcome.cost["repair_forwards"]
        assert outcome.cost["steps"] == base.cost["steps"]


def test_the_repair_alone_draws_the_curve() -> None:
    points: list[tuple[str, int | None]] = []
    cell = a_cell(log=lambda name, value, step=None: points.append((name, step)))
    PostHoc(as_trained)(cell, lr=0.1)
    assert points == []
    PostHoc(curious)(cell, lr=0.1, passes=0)
    assert points == [("test_accuracy", 1)]


def test_test_data_stay_sealed_while_it_is_tuned() -> None:
    cell = a_cell(tuning=True)
    outcome = PostHoc(repair_rog)(cell, lr=0.1, last=1)
    assert outcome.values == {}
    assert 0 < (outcome.objective or 0) < 1
    with pytest.raises(SealedDataError):
        cell.shared().test.open()


def test_it_has_an_identity() -> None:
    assert fingerprint(PostHoc(repair_rog)) != fingerprint(PostHoc(as_trained))


def test_rog_on_its_own_is_rog_on_the_shared_network() -> None:
    cell = a_cell()
    shared, alone = PostHoc(repair_rog)(cell, lr=0.1), Trial(fit_rog)(cell, lr=0.1)
    assert alone.values == shared.values
    assert alone.objective == shared.objective
    assert alone.cost["forwards"] == shared.cost["forwards"]
    assert shared.cost["repair_forwards"] == 2 + len(cell.shared().train) + len(cell.shared().val)
    assert 0.5 < shared.values["noise_auc"] <= 1


def test_what_rog_is_made_of() -> None:
    cell = a_cell()
    task = cell.shared()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))

    def repaired(**hyper: Any) -> RobustGenerativeClassifier:
        return repair_rog(network, task.train, task.val, cell, **hyper)

    rog = repaired()
    assert rog.layers == ("2",)
    assert (rog.estimator.support_fraction, rog.estimator.n_steps, rog.estimator.ridge) == (0.7, 1, 1e-3)
    rog = repaired(layers=["1", "3"], support_fraction=None, n_steps=None, ridge=0.1)
    assert rog.layers == ("1", "3")
    assert (rog.estimator.support_fraction, rog.estimator.n_steps, rog.estimator.ridge) == (None, None, 0.1)
    assert len(rog.noise_score) == len(task.train)


def labels_of_val(network: nn.Module, train: TensorData, val: TensorData, cell: Cell) -> Any:
    """A predictor that hands on the validation labels it was given."""
    predictor = torch.nn.functional.one_hot(val.y, val.num_classes).float()
    return lambda x: predictor if len(x) == len(predictor) else torch.zeros(len(x), val.num_classes)


def test_an_oracle_gets_right_validation_labels_and_trains_as_all_others() -> None:
    cell, counted = a_cell(), Counted()
    task = cell.shared()
    noisy = PostHoc(labels_of_val, counted)(cell, lr=0.1)
    clean = PostHoc(labels_of_val, counted, clean_val=True)(cell, lr=0.1)
    assert noisy.objective == 1  # the labels that tuning compares with stay as they are
    assert clean.objective == (task.val.y == task.val_truth.open()).double().mean().item() < 0.8
    assert counted.rates == [0.1]
    sealed = a_cell(tuning=True)
    with pytest.raises(SealedDataError):
        PostHoc(labels_of_val, counted, clean_val=True)(sealed, lr=0.1)


def test_nobody_can_give_right_labels_that_nobody_knows() -> None:
    cell = replace(a_cell(), setting=replace(SETTING, labels={"sym40": "given"}))
    task = Problem(DIGITS)(cell)
    with pytest.raises(ValueError, match="nobody knows the right labels of the validation samples"):
        PostHoc(as_trained, clean_val=True)(replace(cell, shared=lambda: task), lr=0.1)
