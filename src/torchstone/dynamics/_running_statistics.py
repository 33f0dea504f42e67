"""Running statistics of normalisation layers: kept, forgotten, computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["first_inputs", "forget_statistics", "kept_statistics", "norm_layers", "reestimate"]


def norm_layers(model: nn.Module) -> list[_NormBase]:
    """The layers of a model that have running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


@contextmanager
def kept_statistics(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Afterwards each layer has the same buffers and momentum again, whatever became of them inside."""
    before = [(norm, norm.running_mean, norm.running_var, norm.momentum) for norm in norms]
    try:
        yield
    finally:
        for norm, mean, var, momentum in before:
            norm.running_mean, norm.running_var, norm.momentum = mean, var, momentum


def forget_statistics(norms: Sequence[_NormBase]) -> None:
    """Let the layers normalise each batch by its own statistics, in evaluation mode too."""
    for norm in norms:
        norm.running_mean = norm.running_var = None


def reestimate(norms: Sequence[_NormBase], batches: Sequence[Tensor], forward: Callable[[Tensor], Any]) -> None:
    """Replace running statistics by averages over ``batches``, weighted by samples."""
    seen = 0
    for norm in norms:
        norm.train()
    for x in batches:
        seen += len(x)
        for norm in norms:
            norm.momentum = len(x) / seen
        forward(x)
    for norm in norms:
        norm.eval()


def first_inputs(loader: Iterable[Any], samples: int, device: torch.device | None) -> list[Tensor]:
    """Inputs of the first batches, until there are so many samples."""
    batches: list[Tensor] = []
    for batch in loader:
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor):
            raise TypeError(f"bn_loader must yield batches x or (x, ...) of tensors, but yields {type(x).__name__}")
        batches.append(x.detach().to(device))
        if sum(map(len, batches)) >= samples:
            break
    if not batches:
        raise ValueError("bn_loader must yield at least one batch, but yields none")
    return batches
