"""The contracts of an adversarial attack."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone._checks import check_float, check_one_of
from torchstone.testing import contracts
from torchstone.testing.contracts import demand, same

__all__ = ["check_attack"]

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def check_attack(
    make: Callable[[torch.Generator], Attack],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    low: float = 0.0,
    high: float = 1.0,
    random: bool = True,
    require: Sequence[str] = ("Shapes", "Raises", "Source"),
    skip: Collection[str] = (),
) -> None:
    """Check that ``attack(model, x, y)`` keeps its contracts.

    They are ``docstring`` (has the blocks in ``require``), ``like_x`` (shape, dtype and device of ``x``, no graph
    attached), ``ball`` (within ``eps`` of ``x``), ``box`` (within ``low`` and ``high``), ``hurts`` (the mean cross
    entropy does not fall), ``untouched`` (inputs, weights, gradients, modes and buffers of the model stay),
    ``generator`` (if ``random``: all chance comes from it; else: two runs agree), ``contiguity``, ``empty`` (no row:
    no row back or ``ValueError``) and ``device`` (none is hidden).

    Args:
        make: builds the attack from a generator.
        model: maps ``x`` to logits; copies of it are attacked.
        x: clean inputs inside the box.
        y: their classes.
        eps: radius of the ball.
        norm: ``"linf"`` or ``"l2"``, over all but the first dimension.
        low: least input value.
        high: largest input value.
        random: whether the attack draws.
        require: blocks that the docstring must have.
        skip: names of contracts that do not apply.

    Raises:
        AssertionError: with one line for each broken contract.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> x, y = torch.full((3, 4), 0.5), torch.tensor([0, 1, 0])
        >>> check_attack(lambda g: lambda model, x, y: x.clone(), net, x, y, eps=0.1, random=False, skip=["docstring"])
    """
    check_float("eps", eps, 0.0)
    check_one_of("norm", norm, ("linf", "l2"))

    def attacked(*inputs: Tensor) -> Tensor:
        return make(torch.Generator().manual_seed(0))(copy.deepcopy(model), *inputs)

    def chance() -> None:
        if random:
            contracts.check_generator(lambda generator: make(generator)(copy.deepcopy(model), x, y))
        else:
            contracts.check_repeatable(attacked, x, y)

    attack = make(torch.Generator().manual_seed(0))
    checks: dict[str, Callable[[], None]] = {
        "docstring": lambda: contracts.check_docstring(attack, require=require),
        "like_x": lambda: _check_like(attacked(x, y), x),
        "ball": lambda: _check_ball(attacked(x, y), x, eps, norm),
        "box": lambda: _check_box(attacked(x, y), low, high),
        "hurts": lambda: _check_hurts(attacked(x, y), model, x, y),
        "untouched": lambda: _check_untouched(attack, copy.deepcopy(model), x, y),
        "generator": chance,
        "contiguity": lambda: contracts.check_contiguity(attacked, x, y),
        "empty": lambda: contracts.check_empty(attacked, x, y),
        "device": lambda: contracts.check_device_free(attacked, x, y),
    }
    contracts.run_checks(getattr(attack, "__name__", type(attack).__name__), checks, skip=skip)


def _check_like(adversarial: Tensor, x: Tensor) -> None:
    got, expected = ((tuple(t.shape), t.dtype, t.device) for t in (adversarial, x))
    demand(got == expected, f"the result is {got} where x is {expected}", "return a tensor like x")
    demand(not adversarial.requires_grad, "the result carries a graph", "detach it")


def _check_ball(adversarial: Tensor, x: Tensor, eps: float, norm: str) -> None:
    order = torch.inf if norm == "linf" else 2
    radius = float(torch.linalg.vector_norm((adversarial - x).double().flatten(1), order, dim=1).max())
    slack = 1e-6 * max(1.0, float(x.abs().max()))
    demand(radius <= eps + slack, f"a result lies {radius:g} from x, but eps is {eps:g}", "project after the last step")


def _check_box(adversarial: Tensor, low: float, high: float) -> None:
    least, most = float(adversarial.min()), float(adversarial.max())
    demand(
        low <= least and most <= high, f"values span {least:g} to {most:g}, not {low:g} to {high:g}", "clamp at the end"
    )


def _check_hurts(adversarial: Tensor, model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        clean, attacked = (F.cross_entropy(copy.deepcopy(model)(z), y).item() for z in (x, adversarial))
    demand(
        attacked >= clean - 1e-6,
        f"the loss falls from {clean:g} to {attacked:g}",
        "climb the loss, keep the best point",
    )


def _check_untouched(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> None:
    def state() -> list[Tensor]:
        gradients = [torch.zeros(0) if p.grad is None else p.grad for p in model.parameters()]
        modes = [torch.tensor(module.training) for module in model.modules()]
        asks = [torch.tensor(p.requires_grad) for p in model.parameters()]
        return [t.detach().clone() for t in [x, y, *model.state_dict().values(), *gradients, *modes, *asks]]

    before = state()
    attack(model, x, y)
    demand(
        same(before, state()),
        "the attack changes x, y, or the model (weights, buffers, gradients, mode)",
        "clone x, use torch.autograd.grad, and put the model's mode back",
    )
