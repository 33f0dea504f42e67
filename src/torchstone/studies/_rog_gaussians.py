"""Two Gaussian classes, part of whose samples are none of theirs: what is estimated, and the exact error that it makes.

Class c is N(m_c, I). A share delta of the samples labelled c comes from elsewhere. A linear classifier w x + b errs on
N(m, I) with probability Phi(+-(w m + b) / |w|), so nothing has to be tested on samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.noise import MinCovDetTied, gaussian_classifier

__all__ = ["CASES", "Blobs", "Sample", "draw", "exact_error", "run_estimator"]


@dataclass(frozen=True)
class Contamination:
    """Share of each class's samples that come from elsewhere, and from where."""

    shares: tuple[float, float]
    far: bool = True


CASES = {
    "clean": Contamination((0.0, 0.0)),
    "far10": Contamination((0.1, 0.1)),
    "far20": Contamination((0.2, 0.2)),
    "far40": Contamination((0.4, 0.4)),
    "swapped20": Contamination((0.2, 0.2), far=False),
    "one-sided20": Contamination((0.2, 0.0), far=False),
    "one-sided40": Contamination((0.4, 0.0), far=False),
}
"""``far``: from a Gaussian far away, in another random direction for each class. The others: from the other class."""


@dataclass(frozen=True)
class Blobs:
    """Sizes: ``samples`` of each class in ``d`` dimensions, means ``apart`` from each other, outliers ``far`` away."""

    samples: int = 500
    d: int = 10
    apart: float = 3.0
    far: float = 10.0


@dataclass(frozen=True, eq=False)
class Sample:
    """What is drawn in a cell: features, labels, which samples belong to their label, and the true means."""

    features: Tensor
    labels: Tensor
    belongs: Tensor
    means: Tensor


def draw(cell: Cell) -> Sample:
    """``shared`` of the experiment: the same samples for all estimators."""
    size: Blobs = cell.setting
    generator = cell.seeds.generator("split")
    means = torch.zeros(2, size.d, dtype=torch.float64)
    means[:, 0] = torch.tensor([-size.apart / 2, size.apart / 2])
    directions = torch.randn(2, size.d, generator=generator, dtype=torch.float64)
    away = means + size.far * directions / directions.norm(dim=1, keepdim=True)
    labels = torch.arange(2).repeat_interleave(size.samples)
    place = torch.arange(size.samples).repeat(2)
    noise = torch.randn(len(labels), size.d, generator=generator, dtype=torch.float64)
    contamination = CASES[cell.case]
    belongs = place >= (torch.tensor(contamination.shares)[labels] * size.samples).round()
    elsewhere = away[labels] if contamination.far else means[1 - labels]
    centres = torch.where(belongs[:, None], means[labels], elsewhere)
    return Sample(centres + noise, labels, belongs, means)


def run_estimator(cell: Cell, *, support_fraction: float | None, n_steps: int | None) -> Outcome:
    """Estimate, and compare with the truth.

    The outcome has ``error``, exact, on the classes as they are; ``shift``, the mean distance of an estimated mean from
    the true one; ``purity``, the share of the kept samples that belong to their label; ``rise``, the largest increase
    of the logarithm of the determinant in a concentration step (0 if there was none).
    """
    sample: Sample = cell.shared()
    found = MinCovDetTied(support_fraction, n_steps, generator=cell.seeds.generator("noise", "mcd"))
    found.fit(sample.features, sample.labels)
    layer = gaussian_classifier(found.means_, found.precision_)
    log_dets = torch.tensor(found.log_dets_, dtype=torch.float64)
    return Outcome(
        {
            "error": exact_error(layer.weight[1] - layer.weight[0], layer.bias[1] - layer.bias[0], sample.means),
            "shift": float((found.means_ - sample.means).norm(dim=1).mean()),
            "purity": float(sample.belongs[found.support_].double().mean()),
            "rise": max([0.0, *log_dets.diff().tolist()]),
        }
    )


def exact_error(w: Tensor, b: Tensor, means: Tensor) -> float:
    """Share of errors of "class 1 where w x + b > 0" on equal parts of N(means[0], I) and N(means[1], I)."""
    score = ((means @ w + b) / w.norm()).tolist()
    return (_normal_below(score[0]) + _normal_below(-score[1])) / 2


def _normal_below(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2
