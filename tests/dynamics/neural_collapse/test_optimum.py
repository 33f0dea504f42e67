from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from torchstone.dynamics import UFMOptimum, UnconstrainedFeatureModel, extended_ufm_optimum, nc_metrics, ufm_optimum
from torchstone.dynamics.neural_collapse.metrics import Frame
from torchstone.dynamics.neural_collapse.optimum import collapse_threshold, origin_curvature, stationary_x

K, N, D = 4, 10, 6
DECAYS = (0.005, 0.008)
FREE = [0.0, 0.05, 0.5, 5.0, None]


def projection(k: int = K) -> Tensor:
    return torch.eye(k).double() - 1 / k


def minimise(model: UnconstrainedFeatureModel, decays, bias_decay: float = 0.0) -> float:
    """L-BFGS from where the model is; its parameters become the minimiser."""
    parameters = list(model.parameters())

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(flat.copy()), parameters)
        loss = model.loss(decays, bias_decay)
        slopes = torch.autograd.grad(loss, parameters)
        return float(loss.detach()), torch.cat([slope.flatten() for slope in slopes]).numpy()

    start = torch.nn.utils.parameters_to_vector(parameters).detach().numpy()
    options = {"maxiter": 3000, "maxfun": 5000, "maxcor": 30, "ftol": 1e-16, "gtol": 1e-9}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return objective(found.x)[0]


def random_start(seed: int, **options) -> UnconstrainedFeatureModel:
    sizes = options.pop("sizes", (K, N, D))
    generator = torch.Generator().manual_seed(seed)
    return UnconstrainedFeatureModel(*sizes, generator=generator, dtype=torch.float64, **options)


def gradient(model: UnconstrainedFeatureModel, decays, bias_decay: float = 0.0) -> float:
    loss = model.loss(decays, bias_decay)
    return max(float(part.abs().max()) for part in torch.autograd.grad(loss, list(model.parameters())))


SMALL = (4, 3, 5)


def hessian_spectrum(model: UnconstrainedFeatureModel, decays, bias_decay: float = 0.0) -> Tensor:
    names, shapes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return self.model.loss(decays, bias_decay)

    wrapped = Loss()

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {f"model.{n}": part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(wrapped, values, ())

    return torch.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(loss))(start))


# ---------------------------------------------------------------- the plain model


@pytest.mark.parametrize(
    ("lambda_b", "value"), list(zip(FREE, [0.0576, 0.0635524, 0.0752, 0.07664, 0.0768], strict=True))
)
def test_random_starts_reach_it(lambda_b: float | None, value: float) -> None:
    optimum = ufm_optimum(K, N, *DECAYS, lambda_b)
    assert optimum.loss == pytest.approx(value, abs=1e-7)
    model = random_start(1, bias=lambda_b is not None)
    assert minimise(model, DECAYS, lambda_b or 0.0) == pytest.approx(optimum.loss, abs=1e-8)
    w, h = model.weights[0].detach(), model.free.detach().view(K, N, D)
    scale = math.sqrt(N * DECAYS[1] / DECAYS[0])
    gram = scale * ((1 - optimum.q) * projection() + optimum.mean_x / K)
    torch.testing.assert_close(w @ w.T, gram, atol=1e-6, rtol=0)
    torch.testing.assert_close(h, h.mean(1, keepdim=True).expand_as(h), atol=1e-6, rtol=0)
    torch.testing.assert_close(h.mean(1) * scale, w, atol=1e-5, rtol=0)
    if model.bias is not None:
        torch.testing.assert_close(model.bias.detach(), torch.full((K,), optimum.bias).double(), atol=1e-6, rtol=0)


def test_the_frame_of_every_regime() -> None:
    found = {lambda_b: ufm_optimum(K, N, *DECAYS, lambda_b) for lambda_b in FREE}
    assert [optimum.frame for optimum in found.values()] == ["etf", "etf", "mixed", "mixed", "orthogonal"]
    assert found[0.0].q == pytest.approx(0.08)
    edge = 0.08 / 0.92
    assert ufm_optimum(K, N, *DECAYS, edge - 1e-6).frame == "etf"
    assert ufm_optimum(K, N, *DECAYS, edge + 1e-6).frame == "mixed"
    assert ufm_optimum(K, N, *DECAYS, math.inf) == found[None]
    assert ufm_optimum(K, N, *DECAYS, 1e9).loss == pytest.approx(found[None].loss)


@pytest.mark.parametrize("lambda_b", FREE)
def test_past_the_threshold_all_is_zero(lambda_b: float | None) -> None:
    decays = (0.08, 0.09)
    optimum = ufm_optimum(K, N, *decays, lambda_b)
    assert optimum.q > 1
    assert (optimum.kind, optimum.frame, optimum.x, optimum.mean_x) == ("zero", "none", 0.0, 0.0)
    bias = lambda_b is not None
    assert minimise(random_start(0, bias=bias), decays, lambda_b or 0.0) == pytest.approx(optimum.loss, abs=1e-8)
    assert origin_curvature(K, N, *decays) > 0


@pytest.mark.parametrize("lambda_b", FREE)
@pytest.mark.parametrize("decays", [(0.005, 0.008), (0.08, 0.1), (0.15, 0.16)])
def test_what_is_constructed_is_a_minimum(decays: tuple[float, float], lambda_b: float | None) -> None:
    optimum = ufm_optimum(*SMALL[:2], *decays, lambda_b)
    model = optimum.model(SMALL[2], generator=torch.Generator().manual_seed(3))
    assert float(model.loss(decays, lambda_b or 0.0).detach()) == pytest.approx(optimum.loss, abs=1e-14)
    assert gradient(model, decays, lambda_b or 0.0) < 1e-14
    assert float(hessian_spectrum(model, decays, lambda_b or 0.0)[0]) > -1e-9


@pytest.mark.parametrize("lambda_b", [0.05, 0.5, None])
@pytest.mark.parametrize("drop", [1, 2, K - 1])
def test_an_optimum_that_lacks_a_direction_is_a_strict_saddle(lambda_b: float | None, drop: int) -> None:
    optimum = ufm_optimum(*SMALL[:2], *DECAYS, lambda_b)
    model = optimum.model(SMALL[2], drop=drop)
    assert gradient(model, DECAYS, lambda_b or 0.0) < 1e-14
    smallest = float(hessian_spectrum(model, DECAYS, lambda_b or 0.0)[0])
    assert smallest == pytest.approx(origin_curvature(*SMALL[:2], *DECAYS), abs=1e-12)
    assert smallest < 0


@pytest.mark.parametrize("decays", [(0.02, 0.02), (0.005, 0.008), (0.15, 0.16)])
def test_curvature_at_the_origin(decays: tuple[float, float]) -> None:
    model = random_start(0, sizes=SMALL, init_std=0.0, bias=True)
    assert model.bias is not None
    model.bias.data += 1 / K
    smallest = float(hessian_spectrum(model, decays)[0])
    assert smallest == pytest.approx(origin_curvature(*SMALL[:2], *decays), abs=1e-12)
    assert (smallest < 0) == (ufm_optimum(*SMALL[:2], *decays).q < 1)
    if decays[0] == decays[1]:
        assert smallest == pytest.approx(decays[0] - math.sqrt(SMALL[1]) / (K * SMALL[1]))


def test_a_simplex_fits_in_one_dimension_less() -> None:
    optimum = ufm_optimum(K, N, *DECAYS, 0.0)
    model = optimum.model(K - 1)
    assert gradient(model, DECAYS) < 1e-14
    assert float(nc_metrics(model.features(1), model.labels, model.weights[0]).nc3 or 0) == pytest.approx(0, abs=1e-9)
    assert minimise(random_start(0, sizes=(K, N, K - 1), bias=True), DECAYS) == pytest.approx(optimum.loss, abs=1e-8)
    narrow = minimise(random_start(0, sizes=(K, N, K - 2), bias=True), DECAYS)
    assert narrow > optimum.loss + 0.05


# ---------------------------------------------------------------- any number of factors

DEEP = [(4, 10, 6, [5e-3] * 3), (3, 5, 4, [0.02, 0.01, 0.03]), (3, 4, 5, [0.01] * 4), (4, 10, 6, [0.06] * 3)]


@pytest.mark.parametrize(("k", "n", "d", "decays"), DEEP)
@pytest.mark.parametrize("bias", [False, True])
def test_deep_models_reach_it(k: int, n: int, d: int, decays: list[float], bias: bool) -> None:
    optimum = extended_ufm_optimum(k, n, decays, bias)
    starts = [random_start(seed, sizes=(k, n, d), layers=len(decays) - 1, bias=bias) for seed in range(3)]
    best = min((minimise(start, decays), place) for place, start in enumerate(starts))
    assert best[0] == pytest.approx(optimum.loss, abs=1e-8)
    if optimum.kind == "zero":
        return
    model = starts[best[1]]
    target = projection(k) if bias else torch.eye(k).double()
    for layer in range(1, model.layers + 1):
        h = model.features(layer).detach().view(k, n, d)
        torch.testing.assert_close(h, h.mean(1, keepdim=True).expand_as(h), atol=1e-5, rtol=0)
        gram = h.mean(1) @ h.mean(1).T
        torch.testing.assert_close(gram / gram.norm(), target / target.norm(), atol=1e-5, rtol=0)
    for factor, size in zip(model.factors(), optimum.singular_values, strict=True):
        found = torch.linalg.svdvals(factor.detach())[: k - 1]
        torch.testing.assert_close(found, torch.full_like(found, size), atol=1e-5, rtol=0)
    for (upper, lower), (above, below) in zip(
        itertools.pairwise(model.factors()), itertools.pairwise(decays), strict=True
    ):
        balance = lower @ lower.T if lower is not model.free else lower.T @ lower
        torch.testing.assert_close(above * upper.T @ upper, below * balance, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("k", "n", "d", "decays"), DEEP)
@pytest.mark.parametrize(("bias", "turned"), [(False, False), (False, True), (True, True)])
def test_deep_optima_are_constructed(k: int, n: int, d: int, decays: list[float], bias: bool, turned: bool) -> None:
    optimum = extended_ufm_optimum(k, n, decays, bias)
    model = optimum.model(d, generator=torch.Generator().manual_seed(1) if turned else None)
    assert float(model.loss(decays).detach()) == pytest.approx(optimum.loss, abs=1e-14)
    assert gradient(model, decays) < 1e-14


def test_a_relu_reaches_the_same_value_with_an_orthogonal_frame_above() -> None:
    k, n, d, decays = 4, 10, 8, [5e-3] * 3
    optimum = extended_ufm_optimum(k, n, decays)
    built = optimum.model(d, nonlinearity="relu")
    assert float(built.loss(decays).detach()) == pytest.approx(optimum.loss, abs=1e-14)
    assert gradient(built, decays) < 1e-14
    assert (built.features(2) >= 0).all()
    starts = [random_start(seed, sizes=(k, n, d), layers=2, nonlinearity="relu") for seed in range(6)]
    best, place = min((minimise(start, decays), place) for place, start in enumerate(starts))
    assert best == pytest.approx(optimum.loss, abs=1e-7)
    found = nc_metrics(starts[place].features(2), starts[place].labels, frame="orthogonal")
    assert float(found.nc1) < 1e-9
    assert float(found.nc2) < 1e-4


def test_two_factors_are_the_plain_model() -> None:
    for bias, lambda_b in ((False, None), (True, 0.0)):
        deep, plain = extended_ufm_optimum(K, N, DECAYS, bias), ufm_optimum(K, N, *DECAYS, lambda_b)
        assert deep.loss == pytest.approx(plain.loss, abs=1e-15)
        assert replace(deep, loss=plain.loss) == plain


def test_the_root_is_the_minimum_of_one_direction() -> None:
    grid = torch.linspace(0, 1, 100_001).double()
    for m, q in itertools.product((2, 3, 4, 6), (0.01, 0.1, 0.2, 0.25, 0.39, 0.4, 0.6, 1.2)):
        cost = (grid - 1).square() / 2 + m / 2 * q * grid ** (2 / m)
        lambdas = [q / K * N ** (-1 / m)] * m
        optimum = extended_ufm_optimum(K, N, lambdas)
        assert optimum.q == pytest.approx(q)
        assert optimum.loss == pytest.approx(float(cost.min()), abs=1e-10)
        assert optimum.x == pytest.approx(float(grid[cost.argmin()]), abs=2e-5)


def test_between_global_and_local() -> None:
    """Three factors: past .39685 zero beats the stationary point, which exists up to .4725."""
    assert collapse_threshold(3) == pytest.approx(2 ** (-4 / 3))
    for q, kind in ((0.39, "collapse"), (0.40, "zero")):
        x = stationary_x(q, 3)
        assert x ** (1 / 3) * (1 - x) == pytest.approx(q, abs=1e-12)
        assert ((x - 1) ** 2 / 2 + 1.5 * q * x ** (2 / 3) < 0.5) == (kind == "collapse")
        assert extended_ufm_optimum(K, N, [q / K * N ** (-1 / 3)] * 3).kind == kind
    assert stationary_x(0.4724, 3) > 0.25
    assert math.isnan(stationary_x(0.4726, 3))


def test_without_a_bias_the_frame_is_orthogonal_and_with_one_a_simplex() -> None:
    frames: tuple[tuple[bool, Frame], ...] = ((False, "orthogonal"), (True, "etf"))
    for bias, frame in frames:
        model = extended_ufm_optimum(K, N, [5e-3] * 3, bias).model(D)
        for layer in (1, 2):
            found = nc_metrics(model.features(layer), model.labels, frame=frame, centred=False)
            assert float(found.nc2) < 1e-12


@pytest.mark.untyped
def test_bad_arguments_are_named() -> None:
    simplex: UFMOptimum = ufm_optimum(K, N, *DECAYS, 0.0)
    frame = ufm_optimum(K, N, *DECAYS)
    with pytest.raises(ValueError, match="lambda must lie in"):
        ufm_optimum(K, N, 0.0, 0.1)
    with pytest.raises(ValueError, match="lambda_b must lie in"):
        ufm_optimum(K, N, 0.1, 0.1, -1.0)
    with pytest.raises(ValueError, match="lambdas must hold at least 2 numbers"):
        extended_ufm_optimum(K, N, [0.1])
    with pytest.raises(ValueError, match="dim must be >= 4 for this optimum of 4 classes, but is 3"):
        frame.model(K - 1)
    with pytest.raises(ValueError, match="dim must be >= 3"):
        simplex.model(K - 2)
    with pytest.raises(ValueError, match="only an orthogonal frame along the axes"):
        simplex.model(D, nonlinearity="relu")
    with pytest.raises(ValueError, match=r"drop must be in 0\.\.3"):
        frame.model(D, drop=K)
