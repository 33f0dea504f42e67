"""State dicts of one network: which entries a name means, whether two belong together, and points between them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchstone._checks import check_float, check_ndim

__all__ = [
    "Names",
    "State",
    "aliases",
    "check_alpha",
    "check_alphas",
    "check_apart",
    "check_same",
    "check_tied",
    "directly_in",
    "fits",
    "is_float",
    "lerp",
    "matching",
    "without_prefix",
]

State: TypeAlias = Mapping[str, Any]
Names: TypeAlias = str | Callable[[str], bool]


def lerp(start: Tensor, end: Tensor, alpha: float | Tensor) -> Tensor:
    """``start + alpha (end - start)``, exact at 0 and 1, in float32 at least; an ``alpha`` (k,) adds a first axis."""
    wide = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    if isinstance(alpha, Tensor):
        alpha = alpha.to(end.device, wide).view(-1, *[1] * end.ndim)
    return torch.lerp(start.to(wide), end.to(wide), alpha).to(end.dtype)


def check_alphas(alphas: Sequence[float] | Tensor) -> Tensor:
    """Return ``alphas`` as float64 on the CPU; raise unless they are finite and ascend."""
    points = torch.as_tensor(alphas, dtype=torch.float64, device="cpu")
    check_ndim("alphas", points, 1, "(k,)")
    if not len(points) or not bool(points.isfinite().all()):
        raise ValueError(f"alphas must be at least one finite number, but are {points.tolist()}")
    if bool((points.diff() <= 0).any()):
        first = int((points.diff() <= 0).nonzero()[0, 0])
        raise ValueError(f"alphas must ascend, but {points[first]:g} is followed by {points[first + 1]:g}")
    return points


def check_alpha(alpha: float) -> float:
    """Return a point as a finite float."""
    return check_float("alpha", alpha, -math.inf, math.inf, open_low=True, open_high=True)


def fits(names: Names) -> Callable[[str], bool]:
    """Whether a pattern fits the whole name of a parameter, or of a module that holds it."""
    if not isinstance(names, str):
        return names
    try:
        pattern = re.compile(rf"(?:{names})(?:\..*)?")
    except re.error as error:
        raise ValueError(f"{names!r} is no regular expression: {error}") from None
    return lambda name: pattern.fullmatch(name) is not None


def directly_in(module: str) -> Callable[[str], bool]:
    """Whether a name is that of a parameter or buffer of the module itself, not of one inside."""
    return lambda name: name.rpartition(".")[0] == module


def matching(names: Names, options: Iterable[str], argument: str) -> frozenset[str]:
    """Those of the ``options`` that ``names`` mean; raise if there is none."""
    options = list(options)
    found = frozenset(filter(fits(names), options))
    if not found:
        some = ", ".join(options[:5]) + ", ..." * (len(options) > 5)
        raise ValueError(f"{argument} = {names!r} fits no name (there are: {some or 'none'})")
    return found


def aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of each parameter, by the first."""
    by_id: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(name)
    return {names[0]: tuple(names) for names in by_id.values()}


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def without_prefix(state: State, live: State) -> State:
    """A state that was saved from ``DistributedDataParallel``, by the names of the model inside."""
    if all(name.startswith("module.") for name in state) and not any(name.startswith("module.") for name in live):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def check_same(first: State, second: State, of: tuple[str, str] = ("state0", "state1")) -> None:
    """Raise unless two states have the same entries in the same shapes."""
    for here, there, names in ((first, second, of), (second, first, of[::-1])):
        for name in here:
            if name not in there:
                raise KeyError(f"entry {name!r} is in {names[0]} but not in {names[1]}")
    for name, value in first.items():
        if (shape := getattr(value, "shape", None)) != (other := getattr(second[name], "shape", None)):
            raise ValueError(f"entry {name!r} has shape {shape} in {of[0]} but {other} in {of[1]}")


def check_tied(argument: str, state: State, first: str, more: Sequence[str]) -> None:
    """Raise unless the entries of one parameter agree."""
    for name in more:
        if not torch.equal(state[first], state[name]):
            raise ValueError(f"entries {first!r} and {name!r} are one parameter of the model, but differ in {argument}")


def check_apart(state0: State, state1: State, names: Iterable[str]) -> None:
    """Raise if the two states are one and the same memory."""
    for name in names:
        if state0[name].numel() and state0[name].data_ptr() == state1[name].data_ptr():
            raise ValueError(
                f"state0 and state1 share the memory of {name!r}: model.state_dict() holds the live tensors, so take a "
                "copy (copy.deepcopy) before training"
            )
