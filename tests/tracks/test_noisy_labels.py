from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from torchstone import api
from torchstone.bench.claims import Higher
from torchstone.bench.outcome import Outcome
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import LogUniform
from torchstone.bench.study import Arm, Cell, Study
from torchstone.data import TensorData, load
from torchstone.errors import CorruptDataError, DivergedError, StudyError, TorchstoneError, UnknownNameError
from torchstone.noise import SparseOverparamLoss, suggest_rates
from torchstone.tracks import _measure
from torchstone.tracks._noisy_fits import crop_and_flip
from torchstone.tracks.noisy_labels import ARMS, LR, TRACK, BestEpoch, Problem, Setting, Trial, fit_ce, fit_sop, study

DIGITS = load("digits").subset(torch.arange(200))
QUICK: dict[str, Any] = {"data": DIGITS, "noise": "symmetric:0.4", "epochs": 1}


def tiny(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


def too_wide(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes + 1))


class Distances(nn.Module):
    """Logits without a linear layer."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(num_classes, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(x.flatten(1), self.centres)


def headless(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Distances(math.prod(input_shape), num_classes)


def mine(make_model: Any, train: TensorData, val: TensorData, cell: Cell, *, lr: float = 0.1) -> nn.Module:
    """An own method, as the documentation shows it."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for index in torch.randperm(len(train), generator=cell.seeds.generator("order")).split(64):
        loss = nn.functional.cross_entropy(model(train.x[index]), train.y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cell.snapshot(model)
    return model


mine.space = {"lr": LR}  # pyright: ignore[reportFunctionMemberAccess]


def curious(make_model: Any, train: TensorData, val: TensorData, cell: Cell) -> Any:
    """Looks for test data and right labels wherever it can."""
    assert cell.shared() is None
    assert cell.snapshot(make_model()) is None
    for part in (train, val):
        assert (part.test, dict(part.columns)) == (None, {})
    return lambda x: torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()


def forgetful(make_model: Any, train: TensorData, val: TensorData, cell: Cell, needed: float) -> nn.Module:
    return make_model()


def boundless(make_model: Any, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    return fit_ce(make_model, train, val, cell, lr=1e30)


@dataclass(frozen=True)
class Cheat:
    """An arm that picks by test accuracy while it is tuned."""

    def __call__(self, cell: Cell, **hyper: Any) -> Outcome:
        return Outcome(objective=float(cell.shared().test.open().y[0]))


def a_cell(problem: Problem, setting: Setting, case: str = "symmetric:0.4", **fields: Any) -> Cell:
    cell = Cell("x", case, 0, Seeds(3), setting, **fields)
    task = problem(cell)
    return replace(cell, shared=lambda: task)


def run(arms: Any, **options: Any) -> api.Result:
    options = {**QUICK, "tries": 1, "replicates": 1, "store": ":memory:", **options}
    return api.compare("noisy-labels", arms=arms, **options)


# ---------------------------------------------------------------- what is built


def test_every_other_arm_is_claimed_to_beat_the_baseline() -> None:
    built = study(**QUICK)
    (experiment,) = built.experiments
    assert list(experiment.arms) == ["ce", "gce", "elr", "sop", "rog", "npc"]
    assert [(type(c), c.metric, c.arm, c.than, c.primary) for c in experiment.claims] == [
        (Higher, "accuracy", "gce", "ce", True),
        (Higher, "accuracy", "elr", "ce", False),
        (Higher, "accuracy", "sop", "ce", False),
        (Higher, "accuracy", "rog", "ce", False),
        (Higher, "accuracy", "npc", "ce", False),
    ]
    assert DIGITS.fingerprint() in experiment.data
    assert experiment.cases == ("symmetric:0.4",)


def test_arms_that_data_or_model_do_not_allow_are_left_out_unless_asked_for() -> None:
    def arms(**changes: Any) -> list[str]:
        return list(study(**{**QUICK, **changes}).experiments[0].arms)

    assert arms(model="linear") == ["ce", "gce", "elr", "sop", "npc"]
    assert arms(model=headless) == ["ce", "gce", "elr", "sop"]
    known = replace(DIGITS, columns={"given": DIGITS.y, "annotator": torch.arange(200) % 3})
    assert arms(data=known, noise=None, labels="given") == [*ARMS]
    own = {"ce": None, "rog": mine}  # an own method may bear the name
    assert arms(arms=own, model="linear") == ["ce", "rog"]


def test_an_own_method_is_what_the_comparison_is_about() -> None:
    built = study(**QUICK, arms={"elr": None, "gce": None, "mine": mine}, baseline="gce", tries=3)
    (experiment,) = built.experiments
    assert built.primary[1].arm == "mine"
    assert {claim.than for claim in experiment.claims} == {"gce"}
    assert experiment.arms["mine"].role == "method"
    assert experiment.arms["mine"].space == {"lr": ARMS["ce"].space["lr"]}
    assert experiment.tries == 3


def test_several_kinds_of_labels_are_several_cases() -> None:
    assert study(**{**QUICK, "noise": ["pair:0.2", "pair:0.4"]}).experiments[0].cases == ("pair:0.2", "pair:0.4")
    worse = replace(DIGITS, columns={"a": DIGITS.y, "b": DIGITS.y})
    assert study(data=worse, labels=["b", "a"]).experiments[0].settings["bench"].labels == {
        "b": "column:b",
        "a": "column:a",
    }


def test_all_arms_try_the_same_learning_rates() -> None:
    assert {arm.space["lr"] for arm in ARMS.values()} == {LR}
    assert isinstance(LR, LogUniform)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_data_in_every_form(here: Path) -> None:
    from PIL import Image

    pixels = (DIGITS.x[:, 0] * 255).byte().numpy()
    labels = DIGITS.y.numpy()
    np.savez(here / "own.npz", x=pixels, y=labels, x_test=pixels[:20], y_test=labels[:20])
    for part, number in (("train", 60), ("test", 30)):
        for i in range(number):
            folder = here / "photos" / part / str(labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(folder / f"{i}.png")
    table = "label,a,b\n" + "\n".join(f"{'ox' if i % 2 else 'emu'},{i},{i % 7}" for i in range(40))
    (here / "own.csv").write_text(table)
    (here / "own_test.csv").write_text(table)
    (here / "own_data.py").write_text("import torch\ndef load():\n    return torch.rand(40, 3), torch.arange(40) % 2\n")
    sizes = {
        "npz": study(data="own.npz"),
        "folder": study(data=here / "photos"),
        "csv": study(data="own.csv", test="own_test.csv"),
        "code": study(data="own_data:load", noise="pair:0.2"),
    }
    parts = {}
    for name, built in sizes.items():
        (experiment,) = built.experiments
        problem, setting = experiment.shared, experiment.settings["bench"]
        assert isinstance(problem, Problem)
        task = problem(Cell("x", experiment.cases[0], 0, Seeds(0), setting))
        parts[name] = (len(task.train), len(task.val), len(task.test.open()), task.truth.open() is None)
    assert parts == {
        "npz": (160, 40, 20, True),
        "folder": (48, 12, 30, True),
        "csv": (32, 8, 40, True),
        "code": (26, 6, 8, False),
    }


def test_own_model_and_method_by_name(here: Path) -> None:
    (here / "own_code.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def fit(make_model, train, val, cell):\n    return make_model()\n"
    )
    for arms in (["ce", "mine=own_code:fit"], "ce,mine=own_code:fit", {"ce": None, "mine": "own_code:fit"}):
        (experiment,) = study(**QUICK, model="own_code:net", arms=arms).experiments
        assert list(experiment.arms) == ["ce", "mine"]
        assert {arm.run.model.__name__ for arm in experiment.arms.values()} == {"net"}  # pyright: ignore
    assert list(study(**QUICK, arms=["ce", "own_code:fit"]).experiments[0].arms) == ["ce", "fit"]


def data(x: Any = None, y: Any = None) -> TensorData:
    x = torch.rand(40, 64) if x is None else x
    return TensorData(x, torch.arange(40) % 10 if y is None else y, tuple("0123456789"), "own")


NAN = torch.rand(40, 64)
NAN[3, 5] = math.nan


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise": None}, ValueError, "no clean labels to test on: give noise='symmetric:0.4'"),
        ({"labels": "worse"}, ValueError, "not both"),
        ({"noise": None, "labels": "worse"}, UnknownNameError, "unknown column of digits 'worse'"),
        ({"noise": "symmetrik:0.4"}, UnknownNameError, "did you mean 'symmetric'"),
        ({"noise": "symmetric"}, ValueError, "a rate in"),
        ({"data": "digitz"}, UnknownNameError, "did you mean 'digits'"),
        ({"data": "nowhere/own.npz"}, FileNotFoundError, "there is no file or folder"),
        ({"data": data(y=torch.full((40,), 3))}, CorruptDataError, "all 40 labels are '3'"),
        ({"data": data(y=torch.arange(40))}, CorruptDataError, r"labels must lie in 0..9, but 30 do not"),
        ({"data": data(x=NAN)}, CorruptDataError, r"1 NaN or infinite values, the first at index \(3, 5\)"),
        ({"data": data().subset(torch.arange(3))}, ValueError, "leaves none to validate on"),
        ({"model": "mpl"}, UnknownNameError, "did you mean 'mlp'"),
        ({"model": too_wide}, ValueError, r"logits of shape \(1, 10\) for one input, but gives \(1, 11\)"),
        ({"model": lambda: nn.Identity()}, StudyError, "only functions and classes of a module"),
        ({"arms": ["ce", "spo"]}, UnknownNameError, "did you mean 'sop'"),
        ({"arms": ["ce", "tram"]}, ValueError, "have no column 'annotator'.*nobody gave the labels"),
        ({"arms": ["ce", "rog"], "model": "linear"}, ValueError, "'rog' cannot be used with this model: .* no hidden"),
        ({"arms": ["ce", "npc"], "model": headless}, ValueError, "'npc' cannot be used with this model: .*nn.Linear"),
        ({"arms": ["ce"]}, ValueError, "at least two arms, got ce"),
        ({"arms": ["ce", "sop", "ce"]}, ValueError, "two arms are called 'ce'"),
        ({"arms": ["ce", "mine=nowhere:fit"]}, UnknownNameError, "no module 'nowhere'"),
        ({"arms": {"ce": None, "mine": 3}}, TypeError, "arm 'mine' must be a function"),
        ({"arms": ["ce", mine]}, TypeError, "mapping name -> function"),
        ({"arms": {"ce": None, "mine": lambda *a: None}}, StudyError, "only functions and classes of a module"),
        ({"arms": {"ce": None, "mine": forgetful}}, TypeError, "missing a required argument: 'needed'"),
        ({"baseline": "cee"}, UnknownNameError, "did you mean 'ce'"),
        ({"val": "tidy"}, ValueError, "val must be one of"),
        ({"epochs": 0}, ValueError, "epochs must be >= 1"),
        ({"val_fraction": 1.0}, ValueError, r"val_fraction must lie in \(0, 1\)"),
        ({"augment": "flip"}, ValueError, "augment must be one of"),
        ({"data": data(), "augment": "crop-flip"}, ValueError, r"is for images, but a sample has shape \(64,\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        study(**{**QUICK, **changes})


def test_clean_validation_labels_need_a_known_truth() -> None:
    own = replace(DIGITS, test=DIGITS.subset(torch.arange(30)))
    with pytest.raises(ValueError, match="right labels beside the noisy ones"):
        study(data=own, val="clean")
    assert study(**QUICK, val="clean").experiments[0].settings["bench"].val == "clean"


def test_a_study_can_be_sent_to_another_process() -> None:
    built = study(**QUICK, arms={"ce": None, "mine": mine}, model=tiny)
    again = pickle.loads(pickle.dumps(built))
    assert isinstance(again, Study)
    assert again.experiments[0].arms == built.experiments[0].arms


def test_the_help_names_every_kind_of_noise() -> None:
    from torchstone.tracks._label_source import KINDS

    assert all(kind in TRACK.data_help for kind in KINDS)


# ---------------------------------------------------------------- what an arm does


@pytest.mark.parametrize("name", ["ce", "gce", "elr", "sop"])
def test_built_in_methods_learn_and_repeat_themselves(name: str) -> None:
    setting = Setting(labels={"symmetric:0.4": "symmetric:0.4"}, model="linear", epochs=8, batch_size=16)
    problem = Problem(DIGITS)
    arm, curve = ARMS[name], []
    hyper = {**arm.hyper, "lr": 0.3}
    outcome = arm.run(a_cell(problem, setting, log=lambda *point: curve.append(point)), **hyper)
    assert outcome.values["accuracy"] > 0.4  # a guess is right in one of ten
    assert outcome.values["best_accuracy"] == max(value for _, value, _ in curve)
    assert [(label, step) for label, _, step in curve] == [("test_accuracy", 1 + epoch) for epoch in range(8)]
    assert 0 <= outcome.values["memorised"] <= 1
    assert math.isnan(outcome.values["noise_auc"]) == (name != "sop")
    assert outcome.cost == {"steps": 8 * 8, "forwards": 8 * 128, "parameters": 650}
    again = arm.run(a_cell(problem, setting), **hyper)
    assert again.values == pytest.approx(outcome.values, abs=0, nan_ok=True)
    tuned = arm.run(a_cell(problem, setting, tuning=True), **hyper)
    assert (tuned.values, tuned.objective) == ({}, outcome.objective)


@pytest.mark.parametrize(
    ("hyper", "u", "v"), [({}, 1.0, 1.0), ({"scale_u": 2.0, "scale_v": 0.5}, 2.0, 0.5), ({"lr_v": 0.0}, 1.0, 0.0)]
)
def test_rates_of_sop_are_multiples_of_the_suggested_ones_or_given(
    monkeypatch: pytest.MonkeyPatch, hyper: dict[str, float], u: float, v: float
) -> None:
    rates: dict[str, float] = {}
    original = SparseOverparamLoss.param_groups

    def noted(self: SparseOverparamLoss, lr_u: float, lr_v: float) -> Any:
        rates.update(u=lr_u, v=lr_v)
        return original(self, lr_u, lr_v)

    monkeypatch.setattr(SparseOverparamLoss, "param_groups", noted)
    setting = Setting(labels={"symmetric:0.4": "symmetric:0.4"}, model="linear", epochs=6, batch_size=16)
    Trial(fit_sop)(a_cell(Problem(DIGITS), setting), init_std=1e-3, **hyper)
    suggested = suggest_rates(16, 6, init_std=1e-3)
    assert rates == pytest.approx({"u": u * suggested.lr_u, "v": v * suggested.lr_v})


@pytest.mark.parametrize(("epochs", "start"), [(1, 0.1), (20, 2.0**-10), (120, 1e-8)])
def test_a_short_training_starts_sop_higher(monkeypatch: pytest.MonkeyPatch, epochs: int, start: float) -> None:
    from torchstone.tracks import _noisy_fits

    seen: list[float] = []
    monkeypatch.setattr(_noisy_fits, "suggest_rates", lambda *sizes, init_std: seen.append(init_std) or (1.0, 1.0))
    setting = Setting(labels={"symmetric:0.4": "symmetric:0.4"}, model="linear", epochs=epochs)
    with pytest.raises(AttributeError):  # the rates above are none: it ends here, before any training
        Trial(fit_sop)(a_cell(Problem(DIGITS), setting))
    assert seen == [start]


def parrot(make_model: Any, train: TensorData, val: TensorData, cell: Cell, *, wrong: bool) -> Any:
    """Gives the right labels, or for training samples those they came with; sample i is the number i, class i % 4."""
    table = torch.arange(100) % 4
    if wrong:
        table[train.x[:, 0].long()] = train.y
    return lambda x: nn.functional.one_hot(table[x[:, 0].long()], 4).float()


def test_memorised_is_the_share_of_wrong_labels_given_back() -> None:
    x = torch.arange(100.0)[:, None]
    problem = Problem(TensorData(x, torch.arange(100) % 4, tuple("abcd"), "numbers"))
    cell = a_cell(problem, Setting(labels={"symmetric:0.4": "symmetric:0.4"}))
    for wrong in (True, False):
        values = Trial(parrot)(cell, wrong=wrong).values
        assert (values["memorised"], values["accuracy"]) == (float(wrong), 1.0)


class Interrupted(Exception):
    pass


class Memory:
    """A checkpoint that loses power once, after ``saves`` saves."""

    def __init__(self, saves: int) -> None:
        self.state, self.left = None, saves

    def load(self) -> Any:
        return self.state

    def save(self, state: Any) -> None:
        self.state = pickle.loads(pickle.dumps(state))
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "SAVE_EVERY", 0.0)
    setting = Setting(labels={"symmetric:0.4": "symmetric:0.4"}, model="linear", epochs=6, batch_size=32)
    problem, arm = Problem(DIGITS), ARMS["sop"]
    whole = arm.run(a_cell(problem, setting), **arm.hyper)
    memory = Memory(saves=4)
    with pytest.raises(Interrupted):
        arm.run(a_cell(problem, setting, checkpoint=memory), **arm.hyper)
    resumed = arm.run(a_cell(problem, setting, checkpoint=memory), **arm.hyper)
    assert (resumed.values, resumed.cost) == (whole.values, whole.cost)


def test_the_best_epoch_is_read_off_the_same_training() -> None:
    calls: list[int] = []

    def counted(*args: Any) -> nn.Module:
        calls.append(1)
        return fit_ce(*args)

    setting = Setting(labels={"symmetric:0.4": "symmetric:0.4"}, model="linear", epochs=3, batch_size=16)
    cell = a_cell(Problem(DIGITS), setting)
    trial = Trial(counted)
    outcome, best = trial(cell), BestEpoch(trial)(cell)
    assert len(calls) == 1
    assert best.values == {"accuracy": outcome.values["best_accuracy"]}
    assert best.cost == outcome.cost


def scored(make_model: Any, train: TensorData, val: TensorData, cell: Cell, *, extra: int = 0) -> nn.Module:
    model = make_model()
    model.noise_score = torch.arange(len(train) + extra)
    return model


def test_noise_scores_of_an_own_method_are_scored() -> None:
    setting = Setting(labels={"symmetric:0.4": "symmetric:0.4"}, model="linear")
    cell = a_cell(Problem(DIGITS), setting)
    assert 0.3 < Trial(scored)(cell).values["noise_auc"] < 0.7
    with pytest.raises(ValueError, match=r"one number per training sample, shape \(128,\), but has \(129,\)"):
        Trial(scored)(cell, extra=1)


def test_crop_and_flip_moves_whole_images() -> None:
    x = torch.arange(1.0, 3 * 2 * 4 * 4 + 1).reshape(3, 2, 4, 4)
    out = crop_and_flip(x, torch.Generator().manual_seed(0), padding=0)
    for before, after in zip(x, out, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))
    moved = crop_and_flip(torch.ones(50, 1, 4, 4), torch.Generator().manual_seed(0), padding=1)
    assert set(moved.sum((1, 2, 3)).tolist()) == {9.0, 12.0, 16.0}  # moved in both directions, in one, in none
    with pytest.raises(ValueError, match="x must be images"):
        crop_and_flip(torch.ones(3, 4))


# ---------------------------------------------------------------- end to end


def test_compare_tunes_runs_judges_and_refits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "winner.safetensors"
    result = run({"ce": None, "mine": mine}, model=tiny, epochs=2, refit=path)
    assert not result.failures
    assert result.tunings["comparison"]["ce"].hyper["lr"] == result.tunings["comparison"]["mine"].hyper["lr"]
    assert set(result.metrics("comparison")) == {"accuracy", "best_accuracy", "memorised", "noise_auc"}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    winner = max(result.means("comparison", "accuracy").items(), key=lambda item: item[1][0])[0][0]
    assert metadata["arm"] == winner
    assert metadata["model"].endswith("test_noisy_labels:tiny")
    assert json.loads(metadata["hyper"]) == result.tunings["comparison"][winner].hyper
    assert json.loads(metadata["classes"]) == list(DIGITS.class_names)
    tiny((1, 8, 8), 10).load_state_dict(load_file(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_nothing_can_be_refitted_before_a_replicate_is_complete(tmp_path: Path) -> None:
    with pytest.raises(TorchstoneError, match="no replicate is complete"):
        run(["ce", "gce"], budget=0.0, refit=tmp_path / "winner.safetensors")


def test_a_winner_without_weights_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TorchstoneError, match="gives a function, which has no weights"):
        run({"bad": boundless, "curious": curious}, refit=tmp_path / "winner.safetensors")


def test_a_method_finds_no_test_data_and_no_right_labels() -> None:
    assert not run({"ce": None, "curious": curious}).failures


def test_an_arm_that_opens_test_data_while_it_is_tuned_is_caught() -> None:
    built = study(**QUICK, arms=["ce", "gce"], tries=1)
    (experiment,) = built.experiments
    cheat = Arm(Cheat(), space={"lr": LR}, role="method")
    result = api.run(
        replace(built, experiments=(replace(experiment, arms={"ce": experiment.arms["ce"], "gce": cheat}),)),
        store=":memory:",
        replicates=1,
    )
    assert len(result.failures) == 1
    assert "SealedDataError: test data are sealed while an arm is tuned" in result.failures[0]
    assert not result.rows["comparison"]


def test_a_training_that_diverges_has_lost() -> None:
    result = run({"ce": None, "wild": boundless})
    (row,) = result.rows["comparison"]
    assert "the loss became" in row.diverged("wild", "symmetric:0.4")
    assert not result.failures
    cell = a_cell(Problem(DIGITS), Setting(labels={"symmetric:0.4": "symmetric:0.4"}, epochs=1), tuning=True)
    with pytest.raises(DivergedError):
        Trial(boundless)(cell)
