"""Which layers of a network hold representations that a classifier can be put on, found by one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from torchstone._checks import check_int
from torchstone.training.evaluate import evaluating

__all__ = ["hidden_layers"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def hidden_layers(model: nn.Module, x: Shaped[Tensor, "n ..."], *, last: int = 3) -> tuple[str, ...]:
    """Names of the last hidden layers of a network, in the order in which they run; the last one feeds the head.

    Weighted is a layer with a matrix or a kernel among its parameters; the last weighted one is the head. What a
    weighted layer other than the first gets is a representation: the output of the layer that ran before it, of
    ``nn.Flatten`` that of the one before. ``nn.Sequential`` and whatever holds the head count as the layers in them;
    any other module, such as a residual block, as one layer. Layers that run several times are left out.

    Args:
        model: the network.
        x: a few inputs.
        last: at most so many layers.

    Returns:
        Names as ``model.named_modules()`` gives them.

    Raises:
        ValueError: if there is no such layer, as in a linear classifier.

    Cost:
        One pass.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hidden_layers(net, torch.zeros(1, 2, 2))
        ('2', '4')
    """
    check_int("last", last, 1)
    modules = dict(model.named_modules())
    ran: list[tuple[str, bool]] = []  # with whether the output can be used, in the order in which layers end

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: ran.append(
            (name, isinstance(output, Tensor) and output.ndim > 1 and len(output) == len(x))
        )

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        with evaluating(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()

    weighted = {name for name, module in modules.items() if any(weight.ndim > 1 for weight in module.parameters())}
    head = next((name for name, _ in reversed(ran) if name in weighted and not list(modules[name].children())), "")
    opened = {name for name, module in modules.items() if isinstance(module, CONTAINERS)} | _above(head)
    times = Counter(name for name, _ in ran)
    found: list[str] = []
    before, started = "", False
    for name, usable in ran:
        if name in opened or not _above(name) <= opened:
            continue
        if name in weighted:
            found += [before] if before else []
            started = True
        if name == head:
            break
        if started and not isinstance(modules[name], nn.Flatten):
            before = name if usable and times[name] == 1 else ""
    if not found:
        raise ValueError(f"{type(model).__name__} has no hidden layer to classify by: name the layers yourself")
    return tuple(dict.fromkeys(found))[-last:]


def _above(name: str) -> set[str]:
    """Names of the modules around a module, the model itself being ``""``."""
    parts = name.split(".") if name else []
    return {".".join(parts[:length]) for length in range(len(parts))}
