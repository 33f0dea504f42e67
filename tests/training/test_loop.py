from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from torchstone.models import MLP
from torchstone.training import Batch, DivergedError, FileCheckpoint, History, fit, supervised

CE = supervised(nn.CrossEntropyLoss())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Data:
    x: torch.Tensor
    y: torch.Tensor


def data(n: int = 22) -> Data:
    stream = generator(99)
    return Data(torch.randn(n, 5, generator=stream), torch.randint(3, (n,), generator=stream))


def net(seed: int = 0, dropout: float = 0.0) -> MLP:
    return MLP(5, 3, hidden=(8,), batch_norm=True, dropout=dropout, generator=generator(seed))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class PerSample(nn.Module):
    """A loss with one learnt parameter per training sample and a buffer, as methods for noisy labels have."""

    visits: torch.Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((n,), 0.1))
        self.register_buffer("visits", torch.zeros(n))

    def forward(self, logits: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self.visits[index] += 1
        return (nn.functional.cross_entropy(logits, y, reduction="none") * self.shift[index].cos()).mean()


class Interrupted(Exception):
    pass


# What the loop does


def test_equals_the_loop_one_would_write_by_hand():
    ours, theirs, d = net(), net(), data()
    sgd = SGD(ours.parameters(), 0.1, momentum=0.9)
    history = fit(ours, d, CE, sgd, epochs=2, batch_size=8, generator=generator())

    sgd, order, losses = SGD(theirs.parameters(), 0.1, momentum=0.9), generator(), []
    for _ in range(2):
        total = 0.0
        for index in torch.randperm(22, generator=order).split(8):
            loss = nn.functional.cross_entropy(theirs(d.x[index]), d.y[index])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.item() * len(index)
        losses.append(total / 22)
    assert same(ours, theirs)
    assert history.curves["loss"] == pytest.approx(losses, rel=1e-6)
    assert history.cost == {"steps": 6, "forwards": 6, "samples": 44}
    assert history.epochs == 2


def test_each_pass_sees_each_row_once_in_a_new_order():
    seen: list[list[int]] = []

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        assert batch.index is not None
        assert torch.equal(batch.x, d.x[batch.index])
        assert torch.equal(batch.y, d.y[batch.index])
        seen.append(batch.index.tolist())
        return CE(model, batch)

    d, model = data(10), net()
    fit(model, d, loss, SGD(model.parameters(), 0.1), epochs=2, batch_size=4, generator=generator())
    assert [len(part) for part in seen] == [4, 4, 2, 4, 4, 2]
    first, second = [i for part in seen[:3] for i in part], [i for part in seen[3:] for i in part]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_drop_last_leaves_out_the_short_batch():
    model = net()
    history = fit(model, data(22), CE, SGD(model.parameters(), 0.1), epochs=1, batch_size=8, drop_last=True)
    assert history.cost == {"steps": 2, "forwards": 2, "samples": 16}


def test_forwards_are_counted_where_a_loss_calls_the_model_twice():
    model = net()
    history = fit(
        model, data(), lambda m, b: CE(m, b) + CE(m, b), SGD(model.parameters(), 0.1), epochs=1, batch_size=11
    )
    assert (history.steps, history.forwards) == (2, 4)
    assert not model._forward_pre_hooks


def test_a_loader_is_used_as_it_comes():
    d = data()
    ours, theirs = net(), net()
    fit(ours, d, CE, SGD(ours.parameters(), 0.1), epochs=2, batch_size=8, generator=generator())
    order = generator()
    rows = [torch.randperm(22, generator=order) for _ in range(2)]

    class Passes:
        """Yields the same batches, pass by pass, as a loader of triples."""

        def __iter__(self):
            for index in rows.pop(0).split(8):
                yield d.x[index], d.y[index], index

    fit(theirs, Passes(), CE, SGD(theirs.parameters(), 0.1), epochs=2)
    assert same(ours, theirs)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("item", "kinds"), [((torch.zeros(5), 1), "Tensor, int"), (torch.zeros(5), "Tensor"), ((torch.zeros(5),), "Tensor")]
)
def test_a_data_set_in_place_of_its_loader_is_told(item, kinds):
    model = net()
    with pytest.raises(TypeError, match=rf"but yield \({kinds}\); a data set goes into a"):
        fit(model, [item], CE, SGD(model.parameters(), 0.1), epochs=1)


def test_several_optimizers_and_modules_step_together():
    model, criterion, d = net(), PerSample(22), data()
    sgd, plain = SGD(model.parameters(), 0.1), SGD(criterion.parameters(), 0.5)
    loss = supervised(criterion, with_index=True)
    criterion.eval()
    fit(model, d, loss, [sgd, plain], epochs=2, batch_size=22, generator=generator(), modules=[criterion])
    assert criterion.training
    assert criterion.visits.eq(2).all()
    assert criterion.shift.ne(0.1).all()


@pytest.mark.parametrize(("per", "rate"), [("epoch", 0.5**3), ("step", 0.5**9)])
def test_schedulers_step_per_epoch_or_per_step(per, rate):
    model = net()
    sgd = SGD(model.parameters(), 1.0)
    halve = LambdaLR(sgd, lambda count: 0.5**count)
    fit(model, data(), CE, sgd, epochs=3, batch_size=8, generator=generator(), scheduler=halve, schedule_per=per)
    assert sgd.param_groups[0]["lr"] == rate


def test_augment_sees_the_batch_and_its_generator():
    stream, model, seen = generator(5), net(), []

    def shift(x: torch.Tensor, g: torch.Generator | None) -> torch.Tensor:
        assert g is stream
        return x + torch.rand((), generator=g)

    def loss(m: nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(batch.x - d.x[batch.index])
        return CE(m, batch)

    d = data()
    sgd = SGD(model.parameters(), 0.1)
    fit(model, d, loss, sgd, epochs=1, batch_size=22, augment=shift, augment_generator=stream)
    torch.testing.assert_close(seen[0], torch.rand((), generator=generator(5)).expand(22, 5))


def test_gradient_norm_is_clipped():
    model, start = net(), net()
    fit(model, data(), CE, SGD(model.parameters(), 1.0), epochs=1, batch_size=22, max_grad_norm=1e-3)
    moved = sum(
        float((p - q).detach().square().sum()) for p, q in zip(model.parameters(), start.parameters(), strict=True)
    )
    assert math.sqrt(moved) == pytest.approx(1e-3, rel=1e-3)


def test_autocast_runs_the_model_in_bfloat16():
    kinds, model = [], net()

    def loss(m: nn.Module, batch: Batch) -> torch.Tensor:
        logits = m(batch.x)
        kinds.append(logits.dtype)
        return nn.functional.cross_entropy(logits, batch.y)

    fit(model, data(), loss, SGD(model.parameters(), 0.1), epochs=1, batch_size=22, autocast=torch.bfloat16)
    assert kinds == [torch.bfloat16]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_noise_decides_dropout_and_leaves_the_global_stream_alone():
    def run(seed: int | None) -> MLP:
        model = net(dropout=0.5)
        noise = None if seed is None else generator(seed)
        fit(model, data(), CE, SGD(model.parameters(), 0.1), epochs=2, batch_size=8, generator=generator(), noise=noise)
        return model

    before = torch.get_rng_state()
    first = run(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    assert same(first, run(0))
    assert not same(first, run(1))
    assert not same(run(None), run(None))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_noise_covers_the_generator_of_the_device():
    def run() -> tuple[MLP, History]:
        model = net(dropout=0.5).to("cuda")
        sgd = SGD(model.parameters(), 0.1)
        return model, fit(
            model, data(), CE, sgd, epochs=2, batch_size=8, generator=generator(), noise=generator(), device="cuda"
        )

    before = torch.cuda.get_rng_state()
    first, history = run()
    assert torch.equal(before, torch.cuda.get_rng_state())
    torch.rand(1, device="cuda")
    second, history2 = run()
    assert history == history2
    assert same(first, second)


# Callbacks


def test_callbacks_measure_and_stop():
    model = net()
    model_seen = []

    def measure(end):
        model_seen.append(end.model is model)
        model.eval()
        return {"epoch_squared": end.history.epochs**2}

    def patience(end):
        return end.history.curves["epoch_squared"][-1] >= 4

    modes = []

    def loss(m, batch):
        modes.append(m.training)
        return CE(m, batch)

    sgd = SGD(model.parameters(), 0.1)
    history = fit(model, data(), loss, sgd, epochs=9, batch_size=22, callbacks=[measure, patience])
    assert history.curves["epoch_squared"] == [1.0, 4.0]
    assert len(history.curves["loss"]) == history.epochs == 2
    assert history.stopped
    assert model_seen == [True, True]
    assert modes == [True, True]


@pytest.mark.untyped
def test_a_callback_that_returns_a_bare_number_does_not_stop_the_run_unseen():
    model = net()
    with pytest.raises(TypeError, match=r"must return a mapping, a bool or None, but .* returns 0\.9"):
        fit(
            model,
            data(),
            CE,
            SGD(model.parameters(), 0.1),
            epochs=2,
            batch_size=22,
            callbacks=[lambda end: 0.9],  # pyright: ignore[reportArgumentType] on purpose
        )


# Resume


def run(path, optimizer, *, stop_at=None, seed=0, per: Any = "epoch", schedule=None, loader=False):
    """Train with every source of chance in use; ``stop_at`` interrupts in the middle of that epoch."""
    model, criterion = net(seed, dropout=0.3), PerSample(22)
    main, plain = optimizer(model.parameters()), SGD(criterion.parameters(), 0.5)
    order, d = generator(1), data()
    source: Any = d
    if loader:
        source = DataLoader(TensorDataset(d.x, d.y, torch.arange(22)), batch_size=8, shuffle=True, generator=order)
    calls = 0

    def loss(m: nn.Module, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if stop_at is not None and calls == 3 * stop_at - 1:
            raise Interrupted
        return supervised(criterion, with_index=True)(m, batch)

    history = fit(
        model,
        source,
        loss,
        [main, plain],
        epochs=5,
        batch_size=None if loader else 8,
        generator=order,
        noise=generator(2),
        augment=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g),
        augment_generator=generator(3),
        scheduler=schedule(main) if schedule else (),
        schedule_per=per,
        modules=[criterion],
        callbacks=[lambda end: {"norm": float(next(end.model.parameters()).detach().norm())}],
        checkpoint=FileCheckpoint(path),
    )
    return model, criterion, history


@pytest.mark.parametrize(
    ("optimizer", "schedule", "per", "loader"),
    [
        (lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True), lambda o: CosineAnnealingLR(o, 5), "epoch", False),
        (lambda p: Adam(p, 0.01, amsgrad=True), lambda o: OneCycleLR(o, 0.1, total_steps=15), "step", False),
        (lambda p: SGD(p, 0.1, momentum=0.9), lambda o: MultiStepLR(o, [2, 4]), "epoch", True),
        (lambda p: Adam(p, 0.01), None, "epoch", True),
    ],
    ids=["sgd-cosine", "adam-onecycle", "sgd-loader", "adam-loader"],
)
def test_resumed_run_equals_one_never_stopped(tmp_path, optimizer, schedule, per, loader):
    options = {"schedule": schedule, "per": per, "loader": loader}
    straight, criterion, history = run(tmp_path / "a.pt", optimizer, **options)
    for seed in (0, 7):  # interrupted twice, with an epoch finished in between
        with pytest.raises(Interrupted):
            run(tmp_path / "b.pt", optimizer, stop_at=2, seed=seed, **options)
    torch.rand(3)
    resumed, criterion2, history2 = run(tmp_path / "b.pt", optimizer, seed=8, **options)
    assert same(straight, resumed)
    assert same(criterion, criterion2)
    assert history == history2
    assert history2.epochs == 5


def test_finished_run_is_not_repeated_but_can_be_prolonged(tmp_path):
    model, d = net(), data()

    def go(epochs: int) -> History:
        sgd = SGD(model.parameters(), 0.1)
        return fit(model, d, CE, sgd, epochs=epochs, batch_size=22, checkpoint=FileCheckpoint(tmp_path / "c.pt"))

    first = go(2)
    weights = copy.deepcopy(model.state_dict())
    assert go(2) == first
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True))
    assert go(3).epochs == 3


def test_stopped_run_stays_stopped(tmp_path):
    def go() -> History:
        model = net()
        sgd, kept = SGD(model.parameters(), 0.1), FileCheckpoint(tmp_path / "c.pt")
        return fit(model, data(), CE, sgd, epochs=5, batch_size=22, checkpoint=kept, callbacks=[lambda end: True])

    assert go() == go()
    assert go().epochs == 1


def test_checkpoint_every_saves_at_multiples_and_at_the_end():
    saved = []

    class Note:
        def load(self) -> None:
            return None

        def save(self, state: dict[str, Any], /) -> None:
            saved.append(state["history"]["epochs"])

    model = net()
    fit(model, data(), CE, SGD(model.parameters(), 0.1), epochs=5, batch_size=22, checkpoint=Note(), checkpoint_every=2)
    assert saved == [2, 4, 5]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    model, kept = net(), FileCheckpoint(tmp_path / "c.pt")
    sgd = SGD(model.parameters(), 0.1)
    fit(model, data(), CE, sgd, epochs=1, batch_size=22, checkpoint=kept)
    with pytest.raises(ValueError, match="written with 1 optimizers, but this run has 2"):
        fit(model, data(), CE, [sgd, sgd], epochs=2, batch_size=22, checkpoint=kept)
    with pytest.raises(ValueError, match="written with generators none, but this run has order"):
        fit(model, data(), CE, sgd, epochs=2, batch_size=22, checkpoint=kept, generator=generator())


# Failure


def test_diverged_training_stops_at_the_step_and_says_which():
    model = net()
    calls = 0

    def loss(m: nn.Module, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return CE(m, batch) * (math.inf if calls == 5 else 1.0)

    with pytest.raises(DivergedError, match="the loss became inf at step 5, epoch 2"):
        fit(model, data(), loss, SGD(model.parameters(), 0.1), epochs=3, batch_size=8)
    assert calls == 5
    assert not model._forward_pre_hooks
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": -1}, "epochs must be >= 0, but is -1"),
        ({"batch_size": 0}, "batch_size must be >= 1, but is 0"),
        ({"batch_size": None}, "batch_size must be given for tensors in memory"),
        ({"schedule_per": "batch"}, "schedule_per must be one of 'epoch', 'step', but is 'batch'"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm must lie in \(0, inf\], but is 0.0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be >= 1, but is 0"),
        ({"autocast": torch.float16}, "autocast must be None or torch.bfloat16 .* but is torch.float16"),
        ({"data": data(0)}, "data must fill at least one batch, but have 0 rows"),
        ({"batch_size": 23, "drop_last": True}, "data must fill at least one batch, but have 22 rows"),
        ({"data": iter([(data().x, data().y)]), "batch_size": None, "epochs": 2}, "data gave no batch in epoch 2"),
        ({"data": []}, "batch_size and drop_last are for tensors in memory"),
        ({"data": Data(torch.zeros(3, 5), torch.zeros(2))}, r"as many rows as x \(3\), but has 2"),
        ({"loss": lambda m, b: m(b.x)}, r"loss must give a scalar, but gives shape \(22, 3\)"),
        ({"loss": supervised(PerSample(22), with_index=True), "data": [(data().x, data().y)], "batch_size": None},
         "the loss needs each sample's index"),
    ],
)  # fmt: skip
@pytest.mark.untyped
def test_bad_arguments(arguments, message):
    model = net()
    given = {"data": data(), "loss": CE, "epochs": 1, "batch_size": 22, **arguments}
    with pytest.raises(ValueError, match=message):
        fit(model, optimizer=SGD(model.parameters(), 0.1), **given)


def test_zero_epochs_do_nothing():
    model, start = net(), net()
    assert fit(model, data(), CE, SGD(model.parameters(), 0.1), epochs=0, batch_size=8) == History()
    assert same(model, start)
