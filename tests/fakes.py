"""Studies whose arms compute nothing: enough to test the bench without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchstone.bench import Arm, Cell, Experiment, Higher, Outcome, Row, Study, Uniform


@dataclass(frozen=True)
class Normal:
    """An arm whose score is ``mean`` plus noise of the replicate's own stream; ``scale`` is a hyper-parameter."""

    mean: float
    sd: float = 0.1
    name: str = "x"

    def __call__(self, cell: Cell, scale: float = 1.0) -> Outcome:
        score = self.mean * scale + self.sd * cell.seeds.numpy("noise", self.name, cell.case).standard_normal()
        if cell.tuning:
            return Outcome(objective=score)
        return Outcome({"accuracy": score}, objective=score, cost={"steps": 10})


def silent(cell: Cell, **hyper: Any) -> Outcome:
    """An arm for studies that are declared but never run."""
    return Outcome({"accuracy": 0.5}, objective=0.5)


def two_arm_study(
    good: float = 0.9, bad: float = 0.5, *, tuned: bool = False, sd: float = 0.1, **changes: Any
) -> Study:
    """`method` against `baseline`, one primary claim."""
    space = {"scale": Uniform(0.5, 1.0)} if tuned else {}
    arms = {
        "baseline": Arm(Normal(bad, sd, "b"), space=space),
        "method": Arm(Normal(good, sd, "m"), space=space, role="method"),
    }
    claims = (Higher("accuracy", "method", "baseline", primary=True),)
    fields: dict[str, Any] = {"name": "main", "arms": arms, "claims": claims, **changes}
    return Study("fake", (Experiment(**fields),))


def rows(experiment: Experiment, *values: Mapping[str, float | Outcome]) -> Sequence[Row]:
    """One row per mapping of arm -> accuracy (the same in all cases), or -> a whole outcome."""

    def outcome(value: float | Outcome) -> Outcome:
        return value if isinstance(value, Outcome) else Outcome({"accuracy": value})

    return [
        experiment.row(number, {(arm, case): outcome(by_arm[arm]) for arm, case in experiment.slots})
        for number, by_arm in enumerate(values)
    ]
