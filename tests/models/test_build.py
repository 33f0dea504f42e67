from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from torchstone.errors import UnknownNameError
from torchstone.models import MLP, MODELS, build


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class NoArguments(nn.Linear):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width, 3)


def by_name(*, num_classes: int, depth: int = 1) -> nn.Module:
    return nn.Linear(4, num_classes)


def by_place(shape: tuple[int, ...], k: int, /) -> nn.Module:
    return nn.Linear(shape[0], k)


@pytest.fixture
def plugin(monkeypatch):
    module = ModuleType("my_models")
    vars(module).update(by_name=by_name, NoArguments=NoArguments, number=3)
    monkeypatch.setitem(sys.modules, "my_models", module)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(64,), (8, 8), (3, 16, 16)])
def test_every_name_builds_for_vectors_and_images(name, shape):
    net = build(name, shape, 7, generator=generator())
    assert net.training
    assert net(torch.zeros(2, *shape)).shape == (2, 7)


def test_building_draws_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second = (build("mlp", (4,), 3, generator=generator()) for _ in range(2))
    user = [build(NoArguments, (4,), 3, generator=generator()) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    for a, b in [(first, second), user]:
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_trial_leaves_running_statistics_alone():
    norm = nn.BatchNorm1d(4)
    build(lambda: nn.Sequential(norm, nn.Linear(4, 3)), (4,), 3)
    assert norm.num_batches_tracked == 0
    assert norm.training


@pytest.mark.parametrize("factory", [NoArguments, by_name, by_place, lambda: MLP(4, 3)])
def test_factories_are_called_the_way_they_ask(factory):
    assert build(factory, (4,), 3)(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.usefixtures("plugin")
def test_factory_by_name():
    assert build("my_models:by_name", (4,), 5)(torch.zeros(2, 4)).shape == (2, 5)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("resnet2", UnknownNameError, "unknown model 'resnet2': did you mean 'resnet20'?"),
        ("no_such_models:net", UnknownNameError, "model factory .no_such_models:net.: there is no module"),
        ("my_models:byname", UnknownNameError, "unknown model factory in my_models 'byname': did you mean 'by_name'?"),
        (
            "my_models:NoArguments",
            ValueError,
            r"model my_models:NoArguments must give logits .*\(1, 5\).* gives \(1, 3\)",
        ),
        ("my_models:number", TypeError, "my_models:number cannot be called: it is of type int"),
        (nn.Linear(4, 5), TypeError, "is a model already"),
        (lambda a, b, c: None, TypeError, r"must take \(input_shape, num_classes\) or nothing, but needs \(a, b, c\)"),
        (lambda: "net", TypeError, "must give a torch.nn.Module, but gives str"),
        (lambda: nn.Linear(9, 5), ValueError, r"cannot take an input of shape \(1, 4\): mat1 and mat2"),
        (lambda: nn.LSTM(4, 5), ValueError, "but gives tuple"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_sentence(factory, error, message):
    with pytest.raises(error, match=message):
        build(factory, (4,), 5)


def test_a_module_that_fails_to_import_something_else_says_so(tmp_path, monkeypatch):
    (tmp_path / "broken_models.py").write_text("import package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="package_that_is_missing"):
        build("broken_models:net", (4,), 5)
