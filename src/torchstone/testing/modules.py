"""The contracts of a layer or a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.testing import contracts
from torchstone.testing.contracts import demand, finite, fresh, tensors

__all__ = ["check_module"]


def check_module(
    make: Callable[[], nn.Module],
    inputs: Sequence[Any],
    *,
    refuses: Sequence[tuple[Sequence[Any], Sequence[str]]] = (),
    compiles: bool = False,
    require: Sequence[str] = ("Shapes", "Raises", "Source"),
    skip: Collection[str] = (),
) -> None:
    """Check that a module keeps its contracts.

    They are ``docstring`` (has the blocks in ``require``), ``gradients`` (every parameter gets a finite one),
    ``repeatable`` (same seed, same bits; inputs untouched), ``contiguity``, ``deepcopy``, ``state_dict`` (resumed
    equals never stopped), ``empty`` (no row: finite or ``ValueError``), ``autocast`` (bfloat16, gradients too),
    ``device`` (none is hidden), ``refuses`` (bad inputs raise and say why) and, where claimed, ``compile``.

    Args:
        make: builds the module, in the mode to be tested.
        inputs: arguments of its ``forward``; tensors have the batch first.
        refuses: pairs of bad arguments and the words their error must contain: argument, value, limit.
        compiles: whether the module claims to compile without a graph break.
        require: blocks that the docstring must have.
        skip: names of contracts that do not apply.

    Raises:
        AssertionError: with one line for each broken contract.

    Example:
        >>> check_module(lambda: nn.Linear(3, 2), [torch.ones(4, 3)], require=())
    """
    module = make()

    def refusals() -> None:
        for bad, says in refuses:
            contracts.check_refuses(lambda bad=bad: fresh(module)(*bad), says=says, what="a bad input")

    checks: dict[str, Callable[[], None]] = {
        "docstring": lambda: contracts.check_docstring(type(module), require=require),
        "gradients": lambda: _check_gradients(make(), inputs),
        "repeatable": lambda: contracts.check_repeatable(fresh(module), *inputs),
        "contiguity": lambda: contracts.check_contiguity(fresh(module), *inputs),
        "deepcopy": lambda: contracts.check_deepcopy(make(), *inputs),
        "state_dict": lambda: contracts.check_state_dict(make, lambda trained: _train(trained, inputs)),
        "empty": lambda: contracts.check_empty(fresh(module), *inputs),
        "autocast": lambda: contracts.check_autocast(lambda *x: _gradients(make(), x), *inputs),
        "device": lambda: contracts.check_device_free(fresh(module), *inputs),
        "refuses": refusals,
    }
    if compiles:
        checks["compile"] = lambda: contracts.check_compiles(module, *inputs)
    contracts.run_checks(type(module).__name__, checks, skip=skip)


def _gradients(module: nn.Module, inputs: Sequence[Any]) -> list[Tensor | None]:
    """Return the gradient that each parameter gets from the mean square of the outputs."""
    _objective(module(*inputs)).backward()
    return [parameter.grad for parameter in module.parameters()]


def _check_gradients(module: nn.Module, inputs: Sequence[Any]) -> None:
    if any(parameter.requires_grad for parameter in module.parameters()):
        _gradients(module, inputs)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            demand(parameter.grad is not None, f"parameter {name} gets no gradient", "use it in forward, undetached")
            demand(finite(parameter.grad), f"the gradient of {name} is not finite", "guard roots, logs and divisions")


def _train(module: nn.Module, inputs: Sequence[Any]) -> list[Any]:
    """Return the outputs of two steps of plain gradient descent."""
    outputs = []
    for _ in range(2):
        module.zero_grad()
        output = module(*inputs)
        outputs.append([t.detach() for t in tensors(output)])
        objective = _objective(output)
        if objective.requires_grad:
            objective.backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.01 * parameter.grad
    return outputs


def _objective(output: Any) -> Tensor:
    """Return the sum over the outputs of their mean squares."""
    return torch.stack([t.float().square().mean() for t in tensors(output) if t.is_floating_point()]).sum()
