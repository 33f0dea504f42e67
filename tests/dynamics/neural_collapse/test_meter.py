from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchstone.dynamics import FeatureHook, NCMetrics, NeuralCollapseMeter, nc_metrics
from torchstone.errors import UnknownNameError

K, N, D = 4, 60, 6
MEASURES = ("nc1", "nc2", "nc2_weight", "nc3", "bias_relation")


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(K, (N,), generator=generator)
    y[:K] = torch.arange(K)
    return torch.randn(K, D, generator=generator)[y].double() + 0.3 * torch.randn(N, D, generator=generator), y


def head(seed: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, D, generator=generator), torch.randn(K, generator=generator)


def same(one: NCMetrics, two: NCMetrics, rtol: float = 1e-9) -> None:
    for name in (*MEASURES, "counts", "means", "within", "between_spectrum"):
        if getattr(one, name) is None:
            continue
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=rtol, atol=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 50), cuts=st.lists(st.integers(0, N), max_size=8))
def test_batches_are_all_rows_at_once(seed: int, cuts: list[int]) -> None:
    x, y = data(seed)
    meter = NeuralCollapseMeter(K, D)
    edges = [0, *sorted(cuts), N]
    for start, stop in itertools.pairwise(edges):
        meter.update(x[start:stop], y[start:stop])
    same(meter.compute(*head()), nc_metrics(x, y, *head()))


def test_a_large_offset_costs_no_digits() -> None:
    """The difference of mean squares and squared means would lose eight digits here."""
    x, y = data()
    for dtype, rel in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        moved = (x + 1e4).to(dtype)
        meter = NeuralCollapseMeter(K, D)
        for rows, labels in zip(moved.split(40), y.split(40), strict=True):
            meter.update(rows, labels)
        assert float(meter.compute().nc1) == pytest.approx(float(nc_metrics(moved, y).nc1), rel=rel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_a_lower_precision(dtype: torch.dtype) -> None:
    x, y = data()
    meter = NeuralCollapseMeter(K, D)
    for rows, labels in zip(x.to(dtype).split(7), y.split(7), strict=True):
        meter.update(rows, labels)
    same(meter.compute(), nc_metrics(x.to(dtype).double(), y), rtol=1e-5)


def test_meters_merge() -> None:
    x, y = data()
    one, two = NeuralCollapseMeter(K, D), NeuralCollapseMeter(K, D)
    one.update(x[:20], y[:20])
    two.update(x[20:], y[20:])
    assert one.merge(two) is one
    same(one.compute(*head()), nc_metrics(x, y, *head()))
    assert int(two.counts.sum()) == N - 20


def test_the_state_goes_on_where_it_stopped() -> None:
    x, y = data()
    first, second = NeuralCollapseMeter(K, D), NeuralCollapseMeter(K, D)
    first.update(x[:20], y[:20])
    second.load_state_dict(first.state_dict())
    second.update(x[20:], y[20:])
    same(second.compute(*head()), nc_metrics(x, y, *head()))
    assert int(first.counts.sum()) == 20


def test_what_was_computed_is_not_changed_by_more_rows() -> None:
    x, y = data()
    meter = NeuralCollapseMeter(K, D)
    meter.update(x, y)
    found = meter.compute()
    before = found.means.clone(), found.within.clone()
    meter.update(x + 1, y)
    assert torch.equal(found.means, before[0])
    assert torch.equal(found.within, before[1])
    meter.reset()
    with pytest.raises(ValueError, match="saw 0"):
        meter.compute()


def test_an_absent_class_is_nan_and_said() -> None:
    meter = NeuralCollapseMeter(K + 1, D)
    meter.update(*data())
    with pytest.warns(UserWarning, match="no row has the label 4"):
        assert meter.compute().nc1.isnan()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("x", "y", "error", "says"),
    [
        (torch.ones(3, D + 1), torch.zeros(3).long(), ValueError, r"6 columns \(dim\), but have 7"),
        (torch.ones(3, 2, D), torch.zeros(3, 2).long(), ValueError, r"shape \(n, d\)"),
        (torch.ones(3, D), torch.tensor([0, 1, K]), ValueError, "labels must lie in 0..3"),
        (torch.ones(3, D), torch.ones(3), TypeError, "labels must have dtype"),
    ],
)
def test_bad_batches_are_named(x: Tensor, y: Tensor, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        NeuralCollapseMeter(K, D).update(x, y)
    with pytest.raises(ValueError, match="measures 5 in 6"):
        NeuralCollapseMeter(K, D).merge(NeuralCollapseMeter(K + 1, D))


def test_the_hook_sees_what_the_layer_is_given() -> None:
    net = nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, K)).double()
    x, _ = data()
    with FeatureHook(net, "2") as hook:
        assert hook.features is None
        net(x)
        torch.testing.assert_close(hook.features, net[1](net[0](x)).detach())
        assert getattr(hook.features, "requires_grad", True) is False
    assert hook.features is None
    net(x)
    assert hook.features is None, "the hook is off"
    with pytest.raises(UnknownNameError, match="layer 'fc'"):
        FeatureHook(net, "fc")
