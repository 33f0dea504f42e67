from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchstone.errors import DivergedError
from torchstone.tracks import _measure
from torchstone.tracks._measure import Curve, Meter, ModelMaker, TrialCheckpoint, logits_of


def maker(meter: Meter | None = None, seed: int = 0) -> ModelMaker:
    return ModelMaker("linear", (3,), 2, generator=torch.Generator().manual_seed(seed), meter=meter)


def test_models_differ_from_call_to_call_but_not_from_arm_to_arm() -> None:
    one, two = maker(), maker()
    first, second = one().state_dict(), one().state_dict()
    torch.testing.assert_close(first, two().state_dict(), rtol=0, atol=0)
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_costs_are_counted_without_the_help_of_the_method() -> None:
    meter = Meter()
    make = maker(meter)
    model, teacher = make(), make()
    other = nn.Linear(3, 2)
    extra = torch.zeros(4, requires_grad=True)
    sgd, on_extra = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD([extra], lr=0.1)
    with meter.counting_steps():
        for _ in range(3):
            model(torch.ones(5, 3)).sum().backward()
            sgd.step()
            on_extra.step()  # no weights of a model: no step
        with torch.no_grad():
            teacher(torch.ones(2, 3))
        copy.deepcopy(model)(torch.ones(7, 3))
        other(torch.ones(100, 3))
        with meter.paused():
            model(torch.ones(50, 3))
    sgd.step()
    assert meter.cost == {"steps": 3, "forwards": 3 * 5 + 2 + 7, "parameters": 2 * 8}


class Memory:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.state = None
        self.saves = 0

    def load(self):
        return self.state

    def save(self, state) -> None:
        self.state = copy.deepcopy(state)
        self.saves += 1


def test_a_checkpoint_carries_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, logged = Memory(), []
    log = lambda *point: logged.append(point)  # noqa: E731
    meter, curve = Meter(), Curve("test", float, log)
    meter.steps, meter.forwards = 4, 40
    curve(0.25)
    checkpoint = TrialCheckpoint(memory, meter, curve)
    assert checkpoint.load() is None
    checkpoint.save({"epoch": 1})
    assert memory.saves == 0  # too young to be worth a write
    monkeypatch.setattr(_measure, "SAVE_EVERY", 0.0)
    checkpoint.save({"epoch": 1})

    again, fresh = Meter(), Curve("test", float, log)
    assert TrialCheckpoint(memory, again, fresh).load() == {"epoch": 1}
    assert (again.steps, again.forwards, fresh.points) == (4, 40, [0.25])
    assert logged == [("test", 0.25, 1)] * 2


def test_predictors_are_networks_or_functions() -> None:
    x, net = torch.rand(1500, 3), nn.Linear(3, 2)
    torch.testing.assert_close(logits_of(net, x, 2), net(x).detach())
    torch.testing.assert_close(logits_of(lambda part: part[:, :2], x, 2), x[:, :2])


@pytest.mark.parametrize(
    ("predictor", "error", "message"),
    [
        (nn.Linear(3, 4), ValueError, r"logits of shape \(5, 2\), but gives \(5, 4\)"),
        (lambda x: x[:, :2] / 0, DivergedError, "NaN or infinite logits for 5 of 5 samples"),
        (None, TypeError, "callable x -> logits, but returned a NoneType"),
    ],
)
def test_predictors_that_do_not_predict(predictor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        logits_of(predictor, torch.ones(5, 3), 2)
