from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.dynamics import (
    DampenedSGD,
    MarginPatchCNN,
    MarginPatchDataset,
    feature_alignment,
    group_accuracy,
    margin_parts,
    patch_gradient,
    patch_logits,
    signal_rate,
    small_margin_transform,
)
from torchstone.testing import check_optimizer
from torchstone.training.stacked import fit_stacked, stack


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(n: int = 30, seed: int = 0, **options: Any) -> MarginPatchDataset:
    return MarginPatchDataset(n, generator=stream(seed), **{"d": 7, "dtype": torch.float64, "mu": 0.4, **options})


def weights(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


# ---------------------------------------------------------------- data


def test_patches_hold_the_feature_once_and_noise_orthogonal_to_it() -> None:
    data = drawn(500, patches=4, sigma=0.5)
    along = data.x @ data.w_star
    rows = torch.arange(500)
    feature = data.x[rows, data.position]
    expected = data.y * torch.full((500,), 1.0, dtype=torch.float64).masked_fill(data.small_margin, 0.15)
    assert torch.equal(along[rows, data.position], expected)
    assert torch.equal(feature, expected[:, None] * data.w_star)
    assert int((along != 0).sum()) == 500  # the noise is orthogonal exactly
    noise = data.x[along == 0]
    assert noise[:, 1:].std().item() == pytest.approx(0.5, rel=0.03)
    assert set(data.y.tolist()) == {-1.0, 1.0}


def test_noise_is_orthogonal_to_a_feature_of_ones_own() -> None:
    w_star = torch.tensor([3.0, 0.0, 4.0, 0.0], dtype=torch.float64)
    data = drawn(200, d=4, w_star=w_star)
    torch.testing.assert_close(data.w_star, w_star / 5)
    along = data.x @ data.w_star
    along[torch.arange(200), data.position] = 0
    assert along.abs().max() < 1e-15


def test_chance_is_as_stated() -> None:
    data = drawn(6000, d=2, patches=5, mu=0.1)
    assert chisquare(data.position.bincount(minlength=5).numpy()).pvalue > 1e-3
    assert chisquare([(data.y > 0).sum().item(), (data.y < 0).sum().item()]).pvalue > 1e-3
    small = int(data.small_margin.sum())
    assert chisquare([small, 6000 - small], [600, 5400]).pvalue > 1e-3
    assert not drawn(50, mu=0.0).small_margin.any()
    assert drawn(50, mu=1.0).small_margin.all()


def test_noise_has_norm_two_by_default() -> None:
    data = drawn(300, d=100, patches=2)
    noise = data.x[torch.arange(300), 1 - data.position]
    assert noise.norm(dim=1).mean().item() == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 1.5}, "beta must lie in [0, 1], but is 1.5"),
        ({"mu": -0.1}, "mu must lie in [0, 1], but is -0.1"),
        ({"mu": math.nan}, "mu must lie in [0, 1], but is nan"),
        ({"patches": 1}, "patches must be >= 2, but is 1"),
        ({"d": 1}, "d must be >= 2, but is 1"),
        ({"sigma": -1.0}, "sigma must lie in [0, inf], but is -1.0"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha must lie in (0, inf], but is 0.0"),
        ({"w_star": torch.zeros(7)}, "w_star must have a finite norm above 0, but has 0.0"),
        ({"w_star": torch.ones(6)}, "w_star must have as many rows as d (7), but has 6"),
    ],
)
def test_data_refuse_what_they_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        drawn(5, **options)


# ---------------------------------------------------------------- network and closed forms


def slow_logits(weight: Tensor, x: Tensor) -> Tensor:
    """The double sum of the paper, literally."""
    return torch.stack([sum(((w @ patch) ** 3 for w in weight for patch in example), torch.zeros(())) for example in x])


def test_logits_are_the_double_sum() -> None:
    data, weight = drawn(6), weights(3, 7)
    torch.testing.assert_close(patch_logits(weight, data.x), slow_logits(weight, data.x))
    net = MarginPatchCNN(7, 3, generator=stream()).double()
    torch.testing.assert_close(net(data.x), slow_logits(net.weight, data.x))


def test_another_activation_is_used() -> None:
    data, weight = drawn(6), weights(3, 7)
    expected = (data.x @ weight.mT).relu().sum((1, 2))
    torch.testing.assert_close(patch_logits(weight, data.x, activation=torch.relu), expected)


def autograd(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(-F.logsigmoid(y * patch_logits(weight, x)).mean(), weight)[0]


def test_the_closed_form_is_the_gradient() -> None:
    data, weight = drawn(), weights(4, 7)
    error = patch_gradient(weight, data.x, data.y) - autograd(weight, data.x, data.y)
    assert error.abs().max() < 1e-10


def test_gradcheck() -> None:
    data = drawn(4)
    weight = (0.3 * weights(2, 7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: F.logsigmoid(data.y * patch_logits(w, data.x)), weight)


def test_the_feature_grows_from_the_patches_that_hold_it_alone() -> None:
    data, weight = drawn(), weights(4, 7)
    rate = signal_rate(weight, data.x, data.y, data.w_star)
    assert (rate + autograd(weight, data.x, data.y) @ data.w_star).abs().max() < 1e-10
    # 3 c_r^2 mean_i l_i |c_i|^3, with the margins from the mask
    c = torch.where(data.small_margin, torch.tensor(0.15, dtype=torch.float64), 1.0)
    pull = torch.sigmoid(-data.y * patch_logits(weight, data.x))
    torch.testing.assert_close(rate, 3 * (weight @ data.w_star) ** 2 * (pull * c**3).mean())


def test_margins_are_signal_plus_noise() -> None:
    data, weight = drawn(), weights(4, 7)
    signal, noise = margin_parts(weight, data.x, data.y, data.w_star)
    torch.testing.assert_close(signal + noise, data.y * patch_logits(weight, data.x))
    c = torch.where(data.small_margin, torch.tensor(0.15, dtype=torch.float64), 1.0)
    torch.testing.assert_close(signal, c**3 * feature_alignment(weight, data.w_star))
    moved = weight + weights(4, 1) * data.w_star  # along the feature: the noise does not see it
    torch.testing.assert_close(margin_parts(moved, data.x, data.y, data.w_star).noise, noise)


def test_feature_alignment_by_hand_and_of_a_module() -> None:
    w_star = torch.tensor([0.6, 0.8])
    weight = torch.tensor([[1.0, 1.0], [-0.5, 0.0]])
    assert feature_alignment(weight, w_star).item() == pytest.approx(1.4**3 - 0.3**3)
    net = MarginPatchCNN(2, 2)
    net.weight.data = weight
    assert torch.equal(feature_alignment(net, w_star), feature_alignment(weight, w_star))


def test_seeds_stack() -> None:
    sets, weight = [drawn(seed=s) for s in range(3)], weights(3, 4, 7)
    x, y = torch.stack([d.x for d in sets]), torch.stack([d.y for d in sets])
    w_star = sets[0].w_star
    for stacked, single in (
        (patch_logits(weight, x), lambda s: patch_logits(weight[s], x[s])),
        (patch_gradient(weight, x, y), lambda s: patch_gradient(weight[s], x[s], y[s])),
        (signal_rate(weight, x, y, w_star), lambda s: signal_rate(weight[s], x[s], y[s], w_star)),
        (margin_parts(weight, x, y, w_star).noise, lambda s: margin_parts(weight[s], x[s], y[s], w_star).noise),
    ):
        torch.testing.assert_close(stacked, torch.stack([single(s) for s in range(3)]), rtol=1e-12, atol=1e-12)
    one = weight.clone()
    one[0] += 1
    assert torch.equal(patch_gradient(one, x, y)[1:], patch_gradient(weight, x, y)[1:])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_patches_units_and_examples_is_nothing(seed: int) -> None:
    data, weight, chance = drawn(6, seed=seed), weights(4, 7, seed=seed), stream(seed)
    shuffled = data.x[:, torch.randperm(3, generator=chance)]
    logits = patch_logits(weight, data.x)
    torch.testing.assert_close(patch_logits(weight, shuffled), logits)
    torch.testing.assert_close(patch_logits(weight[torch.randperm(4, generator=chance)], data.x), logits)
    order = torch.randperm(6, generator=chance)
    gradient = patch_gradient(weight, data.x, data.y)
    torch.testing.assert_close(patch_gradient(weight, data.x[order], data.y[order]), gradient)
    torch.testing.assert_close(patch_gradient(-weight, data.x, -data.y), -gradient)  # odd: classes are symmetric


@pytest.mark.untyped
def test_shapes_that_disagree_are_refused() -> None:
    data, weight = drawn(5), weights(4, 7)
    with pytest.raises(ValueError, match=r"weight must have shape \(\*seeds, m, d\) and x"):
        patch_logits(weight, data.x[0])
    with pytest.raises(ValueError, match=r"x must have the seeds and the d of weight, \(4, 6\), but has"):
        patch_logits(weight[:, :6], data.x)
    with pytest.raises(ValueError, match=r"y must have shape \(5,\), as x has it, but has \(4,\)"):
        patch_gradient(weight, data.x, data.y[:4])
    with pytest.raises(ValueError, match=r"w_star must have shape \(7,\), but has \(6,\)"):
        feature_alignment(weight, data.w_star[:6])
    with pytest.raises(TypeError, match=r"model must be weights .* not ReLU"):
        feature_alignment(nn.ReLU(), data.w_star)


# ---------------------------------------------------------------- groups


def test_group_accuracy_by_hand() -> None:
    mask = torch.tensor([True, False, False, False])
    y = torch.tensor([1.0, 1.0, -1.0, -1.0])
    found = group_accuracy(torch.tensor([-1.0, 2.0, -3.0, 0.0]), y, mask)  # zero says nothing: wrong
    assert [round(v.item(), 4) for v in found] == [0.5, 0.6667, 0.0]
    classes = group_accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]), mask)
    assert [round(v.item(), 4) for v in classes] == [0.75, 0.6667, 1.0]
    assert group_accuracy(torch.ones(4), y, torch.zeros(4, dtype=torch.bool)).small.isnan()
    stacked = group_accuracy(torch.ones(3, 4), y.expand(3, 4), mask.expand(3, 4))
    assert stacked.overall.tolist() == [0.5] * 3


@pytest.mark.untyped
def test_group_accuracy_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"mask must have the shape of y, \(4,\).* have \(3,\) and \(4,\)"):
        group_accuracy(torch.ones(4), torch.ones(4), torch.ones(3, dtype=torch.bool))


def test_some_examples_shrink_towards_the_mean() -> None:
    x = torch.randn(40, 1, 3, 3, generator=stream())
    before = x.clone()
    found, small = small_margin_transform(x, fraction=0.25, factor=0.2, generator=stream(1))
    assert int(small.sum()) == 10
    assert torch.equal(x, before)
    assert torch.equal(found[~small], x[~small])
    torch.testing.assert_close(found[small] - x.mean(0), 0.2 * (x[small] - x.mean(0)))
    again, same = small_margin_transform(x, fraction=0.25, factor=0.2, generator=stream(1))
    assert torch.equal(again, found)
    assert torch.equal(same, small)
    to_zero, every = small_margin_transform(x, fraction=1.0, factor=0.0, mean=torch.ones(1, 3, 3))
    assert every.all()
    assert torch.equal(to_zero, torch.ones_like(x))


@pytest.mark.parametrize(
    ("x", "options", "says"),
    [
        (torch.ones(3, 2), {"fraction": 1.5}, r"fraction must lie in \[0, 1\], but is 1.5"),
        (torch.ones(3, 2), {"factor": -0.1}, r"factor must lie in \[0, 1\], but is -0.1"),
        (torch.ones(0, 2), {}, "x must hold at least one example, but is empty"),
        (torch.ones(3, 2), {"mean": torch.ones(3)}, r"mean must have the shape of an example, \(2,\), but has \(3,\)"),
    ],
)
def test_shrinking_refuses(x: Tensor, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small_margin_transform(x, **options)


# ---------------------------------------------------------------- optimiser


def after(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int = 5, first: float = 1.0) -> Tensor:
    """Parameters after some steps on a fixed problem; the first gradient is multiplied by ``first``."""
    params = [nn.Parameter(weights(3, 2)), nn.Parameter(weights(4, seed=2))]
    optimizer = make(params)
    for step in range(steps):
        optimizer.zero_grad()
        torch.stack([(scale * p**4 / 4).sum() for scale, p in enumerate(params, 1)]).sum().backward()
        for p in params:
            assert p.grad is not None
            p.grad *= first if step == 0 else 1.0
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in params])


def test_without_momentum_it_is_gradient_descent() -> None:
    expected = after(partial(torch.optim.SGD, lr=0.05))
    for options in ({}, {"dampening": 0.5}, {"zero_init": False}):
        assert torch.equal(after(partial(DampenedSGD, lr=0.05, momentum=0.0, **options)), expected)
    zeros = torch.zeros(2, dtype=torch.float64)
    p = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    optimizer = DampenedSGD([p], lr=0.5, momentum=zeros)
    p.grad = torch.full_like(p, 0.25)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((2, 3), 0.875, dtype=torch.float64))


@pytest.mark.parametrize(
    "options",
    [
        {"dampening": 0.9},
        {"dampening": 0.3, "weight_decay": 0.1},
        {"dampening": 0.0, "nesterov": True},
        {"dampening": 0.0, "maximize": True},
    ],
)
def test_with_torchs_start_it_is_torchs_sgd(options: dict[str, Any]) -> None:
    lr = 0.01 if options.get("maximize") else 0.05
    ours = after(partial(DampenedSGD, lr=lr, momentum=0.9, zero_init=False, **options))
    assert torch.equal(ours, after(partial(torch.optim.SGD, lr=lr, momentum=0.9, **options)))


def test_torchs_sgd_starts_with_an_undamped_gradient() -> None:
    ours = after(partial(DampenedSGD, lr=0.05, momentum=0.9))
    theirs = partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.9)
    assert (ours - after(theirs)).abs().max() > 1e-2
    torch.testing.assert_close(ours, after(theirs, first=0.1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_recursion_literally(nesterov: bool) -> None:
    gamma, tau, eta = 0.8, 0.6, 0.05
    p, g = weights(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    for _ in range(5):
        grad = p**3
        g = gamma * g + (1 - tau) * grad
        p = p - eta * ((1 - tau) * grad + gamma * g if nesterov else g)
    found = after(partial(DampenedSGD, lr=eta, momentum=gamma, dampening=tau, nesterov=nesterov))
    torch.testing.assert_close(found[:6], p.flatten(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True, "weight_decay": 0.1}, {"dampening": 0.2, "zero_init": False}]
)
def test_options_per_seed_are_those_of_single_runs(options: dict[str, Any]) -> None:
    lr, gamma = [0.05, 0.1, 0.02], [0.9, 0.0, 0.5]
    p = nn.Parameter(weights(3, 2, 2))
    singles = [nn.Parameter(each.clone()) for each in p.detach()]
    rates, momenta = (torch.tensor(values, dtype=torch.float64) for values in (lr, gamma))
    rules = [DampenedSGD([p], rates, momenta, **options)]
    rules += [DampenedSGD([single], lr[s], gamma[s], **options) for s, single in enumerate(singles)]
    schedules = [torch.optim.lr_scheduler.StepLR(rule, 2, 0.5) for rule in rules]
    for _ in range(5):
        for rule, schedule, each in zip(rules, schedules, [p, *singles], strict=True):
            rule.zero_grad()
            (each**4 / 4).sum().backward()
            rule.step()
            schedule.step()
    torch.testing.assert_close(p.detach(), torch.stack([s.detach() for s in singles]), rtol=1e-12, atol=1e-12)


def test_it_trains_stacked_models_and_freezes_the_one_that_diverges() -> None:
    models = stack([nn.Linear(4, 2) for _ in range(2)])
    optimizer = DampenedSGD(models.parameters(), torch.tensor([0.1, 1e38]), 0.5)
    x, y = 1e3 * torch.randn(8, 4, generator=stream()), torch.tensor([0, 1] * 4)
    generators = [stream(s) for s in range(2)]
    loss = lambda net, batch: F.cross_entropy(net(batch.x), batch.y)  # noqa: E731
    history = fit_stacked(models, (x, y), loss, optimizer, epochs=4, batch_size=4, generators=generators)
    assert history.diverged[0] == ""
    assert history.diverged[1]
    assert all(bool(p.isfinite().all()) for p in models.parameters())


def test_dampening_follows_a_schedule_of_momentum() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = DampenedSGD([p], lr=1.0, momentum=0.5)
    moved = []
    for momentum in (0.5, 0.75):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = torch.ones(1)
        optimizer.step()
        moved.append(-p.item())
    assert moved == [0.5, 0.5 + 0.75 * 0.5 + 0.25]


def test_a_parameter_may_get_its_first_gradient_late() -> None:
    for zero_init in (True, False):
        early, late = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        optimizer = DampenedSGD([early, late], lr=1.0, momentum=0.5, zero_init=zero_init)
        early.grad = torch.ones(1)
        optimizer.step()
        late.grad = torch.ones(1)
        optimizer.step()
        first = 0.5 if zero_init else 1.0
        assert late.item() == -first
        assert early.item() == -(first + 0.5 * first + 0.5)


def test_variants_keep_the_contracts_of_an_optimiser() -> None:
    check_optimizer(partial(DampenedSGD, lr=0.05), refuses={"dampening": 1.5, "weight_decay": -0.1})
    check_optimizer(partial(DampenedSGD, lr=0.05, nesterov=True, zero_init=False, weight_decay=1e-3))
    check_optimizer(partial(DampenedSGD, lr=0.05, momentum=torch.tensor(0.5)))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_momentum_out_of_range(momentum: float) -> None:
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), but is"):
        DampenedSGD([p], 0.1, momentum)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), but is"):
        DampenedSGD([p], 0.1, torch.tensor([0.5, momentum]))


def test_other_errors_of_the_optimiser() -> None:
    p = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="values must be 1 number or 2, one per seed"):
        DampenedSGD([p], torch.full((3,), 0.1))
    with pytest.raises(ValueError, match=r"lr must have shape \(\) or \(seeds,\), but has \(2, 1\)"):
        DampenedSGD([p], torch.full((2, 1), 0.1))
    p.grad = torch.zeros(2, 3).to_sparse()
    with pytest.raises(TypeError, match="takes dense gradients"):
        DampenedSGD([p], 0.1).step()


# ---------------------------------------------------------------- the effect


def trained(mu: float, beta: float, seeds: int = 4) -> dict[float, tuple[Tensor, Tensor]]:
    """Small-margin (overall where there are none) test accuracy and C after training with momentum 0 and 0.99."""
    sets, tests = ([MarginPatchDataset(n, mu=mu, beta=beta, generator=stream(10 * k + s)) for s in range(seeds)]
                   for k, n in ((0, 200), (1, 1500)))  # fmt: skip
    x, y = torch.stack([d.x for d in sets]), torch.stack([d.y for d in sets])
    start = torch.stack([MarginPatchCNN(100, generator=stream(100 + s)).weight.detach() for s in range(seeds)])
    found = {}
    for gamma in (0.0, 0.99):
        weight = nn.Parameter(start.clone())
        optimizer = DampenedSGD([weight], lr=0.5, momentum=gamma)
        for _ in range(1200):
            weight.grad = patch_gradient(weight.detach(), x, y)
            optimizer.step()
        assert bool((y * patch_logits(weight.detach(), x) > 0).all()) or gamma == 0.0
        groups = [
            group_accuracy(patch_logits(w, t.x), t.y, t.small_margin)
            for w, t in zip(weight.detach(), tests, strict=True)
        ]
        accuracy = torch.stack([g.small if mu else g.overall for g in groups])
        found[gamma] = accuracy, feature_alignment(weight.detach(), sets[0].w_star)
    return found


def test_momentum_grows_the_feature_and_classifies_small_margins() -> None:
    found = trained(mu=0.1, beta=0.15)
    (gd, c_gd), (momentum, c_momentum) = found[0.0], found[0.99]
    assert gd.mean() < 0.7
    assert momentum.mean() > 0.9
    assert bool((c_momentum > 10 * c_gd).all())


@pytest.mark.parametrize(("mu", "beta"), [(0.0, 0.15), (0.1, 1.0)])
def test_without_a_faint_minority_the_two_are_equal(mu: float, beta: float) -> None:
    found = trained(mu=mu, beta=beta, seeds=2)
    torch.testing.assert_close(found[0.0][0], found[0.99][0], atol=0.005, rtol=0)
