"""Methods for noisy labels as the track calls them: one training recipe, and what each method changes in it.

All take ``(make_model, train, val, cell)`` and return the trained network. SGD with momentum and weight decay, a cosine
schedule, batch size and epochs are those of ``cell.setting``, the same for all; none looks at the validation data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from torchstone.bench.study import Cell
from torchstone.data.tensors import TensorData
from torchstone.noise import EarlyLearningRegularization, GeneralizedCrossEntropy, SparseOverparamLoss, suggest_rates
from torchstone.training import EpochEnd, Loss, fit, supervised

__all__ = ["MakeModel", "crop_and_flip", "fit_ce", "fit_elr", "fit_gce", "fit_sop", "train_by_recipe"]

MakeModel = Callable[[], nn.Module]


def fit_ce(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float = 0.05) -> nn.Module:
    """Cross entropy, as if all labels were right."""
    return _train(make_model(), train, cell, nn.CrossEntropyLoss(), lr=lr)


def fit_gce(
    make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float = 0.05, q: float = 0.7
) -> nn.Module:
    """Generalized cross entropy."""
    return _train(make_model(), train, cell, GeneralizedCrossEntropy(q), lr=lr)


def fit_elr(
    make_model: MakeModel,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    lr: float = 0.05,
    strength: float = 3.0,
    momentum: float = 0.7,
) -> nn.Module:
    """Early-learning regularization."""
    criterion = EarlyLearningRegularization(len(train), train.num_classes, strength=strength, momentum=momentum)
    return _train(make_model(), train, cell, criterion, lr=lr, with_index=True)


def fit_sop(
    make_model: MakeModel,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    lr: float = 0.05,
    scale_u: float = 1.0,
    scale_v: float = 1.0,
    lr_u: float | None = None,
    lr_v: float | None = None,
    init_std: float | None = None,
) -> nn.Module:
    """Sparse over-parameterization; the predictor's ``noise_score`` says which labels it holds for wrong.

    Args:
        make_model: gives a fresh network.
        train: training data.
        val: not used.
        cell: setting and seeds.
        lr: learning rate of the network.
        scale_u: learning rate of u in multiples of what :func:`~torchstone.noise.suggest_rates` says for this batch
            size and number of epochs.
        scale_v: the same for v.
        lr_u: learning rate of u itself, instead of ``scale_u``.
        lr_v: learning rate of v itself, instead of ``scale_v``.
        init_std: standard deviation of the start of u and v; by default that from which doubling at each visit leads
            to 1 in half of the epochs, as far as it lies between the authors' 1e-8 and 0.1.
    """
    setting = cell.setting
    start = min(max(2.0 ** (-setting.epochs / 2), 1e-8), 0.1) if init_std is None else init_std
    criterion = SparseOverparamLoss(
        len(train), train.num_classes, init_std=start, generator=cell.seeds.generator("noise", "sop")
    )
    rates = suggest_rates(setting.batch_size, setting.epochs, init_std=start)
    groups = criterion.param_groups(
        lr_u=rates.lr_u * scale_u if lr_u is None else lr_u, lr_v=rates.lr_v * scale_v if lr_v is None else lr_v
    )
    model = _train(make_model(), train, cell, criterion, lr=lr, with_index=True, extra=[torch.optim.SGD(groups)])
    model.noise_score = criterion.noise_score().cpu()
    return model


def _train(
    model: nn.Module,
    train: TensorData,
    cell: Cell,
    criterion: Callable[..., Tensor],
    *,
    lr: float,
    with_index: bool = False,
    extra: Sequence[torch.optim.Optimizer] = (),
) -> nn.Module:
    """Train ``model`` by the recipe with a loss of logits and labels."""
    modules = [criterion] if isinstance(criterion, nn.Module) else []
    loss = supervised(criterion, with_index=with_index)
    train_by_recipe(model, train, cell, loss, lr=lr, modules=modules, extra=extra)
    return model


def train_by_recipe(
    model: nn.Module,
    train: TensorData,
    cell: Cell,
    loss: Loss,
    *,
    lr: float,
    groups: Sequence[dict[str, Any]] = (),
    modules: Sequence[nn.Module] = (),
    extra: Sequence[torch.optim.Optimizer] = (),
    predictor: nn.Module | None = None,
) -> None:
    """Train ``model`` as all methods of the track are trained.

    Args:
        model: what is trained.
        train: training data.
        cell: setting and seeds.
        loss: gives a scalar from the model and a batch.
        lr: learning rate of the network.
        groups: further parameters for the same optimiser, with options of their own.
        modules: further modules that the loss uses.
        extra: optimisers (of a loss with parameters) that step without a schedule.
        predictor: what maps inputs to logits, if that is another than ``model``.
    """
    setting, seeds = cell.setting, cell.seeds
    optimizer = torch.optim.SGD(
        [{"params": list(model.parameters())}, *groups],
        lr=lr,
        momentum=setting.momentum,
        weight_decay=setting.weight_decay,
    )
    fit(
        model,
        train,
        loss,
        [optimizer, *extra],
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        generator=seeds.generator("order"),
        noise=seeds.generator("noise", "dropout"),
        augment=crop_and_flip if setting.augment == "crop-flip" else None,
        augment_generator=seeds.generator("augment"),
        scheduler=CosineAnnealingLR(optimizer, setting.epochs),
        modules=modules,
        device=cell.device,
        callbacks=[partial(_snapshot, cell, predictor or model)],
        checkpoint=cell.checkpoint,
    )


def _snapshot(cell: Cell, predictor: nn.Module, end: EpochEnd) -> None:
    cell.snapshot(predictor)


def crop_and_flip(x: Tensor, generator: torch.Generator | None = None, *, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels (zeros come in) and mirror it with probability 1/2.

    Shapes:
        ``x`` (n, channels, height, width); returns like ``x``.

    Raises:
        ValueError: if ``x`` are no images.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be images (n, channels, height, width), but has shape {tuple(x.shape)}")
    n, _, height, width = x.shape
    device = generator.device if generator is not None else "cpu"
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=device).to(x.device)
    mirror = torch.rand(n, 1, generator=generator, device=device).to(x.device) < 0.5
    columns = torch.arange(width, device=x.device).expand(n, width)
    columns = left + torch.where(mirror, width - 1 - columns, columns)
    rows = top + torch.arange(height, device=x.device)
    padded = F.pad(x, (padding,) * 4)
    sample = torch.arange(n, device=x.device)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
