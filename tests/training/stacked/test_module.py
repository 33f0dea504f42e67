from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from torchstone.models import MLP, SmallCNN, StridedCNN
from torchstone.training import StackedModule, predict, stack


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nets(count: int = 3, **options) -> list[MLP]:
    return [MLP(4, 3, hidden=(6,), generator=generator(s), **options).double() for s in range(count)]


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed, through a layer that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.again = self.encoder
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.again(self.encoder(x)).tanh())


class Counts(nn.Module):
    """Keeps one buffer by replacing it and one by writing into it, per row."""

    total: torch.Tensor
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(5, dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self.total = self.total + x.sum()
        self.seen[index] += 1
        return x + self.total


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("make", [MLP, SmallCNN, StridedCNN])
def test_each_slice_is_what_its_model_gives(make):
    models = [make(16 if make is MLP else 1, 3, generator=generator(s)).double() for s in range(3)]
    x = torch.randn(3, 5, 1, 4, 4, dtype=torch.double)
    stacked = stack(models)
    assert len(stacked) == 3
    out = stacked(x)
    assert out.shape == (3, 5, 3)
    for s, model in enumerate(models):
        torch.testing.assert_close(out[s], model(x[s]), rtol=0, atol=1e-12)


def test_shared_inputs_and_other_methods():
    models, x = nets(), torch.randn(5, 4, dtype=torch.double)
    stacked = stack(models)
    for s, model in enumerate(models):
        torch.testing.assert_close(stacked(x, shared=True)[s], model(x))
        torch.testing.assert_close(stacked.map(lambda net, x: net.features(x), x, in_dims=None)[s], model.features(x))
    joint = stacked.map(lambda net, x, y: net(x) * y, x, torch.arange(3.0).double(), in_dims=(None, 0))
    torch.testing.assert_close(joint[2], 2 * models[2](x))


def test_predictions_of_all_models_in_batches():
    models, x = nets(batch_norm=True, dropout=0.5), torch.randn(7, 4, dtype=torch.double)
    stacked = stack(models)
    stacked.net.head.eval()
    out = stacked.predict(x, batch_size=3)
    torch.testing.assert_close(out, torch.stack([predict(model, x) for model in models]))
    assert not out.requires_grad
    assert stacked.training
    assert stacked.net.body.training
    assert not stacked.net.head.training


def test_in_chunks_the_result_is_the_same():
    models, x = nets(5, batch_norm=True), torch.randn(5, 6, 4, dtype=torch.double)
    whole, chunks = stack(models), stack(models, chunk_size=2)
    torch.testing.assert_close(whole(x), chunks(x))
    torch.testing.assert_close(whole.state_dict(), chunks.state_dict())


def test_running_statistics_are_those_of_the_loop_to_the_bit_and_only_in_training():
    models = [nn.BatchNorm2d(2, momentum=0.1 + 0.3, affine=False) for _ in range(3)]
    x, stacked = torch.randn(3, 5, 2, 8, 8), stack(models)
    for s, model in enumerate(models):
        model(x[s])
        model.eval()(2 * x[s])
    stacked(x)
    stacked.eval()(2 * x)
    for ours, theirs in zip(stacked.unstack(), models, strict=True):
        assert same_state(ours, theirs)
        assert ours.num_batches_tracked == 1


def test_buffers_that_are_replaced_or_written_by_row_are_kept():
    models = [Counts() for _ in range(3)]
    stacked = stack(models)
    x, index = torch.randn(3, 2), torch.tensor([[0, 1], [1, 2], [4, 0]])
    for _ in range(2):
        out = stacked(x, index)
        assert torch.equal(out, torch.stack([m(x[s], index[s]) for s, m in enumerate(models)]))
    for ours, theirs in zip(stacked.unstack(), models, strict=True):
        assert torch.equal(ours.total, theirs.total)
        assert torch.equal(ours.seen, theirs.seen)
    assert "net.seen" not in stacked.state_dict()


def test_tied_parameters_stay_tied():
    models = [Tied() for _ in range(3)]
    stacked, x = stack(models), torch.randn(3, 5, 4)
    assert [name for name, _ in stacked.named_parameters()] == ["net.encoder.weight", "net.decoder.bias"]
    for s, model in enumerate(models):
        torch.testing.assert_close(stacked(x)[s], model(x[s]))
    stacked(x).sum().backward()
    models[1](x[1]).sum().backward()
    grad = stacked.net.encoder.weight.grad
    assert grad is not None
    torch.testing.assert_close(grad[1], models[1].encoder.weight.grad)
    alone = stacked.unstack()[1]
    assert alone.decoder.weight is alone.encoder.weight
    assert alone.again is alone.encoder


def test_frozen_parameters_stay_frozen():
    models = nets()
    for model in models:
        model.body.requires_grad_(False)
    stacked = stack(models)
    assert [p.requires_grad for p in stacked.parameters()] == [False, False, True, True]
    assert [p.requires_grad for p in stacked.unstack()[0].parameters()] == [False, False, True, True]


@pytest.mark.parametrize("train", [True, False])
def test_attention_has_a_stacked_form_without_a_warning(train):
    models, x = [attention().train(train) for _ in range(3)], torch.randn(3, 5, 6, 4, dtype=torch.double)
    stacked = stack(models)
    with torch.set_grad_enabled(train):
        out = stacked(x)
        alone = torch.stack([model(x[s]) for s, model in enumerate(models)])
    torch.testing.assert_close(out, alone, rtol=0, atol=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()
    if train:
        out.square().sum().backward()
        models[1](x[1]).square().sum().backward()
        for ours, theirs in zip(stacked.parameters(), models[1].parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad[1], theirs.grad, rtol=1e-10, atol=1e-10)


def test_dropout_differs_between_seeds():
    stacked = stack([nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)) for _ in range(2)])
    for p in stacked.parameters():
        nn.init.ones_(p)
    out = stacked(torch.ones(2, 64, 1))
    assert set(out.flatten().tolist()) == {0.0, 4.0}
    assert not torch.equal(out[0], out[1])


def test_unstacked_models_and_state_dicts_are_ordinary_and_copies():
    models = nets(batch_norm=True)
    stacked = stack(models)
    fresh = nets(batch_norm=True)
    for model, ours, state, other in zip(models, stacked.unstack(), stacked.state_dicts(), fresh, strict=True):
        assert type(ours) is MLP
        assert same_state(ours, model)
        other.load_state_dict(state)
        assert same_state(other, model)
        assert all(p.is_leaf and p.grad is None for p in ours.parameters())
        with torch.no_grad():
            for p in (*ours.parameters(), *state.values(), *model.parameters()):
                p.zero_()
    assert all(p.any() for name, p in stacked.named_parameters() if name.endswith("0.weight"))
    assert stacked.net.body[0].weight.shape == (3, 6, 4)


def test_state_dict_deepcopy_and_dtype():
    stacked, x = stack(nets(batch_norm=True)), torch.randn(3, 5, 4, dtype=torch.double)
    twin, other = copy.deepcopy(stacked), stack(nets(batch_norm=True)[::-1])
    stream = io.BytesIO()
    torch.save(stacked.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream))
    assert torch.equal(twin(x), stacked(x))
    assert torch.equal(other(x), twin(x))
    assert stacked.float()(x.float()).dtype == torch.float32
    assert twin.net.body[0].weight.dtype == torch.double
    assert repr(stacked).startswith("StackedModule(\n  3 models")


def test_an_error_inside_leaves_the_stacked_parameters_in_place():
    stacked = stack(nets())
    with pytest.raises(ValueError, match="x must have 4 features"):
        stacked(torch.ones(3, 5, 7))
    assert stacked.net.head.weight.shape == (3, 3, 6)


def plain(*sizes: int) -> nn.Module:
    """A module whose description does not tell its parameters."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, size in enumerate(sizes):
                self.register_parameter(str(i), nn.Parameter(torch.zeros(size)))

    return Plain()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "must hold at least 1 model, but hold 0"),
        ([nn.Flatten()], "there is nothing to stack"),
        (
            [nn.Linear(4, 2), nn.Linear(4, 3)],
            r"but '' is Linear\(in_features=4, out_features=3, bias=True\) in models\[1\]",
        ),
        (
            [nn.Linear(4, 2), nn.Linear(4, 2).double()],
            r"'weight' is a parameter of shape \(2, 4\), torch.float64, on cpu in",
        ),
        ([nn.Linear(4, 2), nn.Linear(4, 2).requires_grad_(False)], "'weight' is a frozen parameter of shape"),
        (
            [plain(4), plain(4), plain(5)],
            r"'0' is .* of shape \(5,\).* in models\[2\] and .* of shape \(4,\).* models\[0\]",
        ),
        ([plain(4), plain(4, 5)], r"'1' is a parameter of shape \(5,\), .* in models\[1\] and nothing in models\[0\]"),
        ([plain(4, 5), plain(4)], r"'1' is nothing in models\[1\] and a parameter"),
        (
            [nn.Sequential(nn.Linear(4, 2), nn.Dropout(p)) for p in (0.1, 0.2)],
            r"'1' is Dropout\(p=0.2, inplace=False\) in models\[1\] and Dropout\(p=0.1, inplace=False\) in models\[0\]",
        ),
        (
            [nn.Sequential(nn.Linear(4, 2), *more) for more in ((), (nn.Tanh(),))],
            r"'1' is Tanh\(\) in models\[1\] and no",
        ),
        ([nn.LazyLinear(2), nn.LazyLinear(2)], "'weight' is lazy: call each once"),
    ],
)
def test_models_must_be_of_one_architecture(models, message):
    with pytest.raises(ValueError, match=message):
        StackedModule(models)


def test_a_tie_that_only_one_model_has_is_told():
    loose = Tied()
    loose.decoder.weight = nn.Parameter(loose.encoder.weight.detach().clone())
    with pytest.raises(
        ValueError, match=r"'decoder.weight' is a parameter .* and tied to 'encoder.weight' in models\[0\]"
    ):
        stack([Tied(), loose])
    with pytest.raises(ValueError, match=r"'decoder.weight' is tied to 'encoder.weight' in models\[1\] and a param"):
        stack([loose, Tied()])


@pytest.mark.untyped
def test_other_errors():
    with pytest.raises(ValueError, match="chunk_size must be >= 1, but is 0"):
        stack(nets(), chunk_size=0)
    with pytest.raises(ValueError, match="x must have at least 1 row"):
        stack(nets()).predict(torch.ones(0, 4))
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        stack(nets()).predict(torch.ones(2, 4), batch_size=0)
