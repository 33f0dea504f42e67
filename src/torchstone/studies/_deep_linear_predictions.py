"""What is said in advance of a deep linear network: path, limit and final rate, by the theory and by its rivals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchstone.dynamics.flow import integrate
from torchstone.studies._deep_linear_runs import Problems, Runs

__all__ = ["Prediction", "decoupled", "lazy", "minimum", "theory"]


class Prediction(NamedTuple):
    """Products at the times of the runs, or None; limits (S, m, n); rates (S,), NaN where nothing is said."""

    path: Tensor | None
    limits: Tensor
    rates: Tensor


def theory(runs: Runs) -> Prediction:
    """The reduced flow, its limits, and the rates near the minimiser."""
    return Prediction(runs.reduced.product(), runs.problems.limits, runs.problems.rates)


def lazy(runs: Runs) -> Prediction:
    """The flow with the neural tangent kernel of the start, in closed form.

    For the start s u v^T, with P = u u^T, Q = v v^T, E = W - Z and c = s^{2-2/N}:
    dE/dt = -c (P E + E Q + (N - 2) P E Q). Inside both projections the rate is N c, inside one of them c, outside 0.
    """
    problems = runs.problems
    P = problems.u.unsqueeze(2) * problems.u.unsqueeze(1)
    Q = problems.v.unsqueeze(2) * problems.v.unsqueeze(1)
    error = problems.s[:, None, None] * problems.u.unsqueeze(2) * problems.v.unsqueeze(1) - problems.Z
    both = P @ error @ Q
    one = P @ error + error @ Q - 2 * both
    rest = error - one - both
    rates = problems.s ** (2 - 2 / problems.depth)
    slow, fast = ((-factor * rates * runs.t).exp()[..., None, None] for factor in (1, problems.depth))
    return Prediction(problems.Z + fast * both + slow * one + rest, problems.Z + rest, rates)


def decoupled(runs: Runs) -> Prediction:
    """Each singular mode of Z for itself, as if the start were aligned: dw/dt = N |w|^{2-2/N} (s_i - w) (Saxe et al.).

    Mode i begins with its share u_i^T W v_i of the start.
    """
    problems = runs.problems
    U, s, Vh = torch.linalg.svd(problems.Z, full_matrices=False)
    power = 2 - 2 / problems.depth
    share = (U.mT @ problems.u.unsqueeze(2)).squeeze(2) * (Vh @ problems.v.unsqueeze(2)).squeeze(2)
    first = problems.s.unsqueeze(1) * share
    path, _ = integrate(lambda w: problems.depth * w.abs() ** power * (s - w), first, runs.t, rtol=1e-6)
    limit = torch.where(first > 0, s, 0.0)
    rates = torch.where(limit > 0, problems.depth * s**power, torch.inf).amin(1)
    rates = torch.where(rates.isfinite(), rates, torch.nan)
    return Prediction((U * path.unsqueeze(-2)) @ Vh, (U * limit.unsqueeze(1)) @ Vh, rates)


def minimum(runs: Runs) -> Prediction:
    """Without theory: every run ends in the global minimiser."""
    problems: Problems = runs.problems
    U, s, Vh = torch.linalg.svd(problems.Z, full_matrices=False)
    limits = s[:, :1, None] * U[:, :, :1] * Vh[:, :1]
    return Prediction(None, limits, torch.full_like(problems.s, torch.nan))
