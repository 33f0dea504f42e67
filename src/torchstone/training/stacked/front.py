"""Train many seeds from five lines, and find out whether stacking them pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.optim import Optimizer

from torchstone._checks import check_int
from torchstone.models.seeding import seeded
from torchstone.training.loop import Batch, Loss, Tensors, supervised
from torchstone.training.stacked.loop import StackedHistory, fit_stacked
from torchstone.training.stacked.module import stack
from torchstone.training.stacked.optim import AdamW

__all__ = ["stacking_speedup", "train_stacked"]

M = TypeVar("M", bound=nn.Module)


def train_stacked(
    make_model: Callable[[], M],
    data: Tensors | tuple[Tensor, Tensor],
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    loss: Loss | None = None,
    optimizer: Callable[..., Optimizer] = AdamW,
    lr: float | Sequence[float] = 1e-3,
    chunk_size: int | None = None,
    **options: Any,
) -> tuple[list[M], StackedHistory]:
    """Train one model per seed, all at once; return the trained models and the history.

    Seed s decides the initial weights and the order of the batches: it stands for ``g = Generator().manual_seed(s)``,
    ``with seeded(g): net = make_model()`` and ``fit(net, ..., generator=g)``.

    Args:
        make_model: builds one model, its weights drawn from torch's global generator.
        data: an object with tensors ``x`` and ``y``, or the pair.
        seeds: one integer per model.
        epochs: number of passes over the data.
        batch_size: rows a step and seed.
        loss: as for :func:`fit_stacked`; None is the cross-entropy.
        optimizer: called as ``optimizer(parameters, lr=lr)``; further options by ``functools.partial``.
        lr: learning rate; one per seed with the optimisers of this package.
        chunk_size: how many models are computed at once.
        options: passed on to :func:`fit_stacked`.

    Raises:
        ValueError: as :func:`fit_stacked`, or if there is no seed.

    Example:
        >>> from torchstone.models import MLP
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> nets, history = train_stacked(lambda: MLP(4, 3), (x, y), seeds=range(5), epochs=2, batch_size=20)
        >>> len(nets), tuple(history.curves["loss"].shape)
        (5, (2, 5))
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if not generators:
        raise ValueError("seeds must hold at least 1 seed, but hold 0")
    models = []
    for generator in generators:
        with seeded(generator):
            models.append(make_model())
    model = stack(models, chunk_size=chunk_size)
    history = fit_stacked(
        model,
        data,
        loss or supervised(nn.functional.cross_entropy),
        optimizer(model.parameters(), lr=lr),
        epochs=epochs,
        batch_size=batch_size,
        generators=generators,
        **options,
    )
    return model.unstack(), history


def stacking_speedup(
    make_model: Callable[[], nn.Module],
    batch: tuple[Shaped[Tensor, "n ..."], Shaped[Tensor, "n ..."]],
    seeds: int,
    *,
    loss: Loss | None = None,
    steps: int = 20,
) -> float:
    """Return how many times faster one stacked step is than ``seeds`` single ones, here and now.

    Both ways make ``steps`` steps of SGD on ``batch`` in turns, after two to warm up; the answer is the ratio of the
    medians. Above 1 stacking pays. The global random numbers go on as if untouched.

    Args:
        make_model: builds one model.
        batch: inputs and targets of one step of one seed, on the device to train on.
        seeds: S.
        loss: as for :func:`fit_stacked`; None is the cross-entropy.
        steps: steps to time of each way.

    Cost:
        ``2 * (steps + 2)`` steps of all seeds.

    Example:
        >>> stacking_speedup(lambda: nn.Linear(4, 3), (torch.randn(8, 4), torch.arange(8) % 3), 20, steps=3) > 0
        True
    """
    check_int("seeds", seeds, 1)
    check_int("steps", steps, 1)
    x, y = batch
    loss = loss or supervised(nn.functional.cross_entropy)
    with seeded(torch.Generator(), device=x.device):
        return _speedup([make_model().to(x.device) for _ in range(seeds)], x, y, loss, steps)


def _speedup(models: list[nn.Module], x: Tensor, y: Tensor, loss: Loss, steps: int) -> float:
    model = stack(models)
    rules = [torch.optim.SGD(net.parameters(), 1e-6) for net in models]
    rule = torch.optim.SGD(model.parameters(), 1e-6)
    index = torch.arange(len(x), device=x.device)
    many = [part.expand(len(models), *part.shape).contiguous() for part in (x, y, index)]

    def looped() -> None:
        for net, sgd in zip(models, rules, strict=True):
            sgd.zero_grad()
            loss(net, Batch(x, y, index)).backward()
            sgd.step()

    def stacked() -> None:
        rule.zero_grad()
        model.map(lambda net, *parts: loss(net, Batch(*parts)), *many).sum().backward()
        rule.step()

    seconds: dict[Callable[[], None], list[float]] = {looped: [], stacked: []}
    for turn in range(steps + 2):
        for way, taken in seconds.items():
            start = time.perf_counter()
            way()
            if x.device.type != "cpu":
                torch.accelerator.synchronize(x.device)
            if turn >= 2:
                taken.append(time.perf_counter() - start)
    return median(seconds[looped]) / median(seconds[stacked])
