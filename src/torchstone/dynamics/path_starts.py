"""Starting points of a path other than the usual one: scaled, in part trained, trained on random labels."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from torchstone._checks import check_float, check_int
from torchstone.dynamics._path_states import Names, State
from torchstone.dynamics.interpolation import LinearPath
from torchstone.training.evaluate import accuracy, first_device, predict
from torchstone.training.loop import EpochEnd, fit, supervised

__all__ = ["adversarial_init", "partial_init", "scaled_init"]


class _Labelled(NamedTuple):
    x: Tensor
    y: Tensor


def adversarial_init(
    model: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    *,
    epochs: int = 200,
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
    batch_size: int = 128,
    target_accuracy: float = 1.0,
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """A state from which training still works, but ends badly: that of a network which has learnt random labels.

    Each input gets one label, uniform on the classes; a copy of the model is trained with cross entropy until it
    predicts the share ``target_accuracy`` of them, in evaluation mode, at the end of an epoch.

    Args:
        model: maps inputs to ``num_classes`` logits; left as it is.
        loader: yields batches ``x`` or ``(x, ...)``, not augmented. Read once and held in memory.
        num_classes: number of classes.
        epochs: most passes.
        make_optimizer: makes the optimiser of the parameters.
        batch_size: samples a step.
        target_accuracy: when to stop.
        generator: source of the labels and of the order of samples, and of dropout.

    Returns:
        The state dict, with tensors of its own.

    Shapes: entries as in the model's state.
    Cost: twice that of training for as many epochs as it takes; memory of the inputs.
    Raises: ValueError for arguments out of range or a loader that yields nothing; RuntimeWarning if the labels are
        not learnt in time.
    Source: Vlaar and Frankle, ICML 2022; Liu, Papailiopoulos, Achlioptas, *Bad Global Minima Exist and SGD Can Reach
        Them*, NeurIPS 2020.

    Example:
        >>> inputs = torch.eye(6)
        >>> model = nn.Linear(6, 2)
        >>> start = adversarial_init(model, [inputs], 2, make_optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
        >>> _ = model.load_state_dict(start)  # and train it
    """
    check_int("num_classes", num_classes, 2)
    check_int("epochs", epochs, 1)
    check_float("target_accuracy", target_accuracy, 0, 1)
    batches: list[Tensor] = [batch[0] if isinstance(batch, tuple | list) else batch for batch in loader]
    if not batches:
        raise ValueError("loader must yield at least one batch, but yields none")
    twin = copy.deepcopy(model)
    x = torch.cat(batches).to(first_device(twin) or batches[0].device)
    where = "cpu" if generator is None else generator.device
    y = torch.randint(num_classes, (len(x),), generator=generator, device=where).to(x.device)
    reached = 0.0

    def learnt(end: EpochEnd) -> bool:
        nonlocal reached
        reached = accuracy(predict(end.model, x), y)
        return reached >= target_accuracy

    fit(
        twin,
        _Labelled(x, y),
        supervised(F.cross_entropy),
        make_optimizer(twin.parameters()),
        epochs=epochs,
        batch_size=batch_size,
        generator=generator,
        noise=generator,
        callbacks=(learnt,),
    )
    if reached < target_accuracy:
        warnings.warn(
            f"after {epochs} epochs the model predicts {reached:.1%} of its random labels, not {target_accuracy:.1%}: "
            "raise epochs or the learning rate, or accept less as target_accuracy",
            RuntimeWarning,
            stacklevel=2,
        )
    return copy.deepcopy(twin.state_dict())


def scaled_init(model: nn.Module, factor: float) -> dict[str, Any]:
    """The model's state with each parameter multiplied by ``factor``, and buffers as they are.

    Returns:
        A state dict with tensors of its own.

    Shapes: entries as in the model's state.
    Cost: one pass over the parameters.
    Raises: ValueError if ``factor`` is not positive and finite.
    Source: Vlaar and Frankle, ICML 2022.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> bool(scaled_init(model, 3.0)["weight"] == 3 * model.weight)
        True
    """
    check_float("factor", factor, 0, float("inf"), open_low=True, open_high=True)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = copy.deepcopy(model.state_dict())
    return {name: value * factor if name in names else value for name, value in state.items()}


def partial_init(model: nn.Module, fresh: State, trained: State, parameters: Names) -> dict[str, Any]:
    """A state with the chosen parameters from ``trained`` and all others from ``fresh``.

    Args:
        model: the network of both states; left as it is.
        fresh: usually a random state.
        trained: usually the end of another training.
        parameters: which come from ``trained``, as in :class:`LinearPath`; running statistics go with their layer.

    Returns:
        A state dict with tensors of its own.

    Shapes: entries as in the model's state.
    Cost: memory of three states.
    Raises: what :class:`LinearPath` raises.
    Source: Vlaar and Frankle, ICML 2022, on partial pre-training.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> states = [{name: torch.full_like(t, v) for name, t in model.state_dict().items()} for v in (0.0, 1.0)]
        >>> {name: float(value) for name, value in partial_init(model, *states, "0").items()}
        {'0.weight': 1.0, '0.bias': 1.0, '1.weight': 0.0, '1.bias': 0.0}
    """
    path = LinearPath(model, fresh, trained, parameters=parameters, others="init", bn="interpolate")
    with path.at(1.0) as model:
        return copy.deepcopy(model.state_dict())
