"""Second-order steps on digits, stopped early: a linear model, and a small network.

The step with the best accuracy on validation samples is the one that counts, the earliest of several: the question is
what training can reach on its way, not where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.dynamics import NewtonLinear, RegularizedGaussNewton
from torchstone.errors import DivergedError
from torchstone.studies._rivals.kfac import KFAC
from torchstone.studies._whitening_runs import Part, pixels

__all__ = [
    "DAMPINGS",
    "Linear",
    "Network",
    "Parts",
    "draw_parts",
    "run_best_damping",
    "run_best_dampings",
    "run_damped",
    "run_dampeds",
    "run_gauss_newton",
    "run_gradient",
    "run_kfac",
]

DAMPINGS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CLASSES = 10


@dataclass(frozen=True)
class Linear:
    """Training samples by case, and how long the linear model is trained."""

    sizes: Mapping[str, int] = field(default_factory=lambda: {"n40": 40, "n200": 200, "n800": 800})
    validation: int = 300
    test: int = 600
    steps: int = 300


@dataclass(frozen=True)
class Network:
    """Training samples by case, the network, steps of first- and of second-order training, and starts to tune on."""

    sizes: Mapping[str, int] = field(default_factory=lambda: {"n200": 200})
    validation: int = 300
    test: int = 600
    hidden: int = 8
    gradient_steps: int = 4000
    newton_steps: int = 15
    tuning_repeats: int = 3


class Parts(NamedTuple):
    """Training, validation and test samples."""

    train: Part
    validation: Part
    test: Sealed[Part]


def draw_parts(cell: Cell) -> Parts:
    """``shared`` of the two experiments."""
    setting: Linear | Network = cell.setting
    x, y, _ = pixels("digits")
    order = torch.randperm(len(x), generator=cell.seeds.generator("split"))
    sizes = (setting.sizes[cell.case], setting.validation, setting.test)
    train, validation, test = (Part(x[rows].double(), y[rows]) for rows in order[: sum(sizes)].split(sizes))
    return Parts(train, validation, cell.seal(test))


Step = Callable[[Tensor, Tensor], Any]  # one step of training on inputs and targets


# ---------------------------------------------------------------- the linear model


class Path(NamedTuple):
    """Of each problem: the weights at the best step, that step, and its accuracy on the validation samples."""

    weight: Tensor
    step: Tensor
    accuracy: Tensor


def run_damped(cell: Cell, **hyper: Any) -> Outcome:
    """Train a linear model with one damping; see :func:`run_dampeds`."""
    return run_dampeds([cell], [hyper])[0]


def run_dampeds(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Train a linear model on squared error for each cell, with its ``damping`` and ``lr``, all at once.

    ``lr`` is in units of the step that reaches the optimum in the steepest direction: from 0 to 2 steps converge,
    whatever the damping. The outcomes have ``accuracy``, ``best_step`` and ``damping``.
    """
    dampings = [hyper["damping"] for hyper in hypers]
    parts = [cell.shared() for cell in cells]
    path = _paths(cells, parts, dampings, [hyper["lr"] for hyper in hypers])
    return [_linear_outcome(cell, parts[i], path, i, dampings[i]) for i, cell in enumerate(cells)]


def run_best_damping(cell: Cell, **hyper: Any) -> Outcome:
    """Train with all of :data:`DAMPINGS` and keep one; see :func:`run_best_dampings`."""
    return run_best_dampings([cell], [hyper])[0]


def run_best_dampings(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Of all :data:`DAMPINGS` the one with the best validation accuracy; of several the one that got there first."""
    k = len(DAMPINGS)
    parts = [cell.shared() for cell in cells for _ in DAMPINGS]
    rates = [hyper["lr"] for hyper in hypers for _ in DAMPINGS]
    path = _paths([cell for cell in cells for _ in DAMPINGS], parts, list(DAMPINGS) * len(cells), rates)
    found = []
    for i, cell in enumerate(cells):
        own = range(i * k, (i + 1) * k)
        best = max(own, key=lambda j: (float(path.accuracy[j]), -int(path.step[j])))
        found.append(_linear_outcome(cell, parts[best], path, best, DAMPINGS[best - i * k], runs=k))
    return found


def _paths(cells: Sequence[Cell], parts: Sequence[Parts], dampings: Sequence[float], lr: Sequence[float]) -> Path:
    x, y = (torch.stack(part) for part in zip(*(part.train for part in parts), strict=True))
    x_val, y_val = (torch.stack(part) for part in zip(*(part.validation for part in parts), strict=True))
    target = one_hot(y, CLASSES).to(x)
    solver = NewtonLinear(x, damping=torch.tensor(dampings, dtype=x.dtype))
    steepest = torch.linalg.eigvals(solver.preconditioner @ solver.moment).real.amax(-1)
    rates = torch.tensor(lr, dtype=x.dtype) / steepest

    def first_weight(cell: Cell) -> Tensor:
        generator = cell.seeds.generator("init")
        return torch.randn(CLASSES, x.shape[-1], generator=generator, dtype=x.dtype) / x.shape[-1] ** 0.5

    weight = torch.stack([first_weight(cell) for cell in cells])
    best = Path(weight, torch.zeros(len(cells), dtype=torch.int64), torch.full((len(cells),), -1.0, dtype=x.dtype))
    for step in range(cells[0].setting.steps + 1):
        if step:
            weight = solver.solve(target, weight, lr=rates)
            cells[0].tick()
        accuracy = ((x_val @ weight.mT).argmax(-1) == y_val).to(x).mean(1)
        better = accuracy > best.accuracy
        best = Path(
            weight.where(better[:, None, None], best.weight),
            torch.where(better, step, best.step),
            accuracy.where(better, best.accuracy),
        )
    return best


def _linear_outcome(cell: Cell, parts: Parts, path: Path, i: int, damping: float, runs: int = 1) -> Outcome:
    if cell.tuning:
        return Outcome(objective=float(path.accuracy[i]))
    test = parts.test.open()
    accuracy = float(((test.x @ path.weight[i].mT).argmax(-1) == test.y).double().mean())
    values = {"accuracy": accuracy, "best_step": float(path.step[i]), "damping": damping}
    return Outcome(values, cost={"steps": runs * cell.setting.steps})


# ---------------------------------------------------------------- the network


def run_gradient(cell: Cell, *, lr: float) -> Outcome:
    """Gradient descent, all samples in each step."""

    def steps_of(network: nn.Sequential) -> Step:
        optimizer = torch.optim.SGD(network.parameters(), lr)

        def step(x: Tensor, target: Tensor) -> None:
            optimizer.zero_grad()
            mse_loss(network(x), target).backward()
            optimizer.step()

        return step

    return _outcome(cell, steps_of, cell.setting.gradient_steps)


def run_gauss_newton(cell: Cell, *, lr: float, damping: float) -> Outcome:
    """Regularised Gauss-Newton steps, solved exactly."""

    def steps_of(network: nn.Sequential) -> Step:
        optimizer = RegularizedGaussNewton(network.parameters(), lr, damping, network, mse_loss)
        return lambda *batch: optimizer.step(lambda: batch)

    return _outcome(cell, steps_of, cell.setting.newton_steps)


def run_kfac(cell: Cell, *, lr: float, damping: float) -> Outcome:
    """Steps with one preconditioner for each layer, which is a product of two small ones."""
    return _outcome(cell, lambda network: KFAC(network, lr, damping).step, cell.setting.newton_steps)


def _outcome(cell: Cell, steps_of: Callable[[nn.Sequential], Step], steps: int) -> Outcome:
    """Train, keep the best step on validation samples, and score it; while tuning, from several starts."""
    parts: Parts = cell.shared()
    networks = [_network(cell, start) for start in range(cell.setting.tuning_repeats if cell.tuning else 1)]
    try:
        runs = [_trained(network, steps_of(network), parts, steps) for network in networks]
    except DivergedError as problem:
        return Outcome(diverged=str(problem))
    if cell.tuning:
        return Outcome(objective=sum(run.accuracy for run in runs) / len(runs))
    (network,), (run,) = networks, runs
    network.load_state_dict(run.best)
    values = {"best_step": float(run.step), "train_accuracy": run.train_accuracy}
    return Outcome({"accuracy": _right(network, parts.test.open()), **values}, cost={"steps": steps})


def _network(cell: Cell, start: int) -> nn.Sequential:
    """One hidden layer without biases, and a Gaussian start."""
    inside, hidden = cell.shared().train.x.shape[1], cell.setting.hidden
    network = nn.Sequential(
        nn.Linear(inside, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, CLASSES, bias=False)
    ).double()
    generator = cell.seeds.generator("init", start)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) / weight.shape[1] ** 0.5)
    return network


class Run(NamedTuple):
    """The weights at the best step, that step, its accuracy on validation samples, and the last on training samples."""

    best: dict[str, Tensor]
    step: int
    accuracy: float
    train_accuracy: float


def _trained(network: nn.Sequential, step: Step, parts: Parts, steps: int) -> Run:
    target = one_hot(parts.train.y, CLASSES).double()
    best, at, kept = _right(network, parts.validation), 0, _copy(network)
    for number in range(1, steps + 1):
        step(parts.train.x, target)
        found = _right(network, parts.validation)
        if found > best:
            best, at, kept = found, number, _copy(network)
    if not all(weight.isfinite().all() for weight in network.parameters()):
        raise DivergedError("the weights are not finite")
    return Run(kept, at, best, _right(network, parts.train))


@torch.no_grad()
def _right(network: nn.Sequential, part: Part) -> float:
    return float((network(part.x).argmax(-1) == part.y).double().mean())


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
