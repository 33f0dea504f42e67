"""Simple classifiers on the last hidden layer of a network trained on noisy labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.noise import gaussian_classifier, hidden_layers
from torchstone.training import knn_probe, layer_features

__all__ = ["nearest_mean", "nearest_neighbours"]

Predictor = Callable[[Tensor], Tensor]


def nearest_mean(network: nn.Module, train: TensorData, val: TensorData, cell: Cell) -> Predictor:
    """The class with the nearest mean, by Euclidean distance."""
    features_of = _last_hidden_layer(network, train, cell)
    features = features_of(train.x)
    means = torch.stack([features[train.y == label].mean(0) for label in range(train.num_classes)])
    head = gaussian_classifier(means, torch.eye(means.shape[1], dtype=means.dtype)).requires_grad_(False)
    return lambda x: head(features_of(x))


def nearest_neighbours(network: nn.Module, train: TensorData, val: TensorData, cell: Cell, *, k: int = 10) -> Predictor:
    """The class most frequent among the labels of the ``k`` nearest training samples, by Euclidean distance."""
    features_of = _last_hidden_layer(network, train, cell)
    features = features_of(train.x)

    def predictor(x: Tensor) -> Tensor:
        # The probe also scores; the last class makes it return a column for every class.
        target = torch.full((len(x),), train.num_classes - 1)
        return knn_probe(features, train.y, features_of(x), target, k=k, metric="euclidean").probabilities

    return predictor


def _last_hidden_layer(network: nn.Module, train: TensorData, cell: Cell) -> Predictor:
    (layer,) = hidden_layers(network, train.x[:2].to(cell.device), last=1)
    return lambda x: layer_features(network, x, layers=[layer], device=cell.device).features[layer].cpu()
