from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, OneCycleLR

from torchstone.testing import check_optimizer
from torchstone.training.stacked import SGD, AdamW, clip_grad_norm_, global_norm, per_seed

S = 3
SHAPES = ((4,), (2, 3), ())


def tensors(seed: int, seeds: int = S) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(seeds, *shape, dtype=torch.double, generator=stream) for shape in SHAPES]


def move(make, start: list[torch.Tensor], grads: list[list[torch.Tensor]], schedule=None) -> list[torch.Tensor]:
    """Where ``start`` ends after a step along each of ``grads``."""
    params = [torch.nn.Parameter(t.clone()) for t in start]
    optimizer = make(params)
    scheduler = schedule(optimizer) if schedule else None
    for each in grads:
        for p, g in zip(params, each, strict=True):
            p.grad = g.clone()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [p.detach() for p in params]


def hyper(options: dict[str, Any], s: int) -> dict[str, Any]:
    """The hyper-parameters of one seed."""

    def pick(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(pick(each) for each in value)
        return value[s] if isinstance(value, list) else value

    return {name: pick(value) for name, value in options.items()}


CASES = [
    (SGD, torch.optim.SGD, {"lr": 0.1}),
    (SGD, torch.optim.SGD, {"lr": [0.1, 0.2, 0.0]}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": [0.1, 0.2, 0.3], "momentum": [0.9, 0.0, 0.5], "weight_decay": [0.0, 0.1, 0.2]}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": [0.9, 0.0, 0.5], "dampening": [0.1, 0.2, 0.0]}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": [0.9, 0.0, 0.5], "dampening": 0.4}),
    (SGD, torch.optim.SGD, {"lr": [0.1, 0.2, 0.3], "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    (AdamW, torch.optim.AdamW, {"lr": 0.1}),
    (AdamW, torch.optim.AdamW, {"lr": [0.1, 0.2, 0.3], "weight_decay": [0.0, 0.1, 1.0], "eps": [1e-8, 1e-3, 1.0]}),
    (AdamW, torch.optim.AdamW, {"lr": 0.1, "betas": ([0.9, 0.5, 0.0], [0.9, 0.99, 0.999])}),
    (partial(AdamW, decoupled=False), torch.optim.Adam, {"lr": [0.1, 0.2, 0.3], "weight_decay": [0.0, 0.1, 1.0]}),
    (partial(AdamW, decoupled=False), torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.5, "betas": (0.8, [0.9] * 3)}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_each_seed_moves_as_under_torchs_optimiser_with_its_own_hyper_parameters(ours, theirs, options):
    start, grads = tensors(0), [tensors(i) for i in range(1, 6)]
    got = move(partial(ours, **options), start, grads)
    for s in range(S):
        alone = move(partial(theirs, **hyper(options, s)), [t[s] for t in start], [[g[s] for g in e] for e in grads])
        for a, b in zip(got, alone, strict=True):
            torch.testing.assert_close(a[s], b, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: ExponentialLR(o, 0.7),
        lambda o: CosineAnnealingLR(o, 5),
    ],
)
def test_schedulers_scale_all_rates(schedule):
    start, grads, rates = tensors(0), [tensors(i) for i in range(1, 6)], [0.1, 0.2, 0.3]
    got = move(partial(SGD, lr=rates), start, grads, schedule)
    for s, rate in enumerate(rates):
        parts = [t[s] for t in start], [[g[s] for g in e] for e in grads]
        for a, b in zip(got, move(partial(torch.optim.SGD, lr=rate), *parts, schedule), strict=True):
            torch.testing.assert_close(a[s], b, rtol=0, atol=1e-13)


def test_a_scheduler_with_rates_of_its_own_sets_a_number():
    def schedule(optimizer: torch.optim.Optimizer) -> OneCycleLR:
        return OneCycleLR(optimizer, 0.1, total_steps=9)

    start, grads = tensors(0), [tensors(i) for i in range(1, 6)]
    got = move(partial(SGD, lr=0.1, momentum=0.9), start, grads, schedule)
    want = move(partial(torch.optim.SGD, lr=0.1, momentum=0.9), start, grads, schedule)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("make", [partial(SGD, lr=[0.1, 0.2, 0.3], momentum=[0.9] * 3), partial(AdamW, lr=[0.1] * 3)])
def test_resumed_from_a_state_dict_it_goes_on(make):
    start, grads = tensors(0), [tensors(i) for i in range(1, 6)]
    first = [torch.nn.Parameter(t.clone()) for t in start]
    optimizer = make(first)
    for each in grads[:2]:
        for p, g in zip(first, each, strict=True):
            p.grad = g
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = make(second)
    resumed.load_state_dict(state)
    for each in grads[2:]:
        for p, g in zip(second, each, strict=True):
            p.grad = g
        resumed.step()
    for a, b in zip(second, move(make, start, grads), strict=True):
        assert torch.equal(a, b)


@pytest.mark.untyped
@pytest.mark.parametrize(
    "make", [SGD, partial(SGD, momentum=0.9, weight_decay=0.1), AdamW, partial(AdamW, decoupled=False)]
)
def test_with_numbers_they_are_ordinary_optimisers(make):
    check_optimizer(partial(make, lr=0.05), require=("Raises",), refuses={"lr": -1.0, "weight_decay": -0.5})


def test_norms_and_clipping_are_those_of_each_seed():
    params = [torch.nn.Parameter(t) for t in tensors(0)]
    for p, g in zip(params, tensors(1), strict=True):
        p.grad = g
    limits = [0.5, 1.0, 100.0]
    alone = []
    for s, limit in enumerate(limits):
        own = [torch.nn.Parameter(p[s].detach().clone()) for p in params]
        for p, g in zip(own, tensors(1), strict=True):
            p.grad = g[s].clone()
        alone.append((torch.nn.utils.clip_grad_norm_(own, limit), own))
    torch.testing.assert_close(global_norm(tensors(1)), torch.stack([norm for norm, _ in alone]))
    norms = clip_grad_norm_([*params, torch.nn.Parameter(torch.zeros(S))], limits)
    for s, (norm, own) in enumerate(alone):
        torch.testing.assert_close(norms[s], norm)
        for p, q in zip(params, own, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad[s], q.grad, rtol=0, atol=1e-14)


def test_per_seed_broadcasts_and_keeps_dtype():
    like = torch.zeros(2, 3, 4, dtype=torch.double)
    assert per_seed([1.0, 2.0], like).tolist() == [[[1.0]], [[2.0]]]
    assert per_seed(0.1, like).tolist() == [[[0.1]], [[0.1]]]
    assert per_seed(torch.tensor([0.5, 1.5]), like).dtype == torch.double


def parameter() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(2, 3))]


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: per_seed([1.0, 2.0, 3.0], torch.zeros(2)), r"1 number or 2, one per seed, but have shape \(3,\)"),
        (lambda: per_seed(torch.ones(2, 1), torch.zeros(2)), r"have shape \(2, 1\)"),
        (lambda: global_norm([]), "at least 1 tensor"),
        (lambda: SGD(parameter(), lr=[0.1] * 3), r"lr must hold one value per seed, but holds 3 .* \(2, 3\)"),
        (lambda: SGD(parameter(), lr=torch.ones(2, 1)), r"lr must be a number or one per seed, but has shape \(2, 1\)"),
        (lambda: SGD(parameter(), lr=[0.1, float("nan")]), r"lr must lie in \[0, inf\), but is nan"),
        (lambda: SGD(parameter(), momentum=[0.1, -1.0]), r"momentum must lie in \[0, inf\), but is -1"),
        (lambda: SGD(parameter(), nesterov=True), "nesterov needs momentum and no dampening"),
        (lambda: AdamW(parameter(), betas=(0.9, 1.0)), r"betas\[1\] must lie in \[0, 1\), but is 1"),
        (lambda: AdamW(parameter(), betas=(0.9, [0.9] * 5)), r"betas\[1\] must hold one value per seed, but holds 5"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
