"""What a trained network makes of its inputs: outputs of chosen layers and logits, in one pass.

Post-hoc methods (generative classifiers, calibration, nearest neighbours) start from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from torchstone._checks import check_int
from torchstone.errors import did_you_mean
from torchstone.training.evaluate import evaluating, first_device

__all__ = ["LayerFeatures", "capture", "layer_features", "pooled"]


@dataclass(frozen=True, eq=False)
class LayerFeatures:
    """Outputs of chosen layers for all samples.

    Attributes:
        features: layer -> its output, spatial dimensions averaged.
        logits: what the network gives.
        y: the labels, if the data carried any.
        index: the samples' numbers, if the data carried any.

    Shapes:
        ``features[layer]`` (n, d of that layer) float; ``logits`` (n, c); ``y`` and ``index`` (n,) int64.
    """

    features: dict[str, Float[Tensor, "n d"]]
    logits: Float[Tensor, "n c"]
    y: Int64[Tensor, " n"] | None = None
    index: Int64[Tensor, " n"] | None = None


@contextmanager
def capture(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Inside this block, see what each layer gave in the model's last pass.

    The hooks come off when the block is left, however that happens, and the outputs are let go. Outputs keep their
    gradient. Of a module that is used twice in a pass the last output is kept; of one that is followed by an in-place
    operation, the changed output.

    Args:
        model: any module.
        layers: names of modules inside it, as ``model.named_modules()`` gives them; ``""`` is the model itself.

    Returns:
        Layer -> its output; filled by each call of the model.

    Raises:
        UnknownNameError: for a layer that the model does not have, with the nearest name.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with capture(net, ["0"]) as outputs:
        ...     _ = net(torch.ones(5, 2))
        ...     outputs["0"].shape
        torch.Size([5, 3])
    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise did_you_mean("layer", name, modules)
    outputs: dict[str, Any] = {}
    handles = [
        modules[name].register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output}))
        for name in layers
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
        outputs.clear()


def pooled(output: Float[Tensor, "n d ..."]) -> Float[Tensor, "n d"]:
    """Average a layer's output over all dimensions after the channels.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it has no dimension of channels.

    Example:
        >>> pooled(torch.ones(4, 3, 8, 8)).shape
        torch.Size([4, 3])
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"output of a layer must be a tensor, but is a {type(output).__name__}: choose another layer")
    if output.ndim < 2:
        raise ValueError(f"output of a layer must have shape (n, channels, ...), but has {tuple(output.shape)}")
    return output if output.ndim == 2 else output.flatten(2).mean(2)


def layer_features(
    model: nn.Module,
    data: Shaped[Tensor, "n ..."] | Iterable[Any],
    *,
    layers: Sequence[str] = (),
    batch_size: int = 1024,
    device: torch.device | str | None = None,
) -> LayerFeatures:
    """Pass all samples through a network once and keep its logits and the outputs of some layers.

    The pass is in evaluation mode and without gradients; each module's mode is put back. Nothing is augmented here:
    give a loader that does not augment either.

    Args:
        model: the network.
        data: the inputs, or a loader whose batches are ``x``, ``(x, y)`` or ``(x, y, index)``.
        layers: names of modules, as for :func:`capture`.
        batch_size: samples in one pass, where ``data`` is a tensor; a loader has its own.
        device: where to compute; by default where the model is. Results come back to where the inputs are.

    Raises:
        UnknownNameError: for an unknown layer.
        TypeError: if the output of a layer is no tensor, or a batch is none of the above.
        ValueError: if there are no samples, or a layer gave another number of rows than there are samples.

    Cost:
        One pass through the network, and memory for what is kept: O(n d) numbers a layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> found = layer_features(net, torch.zeros(7, 1, 8, 8), layers=["1"])
        >>> found.features["1"].shape, found.logits.shape
        (torch.Size([7, 4]), torch.Size([7, 10]))
    """
    check_int("batch_size", batch_size, 1)
    batches = data.split(batch_size) if isinstance(data, Tensor) else data
    device = device or first_device(model)
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    logits: list[Tensor] = []
    extras: list[tuple[Tensor, ...]] = []
    with evaluating(model), torch.inference_mode(), capture(model, layers) as outputs:
        for batch in batches:
            x, *extra = (batch,) if isinstance(batch, Tensor) else batch
            if not isinstance(x, Tensor) or len(extra) > 2:
                raise TypeError("batches of data must be x, (x, y) or (x, y, index), with tensors in them")
            if not len(x):
                continue
            logits.append(model(x.to(device or x.device)).to(x.device))
            for name in layers:
                if name not in outputs:
                    raise ValueError(f"layer {name!r} is not used in a pass through the model: choose another one")
                features = pooled(outputs[name]).to(x.device)
                if len(features) != len(x):
                    raise ValueError(
                        f"layer {name!r} gave {len(features)} rows for {len(x)} samples: choose another one"
                    )
                kept[name].append(features)
            extras.append(tuple(torch.as_tensor(part) for part in extra))
    if not logits:
        raise ValueError("data must hold at least 1 sample, but hold 0")
    columns = [torch.cat(column) for column in zip(*extras, strict=True)]
    return LayerFeatures(
        features={name: torch.cat(parts) for name, parts in kept.items()},
        logits=torch.cat(logits),
        y=columns[0] if columns else None,
        index=columns[1] if len(columns) > 1 else None,
    )
