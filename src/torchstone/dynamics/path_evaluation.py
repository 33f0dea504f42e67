"""A network at many points of a line in one pass, by ``torch.func.vmap`` over a leading axis of points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from torchstone._checks import check_int
from torchstone.dynamics._path_states import Names, State, check_alphas
from torchstone.dynamics._running_statistics import forget_statistics, kept_statistics, reestimate
from torchstone.dynamics.interpolation import LinearPath, Policy
from torchstone.training.evaluate import evaluating, first_device

__all__ = ["evaluate_stacked"]


def evaluate_stacked(
    model: nn.Module,
    state0: State,
    state1: State,
    alphas: Sequence[float] | Float[Tensor, " k"],
    batch: Tensor | Sequence[Tensor],
    *,
    criterion: Callable[..., Any] | None = None,
    parameters: Names | None = None,
    others: Literal["final", "init"] = "final",
    bn: Policy = "reestimate",
    bn_loader: Iterable[Any] | None = None,
    bn_samples: int = 2000,
    chunk_size: int | None = None,
) -> Any:
    """``criterion(model(x), *targets)`` at all ``alphas`` in one pass, without gradients.

    Gives what :meth:`LinearPath.evaluate` gives, which goes from point to point, up to the order of float operations.
    Faster for small networks and batches, where calls cost more than arithmetic; on a CPU that method is the better one
    for large convolutional networks, or thousands of rows.

    Args:
        model: as in :class:`LinearPath`, like all that is not explained here. It must be one that ``vmap`` can handle.
        state0: state at 0.
        state1: state at 1.
        alphas: points of the line, ascending.
        batch: inputs ``x``, or ``(x, *targets)``.
        criterion: function of the outputs and the targets of one point; by default the outputs themselves.
        parameters: which parameters move.
        others: the end at which the others stay. They have no axis of points: what comes before the first parameter
            that moves is computed once.
        bn: what becomes of running statistics.
        bn_loader: for ``"reestimate"``.
        bn_samples: how many of its samples.
        chunk_size: points at a time; None is all.

    Shapes: ``x`` (n, ...); returns what ``criterion`` returns, or (n, ...), with a first axis k.
    Cost: memory of k networks, and k times the activations, or ``chunk_size`` times.
    Raises: what :class:`LinearPath` raises; ValueError if ``batch`` has no rows, or ``alphas`` do not ascend.
    Source: Vlaar and Frankle, ICML 2022.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> start, end = ({"weight": torch.tensor([[w]])} for w in (0.0, 4.0))
        >>> batch = torch.ones(5, 1), torch.zeros(5, 1)
        >>> evaluate_stacked(model, start, end, [0.0, 0.5, 1.0], batch, criterion=nn.functional.mse_loss)
        tensor([ 0.,  4., 16.])
    """
    points = check_alphas(alphas)
    if chunk_size is not None:
        check_int("chunk_size", chunk_size, 1)
    x, *targets = (batch,) if isinstance(batch, Tensor) else batch
    if not len(x):
        raise ValueError("batch must have at least 1 row, but has 0")
    path = LinearPath(
        model,
        state0,
        state1,
        parameters=parameters,
        others=others,
        bn=bn,
        bn_loader=bn_loader,
        bn_samples=bn_samples,
    )
    device = first_device(model) or x.device
    x, *targets = (part.to(device) for part in (x, *targets))
    state = path.tensors(points)
    dims: dict[str, int | None] = {name: 0 if path.moves(name) else None for name in state}
    statistics = _statistics(path) & state.keys()

    def outputs(state: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(path.model, state, (x,))

    def measure(state: dict[str, Tensor]) -> Any:
        found = outputs(state, x)
        return found if criterion is None else criterion(found, *targets)

    with torch.no_grad(), evaluating(path.model), kept_statistics(path.norms):
        if path.bn == "batch":
            forget_statistics(path.norms)
            for name in statistics:
                del state[name], dims[name]
        elif path.bn_batches:
            for name in statistics:  # each point has its own, and they are written to
                state[name] = state[name].new_zeros(len(points), *state[name].shape)
                dims[name] = 0
            stacked = vmap(outputs, in_dims=(dims, None), chunk_size=chunk_size)
            reestimate(path.norms, path.bn_batches, lambda x: stacked(state, x))
        return vmap(measure, in_dims=(dims,), chunk_size=chunk_size)(state)


def _statistics(path: LinearPath) -> set[str]:
    """Names of the running statistics."""
    layers = [name for name, module in path.model.named_modules() if module in path.norms]
    parts = ("running_mean", "running_var", "num_batches_tracked")
    return {f"{layer}.{part}".removeprefix(".") for layer in layers for part in parts}
