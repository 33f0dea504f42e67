"""The loop of :func:`torchstone.training.fit` for stacked models: S runs in one, none of which disturbs another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchstone._checks import check_float, check_int, check_one_of
from torchstone.models.seeding import seeded
from torchstone.training.checkpoint import Checkpoint
from torchstone.training.loop import Batch, History, Loss, Parts, Tensors
from torchstone.training.stacked.module import StackedModule
from torchstone.training.stacked.optim import clip_grad_norm_

__all__ = ["StackedCallback", "StackedEpochEnd", "StackedHistory", "fit_stacked"]


@dataclass
class StackedHistory:
    """What S runs did so far.

    Attributes:
        epochs: finished epochs.
        steps: optimiser steps of one seed.
        forwards: calls of one model by the loss.
        samples: rows that the loss of one seed has seen, repetitions included.
        curves: one row per epoch and one column per seed for ``"loss"`` (the mean over the samples) and each name that
            a callback measures; a seed's loss is NaN from the epoch on in which it diverged.
        diverged: per seed why and where it diverged, ``""`` if it did not.
        stopped: whether a callback ended the runs, or all have diverged.
    """

    epochs: int = 0
    steps: int = 0
    forwards: int = 0
    samples: int = 0
    curves: dict[str, Float64[Tensor, "epochs seeds"]] = field(default_factory=dict)
    diverged: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def cost(self) -> dict[str, int]:
        """The counted cost of one seed by name."""
        return {"steps": self.steps, "forwards": self.forwards, "samples": self.samples}


@dataclass(frozen=True, slots=True)
class StackedEpochEnd:
    """What a callback sees: the stacked model, in training mode, and the history with the epoch just finished."""

    model: StackedModule
    history: StackedHistory


StackedCallback: TypeAlias = Callable[[StackedEpochEnd], Mapping[str, Any] | bool | None]


def fit_stacked(
    model: StackedModule,
    data: Tensors | tuple[Tensor, Tensor],
    loss: Loss,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    epochs: int,
    batch_size: int,
    generators: Sequence[torch.Generator] | None = None,
    own: Literal["", "x", "y", "xy"] = "",
    noise: torch.Generator | None = None,
    scheduler: LRScheduler | Sequence[LRScheduler] = (),
    schedule_per: Literal["epoch", "step"] = "epoch",
    device: torch.device | str | None = None,
    max_grad_norm: float | Sequence[float] | None = None,
    drop_last: bool = False,
    on_step: Callable[[], None] | None = None,
    callbacks: Sequence[StackedCallback] = (),
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 1,
) -> StackedHistory:
    """Train S models at once, each as :func:`~torchstone.training.fit` would train it alone.

    Seed s sees the batches that ``fit`` draws from ``generators[s]``, so apart from rounding and from dropout its
    model ends where ``fit`` ends. A seed whose loss or parameters leave the finite numbers is frozen: its parameters
    and buffers keep their last finite values, the optimisers' state for it becomes zero, and the others go on as if it
    were not there.

    Args:
        model: what to train; left in training mode.
        data: an object with tensors ``x`` and ``y``, or the pair.
        loss: the loss of one model on one :class:`~torchstone.training.Batch`, as for ``fit``; it is mapped over the
            seeds. A loss with parameters or buffers of its own (one per sample, say) belongs into the model: stack
            modules that hold both, and let ``loss`` reach in.
        optimizer: one or several, on the stacked parameters: any of torch that works element by element, or those of
            this package.
        epochs: number of passes over the data in all, those of a resumed run included.
        batch_size: rows a step and seed.
        generators: one per seed, draws the order of its batches. None is torch's global one.
        own: which of ``x`` and ``y`` have a leading axis of seeds: ``""`` if all share the data, ``"xy"`` if each has
            its own (as many rows for each), ``"y"`` for labels of one's own on shared inputs.
        noise: source of everything drawn from torch's global generator (dropout), one for all seeds.
        scheduler: one or several of torch's.
        schedule_per: whether schedulers step each epoch or each step.
        device: where to train; None is where the model is.
        max_grad_norm: clip the norm of each seed's gradient to this; a number, or one per seed.
        drop_last: leave out a last batch that is smaller than the others.
        on_step: called after each step.
        callbacks: called at the end of each epoch. One that returns a mapping of names to values per seed adds to
            ``history.curves``; one that returns True ends the run.
        checkpoint: where to resume from and save to.
        checkpoint_every: epochs from one save to the next; the end is always saved.

    Returns:
        The history, the part before a resume included.

    Cost:
        The arithmetic of S runs; memory for the parameters and buffers once more, as they were when the losses were
        last finite. A tenth to a quarter more time than the barest loop around ``torch.vmap``.

    Raises:
        TypeError: if a callback returns something else.
        ValueError: if an argument is out of range, the data are empty or not of S seeds, the loss is no scalar, or the
            checkpoint was written by a run with other parts.

    Example:
        >>> from torchstone.training import supervised
        >>> from torchstone.training.stacked import SGD, stack
        >>> nets = stack([nn.Linear(4, 2) for _ in range(3)])
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
        >>> orders = [torch.Generator().manual_seed(s) for s in range(3)]
        >>> sgd = SGD(nets.parameters(), lr=[0.01, 0.1, 1.0])
        >>> loss = supervised(nn.CrossEntropyLoss())
        >>> history = fit_stacked(nets, (x, y), loss, sgd, epochs=3, batch_size=3, generators=orders)
        >>> history.cost, history.diverged
        ({'steps': 9, 'forwards': 9, 'samples': 24}, ['', '', ''])
    """
    check_int("epochs", epochs, 0)
    check_int("checkpoint_every", checkpoint_every, 1)
    check_one_of("schedule_per", schedule_per, ("epoch", "step"))
    for limit in max_grad_norm if isinstance(max_grad_norm, Sequence) else [max_grad_norm]:
        if limit is not None:
            check_float("max_grad_norm", limit, 0.0, open_low=True)
    where = torch.device(device) if device is not None else next(chain(model.parameters(), model.buffers())).device
    model.to(where)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    schedulers = [scheduler] if isinstance(scheduler, LRScheduler) else list(scheduler)
    batches = _batches(data, where, len(model), batch_size, generators, own, drop_last)
    named = {f"order {s}": g for s, g in enumerate(generators or ())} | ({"noise": noise} if noise is not None else {})
    parts = Parts([model], optimizers, schedulers, named)

    history = StackedHistory(diverged=[""] * len(model))
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        parts.restore({**saved, "history": {}})
        history = StackedHistory(**saved["history"])
    keeper = _Keeper(model, optimizers, history)

    def one(net: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        value = loss(net, Batch(x, y, index))
        if value.ndim:
            raise ValueError(f"loss must give a scalar, but gives shape {tuple(value.shape)}")
        return value

    def step(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        values = model.map(one, x, y, index)
        keeper.watch(values.detach())
        for each in optimizers:
            each.zero_grad()
        values.sum().backward()
        keeper.silence()
        if max_grad_norm is not None:
            clip_grad_norm_(model.parameters(), max_grad_norm)
        for each in optimizers:
            each.step()
        keeper.put_back()
        if schedule_per == "step":
            for each in schedulers:
                each.step()
        return values.detach()

    while history.epochs < epochs and not history.stopped:
        model.train()
        with seeded(noise, device=where):
            means = _epoch(model, batches(), step, history, on_step)
        keeper.check_parameters()
        if schedule_per == "epoch":
            for each in schedulers:
                each.step()
        history.epochs += 1
        means[keeper.lost] = math.nan
        _record(history, "loss", means)
        history.stopped = all(history.diverged)
        for callback in callbacks:
            answer = callback(StackedEpochEnd(model, history))
            if isinstance(answer, Mapping):
                for name, values in answer.items():
                    _record(history, name, values)
            elif answer is True:
                history.stopped = True
            elif answer is not None and answer is not False:
                raise TypeError(f"a callback must return a mapping, a bool or None, but {callback} returns {answer!r}")
        done = history.stopped or history.epochs == epochs
        if checkpoint is not None and (done or history.epochs % checkpoint_every == 0):
            checkpoint.save({**parts.state(History()), "history": asdict(history)})
    return history


def _record(history: StackedHistory, name: str, values: Any) -> None:
    """Append one row, a value per seed, to the curve ``name``."""
    row = torch.as_tensor(values).detach().cpu().double().expand(len(history.diverged))[None]
    history.curves[name] = torch.cat([history.curves[name], row]) if name in history.curves else row.clone()


def _epoch(
    model: StackedModule,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    history: StackedHistory,
    on_step: Callable[[], None] | None,
) -> Tensor:
    """Make one pass, count it in ``history``, and return the mean losses over the samples."""
    calls: list[None] = []
    counter = model.net.register_forward_pre_hook(lambda module, args: calls.append(None))
    losses: list[Tensor] = []
    sizes: list[int] = []
    try:
        for x, y, index in batches:
            losses.append(step(x, y, index))
            sizes.append(index.shape[1])
            history.steps += 1
            if on_step is not None:
                on_step()
            if all(history.diverged):
                break
    finally:
        counter.remove()
    chunks = 1 if model.chunk_size is None else -(-len(model) // model.chunk_size)
    history.forwards += len(calls) // chunks
    history.samples += sum(sizes)
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return share @ torch.stack(losses).cpu().double()


def _batches(
    data: Tensors | tuple[Tensor, Tensor],
    device: torch.device,
    seeds: int,
    batch_size: int,
    generators: Sequence[torch.Generator] | None,
    own: str,
    drop_last: bool,
) -> Callable[[], Iterator[tuple[Tensor, Tensor, Tensor]]]:
    """Return a function that starts one pass over ``data``: x (S, B, ...), y (S, B, ...) and index (S, B)."""
    check_int("batch_size", batch_size, 1)
    check_one_of("own", own, ("", "x", "y", "xy"))
    if generators is not None and len(generators) != seeds:
        raise ValueError(f"generators must be one per seed ({seeds}), but are {len(generators)}")
    flat: list[Tensor] = []
    rows: list[int] = []
    for name, values in zip("xy", data if isinstance(data, tuple) else (data.x, data.y), strict=True):
        if name in own:
            if values.ndim < 2 or len(values) != seeds:
                raise ValueError(f"{name} must have shape ({seeds}, n, ...), but has {tuple(values.shape)}")
            rows.append(values.shape[1])
            values = values.flatten(0, 1)
        else:
            rows.append(len(values))
        flat.append(values.to(device))
    n = rows[0]
    if rows[1] != n:
        raise ValueError(f"y must have as many rows as x ({n}), but has {rows[1]}")
    end = n // batch_size * batch_size if drop_last else n
    if not end:
        raise ValueError(f"data must fill at least one batch, but have {n} rows")
    start = torch.arange(seeds, device=device)[:, None] * n

    def shuffled() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        orders = torch.stack(
            [
                torch.randperm(n, generator=g, device="cpu" if g is None else g.device).to(device)
                for g in generators or [None] * seeds
            ]
        )
        for index in orders[:, :end].split(batch_size, 1):
            x, y = (
                values.index_select(0, (index + start if name in own else index).reshape(-1)).unflatten(0, index.shape)
                for name, values in zip("xy", flat, strict=True)
            )
            yield x, y, index

    return shuffled


class _Keeper:
    """Watches for seeds that leave the finite numbers, and keeps them where they were."""

    def __init__(self, model: StackedModule, optimizers: list[Optimizer], history: StackedHistory) -> None:
        self.optimizers, self.history = optimizers, history
        self.parameters = list(model.parameters())
        self.tensors = [*self.parameters, *model.buffers()]
        self.good = [t.detach().clone() for t in self.tensors]  # as they were when a loss was last finite
        self.lost = torch.tensor([bool(reason) for reason in history.diverged], device=self.good[0].device)
        self.any_lost = bool(self.lost.any())

    @torch.no_grad()
    def watch(self, losses: Tensor) -> None:
        """Look at the losses of a step before the models move."""
        bad = ~(losses.isfinite() | self.lost)
        if bad.any():
            step, epoch = self.history.steps + 1, self.history.epochs + 1
            self._lose(bad, lambda s: f"the loss became {losses[s].item()} at step {step}, epoch {epoch}")
        if not self.any_lost:
            torch._foreach_copy_(self.good, self.tensors)  # pyright: ignore[reportPrivateImportUsage] torch.optim's own
        else:  # what is lost goes back after the step: the backward pass still needs the parameters as they are
            for tensor, kept in zip(self.tensors, self.good, strict=True):
                kept[~self.lost] = tensor[~self.lost]

    @torch.no_grad()
    def check_parameters(self) -> None:
        """Look at the parameters, which the last step may have led astray."""
        bad = ~(_finite(self.parameters) | self.lost)
        if bad.any():
            step, epoch = self.history.steps, self.history.epochs + 1
            self._lose(bad, lambda s: f"a parameter became NaN or infinite at step {step}, epoch {epoch}")
            self.put_back()

    def _lose(self, bad: Tensor, reason: Callable[[int], str]) -> None:
        """Give up seeds; where the parameters are finite they stay, while buffers have seen what made the loss bad."""
        for s in bad.nonzero().flatten().tolist():
            self.history.diverged[s] = reason(s)
        sound = bad & _finite(self.parameters)
        for kept, parameter in zip(self.good, self.parameters, strict=False):
            kept[sound] = parameter[sound]
        self.lost |= bad
        self.any_lost = True

    def silence(self) -> None:
        """Lost seeds have no gradient; a decomposition of matrices, say, would fail at NaN for all seeds."""
        if self.any_lost:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad[self.lost] = 0.0

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what has happened to lost seeds."""
        if self.any_lost:
            for tensor, kept in zip(self.tensors, self.good, strict=True):
                tensor[self.lost] = kept[self.lost]
            for optimizer in self.optimizers:
                for state in optimizer.state.values():
                    for value in state.values():
                        if isinstance(value, Tensor) and value.ndim and len(value) == len(self.lost):
                            value[self.lost] = 0


def _finite(tensors: Sequence[Tensor]) -> Tensor:
    """Return for each seed whether all its numbers are finite."""
    return torch.stack([t.isfinite().flatten(1).all(1) if t.ndim > 1 else t.isfinite() for t in tensors]).all(0)
