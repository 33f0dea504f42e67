"""Measures of neural collapse in every layer of a user's own network, in one pass of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchstone._checks import check_one_of
from torchstone.dynamics.neural_collapse.meter import FeatureHook, NeuralCollapseMeter
from torchstone.dynamics.neural_collapse.metrics import Frame, NCMetrics
from torchstone.training import capture, pooled
from torchstone.training.evaluate import evaluating, first_device

__all__ = ["layerwise_nc"]


@torch.no_grad()
def layerwise_nc(
    model: nn.Module,
    loader: Iterable[Sequence[Any]],
    layers: Sequence[str] = (),
    *,
    head: str | None = None,
    num_classes: int | None = None,
    pooling: Literal["average", "flatten"] | None = None,
    frame: Frame = "etf",
    centred: bool | None = None,
    rtol: float = 1e-8,
) -> dict[str, NCMetrics]:
    """NC1 and NC2 of the outputs of some layers, and NC3 too of what the last layer is given.

    NC1 = tr(Sigma_W Sigma_B^+) / K and the others as in :func:`nc_metrics`. The pass is in evaluation mode and without
    gradients; each module's mode is put back. Give training data that are not augmented.

    Args:
        model: the network.
        loader: batches ``(x, y)`` or ``(x, y, index)``.
        layers: names of modules, as ``model.named_modules()`` gives them; a ReLU and the layer before it are two.
        head: name of the last linear layer: its inputs are measured, against its weight and bias.
        num_classes: K; by default the columns of the network's output.
        pooling: what becomes of outputs (n, channels, ...): ``"average"`` over all but the channels, or ``"flatten"``,
            which takes the square of all numbers in one output as memory.
        frame: ``"etf"`` or ``"orthogonal"``.
        centred: as in :func:`nc_metrics`.
        rtol: as in :func:`nc_metrics`.

    Shapes:
        layer (or ``head``) -> measures that are scalars, in the order of ``layers``.

    Cost:
        One pass, O(n d^2) a layer beside it, and d^2 numbers of memory a layer.

    Raises:
        UnknownNameError: for a layer that the model does not have, with the nearest name.
        TypeError: if an output is no tensor, or ``head`` not linear.
        ValueError: if an output has more than two dimensions and ``pooling`` is not chosen, another number of rows than
            there are labels, or the loader is empty.

    Source:
        Tirer, Bruna, ICML 2022.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> loader = [(torch.rand(30, 4), torch.arange(30) % 3)]  # any loader of (x, y)
        >>> found = layerwise_nc(net, loader, ["0", "1"], head="2")
        >>> list(found), found["2"].nc3.shape
        (['0', '1', '2'], torch.Size([]))
    """
    if pooling is not None:
        check_one_of("pooling", pooling, ("average", "flatten"))
    last = _linear(model, head)
    names = [*layers] if head is None else [*layers, head]
    if not names:
        raise ValueError("layers must name at least one layer where there is no head, but are empty")
    meters: dict[str, NeuralCollapseMeter] = {}
    device = first_device(model)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        outputs = stack.enter_context(capture(model, layers))
        hook = None if head is None else stack.enter_context(FeatureHook(model, head))
        for batch in loader:
            if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
                raise TypeError("a loader must yield batches (x, y) or (x, y, index)")
            x, y = batch[:2]
            logits = model(x.to(device or x.device))
            classes = logits.shape[-1] if num_classes is None else num_classes
            for name in names:
                if hook is not None and name == head:
                    given = hook.features
                elif name in outputs:
                    given = outputs[name]
                else:
                    raise ValueError(f"layer {name!r} is not used in a pass through the model: choose another one")
                rows = _rows(name, given, pooling)
                if len(rows) != len(y):
                    raise ValueError(f"layer {name!r} gave {len(rows)} rows for {len(y)} labels: choose another one")
                if name not in meters:
                    meters[name] = NeuralCollapseMeter(classes, rows.shape[1]).to(rows.device)
                meters[name].update(rows, y.to(rows.device))
    if not meters:
        raise ValueError("a loader must yield at least one batch, but yields none")
    found = {}
    for name in names:
        ends = () if last is None or name != head else (last.weight, last.bias)
        found[name] = meters[name].compute(*ends, frame=frame, centred=centred, rtol=rtol)
    return found


def _linear(model: nn.Module, head: str | None) -> Any:
    last = None if head is None else dict(model.named_modules()).get(head)
    if last is not None and getattr(getattr(last, "weight", None), "ndim", 0) != 2:
        raise TypeError(f"head must name a linear layer, but {head!r} is a {type(last).__name__}")
    return last


def _rows(name: str, output: Any, pooling: str | None) -> Tensor:
    if isinstance(output, Tensor) and output.ndim > 2:
        if pooling is None:
            raise ValueError(
                f"output of layer {name!r} has shape {tuple(output.shape)}: choose pooling='average', or 'flatten' "
                f"for {output[0].numel()} features"
            )
        if pooling == "flatten":
            return output.flatten(1)
    return pooled(output)
