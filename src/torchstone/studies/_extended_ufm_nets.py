"""Small networks whose layers are measured while they train, and the models that are to predict them.

Networks: three hidden layers with ReLUs, a last layer with or without a bias, many replicates in one pass. Squared
error is (1/2N) |Z - Y|^2, on the scale of the theory; the weight decay of the optimiser is the lambda of every weight,
and biases have none. Nothing else is regularised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.statistics import kendall_tau
from torchstone.bench.study import Cell, Sealed
from torchstone.data import TensorData, load
from torchstone.dynamics import MSEClassificationLoss, UnconstrainedFeatureModel, nc_metrics
from torchstone.dynamics.neural_collapse.metrics import frame_error
from torchstone.models.seeding import seeded
from torchstone.studies._extended_ufm_descent import MODELS, Descent, descend
from torchstone.training.stacked import SGD, StackedEpochEnd, StackedModule, fit_stacked, stack

__all__ = ["Nets", "agreement", "draw", "frame_gap", "run_model", "run_net", "stack_models", "stack_nets"]

MODEL = Descent(num_classes=10, steps=4000)
PREDICTORS = ("plain-ufm", "linear-ufm", "relu-ufm")


@dataclass(frozen=True)
class Nets:
    """Sizes. The learning rate falls by ten after half and after four fifths of the epochs.

    Args:
        source: name of the data set.
        per_class: training samples of each class; the others are the test part.
        pool: factor by which images are made smaller.
        points: how often layers are measured, beside the start.
        model: sizes of the models that predict; ``weight_decay`` is theirs too.
    """

    source: str
    per_class: int
    epochs: int
    pool: int = 1
    width: int = 64
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-3
    points: int = 10
    model: Descent = MODEL


class Net(nn.Module):
    """Three hidden layers, and a last one with or without a bias; ``normalise`` gives its inputs norm sqrt(width)."""

    def __init__(self, inputs: int, classes: int, width: int, *, bias: bool, normalise: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((inputs, width, width, width)))
        self.head = nn.Linear(width, classes, bias=bias)
        self.normalise = normalise

    def hidden(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of every hidden layer, and those of the last before its ReLU."""
        h, features, before = x.flatten(1), [], x
        for layer in self.layers:
            before = layer(h)
            h = before.relu()
            features.append(h)
        if self.normalise:
            features[-1] = F.normalize(h, dim=-1) * math.sqrt(h.shape[-1])
        return features, before

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.hidden(x)[0][-1])


# ---------------------------------------------------------------- data


@dataclass(frozen=True, eq=False)
class Problem:
    """What the arms of a cell share: balanced training data, and test data."""

    x: Tensor
    y: Tensor
    test: Sealed[tuple[Tensor, Tensor]]
    num_classes: int


def draw(cell: Cell) -> Problem:
    """``shared`` of the experiments: as many training samples of each class, the rest for testing."""
    size: Nets = cell.setting
    data = _known(size.source)
    order = torch.randperm(len(data), generator=cell.seeds.generator("split"))
    chosen = torch.cat([order[data.y[order] == label][: size.per_class] for label in range(data.num_classes)])
    rest = torch.ones(len(data), dtype=torch.bool).index_fill(0, chosen, False)
    images = F.avg_pool2d(data.x, size.pool) if size.pool > 1 else data.x
    mean, scale = images[chosen].mean(0), images[chosen].std()
    x = (images - mean) / scale
    return Problem(x[chosen], data.y[chosen], cell.seal((x[rest], data.y[rest])), data.num_classes)


@lru_cache(maxsize=2)
def _known(name: str) -> TensorData:
    return load(name)


# ---------------------------------------------------------------- networks


def run_net(cell: Cell, *, loss: str = "mse", decay: bool = True, normalise: bool = False) -> Outcome:
    """``run`` of the networks: one replicate."""
    return stack_nets([cell], [{"loss": loss, "decay": decay, "normalise": normalise}])[0]


def stack_nets(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of the same: train with ``loss`` ``"mse"`` or ``"ce"``, and measure every layer on training data.

    An outcome has accuracies ``train`` and ``test``; at the end ``nc1_1`` to ``nc1_3``, their falls in powers of ten
    from one layer to the next (``fall_12``, ``fall_23``) and of the last during training (``fall_time``); ``rows_of``,
    the distance of the last layer's rows from an orthogonal frame, and by how much that is nearer than a simplex, for
    the rows (``rows_gap``), the means it sees (``means_gap``) and those before their ReLU (``before_gap``), nothing of
    it centred; ``centred_etf``, the distance of centred means from a simplex; ``nc3``; and the curves of NC1 in the
    last two layers, ``curve_before`` and ``curve_last``.
    """
    size: Nets = cells[0].setting
    options = dict(hypers[0])
    mse, decay = options.pop("loss", "mse") == "mse", options.pop("decay", True)
    problems: list[Problem] = [cell.shared() for cell in cells]
    x, y = (torch.stack([getattr(p, name) for p in problems]).to(cells[0].device) for name in ("x", "y"))
    classes = problems[0].num_classes
    nets = []
    for cell in cells:
        with seeded(cell.seeds.generator("init")):
            nets.append(Net(x[0, 0].numel(), classes, size.width, bias=cells[0].case == "bias", **options))
    model = stack(nets).to(cells[0].device)
    error: Callable[[Tensor, Tensor], Tensor] = MSEClassificationLoss(classes) if mse else F.cross_entropy
    scale = classes / 2 if mse else 1.0  # from the mean over the outputs to half of the sum
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": size.weight_decay * decay}, {"params": biases}]
    optimizer = SGD(groups, lr=size.lr, momentum=size.momentum)
    curves = [_nc1(model, x, y, classes)]

    def measure(end: StackedEpochEnd) -> None:
        if end.history.epochs * size.points % size.epochs < size.points:
            curves.append(_nc1(end.model, x, y, classes))

    drops = [-(-size.epochs // 2), -(-size.epochs * 4 // 5)]
    history = fit_stacked(
        model,
        (x, y),
        lambda net, batch: scale * error(net(batch.x), batch.y),
        optimizer,
        epochs=size.epochs,
        batch_size=size.batch_size,
        generators=[cell.seeds.generator("order") for cell in cells],
        own="xy",
        scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, drops),
        on_step=cells[0].tick,
        callbacks=[measure],
    )
    curve = torch.stack(curves).cpu()  # (points + 1, layers, seeds)
    found = {name: value.cpu() for name, value in _final(model, x, y, classes).items()}
    outcomes = []
    for i, (cell, problem, net) in enumerate(zip(cells, problems, model.unstack(), strict=True)):
        objective = -float(history.curves["loss"][-1, i])
        if history.diverged[i]:
            outcomes.append(Outcome(cost=history.cost, diverged=history.diverged[i]))
        elif cell.tuning:
            outcomes.append(Outcome(objective=objective))
        else:
            values: dict[str, Any] = {name: value[i] for name, value in found.items()}
            test_x, test_y = problem.test.open()
            with torch.no_grad():
                values["test"] = (net.cpu()(test_x).argmax(1) == test_y).float().mean()
            one, two, three = curve[-1, :, i].tolist()
            values |= {"nc1_1": one, "nc1_2": two, "nc1_3": three}
            values["fall_12"], values["fall_23"] = math.log10(one / two), math.log10(two / three)
            values["fall_time"] = math.log10(float(curve[0, -1, i]) / three)
            values |= {"curve_before": curve[:, -2, i], "curve_last": curve[:, -1, i]}
            outcomes.append(Outcome(values, objective=objective, cost=history.cost))
    return outcomes


@torch.no_grad()
def _nc1(model: StackedModule[Net], x: Tensor, y: Tensor, classes: int) -> Tensor:
    """NC1 of every layer (layers, seeds)."""
    features, _ = model.map(lambda net, x: net.hidden(x), x)
    return torch.stack([nc_metrics(h, y, num_classes=classes).nc1 for h in features])


@torch.no_grad()
def _final(model: StackedModule[Net], x: Tensor, y: Tensor, classes: int) -> dict[str, Tensor]:
    features, before = model.map(lambda net, x: net.hidden(x), x)
    weight = model.net.head.weight
    metrics = nc_metrics(features[-1], y, weight, num_classes=classes, frame="orthogonal")
    means, before_means = metrics.means, nc_metrics(before, y, num_classes=classes).means
    logits = model(x)
    rows = weight.double()
    return {
        "train": (logits.argmax(-1) == y).float().mean(-1),
        "rows_of": frame_error(rows @ rows.mT, "orthogonal"),
        "rows_gap": frame_gap(rows),
        "means_gap": frame_gap(means),
        "before_gap": frame_gap(before_means),
        "centred_etf": nc_metrics(features[-1], y, num_classes=classes).nc2,
        "nc3": metrics.nc3 if metrics.nc3 is not None else torch.full((len(model),), math.nan),
    }


def frame_gap(vectors: Tensor) -> Tensor:
    """NC2^ETF - NC2^OF of uncentred vectors (..., K, d): positive where they are nearer to an orthogonal frame.

    Of vectors without negative entries it is always positive, whatever they are.
    """
    gram = vectors @ vectors.mT
    return frame_error(gram, "etf") - frame_error(gram, "orthogonal")


# ---------------------------------------------------------------- models that predict


def run_model(cell: Cell, *, kind: str) -> Outcome:
    """``run`` of the models: one replicate."""
    return stack_models([cell], [{"kind": kind}])[0]


def stack_models(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """``stacked`` of the same: the curves of NC1 that gradient descent on model ``kind`` gives, at the same fractions.

    The plain model has one layer of features, which stands for both.
    """
    setting: Nets = cells[0].setting
    size, kind = setting.model, MODELS[hypers[0]["kind"]]
    model = UnconstrainedFeatureModel(
        size.num_classes,
        size.per_class,
        size.dim,
        kind.layers,
        kind.nonlinearity,
        seeds=len(cells),
        init_std=0.2,
        generator=[cell.seeds.generator("init", "model") for cell in cells],
        dtype=torch.float64,
    ).to(cells[0].device)
    curves: list[Tensor] = []

    @torch.no_grad()
    def measure() -> None:
        layers = [model.features(layer) for layer in (1, kind.layers)]
        curves.append(torch.stack([nc_metrics(h, model.labels, num_classes=size.num_classes).nc1 for h in layers]))

    measure()
    marks = dict.fromkeys((size.steps * point // setting.points for point in range(1, setting.points + 1)), measure)
    decays = [setting.weight_decay] * (kind.layers + 1)
    descend(model, decays, lr=size.lr, steps=size.steps, tick=cells[0].tick, marks=marks)
    before, last = torch.stack(curves, 1).cpu()
    loss = model.loss(decays).detach().cpu()
    cost = {"steps": size.steps}
    outcomes = []
    for i, cell in enumerate(cells):
        if not (before[-1, i] + last[-1, i]).isfinite():
            outcomes.append(Outcome(cost=cost, diverged="features became zero or left the finite numbers"))
        elif cell.tuning:
            outcomes.append(Outcome(objective=-float(loss[i])))
        else:
            outcomes.append(Outcome({"curve_before": before[:, i], "curve_last": last[:, i]}, cost=cost))
    return outcomes


def agreement(row: Row) -> Mapping[str, float]:
    """Kendall's tau of NC1 in the network's last two layers over training with each model's, and with time alone.

    Curves of both layers are one list, so that the order of the layers counts too.
    """
    case = "no-bias"

    def curve(arm: str) -> np.ndarray:
        parts = [row.value(name, arm, case) for name in ("curve_before", "curve_last")]
        return np.concatenate([np.atleast_1d(part) for part in parts])

    network = curve("mse")
    points = len(network) // 2
    curves = {f"tau_{arm.removesuffix('-ufm')}": curve(arm) for arm in PREDICTORS}
    curves["tau_time"] = -np.tile(np.arange(points, dtype=float), 2)
    known = {name: not np.isnan(each).any() and not np.isnan(network).any() for name, each in curves.items()}
    return {name: kendall_tau(network, each) if known[name] else math.nan for name, each in curves.items()}
