"""One small supervised training loop: any loss, any optimiser, explicit chance, resumable to the bit on a CPU.

Tensors in memory are put on the device once and indexed there by a permutation from the caller's generator; a loader
is used as it comes. What a method adds (a second optimiser for its per-sample parameters, a loss with state) goes in
as a further optimiser and module, so methods need no loop of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchstone._checks import check_float, check_int, check_length, check_one_of
from torchstone.errors import DivergedError
from torchstone.models.seeding import seeded
from torchstone.training.checkpoint import Checkpoint

__all__ = ["Batch", "Callback", "DivergedError", "EpochEnd", "History", "Loss", "fit", "supervised"]


@runtime_checkable
class Tensors(Protocol):
    """A data set held in memory."""

    @property
    def x(self) -> Shaped[Tensor, "n ..."]:
        """The inputs."""
        ...

    @property
    def y(self) -> Shaped[Tensor, "n ..."]:
        """The targets."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What a loss sees of the data in one step.

    Attributes:
        x: inputs.
        y: targets.
        index: place of each row in the data set, or None if a loader does not tell.
    """

    x: Shaped[Tensor, "b ..."]
    y: Shaped[Tensor, "b ..."]
    index: Int64[Tensor, " b"] | None = None


@dataclass
class History:
    """What a run did so far.

    Attributes:
        epochs: finished epochs.
        steps: optimiser steps.
        forwards: calls of the model by the loss (calls of ``features`` alone do not count).
        samples: rows the loss has seen, repetitions included.
        curves: one value per epoch for ``"loss"`` (the mean over the samples) and each name that a callback measures.
        stopped: whether a callback ended the run.
    """

    epochs: int = 0
    steps: int = 0
    forwards: int = 0
    samples: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)
    stopped: bool = False

    @property
    def cost(self) -> dict[str, int]:
        """The counted cost by name."""
        return {"steps": self.steps, "forwards": self.forwards, "samples": self.samples}


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """What a callback sees: the model, in training mode, and the history with the epoch just finished."""

    model: nn.Module
    history: History


Loss: TypeAlias = Callable[[nn.Module, Batch], Float[Tensor, ""]]
Callback: TypeAlias = Callable[[EpochEnd], Mapping[str, float] | bool | None]


def supervised(criterion: Callable[..., Float[Tensor, ""]], *, with_index: bool = False) -> Loss:
    """Return the loss ``criterion(model(x), y)``, or ``criterion(model(x), y, index)``, for :func:`fit`.

    Raises:
        ValueError: in training, if ``with_index`` and the data give no index.

    Example:
        >>> loss = supervised(nn.CrossEntropyLoss())
        >>> loss(nn.Identity(), Batch(torch.zeros(3, 2), torch.tensor([0, 1, 1])))
        tensor(0.6931)
    """
    if not with_index:
        return lambda model, batch: criterion(model(batch.x), batch.y)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if batch.index is None:
            raise ValueError("the loss needs each sample's index: give tensors, or a loader that yields (x, y, index)")
        return criterion(model(batch.x), batch.y, batch.index)

    return loss


def fit(
    model: nn.Module,
    data: Tensors | Iterable[Sequence[Tensor]],
    loss: Loss,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    epochs: int,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    noise: torch.Generator | None = None,
    augment: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
    augment_generator: torch.Generator | None = None,
    scheduler: LRScheduler | Sequence[LRScheduler] = (),
    schedule_per: Literal["epoch", "step"] = "epoch",
    modules: Sequence[nn.Module] = (),
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    max_grad_norm: float | None = None,
    drop_last: bool = False,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 1,
) -> History:
    """Train ``model`` in place and return what was done.

    Each step: ``loss(model, batch).backward()``, then every optimiser, then (``schedule_per="step"``) every scheduler.
    The run resumes where ``checkpoint`` ends, and on a CPU it then goes on bit for bit as if never stopped, provided
    that every chance comes from the generators given here or from state in ``modules``.

    Args:
        model: what to train; left in training mode.
        data: an object with tensors ``x`` and ``y``, or something to iterate over anew each epoch (a ``DataLoader``)
            that yields ``(x, y)`` or ``(x, y, index)``.
        loss: gives a scalar from the model and a :class:`Batch`; see :func:`supervised`.
        optimizer: one or several, all stepped on the same gradients.
        epochs: number of passes over the data in all, those of a resumed run included.
        batch_size: rows a step; for tensors only, a loader has its own.
        generator: draws the order of tensors in memory. Of a loader give its own, so that it is checkpointed.
        noise: source of everything drawn from torch's global generator (dropout), which is reseeded from it each
            epoch and put back afterwards. None leaves the global one in use.
        augment: maps the inputs of a batch, on the device, and ``augment_generator`` to new inputs.
        augment_generator: passed to ``augment``.
        scheduler: one or several of torch's.
        schedule_per: whether schedulers step each epoch or each step.
        modules: further modules to move, put in training mode and checkpoint: a loss with parameters or buffers.
        device: where to train; None is where the model's first parameter is.
        autocast: ``torch.bfloat16`` for mixed precision, None for none.
        max_grad_norm: clip the norm of the model's gradient to this.
        drop_last: leave out a last batch of tensors that is smaller than the others.
        callbacks: called at the end of each epoch. One that returns a mapping of names to numbers adds to
            ``history.curves``; one that returns True ends the run.
        checkpoint: where to resume from and save to.
        checkpoint_every: epochs from one save to the next; the end is always saved.

    Returns:
        The history, the part before a resume included.

    Raises:
        DivergedError: at a loss that is NaN or infinite: at once on a CPU, at the end of the epoch on an accelerator,
            which is not made to wait for each step.
        TypeError: if a loader yields, or a callback returns, something else.
        ValueError: if an argument is out of range, the data are empty, the loss is no scalar, or the checkpoint was
            written by a run with other parts.

    Example:
        >>> from types import SimpleNamespace
        >>> data = SimpleNamespace(x=torch.randn(8, 4), y=torch.tensor([0, 1] * 4))
        >>> net = nn.Linear(4, 2)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> order = torch.Generator().manual_seed(0)
        >>> fit(net, data, supervised(nn.CrossEntropyLoss()), sgd, epochs=3, batch_size=3, generator=order).cost
        {'steps': 9, 'forwards': 9, 'samples': 24}
    """
    check_int("epochs", epochs, 0)
    check_int("checkpoint_every", checkpoint_every, 1)
    check_one_of("schedule_per", schedule_per, ("epoch", "step"))
    if max_grad_norm is not None:
        check_float("max_grad_norm", max_grad_norm, 0.0, open_low=True)
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast must be None or torch.bfloat16 (float16 needs loss scaling), but is {autocast}")
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    device = torch.device(device)
    trained = [model, *modules]
    for module in trained:
        module.to(device)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    schedulers = [scheduler] if isinstance(scheduler, LRScheduler) else list(scheduler)
    generators = {"order": generator, "noise": noise, "augment": augment_generator}
    parts = Parts(trained, optimizers, schedulers, {name: g for name, g in generators.items() if g is not None})
    batches = _batches(data, device, batch_size, generator, drop_last)

    history = History()
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        history = parts.restore(saved)

    def step(batch: Batch) -> Tensor:
        if augment is not None:
            batch = Batch(augment(batch.x, augment_generator), batch.y, batch.index)
        with nullcontext() if autocast is None else torch.autocast(device.type, autocast):
            value = loss(model, batch)
        if value.ndim:
            raise ValueError(f"loss must give a scalar, but gives shape {tuple(value.shape)}")
        if device.type == "cpu" and not math.isfinite(value.item()):
            raise DivergedError(
                f"the loss became {value.item()} at step {history.steps + 1}, epoch {history.epochs + 1}"
            )
        for each in optimizers:
            each.zero_grad()
        value.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        for each in optimizers:
            each.step()
        if schedule_per == "step":
            for each in schedulers:
                each.step()
        return value.detach()

    while history.epochs < epochs and not history.stopped:
        for module in trained:
            module.train()
        with seeded(noise, device=device):
            mean = _epoch(model, batches(), step, history)
        if schedule_per == "epoch":
            for each in schedulers:
                each.step()
        history.epochs += 1
        history.curves.setdefault("loss", []).append(mean)
        for callback in callbacks:
            answer = callback(EpochEnd(model, history))
            if isinstance(answer, Mapping):
                for name, value in answer.items():
                    history.curves.setdefault(name, []).append(float(value))
            elif answer is True:
                history.stopped = True
            elif answer is not None and answer is not False:
                raise TypeError(f"a callback must return a mapping, a bool or None, but {callback} returns {answer!r}")
        done = history.stopped or history.epochs == epochs
        if checkpoint is not None and (done or history.epochs % checkpoint_every == 0):
            checkpoint.save(parts.state(history))
    return history


def _epoch(model: nn.Module, batches: Iterable[Batch], step: Callable[[Batch], Tensor], history: History) -> float:
    """Make one pass, count it in ``history``, and return the mean loss over its samples."""
    calls: list[None] = []
    counter = model.register_forward_pre_hook(lambda module, args: calls.append(None))
    losses: list[Tensor] = []
    sizes: list[int] = []
    try:
        for batch in batches:
            losses.append(step(batch))
            sizes.append(len(batch.y))
            history.steps += 1
    finally:
        counter.remove()
    if not losses:
        raise ValueError(
            f"data gave no batch in epoch {history.epochs + 1}: is it empty, or an iterator already used up?"
        )
    history.forwards += len(calls)
    history.samples += sum(sizes)
    mean = math.fsum(size * value for size, value in zip(sizes, torch.stack(losses).tolist(), strict=True)) / sum(sizes)
    if not math.isfinite(mean):
        raise DivergedError(f"the loss became {mean} in epoch {history.epochs + 1}")
    return mean


def _batches(
    data: Tensors | Iterable[Sequence[Tensor]],
    device: torch.device,
    batch_size: int | None,
    generator: torch.Generator | None,
    drop_last: bool,
) -> Callable[[], Iterator[Batch]]:
    """Return a function that starts one pass over ``data``, its batches on ``device``."""
    if not isinstance(data, Tensors):
        if batch_size is not None or drop_last:
            raise ValueError("batch_size and drop_last are for tensors in memory; a loader has its own")
        return lambda: (_loaded(parts, device) for parts in data)

    if batch_size is None:
        raise ValueError("batch_size must be given for tensors in memory")
    check_int("batch_size", batch_size, 1)
    x, y = data.x.to(device), data.y.to(device)
    check_length("y", y, len(x), "x")
    end = len(x) // batch_size * batch_size if drop_last else len(x)
    if not end:
        raise ValueError(f"data must fill at least one batch, but have {len(x)} rows")

    def shuffled() -> Iterator[Batch]:
        where = generator.device if generator is not None else "cpu"
        order = torch.randperm(len(x), generator=generator, device=where).to(device)
        for index in order[:end].split(batch_size):
            yield Batch(x.index_select(0, index), y.index_select(0, index), index)

    return shuffled


def _loaded(parts: Any, device: torch.device) -> Batch:
    """Return what a loader yielded as a batch on ``device``."""
    if not isinstance(parts, list | tuple) or len(parts) not in (2, 3) or not all(isinstance(p, Tensor) for p in parts):
        kinds = (
            ", ".join(type(part).__name__ for part in parts)
            if isinstance(parts, list | tuple)
            else type(parts).__name__
        )
        raise TypeError(
            f"data must yield batches of tensors (x, y) or (x, y, index), but yield ({kinds}); a data set goes into a "
            "torch.utils.data.DataLoader"
        )
    return Batch(*(part.to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class Parts:
    """All that changes in a run, to be saved and restored together."""

    modules: list[nn.Module]
    optimizers: list[Optimizer]
    schedulers: list[LRScheduler]
    generators: dict[str, torch.Generator]

    def state(self, history: History) -> dict[str, Any]:
        """Return the state as tensors and plain values; the tensors are the live ones."""
        return {
            "modules": [part.state_dict() for part in self.modules],
            "optimizers": [part.state_dict() for part in self.optimizers],
            "schedulers": [part.state_dict() for part in self.schedulers],
            "generators": {name: part.get_state() for name, part in self.generators.items()},
            "history": asdict(history),
        }

    def restore(self, saved: dict[str, Any]) -> History:
        """Load ``saved`` into the parts; return its history."""
        for kind in ("modules", "optimizers", "schedulers"):
            here, there = len(getattr(self, kind)), len(saved[kind])
            if here != there:
                raise ValueError(f"the checkpoint was written with {there} {kind}, but this run has {here}")
        if saved["generators"].keys() != self.generators.keys():
            here, there = (", ".join(names) or "none" for names in (self.generators, saved["generators"]))
            raise ValueError(f"the checkpoint was written with generators {there}, but this run has {here}")
        for kind in ("modules", "optimizers", "schedulers"):
            for part, state in zip(getattr(self, kind), saved[kind], strict=True):
                part.load_state_dict(state)
        for name, part in self.generators.items():
            part.set_state(saved["generators"][name])
        return History(**saved["history"])
