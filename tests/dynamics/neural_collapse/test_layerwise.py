from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchstone.dynamics import layerwise_nc, nc_metrics
from torchstone.errors import UnknownNameError

K = 3


def convolutional() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, K)
    )


def images() -> tuple[Tensor, Tensor]:
    y = torch.arange(24) % K
    return torch.randn(24, 1, 5, 5, generator=torch.Generator().manual_seed(1)) + y[:, None, None, None], y


def test_it_measures_every_layer_in_one_pass_in_evaluation_mode() -> None:
    net, (x, y) = convolutional().train(), images()
    passes = []
    net.register_forward_hook(lambda module, args, out: passes.append(len(out)))
    loader = [(x[:10], y[:10]), (x[10:], y[10:], torch.arange(14))]
    found = layerwise_nc(net, loader, ["0", "2"], head="5", pooling="average")
    assert passes == [10, 14]
    assert net.training
    assert net[1].training
    net.eval()
    with torch.no_grad():
        maps = net[0](x)
        ends = net[4](net[3](net[2](net[1](maps))))
    torch.testing.assert_close(found["0"].nc1, nc_metrics(maps.flatten(2).mean(2), y).nc1)
    torch.testing.assert_close(found["5"].nc1, found["2"].nc1)  # the network itself averages there
    last = nc_metrics(ends, y, net[5].weight, net[5].bias)
    for name in ("nc1", "nc2", "nc3", "bias_relation"):
        torch.testing.assert_close(getattr(found["5"], name), getattr(last, name))
    assert found["2"].nc3 is None


def test_flattened_maps() -> None:
    net, (x, y) = convolutional().eval(), images()
    found = layerwise_nc(net, [(x, y)], ["0"], pooling="flatten")
    with torch.no_grad():
        torch.testing.assert_close(found["0"].nc1, nc_metrics(net[0](x).flatten(1), y).nc1)
    assert found["0"].means.shape == (K, 36)


def test_the_frame_is_passed_on() -> None:
    net, (x, y) = convolutional().eval(), images()
    net[5] = nn.Linear(4, K, bias=False)
    found = layerwise_nc(net, [(x, y)], head="5", frame="orthogonal")["5"]
    with torch.no_grad():
        expected = nc_metrics(net[:5](x), y, net[5].weight, frame="orthogonal")
    torch.testing.assert_close(found.nc3, expected.nc3)
    torch.testing.assert_close(found.nc2, expected.nc2)


@pytest.mark.untyped
def test_bad_use_is_named() -> None:
    net, (x, y) = convolutional(), images()
    with pytest.raises(ValueError, match=r"layer '0' has shape \(24, 4, 3, 3\): choose pooling"):
        layerwise_nc(net, [(x, y)], ["0"])
    with pytest.raises(UnknownNameError, match="layer 'fc'"):
        layerwise_nc(net, [(x, y)], ["fc"])
    with pytest.raises(UnknownNameError, match="layer 'fc'"):
        layerwise_nc(net, [(x, y)], head="fc")
    with pytest.raises(TypeError, match="head must name a linear layer, but '4' is a Flatten"):
        layerwise_nc(net, [(x, y)], head="4")
    with pytest.raises(TypeError, match="batches"):
        layerwise_nc(net, [x], ["4"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="yields none"):
        layerwise_nc(net, [], ["4"])
    with pytest.raises(ValueError, match="at least one layer"):
        layerwise_nc(net, [(x, y)])
    with pytest.raises(ValueError, match="24 rows for 23 labels"):
        layerwise_nc(net, [(x, y[:-1])], ["4"])
    with pytest.raises(ValueError, match="pooling must be one of"):
        layerwise_nc(net, [(x, y)], ["0"], pooling="max")  # pyright: ignore[reportArgumentType]
