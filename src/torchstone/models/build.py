"""A model by name: one of the small reference nets, or the user's own ``module:factory``, checked before training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from torchstone._checks import check_int
from torchstone._imports import import_object
from torchstone.errors import did_you_mean
from torchstone.models.cnn import SmallCNN, StridedCNN
from torchstone.models.mlp import MLP
from torchstone.models.resnet import resnet18, resnet20
from torchstone.models.seeding import seeded

__all__ = ["MODELS", "build"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda input_shape, num_classes: MLP(prod(input_shape), num_classes, hidden=()),
    "mlp": lambda input_shape, num_classes: MLP(prod(input_shape), num_classes),
    "cnn": lambda input_shape, num_classes: SmallCNN(_channels(input_shape), num_classes),
    "strided-cnn": lambda input_shape, num_classes: StridedCNN(_channels(input_shape), num_classes),
    "resnet20": lambda input_shape, num_classes: resnet20(_channels(input_shape), num_classes),
    "resnet18": lambda input_shape, num_classes: resnet18(_channels(input_shape), num_classes),
}
"""The nets that :func:`build` knows by name; each is called with ``input_shape`` and ``num_classes``."""


def build(
    factory: str | Callable[..., nn.Module],
    input_shape: Sequence[int],
    num_classes: int,
    *,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a model and try it on one input, so that a wrong one is known before anything is trained.

    A factory that names ``input_shape`` or ``num_classes`` among its arguments gets those; one with just two arguments
    that have no default gets both in this order; one that needs no argument is called with none. Everything it draws
    from torch's global random numbers comes from ``generator``.

    Args:
        factory: a name in :data:`MODELS`, ``"module:factory"``, or the factory itself.
        input_shape: shape of one input, e.g. ``(784,)`` or ``(3, 32, 32)``.
        num_classes: how many logits the model must give.
        generator: source of the initial weights; None is torch's global one.

    Returns:
        The model, in training mode.

    Raises:
        UnknownNameError: if there is no such name, module or factory.
        TypeError: if the factory cannot be called so, or does not give a ``torch.nn.Module``.
        ValueError: if the model cannot take the input, or gives something else than (1, num_classes) for one.

    Example:
        >>> build("mlp", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).num_features
        128
    """
    shape = tuple(check_int("input_shape", size, 1) for size in input_shape)
    check_int("num_classes", num_classes, 1)
    name = factory if isinstance(factory, str) else _name(factory)
    make = _resolve(factory) if isinstance(factory, str) else factory
    with seeded(generator):
        args, kwargs = _arguments(name, make, shape, num_classes)
        model = make(*args, **kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model factory {name} must give a torch.nn.Module, but gives {type(model).__name__}")
        _check_output(name, model, shape, num_classes)
    return model


def _name(factory: Any) -> str:
    """Return ``module:name`` of a function or class, and what Python prints of anything else."""
    qualname = getattr(factory, "__qualname__", None)
    return repr(factory) if qualname is None else f"{factory.__module__}:{qualname}"


def _resolve(name: str) -> Any:
    """Return the factory that ``name`` means; of a user's module that can be anything."""
    if ":" not in name:
        if name not in MODELS:
            raise did_you_mean("model", name, [*MODELS, "module:factory"])
        return MODELS[name]
    return import_object(name, kind="model factory")


def _arguments(
    name: str, make: Any, shape: tuple[int, ...], num_classes: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the named arguments to call ``make`` with."""
    if isinstance(make, nn.Module):
        raise TypeError(f"model factory {name} is a model already; give a function or class that builds a fresh one")
    if not callable(make):
        raise TypeError(f"model factory {name} cannot be called: it is of type {type(make).__name__}")
    parameters = [
        p for p in inspect.signature(make).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    ours = {"input_shape": shape, "num_classes": num_classes}
    by_name = {p.name: ours[p.name] for p in parameters if p.name in ours and p.kind != p.POSITIONAL_ONLY}
    needed = [p.name for p in parameters if p.default is p.empty]
    if set(needed) <= by_name.keys():
        return (), by_name
    if len(needed) == 2 and not by_name:
        return (shape, num_classes), {}
    raise TypeError(
        f"model factory {name} must take (input_shape, num_classes) or nothing, but needs ({', '.join(needed)})"
    )


def _check_output(name: str, model: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    """Raise ``ValueError`` unless ``model`` maps one input of zeros to (1, num_classes)."""
    model.eval()
    parameter = next(model.parameters(), None)
    x = torch.zeros(1, *shape, device=None if parameter is None else parameter.device)
    try:
        with torch.no_grad():
            output = model(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"model {name} cannot take an input of shape {tuple(x.shape)}: {error}") from error
    finally:
        model.train()
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if got != (1, num_classes):
        raise ValueError(f"model {name} must give logits of shape {(1, num_classes)} for one input, but gives {got}")


def _channels(shape: tuple[int, ...]) -> int:
    """Return the channels of an image of this shape; flat and two-dimensional ones have one."""
    return shape[0] if len(shape) == 3 else 1
