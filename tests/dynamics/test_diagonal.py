"""Diagonal linear networks: every formula against autograd, a literal loop, or its limits."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchstone.dynamics import (
    DiagonalLinearNetwork,
    SparseRegression,
    basis_pursuit,
    critical_step,
    diagonal_descent,
    flow_residual,
    gradient_flow_limit,
    hessian_max_eigenvalue,
    min_l2_norm,
    sharpness,
    stability_certificate,
    stability_threshold,
    weighted_l1,
)
from torchstone.training import HessianOperator


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regression(n: int = 5, d: int = 12, r: int = 2, mean: float = 1.0, seed: int = 0) -> SparseRegression:
    return SparseRegression(n, d, r, mean=mean, generator=seeded(seed))


def half_mse(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean() / 2


def autograd_descent(
    network: DiagonalLinearNetwork, x: Tensor, y: Tensor, lr: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Layers and gradients of beta along the path of ``torch.optim.SGD``: (steps + 1, 2, d) and (steps, d)."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    path, slopes = [network.layers.detach().clone()], []
    for _ in range(steps):
        optimizer.zero_grad()
        half_mse(network(x), y).backward()
        slopes.append(x.T @ (x @ network.beta.detach() - y) / len(x))
        optimizer.step()
        path.append(network.layers.detach().clone())
    return torch.stack(path), torch.stack(slopes)


def random_network(d: int, depth: int = 2, parametrization: str = "uv", seed: int = 0) -> DiagonalLinearNetwork:
    network = DiagonalLinearNetwork(d, depth, alpha=1.0, parametrization=parametrization)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        network.layers.copy_(torch.randn(network.layers.shape, generator=seeded(seed), dtype=torch.float64))
    return network


class TestNetwork:
    def test_start(self) -> None:
        for depth in (2, 3):
            network = DiagonalLinearNetwork(4, depth, alpha=0.5)
            assert network.beta.abs().max().item() == 0
            torch.testing.assert_close(network.layers[0], torch.full((4,), 0.5 * 2**0.5).double())
        torch.testing.assert_close(
            DiagonalLinearNetwork(3, alpha=0.5, parametrization="squares").layers,
            torch.full((2, 3), 0.5 / 2**0.5).double(),
        )

    def test_gradient_is_the_closed_form(self) -> None:
        data, network = regression(), random_network(12)
        half_mse(network(data.x), data.y).backward()
        u, v = network.layers.detach()
        g = data.x.T @ (data.x @ (u * v) - data.y) / 5
        torch.testing.assert_close(network.layers.grad, torch.stack([g * v, g * u]), atol=1e-12, rtol=1e-12)

    @pytest.mark.parametrize("depth", [2, 3])
    @pytest.mark.parametrize("parametrization", ["uv", "squares"])
    def test_spectrum_at_an_interpolator(self, depth: int, parametrization: str) -> None:
        """The non-zero eigenvalues of the whole Hessian are those of the N x N matrix."""
        x, network = regression().x, random_network(12, depth, parametrization)
        y = network(x).detach()
        operator = HessianOperator(network, half_mse, (x, y))
        whole = torch.linalg.eigvalsh(operator.dense())
        small = torch.linalg.eigvalsh((x * network.squared_slopes.detach()) @ x.T / 5)
        torch.testing.assert_close(whole[-5:], small, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(whole[:-5], torch.zeros(len(whole) - 5).double(), atol=1e-10, rtol=0)
        torch.testing.assert_close(sharpness(network, x), small[-1])
        largest = hessian_max_eigenvalue(network, half_mse, (x, y), generator=seeded())
        assert largest == pytest.approx(small[-1].item(), rel=1e-6)

    def test_elsewhere_the_sharpness_has_another_part(self) -> None:
        data, network = regression(), random_network(12)
        exact = hessian_max_eigenvalue(network, half_mse, (data.x, data.y), generator=seeded())
        assert abs(exact - sharpness(network, data.x).item()) > 1e-2

    def test_half_the_step_in_squares(self) -> None:
        data = regression()
        lr = 0.9 * critical_step(data.x, 0.3).item()
        uv, _ = autograd_descent(DiagonalLinearNetwork(12, alpha=0.3), data.x, data.y, lr, 200)
        squares = DiagonalLinearNetwork(12, alpha=0.3, parametrization="squares")
        w, _ = autograd_descent(squares, data.x, data.y, lr / 2, 200)
        torch.testing.assert_close(uv.prod(1), w[:, 0].square() - w[:, 1].square(), atol=1e-12, rtol=1e-12)

    def test_imbalance_under_gradient_descent(self) -> None:
        """(u^2 - v^2)' = (u^2 - v^2) (1 - lr^2 g^2) exactly, also beyond the limit of stability."""
        data = regression()
        lr = 1.2 * critical_step(data.x, 0.7).item()
        path, slopes = autograd_descent(DiagonalLinearNetwork(12, alpha=0.7), data.x, data.y, lr, 100)
        imbalance = path[:, 0].square() - path[:, 1].square()
        torch.testing.assert_close(
            imbalance[1:], imbalance[:-1] * (1 - lr**2 * slopes.square()), atol=1e-13, rtol=1e-11
        )
        assert (imbalance[-1] - imbalance[0]).abs().max().item() > 1e-3

    def test_gradient_flow_conserves_the_imbalance(self) -> None:
        data, network = regression(), random_network(12)
        u, v = network.layers.detach()
        g = data.x.T @ (data.x @ (u * v) - data.y) / 5
        torch.testing.assert_close(2 * (u * -(g * v) - v * -(g * u)), torch.zeros(12).double(), atol=1e-14, rtol=0)

    @pytest.mark.untyped
    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="alpha must lie"):
            DiagonalLinearNetwork(3, alpha=0.0)
        with pytest.raises(ValueError, match="depth must be >= 2"):
            DiagonalLinearNetwork(3, 1, alpha=1.0)
        with pytest.raises(ValueError, match="'uv', 'squares'"):
            random_network(3, parametrization="cubes")
        with pytest.raises(ValueError, match=r"\(\.\.\., 3\), but has \(2, 4\)"):
            DiagonalLinearNetwork(3, alpha=1.0)(torch.ones(2, 4).double())


class TestStability:
    @given(seed=st.integers(0, 10_000), mean=st.floats(-3, 3))
    def test_sharpness_bounds_the_weighted_l1_norm(self, seed: int, mean: float) -> None:
        """lambda_max / 2 >= sum_i (X^T a)_i^2 / N |beta_i| for any u, v and a."""
        x, network = regression(mean=mean, seed=seed).x, random_network(12, seed=seed)
        half = sharpness(network, x).item() / 2
        direction = torch.randn(5, generator=seeded(seed), dtype=torch.float64)
        for a in (None, direction):
            assert weighted_l1(network.beta.detach(), x, direction=a).item() <= half * (1 + 1e-12)

    def test_weighted_l1_by_hand(self) -> None:
        x, beta = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([1.0, -2.0])
        assert weighted_l1(beta, x).item() == pytest.approx(6)
        assert weighted_l1(beta, x, direction=torch.tensor([0.0, 7.0])).item() == pytest.approx((9 + 2 * 4) / 2)
        assert weighted_l1(beta, x - x.mean(0)).item() == pytest.approx(0)

    @pytest.mark.parametrize(("parametrization", "share"), [("uv", 1.0), ("squares", 0.5)])
    def test_certificate(self, parametrization: str, share: float) -> None:
        x, network = regression().x, random_network(12, parametrization=parametrization)
        found = stability_certificate(network, x, lr=0.01)
        assert found.threshold == stability_threshold(0.01) == 200
        assert found.bound == 100 * share
        assert found.slack == pytest.approx(found.bound - weighted_l1(network.beta.detach(), x).item())
        assert found.stable == (found.sharpness <= 200)
        assert found.weighted_l1 / found.bound <= found.sharpness / found.threshold

    def test_the_certificate_is_tight_on_equal_samples(self) -> None:
        network = random_network(1)
        with torch.no_grad():
            network.layers[1] = network.layers[0]
        found = stability_certificate(network, torch.full((3, 1), 2.0).double(), lr=0.1)
        assert found.weighted_l1 / found.bound == pytest.approx(found.sharpness / found.threshold)

    def test_the_critical_step_is_where_the_start_becomes_unstable(self) -> None:
        data = regression()
        network = DiagonalLinearNetwork(12, alpha=0.3)
        at_start = sharpness(network, data.x).item()
        assert stability_threshold(critical_step(data.x, 0.3).item()) == pytest.approx(at_start)

    @pytest.mark.untyped
    def test_errors(self) -> None:
        x = regression().x
        with pytest.raises(ValueError, match="lr must lie"):
            stability_threshold(0.0)
        with pytest.raises(ValueError, match="depth 2, but has 3"):
            stability_certificate(DiagonalLinearNetwork(12, 3, alpha=1.0), x, lr=0.1)
        with pytest.raises(ValueError, match="beta must have as many columns"):
            weighted_l1(torch.ones(3), x)
        with pytest.raises(ValueError, match="other than zero"):
            weighted_l1(torch.ones(12).double(), x, direction=torch.zeros(5).double())
        with pytest.raises(ValueError, match="alpha must be positive and finite"):
            critical_step(x, torch.tensor(-1.0))


class TestDescent:
    @pytest.mark.parametrize("n", [5, 8])  # products with X, and with X^T X
    def test_equals_the_optimizer_on_the_network(self, n: int) -> None:
        data = regression(n=n)
        lr = 0.5 * critical_step(data.x, 0.7).item()
        path, _ = autograd_descent(DiagonalLinearNetwork(12, alpha=0.7), data.x, data.y, lr, 250)
        found = diagonal_descent(data.x, data.y, alpha=0.7, lr=lr, steps=250, tol=0.0)
        torch.testing.assert_close(torch.stack([found.u, found.v]), path[-1], atol=1e-12, rtol=1e-12)
        assert found.steps.item() == 250
        assert found.loss.item() == pytest.approx(half_mse(data.x @ found.beta, data.y).item())

    @pytest.mark.parametrize("n", [20, 30])
    def test_stacked_is_bit_for_bit_single(self, n: int) -> None:
        """Also where one diverges, one is done early, and steps overshoot: rounding would be amplified."""
        problems = [regression(n, 50, 3, mean=3.0, seed=seed) for seed in range(4)]
        x, y = torch.stack([p.x for p in problems]), torch.stack([p.y for p in problems])
        alpha = torch.tensor([0.3, 0.3, 0.3, 1.0]).double()
        lr = torch.tensor([0.9, 1.3, 3.0, 0.9]).double() * torch.stack(
            [critical_step(p.x, float(a)) for p, a in zip(problems, alpha, strict=True)]
        )
        stacked = diagonal_descent(x, y, alpha=alpha, lr=lr, steps=1500, tol=1e-4)
        for s in range(4):
            single = diagonal_descent(x[s], y[s], alpha=alpha[s], lr=lr[s], steps=1500, tol=1e-4)
            for name in ("u", "v", "loss", "steps", "converged", "diverged"):
                assert torch.equal(getattr(stacked, name)[s].nan_to_num(), getattr(single, name).nan_to_num()), (
                    s,
                    name,
                )
        assert stacked.diverged.tolist() == [False, False, True, False]
        assert int(stacked.steps[2]) < 1500
        assert stacked.beta[[0, 1, 3]].isfinite().all()

    def test_other_problems_do_not_change_a_bit(self) -> None:
        a, b = regression(seed=1), regression(seed=2)
        lr = 0.5 * critical_step(a.x, 0.3).item()
        first = diagonal_descent(torch.stack([a.x, b.x]), torch.stack([a.y, b.y]), alpha=0.3, lr=lr, steps=300)
        second = diagonal_descent(torch.stack([a.x, 9 * b.x]), torch.stack([a.y, b.y]), alpha=0.3, lr=lr, steps=300)
        assert torch.equal(first.u[0], second.u[0])

    def test_going_on_from_where_it_stopped(self) -> None:
        data = regression()
        lr = 0.5 * critical_step(data.x, 0.3).item()
        whole = diagonal_descent(data.x, data.y, alpha=0.3, lr=lr, steps=300, tol=0.0)
        half = diagonal_descent(data.x, data.y, alpha=0.3, lr=lr, steps=150, tol=0.0)
        rest = diagonal_descent(data.x, data.y, lr=lr, steps=150, tol=0.0, start=(half.u, half.v))
        assert torch.equal(whole.u, rest.u)

    def test_every_step_is_counted(self) -> None:
        data, calls = regression(), []
        found = diagonal_descent(data.x, data.y, alpha=0.3, lr=1e-4, steps=130, on_step=lambda: calls.append(1))
        assert len(calls) == int(found.steps) == 130
        assert not found.converged
        assert not found.diverged

    def test_converged_runs_obey_the_bound(self) -> None:
        problems = [SparseRegression(10, 30, 2, mean=3.0, generator=seeded(s)) for s in range(4) for _ in range(4)]
        x, y = torch.stack([p.x for p in problems]), torch.stack([p.y for p in problems])
        alpha = 0.4
        lr = critical_step(x, alpha) * torch.tensor([0.5, 0.9, 1.2, 1.5]).double().repeat(4)
        found = diagonal_descent(x, y, alpha=alpha, lr=lr, steps=10_000, tol=1e-8)
        done = found.converged
        assert int(done.sum()) >= 8
        assert (lr * weighted_l1(found.beta, x))[done].max().item() <= 1
        assert (lr * sharpness(found.squared_slopes, x) / 2)[done].max().item() <= 1.01

    @pytest.mark.untyped
    def test_errors(self) -> None:
        data = regression()
        with pytest.raises(ValueError, match="lr must lie"):
            diagonal_descent(data.x, data.y, lr=0.0)
        with pytest.raises(ValueError, match="lr must be positive and finite"):
            diagonal_descent(data.x, data.y, lr=torch.tensor(torch.nan))
        with pytest.raises(ValueError, match="y must have the shape"):
            diagonal_descent(data.x, data.y[:-1], lr=0.1)
        with pytest.raises(ValueError, match="x holds"):
            diagonal_descent(data.x * torch.nan, data.y, lr=0.1)
        with pytest.raises(ValueError, match="steps must be >= 1"):
            diagonal_descent(data.x, data.y, lr=0.1, steps=0)


class TestLimits:
    @pytest.mark.parametrize(("mean", "share"), [(0.0, 0.003), (3.0, 0.02)])
    def test_small_steps_follow_the_flow(self, mean: float, share: float) -> None:
        data = regression(3, 6, mean=mean)
        limit = gradient_flow_limit(data.x, data.y, alpha=0.7)
        assert flow_residual(limit, data.x, alpha=0.7).item() < 1e-12
        lr = share * critical_step(data.x, 0.7).item()
        fine, coarse = (
            diagonal_descent(data.x, data.y, alpha=0.7, lr=step, steps=50_000, tol=1e-9) for step in (lr, 10 * lr)
        )
        assert fine.converged
        assert flow_residual(fine.beta, data.x, alpha=0.7).item() < 1e-4
        assert flow_residual(coarse.beta, data.x, alpha=0.7).item() > 1e-4
        torch.testing.assert_close(fine.beta, limit, atol=1e-3, rtol=0)

    def test_the_limit_minimises_its_potential(self) -> None:
        """Q, literally from its definition, is higher on every other solution."""
        data, alpha = regression(), 0.4

        def potential(beta: Tensor) -> Tensor:
            z = 2 * beta / alpha**2
            return (alpha**2 / 2 * (2 - (4 + z**2).sqrt() + z * torch.asinh(z / 2))).sum()

        limit = gradient_flow_limit(data.x, data.y, alpha=alpha)
        torch.testing.assert_close(data.x @ limit, data.y, atol=1e-9, rtol=0)
        kernel = torch.linalg.svd(data.x).Vh[5:]
        for seed in range(5):
            other = limit + 0.01 * torch.randn(7, generator=seeded(seed), dtype=torch.float64) @ kernel
            assert potential(other) > potential(limit)

    def test_kernel_and_rich_ends(self) -> None:
        data = regression(10, 40, 2)
        ends = {"l2": min_l2_norm(data.x, data.y), "l1": basis_pursuit(data.x, data.y)}
        assert ends["l1"].abs().sum() < ends["l2"].abs().sum()
        assert ends["l2"].norm() < ends["l1"].norm()
        torch.testing.assert_close(ends["l1"], data.beta, atol=1e-8, rtol=0)
        torch.testing.assert_close(gradient_flow_limit(data.x, data.y, alpha=1e3), ends["l2"], atol=1e-8, rtol=0)
        torch.testing.assert_close(gradient_flow_limit(data.x, data.y, alpha=1e-8), ends["l1"], atol=1e-4, rtol=0)

    def test_stacked_with_scales_of_their_own(self) -> None:
        problems = [regression(seed=seed) for seed in range(3)]
        x, y = torch.stack([p.x for p in problems]), torch.stack([p.y for p in problems])
        alpha = torch.tensor([10.0, 0.3, 1e-3]).double()
        for stacked, single in (
            (gradient_flow_limit(x, y, alpha=alpha), lambda s: gradient_flow_limit(x[s], y[s], alpha=float(alpha[s]))),
            (min_l2_norm(x, y), lambda s: min_l2_norm(x[s], y[s])),
            (basis_pursuit(x, y), lambda s: basis_pursuit(x[s], y[s])),
        ):
            for s in range(3):
                torch.testing.assert_close(stacked[s], single(s), atol=1e-9, rtol=1e-9)

    def test_dependent_rows(self) -> None:
        data = regression()
        x, y = data.x - data.x.mean(0), data.y - data.y.mean()  # rank 4
        found = gradient_flow_limit(x, y, alpha=0.3)
        torch.testing.assert_close(x @ found, y, atol=1e-9, rtol=0)
        torch.testing.assert_close(found, gradient_flow_limit(x[:-1], y[:-1], alpha=0.3), atol=1e-8, rtol=0)
        assert flow_residual(found, x, alpha=0.3).item() < 1e-9
        with pytest.raises(ValueError, match="no beta satisfies"):
            gradient_flow_limit(x, data.y + 1, alpha=0.3)
        with pytest.raises(ValueError, match="no solution"):
            basis_pursuit(x, data.y + 1)

    def test_errors(self) -> None:
        data = regression()
        with pytest.raises(ValueError, match="alpha must lie"):
            gradient_flow_limit(data.x, data.y, alpha=0.0)
        with pytest.raises(RuntimeError, match="after 1 iterations"):
            gradient_flow_limit(data.x, data.y, alpha=1e-3, max_iterations=1)
        for solve in (min_l2_norm, basis_pursuit):
            with pytest.raises(ValueError, match="y holds 5 NaN"):
                solve(data.x, data.y * torch.nan)


class TestData:
    def test_law(self) -> None:
        with pytest.warns(UserWarning, match="d must exceed n"):
            data = SparseRegression(20_000, 4, 2, mean=3.0, std=0.5, generator=seeded())
        torch.testing.assert_close(data.x.mean(0), torch.full((4,), 3.0).double(), atol=0.02, rtol=0)
        torch.testing.assert_close(data.x.std(0), torch.full((4,), 0.5).double(), atol=0.02, rtol=0)
        torch.testing.assert_close(data.y, data.x @ data.beta)
        assert sorted(data.beta.tolist()) == pytest.approx([0, 0, 0.5**0.5, 0.5**0.5])
        beta = torch.tensor([0.1, 0.2, -0.3, 0.5]).double()
        assert data.risk(beta).item() == pytest.approx((data.x @ beta - data.y).square().mean().item(), rel=0.02)
        assert len(data) == 20_000
        assert torch.equal(data[7][0], data.x[7])

    def test_the_mean_shifts_the_same_gaussians(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            a, b = regression(mean=0.0), regression(mean=2.0)
        torch.testing.assert_close(a.x + 2, b.x)
        assert torch.equal(a.beta, b.beta)

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"r must be in 1\.\.12, but is 13"):
            regression(r=13)
        with pytest.raises(ValueError, match="std must lie"):
            SparseRegression(2, 3, 1, std=0.0)
