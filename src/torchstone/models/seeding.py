"""Initial weights from a generator of one's own.

torch's layers draw their initial weights from the global generator and take no other. :func:`seeded` gives a block
of code a global stream of its own and puts the old one back, so a model built inside it depends on the generator
alone, whatever its author wrote in ``__init__``. :func:`initialize_` redraws a model that is built already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

__all__ = ["initialize_", "seeded"]

M = TypeVar("M", bound=nn.Module)


@contextmanager
def seeded(generator: torch.Generator | None, *, device: torch.device | None = None) -> Iterator[None]:
    """Inside this block torch's global random numbers come from ``generator``; afterwards they go on as if untouched.

    One seed is drawn from ``generator``, so two blocks in a row differ and the pair is reproducible. The streams
    replaced are those of the CPU and of ``device``. Without a generator the block does nothing.

    Args:
        generator: where the seed comes from, or None.
        device: an accelerator on which the block draws as well.

    Raises:
        ValueError: if torch offers no access to the generator of ``device``.

    Example:
        >>> with seeded(torch.Generator().manual_seed(0)):
        ...     first = nn.Linear(2, 1)
        >>> with seeded(torch.Generator().manual_seed(0)):
        ...     second = nn.Linear(2, 1)
        >>> torch.equal(first.weight, second.weight)
        True
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    streams = _global_generators(device)
    before = [stream.get_state() for stream in streams]
    try:
        for stream in streams:
            stream.manual_seed(seed)
        yield
    finally:
        for stream, state in zip(streams, before, strict=True):
            stream.set_state(state)


def initialize_(module: M, generator: torch.Generator | None) -> M:
    """Redraw in place every layer of ``module`` that knows how, from ``generator``; return ``module``.

    A layer knows how if it has torch's ``reset_parameters()``. Inner layers come first, so a model's own
    ``reset_parameters()`` has the last word over those of its layers. A bare ``nn.Parameter`` of a module without that
    method stays as it is: build such a module under :func:`seeded` instead.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> first = initialize_(net, torch.Generator().manual_seed(0))[0].weight.clone()
        >>> torch.equal(first, initialize_(net, torch.Generator().manual_seed(0))[0].weight)
        True
    """
    parameter = next(module.parameters(), None)
    with seeded(generator, device=None if parameter is None else parameter.device):
        for layer in reversed(list(module.modules())):
            # nn.MultiheadAttention and nn.Transformer spell it with an underscore.
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
    return module


def _global_generators(device: torch.device | None) -> list[torch.Generator]:
    """Return torch's global generators: the CPU's, and that of ``device`` if it is another."""
    streams = [torch.default_generator]
    if device is None or device.type in ("cpu", "meta"):
        return streams
    backend = torch.get_device_module(device)
    if device.type == "mps":  # torch.mps has one generator and no public name for it
        streams.append(backend._get_default_mps_generator())
    elif hasattr(backend, "default_generators"):
        backend.init()
        streams.append(backend.default_generators[backend.current_device() if device.index is None else device.index])
    else:
        raise ValueError(f"device {device} does not let its global generator be saved; draw on the CPU instead")
    return streams
