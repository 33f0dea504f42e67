"""Each suite passes a sound object and names the contract that a broken one breaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, RandomSampler, Sampler

from torchstone._checks import check_float, check_index, check_labels, check_length, check_ndim
from torchstone.testing import check_attack, check_dataset, check_loss, check_module, check_optimizer, check_sampler


def breaks(contract: str):
    return pytest.raises(AssertionError, match=rf"\n- {contract}: ")


# Modules


class Scale(nn.Module):
    """Multiply by a learnt factor.

    Shapes: like ``x``.
    Raises: ValueError if ``x`` has no batch.
    Source: arithmetic.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != 3:
            raise ValueError(f"x must have shape (n, 3), but has {tuple(x.shape)}")
        return self.dropout(x) * self.factor


class Undocumented(Scale):
    __doc__ = "Multiply by a learnt factor."


class IdleParameter(Scale):
    __doc__ = Scale.__doc__

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(1))


class BadGradient(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.factor - 1).abs().sqrt()


class Unrepeatable(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random()


class InPlace(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.add_(1))


class Strided(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.as_strided((4, 3), (3, 1)) if len(x) else x)


class HiddenState(Scale):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Unshared(Scale):
    def __deepcopy__(self, memo: dict[int, object]) -> Unshared:
        return self


class EmptyCrash(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x[0]


class HalfNaN(Scale):
    def forward(self, x: Tensor) -> Tensor:
        exact = (torch.full_like(x, 1 + 2**-9) @ torch.eye(3, device=x.device)).float()
        return super().forward(x) * (exact - 1 - 2**-10).log()


class DefaultDevice(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(3)


class Lenient(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor[: x.shape[-1]]


class GraphBreak(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
module_suite = partial(check_module, inputs=[X], refuses=[([X[:, :2]], ("x", "(4, 2)", "3"))])


@pytest.mark.untyped
def test_module_that_keeps_its_contracts():
    module_suite(Scale, compiles=True)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("contract", "kind"),
    [
        ("docstring", Undocumented),
        ("gradients", IdleParameter),
        ("gradients", BadGradient),
        ("repeatable", Unrepeatable),
        ("repeatable", InPlace),
        ("contiguity", Strided),
        ("deepcopy", Unshared),
        ("state_dict", HiddenState),
        ("empty", EmptyCrash),
        ("autocast", HalfNaN),
        ("device", DefaultDevice),
        ("refuses", Lenient),
        ("compile", GraphBreak),
    ],
)
def test_module_that_breaks_one(contract, kind):
    with breaks(contract):
        module_suite(kind, compiles=contract == "compile")


# Losses


class Memory(nn.Module):
    """Cross entropy, weighted by what each sample's loss was before.

    Shapes: ``logits`` (n, c); ``target``, ``index`` (n,); returns a scalar.
    Raises: TypeError, ValueError for a wrong dtype, shape or value.
    Source: made up.
    """

    past: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("past", torch.ones(12))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_ndim("logits", logits, 2, "(n, c)")
        if not logits.is_floating_point():
            raise TypeError(f"logits must be floating point, but have dtype {logits.dtype}")
        check_labels("target", target, logits.shape[1])
        check_length("target", target, len(logits), "logits")
        check_index("index", index, len(self.past))
        check_length("index", index, len(logits), "logits")
        return self.reduce(F.cross_entropy(logits.float(), target, reduction="none"), index)

    def reduce(self, loss: Tensor, index: Tensor) -> Tensor:
        weight = self.past[index]
        self.past[index] = loss.detach()
        return (loss * weight).sum() / max(len(loss), 1)


class Rows(Memory):
    def reduce(self, loss, index):
        return loss


class NoGradient(Memory):
    def reduce(self, loss, index):
        return loss.detach().sum()


class Overflow(Memory):
    def forward(self, logits, target, index):
        return super().forward(logits, target, index) + logits.exp().sum()


class ByPlace(Memory):
    def reduce(self, loss, index):
        return (loss * torch.arange(len(loss), device=loss.device)).sum()


class NaNWhenEmpty(Memory):
    def reduce(self, loss, index):
        return loss.mean()


class AnyLogits(Memory):
    def forward(self, logits, target, index):
        check_labels("target", target, logits.shape[-1])
        check_length("target", target, len(logits), "logits")
        check_index("index", index, 12)
        check_length("index", index, len(logits), "logits")
        return (logits.float() * logits.shape[-1]).sum()


class AnyTarget(Memory):
    def forward(self, logits, target, index):
        return super().forward(logits, target.long().clamp(0, 2)[: len(logits)], index)


class AnyIndex(Memory):
    def forward(self, logits, target, index):
        return super().forward(logits, target, index.long().clamp(0, 11))


class HiddenPast(Memory):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.past = torch.ones(12)


loss_suite = partial(check_loss, num_classes=3, with_index=True)


def test_loss_that_keeps_its_contracts():
    loss_suite(Memory)


@pytest.mark.untyped
def test_plain_function_as_loss():
    def absolute(logits: Tensor, target: Tensor) -> Tensor:
        """Compute one minus the probability of the label."""
        check_ndim("logits", logits, 2, "(n, c)")
        if not logits.is_floating_point():
            raise TypeError(f"logits must be floating point, but have dtype {logits.dtype}")
        if not torch.compiler.is_compiling():
            check_labels("target", target, logits.shape[1])
        check_length("target", target, len(logits), "logits")
        return (1 - logits.softmax(1).gather(1, target[:, None])).sum()

    check_loss(lambda: absolute, 3, require=(), compiles=True)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("contract", "kind"),
    [
        ("scalar", Rows),
        ("scalar", NoGradient),
        ("extreme", Overflow),
        ("order", ByPlace),
        ("empty", NaNWhenEmpty),
        ("logits", AnyLogits),
        ("target", AnyTarget),
        ("index", AnyIndex),
        ("state_dict", HiddenPast),
        ("compile", Memory),
    ],
)
def test_loss_that_breaks_one(contract, kind):
    with breaks(contract):
        loss_suite(kind, compiles=contract == "compile", skip=["docstring"])


# Optimisers


class Momentum(torch.optim.Optimizer):
    """Gradient descent with momentum.

    Raises: ValueError if ``lr`` is negative.
    Source: Polyak 1964.
    """

    def __init__(self, params, lr: float = 0.05) -> None:
        super().__init__(params, {"lr": check_float("lr", lr, 0.0)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, group["lr"])
        return loss

    def update(self, p: Tensor, gradient: Tensor, lr: float) -> None:
        velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
        velocity.mul_(0.9).add_(gradient)
        p.sub_(lr * velocity)


class Ascent(Momentum):
    def update(self, p, gradient, lr):
        super().update(p, -gradient, lr)


class Dice(Momentum):
    def update(self, p, gradient, lr):
        super().update(p, gradient * random.random(), lr)


class HiddenVelocity(Momentum):
    def update(self, p, gradient, lr):
        velocity = self.__dict__.setdefault("hidden", {}).setdefault(id(p), torch.zeros_like(p))
        velocity.mul_(0.9).add_(gradient)
        p.sub_(lr * velocity)


class Decay(Momentum):
    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - 0.1 * group["lr"])
        return loss


class Normalised(Momentum):
    def update(self, p, gradient, lr):
        super().update(p, gradient / gradient.norm(), lr)


class Replaces(Momentum):
    def update(self, p, gradient, lr):
        p.data = (p - lr * gradient).clone()


class Flat(Momentum):
    def update(self, p, gradient, lr):
        p.as_strided((p.numel(),), (1,)).sub_(lr * gradient.reshape(-1))


class FirstGroup(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                self.update(p, p.grad, self.param_groups[0]["lr"])
        return loss


class FixedRate(Momentum):
    def update(self, p, gradient, lr):
        super().update(p, gradient, self.defaults["lr"])


class NoClosure(Momentum):
    def step(self, closure=None):
        super().step(closure)


class AnyRate(Momentum):
    def __init__(self, params, lr: float = 0.05) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": lr})


optimizer_suite = partial(check_optimizer, refuses={"lr": -1.0}, steps=30)


def test_optimizer_that_keeps_its_contracts():
    optimizer_suite(Momentum)


@pytest.mark.parametrize(
    ("contract", "kind"),
    [
        ("docstring", AnyRate),
        ("minimizes", Ascent),
        ("repeatable", Dice),
        ("state_dict", HiddenVelocity),
        ("no_gradient", Decay),
        ("zero_gradient", Normalised),
        ("in_place", Replaces),
        ("contiguity", Flat),
        ("groups", FirstGroup),
        ("groups", FixedRate),
        ("closure", NoClosure),
        ("refuses", AnyRate),
    ],
)
def test_optimizer_that_breaks_one(contract, kind):
    with breaks(contract):
        optimizer_suite(kind)


# Data


class Indexed:
    """Numbered rows.

    Raises: IndexError past the end.
    """

    size = 10

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int):
        if i >= self.size:
            raise IndexError(i)
        return torch.full((2,), float(i)), i


def variant(**members: object) -> Indexed:
    return type("Variant", (Indexed,), {"__doc__": Indexed.__doc__, **members})()


def test_dataset_that_keeps_its_contracts():
    check_dataset(Indexed(), with_index=True)


@pytest.mark.parametrize(
    ("contract", "dataset"),
    [
        ("docstring", variant(__doc__="Rows.")),
        ("length", variant(__getitem__=lambda self, i: (torch.zeros(2), i))),
        ("length", variant(__getitem__=lambda self, i: {}[i])),
        ("repeatable", variant(__getitem__=lambda self, i: (random.random(), i))),
        ("collates", variant(__getitem__=lambda self, i: (torch.zeros(i + 1), i))),
        ("loader", variant(__getitem__=lambda self, i: {}[i])),
        ("index", variant(__getitem__=lambda self, i: (torch.zeros(2), 3))),
        ("index", variant(__getitem__=lambda self, i: (torch.zeros(2), float(i)))),
    ],
)
def test_dataset_that_breaks_one(contract, dataset):
    with breaks(contract):
        check_dataset(dataset, with_index=True)


class Shuffle(Sampler):
    """Places in random order.

    Raises: nothing.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 20

    def __iter__(self):
        return iter(torch.randperm(20, generator=self.generator).tolist())


def test_samplers_that_keep_their_contracts():
    check_sampler(Shuffle, 20)
    check_sampler(
        lambda g: BatchSampler(RandomSampler(range(20), generator=g), 3, False), 20, require=(), skip=["length"]
    )


@pytest.mark.parametrize(
    ("contract", "members"),
    [
        ("docstring", {"__doc__": "Places."}),
        ("range", {"__iter__": lambda self: iter(range(1, 21))}),
        ("range", {"__iter__": lambda self: iter(torch.randperm(20, generator=self.generator))}),
        ("length", {"__len__": lambda self: 19}),
        ("generator", {"__iter__": lambda self: iter(torch.randperm(20).tolist())}),
        (
            "epochs",
            {"__iter__": lambda self: iter(torch.randperm(20, generator=self.generator.manual_seed(0)).tolist())},
        ),
    ],
)
def test_sampler_that_breaks_one(contract, members):
    kind = type("Variant", (Shuffle,), {"__doc__": Shuffle.__doc__, **members})
    with breaks(contract):
        check_sampler(kind, 20)


# Attacks


class Signed:
    """One signed gradient step from a random start.

    Shapes: like ``x``.
    Raises: nothing.
    Source: Wong et al. 2020.
    """

    step, clip = 0.05, True

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def start(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.rand(x.shape, generator=self.generator, device=self.generator.device).to(x.device)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        z = self.start(x).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        moved = (z + self.step * gradient.sign()).detach()
        moved = x + (moved - x).clamp(-0.1, 0.1)
        return moved.clamp(0, 1) if self.clip else moved


class Attached(Signed):
    def __call__(self, model, x, y):
        return super().__call__(model, x, y).requires_grad_()


class Far(Signed):
    def __call__(self, model, x, y):
        return (super().__call__(model, x, y) + 0.2).clamp(0, 1)


class Unclipped(Signed):
    clip = False


class Helps(Signed):
    step = -0.05


class Trains(Signed):
    def __call__(self, model, x, y):
        model.train()
        return super().__call__(model, x, y)


class Accumulates(Signed):
    def __call__(self, model, x, y):
        F.cross_entropy(model(x), y).backward()
        return super().__call__(model, x, y)


class GlobalChance(Signed):
    def start(self, x):
        return x + 0.01 * torch.rand(x.shape, device=x.device)


class Constant(Signed):
    def start(self, x):
        return x.clone()


class Crash(Signed):
    def start(self, x):
        return super().start(x) + 0 * x[0]


class OnDefaultDevice(Signed):
    def start(self, x):
        return super().start(x) + torch.zeros(4)


class StridedStart(Signed):
    def start(self, x):
        return super().start(x.as_strided(x.shape, (4, 1)))


def attack_suite(kind: Callable[[torch.Generator], Signed]) -> None:
    draws = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3)
    nn.init.normal_(linear.weight, generator=draws)
    model = nn.Sequential(linear, nn.Dropout(0.0)).eval()
    x = torch.rand(6, 4, generator=draws).round(decimals=1)  # some values at the edge of the box
    check_attack(kind, model, x, torch.arange(6) % 3, eps=0.1)


def test_attack_that_keeps_its_contracts():
    attack_suite(Signed)


@pytest.mark.parametrize(
    ("contract", "kind"),
    [
        ("docstring", Attached),
        ("like_x", Attached),
        ("ball", Far),
        ("box", Unclipped),
        ("hurts", Helps),
        ("untouched", Trains),
        ("untouched", Accumulates),
        ("generator", GlobalChance),
        ("generator", Constant),
        ("contiguity", StridedStart),
        ("empty", Crash),
        ("device", OnDefaultDevice),
    ],
)
def test_attack_that_breaks_one(contract, kind):
    kind.__doc__ = None if contract == "docstring" else Signed.__doc__
    with breaks(contract):
        attack_suite(kind)
