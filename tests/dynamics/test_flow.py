from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchstone.dynamics import gradient_flow
from torchstone.dynamics.flow import integrate
from torchstone.errors import DivergedError, MissingDependencyError

T = torch.linspace(0, 3, 7, dtype=torch.float64)
ONE, STACK = ("dop853", "rk45", "radau", "lsoda", "bdf", "dopri8", "dopri5"), ("dopri8", "dopri5")


class Values(nn.Module):
    """A network that is nothing but its parameters."""

    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        self.values = nn.ParameterList(values)


def quartic(net: Values) -> Tensor:
    """sum of x^4 / 4 over all but the first axis of a stack of (stack, n)."""
    return net.values[0].pow(4).sum(-1) / 4


def quartic_flow(x0: Tensor, t: Tensor) -> Tensor:
    """x' = -x^3 solved by hand."""
    return x0 / (1 + 2 * x0**2 * t).sqrt()


@pytest.mark.parametrize("method", ONE)
def test_one_network_against_the_solution_by_hand(method: str) -> None:
    x0 = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loose = method in ("rk45", "radau", "bdf")
    rtol, atol = (1e-6, 1e-8) if loose else (1e-9, 1e-12)
    flow = gradient_flow(Values(x0), quartic, T, method=method, rtol=rtol, atol=atol)
    expected = quartic_flow(x0, T[:, None])
    torch.testing.assert_close(flow.states["values.0"], expected, rtol=1e-4 if loose else 1e-7, atol=0)
    torch.testing.assert_close(flow.loss, flow.states["values.0"].pow(4).sum(-1) / 4)
    assert bool((flow.loss.diff() < 0).all())


@pytest.mark.parametrize("method", STACK)
def test_a_stack_is_as_exact_as_its_fastest_network_alone(method: str) -> None:
    """One network of the stack is a thousand times faster than another; each has times of its own besides."""
    x0 = torch.tensor([[0.1, 0.2], [100.0, 30.0], [1.0, -2.0]], dtype=torch.float64)
    times = T[:, None] * torch.tensor([1.0, 0.5, 7.0])
    for t in (T, times):
        flow = gradient_flow(Values(x0), quartic, t, method=method)
        at = t[:, None] if t.ndim == 1 else t
        torch.testing.assert_close(flow.states["values.0"], quartic_flow(x0, at[..., None]), rtol=1e-8, atol=0)
        assert flow.loss.shape == (7, 3)


def test_times_need_not_be_regular() -> None:
    x0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    t = torch.tensor([1e-6, 0.5, 0.5001, 40.0], dtype=torch.float64)
    dense, _ = integrate(lambda x: -(x**3), x0, t)
    torch.testing.assert_close(dense, quartic_flow(x0, t[:, None, None]), rtol=1e-8, atol=0)
    both, _ = integrate(lambda x: -(x**3), x0, torch.tensor([[1.0, 2.0], [8.0, 2.5]], dtype=torch.float64))
    alone, _ = integrate(lambda x: -(x**3), x0[1], torch.tensor([2.0, 2.5], dtype=torch.float64))
    torch.testing.assert_close(both[:, 1], alone, rtol=1e-8, atol=0)


def test_the_start_is_what_one_gets_at_time_zero() -> None:
    for start in (torch.ones(2).double(), torch.ones(3, 2).double()):
        path, calls = integrate(lambda x: -x, start, torch.zeros(1))
        assert torch.equal(path[0], start)
        assert calls == 0


def test_many_short_intervals_cost_little_more_than_one_long() -> None:
    x0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    _, long = integrate(lambda x: -(x**3), x0, torch.tensor([3.0]))
    _, short = integrate(lambda x: -(x**3), x0, torch.linspace(0.03, 3, 100))
    assert short < 100 * 14 + 2 * long  # one step an interval, no search for its size


def test_two_parameters_stay_apart_and_the_module_is_left_alone() -> None:
    net = Values(torch.tensor([[2.0, 1.0]]).double(), torch.tensor(3.0).double())
    net.values[0].grad = torch.ones(1, 2).double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flow = gradient_flow(net, lambda net: net.values[0].square().sum() / 2 + net.values[1].square(), T)
    torch.testing.assert_close(flow.states["values.0"], before["values.0"] * (-T).exp()[:, None, None])
    torch.testing.assert_close(flow.states["values.1"], before["values.1"] * (-2 * T).exp())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.values[0].grad, torch.ones(1, 2).double())
    net.load_state_dict(flow.at(-1), strict=False)
    assert net.values[1].item() == pytest.approx(3 * math.exp(-6))


def test_what_is_frozen_or_unused_stays() -> None:
    net = Values(*torch.ones(3).double())
    net.values[0].requires_grad_(False)
    flow = gradient_flow(net, lambda net: (net.values[0] * net.values[1]).square(), T)
    assert flow.states.keys() == {"values.1", "values.2"}
    assert bool((flow.states["values.2"] == 1).all())
    assert bool((flow.states["values.1"].diff() < 0).all())


def test_under_no_grad_the_gradient_is_still_taken() -> None:
    with torch.no_grad():
        flow = gradient_flow(Values(torch.ones(1).double()), quartic, T)
    assert flow.loss[-1] < flow.loss[0]
    assert not flow.loss.requires_grad


@pytest.mark.parametrize("start", [torch.ones(1).double(), torch.ones(2, 1).double()], ids=["one", "stack"])
def test_a_flow_that_leaves_the_finite_numbers_says_so(start: Tensor) -> None:
    net = Values(start)
    with pytest.raises(DivergedError, match="gradient flow"):  # x' = x^3 from 1 is infinite at t = 1/2
        gradient_flow(net, lambda net: -quartic(net), T, rtol=1e-4)
    assert torch.equal(net.values[0], start)


@pytest.mark.parametrize("start", [torch.ones(1).double(), torch.ones(2, 1).double()], ids=["one", "stack"])
def test_the_budget_of_evaluations_is_kept(start: Tensor) -> None:
    calls = 0

    def loss(net: Values) -> Tensor:
        nonlocal calls
        calls += 1
        return quartic(net)

    with pytest.raises(RuntimeError, match="max_evaluations=30 were not enough"):
        gradient_flow(Values(start), loss, T, max_evaluations=30)
    assert calls <= 32


def test_float32_brings_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"float32.*module\.double\(\)"):
        flow = gradient_flow(Values(torch.ones(2)), quartic, T.float(), rtol=1e-4, atol=1e-5)
    assert flow.states["values.0"].dtype == torch.float32
    torch.testing.assert_close(flow.states["values.0"][-1, 0].item(), 1 / math.sqrt(7), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: gradient_flow(net, quartic, torch.tensor([0.0, 0.0])), "t must rise"),
        (lambda net: gradient_flow(net, quartic, torch.tensor([-1.0])), "t must rise and not begin before 0"),
        (lambda net: gradient_flow(net, quartic, torch.tensor([])), "t is empty"),
        (lambda net: gradient_flow(net, quartic, torch.tensor([math.nan])), "t holds 1 NaN"),
        (lambda net: gradient_flow(net, quartic, T[:, None, None]), r"t must have shape \(times,\) or \(times, 2\)"),
        (lambda net: gradient_flow(net, quartic, T, method="euler"), "method must be one of 'dopri8'"),
        (lambda net: gradient_flow(net, quartic, T, method="dop853"), "method must be one of 'dopri8'"),
        (lambda net: gradient_flow(net, quartic, T, rtol=0.0), r"rtol must lie in \(0, 1\]"),
        (lambda net: gradient_flow(net, quartic, T, max_evaluations=0), "max_evaluations must be >= 1"),
        (lambda net: gradient_flow(net, lambda net: net.values[0], T), r"one for each network .* has \(2, 1\)"),
        (lambda net: gradient_flow(net, lambda net: torch.ones(5), T), "returns 5 values.*'values.0' has shape"),
        (lambda net: gradient_flow(net.requires_grad_(False), quartic, T), "no parameter that requires a gradient"),
        (lambda net: gradient_flow(Values(torch.full((2, 1), math.inf).double()), quartic, T), "the start holds 2"),
        (lambda net: gradient_flow(Values(torch.ones(1), torch.ones(1).double()), quartic, T), "one dtype"),
    ],
)
@pytest.mark.untyped
def test_bad_arguments(call: Callable[[Values], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(Values(torch.ones(2, 1, dtype=torch.float64)))


def test_without_torchdiffeq_a_stack_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "torchstone\[ode\]"'):
        gradient_flow(Values(torch.ones(2, 1).double()), quartic, T)
