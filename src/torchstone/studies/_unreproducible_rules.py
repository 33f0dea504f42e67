"""How often rules of comparison are wrong, where the truth is known: simulated scores, and the noise of real runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from torchstone.bench.claims import Lower, Within
from torchstone.bench.outcome import Outcome
from torchstone.bench.seeds import Seeds
from torchstone.bench.statistics.decision_rules import RULES, TYPICAL_GAIN, claims_better, normal_scores
from torchstone.bench.study import Arm, Cell, Experiment
from torchstone.studies._data import data_identity
from torchstone.studies._unreproducible_runs import FAMILIES, Run, Sizes, accuracy, draw_parts

__all__ = ["GAMMA", "Rule", "RuleSizes", "resampled", "rules", "truth"]

GAMMA = 0.75


@dataclass(frozen=True)
class RuleSizes:
    """Comparisons that are simulated for each error rate, runs in each, and real runs whose noise is resampled."""

    studies: int = 20_000
    runs: int = 29
    pool: int = 40
    sizes: Sizes = field(default_factory=Sizes)


@dataclass(frozen=True)
class Truth:
    """Comparisons of which the truth is known, and the standard deviation of a run of B."""

    equal: tuple[np.ndarray, np.ndarray]
    better: tuple[np.ndarray, np.ndarray]
    sd: float = 1.0


def truth(cell: Cell) -> Truth:
    """``Experiment.shared`` of the rules: pairs of scores with P(A > B) = 1/2, and with P(A > B) = 3/4.

    ``normal``: independent normal scores. ``paired``: correlated by 0.7. ``live``: real pairs, resampled, from runs of
    two families on common splits; A's scores are shifted until P has that value among them.
    """
    setting: RuleSizes = cell.setting
    if cell.case != "live":
        size = {"studies": setting.studies, "runs": setting.runs, "rho": 0.7 if cell.case == "paired" else 0.0}
        equal, better = (
            normal_scores(p, seed=cell.seeds.integer("noise", cell.case, str(p)), **size) for p in (0.5, GAMMA)
        )
        return Truth(equal, better)
    a, b = _real_pairs(cell.seeds, setting)
    equal, better = (
        resampled(a, b, p, setting.studies, setting.runs, cell.seeds.numpy("noise", str(p))) for p in (0.5, GAMMA)
    )
    return Truth(equal, better, float(b.std(ddof=1)))


def _real_pairs(seeds: Seeds, setting: RuleSizes) -> tuple[np.ndarray, np.ndarray]:
    scores = []
    for number in range(setting.pool):
        run = Run(seeds, str(number))
        train, _, test = draw_parts("digits", run, setting.sizes)
        pair = [FAMILIES[name] for name in ("logistic", "knn")]
        scores.append([accuracy(one.fit(train, run, setting.sizes, **one.default), test) for one in pair])
    a, b = np.array(scores).T
    return a, b


def resampled(
    a: np.ndarray, b: np.ndarray, p: float, studies: int, runs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs with replacement after shifting ``a`` until it is ahead in the share ``p`` of the pairs."""
    shift = -float(np.quantile(a - b, 1 - p, method="averaged_inverted_cdf"))
    drawn = rng.integers(len(a), size=(studies, runs))
    return a[drawn] + shift, b[drawn]


@dataclass(frozen=True)
class Rule:
    """``run`` of an arm: the error rates of a rule."""

    name: str

    def __call__(self, cell: Cell) -> Outcome:
        """Apply the rule to every simulated comparison."""
        known: Truth = cell.shared()
        margin = TYPICAL_GAIN * known.sd
        wrong = claims_better(self.name, *known.equal, margin=margin, gamma=GAMMA).mean()
        right = claims_better(self.name, *known.better, margin=margin, gamma=GAMMA).mean()
        return Outcome({"false_positives": wrong, "false_negatives": 1 - right})


# Read off a figure of the successor, where they are uncertain by 5 points: false positives, false negatives.
READ = {"single-run": (0.10, 0.75), "mean-difference": (0.05, 0.90), "probability": (0.05, 0.30)}


def rules() -> Experiment:
    """The experiment."""
    return Experiment(
        name="rules",
        arms={name: Arm(Rule(name)) for name in RULES},
        cases=("normal", "paired", "live"),
        claims=(
            *(
                Within(metric, rule, rates[i], by=0.05, cases=("normal",))
                for rule, rates in READ.items()
                for i, metric in enumerate(("false_positives", "false_negatives"))
            ),
            Lower("false_negatives", "probability", "single-run"),
            Lower("false_negatives", "probability", "mean-difference"),
            Lower("false_positives", "probability", 0.05),
            Lower("false_positives", "sequential", 0.05),
        ),
        replicates=(6, 13),
        settings={"smoke": RuleSizes(500, pool=4, sizes=Sizes(samples=200, epochs=4)), "bench": RuleSizes()},
        shared=truth,
        data=data_identity("digits"),
    )
