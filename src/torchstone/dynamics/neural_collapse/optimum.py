r"""Global minimisers of unconstrained-features models, in closed form.

At a minimiser all M = L + 1 factors share their singular vectors, so the problem falls apart into one scalar problem
for each direction of the K-dimensional space of classes: the target has singular value sqrt(n) there, the product
sqrt(n) x. With lambda_l a_l^2 = t equal over the factors and

    q = K (n prod_l lambda_l)^(1/M),      a direction costs (1/K) [(x - 1)^2 / 2 + (M/2) q x^(2/M)],

its stationary points solve 1 - x = q x^(2/M - 1). Two factors: x = 1 - q, a soft threshold. More: the largest root, a
minimum as long as it exists, a global one only for x > (M - 2) / (M - 1); past that, zero is better.

The bias acts in one direction alone, that of the mean over classes. It decides the frame: with no bias that direction
is like the others, an orthogonal frame; a bias that is free or cheap takes it over, and a simplex ETF remains.

Source: Zhou, Li, Ding, You, Qu, Zhu, *On the Optimization Landscape of Neural Collapse under MSE Loss*, ICML 2022
(their sqrt(K N lambda_W lambda_H) is q); Tirer, Bruna, *Extended Unconstrained Features Model for
Exploring Deep Neural Collapse*, ICML 2022.

Deviations: the papers state two and three factors; the same argument gives any number, and the values of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from torchstone._checks import check_float, check_int
from torchstone.dynamics.neural_collapse.etf import centred_basis, random_basis
from torchstone.dynamics.neural_collapse.ufm import UnconstrainedFeatureModel

__all__ = [
    "UFMOptimum",
    "collapse_threshold",
    "extended_ufm_optimum",
    "origin_curvature",
    "stationary_x",
    "ufm_optimum",
]


@dataclass(frozen=True)
class UFMOptimum:
    """What every global minimiser of an unconstrained-features model has in common.

    Attributes:
        num_classes: K.
        per_class: n.
        lambdas: of the factors, from the last weight down to the features.
        q: K (n prod lambda)^(1/M), the strength of regularisation; for two factors tau and c of the papers.
        threshold: the q from which on zero is the minimiser.
        kind: ``"collapse"`` or ``"zero"``.
        frame: of class means and last layer: ``"etf"``, ``"orthogonal"``, ``"mixed"`` (a part of the common mean is
            left), or ``"none"`` where all is zero.
        x: share of the target that the product keeps, in the K - 1 directions between classes.
        mean_x: the same in the direction of the mean over classes.
        bias: value of each entry of b; 0 without one.
        loss: f*.
    """

    num_classes: int
    per_class: int
    lambdas: tuple[float, ...]
    q: float
    threshold: float
    kind: Literal["collapse", "zero"]
    frame: Literal["etf", "orthogonal", "mixed", "none"]
    x: float
    mean_x: float
    bias: float
    loss: float

    @property
    def singular_values(self) -> tuple[float, ...]:
        """Of each factor, in the order of ``lambdas``, in the directions between classes."""
        return self._singular_values(self.x)

    @property
    def mean_singular_values(self) -> tuple[float, ...]:
        """The same, in the direction of the mean over classes."""
        return self._singular_values(self.mean_x)

    def _singular_values(self, x: float) -> tuple[float, ...]:
        common = self.q / self.num_classes * x ** (2 / len(self.lambdas))
        return tuple(math.sqrt(common / decay) for decay in self.lambdas)

    def model(
        self,
        dim: int,
        *,
        nonlinearity: Literal["relu"] | None = None,
        drop: int = 0,
        generator: torch.Generator | None = None,
    ) -> UnconstrainedFeatureModel:
        """A model, in float64, whose parameters are a minimiser; or a critical point that is none.

        It has a bias if the optimum has.

        Args:
            dim: width d; at least K, or K - 1 for a simplex.
            nonlinearity: that of the model. With ``"relu"`` the frame must be orthogonal, and there can be no random
                rotation: its features are the axes, which no ReLU changes.
            drop: how many of the K - 1 directions between classes to leave out: a saddle for ``drop`` > 0.
            generator: source of random rotations; without it features lie along the axes.

        Raises:
            ValueError: if ``dim`` is too small, ``drop`` too large, or a ReLU would change the features.

        Example:
            >>> optimum = ufm_optimum(4, 10, 5e-3, 8e-3, 0.05)
            >>> model = optimum.model(6)
            >>> abs(float(model.loss([5e-3, 8e-3], 0.05).detach()) - optimum.loss) < 1e-15
            True
        """
        k, n = self.num_classes, self.per_class
        check_int("drop", drop, 0, k - 1)
        if nonlinearity and (generator is not None or self.frame not in ("orthogonal", "none") or drop):
            raise ValueError("with a nonlinearity only an orthogonal frame along the axes is known to be optimal")
        directions = torch.cat([centred_basis(k), torch.full((k, 1), k**-0.5, dtype=torch.float64)], 1)
        used = k if self.mean_x else k - 1
        if check_int("dim", dim, 1) < used:
            raise ValueError(f"dim must be >= {used} for this optimum of {k} classes, but is {dim}")
        directions = directions[:, :used]
        if generator is None:
            along = torch.zeros(dim, used, dtype=torch.float64)
            along[: min(dim, k)] = directions if dim >= k else torch.eye(used, dtype=torch.float64)
            bases = [along] * (len(self.lambdas) - 1)
        else:
            bases = [random_basis(dim, used, generator=generator).cpu() for _ in self.lambdas[1:]]
        sizes = torch.tensor(self.singular_values, dtype=torch.float64)[:, None].repeat(1, used)
        sizes[:, :drop] = 0
        if used == k:
            sizes[:, -1] = torch.tensor(self.mean_singular_values, dtype=torch.float64)
        model = UnconstrainedFeatureModel(
            k,
            n,
            dim,
            len(self.lambdas) - 1,
            nonlinearity,
            bool(self.bias),
            generator=torch.Generator(),  # the start is overwritten, and must not use up torch's own numbers
            dtype=torch.float64,
        )
        left = [directions, *bases]
        with torch.no_grad():
            for place, weight in enumerate(model.factors()[:-1]):
                weight.copy_((left[place] * sizes[place]) @ left[place + 1].T)
            means = (directions * sizes[-1]) @ bases[-1].T / math.sqrt(n)
            model.free.copy_(means.repeat_interleave(n, 0))
            if model.bias is not None:
                model.bias.fill_(self.bias)
        return model


def collapse_threshold(factors: int) -> float:
    """The q from which on zero is the global minimiser: ((M-2)/(M-1))^(1-2/M) / (M-1), and 1 for two factors.

    Example:
        >>> collapse_threshold(2), round(collapse_threshold(3), 5)
        (1.0, 0.39685)
    """
    m = check_int("factors", factors, 2)
    return ((m - 2) / (m - 1)) ** (1 - 2 / m) / (m - 1)


def stationary_x(q: float, factors: int) -> float:
    """The largest root of 1 - x = q x^(2/M - 1): what a minimum, global or local, keeps of the target. NaN if none.

    Example:
        >>> stationary_x(0.25, 2), round(stationary_x(0.39685, 3), 3), stationary_x(0.48, 3)
        (0.75, 0.5, nan)
    """
    check_float("q", q, 0)
    m = check_int("factors", factors, 2)
    power = 1 - 2 / m
    low, high = power / (1 + power), 1.0  # (1 - x) x^power rises up to low, and falls from there to 0 at 1
    if q > (1 - low) * low**power or (m == 2 and q >= 1):
        return math.nan
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if (1 - middle) * middle**power >= q else (low, middle)
    return low if power else 1 - q


def ufm_optimum(
    num_classes: int, per_class: int, lambda_w: float, lambda_h: float, lambda_b: float | None = None
) -> UFMOptimum:
    """Global minimisers of the plain model W H + b 1^T, under any regularisation.

    With tau = K sqrt(n lambda_W lambda_H) < 1 class means and classifier are aligned, features collapse, and
    W W^T = sqrt(n lambda_H / lambda_W) [(1 - tau)(I - J/K) + s J/K], b = beta 1:

    * lambda_b <= tau / (1 - tau): s = 0, a simplex ETF; beta = 1 / (K (1 + lambda_b));
    * lambda_b above: s = 1 - tau - tau / lambda_b, a part of the common mean is left; beta = tau / (K lambda_b);
    * no bias: s = 1 - tau, an orthogonal frame.

    With tau >= 1, W = H = 0. In the result tau is ``q``, s is ``mean_x``, beta is ``bias``.

    Args:
        num_classes: K.
        per_class: n.
        lambda_w: of the last layer.
        lambda_h: of the features.
        lambda_b: of the bias; 0 leaves it free, ``None`` (or infinity) is a model without one.

    Shapes:
        numbers only; ``.model(dim)`` builds a minimiser.

    Cost:
        O(1).

    Raises:
        ValueError: unless lambda_w, lambda_h > 0 and lambda_b >= 0.

    Source:
        Zhou et al., ICML 2022; Tirer, Bruna, ICML 2022.

    Example:
        >>> [round(ufm_optimum(4, 10, 0.005, 0.008, decay).loss, 7) for decay in (0.0, 0.05, 0.5, 5.0, None)]
        [0.0576, 0.0635524, 0.0752, 0.07664, 0.0768]
    """
    k = check_int("num_classes", num_classes, 2)
    n = check_int("per_class", per_class, 1)
    lambdas = _check_lambdas([lambda_w, lambda_h])
    free = math.inf if lambda_b is None else check_float("lambda_b", lambda_b, 0)
    tau = _q(k, n, lambdas)
    x = max(1 - tau, 0.0)
    beta = 1 / (k * (1 + free))
    mean_x = max(1 - k * beta - tau, 0.0)
    if mean_x:
        mean_x, beta = 1 - tau - tau / free, tau / (k * free)
    loss = (k - 1) / k * _direction_loss(x, tau, 2) + _direction_loss(mean_x + k * beta, 0.0, 2) / k + tau * mean_x / k
    if beta:
        loss += free * k * beta**2 / 2
    frame = "none" if not x else "etf" if not mean_x else "mixed" if beta else "orthogonal"
    return UFMOptimum(k, n, lambdas, tau, 1.0, "collapse" if x else "zero", frame, x, mean_x, beta, loss)


def extended_ufm_optimum(num_classes: int, per_class: int, lambdas: Sequence[float], bias: bool = False) -> UFMOptimum:
    """Global minimisers of W_L ... W_1 H, any number of linear factors, without a bias or with a free one.

    With q = K (n prod lambda)^(1/M) for M = L + 1 factors, x is the largest root of 1 - x = q x^(2/M - 1); the
    minimiser is zero unless x > (M - 2) / (M - 1), and

        f* = (x - 1)^2 / 2 + (M/2) q x^(2/M),      times (K - 1) / K with a bias.

    Without a bias features and weights of every layer are orthogonal frames, with a free one simplex ETFs. A model with
    ReLUs and no bias attains f* too, for an orthogonal frame has non-negative versions; that nothing lies below it is
    proven for linear models alone.

    Args:
        num_classes: K.
        per_class: n.
        lambdas: from the last weight down to the features: (lambda_2, lambda_1, lambda_0) of the papers.
        bias: whether the model has one, without weight decay.

    Shapes:
        numbers only; ``.model(dim)`` builds a minimiser.

    Cost:
        O(M), and a bisection.

    Raises:
        ValueError: unless there are at least two lambdas, all > 0.

    Source:
        Tirer, Bruna, ICML 2022.

    Example:
        >>> optimum = extended_ufm_optimum(4, 10, [5e-3, 5e-3, 5e-3])
        >>> optimum.kind, optimum.frame, round(optimum.q, 4), round(optimum.x, 4)
        ('collapse', 'orthogonal', 0.0431, 0.9563)
        >>> extended_ufm_optimum(4, 10, [0.05, 0.05, 0.05]).kind  # a weight decay too large: nothing is learnt
        'zero'
    """
    k = check_int("num_classes", num_classes, 2)
    n = check_int("per_class", per_class, 1)
    decays = _check_lambdas(lambdas)
    m = len(decays)
    q, threshold = _q(k, n, decays), collapse_threshold(m)
    x = stationary_x(q, m) if q < threshold else 0.0
    loss = _direction_loss(x, q, m) * ((k - 1) / k if bias else 1)
    frame = "none" if not x else "etf" if bias else "orthogonal"
    kind = "collapse" if x else "zero"
    return UFMOptimum(
        k, n, decays, q, threshold, kind, frame, x, mean_x=0.0 if bias else x, bias=1 / k if bias else 0.0, loss=loss
    )


def origin_curvature(num_classes: int, per_class: int, lambda_w: float, lambda_h: float) -> float:
    """Smallest eigenvalue of the plain model's Hessian at zero, with the best bias there or without one.

    (lambda_W + lambda_H)/2 - sqrt(((lambda_W - lambda_H)/2)^2 + 1/(K^2 n)): negative if and only if tau < 1. Where
    d > K it is an eigenvalue too at every critical point that lacks a direction between classes.

    Example:
        >>> round(origin_curvature(4, 25, 0.01, 0.01), 6)  # lambda - 1 / (K sqrt(n))
        -0.04
    """
    k, n = check_int("num_classes", num_classes, 2), check_int("per_class", per_class, 1)
    w, h = _check_lambdas([lambda_w, lambda_h])
    return (w + h) / 2 - math.hypot((w - h) / 2, 1 / (k * math.sqrt(n)))


def _q(k: int, n: int, lambdas: Sequence[float]) -> float:
    return k * math.exp((math.log(n) + sum(map(math.log, lambdas))) / len(lambdas))


def _direction_loss(x: float, q: float, m: int) -> float:
    return (x - 1) ** 2 / 2 + m / 2 * q * x ** (2 / m)


def _check_lambdas(lambdas: Sequence[float]) -> tuple[float, ...]:
    if len(lambdas) < 2:
        raise ValueError(f"lambdas must hold at least 2 numbers (last weight, features), but hold {len(lambdas)}")
    return tuple(check_float("lambda", decay, 0, math.inf, open_low=True, open_high=True) for decay in lambdas)
