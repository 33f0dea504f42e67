"""What the paper proves, computed on digits: each value is by how much an identity is missed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.dynamics import NewtonLinear, RegularizedGaussNewton, Whitening
from torchstone.studies._whitening_runs import Draws, Grid, Part, descend, forward, gaussian_weights, losses

__all__ = ["run_identities"]

LR = 0.1


def run_identities(cell: Cell) -> Outcome:
    """Compute both sides of each identity.

    ``rotation``: outputs from rotated inputs and first weights, against those from the inputs as they are, after
    training; ``turned``, the same if the weights are not rotated along. ``projector``: distance of the second moments'
    eigenvalues from 0 and 1 after whitening training and test data. ``moved``: test pre-activations after training on
    these, against those before; ``fall``, the share of its start at which the training loss ends. ``newton``: outputs
    after one full second-order step of a linear model, against those of the solution nearest to its start;
    ``whitened``: after many shorter ones, against gradient descent on whitened inputs. ``damped``: steps at damping 1,
    against gradient descent. ``network``: a step of the optimiser for networks, on a linear one, against that for
    linear models.
    """
    drawn: Draws = cell.shared()
    train, test = drawn.train, drawn.judged_on()
    rotation, turned = _rotation(cell, train, test)
    whitening = Whitening(rescale=False).fit(torch.cat([train.x, test.x], 1))
    white = whitening(torch.cat([train.x, test.x], 1))[0]
    eigenvalues = torch.linalg.eigvalsh(white @ white.T)
    return Outcome(
        {
            "rotation": rotation,
            "turned": turned,
            "projector": torch.minimum(eigenvalues.abs(), (eigenvalues - 1).abs()).max(),
            **_out_of_reach(cell, train, test),
            **_linear(cell, train.x[0], one_hot(train.y[0], 10).double()),
        }
    )


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _train(cell: Cell, x: Tensor, y: Tensor, first: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Weights before and after full-batch gradient descent."""
    setting: Grid = cell.setting
    start = gaussian_weights([(cell, 0)], (x.shape[-1], *setting.hidden, 10))
    start = start if first is None else [first, *start[1:]]
    everything = torch.arange(x.shape[1], device=x.device).expand(1, setting.steps, -1)
    rate = torch.full((1, 1, 1), LR, dtype=x.dtype, device=x.device)
    return start, descend(x, y, start, everything, rate, batch_norm=False, tick=cell.tick)


def _rotation(cell: Cell, train: Part, test: Part) -> tuple[float, float]:
    """Missed by, and for comparison: what comes of it if the first weights are not rotated along."""
    d = train.x.shape[-1]
    noise = torch.randn(d, d, generator=cell.seeds.generator("noise", "rotation"), dtype=train.x.dtype)
    turn = torch.linalg.qr(noise).Q.to(train.x.device)
    start, end = _train(cell, train.x, train.y)
    _, along = _train(cell, train.x @ turn.T, train.y, start[0] @ turn.T)
    _, alone = _train(cell, train.x @ turn.T, train.y)
    expected = forward(end, test.x, None)[1]
    found, other = (forward(weights, test.x @ turn.T, None)[1] for weights in (along, alone))
    return _largest(found - expected), _largest(other - expected)


def _out_of_reach(cell: Cell, train: Part, test: Part) -> dict[str, float]:
    whitening = Whitening().fit(torch.cat([train.x, test.x], 1))
    x, x_test = whitening(train.x), whitening(test.x)
    start, end = _train(cell, x, train.y)
    first, last = (float(losses(forward(weights, x, None)[1], train.y)) for weights in (start, end))
    return {"moved": _largest(x_test @ (end[0] - start[0]).mT), "fall": last / first}


def _linear(cell: Cell, x: Tensor, y: Tensor) -> dict[str, float]:
    n, d = x.shape
    generator = cell.seeds.generator("init", "linear")
    start = (torch.randn(y.shape[1], d, generator=generator, dtype=x.dtype) / d**0.5).to(x.device)
    newton, gradient = NewtonLinear(x), NewtonLinear(x, damping=1.0)
    nearest = start + (torch.linalg.pinv(x, rtol=1e-5) @ (y - x @ start.T)).T

    whitening = Whitening(rescale=False).fit(x)
    white = whitening(x) * n**0.5
    weight, twin = start, start @ whitening.inverse / n**0.5
    damped, plain = start, start
    rate = 0.5 * float(gradient.moment.trace()) / d / float(torch.linalg.eigvalsh(gradient.moment)[-1])
    c = float(gradient.moment.trace()) / d
    for _ in range(50):
        weight = newton.solve(y, weight, lr=0.1)
        twin = twin - 0.1 * (white @ twin.T - y).T @ white / n
        damped = gradient.solve(y, damped, lr=rate)
        plain = plain - rate / c * (x @ plain.T - y).T @ x / n

    network = nn.Linear(d, y.shape[1], bias=False, dtype=x.dtype, device=x.device)
    network.weight.data.copy_(start)
    RegularizedGaussNewton(network.parameters(), 1.0, 0.1, network, mse_loss).step(lambda: (x, y))
    return {
        "newton": _largest(x @ (newton.solve(y, start) - nearest).T),
        "whitened": _largest(x @ weight.T - white @ twin.T),
        "damped": _largest(damped - plain),
        "network": _largest(network.weight.detach() - NewtonLinear(x, damping=0.1).solve(y, start)),
    }
