"""The contracts of an optimiser."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchstone._checks import check_float
from torchstone.testing import contracts
from torchstone.testing.contracts import check_refuses, demand, finite, near, same, stream

__all__ = ["check_optimizer"]

SHAPES = ((), (3,), (2, 4))


def check_optimizer(
    make: Callable[..., Optimizer],
    *,
    lowers: float = 0.5,
    steps: int = 200,
    refuses: Mapping[str, Any] | None = None,
    require: Sequence[str] = ("Raises", "Source"),
    skip: Collection[str] = (),
) -> None:
    """Check that an optimiser keeps its contracts.

    They are ``docstring`` (has the blocks in ``require``), ``minimizes`` (a sum of squares falls below ``lowers`` times
    its start within ``steps``), ``repeatable`` (same seed, same bits), ``state_dict`` (resumed equals never stopped),
    ``no_gradient`` (a parameter without one is left alone), ``zero_gradient`` (stays finite), ``in_place`` (the
    parameters remain the same objects, in shape, dtype and memory), ``contiguity`` (parameters that are views move the
    same), ``groups`` (a group added later moves; ``lr`` is read from the group, so that schedulers work), ``closure``
    (is evaluated with gradients and its loss returned) and ``refuses`` (bad options raise and say why).

    Args:
        make: builds the optimiser from parameters; with ``refuses``, from further keyword arguments as well.
        lowers: see above, in (0, 1).
        steps: see above.
        refuses: bad values by option name, for instance ``{"lr": -1.0}``; each error must name option and value.
        require: blocks that the docstring must have.
        skip: names of contracts that do not apply.

    Raises:
        AssertionError: with one line for each broken contract.

    Example:
        >>> from functools import partial
        >>> check_optimizer(partial(torch.optim.Adam, lr=0.1), require=())
    """
    check_float("lowers", lowers, 0.0, 1.0, open_low=True, open_high=True)
    kind = type(make(_parameters()))

    def refusals() -> None:
        for option, value in (refuses or {}).items():
            what = f"the option {option}={value!r}"
            check_refuses(lambda bad={option: value}: make(_parameters(), **bad), says=(option, str(value)), what=what)

    checks: dict[str, Callable[[], None]] = {
        "docstring": lambda: contracts.check_docstring(kind, require=require),
        "minimizes": lambda: _check_minimizes(make, lowers, steps),
        "repeatable": lambda: contracts.check_repeatable(lambda: _after(make, _parameters())),
        "state_dict": lambda: _check_state_dict(make),
        "no_gradient": lambda: _check_no_gradient(make),
        "zero_gradient": lambda: _check_zero_gradient(make),
        "in_place": lambda: _check_in_place(make),
        "contiguity": lambda: _check_contiguity(make),
        "groups": lambda: _check_groups(make),
        "closure": lambda: _check_closure(make),
        "refuses": refusals,
    }
    contracts.run_checks(kind.__name__, checks, skip=skip)


def _parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Return a scalar, a vector and a matrix with entries around 2."""
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter(2 + torch.rand(shape, generator=draws, dtype=dtype)) for shape in SHAPES]


def _objective(parameters: Sequence[Tensor]) -> Tensor:
    """Return half the weighted sum of squares; the weights differ between tensors."""
    return torch.stack([weight * p.square().sum() / 2 for weight, p in enumerate(parameters, 1)]).sum()


def _step(optimizer: Optimizer, parameters: Sequence[Tensor], times: int) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        _objective(parameters).backward()
        optimizer.step()


def _after(make: Callable[..., Optimizer], parameters: Sequence[nn.Parameter], times: int = 3) -> list[Tensor]:
    """Return copies of the parameters after so many steps."""
    _step(make(parameters), parameters, times)
    return [p.detach().clone() for p in parameters]


def _check_minimizes(make: Callable[..., Optimizer], lowers: float, steps: int) -> None:
    parameters = _parameters()
    start = _objective(parameters).item()
    with stream(0):
        _step(make(parameters), parameters, steps)
    end = _objective(parameters).item()
    demand(end < lowers * start, f"a sum of squares went from {start:g} to {end:g} in {steps} steps", "check the sign")


def _check_state_dict(make: Callable[..., Optimizer]) -> None:
    straight = _parameters()
    first = make(straight)
    with stream(0):
        _step(first, straight, 3)
    resumed = [nn.Parameter(p.detach().clone()) for p in straight]
    second = make(resumed)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for optimizer, parameters in ((first, straight), (second, resumed)):
        with stream(1):
            _step(optimizer, parameters, 3)
    demand(
        same(straight, resumed),
        "a run resumed from state_dict() gives other parameters",
        "keep all state in self.state, a random generator's included",
    )


def _check_no_gradient(make: Callable[..., Optimizer]) -> None:
    parameters = _parameters()
    idle = parameters[1].detach().clone()
    optimizer = make(parameters)
    _step(optimizer, [parameters[0], parameters[2]], 2)
    demand(torch.equal(idle, parameters[1]), "a parameter without gradient was changed", "skip it if p.grad is None")


def _check_zero_gradient(make: Callable[..., Optimizer]) -> None:
    parameters = _parameters()
    optimizer = make(parameters)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    demand(finite(parameters), "a gradient of zero gives a parameter that is not finite", "add eps to the denominator")


def _check_in_place(make: Callable[..., Optimizer]) -> None:
    for dtype in (torch.float32, torch.float64):
        parameters = _parameters(dtype)
        before = [(p.data_ptr(), p.shape, p.dtype) for p in parameters]
        optimizer = make(parameters)
        _step(optimizer, parameters, 2)
        after = [(p.data_ptr(), p.shape, p.dtype) for p in parameters]
        mend = "update with in-place operations and keep state in the parameter's dtype"
        demand(before == after, f"a {dtype} parameter was replaced or changed its shape or dtype", mend)
        ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
        demand(ours == {id(p) for p in parameters}, "the groups hold other objects than the parameters", mend)


def _check_contiguity(make: Callable[..., Optimizer]) -> None:
    packed = _parameters()
    spread = [nn.Parameter(torch.stack([p.detach(), p.detach()], -1)[..., 0]) for p in packed]
    with stream(0):
        expected = _after(make, packed)
    with stream(0):
        got = _after(make, spread)
    demand(near(expected, got), "a non-contiguous parameter moves differently", "use reshape instead of view")


def _check_groups(make: Callable[..., Optimizer]) -> None:
    first, second, third = _parameters()
    optimizer = make([first])
    optimizer.add_param_group({"params": [second]})
    optimizer.add_param_group({"params": [third]})
    frozen = third.detach().clone()
    if "lr" in optimizer.defaults:
        optimizer.param_groups[2]["lr"] = 0.0
    start = second.detach().clone()
    _step(optimizer, [first, second, third], 2)
    demand(not torch.equal(start, second), "a parameter group added later is not trained", "loop over param_groups")
    if "lr" in optimizer.defaults:
        mend = "read lr from the group at each step; schedulers write it there"
        demand(torch.equal(frozen, third), "a group whose lr was set to 0 still moves", mend)


def _check_closure(make: Callable[..., Optimizer]) -> None:
    parameters = _parameters()
    optimizer = make(parameters)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = _objective(parameters)
        loss.backward()
        return loss

    expected = _objective(parameters).item()
    got: Any = optimizer.step(closure)
    demand(
        got is not None and float(torch.as_tensor(got).detach()) == expected,
        f"step(closure) returns {got} where the closure's loss is {expected:g}",
        "evaluate the closure under torch.enable_grad() before the update and return what it returns",
    )
