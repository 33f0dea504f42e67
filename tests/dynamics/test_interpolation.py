from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.dynamics import (
    LinearPath,
    adversarial_init,
    evaluate_stacked,
    interpolate_state_dict,
    layerwise_paths,
    partial_init,
    path_metrics,
    plot_path,
    scaled_init,
)
from torchstone.models import MLP
from torchstone.models.seeding import seeded
from torchstone.training import predict

ALPHAS = torch.linspace(0, 1, 5).tolist()
POLICIES = ("reestimate", "final", "interpolate", "batch")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """Convolution, BatchNorm, dropout, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(12, 2)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def data(n: int = 30) -> tuple[Tensor, Tensor]:
    g = generator(9)
    x = torch.randn(n, 1, 4, 4, generator=g)
    return x, (x.mean((1, 2, 3)) > 0).long()


def trained(make: Callable[[], Any] = Net, steps: int = 20) -> tuple[Any, dict[str, Any]]:
    """A trained network, and the state it started from."""
    with seeded(generator()):
        model = make()
        start = copy.deepcopy(model.state_dict())
        x, y = data()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, start


def loss_of(model: nn.Module) -> Tensor:
    x, y = data()
    return F.cross_entropy(model(x), y)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


# ---------------------------------------------------------------- states


def test_a_state_dict_between_two() -> None:
    first = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "stat": torch.tensor(1.0), "extra": {"a": 1}}
    second = {"w": torch.tensor([3.0, -2.0]), "n": torch.tensor(8), "stat": torch.tensor(5.0), "extra": {"a": 2}}
    middle = interpolate_state_dict(first, second, 0.25)
    assert middle["w"].tolist() == [1.5, 1.0]
    assert middle["stat"] == 2.0
    assert middle["n"] == 8
    assert middle["extra"] == {"a": 2}
    middle["w"] += 1
    middle["n"] += 1
    assert second["w"].tolist() == [3.0, -2.0]
    assert second["n"] == 8
    assert interpolate_state_dict(first, second, 0.5, buffers="stat|n")["stat"] == 5.0
    assert interpolate_state_dict(first, second, 0.5, buffers=lambda name: name == "w")["w"].tolist() == [3.0, -2.0]
    assert interpolate_state_dict(first, second, 1.5)["w"].tolist() == [4.0, -4.0]


@given(st.floats(-1, 2), st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
def test_half_precision_is_interpolated_in_float32(alpha: float, dtype: torch.dtype) -> None:
    g = generator()
    first, second = (torch.randn(50, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    found = interpolate_state_dict({"w": first}, {"w": second}, alpha)["w"]
    assert found.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    expected = ((1 - alpha) * first.double() + alpha * second.double()).to(wide)
    torch.testing.assert_close(found.to(wide), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_network_in_half_precision() -> None:
    with seeded(generator()):
        models = [nn.Linear(20, 20).bfloat16() for _ in range(2)]
    start, end = (model.state_dict() for model in models)
    path = LinearPath(models[1], start, end)
    together = path.tensors(torch.tensor(ALPHAS))["weight"]
    assert together.dtype == torch.bfloat16
    for k, alpha in enumerate(ALPHAS):
        assert torch.equal(
            together[k], ((1 - alpha) * start["weight"].float() + alpha * end["weight"].float()).bfloat16()
        )
        assert torch.equal(together[k], path.tensors(alpha)["weight"])


def test_complex_parameters_move_too() -> None:
    found = interpolate_state_dict({"w": torch.tensor([1j])}, {"w": torch.tensor([1 + 0j])}, 0.5)
    assert found["w"].tolist() == [0.5 + 0.5j]


# ---------------------------------------------------------------- the path


@pytest.mark.parametrize("make", [Net, mlp])
def test_the_ends_are_the_stored_losses_to_the_bit(make: Callable[[], nn.Module]) -> None:
    model, start = trained(make)
    end = copy.deepcopy(model.state_dict())
    stored = []
    for state in (start, end):
        model.load_state_dict(state)
        model.eval()
        stored.append(loss_of(model).item())
    path = LinearPath(model, start, end, bn="interpolate")
    assert path.evaluate(loss_of, [0.0, 1.0]).tolist() == stored


@pytest.mark.parametrize("bn", POLICIES)
def test_the_model_is_as_before_afterwards_also_after_an_exception(bn: Any) -> None:
    model, start = trained()
    model.body.eval()
    before, live = copy.deepcopy(model.state_dict()), [*model.parameters(), *model.buffers()]
    modes = [m.training for m in model.modules()]
    path = LinearPath(model, start, before, bn=bn, bn_loader=[data()])

    def unchanged() -> None:
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert all(a is b for a, b in zip([*model.parameters(), *model.buffers()], live, strict=True))
        assert [m.training for m in model.modules()] == modes
        assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1]
        assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False]

    path.evaluate(loss_of, ALPHAS)
    unchanged()

    def fails(inside: nn.Module) -> None:
        inside.train()
        loss_of(inside)  # changes running statistics
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        path.evaluate(fails, ALPHAS)
    unchanged()


def test_reestimated_and_batch_statistics_by_hand() -> None:
    model, start = trained()
    end = copy.deepcopy(model.state_dict())
    x, y = data()

    def literal(alpha: float) -> tuple[float, float]:
        """Statistics from all samples at once, with torch's own cumulative average; train-mode statistics."""
        twin = Net()
        twin.load_state_dict({k: (1 - alpha) * start[k] + alpha * end[k] if end[k].ndim else end[k] for k in end})
        twin.eval()
        norm = twin.body[1]
        assert isinstance(norm, nn.BatchNorm2d)
        norm.train()
        batch = F.cross_entropy(twin(x), y).item()
        norm.reset_running_stats()
        norm.momentum = None
        for part in x.split(10):
            twin(part)
        norm.eval()
        return F.cross_entropy(twin(x), y).item(), batch

    expected = torch.tensor([literal(alpha) for alpha in ALPHAS])
    loader = [(part, None) for part in x.split(10)]
    for k, bn in enumerate(("reestimate", "batch")):
        found = LinearPath(model, start, end, bn=bn, bn_loader=loader).evaluate(loss_of, ALPHAS)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, expected[:, k], rtol=1e-5, atol=1e-6)
    # A model that is put into evaluation mode inside still normalises by the batch.
    path = LinearPath(model, start, end, bn="batch")
    inside = path.evaluate(lambda m: F.cross_entropy(predict(m, x), y), ALPHAS)
    torch.testing.assert_close(inside, expected[:, 1], rtol=1e-5, atol=1e-6)


def test_a_smaller_last_batch_counts_for_less() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    state = model.state_dict()
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0], [10.0], [12.0]])
    path = LinearPath(model, copy.deepcopy(state), state, bn_loader=list(x.split([4, 2])))
    with path.at(0.5):
        assert float(model.state_dict()["0.running_mean"]) == pytest.approx(float(x.mean()))
    few = LinearPath(model, copy.deepcopy(state), state, bn_loader=list(x.split([4, 2])), bn_samples=3)
    with few.at(0.5):
        assert float(model.state_dict()["0.running_mean"]) == pytest.approx(3.0)


def test_policies_differ_and_say_what_becomes_of_buffers() -> None:
    model, start = trained()
    end = copy.deepcopy(model.state_dict())
    start["body.1.running_mean"] += 1
    name = "body.1.running_mean"
    with LinearPath(model, start, end, bn="final").at(0.25):
        assert torch.equal(model.state_dict()[name], end[name])
    with LinearPath(model, start, end, bn="interpolate").at(0.25):
        torch.testing.assert_close(model.state_dict()[name], 0.75 * start[name] + 0.25 * end[name])
        assert model.state_dict()["body.1.num_batches_tracked"] == 20
    curves = [LinearPath(model, start, end, bn=bn, bn_loader=[data()]).evaluate(loss_of, ALPHAS) for bn in POLICIES]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in itertools.pairwise(curves))


def test_rescaled_weights_before_batch_norm_change_nothing() -> None:
    """With statistics computed anew the scale cancels; with final ones it does not."""
    model, start = trained()
    end = copy.deepcopy(model.state_dict())
    norm = model.body[1]
    norm.eps = 1e-12
    scaled = [{k: v * 3 if k == "body.0.weight" else v.clone() for k, v in state.items()} for state in (start, end)]
    for bn, same in (("reestimate", True), ("batch", True), ("final", False)):
        options: dict[str, Any] = {"bn": bn, "bn_loader": [data()]}
        curves = [LinearPath(model, *ends, **options).evaluate(loss_of, ALPHAS) for ends in ((start, end), scaled)]
        assert torch.allclose(curves[0], curves[1], atol=1e-5) == same


def test_tied_parameters_move_as_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Tied()
    start = {name: torch.zeros(3, 3) for name in model.state_dict()}
    end = {name: torch.eye(3) for name in model.state_dict()}
    for parameters in (None, "first", "second"):
        path = LinearPath(model, start, end, parameters=parameters)
        assert path.parameters == ("first.weight",)
        with path.at(0.5):
            assert model(torch.ones(1, 3)).tolist() == [[0.25] * 3]
        assert path.distance == pytest.approx(math.sqrt(3))
        stacked = evaluate_stacked(model, start, end, [0.0, 0.5], torch.ones(1, 3), parameters=parameters)
        assert stacked.flatten().tolist() == [0.0] * 3 + [0.25] * 3
    with pytest.raises(ValueError, match=r"'first.weight' and 'second.weight' are one parameter .* differ in state1"):
        LinearPath(model, start, {**end, "second.weight": torch.ones(3, 3)})


def test_networks_wrapped_for_several_devices() -> None:
    model, start = trained(mlp)
    expected = LinearPath(model, start, model.state_dict()).evaluate(loss_of, ALPHAS)
    wrapped = nn.DataParallel(model)
    assert next(iter(wrapped.state_dict())).startswith("module.")
    path = LinearPath(wrapped, start, wrapped.state_dict())
    assert path.model is model
    assert torch.equal(path.evaluate(loss_of, ALPHAS), expected)


def test_what_was_said_of_a_path() -> None:
    model = nn.Linear(2, 1)
    path = LinearPath(
        model,
        {"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.zeros(1)},
        {"weight": torch.tensor([[3.0, 16.0]]), "bias": torch.tensor([5.0])},
    )
    assert (path.distance, path.relative_distance) == (13.0, 13.0 / 5.0)
    assert repr(path) == "LinearPath(2 of 2 parameters, bn='reestimate')"
    bias = LinearPath(model, path.state0, path.state1.copy() | {"weight": torch.zeros(1, 2)}, parameters="bias")
    assert bias.distance == 5.0
    assert math.isnan(bias.relative_distance)
    values = path.evaluate(lambda m: (m.get_parameter("bias").item(), 1.0), [0.0, 0.5])
    assert values.dtype == torch.float64
    assert values.tolist() == [[0.0, 1.0], [2.5, 1.0]]
    with path.at(-1.0), path.at(2.0):
        assert model.bias.tolist() == [10.0]


# ---------------------------------------------------------------- theory


def test_a_linear_model_with_squared_loss_has_a_parabola() -> None:
    g = generator(1)
    x, y = (torch.randn(20, n, generator=g, dtype=torch.float64) for n in (4, 2))
    model = nn.Linear(4, 2).double()
    start = copy.deepcopy(model.state_dict())
    end = {name: torch.randn(t.shape, generator=g, dtype=torch.float64) for name, t in start.items()}
    alphas = torch.linspace(-0.5, 1.5, 9, dtype=torch.float64)

    def loss(m: nn.Module) -> Tensor:
        return F.mse_loss(m(x), y)

    found = LinearPath(model, start, end).evaluate(loss, alphas)
    powers = alphas[:, None] ** torch.arange(3)
    fitted = powers @ torch.linalg.lstsq(powers, found[:, None]).solution
    assert float((found - fitted[:, 0]).abs().max()) < 1e-10
    # At the minimiser of a convex loss: no rise anywhere on the way.
    ones = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(ones, y).solution.mT
    minimiser = {"weight": best[:, :4], "bias": best[:, 4]}
    curve = LinearPath(model, start, minimiser).evaluate(loss, ALPHAS)
    assert path_metrics(ALPHAS, curve).gap <= 0


def permuted(state: dict[str, Any], order: Tensor) -> dict[str, Any]:
    """The same function with the hidden units of the first layer of ``mlp`` in another order."""
    moved = dict(state)
    moved["1.weight"], moved["1.bias"] = state["1.weight"][order], state["1.bias"][order]
    moved["3.weight"] = state["3.weight"][:, order]
    return moved


@given(st.permutations(range(8)).filter(lambda order: order != list(range(8))))
def test_hidden_units_in_another_order(order: list[int]) -> None:
    model, start = trained(mlp)
    end = copy.deepcopy(model.state_dict())
    curve = LinearPath(model, start, end).evaluate(loss_of, ALPHAS)
    there = torch.tensor(order)
    both = LinearPath(model, permuted(start, there), permuted(end, there)).evaluate(loss_of, ALPHAS)
    torch.testing.assert_close(both, curve, rtol=0, atol=1e-5)
    one = LinearPath(model, start, permuted(end, there)).evaluate(loss_of, ALPHAS)
    torch.testing.assert_close(one[[0, -1]], curve[[0, -1]], rtol=0, atol=1e-5)
    assert not torch.allclose(one, curve, atol=1e-5)


# ---------------------------------------------------------------- groups


def test_all_parameters_as_one_group_are_the_full_path() -> None:
    model, start = trained()
    end = model.state_dict()
    full = LinearPath(model, start, end, bn="interpolate").evaluate(loss_of, ALPHAS)
    for names in (".*", "body|head", lambda name: True):
        for others in ("final", "init"):
            (path,) = layerwise_paths(model, start, end, {"all": names}, others=others, bn="interpolate").values()  # pyright: ignore[reportArgumentType]
            assert torch.equal(path.evaluate(loss_of, ALPHAS), full)


@pytest.mark.parametrize(
    ("names", "moving"),
    [
        ("body", ("body.0.weight", "body.1.weight", "body.1.bias")),
        ("body.1", ("body.1.weight", "body.1.bias")),
        ("head.weight", ("head.weight",)),
        (r".*\.bias", ("body.1.bias", "head.bias")),
        (lambda name: "weight" in name, ("body.0.weight", "body.1.weight", "head.weight")),
    ],
)
def test_groups_by_name_pattern_and_function(names: Any, moving: tuple[str, ...]) -> None:
    model, start = trained()
    end = copy.deepcopy(model.state_dict())
    for others, stays in (("final", end), ("init", start)):
        path = LinearPath(model, start, end, parameters=names, others=others, bn="interpolate")  # pyright: ignore[reportArgumentType]
        assert path.parameters == moving
        with path.at(0.25):
            for name, parameter in model.named_parameters():
                expected = 0.75 * start[name] + 0.25 * end[name] if name in moving else stays[name]
                torch.testing.assert_close(parameter.detach(), expected)
            # Running statistics go with the parameters of their layer.
            mean = "body.1.running_mean"
            goes = any(name.startswith("body.1") for name in moving)
            expected = 0.75 * start[mean] + 0.25 * end[mean] if goes else stays[mean]
            torch.testing.assert_close(model.state_dict()[mean], expected)


def test_each_layer_by_default_and_back_to_its_start() -> None:
    model, start = trained()
    paths = layerwise_paths(model, start, model.state_dict(), bn_loader=[data()])
    assert list(paths) == ["body.0", "body.1", "head"]
    assert paths["head"].state1 is paths["body.0"].state1
    with paths["head"].rewind() as rewound:
        assert torch.equal(rewound.get_parameter("head.weight"), start["head.weight"])
        assert not torch.equal(rewound.get_parameter("body.0.weight"), start["body.0.weight"])
    assert list(layerwise_paths(model, start, model.state_dict(), ["body", "head"], bn="final")) == ["body", "head"]


# ---------------------------------------------------------------- all points at once


@pytest.mark.parametrize("bn", POLICIES)
@pytest.mark.parametrize(("parameters", "others"), [(None, "final"), ("head", "final"), ("body", "init")])
def test_all_points_in_one_pass_equal_one_after_another(bn: Any, parameters: str | None, others: Any) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with seeded(generator()):
            model, start = Net(), Net().state_dict()
        start["body.1.running_mean"] += 0.1
        x, y = data()
        x = x.double()
        options: dict[str, Any] = {
            "bn": bn, "parameters": parameters, "others": others, "bn_loader": list(x.split([20, 10]))
        }  # fmt: skip
        before = copy.deepcopy(model.state_dict())
        path = LinearPath(model, start, before, **options)
        expected = path.evaluate(lambda m: F.cross_entropy(m(x), y), ALPHAS)
        for chunk_size in (None, 2):
            found = evaluate_stacked(
                model, start, before, ALPHAS, (x, y), criterion=F.cross_entropy, chunk_size=chunk_size, **options
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        outputs = evaluate_stacked(model, start, before, ALPHAS, x, **options)
        assert outputs.shape == (5, 30, 2)
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert all(m.training for m in model.modules())
    finally:
        torch.set_default_dtype(torch.float32)


def test_several_numbers_at_each_point() -> None:
    model, start = trained(mlp)
    x, y = data()

    def loss_and_error(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(logits, y), (logits.argmax(1) != y).float().mean()

    losses, errors = evaluate_stacked(model, start, model.state_dict(), ALPHAS, (x, y), criterion=loss_and_error)
    assert losses.shape == errors.shape == (5,)
    expected = LinearPath(model, start, model.state_dict()).evaluate(loss_of, ALPHAS)
    torch.testing.assert_close(losses, expected)


# ---------------------------------------------------------------- metrics


def nan_equal(found: Any, **expected: float) -> None:
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, nan_ok=True), name


def test_metrics_by_hand() -> None:
    nan = math.nan
    nan_equal(
        path_metrics([0.0, 0.5, 1.0], [2.0, 3.0, 1.0]),
        barrier=1, barrier_end=1, gap=1, monotone=False, alpha_half=nan, alpha_error=nan, area=1.25, relative_barrier=1,
    )  # fmt: skip
    falling = path_metrics([0.0, 0.25, 0.5, 1.0], [4.0, 3.0, 1.0, 0.0], errors=[0.9, 0.5, 0.46, 0.1])
    nan_equal(
        falling, barrier=0, barrier_end=0, gap=-1, monotone=True, alpha_half=0.5, alpha_error=1.0, relative_barrier=0,
        area=(0.25 * 3.5 + 0.25 * 2.0 + 0.5 * 0.5) / 4,
    )  # fmt: skip
    # A dent that does not reach the start: no barrier, but not monotone. Points outside of [0, 1] do not count.
    dent = path_metrics([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5], [9.0, 4.0, 1.0, 3.0, 0.0, 9.0])
    nan_equal(dent, barrier=0, gap=2, monotone=False, alpha_half=0.25)
    nan_equal(path_metrics([0.0, 0.25, 0.5, 1.0], [4.0, 1.0, 2.0, 3.5]), gap=2.5, barrier=0)  # a rise in two steps
    between_minima = path_metrics([0.0, 0.5, 1.0], [0.1, 2.0, 0.3])
    nan_equal(between_minima, barrier=1.9, barrier_end=1.7, area=nan, relative_barrier=nan)


def test_undefined_metrics_are_nan() -> None:
    nan = math.nan
    flat = path_metrics([0.0, 0.5, 1.0], [2.0, 2.0, 2.0])
    nan_equal(flat, barrier=0, gap=0, monotone=True, alpha_half=nan, area=nan, relative_barrier=nan)
    for bad in (math.inf, nan):
        lost = path_metrics([0.0, 0.5, 1.0], [2.0, bad, 1.0])
        nan_equal(lost, barrier=nan, gap=nan, monotone=False, alpha_half=nan, area=nan, relative_barrier=nan)


def test_small_bumps_are_tolerated() -> None:
    bump = [2.0, 2.001, 1.0]
    assert path_metrics([0.0, 0.5, 1.0], bump).monotone
    assert not path_metrics([0.0, 0.5, 1.0], bump, tolerance=1e-4).monotone
    assert path_metrics([0.0, 0.5, 1.0], [20.0, 20.015, 1.0]).monotone  # relative to the initial loss
    grid = torch.linspace(-0.25, 1.5, 8)  # 0 and 1 up to a rounding
    assert path_metrics(grid, torch.linspace(1.0, 0.0, 8)).monotone


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12), st.floats(0.1, 10), st.floats(-3, 3))
def test_metrics_follow_scale_and_shift(losses: list[float], scale: float, shift: float) -> None:
    alphas = torch.linspace(0, 1, len(losses))
    one, other = path_metrics(alphas, losses), path_metrics(alphas, [scale * loss + shift for loss in losses])
    assert other.barrier == pytest.approx(scale * one.barrier, abs=1e-9)
    assert other.gap == pytest.approx(scale * one.gap, abs=1e-9)
    if losses[0] - losses[-1] > 1e-3:
        assert other.area == pytest.approx(one.area, rel=1e-6, abs=1e-6)
    assert one.barrier >= 0
    assert one.gap <= one.barrier or one.gap >= one.barrier_end


def test_a_picture_of_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = torch.tensor([[2.0, 1.0, 0.0], [4.0, 3.0, 2.0], [3.0, 2.0, 1.0]])
    ax = plot_path([0.0, 0.5, 1.0], {"one": runs[0], "all": runs}, label="test loss")
    one, median = ax.get_lines()
    assert one.get_ydata().tolist() == [2.0, 1.0, 0.0]
    assert median.get_ydata().tolist() == [3.0, 2.0, 1.0]
    assert len(ax.collections) == 1
    assert ax.get_ylabel() == "test loss"
    assert plot_path([0.0, 1.0], {"more": [1.0, 0.0]}, ax=ax) is ax
    with pytest.raises(ValueError, match="curve 'short' must have shape"):
        plot_path([0.0, 0.5, 1.0], {"short": [1.0]})
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="torchstone\\[bench\\]"):
        plot_path([0.0, 1.0], {"one": [1.0, 0.0]})


# ---------------------------------------------------------------- starts


def test_random_labels_are_learnt() -> None:
    x = torch.eye(12)
    model = MLP(12, 3, hidden=(16,), generator=generator())
    before = copy.deepcopy(model.state_dict())
    starts = [
        adversarial_init(model, [(x[:5],), (x[5:],)], 3, batch_size=6, generator=generator(seed),
                         make_optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in before)
    model.load_state_dict(starts[0])
    labels = torch.randint(3, (12,), generator=generator(0))
    assert torch.equal(predict(model, x).argmax(1), labels)
    with pytest.warns(RuntimeWarning, match="after 1 epochs the model predicts .* not 100.0%"):
        adversarial_init(model, [x], 3, epochs=1, generator=generator(5))


def test_scaled_and_partly_trained_states() -> None:
    model, start = trained()
    end = copy.deepcopy(model.state_dict())
    scaled = scaled_init(model, 3.0)
    assert torch.equal(scaled["body.0.weight"], 3 * end["body.0.weight"])
    assert torch.equal(scaled["body.1.running_mean"], end["body.1.running_mean"])
    mixed = partial_init(model, start, end, "body")
    for name, value in mixed.items():
        assert torch.equal(value, (end if name.startswith("body") else start)[name]), name
    assert all(torch.equal(model.state_dict()[name], end[name]) for name in end)


# ---------------------------------------------------------------- bad input


def test_what_is_refused() -> None:
    model, start = trained()
    end = copy.deepcopy(model.state_dict())
    less = {name: value for name, value in end.items() if name != "head.bias"}
    with pytest.raises(KeyError, match=r"entry 'head.bias' is in the model but not in state1"):
        LinearPath(model, start, less, bn="final")
    with pytest.raises(KeyError, match=r"entry 'more' is in state0 but not in the model"):
        LinearPath(model, {**start, "more": torch.ones(1)}, end, bn="final")
    with pytest.raises(ValueError, match=r"entry 'head.bias' has shape .*\[2\].* in the model but .*\[3\].* in state0"):
        LinearPath(model, {**start, "head.bias": torch.ones(3)}, end, bn="final")
    with pytest.raises(ValueError, match="bn='reestimate' needs bn_loader"):
        LinearPath(model, start, end)
    with pytest.raises(ValueError, match="bn_loader must yield at least one batch"):
        LinearPath(model, start, end, bn_loader=iter([]))
    with pytest.raises(ValueError, match=r"share the memory of 'body.0.weight'"):
        LinearPath(model, model.state_dict(), model.state_dict(), bn="final")
    with pytest.raises(ValueError, match=r"parameters = 'neck' fits no name \(there are: body.0.weight, "):
        LinearPath(model, start, end, parameters="neck", bn="final")
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        LinearPath(model, start, end, parameters="(", bn="final")
    with pytest.raises(ValueError, match="groups must name at least one"):
        layerwise_paths(model, start, end, {}, bn="final")
    path = LinearPath(model, start, end, bn="final")
    for alphas, why in (
        ([0.5, 0.2], "alphas must ascend, but 0.5 is followed by 0.2"),
        ([0.0, 0.0], "alphas must ascend"),
        ([], "at least one finite number"),
        ([math.nan], "at least one finite number"),
    ):
        with pytest.raises(ValueError, match=why):
            path.evaluate(loss_of, alphas)
    with pytest.raises(ValueError, match="alpha must lie in"), path.at(math.inf):
        pass
    with pytest.raises(ValueError, match="batch must have at least 1 row"):
        evaluate_stacked(model, start, end, ALPHAS, data()[0][:0], bn="final")
    with pytest.raises(KeyError, match="entry 'w' is in state0 but not in state1"):
        interpolate_state_dict({"w": torch.ones(1)}, {}, 0.5)
    with pytest.raises(ValueError, match="alphas must hold 0 and 1"):
        path_metrics([0.0, 0.5], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"errors must have shape \(2,\) like alphas"):
        path_metrics([0.0, 1.0], [1.0, 2.0], errors=[1.0])
    with pytest.raises(ValueError, match="factor must lie in"):
        scaled_init(model, 0.0)
    with pytest.raises(ValueError, match="loader must yield at least one batch"):
        adversarial_init(model, [], 2)


@pytest.mark.untyped
def test_wrong_kinds_are_refused() -> None:
    model, start = trained()
    with pytest.raises(ValueError, match="bn must be one of 'reestimate', 'final', 'interpolate', 'batch'"):
        LinearPath(model, start, model.state_dict(), bn="train")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="others must be one of 'final', 'init'"):
        LinearPath(model, start, model.state_dict(), bn="final", others="both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="bn_loader must yield batches"):
        LinearPath(model, start, model.state_dict(), bn_loader=[{"x": 1}])
    with pytest.raises(ValueError, match=r"alphas must have shape \(k,\)"):
        LinearPath(model, start, model.state_dict(), bn="final").evaluate(loss_of, torch.zeros(2, 2))
