from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell
from torchstone.data import TensorData
from torchstone.models import MLP
from torchstone.studies._rivals import noisy_labels
from torchstone.studies._rivals.noisy_labels import confident_issues, fit_prune_and_retrain, repair_temperature
from torchstone.tracks.noisy_labels import Setting

C = 3


def data(n: int = 60) -> TensorData:
    """Three clusters; every tenth label is wrong."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % C
    x = 3 * F.one_hot(truth, C).float() + 0.3 * torch.randn(n, C, generator=generator)
    labels = torch.where(torch.arange(n) % 10 == 0, (truth + 1) % C, truth)
    return TensorData(x, labels, tuple("abc"), "clusters")


def a_cell(epochs: int = 12) -> Cell:
    return Cell("x", "given", 0, Seeds(3), Setting(labels={"given": "given"}, epochs=epochs, batch_size=10))


def net() -> nn.Module:
    return MLP(C, C, hidden=(8,), generator=torch.Generator().manual_seed(1))


def literal_issues(probs: list[list[float]], labels: list[int]) -> list[bool]:
    """The confident joint of Northcutt et al., section 3.1, sample by sample."""
    thresholds = []
    for j in range(C):
        own = [p[j] for p, y in zip(probs, labels, strict=True) if y == j]
        thresholds.append(sum(own) / len(own) if own else float("inf"))
    issues = []
    for p, y in zip(probs, labels, strict=True):
        candidates = [j for j in range(C) if p[j] >= thresholds[j]]
        issues.append(bool(candidates) and max(candidates, key=lambda j: p[j]) != y)
    return issues


@pytest.mark.parametrize("classes", [3, 2])
def test_issues_are_those_off_the_diagonal_of_the_confident_joint(classes):
    generator = torch.Generator().manual_seed(0)
    probs = (2 * torch.randn(200, C, generator=generator, dtype=torch.float64)).softmax(1)
    labels = torch.randint(classes, (200,), generator=generator)  # with two, the third class has no sample
    found = confident_issues(probs, labels)
    assert found.tolist() == literal_issues(probs.tolist(), labels.tolist())
    assert 20 < int(found.sum()) < 180


def test_what_is_left_out_are_the_wrong_labels(monkeypatch):
    train, trained = data(), []
    plain = noisy_labels.fit_ce

    def fit(make_model: Any, part: TensorData, val: TensorData, cell: Cell, **hyper: Any) -> nn.Module:
        trained.append((part, cell.setting.epochs))
        return plain(make_model, part, val, cell, **hyper)

    monkeypatch.setattr(noisy_labels, "fit_ce", fit)
    seen: list[Any] = []
    cell = replace(a_cell(), snapshot=seen.append)
    fit_prune_and_retrain(net, train, train, cell, lr=0.2, share=0.5, folds=3)
    *judges, (last, epochs) = trained
    assert [(len(part), short) for part, short in judges] == [(40, 6)] * 3
    assert (len(last), epochs) == (54, 12)
    assert torch.equal(last.y, last.x.argmax(1))  # the truth
    assert len(seen) == 12  # the curve is that of the last training alone


def test_the_temperature_is_the_best_on_validation_and_changes_no_prediction():
    val, network = data(), net()
    with torch.no_grad():
        network.get_parameter("head.weight").mul_(30)
    mended = repair_temperature(network, val, val, a_cell())
    assert torch.equal(mended(val.x).argmax(1), network(val.x).argmax(1))
    best = F.cross_entropy(mended(val.x), val.y)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert best < F.cross_entropy(factor * mended(val.x), val.y)
