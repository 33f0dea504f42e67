"""The last linear layer of a network: which it is, what it sees, and a copy of the network with a new one.

Without a name given, it is the ``nn.Linear`` that comes last in ``model.named_modules()``, so the one registered last.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from torchstone.errors import did_you_mean
from torchstone.models.seeding import seeded
from torchstone.training import LayerFeatures, layer_features, pooled

__all__ = ["PENULTIMATE", "last_linear", "penultimate", "with_new_last"]

PENULTIMATE = "penultimate"
"""What :func:`penultimate` calls the layer in its answer."""


def last_linear(model: nn.Module, name: str | None = None) -> tuple[str, nn.Linear]:
    """The last linear layer of ``model`` with its name, or the one called ``name``.

    Raises:
        UnknownNameError: if no module is called ``name``.
        TypeError: if it is no ``nn.Linear``, or the model has none.

    Example:
        >>> last_linear(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        ('2', Linear(in_features=3, out_features=2, bias=True))
    """
    modules = dict(model.named_modules())
    if name is None:
        name = next((key for key, module in reversed(modules.items()) if isinstance(module, nn.Linear)), None)
        if name is None:
            raise TypeError(f"model must have a last layer of type nn.Linear, but {type(model).__name__} has none")
    elif name not in modules:
        raise did_you_mean("layer", name, modules)
    layer = modules[name]
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer {name!r} must be an nn.Linear, but is a {type(layer).__name__}")
    return name, layer


def with_new_last(
    model: nn.Module, width: int, *, last: str | None = None, generator: torch.Generator | None = None
) -> nn.Module:
    """A trainable copy of ``model`` whose last linear layer is a fresh one with ``width`` outputs.

    Args:
        model: stays as it is.
        width: numbers that the new layer gives.
        last: name of the layer, if it is not the last ``nn.Linear``.
        generator: source of the new weights.

    Raises:
        UnknownNameError, TypeError: as :func:`last_linear`.

    Example:
        >>> with_new_last(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 5)[2]
        Linear(in_features=3, out_features=5, bias=True)
    """
    name, layer = last_linear(model, last)
    weight, bias = layer.weight, layer.bias is not None
    with seeded(generator):
        fresh = nn.Linear(layer.in_features, width, bias=bias).to(weight.device, weight.dtype)
    if not name:
        return fresh
    copied = copy.deepcopy(model).requires_grad_()
    copied.set_submodule(name, fresh)
    return copied


def penultimate(
    model: nn.Module,
    data: Shaped[Tensor, "n ..."] | Iterable[Any],
    *,
    last: str | None = None,
    batch_size: int = 1024,
    device: torch.device | str | None = None,
) -> LayerFeatures:
    """What the last linear layer sees of each sample (``features["penultimate"]``), and the logits, in one pass.

    Where the data carry each sample's number, the answer is in the order of these.

    Args:
        model: the network.
        data: inputs, or a loader, as for :func:`~torchstone.training.layer_features`.
        last: name of the layer, if it is not the last ``nn.Linear``.
        batch_size: samples in one pass, where ``data`` is a tensor.
        device: where to compute; by default where the model is.

    Raises:
        UnknownNameError, TypeError: as :func:`last_linear`.
        ValueError: if a loader leaves out or repeats a sample's number.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> penultimate(net, torch.ones(5, 4)).features["penultimate"].shape
        torch.Size([5, 3])
    """
    _, layer = last_linear(model, last)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(pooled(args[0])))
    try:
        found = layer_features(model, data, batch_size=batch_size, device=device)
    finally:
        handle.remove()
    features = torch.cat(seen).to(found.logits.device)
    if found.index is None:
        return LayerFeatures({PENULTIMATE: features}, found.logits, found.y)
    index, place = found.index.sort()
    if not torch.equal(index, torch.arange(len(index), device=index.device)):
        raise ValueError(f"a loader must give each index in 0..{len(index) - 1} once: let it drop and repeat no sample")
    labels = None if found.y is None else found.y[place]
    return LayerFeatures({PENULTIMATE: features[place]}, found.logits[place], labels, index)
