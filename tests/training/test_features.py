from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from torchstone.errors import UnknownNameError
from torchstone.models import resnet20
from torchstone.training import capture, feature_matrix, layer_features, pooled, predict

X = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 5)
    )


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_features_are_the_layers_outputs_averaged_over_space() -> None:
    model = net().eval()
    found = layer_features(model, X, layers=["0", "5"], batch_size=4)
    torch.testing.assert_close(found.features["0"], model[0](X).mean((2, 3)))
    torch.testing.assert_close(found.features["5"], model(X))
    torch.testing.assert_close(found.logits, predict(model, X))
    assert found.y is None
    assert found.index is None
    assert layer_features(model, X).features == {}


def test_one_pass_serves_all_layers() -> None:
    model, passes = net(), []
    model.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    layer_features(model, X, layers=["0", "1", "2"], batch_size=5)
    assert passes == [5, 5, 1]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_loader_brings_labels_and_numbers(width: int) -> None:
    y, index = torch.arange(11) % 5, torch.arange(11).flip(0)
    data = torch.utils.data.TensorDataset(*(X, y, index)[:width])
    found = layer_features(net(), torch.utils.data.DataLoader(data, batch_size=4), layers=["0"])
    torch.testing.assert_close(found.features["0"], layer_features(net(), X, layers=["0"]).features["0"])
    assert (found.y is None) == (width < 2)
    assert (found.index is None) == (width < 3)
    if found.y is not None:
        assert found.y.equal(y)
    if found.index is not None:
        assert found.index.equal(index)


def test_the_model_is_left_as_it_was() -> None:
    model = net().train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    layer_features(model, X, layers=["0"])
    assert model.training
    assert not model[1].training
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert hooks(model) == 0


def test_results_can_be_trained_on() -> None:
    found = layer_features(net(), X, layers=["0"])
    head = nn.Linear(4, 2)
    head(found.features["0"]).sum().backward()
    assert head.weight.grad is not None


def test_penultimate_features_of_a_known_backbone() -> None:
    model = resnet20()
    before_head = "body"
    found = layer_features(model, X, layers=[before_head])
    torch.testing.assert_close(found.features[before_head], feature_matrix(model, X))


def test_hooks_come_off_after_an_error() -> None:
    model = net()
    seen: list[set[str]] = []
    with suppress(KeyError), capture(model, ["0", ""]) as outputs:
        model(X)
        seen.append(set(outputs))
        raise KeyError
    assert seen == [{"0", ""}]
    assert not outputs
    assert hooks(model) == 0
    with pytest.raises(RuntimeError):
        layer_features(model, torch.zeros(2, 1, 8, 8), layers=["0"])
    assert hooks(model) == 0


def test_captured_outputs_keep_their_gradient() -> None:
    model = net()
    with capture(model, ["0"]) as outputs:
        model(X)
        outputs["0"].sum().backward()
    weight = model[0].weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None


@pytest.mark.untyped
def test_errors() -> None:
    model = net()
    with pytest.raises(UnknownNameError, match="layer '9'"):
        layer_features(model, X, layers=["9"])
    with pytest.raises(ValueError, match="at least 1 sample"):
        layer_features(model, X[:0])
    with pytest.raises(TypeError, match="x, \\(x, y\\) or"):
        layer_features(model, [(X, X, X, X)])
    with pytest.raises(TypeError, match="is a tuple"):
        layer_features(nn.Sequential(nn.LSTM(3, 4), _First()), torch.zeros(5, 2, 3), layers=["0"])
    with pytest.raises(ValueError, match="not used in a pass"):
        layer_features(_Lazy(), X, layers=["unused"])
    with pytest.raises(ValueError, match="2 rows for 4 samples"):
        layer_features(_Pairs(), torch.zeros(4, 2), layers=["inner"])
    with pytest.raises(ValueError, match="channels"):
        pooled(torch.zeros(3))


class _First(nn.Module):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return pair[0]


class _Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


class _Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.reshape(2, -1)).reshape(4, -1)
