import dataclasses
import math

import numpy as np
import pytest

from tests.fakes import silent, two_arm_study
from torchstone.bench import (
    Arm,
    Cell,
    ClosesGap,
    Experiment,
    Higher,
    LogUniform,
    Lower,
    Outcome,
    Row,
    Seeds,
    Study,
    Trend,
    Uniform,
    Within,
)
from torchstone.bench.outcome import complete_prefix
from torchstone.errors import SealedDataError, StudyError, UnknownNameError


def experiment(**changes) -> Experiment:
    fields = {"name": "main", "arms": {"a": Arm(silent), "b": Arm(silent)}, "claims": (Higher("accuracy", "a", "b"),)}
    return Experiment(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "has no arms"),
        ({"claims": ()}, "claims nothing"),
        ({"cases": ()}, "has no cases"),
        ({"cases": ("x", "x")}, "duplicates"),
        ({"cases": ["x"]}, "must be a tuple"),
        ({"replicates": (7, 6)}, "smallest <= largest"),
        ({"tries": 0}, "at least 1"),
        ({"settings": {"benhc": 1}}, "unknown scale 'benhc': did you mean 'bench'"),
        ({"tune_on": "elsewhere"}, "unknown case 'elsewhere'"),
        ({"claims": (Higher("accuracy", "a", "bb"),)}, "unknown arm 'bb': did you mean 'b'"),
        ({"claims": (Higher("accuracy", "a", "b", cases=("dflt",)),)}, "unknown case 'dflt': did you mean 'default'"),
        ({"claims": (ClosesGap("accuracy", "a", "b", to="d"),)}, "unknown arm 'd'"),
        ({"claims": ("a > b",)}, "which it is not"),
        ({"claims": (Higher("slope", ""),)}, "derives none"),
        ({"premises": (Higher("accuracy", "c"),)}, "unknown arm 'c'"),
        ({"arms": {"a": Arm(silent, tuned_as="c"), "b": Arm(silent)}}, "unknown arm 'c'"),
        ({"arms": {"a": Arm(silent, tuned_as="b"), "b": Arm(silent)}}, "has no search space"),
        ({"arms": {"a": Arm(silent, cases=("x",)), "b": Arm(silent)}}, "unknown case 'x'"),
        (
            {"cases": ("x", "y"), "arms": {"a": Arm(silent, cases=("x",)), "b": Arm(silent, cases=("y",))}},
            "no case in common",
        ),
        (
            {
                "cases": ("x", "y"),
                "arms": {"a": Arm(silent, cases=("x",)), "b": Arm(silent)},
                "claims": (Trend("accuracy", "a", cases=("x", "y")),),
            },
            "on which arm 'a' does not run",
        ),
        (
            {
                "cases": ("x", "y"),
                "arms": {"a": Arm(silent, cases=("y",), space={"q": Uniform(0, 1)}), "b": Arm(silent)},
            },
            "tuned on case 'x', on which it does not run",
        ),
    ],
)
def test_experiments_that_contradict_themselves_are_refused(changes, message) -> None:
    with pytest.raises((StudyError, UnknownNameError), match=message):
        experiment(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arm(lambda cell: Outcome()), "module-level function"),
        (lambda: Arm(silent, role="champion"), "unknown role 'champion'"),
        (lambda: Arm(silent, space={"q": Uniform(0, 1)}, tuned_as="b"), "not both"),
        (lambda: Arm(silent, space={"q": (0, 1)}), "must be a distribution"),  # type: ignore[dict-item]
    ],
)
def test_arms_that_cannot_work_are_refused(make, message) -> None:
    with pytest.raises((StudyError, UnknownNameError), match=message):
        make()


def test_a_study_has_exactly_one_primary_claim_on_embedded_data() -> None:
    primary = Higher("accuracy", "a", "b", primary=True)
    with pytest.raises(StudyError, match="exactly one primary claim, but has 0"):
        Study("s", (experiment(),))
    with pytest.raises(StudyError, match="exactly one primary claim, but has 2"):
        Study("s", (experiment(claims=(primary,)), experiment(name="other", claims=(primary,))))
    with pytest.raises(StudyError, match="decidable on embedded data, but 'main' needs cifar10"):
        Study("s", (experiment(claims=(primary,), needs=("cifar10",)),))
    with pytest.raises(StudyError, match="unique names"):
        Study("s", (experiment(claims=(primary,)), experiment()))
    with pytest.raises(StudyError, match="a premise is no claim"):
        Study("s", (experiment(claims=(primary,), premises=(Lower("accuracy", "b", 1.0, primary=True),)),))
    study = Study("s", (experiment(claims=(primary,)), experiment(name="other", needs=("cifar10",))))
    assert study.primary[1] is primary
    assert study.experiment("other").needs == ("cifar10",)
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        study.experiment("othr")


def test_slots_follow_the_cases_of_each_arm() -> None:
    arms = {"a": Arm(silent), "b": Arm(silent, cases=("y",))}
    e = experiment(cases=("x", "y"), arms=arms)
    assert e.slots == (("a", "x"), ("a", "y"), ("b", "y"))
    assert e.tuning_case == "x"
    with pytest.raises(StudyError, match="incomplete"):
        e.row(0, {("a", "x"): Outcome()})


@pytest.mark.parametrize("value", ["0.9", [[1.0]], None, math.inf, np.array([1.0, -math.inf])])
def test_outcomes_hold_numbers(value) -> None:
    with pytest.raises(StudyError, match="value 'm'"):
        Outcome({"m": value})


def test_outcomes_take_tensors_and_turn_a_nan_objective_into_the_worst() -> None:
    import torch

    outcome = Outcome({"m": torch.tensor(0.5), "curve": torch.arange(3)}, objective=math.nan)
    assert outcome.values["m"] == 0.5
    assert isinstance(outcome.values["m"], float)
    assert outcome.values["curve"].tolist() == [0.0, 1.0, 2.0]
    assert outcome.objective == -math.inf
    assert math.isnan(Outcome({"m": math.nan}).values["m"])


def test_test_data_stay_sealed_while_tuning() -> None:
    cell = Cell("e", "c", 0, Seeds())
    assert cell.seal([1, 2]).open() == [1, 2]
    with pytest.raises(SealedDataError, match="sealed while an arm is tuned"):
        dataclasses.replace(cell, tuning=True).seal([1, 2]).open()


def test_a_cell_without_an_engine_still_works() -> None:
    cell = Cell("e", "c", 0, Seeds())
    cell.log("loss", 1.0)
    cell.snapshot(None)
    cell.checkpoint.save({})
    assert cell.checkpoint.load() is None
    assert cell.shared() is None


def test_only_the_longest_complete_prefix_counts() -> None:
    rows = [Row(n, {}) for n in (0, 1, 3, 4)]
    assert [row.replicate for row in complete_prefix(rows)] == [0, 1]
    assert complete_prefix(rows[2:]) == []


# Four unlike studies, expressed with empty bodies: the vocabulary must fit them without bending.


def shared_split(cell: Cell) -> dict[str, object]:
    return {"train": list(range(10)), "test": cell.seal(list(range(5)))}


def test_jtt_two_stage_training_with_controls_and_a_gap() -> None:
    """Just train twice: worst-group accuracy, tuned on groups of the validation set, a control with random errors."""
    space = {"upweight": LogUniform(5, 50), "lr": LogUniform(1e-3, 1e-1)}
    study = Study(
        "jtt",
        (
            Experiment(
                "coloured-digits",
                arms={
                    "erm": Arm(silent, space={"lr": space["lr"]}),
                    "cvar": Arm(silent, space={"alpha": Uniform(0.1, 1), "lr": space["lr"]}, role="rival"),
                    "group-dro": Arm(silent, space={"lr": space["lr"]}, role="oracle"),
                    "jtt": Arm(silent, space=space, role="method"),
                    "random-errors": Arm(silent, tuned_as="jtt", role="control"),
                    "online": Arm(silent, tuned_as="jtt", role="published"),
                },
                cases=("noise0", "noise10", "noise25"),
                tune_on="noise0",
                shared=shared_split,
                premises=(Higher("worst_group", "group-dro", "erm", by=0.1, cases=("noise0",)),),
                claims=(
                    ClosesGap("worst_group", "jtt", "erm", to="group-dro", by=0.5, cases=("noise0",), primary=True),
                    Higher("worst_group", "jtt", "random-errors", cases=("noise0",)),
                    Trend("precision_of_errors", "jtt", cases=("noise0", "noise10", "noise25"), falls=True),
                ),
            ),
            Experiment(
                "waterbirds",
                arms={"erm": Arm(silent), "jtt": Arm(silent, role="method")},
                claims=(Higher("worst_group", "jtt", "erm"),),
                needs=("waterbirds", "gpu"),
                replicates=(5, 5),
            ),
        ),
    )
    assert study.experiment("waterbirds").fixed
    assert study.primary[0].name == "coloured-digits"


def test_bagging_certificate_needs_no_training_and_states_a_theorem() -> None:
    """Collective certificates: curves over the attack budget, one inequality that can never fail."""
    budgets = np.arange(1, 4)
    certified = {"collective": [0.9, 0.8, 0.7], "samplewise": [0.9, 0.7, 0.5], "vanilla": [0.1, 0.0, 0.0]}
    e = Experiment(
        "digits",
        arms={name: Arm(silent, role="method" if name == "collective" else "baseline") for name in certified},
        claims=(
            Higher("certified", "collective", "samplewise", always=True),
            Higher("certified", "collective", "vanilla", primary=True),
        ),
    )
    outcomes = {
        (name, "default"): Outcome({"certified": curve, "budget": budgets}) for name, curve in certified.items()
    }
    row = e.row(0, outcomes)
    assert e.claims[0].scores(row).tolist() == [0.5, 1.0, 1.0]
    assert Study("bagging-certificate", (e,)).primary[1].w(row) == 1.0


def slope_of(row: Row) -> dict[str, float]:
    curve = row.value("log_error", "flow", "default")
    return {"rate": float(np.polyfit(np.arange(len(np.atleast_1d(curve))), np.atleast_1d(curve), 1)[0])}


def test_deep_linear_is_a_theorem_over_curves_judged_from_one_replicate() -> None:
    """Reduced flow equals the full flow; the final rate, derived from the row, equals the predicted one."""
    e = Experiment(
        "flow",
        arms={"flow": Arm(silent, role="method"), "reduced": Arm(silent, role="oracle")},
        claims=(
            Within("product", "flow", "reduced", by=1e-5, always=True, primary=True),
            Within("rate", "", -2.0, rtol=1e-6, always=True),
        ),
        derive=slope_of,
        replicates=(1, 1),
    )
    curve = np.linspace(0.0, 1.0, 5)
    row = e.row(
        0,
        {
            ("flow", "default"): Outcome({"product": curve + 1e-6, "log_error": -2.0 * np.arange(5)}),
            ("reduced", "default"): Outcome({"product": curve}),
        },
    )
    assert [claim.w(row) for claim in Study("deep-linear", (e,)).experiments[0].claims] == [1.0, 1.0]


def test_soups_join_a_reanalysis_of_published_numbers_with_a_live_experiment() -> None:
    """Greedy soup: published table re-read (one replicate, identities), and live fine-tunings shared by all arms."""
    study = Study(
        "model-soups",
        (
            Experiment(
                "published-table",
                arms={"greedy": Arm(silent, role="published"), "best": Arm(silent, role="published")},
                claims=(
                    Within("accuracy", "greedy", 81.03, by=0.005, always=True),
                    Higher("accuracy", "greedy", "best", always=True),
                ),
                replicates=(1, 1),
                needs=("model_soups",),
            ),
            Experiment(
                "digits",
                arms={
                    "best-on-validation": Arm(silent),
                    "uniform": Arm(silent, role="method"),
                    "greedy": Arm(silent, role="method"),
                    "ensemble": Arm(silent, role="rival"),
                    "no-shared-start": Arm(silent, role="control"),
                },
                shared=shared_split,
                premises=(Higher("accuracy", "uniform", "no-shared-start", by=0.2),),
                claims=(
                    Higher("accuracy", "greedy", "best-on-validation", primary=True),
                    Higher("forwards", "ensemble", "greedy", always=True),
                ),
            ),
        ),
    )
    table = study.experiment("published-table")
    row = table.row(
        0, {("greedy", "default"): Outcome({"accuracy": 81.032}), ("best", "default"): Outcome({"accuracy": 80.39})}
    )
    assert [claim.w(row) for claim in table.claims] == [1.0, 1.0]


def test_fakes_are_studies() -> None:
    assert two_arm_study(tuned=True).primary[1].sentence() == "accuracy of method is higher than that of baseline"
