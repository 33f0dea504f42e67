"""Noisy prediction calibration as the track calls it: a network trained by cross entropy, then its calibrator."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import nn

from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.noise import NoisyPredictionCalibrator
from torchstone.tracks._noisy_fits import MakeModel, fit_ce
from torchstone.tracks._trial import ignore

__all__ = ["fit_npc", "repair_npc"]


def fit_npc(
    make_model: MakeModel,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    lr: float = 0.05,
    npc_lr: float = 1e-3,
    rho: float = 5.0,
    npc_epochs: int = 10,
    sampler: str = "exact",
) -> NoisyPredictionCalibrator:
    """Cross entropy, then :func:`repair_npc`."""
    network = fit_ce(make_model, train, val, replace(cell, snapshot=ignore), lr=lr)
    return repair_npc(network, train, val, cell, npc_lr=npc_lr, rho=rho, npc_epochs=npc_epochs, sampler=sampler)


def repair_npc(
    network: nn.Module,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    npc_lr: float = 1e-3,
    rho: float = 5.0,
    npc_epochs: int = 10,
    sampler: str = "exact",
) -> NoisyPredictionCalibrator:
    """Calibrate a trained network on its predictions for the training inputs; no label is looked at.

    Args:
        network: the trained network; its last linear layer is the one registered last.
        train: the inputs that it was trained on.
        val: not used.
        cell: seeds and device.
        npc_lr: learning rate of the calibrator.
        rho: weight of its prior; at 0 it has none.
        npc_epochs: passes over the inputs; at 0 its encoder stays as it was drawn.
        sampler: ``"exact"``, or ``"approx"`` as published.
    """
    seeds = cell.seeds
    calibrator = NoisyPredictionCalibrator.from_classifier(
        network, k=min(10, len(train)), rho=rho, sampler=sampler, generator=seeds.generator("init", "npc")
    )
    with warnings.catch_warnings():
        # The accuracy tells it too.
        warnings.filterwarnings("ignore", message="classes .* are never predicted")
        calibrator.fit(
            train.x,
            epochs=npc_epochs,
            lr=npc_lr,
            # As published, but for few samples: ten neighbours need ten references at least.
            reference_batch=min(128, max(len(train) // 10, 1)),
            generator=seeds.generator("noise", "npc"),
            device=cell.device,
        )
    return calibrator
