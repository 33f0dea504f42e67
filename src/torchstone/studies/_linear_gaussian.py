"""Linear regression with privileged features: the case of TRAM in which everything has a closed form.

``y = x'w + a'v + noise`` with standard normal x (d numbers) and a (m numbers), noise of variance sigma^2, ``|v| =
sigma_a``. Only x is known at test time. The excess risk of a prediction x'b is |b - w|^2. Over n samples least squares
without a has ``(sigma^2 + sigma_a^2) d / (n - d - 1)``: all that a does is noise to it. Least squares on x and a, with
a's mean, 0, put in for a, has ``sigma^2 d / (n - d - m - 1)``. TRAM's head without privileged information sees the one
feature x'b of that solution and fits its scale anew: it pays the noise once, not d times, ``sigma_a^2 / n`` more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell

__all__ = ["Drawn", "LinearSetting", "Risk", "excess_risks", "expected_risks"]


@dataclass(frozen=True)
class LinearSetting:
    """Sizes of the experiment.

    Args:
        cases: case -> (sigma_a, d).
        n: samples of one data set.
        m: privileged features.
        sigma: standard deviation of the noise that nothing explains.
        repetitions: data sets in one replicate, over which risks are averaged.
    """

    cases: Mapping[str, tuple[float, int]]
    n: int = 200
    m: int = 5
    sigma: float = 0.5
    repetitions: int = 500


def expected_risks(*, d: int, n: int, m: int, sigma: float, sigma_a: float) -> dict[str, float]:
    """The closed forms, by arm; TRAM's to first order in 1 / n."""
    with_pi = sigma**2 * d / (n - d - m - 1)
    return {
        "no-pi": (sigma**2 + sigma_a**2) * d / (n - d - 1),
        "marginal": with_pi,
        "tram": with_pi + sigma_a**2 / n,
    }


def excess_risks(
    *, d: int, n: int, m: int, sigma: float, sigma_a: float, repetitions: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Excess risk of each arm in each of ``repetitions`` data sets, (repetitions,) float64; |w| = 1."""
    z = torch.randn(repetitions, n, d + m, generator=generator, dtype=torch.float64)
    x = z[..., :d]
    noise = sigma * torch.randn(repetitions, n, generator=generator, dtype=torch.float64)
    # Nothing depends on the directions of w and v: they are those of the first coordinates.
    y = x[..., 0] + sigma_a * z[..., d] + noise
    without = _least_squares(x, y)
    with_pi = _least_squares(z, y)[:, :d]
    feature = (x @ with_pi.unsqueeze(2)).squeeze(2)
    scale = (feature * y).sum(1) / feature.square().sum(1)
    found = {"no-pi": without, "marginal": with_pi, "tram": scale.unsqueeze(1) * with_pi}
    truth = torch.zeros(d, dtype=torch.float64)
    truth[0] = 1
    return {name: (b - truth).square().sum(1) for name, b in found.items()}


@dataclass(frozen=True)
class Drawn:
    """``Experiment.shared``: the mean risks of a cell, and what the closed forms say."""

    def __call__(self, cell: Cell) -> tuple[dict[str, float], dict[str, float]]:
        """Draw the data sets of the cell and solve them."""
        setting: LinearSetting = cell.setting
        sigma_a, d = setting.cases[cell.case]
        sizes = {"d": d, "n": setting.n, "m": setting.m, "sigma": setting.sigma, "sigma_a": sigma_a}
        generator = cell.seeds.generator("split", cell.case)
        risks = excess_risks(**sizes, repetitions=setting.repetitions, generator=generator)
        return {name: float(values.mean()) for name, values in risks.items()}, expected_risks(**sizes)


@dataclass(frozen=True)
class Risk:
    """``run`` of an arm: its mean excess risk, and how far (relatively) that is from the closed form."""

    name: str

    def __call__(self, cell: Cell) -> Outcome:
        """The arm's part of what the cell's arms share."""
        found, expected = cell.shared()
        risk = found[self.name]
        return Outcome({"risk": risk, "deviation": risk / expected[self.name] - 1})


def _least_squares(x: Tensor, y: Tensor) -> Tensor:
    gram, moment = x.mT @ x, x.mT @ y.unsqueeze(2)
    return torch.cholesky_solve(moment, torch.linalg.cholesky(gram)).squeeze(2)
