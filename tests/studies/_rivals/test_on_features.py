from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell
from torchstone.data import TensorData
from torchstone.models import initialize_
from torchstone.studies._rivals.on_features import nearest_mean, nearest_neighbours

CELL = Cell("x", "y", 0, Seeds(0))


def parts() -> tuple[nn.Module, TensorData, torch.Tensor, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A network, training data, new inputs, and the features of both."""
    generator = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())  # no two samples at the same distance
    network = initialize_(nn.Sequential(body, nn.Linear(6, 3)), generator)
    x, new = torch.randn(2, 90, 4, generator=generator)
    train = TensorData(x, torch.randint(3, (90,), generator=generator), ("a", "b", "c"), "toy")
    return network, train, new, body(x).detach().numpy(), body(new).detach().numpy()


def test_the_nearest_mean_is_that_of_scikit_learn() -> None:
    from sklearn.neighbors import NearestCentroid

    network, train, new, features, new_features = parts()
    expected = NearestCentroid().fit(features, train.y).predict(new_features)
    assert nearest_mean(network, train, train, CELL)(new).argmax(1).tolist() == expected.tolist()


def test_the_nearest_neighbours_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    network, train, new, features, new_features = parts()
    for k in (1, 10):
        expected = KNeighborsClassifier(k).fit(features, train.y.numpy()).predict_proba(new_features)
        np.testing.assert_allclose(nearest_neighbours(network, train, train, CELL, k=k)(new), expected)


def test_a_class_that_has_no_sample_has_its_column() -> None:
    network, train, new, _, _ = parts()
    few = train.with_labels(train.y.clamp(max=1))
    assert nearest_neighbours(network, few, few, CELL)(new).shape == (90, 3)
