from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import cumulative_simpson, solve_ivp
from torch import Tensor

from torchstone import dynamics
from torchstone.dynamics import (
    DeepLinear,
    Flow,
    alignment,
    balance_,
    balanced_init_,
    escape_time,
    gradient_flow,
    predict_limit,
    predicted_rates,
    rank_one_flow,
    target_matrix,
)

DIMS = [4, 3, 1, 3, 5]
S = torch.tensor([2.0, 1.3, 0.7, 0.4], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


U, V = orthogonal(5, 1)[:, :4], orthogonal(4, 2)
Z = U * S @ V.T


def network(s0: float, u: Tensor, v: Tensor, dims: Sequence[int] = DIMS, seed: int = 0) -> DeepLinear:
    return balanced_init_(DeepLinear(dims, dtype=torch.float64), s0, u, v, generator(seed))


def squared(net: DeepLinear) -> Tensor:
    return (net.product() - Z).square().sum() / 2


def products(flow: Flow) -> Tensor:
    weights = list(flow.states.values())
    W = weights[0]
    for weight in weights[1:]:
        W = weight @ W
    return W


def combination(a: Sequence[float], b: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Unit u, v with these coordinates in the singular vectors of Z, up to length."""
    u, v = (torch.tensor(c, dtype=torch.float64) for c in (a, b))
    return U @ (u / u.norm()), V @ (v / v.norm())


RANDOM = (0.5, unit(5, seed=3), unit(4, seed=4))
SADDLE = (0.5, *combination([0, 1, 0.5, -0.3], [0, 0.6, -0.2, 0.7]))
MIRRORED = (0.5, *combination([-0.5, 1, 0.4, -0.3], [0.5, -1, -0.4, 0.3]))
TIMES = torch.linspace(0, 8, 401, dtype=torch.float64)


@pytest.fixture(scope="module")
def full() -> Flow:
    return gradient_flow(network(*RANDOM), squared, TIMES)


# ---------------------------------------------------------------- the theory along the flow


def test_the_full_flow_is_the_reduced_one(full: Flow) -> None:
    reduced = rank_one_flow(Z, *RANDOM, depth=4, t=TIMES)
    torch.testing.assert_close(products(full), reduced.product(), atol=1e-6, rtol=0)


def test_balance_is_kept(full: Flow) -> None:
    for place in (1, 200, 400):
        net = DeepLinear(DIMS, dtype=torch.float64)
        net.load_state_dict(full.at(place))
        assert net.balance_gap() < 1e-10
        assert net.rank_one().s > 0


def test_alignments_keep_their_ratios(full: Flow) -> None:
    """(a_i + b_i) / (a_j + b_j) grows by e^{(s_i - s_j) tau}, tau measured on the way."""
    W = products(full)
    found = alignment(W, Z)
    p = found.a + found.b
    speed = torch.linalg.matrix_norm(W, 2) ** (1 - 2 / 4)
    tau = torch.from_numpy(cumulative_simpson(speed.numpy(), x=TIMES.numpy(), initial=0))
    for i, j in ((0, 1), (1, 2), (0, 3)):
        moved = p[:, i] / p[:, j] * torch.exp(-(S[i] - S[j]) * tau)
        early = tau * (S[0] - S[3]) < 12  # later the small ones are rounding
        torch.testing.assert_close(moved[early], moved[:1].expand(int(early.sum())), rtol=1e-5, atol=0)


def test_q_never_falls(full: Flow) -> None:
    assert float(alignment(products(full), Z).q.diff().min()) > -1e-9


def test_the_gradient_of_the_network_is_the_reduced_equation() -> None:
    """dW/dt along -grad is s' u v^T + s (u' v^T + u v'^T), for a start of its own kind."""
    s, u, v = RANDOM
    net = network(s, u, v)
    slopes = torch.autograd.grad(squared(net), list(net.weights))
    weights = [weight.detach() for weight in net.weights]
    moved = torch.zeros_like(Z)
    for j, slope in enumerate(slopes):
        term = torch.eye(4, dtype=torch.float64)
        for i, weight in enumerate(weights):
            term = (-slope if i == j else weight) @ term
        moved += term
    N, q = 4, u @ Z @ v
    ds = N * s ** (2 - 2 / N) * (q - s)
    du = s ** (1 - 2 / N) * (Z @ v - u * q)
    dv = s ** (1 - 2 / N) * (Z.T @ u - v * q)
    expected = ds * torch.outer(u, v) + s * (torch.outer(du, v) + torch.outer(u, dv))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("depth", [2, 3, 6])
@pytest.mark.parametrize("start", [RANDOM, SADDLE, MIRRORED], ids=["random", "saddle", "mirrored"])
def test_the_closed_form_solves_the_equations_as_written(depth: int, start: tuple[float, Tensor, Tensor]) -> None:
    s0, u0, v0 = start
    Zn = Z.numpy()

    def equations(_: float, y: np.ndarray) -> np.ndarray:
        s, u, v = y[0], y[1:6], y[6:]
        q = u @ Zn @ v
        turn = s ** (1 - 2 / depth)
        return np.concatenate([[depth * s * turn * (q - s)], turn * (Zn @ v - q * u), turn * (Zn.T @ u - q * v)])

    t = np.linspace(0, 2, 5)
    y0 = np.concatenate([[s0], u0, v0])
    expected = solve_ivp(equations, (0, 2), y0, method="DOP853", t_eval=t, rtol=1e-11, atol=1e-13).y.T
    found = rank_one_flow(Z, s0, u0, v0, depth, torch.from_numpy(t))
    torch.testing.assert_close(
        torch.cat([found.s[:, None], found.u, found.v], 1), torch.from_numpy(expected), rtol=0, atol=1e-8
    )


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4, 6]), st.floats(1, 3))
def test_the_reduced_flow_ends_where_it_is_predicted_to(seed: int, depth: int, s0: float) -> None:
    """With alignments that vanish at random, so that every kind of limit occurs; and q never falls on the way."""
    chance = generator(seed)
    a = torch.rand(4, generator=chance, dtype=torch.float64) + 0.5
    # Of equal length, so that a_i + b_i = 0 stays true of the unit vectors.
    b = torch.where(torch.rand(4, generator=chance) < 0.6, -a, a)
    u, v = combination(a.tolist(), b.tolist())
    limit = predict_limit(Z, u, v)
    flow = rank_one_flow(Z, s0, u, v, depth, torch.tensor([0.0, 1.0, 100.0], dtype=torch.float64))
    assert float((flow.product()[-1] - limit.W).norm()) < 0.02
    q = torch.einsum("tm,mn,tn->t", flow.u, Z, flow.v)
    assert bool((q.diff() > -1e-9).all())


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("start", "k", "kind"), [(RANDOM, 1, "global"), (SADDLE, 2, "saddle")], ids=["random", "saddle"]
)
def test_the_network_ends_at_its_limit(start: tuple[float, Tensor, Tensor], k: int, kind: str) -> None:
    limit = predict_limit(Z, *start[1:])
    assert (limit.k, limit.kind) == (k, kind)
    torch.testing.assert_close(limit.W, S[k - 1] * torch.outer(U[:, k - 1], V[:, k - 1]))
    flow = gradient_flow(network(*start), squared, torch.tensor([20.0]))
    torch.testing.assert_close(products(flow)[0], limit.W, atol=1e-5, rtol=0)


def test_a_saddle_is_left_after_the_smallest_push() -> None:
    s0, u, v = SADDLE
    pushed = u + 1e-6 * U[:, 0]
    pushed = pushed / pushed.norm()
    assert predict_limit(Z, pushed, v).kind == "global"
    flow = gradient_flow(network(s0, pushed, v), squared, torch.tensor([12.0, 80.0]))
    near, end = products(flow)
    torch.testing.assert_close(near, predict_limit(Z, u, v).W, atol=1e-2, rtol=0)
    torch.testing.assert_close(end, predict_limit(Z, pushed, v).W, atol=1e-6, rtol=0)


def test_a_mirrored_start_decays_to_the_origin_with_the_predicted_slope() -> None:
    """s^{-(1-2/N)} rises with slope (N - 2) s_min: for N = 4 and s_min = 0.4, 0.8."""
    limit = predict_limit(Z, *MIRRORED[1:])
    assert (limit.k, limit.kind, float(limit.W.norm())) == (0, "origin", 0.0)
    # The farther the singular values are apart, the sooner the slope is reached.
    start = (0.5, *combination([0.5, 0, 0, -0.3], [-0.5, 0, 0, 0.3]))
    t = torch.tensor([60.0, 80.0], dtype=torch.float64)
    grown = torch.linalg.matrix_norm(products(gradient_flow(network(*start), squared, t)), 2) ** -0.5
    assert float(grown.diff() / 20) == pytest.approx(2 * 0.4, rel=2e-3)
    reduced = rank_one_flow(Z, *start, depth=4, t=torch.tensor([1e6, 2e6], dtype=torch.float64)).s ** -0.5
    assert float(reduced.diff() / 1e6) == pytest.approx(0.8, rel=1e-6)


def test_of_equal_singular_values_the_start_picks_the_direction() -> None:
    tied = U * torch.tensor([2.0, 2.0, 1.0, 0.5]).double() @ V.T
    limit = predict_limit(tied, *RANDOM[1:])
    assert (limit.k, limit.kind) == (1, "global")
    p = (U.T @ RANDOM[1] + V.T @ RANDOM[2])[:2]
    p = p / p.norm()
    torch.testing.assert_close(limit.W, 2 * torch.outer(U[:, :2] @ p, V[:, :2] @ p))
    net = network(*RANDOM)
    flow = gradient_flow(net, lambda net: (net.product() - tied).square().sum() / 2, torch.tensor([20.0]))
    torch.testing.assert_close(products(flow)[0], limit.W, atol=1e-6, rtol=0)
    second = predict_limit(tied, *combination([0, 1, 1, 0], [0, 0, 1, 0]))
    assert (second.k, second.kind) == (1, "global")
    torch.testing.assert_close(second.W, 2 * torch.outer(U[:, 1], V[:, 1]))


def test_scalar_output_and_zero_start() -> None:
    """One output: u is a sign. Against the target's sign the first stage shrinks, then the direction turns."""
    z = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
    v = unit(3, seed=5)
    v = -v * torch.sign(v @ z[0])  # q < 0
    limit = predict_limit(z, torch.ones(1).double(), v)
    assert limit.kind == "global"
    torch.testing.assert_close(limit.W, z)
    flow = gradient_flow(
        network(0.5, torch.ones(1).double(), v, [3, 2, 1]),
        lambda net: (net.product() - z).square().sum() / 2,
        torch.tensor([0.01, 20.0]),
    )
    assert products(flow)[0].norm() < 0.5
    torch.testing.assert_close(products(flow)[1], z, atol=1e-6, rtol=0)
    assert predict_limit(z, torch.ones(1).double(), -z[0] / 3).kind == "origin"
    assert predict_limit(z, torch.ones(1).double(), v, s0=0.0).kind == "origin"


def test_gradient_descent_follows_the_flow_to_first_order() -> None:
    """Half the step, half the distance."""
    end = gradient_flow(network(*RANDOM), squared, torch.tensor([1.0]))
    distances = []
    for steps in (200, 400):
        net = network(*RANDOM)
        optimizer = torch.optim.SGD(net.parameters(), lr=1 / steps)
        for _ in range(steps):
            optimizer.zero_grad()
            squared(net).backward()
            optimizer.step()
        distances.append(float((net.product() - products(end)[0]).detach().norm()))
    assert distances[0] / distances[1] == pytest.approx(2, rel=0.02)


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_the_last_stage_has_the_predicted_rate(depth: int) -> None:
    rates = predicted_rates(Z, depth)
    s1, s2 = 2.0, 1.3
    assert rates.magnitude == pytest.approx(depth * s1 ** (2 - 2 / depth))
    assert rates.direction == pytest.approx(s1 ** (1 - 2 / depth) * (s1 - s2))
    assert rates.error == rates.direction
    assert rates.loss == 2 * rates.error
    t = torch.tensor([9.0, 11.0], dtype=torch.float64) / rates.error * 1.2
    W = rank_one_flow(Z, *RANDOM, depth=depth, t=t).product()
    error = (W - predict_limit(Z, *RANDOM[1:]).W).norm(dim=(1, 2))
    assert float(-error.log().diff() / t.diff()) == pytest.approx(rates.error, rel=1e-3)
    # L - L* in the weights of the matrix: 1/2 |W - Z|^2 - 1/2 |W* - Z|^2, first order in the error squared.
    loss = (W - Z).square().sum((1, 2)) / 2 - S[1:].square().sum() / 2
    assert float(-loss.log().diff() / t.diff()) == pytest.approx(rates.loss, rel=1e-3)


def test_the_magnitude_decides_where_directions_are_right_already() -> None:
    start = (0.5, U[:, 0].contiguous(), V[:, 0].contiguous())
    rates = predicted_rates(Z, 3)
    t = torch.tensor([1.0, 1.5], dtype=torch.float64)
    s = rank_one_flow(Z, *start, depth=3, t=t).s
    assert float(-(2 - s).log().diff() / 0.5) == pytest.approx(rates.magnitude, rel=1e-2)


def test_rates_in_special_cases() -> None:
    assert predicted_rates(torch.tensor([[3.0]]), 2).direction == math.inf
    assert predicted_rates(3 * torch.eye(2), 3).error == pytest.approx(3 * 3 ** (4 / 3))
    assert predicted_rates(torch.tensor([[3.0, 0.0]]), 2).direction == 3.0  # the rest of the input space
    assert predicted_rates(torch.diag(torch.tensor([2.0, 2.0, 1.0])), 2).direction == 1.0
    tied = torch.tensor([2.0, 2.0 - 1e-10, 0.5], dtype=torch.float64).diag()
    assert predicted_rates(tied, 2).direction == pytest.approx(1.5)


@pytest.mark.parametrize("depth", [2, 3])
def test_escape_takes_as_long_as_predicted(depth: int) -> None:
    """From the first singular vectors q is s_1; the smaller the start, the better the leading order."""
    u, v = U[:, 0].contiguous(), V[:, 0].contiguous()
    ratios = []
    for s0 in (1e-4, 1e-8):
        predicted = escape_time(s0, 2.0, depth)
        t = torch.linspace(0.5, 1.1, 61, dtype=torch.float64) * predicted
        s = rank_one_flow(Z, s0, u, v, depth, t).s
        ratios.append(float(t[int((s > 1.0).nonzero()[0])]) / predicted)
    assert abs(ratios[1] - 1) < abs(ratios[0] - 1) + 0.01
    assert ratios[1] == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("dims", [[4, 3, 1, 3, 5], [3, 4, 2, 6], [2, 5], [1, 1, 1]])
def test_balancing_keeps_the_product_of_any_network_of_low_rank(dims: list[int]) -> None:
    net = DeepLinear(dims, generator=generator(), dtype=torch.float64)
    product = net.product().detach()
    if len(dims) > 2 and max(dims) > 1:
        assert net.balance_gap() > 0.1
    balance_(net)
    assert net.balance_gap() < 1e-12
    torch.testing.assert_close(net.product(), product, atol=1e-12, rtol=0)
    before = [weight.detach().clone() for weight in net.weights]
    balance_(net)
    for weight, same in zip(net.weights, before, strict=True):
        torch.testing.assert_close(weight, torch.nn.Parameter(same), atol=1e-12, rtol=0)


def test_balancing_a_stack_balances_each() -> None:
    nets = [DeepLinear(DIMS, generator=generator(seed), dtype=torch.float64) for seed in range(3)]
    stack = DeepLinear.from_weights([torch.stack(parts) for parts in zip(*(net.weights for net in nets), strict=True)])
    assert stack.balance_gap().shape == (3,)
    x = normal(7, 4)
    torch.testing.assert_close(stack(x), torch.stack([net(x) for net in nets]))
    balance_(stack)
    for place, net in enumerate(nets):
        balance_(net)
        for together, alone in zip(stack.weights, net.weights, strict=True):
            torch.testing.assert_close(together[place], alone)


def test_balancing_what_is_zero_gives_zero() -> None:
    net = DeepLinear.from_weights([torch.zeros(2, 3), torch.ones(1, 2)])
    assert all(bool((weight == 0).all()) for weight in balance_(net).weights)


def test_a_balanced_start_is_what_was_asked_for() -> None:
    u, v = unit(5, seed=8), unit(4, seed=9)
    net = network(0.3, 3 * u, 2 * v)
    torch.testing.assert_close(net.product(), torch.nn.Parameter(0.3 * torch.outer(u, v)), atol=1e-15, rtol=0)
    assert net.balance_gap() < 1e-15
    for weight in net.weights:
        assert float(torch.linalg.matrix_norm(weight.detach(), 2)) == pytest.approx(0.3**0.25)
    found = net.rank_one()
    assert float(found.s) == pytest.approx(0.3)
    torch.testing.assert_close(torch.outer(found.u, found.v), torch.outer(u, v))


def test_starts_come_from_the_generator_alone() -> None:
    def one(seed: int) -> Tensor:
        return balanced_init_(DeepLinear(DIMS), 0.5, generator=generator(seed)).product().detach()

    torch.manual_seed(1)
    first = one(0)
    torch.manual_seed(2)
    assert torch.equal(one(0), first)
    assert not torch.equal(one(1), first)


def test_a_stack_of_starts() -> None:
    stack = DeepLinear.from_weights([torch.zeros(3, out, into).double() for into, out in pairwise(DIMS)])
    s0 = torch.tensor([0.1, 0.2, 0.3]).double()
    balanced_init_(stack, s0, unit(3, 5), unit(4), generator())
    torch.testing.assert_close(stack.rank_one().s, s0)
    torch.testing.assert_close(
        stack.product().detach(), s0[:, None, None] * unit(3, 5).unsqueeze(2) * unit(4), atol=1e-15, rtol=0
    )


def test_a_stack_flows_as_its_networks_do() -> None:
    stack = DeepLinear.from_weights([torch.zeros(3, out, into).double() for into, out in pairwise(DIMS)])
    balanced_init_(stack, torch.tensor([0.5, 0.05, 0.005]).double(), unit(3, 5), unit(3, 4, seed=1), generator())
    targets = normal(3, 5, 4)
    flow = gradient_flow(stack, lambda net: (net.product() - targets).square().sum((1, 2)) / 2, torch.tensor([3.0]))
    for place in range(3):
        net = DeepLinear.from_weights([weight[place] for weight in stack.weights])
        alone = gradient_flow(
            net, lambda net, Z=targets[place]: (net.product() - Z).square().sum() / 2, torch.tensor([3.0])
        )
        torch.testing.assert_close(products(flow)[0, place], products(alone)[0], atol=1e-8, rtol=0)
    start = stack.rank_one()
    reduced = rank_one_flow(targets, *start, 4, torch.tensor([3.0]))
    torch.testing.assert_close(reduced.product()[0], products(flow)[0], atol=1e-8, rtol=0)


def test_biases_are_there_when_asked_for() -> None:
    net = DeepLinear([3, 1, 2], bias=True)
    assert net.biases is not None
    with torch.no_grad():
        for bias in net.biases:
            bias.fill_(1.0)
    expected = net.weights[1].detach().sum(1) + 1
    torch.testing.assert_close(net(torch.zeros(4, 3)).detach(), expected.expand(4, 2))


def test_gradcheck() -> None:
    net = DeepLinear([2, 1, 3], generator=generator(), dtype=torch.float64)
    x = normal(4, 2)

    def output(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(net, {f"weights.{j}": w for j, w in enumerate(weights)}, x)

    assert torch.autograd.gradcheck(output, tuple(net.weights))


# ---------------------------------------------------------------- targets, alignments, errors


def test_white_inputs_give_the_target() -> None:
    x = torch.linalg.qr(normal(20, 4))[0]
    y = normal(20, 5, seed=1)
    found = target_matrix(x, y)
    assert torch.equal(found.Z, y.T @ x)
    assert torch.equal(found.transform, torch.eye(4).double())
    W = normal(5, 4, seed=2)
    slope = torch.func.grad(lambda W: (x @ W.T - y).square().sum() / 2)(W)
    torch.testing.assert_close(slope, W - found.Z)


def test_other_inputs_are_made_white() -> None:
    x, y = normal(20, 4) @ normal(4, 4, seed=3), normal(20, 5, seed=1)
    with pytest.raises(ValueError, match=r"x is not white: .* whiten=True"):
        target_matrix(x, y)
    found = target_matrix(x, y, whiten=True)
    white = x @ found.transform
    again = target_matrix(white, y)
    torch.testing.assert_close(again.Z, found.Z)
    solution = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(found.Z @ found.transform, solution)
    with pytest.raises(ValueError, match="the columns of x depend on each other"):
        target_matrix(torch.cat([x, x[:, :1]], 1), y, whiten=True)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_alignment_does_not_depend_on_signs_or_rotations(seed: int) -> None:
    u, v = unit(5, seed=seed), unit(4, seed=seed + 1)
    plain = alignment(torch.outer(u, v), Z)
    negative = alignment(torch.outer(-u, -v), Z)
    torch.testing.assert_close(negative.a, plain.a)
    left, right = orthogonal(5, seed), orthogonal(4, seed + 1)
    turned = alignment(left @ torch.outer(u, v) @ right.T, left @ Z @ right.T)
    torch.testing.assert_close(turned.q, plain.q)
    torch.testing.assert_close((turned.a + turned.b).abs(), (plain.a + plain.b).abs())
    assert float(plain.q) == pytest.approx(float((S * plain.a * plain.b).sum()))
    assert float(plain.q) == pytest.approx(float(u @ Z @ v))


def test_the_predictor_refuses_what_the_theory_does_not_cover() -> None:
    wide = DeepLinear([4, 3, 3, 5])
    with pytest.raises(ValueError, match=r"width of 1, but are \[4, 3, 3, 5\]"):
        wide.rank_one()
    with pytest.raises(ValueError, match="at least two layers"):
        DeepLinear([4, 1]).rank_one()
    with pytest.raises(ValueError, match="bias=False"):
        DeepLinear([4, 1, 2], bias=True).rank_one()
    net = DeepLinear(DIMS, generator=generator(), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"not balanced: the gap is .* tol=1e-06; balance_"):
        net.rank_one()
    balance_(net).rank_one()
    with torch.no_grad():
        net.weights[0].mul_(1 + 1e-8)
    with pytest.warns(UserWarning, match="not quite balanced"):
        net.rank_one()


E1 = torch.eye(5).double()[0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DeepLinear([3]), "dims must hold at least"),
        (lambda: DeepLinear([3, 0, 2]), r"dims\[1\] must be >= 1"),
        (lambda: DeepLinear([3, 1])(torch.ones(2, 4)), r"x must have shape \(batch, 3\)"),
        (lambda: DeepLinear.from_weights([torch.ones(2, 3), torch.ones(1, 3)]), r"weights\[1\] of shape \(1, 3\)"),
        (lambda: balanced_init_(DeepLinear([3, 1, 2]), -1.0), "s0 must be at least 0"),
        (lambda: balanced_init_(DeepLinear([3, 1, 2]), math.nan), "s0 holds 1 NaN"),
        (lambda: balanced_init_(DeepLinear([3, 1, 2]), 1.0, torch.zeros(2)), "u must have a length above 0"),
        (lambda: balanced_init_(DeepLinear([3, 1, 2]), 1.0, torch.ones(3)), r"u must have shape \(2,\)"),
        (lambda: balance_(DeepLinear([3, 1, 2], bias=True)), "bias=False"),
        (lambda: balance_(DeepLinear.from_weights([torch.full((2, 3), math.nan)])), r"weights\[0\] holds 6 NaN"),
        (lambda: predict_limit(Z, E1, 2 * V[:, 0]), "v0 must have length 1"),
        (lambda: predict_limit(Z, E1[:4], V[:, 0]), r"u0 must have shape \(5,\)"),
        (lambda: predict_limit(0 * Z, E1, V[:, 0]), "Z is zero"),
        (lambda: predict_limit(Z, E1, V[:, 0], s0=-1.0), "s0 must lie in"),
        (lambda: predict_limit(Z / 0, E1, V[:, 0]), "Z holds 20 NaN or infinite"),
        (lambda: predicted_rates(Z, 1), "depth must be >= 2"),
        (lambda: escape_time(0.0, 1.0, 3), "s0 must lie in"),
        (lambda: escape_time(0.1, -1.0, 3), "q must lie in"),
        (lambda: rank_one_flow(Z, 0.0, E1, V[:, 0], 3, TIMES), "s0 must be above 0"),
        (lambda: rank_one_flow(Z, 0.1, E1, V[:, 0], 1, TIMES), "depth must be >= 2"),
        (lambda: rank_one_flow(Z, 0.1, E1, V[:, 0], 3, -TIMES), "t must rise"),
        (lambda: rank_one_flow(Z[None, None], 0.1, E1, V[:, 0], 3, TIMES), r"Z must have shape \(m, n\) or"),
        (lambda: alignment(Z * math.nan, Z), "W holds 20 NaN"),
        (lambda: target_matrix(torch.ones(3, 2), torch.ones(4, 1)), "y must have as many rows as x"),
    ],
)
@pytest.mark.untyped
def test_bad_arguments(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_everything_is_exported() -> None:
    assert {"DeepLinear", "alignment", "balance_", "predict_limit", "rank_one_flow"} <= set(dynamics.__all__)
