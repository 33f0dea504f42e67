from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torchstone.models import initialize_, seeded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Custom(nn.Module):
    """A user's module: an initialisation of its own, a bare parameter, layers with and without randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.bare = nn.Parameter(torch.randn(3))
        self.attention = nn.MultiheadAttention(4, 2)
        self.recurrent = nn.LSTM(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)
        nn.init.orthogonal_(self.head.weight)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_module_built_under_seeded_depends_on_the_generator_alone():
    with seeded(generator()):
        first = Custom()
    torch.rand(5)
    with seeded(generator()):
        second = Custom()
    with seeded(generator(1)):
        other = Custom()
    assert same(first, second)
    assert not torch.equal(first.bare, other.bare)


def test_two_blocks_in_a_row_differ():
    stream = generator()
    with seeded(stream):
        first = torch.rand(3)
    with seeded(stream):
        second = torch.rand(3)
    assert not torch.equal(first, second)


def test_global_stream_goes_on_as_if_untouched_even_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mat1"), seeded(generator()):
        torch.mm(torch.rand(2, 3), torch.rand(2, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_without_generator_the_global_stream_is_used():
    before = torch.get_rng_state()
    with seeded(None):
        torch.rand(3)
    assert not torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("device", "place"), [("cuda", 0), ("cuda:1", 1), ("mps", 0)])
def test_the_stream_of_an_accelerator_is_replaced_and_put_back(device, place, monkeypatch):
    streams = [generator(5), generator(6)]  # stand in for those of the accelerator
    backend = SimpleNamespace(init=lambda: None, current_device=lambda: 0, default_generators=streams)
    if device == "mps":
        backend = SimpleNamespace(_get_default_mps_generator=lambda: streams[0])
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    before = [stream.get_state() for stream in streams]
    drawn = []
    for _ in range(2):
        with seeded(generator(), device=torch.device(device)):
            drawn.append(torch.rand(3, generator=streams[place]))
    assert torch.equal(*drawn)
    assert all(torch.equal(old, stream.get_state()) for old, stream in zip(before, streams, strict=True))


def test_a_device_that_hides_its_generator_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    with pytest.raises(ValueError, match="device xla does not let its global generator be saved"):
        seeded(generator(), device=torch.device("xla")).__enter__()


def test_initialize_redraws_any_module_in_place():
    module = Custom()
    module.norm.get_buffer("running_mean").fill_(7)
    weight, bare = module.head.weight, module.bare.clone()
    before = torch.get_rng_state()
    assert initialize_(module, generator()) is module
    assert torch.equal(before, torch.get_rng_state())
    assert module.head.weight is weight
    assert torch.equal(module.bare, bare)
    assert module.norm.get_buffer("running_mean").eq(0).all()
    again = initialize_(Custom(), generator())
    for name in ("attention", "recurrent", "norm", "head"):
        assert same(getattr(module, name), getattr(again, name)), name
    assert not same(module.recurrent, initialize_(Custom(), generator(1)).recurrent)


def test_initialize_lets_the_outer_module_have_the_last_word():
    class ZeroHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.head.weight)

    assert initialize_(ZeroHead(), generator()).head.weight.eq(0).all()
