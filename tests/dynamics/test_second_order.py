from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from torchstone.dynamics import NewtonLinear, RegularizedGaussNewton, Whitening
from torchstone.dynamics.second_order import damped_inverse
from torchstone.errors import DivergedError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    with torch.no_grad():
        for number, p in enumerate(net.parameters()):
            p.copy_(normal(*p.shape, seed=seed + number) / 2)
    return net


def batch(n: int = 20) -> tuple[Tensor, Tensor]:
    return normal(n, 4, seed=7), normal(n, 3, seed=8)


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def gauss_newton(net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """J^T H J, literally: one sample and one output after the other."""
    total = torch.zeros(len(flat(net)), len(flat(net)), dtype=torch.float64)
    for sample, label in zip(x, y, strict=True):
        outputs = net(sample[None])[0]
        rows = [torch.autograd.grad(output, tuple(net.parameters()), retain_graph=True) for output in outputs]
        jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        hessian = torch.autograd.functional.hessian(lambda f, t=label: loss(f[None], t[None]), outputs.detach())
        assert isinstance(hessian, Tensor)
        total += jacobian.T @ hessian @ jacobian / len(x)
    return total


# ---------------------------------------------------------------- the damped inverse


def test_damped_inverse_by_hand():
    moment = torch.diag(torch.tensor([6.0, 2.0, 1.0, 0.0, 0.0, 0.0])).double()  # c = 1.5
    half = damped_inverse(moment, 0.5).diagonal()
    torch.testing.assert_close(half, 1 / (0.5 * moment.diagonal() + 0.75))
    torch.testing.assert_close(damped_inverse(moment, 0.0).diagonal(), torch.tensor([1 / 6, 0.5, 1, 0, 0, 0]).double())
    torch.testing.assert_close(damped_inverse(moment, 1.0), torch.eye(6).double() / 1.5)


def test_a_damping_for_each_matrix_and_the_gap_to_zero_closes():
    x = normal(3, 9, 4)
    moments = x.mT @ x
    dampings = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    together = damped_inverse(moments, dampings)
    for s in range(3):
        torch.testing.assert_close(together[s], damped_inverse(moments[s], float(dampings[s])))
    torch.testing.assert_close(damped_inverse(moments, 1e-12), torch.linalg.inv(moments))


# ---------------------------------------------------------------- a linear layer


@pytest.mark.parametrize(("n", "d"), [(30, 6), (5, 9)])
def test_one_newton_step_solves_least_squares_from_where_it_starts(n: int, d: int):
    x, y, start = normal(n, d), normal(n, 2, seed=1), normal(2, d, seed=2)
    found = NewtonLinear(x).solve(y, start)
    nearest = start + (torch.linalg.pinv(x) @ (y - x @ start.T)).T
    torch.testing.assert_close(found, nearest)
    torch.testing.assert_close(NewtonLinear(x).solve(y), torch.linalg.lstsq(x, y, driver="gelsd").solution.T)


def test_newton_is_gradient_descent_on_whitened_inputs():
    """W -> W F^{1/2}, in which the inputs are X F^{-1/2}: with lr 1, one step to the optimum of both."""
    x, y, start = normal(40, 6) * torch.arange(1, 7), normal(40, 3, seed=1), normal(3, 6, seed=2)
    whitening = Whitening(rescale=False).fit(x)
    white = whitening(x) * len(x) ** 0.5  # F = X^T X / n
    newton = NewtonLinear(x)
    for lr in (1.0, 0.3):
        weight, turned = start, start @ whitening.inverse / len(x) ** 0.5
        for _ in range(5):
            weight = newton.solve(y, weight, lr=lr)
            turned = turned - lr * (white @ turned.T - y).T @ white / len(x)
            torch.testing.assert_close(x @ weight.T, white @ turned.T, atol=1e-10, rtol=0)


def test_any_loss_goes_through_its_gradient_at_the_outputs():
    x, weight, label = normal(40, 6), normal(3, 6, seed=2), torch.arange(40) % 3
    outputs = (x @ weight.T).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(outputs, label), outputs)
    leaf = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(x @ leaf.T, label), leaf)
    for damping in (0.0, 0.1):
        solver = NewtonLinear(x, damping=damping)
        expected = weight - 0.5 * slope @ solver.preconditioner
        torch.testing.assert_close(solver.step(weight, gradient, lr=0.5), expected)


def test_damping_one_is_gradient_descent_step_for_step():
    x, y = normal(40, 6), normal(40, 3, seed=1)
    solver = NewtonLinear(x, damping=1.0)
    c = float(solver.moment.trace()) / 6
    weight, leaf = normal(3, 6, seed=2), normal(3, 6, seed=2).requires_grad_()
    sgd = torch.optim.SGD([leaf], lr=0.2 / c)
    for _ in range(20):
        weight = solver.solve(y, weight, lr=0.2)
        sgd.zero_grad()
        ((x @ leaf.T - y).square().sum() / 80).backward()
        sgd.step()
        torch.testing.assert_close(weight, leaf.detach(), atol=1e-12, rtol=0)


def test_problems_solved_at_once_are_those_solved_alone():
    x, y = normal(3, 8, 5), normal(3, 8, 2, seed=1)
    together = NewtonLinear(x, damping=torch.tensor([0.0, 0.1, 1.0])).solve(y)
    for s, damping in enumerate((0.0, 0.1, 1.0)):
        torch.testing.assert_close(together[s], NewtonLinear(x[s], damping=damping).solve(y[s]))


# ---------------------------------------------------------------- a network


@pytest.mark.parametrize("classes", [False, True], ids=["squares", "cross entropy"])
@pytest.mark.parametrize("damping", [0.1, 0.9])
def test_a_step_against_the_literal_matrix(damping: float, classes: bool):
    net, (x, y) = network(), batch()
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy if classes else mse_loss
    y = y.argmax(1) if classes else y
    matrix = gauss_newton(net, loss, x, y)
    before, gradient = flat(net), torch.autograd.grad(loss(net(x), y), tuple(net.parameters()))
    c = matrix.trace() / len(matrix)
    damped = (1 - damping) * matrix + damping * c * torch.eye(len(matrix)).double()
    expected = before - 0.7 * torch.linalg.solve(damped, torch.cat([part.flatten() for part in gradient]))
    value = RegularizedGaussNewton(net.parameters(), 0.7, damping, net, loss).step(lambda: (x, y))
    assert float((flat(net) - expected).abs().max()) < 1e-8
    torch.testing.assert_close(value, loss(network()(x), y))


def test_conjugate_gradients_agree_with_the_exact_step():
    nets = network(), network()
    data = batch()
    for net, options in zip(nets, ({}, {"exact_below": 0, "cg_tol": 1e-12, "cg_iterations": 500}), strict=True):
        optimizer = RegularizedGaussNewton(net.parameters(), 1.0, 0.2, net, mse_loss, scale=0.5, **options)
        for _ in range(3):
            optimizer.step(lambda: data)
    torch.testing.assert_close(flat(nets[0]), flat(nets[1]), atol=1e-8, rtol=0)


def test_without_damping_a_linear_model_takes_the_newton_step():
    x, y = normal(5, 9), normal(5, 2, seed=1)
    for exact_below in (5000, 0):
        net = nn.Linear(9, 2, bias=False).double()
        expected = NewtonLinear(x).solve(y, net.weight.detach())
        optimizer = RegularizedGaussNewton(
            net.parameters(), 1.0, 0.0, net, mse_loss, exact_below=exact_below, cg_tol=1e-12
        )
        optimizer.step(lambda: (x, y))
        torch.testing.assert_close(net.weight.detach(), expected, atol=1e-8, rtol=0)


def test_full_damping_is_gradient_descent_step_for_step():
    """With c = 1 at the same learning rate; by default at lr / c, with the c of the first step."""
    data = batch()
    for scale in (1.0, None):
        net, other = network(), network()
        c = 1.0 if scale else float(gauss_newton(net, mse_loss, *data).trace()) / len(flat(net))
        ours = RegularizedGaussNewton(net.parameters(), 0.1 * c, 1.0, net, mse_loss, scale=scale)
        sgd = torch.optim.SGD(other.parameters(), lr=0.1)
        for _ in range(10):
            ours.step(lambda: data)
            sgd.zero_grad()
            mse_loss(other(data[0]), data[1]).backward()
            sgd.step()
            torch.testing.assert_close(flat(net), flat(other), atol=1e-12, rtol=0)


def test_the_trace_is_estimated_where_the_matrix_is_not_written_out():
    net, data = network(), batch()
    exact = float(gauss_newton(net, mse_loss, *data).trace()) / len(flat(net))
    generator = torch.Generator().manual_seed(0)
    optimizer = RegularizedGaussNewton(net.parameters(), 0.5, 0.3, net, mse_loss, exact_below=0, generator=generator)
    optimizer.step(lambda: data)
    assert optimizer.param_groups[0]["scale"] == pytest.approx(exact, rel=0.2)


def test_a_stopped_run_goes_on_as_if_never_stopped():
    data = batch()
    nets = [network(), network()]
    straight = RegularizedGaussNewton(nets[0].parameters(), 0.5, 0.1, nets[0], mse_loss)
    for _ in range(4):
        straight.step(lambda: data)
    first = RegularizedGaussNewton(nets[1].parameters(), 0.5, 0.1, nets[1], mse_loss)
    for _ in range(2):
        first.step(lambda: data)
    resumed = RegularizedGaussNewton(nets[1].parameters(), 9.0, 0.9, nets[1], mse_loss)
    resumed.load_state_dict(first.state_dict())
    for _ in range(2):
        resumed.step(lambda: data)
    assert torch.equal(flat(nets[0]), flat(nets[1]))


def test_some_parameters_alone_and_the_mode_of_the_network():
    first, last = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()
    net, data = nn.Sequential(first, nn.Dropout(0.5), last), batch()
    frozen = first.weight.detach().clone()
    optimizer = RegularizedGaussNewton(last.parameters(), 1.0, 0.0, net, mse_loss)
    optimizer.step(lambda: data)
    assert torch.equal(first.weight, frozen)
    assert net.training
    net.eval()
    hidden = torch.cat([first(data[0]), torch.ones(20, 1)], 1).detach()
    best = hidden @ torch.linalg.lstsq(hidden, data[1]).solution
    torch.testing.assert_close(net(data[0]).detach(), best, atol=1e-8, rtol=0)


# ---------------------------------------------------------------- errors


def make(net: nn.Module | None = None, **options: Any) -> RegularizedGaussNewton:
    net = nn.Linear(4, 3).double() if net is None else net
    arguments = {"lr": 1.0, "damping": 0.1, "model_fn": net, "loss_fn": mse_loss, **options}
    return RegularizedGaussNewton(net.parameters(), **arguments)


def groups() -> None:
    net = network()
    parts: Any = [{"params": net[0].parameters()}, {"params": net[2].parameters()}]
    RegularizedGaussNewton(parts, 1.0, 0.1, net, mse_loss)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: damped_inverse(torch.eye(2), 1.5), ValueError, r"damping must lie in \[0, 1\], but is 1.5"),
        (lambda: NewtonLinear(torch.ones(3, 2), damping=-0.1), ValueError, r"damping must lie in \[0, 1\]"),
        (lambda: NewtonLinear(torch.ones(3)), ValueError, r"x must have shape \(n, d\) or \(s, n, d\)"),
        (lambda: NewtonLinear(torch.ones(3, 2).long()), TypeError, "x must be floating point"),
        (lambda: NewtonLinear(torch.full((3, 2), float("inf"))), ValueError, "x holds 6 NaN or infinite"),
        (lambda: NewtonLinear(torch.ones(3, 2)).solve(torch.ones(4, 1)), ValueError, r"y must have shape \(3, 1\)"),
        (
            lambda: NewtonLinear(torch.ones(3, 2)).solve(torch.ones(3, 1), torch.ones(1, 3)),
            ValueError,
            r"weight must have shape \(1, 2\), but has \(1, 3\)",
        ),
        (lambda: make(damping=1.1), ValueError, r"damping must lie in \[0, 1\], but is 1.1"),
        (lambda: make(lr=-1.0), ValueError, "lr must lie in"),
        (lambda: make(scale=0.0), ValueError, "scale must lie in"),
        (lambda: make(model_fn=torch.sin), TypeError, "model_fn must be the network"),
        (lambda: make(loss_fn=None), TypeError, "loss_fn its loss"),
        (groups, ValueError, "params must be in one group"),
        (
            lambda: make().step(lambda: (torch.full((2, 4), float("nan")).double(), torch.ones(2, 3).double())),
            DivergedError,
            "the loss is nan before the step, and it or its gradient is not finite",
        ),
    ],
)
def test_errors_name_argument_and_limit(act: Any, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        act()
