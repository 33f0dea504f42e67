from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchstone.dynamics import NCMetrics, nc_metrics, simplex_etf
from torchstone.dynamics.neural_collapse.metrics import frame_error

K, N, D = 4, 40, 7
LABELS = torch.arange(N) % K


def draw(seed: int = 0, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(shape or (N, D)), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def separated(seed: int = 0, noise: float = 0.5) -> Tensor:
    return 2 * draw(seed + 100, K, D)[LABELS] + noise * draw(seed)


def literal(h: Tensor, y: Tensor, w: Tensor, b: Tensor) -> dict[str, float]:
    """Written from the definitions, sample by sample and with NumPy's pseudo-inverse of the whole matrix."""
    k = len(w)
    means = [h[y == c].mean(0) for c in range(k)]
    centre = h.mean(0)
    within = sum(torch.outer(row - means[c], row - means[c]) for row, c in zip(h, y.tolist(), strict=True)) / len(h)
    between = sum(torch.outer(mean - centre, mean - centre) for mean in means) / k
    simplex = (torch.eye(k).double() - 1 / k) / math.sqrt(k - 1)
    c = torch.stack(means) - centre
    w_centred = w - w.mean(0)

    def distance(product: Tensor, target: Tensor) -> float:
        return float((product / product.norm() - target).norm())

    near = [min(range(k), key=lambda c: float((row - means[c]).norm())) for row in h]
    return {
        "nc1": float(torch.trace(within @ torch.linalg.pinv(between, rtol=1e-8))) / k,
        "nc2": distance(c @ c.T, simplex),
        "nc2_weight": distance(w_centred @ w_centred.T, simplex),
        "nc3": distance(w_centred @ c.T, simplex),
        "nc4": sum(int((w @ row + b).argmax()) != at for row, at in zip(h, near, strict=True)) / len(h),
        "bias_relation": float((w @ centre + b).norm()),
    }


def measures(found: NCMetrics) -> dict[str, Tensor]:
    names = ("nc1", "nc2", "nc2_weight", "nc3", "nc4", "bias_relation")
    return {name: getattr(found, name) for name in names if getattr(found, name) is not None}


@pytest.mark.parametrize("balanced", [True, False])
def test_they_are_the_definitions(balanced: bool) -> None:
    y = LABELS if balanced else torch.tensor([0] * 20 + [1] * 12 + [2] * 5 + [3] * 3)
    h, w, b = separated(), draw(1, K, D), draw(2, K)
    found = measures(nc_metrics(h, y, w, b))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(literal(h, y, w, b), rel=1e-9)


@pytest.mark.parametrize("dim", [K - 1, K, 9])
def test_a_collapsed_simplex_is_zero(dim: int) -> None:
    means = simplex_etf(K, dim, dtype=torch.float64)
    h = 3 * means[LABELS] + 5  # a common offset is no departure from the simplex
    found = nc_metrics(h, LABELS, 0.2 * means, -means.sum(1))
    for name, value in measures(found).items():
        assert float(value) == pytest.approx(0, abs=1e-7), name
    # K - 1 equal eigenvalues, of 9 K / (K - 1) I - J/K over K
    assert found.between_spectrum[: K - 1].tolist() == pytest.approx([9 / (K - 1)] * (K - 1))


def test_orthogonal_and_simplex_are_told_apart_on_uncentred_means_alone() -> None:
    h = 2 * torch.eye(K, D).double()[LABELS]
    assert float(nc_metrics(h, LABELS, frame="orthogonal").nc2) == pytest.approx(0, abs=1e-12)
    assert float(nc_metrics(h, LABELS, frame="etf").nc2) == pytest.approx(0, abs=1e-12)  # an exact identity
    assert float(nc_metrics(h, LABELS, frame="etf", centred=False).nc2) > 0.4
    simplex = simplex_etf(K, D, dtype=torch.float64)[LABELS]
    assert float(nc_metrics(simplex, LABELS, frame="etf", centred=False).nc2) == pytest.approx(0, abs=1e-12)
    assert float(nc_metrics(simplex, LABELS, frame="orthogonal").nc2) > 0.4


def test_orthogonal_frame_takes_the_classifier_uncentred() -> None:
    h, w = separated(), draw(1, K, D)
    found = nc_metrics(h, LABELS, w, frame="orthogonal")
    means = torch.stack([h[label == LABELS].mean(0) for label in range(K)])
    for product, value in ((means @ means.T, found.nc2), (w @ w.T, found.nc2_weight), (w @ means.T, found.nc3)):
        assert value is not None
        assert float(value) == pytest.approx(float((product / product.norm() - torch.eye(K) / 2).norm()))


@settings(max_examples=25)
@given(seed=st.integers(0, 50), scale=st.floats(1e-3, 1e3))
def test_turning_scaling_and_reordering_change_nothing(seed: int, scale: float) -> None:
    h, w = separated(seed), draw(seed + 1, K, D)
    turn = torch.linalg.qr(draw(seed + 2, D, D))[0]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    one = measures(nc_metrics(h, LABELS, w))
    two = measures(nc_metrics((scale * h @ turn)[order], LABELS[order], w @ turn))
    for name in one.keys() - {"bias_relation"}:
        torch.testing.assert_close(one[name], two[name])


def test_a_stack_is_each_alone() -> None:
    h = torch.stack([separated(seed) for seed in range(6)]).view(2, 3, N, D)
    w, b = draw(8, 2, 3, K, D), draw(9, 2, 3, K)
    stacked = nc_metrics(h, LABELS, w, b)
    own = nc_metrics(h, LABELS.expand(2, 3, N), w, b)
    for i in range(2):
        for j in range(3):
            alone = measures(nc_metrics(h[i, j], LABELS, w[i, j], b[i, j]))
            for name, value in alone.items():
                torch.testing.assert_close(measures(stacked)[name][i, j], value)
                torch.testing.assert_close(measures(own)[name][i, j], value)
    assert stacked.within_spectrum.shape == (2, 3, D)
    torch.testing.assert_close(stacked.within_spectrum.sum(-1), stacked.within.diagonal(dim1=-2, dim2=-1).sum(-1))


def test_float32_features_are_measured_in_float64() -> None:
    """A small spread on a large offset: its square is lost in float32."""
    h = (separated(noise=1e-2) + 300).float()
    exact = literal(h.double(), LABELS, draw(1, K, D), draw(2, K))["nc1"]
    assert float(nc_metrics(h, LABELS).nc1) == pytest.approx(exact, rel=1e-9)


def test_the_cut_off_decides_what_counts_as_a_direction() -> None:
    """Means that lie almost on a line: with the default, the second direction counts, with a coarse one it does not."""
    means = torch.zeros(3, D).double()
    means[:, 0] = torch.tensor([-1.0, 0.0, 1.0])
    means[1, 1] = 1e-3
    y = torch.arange(N) % 3
    h = means[y] + 0.1 * draw()
    h = h - torch.stack([h[y == c].mean(0) for c in range(3)])[y] + means[y]
    fine, coarse = (float(nc_metrics(h, y, rtol=rtol).nc1) for rtol in (1e-8, 1e-3))
    assert fine > 1000 * coarse


def test_an_empty_class_is_nan_and_said() -> None:
    y = torch.arange(N) % 3
    with pytest.warns(UserWarning, match="no row has the label 3"):
        found = nc_metrics(separated(), y, draw(1, K, D), draw(2, K))
    values = measures(found)
    assert {name for name, value in values.items() if not value.isnan()} == {"nc2_weight"}


def test_only_the_member_with_an_empty_class_is_nan() -> None:
    y = torch.stack([LABELS, torch.arange(N) % 3])
    with pytest.warns(UserWarning, match="label 3"):
        found = nc_metrics(draw(0, 2, N, D), y, num_classes=K)
    assert found.nc1.isnan().tolist() == [False, True]


def test_all_features_equal_is_nan_not_an_error() -> None:
    assert nc_metrics(torch.ones(N, D), LABELS).nc1.isnan()


def test_the_frame_of_two_classes() -> None:
    assert float(frame_error(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))) == pytest.approx(0, abs=1e-7)
    assert float(frame_error(-torch.eye(2), "orthogonal")) == pytest.approx(2)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"features": torch.ones(N)}, ValueError, "features must have shape"),
        ({"features": torch.ones(N, D).long()}, TypeError, "features must be floating point"),
        ({"features": torch.full((N, D), math.nan)}, ValueError, "features holds 280 NaN"),
        ({"features": torch.ones(0, D), "labels": LABELS[:0]}, ValueError, "at least 1 row"),
        ({"labels": LABELS[:-1]}, ValueError, "labels must have shape"),
        ({"labels": LABELS.float()}, TypeError, "labels must have dtype torch.int64"),
        ({"labels": LABELS + 1, "num_classes": K}, ValueError, r"labels must lie in 0..3, but span 1..4"),
        ({"weight": torch.ones(K, D + 1)}, ValueError, "weight must have shape"),
        ({"weight": torch.full((K, D), math.inf)}, ValueError, "weight holds"),
        ({"weight": torch.ones(K, D), "bias": torch.ones(K + 1)}, ValueError, "bias must have shape"),
        ({"bias": torch.ones(K)}, ValueError, "without its weight"),
        ({"frame": "simplex"}, ValueError, "frame must be one of"),
        ({"rtol": -1.0}, ValueError, "rtol must lie in"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], says: str) -> None:
    arguments: dict[str, Any] = {"features": torch.ones(N, D), "labels": LABELS} | change
    with pytest.raises(error, match=says):
        nc_metrics(**arguments)
