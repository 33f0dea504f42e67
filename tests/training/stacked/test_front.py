from __future__ import annotations

from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import nn

from torchstone.models import MLP, seeded
from torchstone.training import Batch, fit, stacking_speedup, supervised, train_stacked
from torchstone.training.stacked import SGD, AdamW


def net() -> MLP:
    return MLP(4, 3, hidden=(6,))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


class Tensors:
    x, y = data()


def test_each_model_is_what_its_seed_alone_gives():
    nets, history = train_stacked(net, data(), seeds=[7, 3], epochs=3, batch_size=8, lr=0.01)
    for s, (seed, ours) in enumerate(zip([7, 3], nets, strict=True)):
        g = torch.Generator().manual_seed(seed)
        with seeded(g):
            theirs = net()
        rule = torch.optim.AdamW(theirs.parameters(), 0.01)
        alone = fit(theirs, Tensors(), supervised(nn.CrossEntropyLoss()), rule, epochs=3, batch_size=8, generator=g)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-6)
        torch.testing.assert_close(history.curves["loss"][:, s].tolist(), alone.curves["loss"], rtol=0, atol=1e-6)


def test_options_reach_the_optimiser_and_the_loop():
    calls = []

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return model(batch.x).square().mean()

    sgd = partial(SGD, momentum=0.9)
    _, history = train_stacked(
        net,
        Tensors(),
        seeds=[0, 0],
        epochs=2,
        batch_size=8,
        loss=loss,
        optimizer=sgd,
        lr=[0.0, 0.1],
        chunk_size=1,
        drop_last=True,
    )
    first, second = history.curves["loss"].T
    assert second[-1] < 0.9 * first[-1]
    assert history.samples == 32
    assert len(calls) == 2 * history.steps  # once for each chunk


@pytest.mark.parametrize("optimizer", [AdamW, torch.optim.Adam])
def test_models_differ_by_seed_alone(optimizer):
    nets, _ = train_stacked(net, data(), seeds=range(2), epochs=1, batch_size=8, optimizer=optimizer)
    again, _ = train_stacked(net, data(), seeds=range(1, 2), epochs=1, batch_size=8, optimizer=optimizer)
    torch.testing.assert_close(nets[1].state_dict(), again[0].state_dict(), rtol=0, atol=1e-6)
    assert not torch.allclose(next(nets[0].parameters()), next(nets[1].parameters()))


def test_no_seed_is_an_error():
    with pytest.raises(ValueError, match="seeds must hold at least 1 seed"):
        train_stacked(net, data(), seeds=[], epochs=1, batch_size=8)


@pytest.mark.untyped
def test_the_probe_gives_a_ratio_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    assert 0 < stacking_speedup(net, data(), 4, steps=2) < 1000
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="seeds must be >= 1"):
        stacking_speedup(net, data(), 0)


def test_the_probe_times_all_steps_of_the_loop_and_one_of_the_stack_after_two_turns(monkeypatch):
    calls, moves = [], []

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        calls.append(batch.x.shape)
        return model(batch.x).sum()

    clock = accumulate([100, 100, 100, 100, 0, 6, 0, 2])
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: moves.append(1))
    assert stacking_speedup(net, data(), 4, loss=loss, steps=1) == 3.0
    assert calls == [torch.Size([20, 4])] * 15  # in each turn four single ones and a mapped one
    assert len(moves) == 15
