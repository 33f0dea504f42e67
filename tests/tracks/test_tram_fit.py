from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from torchstone import api, models
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import LogUniform
from torchstone.bench.study import Arm, Cell
from torchstone.data import TensorData, load, simulate_answers
from torchstone.noise import TRAM
from torchstone.tracks._measure import Meter, ModelMaker
from torchstone.tracks._noisy_data import Problem, Setting
from torchstone.tracks._noisy_fits import fit_ce
from torchstone.tracks._tram_fit import Body, annotated, fit_tram, train_tram, unknown_annotators
from torchstone.tracks._trial import Trial

SETTING = Setting(labels={"given": "given"}, model="mlp", epochs=2, batch_size=32)
SPAMMERS = torch.cat([torch.eye(10).repeat(2, 1, 1), torch.full((2, 10, 10), 0.1)])


def crowd(per_item: int = 1, n: int = 300) -> TensorData:
    digits = load("digits").subset(torch.arange(n))
    ids, answers = simulate_answers(digits.y, SPAMMERS, per_item, generator=torch.Generator().manual_seed(0))
    columns = {"annotator": ids, "answer": answers}
    return replace(digits, y=answers[:, 0], columns=columns, test=digits)


def a_cell(**fields: Any) -> Cell:
    return Cell("x", "given", 0, Seeds(3), SETTING, **fields)


def maker(meter: Meter | None = None, model: Any = "mlp") -> ModelMaker:
    return ModelMaker(model, (1, 8, 8), 10, generator=a_cell().seeds.generator("init"), meter=meter)


def test_the_network_that_comes_back_is_the_users_own() -> None:
    data, meter, curve = crowd(), Meter(), []
    cell = a_cell(snapshot=lambda predictor: curve.append(predictor))
    with meter.counting_steps():
        network = fit_tram(maker(meter), data, data, cell, lr=0.1)
    assert isinstance(network, models.MLP)
    assert network.forward.__qualname__ == "MLP.forward"
    assert not network.head._forward_hooks
    assert curve == [network, network]
    counted = Meter()
    with counted.counting_steps():
        fit_ce(maker(counted), data, data, a_cell(), lr=0.1)
    assert meter.cost == counted.cost == {"steps": 20, "forwards": 600, "parameters": counted.cost["parameters"]}


def test_it_starts_where_the_other_arms_start_and_learns() -> None:
    data = crowd(3)
    still = train_tram(maker(), data, data, replace(a_cell(), setting=replace(SETTING, epochs=1)), lr=1e-12)
    assert isinstance(still.body, Body)
    for one, other in zip(still.body.network.parameters(), maker()().parameters(), strict=True):
        torch.testing.assert_close(one, other)
    longer = replace(a_cell(), setting=replace(SETTING, epochs=15, batch_size=16))
    assert data.test is not None
    network = fit_tram(maker(), data, data, longer, lr=0.1).eval()
    assert float((network(data.test.x).argmax(1) == data.test.y).float().mean()) > 0.85
    again = fit_tram(maker(), data, data, longer, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_the_head_of_the_network_learns_without_moving_the_body() -> None:
    data = crowd()
    still, moving = (train_tram(maker(), data, data, a_cell(), lr=0.1, detach=detach) for detach in (True, False))
    x = data.x[:20]

    def moves(model: TRAM) -> bool:
        model = copy.deepcopy(model).eval()
        model.zero_grad()
        model(x).logits.sum().backward()
        return any(p.grad is not None for p in model.body.network.body.parameters())  # pyright: ignore

    assert (moves(still), moves(moving)) == (False, True)


@pytest.mark.parametrize("options", [{"sample": 1}, {"distillation": 0.5}, {"width": 8}])
def test_options_change_what_is_learnt(options: dict[str, Any]) -> None:
    data = crowd(3)
    plain = fit_tram(maker(), data, data, a_cell(), lr=0.1)
    other = fit_tram(maker(), data, data, a_cell(), lr=0.1, **options)
    assert not torch.equal(plain.head.weight, other.head.weight)  # pyright: ignore


def test_ids_features_and_both() -> None:
    data = crowd()
    seconds = torch.rand(300, 1) * 1000 + 500
    both = annotated(replace(data, columns={**data.columns, "pi": seconds}))
    assert both.features is not None
    assert both.pi_dim == 1
    torch.testing.assert_close(both.features.mean(), torch.zeros(()), atol=1e-4, rtol=0)
    torch.testing.assert_close(both.features.std(), torch.ones(()), atol=1e-2, rtol=0)
    alone = annotated(replace(data, columns={"pi": seconds[:, 0]}))
    assert (alone.num_annotators, alone.pi_dim) == (0, 1)
    assert torch.equal(alone.answers[:, 0], data.y)
    constant = annotated(replace(data, columns={"pi": torch.ones(300, 2)}))
    assert constant.features is not None
    assert constant.features.eq(0).all()
    for known in (both, alone):
        columns = {"pi": seconds} if known is alone else {**data.columns, "pi": seconds}
        fit_tram(maker(), replace(data, columns=columns), data, a_cell(), lr=0.1)


def test_data_without_annotators() -> None:
    digits = load("digits")
    message = "tram needs to know who gave each label, but data 'digits' have no column 'annotator' .* or 'pi'"
    with pytest.raises(ValueError, match=message):
        fit_tram(maker(), digits, digits, a_cell())
    assert "have no column 'annotator'" in unknown_annotators(digits, SETTING)
    assert unknown_annotators(crowd(), SETTING) == ""
    made_up = replace(SETTING, labels={"noise": "pair:0.4"})
    assert unknown_annotators(crowd(), made_up).endswith("nobody gave the labels of noise that is put in")
    bad = replace(crowd(), columns={"annotator": torch.zeros(300, dtype=torch.int64), "answer": torch.full((300,), 10)})
    assert unknown_annotators(bad, SETTING) == "column 'answer' must hold classes 0..9, but one is 10"
    short = replace(crowd(), columns={"pi": torch.zeros(300, 2, 1)})
    assert "features must have shape (300, 1, 'm')" in unknown_annotators(short, SETTING)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.last(x.flatten(1))


def test_a_network_that_does_not_end_in_its_last_layer() -> None:
    data = crowd()
    with pytest.raises(ValueError, match=r"whose logits are the output of its last nn.Linear, but Doubled"):
        fit_tram(maker(model=Doubled), data, data, a_cell())


def test_it_runs_as_an_arm_and_the_winner_is_saved(tmp_path: Any) -> None:
    from torchstone.tracks.noisy_labels import refit

    arms = {"ce": None, "tram": fit_tram}
    fit_tram.space = {"lr": LogUniform(0.01, 0.3)}  # pyright: ignore[reportFunctionMemberAccess]
    try:
        result = api.compare(
            "noisy-labels", data=crowd(2), arms=arms, epochs=1, tries=1, replicates=1, store=":memory:"
        )
    finally:
        del fit_tram.space  # pyright: ignore[reportFunctionMemberAccess]
    assert not result.failures
    (row,) = result.rows["comparison"]
    assert row.value("forwards", "tram", "given") == row.value("forwards", "ce", "given")
    assert refit(result, tmp_path / "winner.safetensors").is_file()


def test_the_arm_travels() -> None:
    arm = Arm(Trial(fit_tram), {"lr": 0.05}, {"lr": LogUniform(0.01, 0.3)})
    task = Problem(crowd())(a_cell())
    outcome = arm.run(a_cell(shared=lambda: task), lr=0.1)
    assert {"accuracy", "memorised"} <= outcome.values.keys()
