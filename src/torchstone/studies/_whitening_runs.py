"""Small networks on whitened pixels: what is drawn in a cell, and training many of them at once.

A cell holds several independent draws of training and test samples (``repeats``), each with its own weights and order
of batches, so that accuracy on few test samples is not all chance. They, and the replicates that share a pass, are one
leading axis of all tensors: one decomposition whitens them all, and ``bmm`` trains them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell, Sealed
from torchstone.data import load
from torchstone.dynamics import Whitening, information_fraction
from torchstone.dynamics.whitening import EPS, spectrum

__all__ = [
    "Draws",
    "Grid",
    "Part",
    "Size",
    "descend",
    "draw",
    "forward",
    "gaussian_weights",
    "losses",
    "pixels",
    "run_network",
    "run_networks",
]


@dataclass(frozen=True)
class Size:
    """``n`` training and ``m`` test samples, drawn ``repeats`` times in each replicate."""

    n: int
    m: int
    repeats: int = 1


@dataclass(frozen=True)
class Grid:
    """The data, the sizes of the cases, and the training.

    ``others`` samples, neither training nor test, stand for the distribution; where fewer are left, as many as there
    are. While an arm is tuned there are ``tuning_repeats`` draws: the rate that is best on one draw may lie at the edge
    of stability, and fail on the next.
    """

    data: str = "digits"
    sizes: Mapping[str, Size] = field(default_factory=dict)
    hidden: tuple[int, ...] = (128,)
    steps: int = 500
    batch_size: int = 100
    others: int = 800
    tuning_repeats: int = 8


Transform = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """Inputs (repeats, n, d) and labels (repeats, n)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Draws:
    """What is drawn in a cell; ``validation``, as large as the test part, takes its place while an arm is tuned."""

    train: Part
    test: Sealed[Part]
    validation: Part | None
    others: Tensor
    repeats: int

    def judged_on(self) -> Part:
        """The samples that a run is scored on."""
        return self.test.open() if self.validation is None else self.validation


@cache
def pixels(name: str) -> tuple[Tensor, Tensor, int]:
    """All samples of a data set, its official test part among them: the pixels that vary, labels, number of classes."""
    data = load(name)
    parts = [data] if data.test is None else [data, data.test]
    x = torch.cat([part.x.flatten(1) for part in parts])
    varies = x.amax(0) > x.amin(0)
    return x[:, varies], torch.cat([part.y for part in parts]), data.num_classes


def draw(cell: Cell) -> Draws:
    """``shared`` of an experiment: random samples, without replacement within a repeat."""
    setting: Grid = cell.setting
    size = setting.sizes[cell.case]
    x, y, _ = pixels(setting.data)
    repeats = setting.tuning_repeats if cell.tuning else size.repeats
    orders = [torch.randperm(len(x), generator=cell.seeds.generator("split", repeat)) for repeat in range(repeats)]
    order = torch.stack(orders)
    used = size.n + size.m * (1 + cell.tuning)
    if used > len(x):
        raise ValueError(f"case {cell.case!r} needs {used} samples, but {setting.data} has {len(x)}")

    def part(start: int, stop: int) -> Part:
        rows = order[:, start:stop]
        return Part(x[rows].double().to(cell.device), y[rows].to(cell.device))

    return Draws(
        part(0, size.n),
        cell.seal(part(size.n, size.n + size.m)),
        part(size.n + size.m, used) if cell.tuning else None,
        part(max(used, len(x) - setting.others), len(x)).x,
        repeats,
    )


def run_network(cell: Cell, **hyper: Any) -> Outcome:
    """Train on inputs that are transformed first; see :func:`run_networks`."""
    return run_networks([cell], [hyper])[0]


def run_networks(cells: Sequence[Cell], hypers: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Train a network for each cell, all in one pass; ``hypers`` have ``inputs``, ``lr`` and ``batch_norm``.

    The outcomes have ``accuracy`` and ``train_accuracy`` and ``train_loss`` after the last step; ``information``, the
    information fraction; ``moved``, by how much training changed a test pre-activation of the first layer at most
    (over the repeats whose samples are linearly independent; NaN if none are).
    """
    inputs, batch_norm = hypers[0]["inputs"], hypers[0]["batch_norm"]
    draws: list[Draws] = [cell.shared() for cell in cells]
    raw, y = (torch.cat(parts) for parts in zip(*(drawn.train for drawn in draws), strict=True))
    raw_test, y_test = (torch.cat(parts) for parts in zip(*(drawn.judged_on() for drawn in draws), strict=True))
    others = torch.cat([drawn.others for drawn in draws])
    transform = TRANSFORMS[inputs](raw, raw_test, others)
    x, x_test = transform(raw), transform(raw_test)

    setting: Grid = cells[0].setting
    classes = pixels(setting.data)[2]
    repeats = [(cell, repeat) for cell, drawn in zip(cells, draws, strict=True) for repeat in range(drawn.repeats)]
    start = gaussian_weights(repeats, (x.shape[-1], *setting.hidden, classes))
    batches = _order(repeats, x.shape[1], setting).to(x.device)
    lr = [hyper["lr"] for hyper, drawn in zip(hypers, draws, strict=True) for _ in range(drawn.repeats)]
    rates = torch.tensor(lr, dtype=x.dtype, device=x.device)[:, None, None]
    end = descend(x, y, start, batches, rates, batch_norm=batch_norm, tick=cells[0].tick)

    with torch.no_grad():
        outputs, test_outputs = (forward(end, v, x if batch_norm else None)[1] for v in (x, x_test))
        values = {
            "accuracy": _accuracy(test_outputs, y_test),
            "train_accuracy": _accuracy(outputs, y),
            "train_loss": losses(outputs, y),
            "moved": (x_test @ (end[0] - start[0]).mT).abs().amax((1, 2)),
            "information": information_fraction(raw, raw_test, transform),
        }
    independent = _independent(raw, raw_test)
    values["moved"] = values["moved"].where(independent, torch.nan)
    split = {name: value.cpu().split([drawn.repeats for drawn in draws]) for name, value in values.items()}
    cost = {"steps": setting.steps, "forwards": setting.steps * batches.shape[-1]}
    return [
        _outcome({name: value[i] for name, value in split.items()}, cost, cell.tuning) for i, cell in enumerate(cells)
    ]


def _outcome(values: Mapping[str, Tensor], cost: Mapping[str, float], tuning: bool) -> Outcome:
    if not values["train_loss"].isfinite().all():
        return Outcome(diverged="the training loss is not finite")
    if tuning:
        return Outcome(objective=float(values["accuracy"].mean()))
    means = {name: float(value.mean()) for name, value in values.items() if name != "moved"}
    moved = values["moved"][~values["moved"].isnan()]
    return Outcome({**means, "moved": float(moved.max()) if len(moved) else float("nan")}, cost=cost)


# ---------------------------------------------------------------- inputs


def _raw(x: Tensor, x_test: Tensor, others: Tensor) -> Transform:
    return torch.clone


def _train(x: Tensor, x_test: Tensor, others: Tensor) -> Transform:
    return Whitening(fit="train").fit(x)


def _full(x: Tensor, x_test: Tensor, others: Tensor) -> Transform:
    # As fit="full", without its warning: that test samples can get out of reach is what is studied.
    return Whitening(fit="train").fit(torch.cat([x, x_test], 1))


def _distribution(x: Tensor, x_test: Tensor, others: Tensor) -> Transform:
    return Whitening(fit="distribution").fit(others)


def _diagonal(x: Tensor, x_test: Tensor, others: Tensor) -> Transform:
    """Each pixel over its own root mean square in the training samples; pixels that are dark there are dropped."""
    square = x.square().mean(1, keepdim=True)
    scale = torch.where(square > EPS * square.amax(2, keepdim=True), square.rsqrt(), 0)
    same_norm = (square.sum(2, keepdim=True) / (scale > 0).sum(2, keepdim=True)).sqrt()
    return (scale * same_norm).mul


TRANSFORMS = {"raw": _raw, "train": _train, "full": _full, "distribution": _distribution, "diagonal": _diagonal}


def _independent(x: Tensor, x_test: Tensor) -> Tensor:
    """Whether all training and test samples together are linearly independent: by rank, not by shape."""
    samples = torch.cat([x, x_test], 1)
    if samples.shape[1] > samples.shape[2]:
        return torch.zeros(len(samples), dtype=torch.bool, device=x.device)
    return spectrum(samples @ samples.mT)[2].all(1)


# ---------------------------------------------------------------- training


def gaussian_weights(repeats: Sequence[tuple[Cell, int]], widths: Sequence[int]) -> list[Tensor]:
    """A Gaussian start, whose law no rotation changes: N(0, 1 / fan_in), no biases."""
    layers: list[list[Tensor]] = [[] for _ in widths[1:]]
    for cell, repeat in repeats:
        generator = cell.seeds.generator("init", repeat)
        for layer, inside, outside in zip(layers, widths, widths[1:], strict=False):
            layer.append(torch.randn(outside, inside, generator=generator, dtype=torch.float64) / inside**0.5)
    return [torch.stack(layer).to(repeats[0][0].device) for layer in layers]


def _order(repeats: Sequence[tuple[Cell, int]], n: int, setting: Grid) -> Tensor:
    """Sample numbers (repeats, steps, batch): each epoch a new order; all samples at once if they are few."""
    if n <= setting.batch_size:
        return torch.arange(n).expand(len(repeats), setting.steps, n)
    needed = setting.steps * setting.batch_size
    found = []
    for cell, repeat in repeats:
        generator = cell.seeds.generator("order", repeat)
        epochs = [torch.randperm(n, generator=generator) for _ in range(-(-needed // n))]
        found.append(torch.cat(epochs)[:needed].view(setting.steps, setting.batch_size))
    return torch.stack(found)


def descend(
    x: Tensor,
    y: Tensor,
    start: list[Tensor],
    batches: Tensor,
    lr: Tensor,
    *,
    batch_norm: bool,
    tick: Callable[[], None],
) -> list[Tensor]:
    """Plain stochastic gradient descent on cross entropy, each network with its own learning rate and batches."""
    weights = [weight.clone().requires_grad_() for weight in start]
    place = torch.arange(len(x), device=x.device)[:, None]
    for step in range(batches.shape[1]):
        rows = batches[:, step]
        batch = x[place, rows]
        outputs = forward(weights, batch, batch if batch_norm else None)[1]
        gradients = torch.autograd.grad(losses(outputs, y[place, rows]).sum(), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(lr * gradient)
        tick()
    return [weight.detach() for weight in weights]


def forward(weights: Sequence[Tensor], x: Tensor, norm_by: Tensor | None) -> tuple[Tensor, Tensor]:
    """First pre-activations and outputs; with ``norm_by`` the former normalised by their statistics on these inputs."""
    first = x @ weights[0].mT
    hidden = first
    if norm_by is not None:
        over = norm_by @ weights[0].mT
        hidden = (first - over.mean(1, keepdim=True)) / (over.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    for weight in weights[1:]:
        hidden = hidden.relu() @ weight.mT
    return first, hidden


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of each network."""
    return cross_entropy(outputs.mT, y, reduction="none").mean(1)


def _accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.argmax(-1) == y).double().mean(1)
