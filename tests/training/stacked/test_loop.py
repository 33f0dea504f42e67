from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

from torchstone.errors import DivergedError
from torchstone.models import MLP, SmallCNN, StridedCNN
from torchstone.training import Batch, FileCheckpoint, fit, fit_stacked, stack, supervised
from torchstone.training.stacked import SGD, AdamW, StackedHistory, StackedModule

CE = supervised(nn.functional.cross_entropy)
S, N = 3, 14


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Data:
    x: torch.Tensor
    y: torch.Tensor


def shared(*shape: int, dtype: torch.dtype = torch.double) -> Data:
    shape = shape or (5,)
    return Data(torch.randn(N, *shape, generator=generator(9), dtype=dtype), torch.arange(N) % 3)


def each(*shape: int) -> Data:
    sets = [
        Data(torch.randn(N, *(shape or (5,)), generator=generator(s)).double(), torch.arange(N) % 3) for s in (3, 4, 5)
    ]
    return Data(torch.stack([d.x for d in sets]), torch.stack([(d.y + s) % 3 for s, d in enumerate(sets)]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


class WithLoss(nn.Module):
    """A net and a loss with a parameter and a count per training sample, in one module that can be stacked."""

    visits: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)
        self.shift = nn.Parameter(torch.full((N,), 0.1))
        self.register_buffer("visits", torch.zeros(N))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def loss(self, batch: Batch) -> torch.Tensor:
        self.visits[batch.index] += 1
        rows = nn.functional.cross_entropy(self.net(batch.x), batch.y, reduction="none")
        return (rows * self.shift[batch.index].cos()).mean()


def mlp(**options: Any) -> Callable[[], nn.Module]:
    return lambda: MLP(5, 3, hidden=(6,), **options)


def make(factory: Callable[[], nn.Module], count: int = S, dtype: torch.dtype = torch.double) -> list[nn.Module]:
    models = []
    for s in range(count):
        torch.manual_seed(s)
        models.append(factory().to(dtype))
    return models


def close(ours: nn.Module, theirs: nn.Module, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=atol, atol=atol)


def equal(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def both(factory, data: Data, ours, theirs, *, own: Any = "", loss=CE, **options: Any):
    """Train stacked and one by one; ``theirs`` makes the optimiser of seed s."""
    model = stack(make(factory))
    orders = [generator(10 + s) for s in range(S)]
    options = {"epochs": 2, "batch_size": 4, **options}
    history = fit_stacked(model, data, loss, ours(model.parameters()), own=own, generators=orders, **options)
    singles, curves = make(factory), []
    for s, net in enumerate(singles):
        part = Data(data.x[s] if "x" in own else data.x, data.y[s] if "y" in own else data.y)
        limits = options.get("max_grad_norm")
        single = {**options, "max_grad_norm": limits[s] if isinstance(limits, list) else limits}
        curves.append(fit(net, part, loss, theirs(net.parameters(), s), generator=generator(10 + s), **single))
    return model, history, singles, curves


def sgd(params, s: int = 0):
    return torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


# The contract: S runs in one are the S runs


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (mlp(), (5,)),
        (mlp(batch_norm=True), (5,)),
        (Tied, (5,)),
        (lambda: SmallCNN(1, 3, width=2), (1, 4, 4)),
        (lambda: StridedCNN(1, 3, width=2), (1, 8, 8)),
    ],
    ids=["mlp", "batch-norm", "tied", "cnn", "strided-cnn"],
)
def test_each_seed_ends_where_a_run_of_its_own_ends(factory, shape):
    model, history, singles, alone = both(factory, shared(*shape), sgd, sgd)
    for ours, theirs in zip(model.unstack(), singles, strict=True):
        close(ours, theirs)
    curve = torch.tensor([run.curves["loss"] for run in alone]).T
    torch.testing.assert_close(history.curves["loss"], curve.double(), rtol=0, atol=1e-7)
    assert history.cost == alone[0].cost == {"steps": 8, "forwards": 8, "samples": 2 * N}
    assert (history.epochs, history.diverged, history.stopped) == (2, [""] * S, False)
    assert model.training


RATES = [0.01, 0.1, 0.3]


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (partial(torch.optim.Adam, lr=0.01), lambda p, s: torch.optim.Adam(p, lr=0.01), {}),
        (partial(torch.optim.RMSprop, lr=0.01), lambda p, s: torch.optim.RMSprop(p, lr=0.01), {}),
        (partial(torch.optim.AdamW, lr=0.01), lambda p, s: torch.optim.AdamW(p, lr=0.01), {"drop_last": True}),
        (partial(AdamW, lr=RATES), lambda p, s: torch.optim.AdamW(p, lr=RATES[s]), {}),
        (partial(SGD, lr=RATES, momentum=0.9), lambda p, s: torch.optim.SGD(p, RATES[s], 0.9), {"batch_size": 99}),
        (sgd, sgd, {"max_grad_norm": 0.5}),
        (sgd, sgd, {"max_grad_norm": [0.1, 0.5, 9.0]}),
    ],
)
def test_with_other_optimisers_rates_and_clipping(ours, theirs, options):
    model, history, singles, alone = both(mlp(), shared(), ours, theirs, **options)
    for one, other in zip(model.unstack(), singles, strict=True):
        close(one, other)
    assert history.cost == alone[0].cost


@pytest.mark.parametrize("own", ["", "x", "y", "xy"])
def test_data_of_ones_own_and_shared(own):
    ours, together = each(), shared()
    data = Data(ours.x if "x" in own else together.x, ours.y if "y" in own else together.y)
    model, _, singles, _ = both(mlp(), data, sgd, sgd, own=own)
    for one, other in zip(model.unstack(), singles, strict=True):
        close(one, other)


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_schedulers(per):
    halve = partial(LambdaLR, lr_lambda=lambda count: 0.5**count)
    model, singles = stack(make(mlp())), make(mlp())
    rule = SGD(model.parameters(), RATES)
    options = {"epochs": 3, "batch_size": 5, "schedule_per": per}
    orders = [generator(s) for s in range(S)]
    fit_stacked(model, shared(), CE, rule, generators=orders, scheduler=halve(rule), **options)
    for s, (net, ours) in enumerate(zip(singles, model.unstack(), strict=True)):
        rule = torch.optim.SGD(net.parameters(), RATES[s])
        fit(net, shared(), CE, rule, generator=generator(s), scheduler=halve(rule), **options)
        close(ours, net)


def test_in_single_precision_ten_steps_agree_to_a_millionth():
    data, models, singles = shared(dtype=torch.float), make(mlp(), dtype=torch.float), make(mlp(), dtype=torch.float)
    model = stack(models)
    orders = [generator(s) for s in range(S)]
    fit_stacked(model, data, CE, SGD(model.parameters(), 0.1), epochs=5, batch_size=7, generators=orders)
    for s, (ours, net) in enumerate(zip(model.unstack(), singles, strict=True)):
        rule = torch.optim.SGD(net.parameters(), 0.1)
        fit(net, data, CE, rule, epochs=5, batch_size=7, generator=generator(s))
        close(ours, net, 1e-6)


def test_a_loss_with_parameters_and_buffers_per_sample_is_part_of_the_model():
    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        assert isinstance(model, WithLoss)
        return model.loss(batch)

    model, _, singles, _ = both(WithLoss, shared(), sgd, sgd, loss=loss)
    for ours, theirs in zip(model.unstack(), singles, strict=True):
        close(ours, theirs)
        assert isinstance(ours, WithLoss)
        assert ours.visits.eq(2).all()
        assert ours.shift.ne(0.1).all()


def test_several_optimisers_and_frozen_parameters():
    models, data = make(mlp()), shared()
    for net in models:
        net.get_submodule("body.0").requires_grad_(False)
    model = stack(models)
    head, frozen = model.net.get_submodule("head"), model.net.get_submodule("body.0")
    before = [p.clone() for p in frozen.parameters()]
    rules = [torch.optim.SGD([p], 0.1) for p in head.parameters()]
    fit_stacked(model, data, CE, rules, epochs=1, batch_size=5, max_grad_norm=1.0)
    assert all(torch.equal(p, q) for p, q in zip(frozen.parameters(), before, strict=True))
    for ours, theirs in zip(model.unstack(), models, strict=True):
        a, b = ours.get_submodule("head").state_dict(), theirs.get_submodule("head").state_dict()
        assert not torch.equal(a["weight"], b["weight"])
        assert not torch.equal(a["bias"], b["bias"])


def test_in_chunks_and_with_a_loss_of_two_passes():
    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return CE(model, batch) + CE(model, batch)

    def run(chunk_size: int | None) -> tuple[StackedModule[nn.Module], StackedHistory]:
        model = stack(make(mlp()), chunk_size=chunk_size)
        orders = [generator(s) for s in range(S)]
        return model, fit_stacked(
            model, shared(), loss, sgd(model.parameters()), epochs=1, batch_size=7, generators=orders
        )

    (whole, a), (chunks, b) = run(None), run(2)
    close(whole, chunks)
    assert (a.steps, a.forwards) == (b.steps, b.forwards) == (2, 4)
    assert not whole.net._forward_pre_hooks


# Seeds do not touch each other


@pytest.mark.parametrize("fill", [3.0, math.inf, math.nan], ids=["other", "inf", "nan"])
@pytest.mark.parametrize(
    "factory", [mlp(batch_norm=True), lambda: StridedCNN(1, 3, width=2)], ids=["mlp", "strided-cnn"]
)
def test_the_data_of_one_seed_change_no_bit_of_another(factory, fill):
    shape = (5,) if isinstance(factory(), MLP) else (1, 8, 8)

    def run(data: Data):
        model = stack(make(factory))
        rule = AdamW(model.parameters(), RATES)
        orders = [generator(s) for s in range(S)]
        history = fit_stacked(
            model, data, CE, rule, own="xy", epochs=2, batch_size=5, generators=orders, max_grad_norm=1.0
        )
        return model.unstack(), history

    data = each(*shape)
    nets, history = run(data)
    changed = data.x.clone()
    changed[0] = fill
    others, disturbed = run(Data(changed, data.y))
    assert not equal(nets[0], others[0])
    for s in (1, 2):
        assert equal(nets[s], others[s])
        assert torch.equal(history.curves["loss"][:, s], disturbed.curves["loss"][:, s])


# Seeds that diverge


def spoiled(at: dict[int, int]):
    """A loss that leaves the numbers in some seeds, which are known by their inputs, each at one call."""
    calls = 0

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        value = CE(model, Batch(batch.x % 100, batch.y))
        for seed, call in at.items():
            value = value * torch.where((batch.x[0, 0] // 100 == seed) & (calls == call), math.nan, 1.0)
        return value

    return loss


def marked() -> Data:
    """Each seed's inputs tell its number."""
    x = shared().x.abs().expand(S, N, 5).clone()
    return Data(x + 100 * torch.arange(S)[:, None, None], shared().y)


OPTIMISERS = [sgd, partial(AdamW, lr=0.1), partial(SGD, lr=RATES, momentum=0.9, weight_decay=0.1), torch.optim.Adam]


@pytest.mark.parametrize("optimizer", OPTIMISERS, ids=["sgd", "adamw", "sgd-per-seed", "torch-adam"])
@pytest.mark.parametrize("call", [1, 4])
def test_a_diverged_seed_is_frozen_and_reported(optimizer, call):
    def run(loss, epochs: int = 2, steps: int | None = None):
        model = stack(make(mlp(batch_norm=True)))
        rule = optimizer(model.parameters())
        orders = [generator(s) for s in range(S)]
        seen = []

        class Enough(Exception):
            pass

        def on_step() -> None:
            seen.append(1)
            if len(seen) == steps:
                raise Enough

        try:
            history = fit_stacked(
                model, marked(), loss, rule, own="x", epochs=epochs, batch_size=5, generators=orders, on_step=on_step
            )
        except Enough:
            history = None
        return model, rule, history

    model, rule, history = run(spoiled({1: call}))
    assert history is not None
    assert history.diverged == ["", f"the loss became nan at step {call}, epoch {1 + (call > 3)}", ""]
    assert history.curves["loss"].isnan().tolist() == [[False, call <= 3, False], [False, True, False]]
    straight, _, _ = run(spoiled({}))
    # where seed 1 was before that step: statistics of batch norm too
    before = stack(make(mlp(batch_norm=True))) if call == 1 else run(spoiled({}), steps=call - 1)[0]
    assert equal(model.unstack()[0], straight.unstack()[0])
    assert equal(model.unstack()[1], before.unstack()[1])
    assert equal(model.unstack()[2], straight.unstack()[2])
    for state in rule.state.values():
        for value in state.values():
            if value.ndim:
                assert not value[1].any()
                assert value[0].any()


def test_seeds_that_diverge_one_after_the_other_each_stay_where_they_were():
    def run(at: dict[int, int], epochs: int = 2):
        model = stack(make(mlp(batch_norm=True)))
        orders = [generator(s) for s in range(S)]
        history = fit_stacked(
            model,
            marked(),
            spoiled(at),
            sgd(model.parameters()),
            own="x",
            epochs=epochs,
            batch_size=99,
            generators=orders,
        )
        return model.unstack(), history

    nets, history = run({2: 2, 0: 4}, epochs=5)
    assert [reason[-18:] for reason in history.diverged] == ["at step 4, epoch 4", "", "at step 2, epoch 2"]
    for s, epochs in enumerate((3, 5, 1)):
        assert equal(nets[s], run({}, epochs)[0][s])


def test_an_optimiser_never_sees_the_gradient_of_a_seed_that_has_diverged():
    class Strict(torch.optim.SGD):
        """Stands for one that decomposes matrices, which fails at NaN for all seeds together."""

        def step(self, closure=None):
            assert all(p.grad.isfinite().all() for group in self.param_groups for p in group["params"])
            return super().step(closure)

    model = stack(make(mlp()))
    rule = Strict(model.parameters(), 0.1)
    history = fit_stacked(model, marked(), spoiled({1: 2}), rule, own="x", epochs=2, batch_size=5)
    assert history.diverged[1] == "the loss became nan at step 2, epoch 1"


def test_a_parameter_that_the_last_step_sends_to_infinity_is_taken_back():
    model = stack(make(mlp()))
    rates = [0.1, 1e308, 0.1]
    rule = SGD(model.parameters(), rates, weight_decay=[0.0, 1e10, 0.0])
    start = model.unstack()
    history = fit_stacked(
        model, shared(), CE, rule, epochs=1, batch_size=99, generators=[generator(s) for s in range(S)]
    )
    assert history.diverged == ["", "a parameter became NaN or infinite at step 1, epoch 1", ""]
    assert equal(model.unstack()[1], start[1])
    assert not equal(model.unstack()[0], start[0])


def test_a_gradient_that_is_not_finite_is_taken_back_too():
    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        far, weight = batch.x[0, 0] // 100 == 1, next(model.parameters())[0, 0]
        root = ((weight - weight.detach()) * far + ~far).sqrt()  # 1, or 0 with an infinite derivative
        return CE(model, Batch(batch.x % 100, batch.y)) + root

    model = stack(make(mlp()))
    start = model.unstack()
    history = fit_stacked(model, marked(), loss, sgd(model.parameters()), own="x", epochs=2, batch_size=99)
    assert history.diverged == ["", "a parameter became NaN or infinite at step 1, epoch 1", ""]
    assert equal(model.unstack()[1], start[1])


def test_it_stops_when_all_have_diverged():
    ticks = []
    model = stack(make(mlp()))
    start = model.unstack()
    data = Data(shared().x.fill_(math.inf), shared().y)
    history = fit_stacked(
        model, data, CE, sgd(model.parameters()), epochs=9, batch_size=5, on_step=lambda: ticks.append(1)
    )
    assert history.stopped
    assert (history.epochs, history.steps, len(ticks)) == (1, 1, 1)
    assert all(reason == "the loss became nan at step 1, epoch 1" for reason in history.diverged)
    assert all(equal(a, b) for a, b in zip(model.unstack(), start, strict=True))


def test_a_run_of_its_own_diverges_at_the_same_step():
    rates = [0.1, 1e200, 0.2]
    model = stack(make(mlp()))
    orders = [generator(s) for s in range(S)]
    history = fit_stacked(
        model, shared(), CE, SGD(model.parameters(), rates), epochs=2, batch_size=5, generators=orders
    )
    net = make(mlp())[1]
    with pytest.raises(DivergedError) as error:
        fit(net, shared(), CE, torch.optim.SGD(net.parameters(), 1e200), epochs=2, batch_size=5, generator=generator(1))
    assert history.diverged[1] == str(error.value)


# Around the steps


def test_callbacks_measure_each_seed_and_stop():
    def measure(end):
        assert end.model.training
        end.model.eval()
        return {"norm": end.model.net.head.weight.flatten(1).norm(dim=1), "epoch": end.history.epochs}

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        assert model.training
        return CE(model, batch)

    model = stack(make(mlp())).eval()
    history = fit_stacked(
        model,
        shared(),
        loss,
        sgd(model.parameters()),
        epochs=9,
        batch_size=5,
        callbacks=[measure, lambda end: end.history.epochs == 2],
    )
    assert history.curves["epoch"].tolist() == [[1.0] * S, [2.0] * S]
    assert history.curves["norm"].shape == history.curves["loss"].shape == (2, S)
    assert history.stopped


def test_noise_decides_dropout_and_leaves_the_global_stream_alone():
    def run(seed: int) -> nn.Module:
        model, orders = stack(make(mlp(dropout=0.5))), [generator(s) for s in range(S)]
        torch.manual_seed(5)
        before = torch.get_rng_state()
        fit_stacked(
            model,
            shared(),
            CE,
            sgd(model.parameters()),
            epochs=2,
            batch_size=5,
            generators=orders,
            noise=generator(seed),
        )
        assert torch.equal(before, torch.get_rng_state())
        return model

    assert equal(run(0), run(0))
    assert not equal(run(0), run(1))


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=RATES, momentum=0.9), torch.optim.Adam], ids=["sgd", "adam"])
def test_resumed_run_equals_one_never_stopped(tmp_path, optimizer):
    class Interrupted(Exception):
        pass

    def run(path, stop_at: int | None = None):
        model, orders = stack(make(mlp(dropout=0.3))), [generator(s) for s in range(S)]
        rule = optimizer(model.parameters())
        steps: list[int] = []

        def on_step() -> None:
            steps.append(1)
            if len(steps) == stop_at:
                raise Interrupted

        history = fit_stacked(
            model,
            Data(x, marked().y),
            CE,
            rule,
            own="x",
            epochs=4,
            batch_size=5,
            generators=orders,
            noise=generator(7),
            scheduler=StepLR(rule, 2),
            on_step=on_step,
            checkpoint=FileCheckpoint(path),
        )
        return model, history

    x = marked().x
    x[1, 3] = math.inf
    straight, history = run(tmp_path / "a.pt")
    assert [bool(reason) for reason in history.diverged] == [False, True, False]
    with pytest.raises(Interrupted):
        run(tmp_path / "b.pt", stop_at=8)
    resumed, again = run(tmp_path / "b.pt")
    assert equal(straight, resumed)
    assert torch.equal(history.curves["loss"].nan_to_num(-1), again.curves["loss"].nan_to_num(-1))
    assert (history.diverged, history.cost) == (again.diverged, again.cost)


def go(**options: Any) -> StackedHistory:
    model = stack(make(mlp()))
    data = options.pop("data", shared())
    return fit_stacked(
        model, data, options.pop("loss", CE), sgd(model.parameters()), **{"epochs": 1, "batch_size": 5, **options}
    )


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs must be >= 0, but is -1"),
        ({"batch_size": 0}, "batch_size must be >= 1, but is 0"),
        ({"batch_size": 99, "drop_last": True}, "data must fill at least one batch, but have 14 rows"),
        ({"generators": [torch.Generator()]}, r"generators must be one per seed \(3\), but are 1"),
        ({"own": "z"}, "own must be one of '', 'x', 'y', 'xy', but is 'z'"),
        ({"own": "x"}, r"x must have shape \(3, n, ...\), but has \(14, 5\)"),
        ({"data": (torch.zeros(4, 5), torch.zeros(3))}, r"y must have as many rows as x \(4\), but has 3"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm must lie in \(0, inf\]"),
        ({"max_grad_norm": [1.0, 2.0, -1.0]}, r"max_grad_norm must lie in \(0, inf\], but is -1.0"),
        ({"max_grad_norm": [1.0, 2.0]}, "must be 1 number or 3, one per seed"),
        ({"schedule_per": "day"}, "schedule_per must be one of"),
        ({"loss": lambda model, batch: model(batch.x)}, r"loss must give a scalar, but gives shape \(5, 3\)"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        go(**options)


@pytest.mark.untyped
def test_a_callback_must_return_a_mapping_or_a_bool():
    with pytest.raises(TypeError, match=r"must return a mapping, a bool or None, but .* returns 0\.9"):
        go(callbacks=[lambda end: 0.9])
