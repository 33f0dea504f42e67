"""The contracts of a classification loss, with or without state per training sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchstone._checks import check_int
from torchstone.testing import contracts
from torchstone.testing.contracts import check_refuses, demand, finite, fresh, near, stream

__all__ = ["check_loss"]

ROWS = 12


def check_loss(
    make: Callable[[], Callable[..., Tensor]],
    num_classes: int,
    *,
    with_index: bool = False,
    compiles: bool = False,
    require: Sequence[str] = ("Shapes", "Raises", "Source"),
    skip: Collection[str] = (),
) -> None:
    """Check that ``loss(logits, target)``, or ``loss(logits, target, index)``, keeps its contracts.

    They are ``docstring`` (has the blocks in ``require``), ``scalar`` (finite, with a finite gradient), ``extreme``
    (so it is for logits of 10 000), ``order`` (of the rows: no matter), ``repeatable`` (same seed, same bits; inputs
    untouched), ``contiguity``, ``empty`` (no row: finite or ``ValueError``), ``autocast`` (bfloat16, gradient too),
    ``device`` (none is hidden), ``logits``, ``target`` and ``index`` (a wrong shape, dtype or value raises and names
    it); of a module ``deepcopy`` and ``state_dict`` (resumed equals never stopped); where claimed, ``compile``.

    Args:
        make: builds the loss, in training mode; one with state per sample for at least 12 samples.
        num_classes: columns of the logits to test with, at least 2.
        with_index: whether the loss takes each sample's index.
        compiles: whether the loss claims to compile without a graph break.
        require: blocks that the docstring must have.
        skip: names of contracts that do not apply.

    Raises:
        AssertionError: with one line for each broken contract.

    Example:
        >>> check_loss(nn.CrossEntropyLoss, 3, require=(), skip=["empty", "logits", "target"])
    """
    check_int("num_classes", num_classes, 2)
    loss, other = make(), make()
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, num_classes, generator=draws)
    target = torch.arange(ROWS) % num_classes
    rest = [target, torch.randperm(ROWS, generator=draws)] if with_index else [target]
    inputs = [logits, *rest]
    checks: dict[str, Callable[[], None]] = {
        "docstring": lambda: contracts.check_docstring(loss, require=require),
        "scalar": lambda: _check_scalar(loss, inputs),
        "extreme": lambda: _check_scalar(loss, [1e4 * logits.sign(), *rest]),
        "order": lambda: _check_order(loss, inputs),
        "repeatable": lambda: contracts.check_repeatable(fresh(loss), *inputs),
        "contiguity": lambda: contracts.check_contiguity(fresh(loss), *inputs),
        "empty": lambda: contracts.check_empty(fresh(loss), *inputs),
        "autocast": lambda: contracts.check_autocast(lambda *x: _value_and_gradient(loss, x), *inputs),
        "device": lambda: contracts.check_device_free(fresh(loss), *inputs),
        "logits": lambda: _check_refuses(loss, inputs, 0, _bad_logits(logits)),
        "target": lambda: _check_refuses(loss, inputs, 1, _bad_numbers(target, num_classes)),
    }
    if with_index:
        checks["index"] = lambda: _check_refuses(loss, inputs, 2, _bad_numbers(rest[1], 10**9))
    if isinstance(other, nn.Module):
        checks["deepcopy"] = lambda: contracts.check_deepcopy(other, *inputs)
        checks["state_dict"] = lambda: contracts.check_state_dict(make, lambda module: _train(module, inputs))
    if compiles:
        checks["compile"] = lambda: contracts.check_compiles(loss, *inputs)
    contracts.run_checks(getattr(loss, "__name__", type(loss).__name__), checks, skip=skip)


def _value_and_gradient(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the loss and its gradient with respect to the logits."""
    logits = inputs[0].clone().requires_grad_()
    value = fresh(loss)(logits, *inputs[1:])
    if value.requires_grad:
        value.sum().backward()
    return value.detach(), logits.grad


def _check_scalar(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    value, gradient = _value_and_gradient(loss, inputs)
    demand(value.ndim == 0, f"the loss has shape {tuple(value.shape)}", "reduce it over the batch")
    demand(finite(value), f"the loss is {value.item()}", "use log_softmax, logsumexp or a clamp")
    demand(gradient is not None, "the logits get no gradient", "do not detach them")
    demand(finite(gradient), "the gradient of the logits is not finite", "clamp before the logarithm or root")


def _check_order(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    with stream(0):
        straight = fresh(loss)(*inputs)
    with stream(0):
        reverse = fresh(loss)(*(x.flip(0) for x in inputs))
    demand(
        near(straight, reverse),
        f"the loss depends on the order of the rows ({straight.item():g} or {reverse.item():g})",
        "keep per-sample state by index, not by place in the batch",
    )


def _check_refuses(
    loss: Callable[..., Tensor], inputs: Sequence[Tensor], place: int, bad: Sequence[tuple[str, Tensor, str]]
) -> None:
    """Put each bad tensor in this place of the inputs; the error must hold the argument's name and the bad value."""
    function: Any = loss.forward if isinstance(loss, nn.Module) else loss
    name = list(inspect.signature(function).parameters)[place]
    for what, value, says in bad:
        arguments = [value if i == place else x for i, x in enumerate(inputs)]
        check_refuses(lambda arguments=arguments: fresh(loss)(*arguments), says=(name, says), what=f"{name} {what}")


def _bad_logits(logits: Tensor) -> list[tuple[str, Tensor, str]]:
    """Return kinds of wrong logits and what an error must tell of each."""
    return [("without classes", logits[:, 0], str((ROWS,))), ("of integers", logits.long(), "int64")]


def _bad_numbers(numbers: Tensor, size: int) -> list[tuple[str, Tensor, str]]:
    """Return kinds of wrong class or sample numbers (right are those below ``size``) and what an error must tell."""
    low, high = numbers.clone(), numbers.clone()
    low[0], high[0] = -1, size
    return [
        ("with a negative number", low, "-1"),
        (f"with the number {size}", high, str(size)),
        ("of floats", numbers.float(), "float32"),
        ("with a row too few", numbers[1:], str(ROWS - 1)),
    ]


def _train(loss: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the losses of three steps of plain gradient descent on the logits and the loss's own parameters."""
    logits = inputs[0].clone().requires_grad_()
    sgd = torch.optim.SGD([logits, *loss.parameters()], lr=1.0)
    values = []
    for _ in range(3):
        value = loss(logits, *inputs[1:])
        sgd.zero_grad()
        value.backward()
        sgd.step()
        values.append(value.detach())
    return values
