"""The robust generative classifier as the track calls it: a network trained by cross entropy, then Gaussians on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.noise import RobustGenerativeClassifier, hidden_layers
from torchstone.tracks._noisy_fits import MakeModel, fit_ce
from torchstone.tracks._trial import ignore

__all__ = ["batches", "fit_rog", "repair_rog"]


def fit_rog(
    make_model: MakeModel,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    lr: float = 0.05,
    layers: Sequence[str] | None = None,
    support_fraction: float | None = 0.7,
    n_steps: int | None = 1,
    ridge: float = 1e-3,
) -> RobustGenerativeClassifier:
    """Cross entropy, then :func:`repair_rog`."""
    network = fit_ce(make_model, train, val, replace(cell, snapshot=ignore), lr=lr)
    return repair_rog(
        network, train, val, cell, layers=layers, support_fraction=support_fraction, n_steps=n_steps, ridge=ridge
    )


def repair_rog(
    network: nn.Module,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    layers: Sequence[str] | None = None,
    last: int = 3,
    support_fraction: float | None = 0.7,
    n_steps: int | None = 1,
    ridge: float = 1e-3,
) -> RobustGenerativeClassifier:
    """Put Gaussian classifiers on a trained network; the validation labels, as they are, weigh its layers.

    Args:
        network: the trained network.
        train: what the Gaussians are estimated from.
        val: what the weights of the layers are learnt on.
        cell: seeds and device.
        layers: names of the layers; by default what :func:`~torchstone.noise.hidden_layers` finds.
        last: at most so many layers, if they are not named.
        support_fraction: of each class, see :class:`~torchstone.noise.MinCovDetTied`.
        n_steps: concentration steps.
        ridge: keeps the covariance of few samples invertible; the authors' code has none.
    """
    rog = RobustGenerativeClassifier(
        network,
        layers or hidden_layers(network, train.x[:2].to(cell.device), last=last),
        train.num_classes,
        support_fraction=support_fraction,
        n_steps=n_steps,
        ridge=ridge,
        generator=cell.seeds.generator("noise", "rog"),
    )
    return rog.fit(batches(train), batches(val))


def batches(data: TensorData, size: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples with their labels, in order."""
    return zip(data.x.split(size), data.y.split(size), strict=True)
