from __future__ import annotations

import pytest
import torch
from torch import nn

from torchstone.models import MLP, ResNet, SmallCNN, StridedCNN, as_images, initialize_, resnet18, resnet20


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


MAKERS = {
    "linear": lambda g: MLP(64, 5, hidden=(), generator=g),
    "mlp": lambda g: MLP(64, 5, hidden=(8, 6), batch_norm=True, dropout=0.1, generator=g),
    "cnn": lambda g: SmallCNN(1, 5, width=4, generator=g),
    "strided": lambda g: StridedCNN(1, 5, width=4, generator=g),
    "resnet-pad": lambda g: ResNet(1, 5, widths=(4, 8), blocks=1, generator=g),
    "resnet-conv": lambda g: ResNet(1, 5, widths=(4, 8), blocks=1, shortcut="conv", generator=g),
}
every_model = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@every_model
def test_forward_is_head_of_features(make):
    net = make(generator()).eval()
    x = torch.rand(3, 1, 8, 8, generator=generator())
    features = net.features(x)
    assert features.shape == (3, net.num_features)
    assert torch.equal(net(x), net.head(features))
    assert net(x).shape == (3, 5)


@every_model
def test_flat_and_image_inputs_agree(make):
    net = make(generator()).eval()
    x = torch.rand(3, 1, 8, 8, generator=generator())
    assert torch.equal(net(x), net(x.flatten(1)))
    assert torch.equal(net(x), net(x.squeeze(1)))
    assert net(x[:0]).shape == (0, 5)


@every_model
def test_weights_come_from_the_generator_alone(make):
    before = torch.get_rng_state()
    first = make(generator())
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    second, other = make(generator()), make(generator(1))
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.head.weight, other.head.weight)


@every_model
def test_every_parameter_gets_a_gradient(make):
    net = make(generator())
    net(torch.rand(4, 1, 8, 8, generator=generator())).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet-pad"])
@pytest.mark.untyped
def test_compiles_without_graph_break(name):
    net = MAKERS[name](generator()).eval()
    x = torch.rand(3, 1, 8, 8, generator=generator())
    torch._dynamo.reset()
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_parameter_counts_of_the_published_nets():
    assert parameters(resnet20()) == 269_722
    assert parameters(resnet18()) == 11_173_962
    assert parameters(MLP(784, 10)) == 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    convolutions = [layer for layer in resnet20().modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 19  # and the head makes 20


def test_mlp_equals_its_formula():
    net = MLP(3, 2, hidden=(4,), activation=nn.Tanh, generator=generator())
    x = torch.rand(5, 3, generator=generator())
    weight, bias, head_weight, head_bias = net.parameters()
    torch.testing.assert_close(net(x), torch.tanh(x @ weight.T + bias) @ head_weight.T + head_bias)


def test_mlp_normalises_in_place_of_a_bias():
    linear, norm, activation = MLP(3, 2, hidden=(4,), batch_norm=True, generator=generator()).body
    assert [type(layer) for layer in (linear, norm, activation)] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert linear.bias is None


def test_mlp_dropout_acts_in_training_only():
    net = MLP(3, 2, hidden=(64,), dropout=0.5, generator=generator())
    x = torch.ones(1, 3)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 28, 28), (2, 33, 17), (1, 5, 4)])
def test_convolutional_nets_take_any_size(shape):
    for make in (SmallCNN, StridedCNN):
        assert make(shape[0], 4, width=2, generator=generator())(torch.zeros(2, *shape)).shape == (2, 4)
    assert ResNet(shape[0], 4, widths=(2, 4), blocks=1)(torch.zeros(2, *shape)).shape == (2, 4)


def test_residual_block_with_dead_convolutions_is_its_shortcut():
    net = ResNet(1, 2, widths=(2, 6), blocks=1, generator=generator()).eval()
    block = net.body[-1]
    nn.init.zeros_(block.get_parameter("norm2.weight"))
    x = torch.rand(2, 2, 5, 5, generator=generator())
    out = net.body[-1:](x)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert out[:, :2].eq(0).all()
    assert out[:, 4:].eq(0).all()


def test_resnet_convolutions_start_as_he_et_al():
    net = initialize_(ResNet(3, 10, widths=(32, 64), blocks=1), generator())
    weight = net.body[-1].get_parameter("conv1.weight").detach()
    assert weight.shape[:2] == (64, 32)
    assert float(weight.var()) == pytest.approx(2 / (64 * 9), rel=0.05)
    assert abs(float(weight.mean())) < 0.002


def test_as_images_puts_the_pixels_where_they_belong():
    x = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    assert as_images(x, 3) is x
    assert torch.equal(as_images(x.flatten(1), 3), x)
    assert torch.equal(as_images(x[:, 0], 1), x[:, :1])


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((2, 3, 4, 4), 1), ((2, 10), 1), ((2, 0), 1), ((2, 4, 4), 3), ((5,), 1), ((2, 1, 4, 4, 4), 1)],
)
def test_as_images_names_what_it_cannot_take(shape, channels):
    with pytest.raises(ValueError, match=rf"\(n, {channels}, height, width\).*{', '.join(map(str, shape))}"):
        as_images(torch.zeros(shape), channels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0, 2), "in_features must be >= 1, but is 0"),
        (lambda: MLP(3, 2, hidden=(4, 0)), "hidden must be >= 1, but is 0"),
        (lambda: MLP(3, 2, dropout=1.0), r"dropout must lie in \[0, 1\), but is 1.0"),
        (lambda: SmallCNN(1, 0), "num_classes must be >= 1, but is 0"),
        (lambda: StridedCNN(1, 2, width=0), "width must be >= 1, but is 0"),
        (lambda: ResNet(1, 2, blocks=0), "blocks must be >= 1, but is 0"),
        (lambda: ResNet(1, 2, widths=()), "widths must name at least 1 stage, but is empty"),
        (lambda: ResNet(1, 2, shortcut="none"), "shortcut must be one of 'pad', 'conv', but is 'none'"),
        (lambda: MLP(3, 2)(torch.zeros(2, 4)), r"x must have 3 features a row, but has shape \(2, 4\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
