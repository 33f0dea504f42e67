"""Curvature products against dense autograd, closed forms, curvlinops and numpy's way with matrices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from torchstone.models import MLP
from torchstone.training import (
    GGNOperator,
    HessianOperator,
    conjugate_gradient,
    hessian_max_eigenvalue,
    top_eigenvalues,
)

Operators = pytest.mark.parametrize("operator", [HessianOperator, GGNOperator])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(*, batch_norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(4) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(3, 4), middle, nn.Tanh(), nn.Linear(4, 2)).double()


def classes(n: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, dtype=torch.float64, generator=seeded()), torch.arange(n) % 2


def flat_loss(model: nn.Module, loss: Callable[..., Tensor], x: Tensor, y: Tensor) -> tuple[Callable[..., Any], Tensor]:
    """The loss as a function of one vector, written without the module under test."""
    names, parts = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)

    def output(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in parts])
        state = {n: piece.view_as(p) for n, p, piece in zip(names, parts, pieces, strict=True)}
        return functional_call(model, state, (x,))

    return output, torch.cat([p.detach().reshape(-1) for p in parts])


def dense(operator: type, model: nn.Module, loss: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    model.eval()
    output, theta = flat_loss(model, loss, x, y)
    if operator is HessianOperator:
        hessian: Any = torch.autograd.functional.hessian(lambda t: loss(output(t), y), theta)
        return hessian
    value = output(theta)
    jacobian: Any = torch.autograd.functional.jacobian(lambda t: output(t).reshape(-1), theta)
    bend: Any = torch.autograd.functional.hessian(lambda f: loss(f.view_as(value), y), value.reshape(-1))
    return jacobian.T @ bend @ jacobian


@Operators
@pytest.mark.parametrize("batch_norm", [False, True])
def test_products_are_those_of_the_dense_matrix(operator: type, batch_norm: bool) -> None:
    model, (x, y) = smooth(batch_norm=batch_norm), classes()
    model(x)  # running statistics other than 0 and 1
    model.train()
    found = operator(model, F.cross_entropy, (x, y)).dense()
    assert model.training
    torch.testing.assert_close(found, dense(operator, model, F.cross_entropy, x, y), atol=1e-10, rtol=1e-10)


@Operators
def test_batches_weigh_by_size_and_columns_and_chunks_agree(operator: type) -> None:
    model, (x, y) = smooth(), classes()
    whole = operator(model, F.cross_entropy, (x, y))
    batches = [(x[:5], y[:5], torch.arange(5)), (x[5:], y[5:])]
    v = torch.randn(whole.shape[0], 3, dtype=torch.float64, generator=seeded())
    expected = torch.stack([whole @ column for column in v.unbind(1)], 1)
    torch.testing.assert_close(operator(model, F.cross_entropy, batches) @ v, expected)
    torch.testing.assert_close(operator(model, F.cross_entropy, (x, y), chunk_size=2) @ v, expected)


def test_gradient_and_split() -> None:
    model, (x, y) = smooth(), classes()
    F.cross_entropy(model(x), y).backward()
    operator = HessianOperator(model, F.cross_entropy, [(x[:2], y[:2]), (x[2:], y[2:])])
    for name, part in operator.split(operator.gradient()).items():
        torch.testing.assert_close(part, model.get_parameter(name).grad)


@Operators
def test_frozen_parameters_are_constants(operator: type) -> None:
    model, (x, y) = smooth(), classes()
    first, last = model[0].requires_grad_(False), model[-1]
    found = operator(model, F.cross_entropy, (x, y))
    assert found.shape == (10, 10)
    torch.testing.assert_close(found.dense(), dense(operator, model, F.cross_entropy, x, y))
    first.requires_grad_(True)
    torch.testing.assert_close(operator(model, F.cross_entropy, (x, y), last.parameters()).dense(), found.dense())


class Tied(nn.Module):
    """w w x: one parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)
        self.second.weight = self.first.weight
        nn.init.constant_(self.first.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_tied_parameters_are_one_variable() -> None:
    # l = (w^2 - 1)^2 at w = 2: l'' = 12 w^2 - 4 = 44; the Gauss-Newton part is 2 (2 w)^2 = 32.
    data = (torch.ones(1, 1), torch.ones(1, 1))
    assert HessianOperator(Tied(), F.mse_loss, data).dense().item() == pytest.approx(44)
    assert GGNOperator(Tied(), F.mse_loss, data).dense().item() == pytest.approx(32)


def test_linear_least_squares() -> None:
    x, y = torch.randn(6, 4, dtype=torch.float64, generator=seeded()), torch.zeros(6, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    expected = 2 * x.T @ x / 6
    for operator in (HessianOperator, GGNOperator):
        torch.testing.assert_close(operator(model, F.mse_loss, (x, y)).dense(), expected)
    largest = torch.linalg.eigvalsh(expected)[-1].item()
    assert hessian_max_eigenvalue(model, F.mse_loss, (x, y), generator=seeded()) == pytest.approx(largest, rel=1e-10)


def test_the_operator_follows_the_parameters() -> None:
    model, (x, y) = smooth(), classes()
    operator = HessianOperator(model, F.cross_entropy, (x, y))
    before = operator.dense()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1.5)
    assert not torch.allclose(operator.dense(), before)
    torch.testing.assert_close(operator.dense(), dense(HessianOperator, model, F.cross_entropy, x, y))
    assert all(p.grad is None for p in model.parameters())


@Operators
def test_the_same_as_curvlinops(operator: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, at import and by forward-mode derivatives
        curvlinops = pytest.importorskip("curvlinops")
        peer = {HessianOperator: curvlinops.HessianLinearOperator, GGNOperator: curvlinops.GGNLinearOperator}[operator]
        model, (x, y) = smooth().eval(), classes()
        batches = [(x[:4], y[:4]), (x[4:], y[4:])]
        theirs = peer(model, nn.CrossEntropyLoss(), list(model.parameters()), batches)
        ours = operator(model, F.cross_entropy, batches)
        v = torch.randn(ours.shape[0], 2, dtype=torch.float64, generator=seeded())
        torch.testing.assert_close(ours @ v, theirs @ v, atol=1e-12, rtol=1e-10)


@Operators
def test_relu_and_convolution_network(operator: type) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    x, y = torch.randn(5, 1, 6, 6, dtype=torch.float64, generator=seeded()), torch.arange(5) % 2
    found = operator(model, F.cross_entropy, (x, y)).dense()
    torch.testing.assert_close(found, dense(operator, model, F.cross_entropy, x, y), atol=1e-10, rtol=1e-10)


def test_trace_lies_within_its_error() -> None:
    model, (x, y) = smooth(), classes()
    operator = HessianOperator(model, F.cross_entropy, (x, y))
    exact = operator.dense().trace().item()
    found = operator.trace(400, generator=seeded(1))
    assert found.standard_error > 0
    assert abs(found.value - exact) < 3 * found.standard_error
    # Signs see a diagonal matrix exactly; independent outputs of one input have one.
    diagonal = HessianOperator(nn.Linear(1, 3, bias=False), F.mse_loss, (torch.ones(2, 1), torch.zeros(2, 3)))
    value, error = diagonal.trace(5, generator=seeded())
    assert value == pytest.approx(2)
    assert error == pytest.approx(0, abs=1e-6)


def symmetric(values: list[float], seed: int = 0) -> Tensor:
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=seeded(seed))).Q
    return basis * torch.tensor(values, dtype=torch.float64) @ basis.T


SPECTRA = {
    "written out": [3.0, 1.0, -7.0],
    "positive": [float(i) for i in range(40)],
    "the most negative is largest in size": [-90.0, *(float(i) for i in range(40))],
    "low rank": [5.0, 2.0, *([0.0] * 40)],
    "negative": [-float(i) for i in range(1, 31)],
}


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_largest_eigenvalue(values: list[float], method: Any) -> None:
    matrix = symmetric(values)
    for k in (1, 2) if method == "lanczos" else (1,):
        found, vectors = top_eigenvalues(matrix, k, method=method, tol=1e-8, max_iterations=5000, generator=seeded())
        expected = torch.linalg.eigvalsh(matrix)[-k:].flip(0)
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(matrix @ vectors, vectors * found, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(k, dtype=torch.float64), atol=1e-8, rtol=0)


@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3))
def test_a_shift_of_the_matrix_shifts_the_eigenvalue(seed: int, shift: float) -> None:
    matrix = symmetric([float(i) for i in range(25)], seed)
    found = top_eigenvalues(lambda v: matrix @ v + shift * v, like=matrix[0], generator=seeded(seed))[0]
    assert found.item() == pytest.approx(24 + shift, rel=1e-6)


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_a_zero_matrix_and_repeatability(method: Any) -> None:
    values, vectors = top_eigenvalues(torch.zeros(30, 30), method=method)
    assert values.item() == 0
    assert vectors.norm().item() == pytest.approx(1)
    matrix = symmetric(SPECTRA["low rank"])
    first, second = (top_eigenvalues(matrix, method=method, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_sharpness_of_a_network_in_float32() -> None:
    model = MLP(3, 2, hidden=(16,), generator=seeded())
    x, y = classes(9)
    exact = torch.linalg.eigvalsh(dense(HessianOperator, model, F.cross_entropy, x.float(), y))[-1].item()
    for method in ("lanczos", "power"):
        found = hessian_max_eigenvalue(
            model, F.cross_entropy, (x.float(), y), method=method, tol=1e-4, generator=seeded()
        )
        assert found == pytest.approx(exact, rel=1e-4)


def test_conjugate_gradient_solves_each_column() -> None:
    matrix = symmetric([float(i) for i in range(1, 13)])
    b = torch.randn(12, 3, dtype=torch.float64, generator=seeded())
    b[:, 1] = 0
    found = conjugate_gradient(matrix, b, damping=0.5, tol=1e-12)
    expected = torch.linalg.solve(matrix + 0.5 * torch.eye(12, dtype=torch.float64), b)
    torch.testing.assert_close(found.x, expected, atol=1e-10, rtol=1e-10)
    assert bool((found.residual <= 1e-11).all())
    single = conjugate_gradient(lambda v: matrix @ v, b[:, 0], damping=0.5, tol=1e-12)
    torch.testing.assert_close(single.x, expected[:, 0], atol=1e-10, rtol=1e-10)
    assert single.residual.shape == ()


def test_conjugate_gradient_in_exact_arithmetic() -> None:
    # As many steps as distinct eigenvalues; with the inverse as preconditioner one.
    matrix = symmetric([1.0] * 5 + [4.0] * 5)
    b = torch.randn(10, dtype=torch.float64, generator=seeded())
    assert conjugate_gradient(matrix, b, tol=1e-10).iterations == 2
    inverse = torch.linalg.inv(matrix)
    assert conjugate_gradient(matrix, b, tol=1e-10, preconditioner=lambda r: inverse @ r).iterations == 1
    cut = conjugate_gradient(matrix, b, tol=1e-10, max_iterations=1)
    assert cut.iterations == 1
    assert cut.residual.item() == pytest.approx(((b - matrix @ cut.x).norm() / b.norm()).item())


def test_newton_step_of_a_network_with_a_linear_output() -> None:
    x, y = torch.randn(8, 3, generator=seeded()).double(), torch.randn(8, 1, generator=seeded(1)).double()
    model = nn.Linear(3, 1).double()
    operator = GGNOperator(model, F.mse_loss, (x, y))
    step = conjugate_gradient(operator, -operator.gradient(), tol=1e-12).x
    with torch.no_grad():
        for name, change in operator.split(step).items():
            model.get_parameter(name).add_(change)
    assert operator.gradient().norm().item() < 1e-10


class TestErrors:
    def test_data(self) -> None:
        model, (x, y) = smooth(), classes()
        with pytest.raises(TypeError, match="is an iterator"):
            HessianOperator(model, F.cross_entropy, iter([(x, y)]))
        with pytest.raises(ValueError, match="at least one sample"):
            HessianOperator(model, F.cross_entropy, []).gradient()
        with pytest.raises(TypeError, match=r"batches \(x, y\)"):
            HessianOperator(model, F.cross_entropy, [x]).gradient()

    def test_parameters(self) -> None:
        model, data = smooth(), classes()
        with pytest.raises(ValueError, match="number 0 is not"):
            HessianOperator(model, F.cross_entropy, data, [nn.Parameter(torch.ones(1))])
        with pytest.raises(ValueError, match="at least one parameter"):
            GGNOperator(smooth().requires_grad_(False), F.cross_entropy, data)
        model[0].float()
        with pytest.raises(TypeError, match="one dtype"):
            GGNOperator(model, F.cross_entropy, data)

    def test_vectors_and_loss(self) -> None:
        operator = HessianOperator(smooth(), F.cross_entropy, classes())
        with pytest.raises(ValueError, match=r"\(26,\) or \(26, k\), but has \(25,\)"):
            _ = operator @ torch.ones(25, dtype=torch.float64)
        with pytest.raises(TypeError, match=r"float64, but has torch\.float32"):
            _ = operator @ torch.ones(26)
        each = HessianOperator(smooth(), lambda f, y: F.cross_entropy(f, y, reduction="none"), classes())
        with pytest.raises(ValueError, match="one number"):
            each.gradient()
        with pytest.raises(ValueError, match="samples must be >= 2"):
            operator.trace(1)

    def test_eigenvalues(self) -> None:
        matrix = symmetric(SPECTRA["positive"])
        with pytest.raises(ValueError, match=r"k must be in 1\.\.40"):
            top_eigenvalues(matrix, 41)
        with pytest.raises(ValueError, match="k must be 1 for method 'power'"):
            top_eigenvalues(matrix, 2, method="power")
        with pytest.raises(TypeError, match="like must be a vector"):
            top_eigenvalues(lambda v: v)
        with pytest.raises(TypeError, match="float32 or"):
            top_eigenvalues(matrix.half())
        with pytest.raises(ValueError, match="square"):
            top_eigenvalues(matrix[:3])
        for method in ("lanczos", "power"):
            with pytest.raises(RuntimeError, match="raise max_iterations"):
                top_eigenvalues(matrix, method=method, tol=1e-14, max_iterations=1, generator=seeded())
            with pytest.raises(RuntimeError, match="not finite"):
                top_eigenvalues(matrix * torch.nan, method=method)

    def test_conjugate_gradient(self) -> None:
        with pytest.raises(ValueError, match=r"positive definite.*raise damping"):
            conjugate_gradient(-torch.eye(3), torch.ones(3))
        with pytest.raises(ValueError, match="NaN"):
            conjugate_gradient(torch.eye(1), torch.tensor([torch.nan]))
        with pytest.raises(ValueError, match="damping must lie"):
            conjugate_gradient(torch.eye(1), torch.ones(1), damping=-1.0)
