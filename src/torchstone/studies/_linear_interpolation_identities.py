"""What must hold on every line, whatever the network: identities in float64, on random networks and samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.dynamics import LinearPath, evaluate_stacked, path_metrics
from torchstone.models.seeding import seeded

__all__ = ["identities"]


def identities(cell: Cell) -> Outcome:
    """``run`` of the experiment.

    The outcome has ``parabola``: distance of the curve of a linear model with squared loss from a polynomial of degree
    2; ``convex_gap``: its gap where the end is the minimiser; ``ends``: distance of the losses at 0 and 1 from those of
    the two states; ``restored``: distance of the model from itself before; ``permuted``: change of the curve if the
    hidden units of both ends are permuted; ``permuted_one``: if those of one end are; ``rescaled``: if the weights
    before BatchNorm are tripled and statistics are computed anew; ``stacked``: all points at once against one after
    another.
    """
    g = cell.seeds.generator("noise")
    x, y = torch.randn(40, 5, generator=g).double(), torch.randn(40, 2, generator=g).double()
    alphas = torch.linspace(0, 1, 11)

    def curve(model: nn.Module, start: Any, end: Any, **options: Any) -> Tensor:
        return LinearPath(model, start, end, **options).evaluate(lambda m: F.mse_loss(m(x), y), alphas)

    def largest(difference: Tensor) -> float:
        return float(difference.abs().max())

    with seeded(cell.seeds.generator("init")):
        linear, start, end = _three(lambda: nn.Linear(5, 2))
        net, first, last = _three(lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)))
        normed, early, late = _three(
            lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, eps=1e-30), nn.Linear(7, 2))
        )
    powers = alphas.double()[:, None] ** torch.arange(3)
    losses = curve(linear, start, end)
    parabola = powers @ torch.linalg.lstsq(powers, losses[:, None]).solution
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1).double()], 1), y).solution.mT
    to_best = curve(linear, start, {"weight": best[:, :5], "bias": best[:, 5]})

    before = copy.deepcopy(net.state_dict())
    along = curve(net, first, last)
    restored = max(largest(net.state_dict()[name] - before[name]) for name in before)
    stored = []
    for state in (first, last):
        net.load_state_dict(state)
        stored.append(F.mse_loss(net(x), y).detach())
    order = torch.arange(7).roll(1)
    both, one = curve(net, _permuted(first, order), _permuted(last, order)), curve(net, first, _permuted(last, order))

    options: dict[str, Any] = {"bn": "reestimate", "bn_loader": [x]}
    tripled = [{k: v * 3 if k.startswith("0.") else v for k, v in state.items()} for state in (early, late)]
    anew = curve(normed, early, late, **options)
    together = evaluate_stacked(normed, early, late, alphas, (x, y), criterion=F.mse_loss, **options)
    return Outcome(
        {
            "parabola": largest(losses - parabola[:, 0]),
            "convex_gap": path_metrics(alphas, to_best).gap,
            "ends": largest(along[[0, -1]] - torch.stack(stored)),
            "restored": restored,
            "permuted": largest(both - along),
            "permuted_one": largest(one - along),
            "rescaled": largest(curve(normed, *tripled, **options) - anew),
            "stacked": largest(together - anew),
        }
    )


def _three(make: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """A network and two random states of it, in float64."""
    model, start, end = (make().double() for _ in range(3))
    return model, start.state_dict(), end.state_dict()


def _permuted(state: dict[str, Any], order: Tensor) -> dict[str, Any]:
    """The same function with hidden units in another order."""
    return {**state, "0.weight": state["0.weight"][order], "0.bias": state["0.bias"][order],
            "2.weight": state["2.weight"][:, order]}  # fmt: skip
