"""What the scores that the paper published say, computed again; there is no chance in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchstone.bench.claims import Higher, Lower, Within
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.statistics import kendall_tau, ranking_instability
from torchstone.bench.statistics.effect import share_of_pairs
from torchstone.bench.study import Arm, Cell, Experiment
from torchstone.data.published_scores import unreproducible_scores
from torchstone.studies._data import data_identity

__all__ = ["Published", "published", "published_orders"]

PUBLISHED = ("mnist", "cifar10", "cifar100")


@dataclass(frozen=True)
class Published:
    """``run`` of an arm: what the published errors of all networks under one setting say."""

    setting: str

    def __call__(self, cell: Cell) -> Outcome:
        """Compute it for one data set."""
        errors = unreproducible_scores()[self.setting][cell.case]
        scores = {name: -runs for name, runs in errors.items()}
        instability = ranking_instability(scores)
        runs = list(scores.values())
        ahead = [share_of_pairs(runs[i], runs[j]) for i in range(len(runs)) for j in range(i)]
        return Outcome(
            {
                "same_order": instability.same_order,
                "same_best": instability.same_best,
                "agreement": instability.agreement,
                "unsure_pairs": sum(max(p, 1 - p) < 0.95 for p in ahead),
                "mean_error": np.array([errors[name].mean() for name in sorted(errors)]),
            }
        )


def published_orders(row: Row) -> dict[str, float]:
    """For each data set: agreement of the orders of the means before and after tuning, and whether the best changes."""
    derived = {}
    for case in PUBLISHED:
        common, tuned = (-np.asarray(row.value("mean_error", arm, case)) for arm in ("default", "tuned"))
        derived[f"tau_{case}"] = kendall_tau(common, tuned)
        derived[f"single_run_tau_{case}"] = float(row.value("agreement", "default", case))
        derived[f"best_changes_{case}"] = float(common.argmax() != tuned.argmax())
    return derived


def published() -> Experiment:
    """The experiment."""
    same_order = {"default": (0.003, 0.810, 0.429), "tuned": (0.031, 0.529, 0.400)}
    tau = (0.0, 0.5, 0.9286)
    return Experiment(
        name="published",
        arms={"default": Arm(Published("default")), "tuned": Arm(Published("tuned"), role="method")},
        cases=PUBLISHED,
        claims=(
            *(
                Within("same_order", arm, share, by=0.01, cases=(case,), always=True)
                for arm, shares in same_order.items()
                for case, share in zip(PUBLISHED, shares, strict=True)
            ),
            *(
                Within("unsure_pairs", "default", number, cases=(case,), always=True)
                for case, number in zip(PUBLISHED, (23, 2, 1), strict=True)
            ),
            *(
                Within(f"tau_{case}", "", value, by=5e-5, always=True)
                for case, value in zip(PUBLISHED, tau, strict=True)
            ),
            Higher(
                "best_changes_cifar10", "", 0.5, always=True, text="tuning makes another network the best [cifar10]"
            ),
            *(
                Lower(
                    f"tau_{case}",
                    "",
                    f"single_run_tau_{case}",
                    always=True,
                    text=f"tuning changes the order of the means more than single runs scatter about it [{case}]",
                )
                for case in PUBLISHED
            ),
        ),
        derive=published_orders,
        replicates=(1, 1),
        settings={"bench": None},
        needs=("unreproducible_scores",),
        data=data_identity("unreproducible_scores"),
    )
