r"""The straight line between two states of a network: theta(alpha) = (1 - alpha) theta_0 + alpha theta_1.

The loss along the line from initial to final weights is a much used picture of a loss landscape. What it shows hangs on
the running statistics of normalisation layers: those of neither end fit the weights between them, and with final ones a
barrier appears that is none of the loss. So what becomes of them is an argument:

==================  ===================================================================================
``"reestimate"``    computed anew at every point, from samples of ``bn_loader``
``"batch"``         none: each batch that is evaluated is normalised by its own statistics
``"final"``         those of ``state1``
``"interpolate"``   on the straight line, like the weights
==================  ===================================================================================

Source: Vlaar and Frankle, *What Can Linear Interpolation of Neural Network Loss Landscapes Tell Us?*, ICML 2022.

Deviations: the paper does not say what it does with running statistics. Recomputed ones are averages over samples, not
over batches, so that a smaller last batch counts for less.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from torchstone._checks import check_int, check_one_of
from torchstone.dynamics._path_states import (
    Names,
    State,
    aliases,
    check_alpha,
    check_alphas,
    check_apart,
    check_same,
    check_tied,
    directly_in,
    fits,
    is_float,
    lerp,
    matching,
    without_prefix,
)
from torchstone.dynamics._running_statistics import (
    first_inputs,
    forget_statistics,
    kept_statistics,
    norm_layers,
    reestimate,
)
from torchstone.training.evaluate import evaluating, first_device

__all__ = ["LinearPath", "interpolate_state_dict", "layerwise_paths"]

Policy: TypeAlias = Literal["reestimate", "final", "interpolate", "batch"]
POLICIES = ("reestimate", "final", "interpolate", "batch")


def interpolate_state_dict(
    state0: State, state1: State, alpha: float, *, buffers: Names | None = None
) -> dict[str, Any]:
    """A state dict on the line: ``(1 - alpha) state0 + alpha state1``.

    Each floating-point entry is interpolated, in float32 at least, and has its dtype of ``state1``; at 0 and 1 it is an
    end point to the bit. All else (integers such as ``num_batches_tracked``, extra state) is a copy from ``state1``.

    Args:
        state0: state at 0.
        state1: state at 1.
        alpha: where on the line; outside of [0, 1] it is continued.
        buffers: entries to copy from ``state1`` in place of interpolating them, as a state does not tell buffers from
            parameters: a pattern as in :class:`LinearPath`, or a function of the name.

    Shapes: each entry as in ``state1``.
    Cost: one pass over the entries.
    Raises: KeyError for an entry that only one of the two has; ValueError for one of another shape, an ``alpha`` that
        is not finite, and ``buffers`` that match nothing.
    Source: Vlaar and Frankle, ICML 2022.

    Example:
        >>> start, end = ({"w": torch.tensor([0.0, a]), "steps": torch.tensor(int(a))} for a in (1, 5))
        >>> interpolate_state_dict(start, end, 0.25)
        {'w': tensor([0., 2.]), 'steps': tensor(5)}
    """
    alpha = check_alpha(alpha)
    check_same(state0, state1)
    copied = matching(buffers, state1, "buffers") if buffers is not None else frozenset()
    return {
        name: lerp(state0[name], end, alpha) if is_float(end) and name not in copied else copy.deepcopy(end)
        for name, end in state1.items()
    }


class LinearPath:
    """A network on the line between two of its states, and the network unchanged afterwards.

    ``theta(alpha) = (1 - alpha) theta_0 + alpha theta_1`` for the parameters that are named; others stay at one end.
    The end points are copied when the path is made::

        start = copy.deepcopy(model.state_dict())  # before the first step
        ...  # train
        path = LinearPath(model, start, model.state_dict(), bn_loader=train_loader)
        losses = path.evaluate(lambda model: test_loss(model), torch.linspace(0, 1, 26))

    Args:
        model: a network; the one inside ``DistributedDataParallel`` if it is wrapped. Tied parameters move as one.
        state0: its state dict at 0, usually the initial one.
        state1: its state dict at 1.
        parameters: which parameters move: a regular expression that fits the whole name of a parameter or of a module
            that holds it (``"body.0"``, ``r"layer[12]"``), or a function of the name. Running statistics move with the
            parameters of their layer. None is all.
        others: the end at which all other parameters stay, ``"final"`` or ``"init"``.
        bn: what becomes of running statistics, see the module; other buffers are those of ``state1``, or interpolated.
        bn_loader: for ``"reestimate"``: yields batches ``x`` or ``(x, ...)``, not augmented. Read once.
        bn_samples: keep so many of its samples, and those that fill the last batch.

    Shapes: entries of the states as the model has them.
    Cost: memory of two states, and of one more inside :meth:`at`. With ``"reestimate"`` a point costs a forward pass of
        the kept samples besides the evaluation.
    Raises: KeyError for entries that a state lacks or has too many; ValueError for shapes that differ, states sharing
        memory, names that fit nothing, ``"reestimate"`` for a model with running statistics and no ``bn_loader``.
    Source: Vlaar and Frankle, ICML 2022.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> path = LinearPath(model, {"weight": torch.tensor([[0.0]])}, {"weight": torch.tensor([[4.0]])})
        >>> path.evaluate(lambda model: model.weight.square().sum(), [0.0, 0.5, 1.0])
        tensor([ 0.,  4., 16.])
        >>> path.distance
        4.0
    """

    def __init__(
        self,
        model: nn.Module,
        state0: State,
        state1: State,
        *,
        parameters: Names | None = None,
        others: Literal["final", "init"] = "final",
        bn: Policy = "reestimate",
        bn_loader: Iterable[Any] | None = None,
        bn_samples: int = 2000,
    ) -> None:
        self.bn = check_one_of("bn", bn, POLICIES)
        check_int("bn_samples", bn_samples, 1)
        self.model = model.module if isinstance(model, DataParallel | DistributedDataParallel) else model
        self.norms = norm_layers(self.model)
        self.bn_batches: list[Tensor] = []
        if bn == "reestimate" and self.norms:
            if bn_loader is None:
                raise ValueError(
                    "bn='reestimate' needs bn_loader, as the model has running statistics; or choose "
                    "bn='batch', 'final' or 'interpolate'"
                )
            self.bn_batches = first_inputs(bn_loader, bn_samples, first_device(self.model))
        # Of names for one tensor the first stands for all.
        self._parameters = dict(self.model.named_parameters())
        saved = self.model.state_dict(keep_vars=True)
        self._buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in saved}
        self._aliases = aliases(self.model)
        live = {**self._parameters, **self._buffers}
        states = [without_prefix(state, saved) for state in (state0, state1)]
        for argument, state in zip(("state0", "state1"), states, strict=True):
            check_same(saved, state, of=("the model", argument))
            for first, *more in self._aliases.values():
                check_tied(argument, state, first, more)
        check_apart(states[0], states[1], self._parameters)
        self.state0, self.state1 = (
            {name: state[name].detach().to(tensor.device, copy=True) for name, tensor in live.items()}
            for state in states
        )
        self._choose(parameters, others)

    def _choose(self, parameters: Names | None, others: str) -> None:
        self.others = check_one_of("others", others, ("final", "init"))
        if parameters is None:
            moving = frozenset(self.state1)
        else:
            found = matching(parameters, itertools.chain.from_iterable(self._aliases.values()), "parameters")
            chosen = {first for first, names in self._aliases.items() if not found.isdisjoint(names)}
            layers = {name.rpartition(".")[0] for name in found}
            fitting = fits(parameters)
            moving = frozenset(chosen | {b for b in self._buffers if fitting(b) or b.rpartition(".")[0] in layers})
        self.parameters = tuple(name for name in self._parameters if name in moving)
        self.interpolated = moving if self.bn == "interpolate" else frozenset(self.parameters)

    def tensors(self, alpha: float | Float[Tensor, " k"]) -> dict[str, Tensor]:
        """Parameters and saved buffers at ``alpha``; those that are interpolated have a first axis k if it has one."""
        return {name: self._tensor(name, alpha) for name in self.state1}

    def moves(self, name: str) -> bool:
        """Whether a parameter or buffer is interpolated."""
        return name in self.interpolated and is_float(self.state1[name])

    def _tensor(self, name: str, alpha: float | Tensor) -> Tensor:
        start, end = self.state0[name], self.state1[name]
        if self.moves(name):
            return lerp(start, end, alpha)
        stays = name in self._parameters or self.bn == "interpolate"
        return start if stays and name not in self.interpolated and self.others == "init" else end

    @contextmanager
    def at(self, alpha: float) -> Iterator[nn.Module]:
        """Inside this block the model is at ``alpha``, in evaluation mode; afterwards it is as before."""
        alpha = check_alpha(alpha)
        with self._kept(), self._moved(alpha):
            yield self.model

    @contextmanager
    def _kept(self) -> Iterator[None]:
        live = [*self.model.parameters(), *self.model.buffers()]
        before = [tensor.detach().clone() for tensor in live]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(live, before, strict=True):
                    tensor.copy_(value)

    @contextmanager
    def _moved(self, alpha: float) -> Iterator[None]:
        live = {**self._parameters, **self._buffers}
        with evaluating(self.model), kept_statistics(self.norms):
            with torch.no_grad():
                for name, tensor in self.tensors(alpha).items():
                    live[name].copy_(tensor)
                if self.bn == "batch":
                    forget_statistics(self.norms)
                elif self.bn_batches:
                    for norm in self.norms:
                        norm.reset_running_stats()
                    reestimate(self.norms, self.bn_batches, self.model)
            yield

    def rewind(self) -> AbstractContextManager[nn.Module]:
        """Inside this block the chosen parameters are back at ``state0``: how critical are they?"""
        return self.at(0.0)

    def evaluate(self, fn: Callable[[nn.Module], Any], alphas: Sequence[float] | Float[Tensor, " k"]) -> Tensor:
        """``fn(model)`` at each of the ascending ``alphas``, without gradients: a tensor with a first axis k.

        ``fn`` may give a tensor, or a number or several, which become float64. Let it use the same samples each time.
        """
        points = check_alphas(alphas).tolist()
        values = []
        with torch.no_grad(), self._kept():
            for alpha in points:
                with self._moved(alpha):
                    value = fn(self.model)
                    values.append(value.clone() if isinstance(value, Tensor) else torch.tensor(value).double())
        return torch.stack(values)

    @property
    def distance(self) -> float:
        """Euclidean length of the path, of the parameters that move."""
        return self._norm(lambda name: self.state1[name].double() - self.state0[name].double())

    @property
    def relative_distance(self) -> float:
        """``distance`` as a multiple of the norm of those parameters at 0; NaN if that is 0."""
        norm = self._norm(lambda name: self.state0[name].double())
        return self.distance / norm if norm else math.nan

    def _norm(self, of: Callable[[str], Tensor]) -> float:
        return math.sqrt(sum(float(of(name).abs().square().sum()) for name in self.parameters))

    def __repr__(self) -> str:
        return f"LinearPath({len(self.parameters)} of {len(self._parameters)} parameters, bn={self.bn!r})"


def layerwise_paths(
    model: nn.Module,
    state0: State,
    state1: State,
    groups: Mapping[str, Names] | Sequence[str] | None = None,
    *,
    others: Literal["final", "init"] = "final",
    bn: Policy = "reestimate",
    bn_loader: Iterable[Any] | None = None,
    bn_samples: int = 2000,
) -> dict[str, LinearPath]:
    """A path for each group of parameters, on which that group alone moves; all share one copy of the end points.

    theta^S(alpha) = (1 - alpha) theta_0^S + alpha theta_1^S for the parameters S of the group; the others stay at the
    end that ``others`` names.

    Args:
        model: as in :class:`LinearPath`, like all that is not explained here.
        state0: state at 0.
        state1: state at 1.
        groups: name -> which parameters, as in :class:`LinearPath`; or patterns, which then are the names. By default
            each module that has parameters of its own.
        others: the end at which other parameters stay.
        bn: what becomes of running statistics.
        bn_loader: for ``"reestimate"``.
        bn_samples: how many of its samples.

    Shapes: as :class:`LinearPath`.
    Cost: memory of two states in all.
    Raises: what :class:`LinearPath` raises; ValueError if there is no group.
    Source: Vlaar and Frankle, ICML 2022, on individual layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> start = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
        >>> for name, path in layerwise_paths(model, start, model.state_dict()).items():
        ...     with path.rewind() as rewound:  # is the layer any use?
        ...         print(name, path.parameters)
        0 ('0.weight', '0.bias')
        2 ('2.weight', '2.bias')
    """
    whole = LinearPath(model, state0, state1, others=others, bn=bn, bn_loader=bn_loader, bn_samples=bn_samples)
    if groups is None:
        owners = dict.fromkeys(name.rpartition(".")[0] for name in whole._parameters)
        groups = {owner: directly_in(owner) for owner in owners}
    elif not isinstance(groups, Mapping):
        groups = {pattern: pattern for pattern in groups}
    if not groups:
        raise ValueError("groups must name at least one group of parameters, but are empty")
    paths = {}
    for name, names in groups.items():
        paths[name] = copy.copy(whole)
        paths[name]._choose(names, others)
    return paths
