"""Rivals for noisy labels: prune and train again, in the manner of confident learning, and temperature scaling.

Northcutt, Jiang, Chuang, *Confident Learning: Estimating Uncertainty in Dataset Labels*, JAIR 2021; Guo, Pleiss, Sun,
Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.tracks._noisy_fits import MakeModel, fit_ce
from torchstone.training import predict

__all__ = ["confident_issues", "fit_prune_and_retrain", "repair_temperature"]


def confident_issues(probs: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Samples off the diagonal of the confident joint: those that confidently belong to another class.

    The threshold of class j is the mean p(j | x) over the samples labelled j. A sample belongs to the likeliest of the
    classes whose threshold it reaches. ``probs`` must come from networks that were not trained on the sample.
    """
    classes = probs.shape[1]
    labelled = F.one_hot(labels, classes).to(probs.dtype)
    threshold = (probs * labelled).sum(0) / labelled.sum(0)  # NaN, never reached, for a class without a sample
    reached = probs >= threshold
    belongs = torch.where(reached, probs, -1.0).argmax(1)
    return reached.any(1) & (belongs != labels)


def fit_prune_and_retrain(
    make_model: MakeModel,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    lr: float,
    share: float = 0.25,
    folds: int = 3,
) -> nn.Module:
    """Leave out the samples whose label other networks confidently reject, and train on the rest.

    Args:
        make_model: gives a fresh network.
        train: training data.
        val: not used.
        cell: setting and seeds.
        lr: learning rate of all networks.
        share: epochs of the networks that reject labels, as a share of those of the last one.
        folds: number of these networks, each trained on the samples that it does not judge.
    """
    probs = torch.empty(len(train), train.num_classes)
    order = torch.randperm(len(train), generator=cell.seeds.generator("noise", "folds"))
    short = replace(cell.setting, epochs=max(round(share * cell.setting.epochs), 1))
    # A new cell has neither checkpoint nor curve: there is one of these for the last training alone.
    apart = Cell(cell.experiment, cell.case, cell.replicate, cell.seeds, short, device=cell.device)
    for fold in order.tensor_split(folds):
        others = torch.ones(len(train), dtype=torch.bool)
        others[fold] = False
        judge = fit_ce(make_model, train.subset(others.nonzero()[:, 0]), val, apart, lr=lr)
        probs[fold] = predict(judge, train.x[fold]).softmax(1)
    kept = (~confident_issues(probs, train.y)).nonzero()[:, 0]
    return fit_ce(make_model, train.subset(kept), val, cell, lr=lr)


def repair_temperature(network: nn.Module, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    """Divide the logits by the temperature with the least cross entropy on the validation labels."""
    logits = predict(network, val.x)

    def cross_entropy(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), val.y))

    best: Any = minimize_scalar(cross_entropy, bounds=(-5.0, 5.0), method="bounded")
    return _Tempered(network, math.exp(best.x))


class _Tempered(nn.Module):
    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) / self.temperature
