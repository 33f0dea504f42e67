"""Study of deep linear networks with a one-neuron layer: do they end where, and as fast as, theory says?

Chen, Lin, Zhang, *On Non-local Convergence Analysis of Deep Linear Networks*, ICML 2022, prove that gradient flow from
any balanced start ends in the global minimiser, in a saddle or in the origin, decided by how the start is aligned with
the target, and that it gets there in stages with known rates. Theorems need no statistics: one counterexample refutes.

``problems``: targets, widths, starts and the place of the one-neuron layer at random, three in ten starts made for a
saddle or the origin; the whole network is integrated, and compared with what was predicted from its start: limit, path,
last rate, and the quantities that the flow must keep. Rivals predict the same runs: ``lazy``, the flow with the neural
tangent kernel of the start; ``decoupled``, every singular mode for itself, which is exact for aligned starts only; and
``minimum``, which always says the global minimiser. A run counts as converged when it ends within 2 % of s_1 of a
stationary point that it is not leaving, and the reduced flow has had the time to arrive; the share of those that did
not is reported. Runs last until the reduced flow is within 1e-6 of its limit, special ones at most 12 units of time:
rounding lets a network escape from a saddle in the end.

``data``: the same with real data, inputs made white: ten features and one output of ``diabetes``; and ``digits``, from
one of ten classes to its mean image.

``stages``: how the time to leave the origin grows as the start shrinks.

``outside``: what is left where the theorem says nothing: layers out of balance by a dose, wide layers instead of one
neuron, gradient descent with small and large steps, noisy gradients.

How the design was fixed. Sizes and claims were laid down before any run at bench scale; pilots at small sizes, on
another seed, served to find errors in the code, among them that a run on its slow way past the origin was taken for one
that had ended there, and to count seconds. Single runs of the theory's checks were known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchstone.bench.claims import Higher, Lower, Trend, Within
from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Arm, Cell, Experiment, Study
from torchstone.data import load
from torchstone.dynamics import DeepLinear, balance_, rank_one_flow, target_matrix
from torchstone.studies._data import data_identity
from torchstone.studies._deep_linear_predictions import Prediction, decoupled, lazy, minimum, theory
from torchstone.studies._deep_linear_runs import (
    DEPTHS,
    NEAR,
    Problems,
    Runs,
    descent,
    ends,
    fitted_rates,
    follow,
    horizon,
    invariants,
    stack,
    starts,
)
from torchstone.studies._deep_linear_stages import Stages, draw_escapes, run_escape_lazy, run_escape_theory

__all__ = ["STUDY", "Sizes"]

DOSES = {"balanced": 0.0, "gap0.01": 0.01, "gap0.1": 0.1, "gap1": 1.0}
LARGE = 1.5  # step of `gd-large`, in units of 1 / the largest curvature; 2 is the edge of stability


@dataclass(frozen=True)
class Sizes:
    """Problems in a stack, their largest width, times recorded, and the longest run in units of s_1^{-(2-2/N)}."""

    problems: int = 16
    width: int = 6
    times: int = 20
    cap: float = 60.0
    special_cap: float = 12.0


# ---------------------------------------------------------------- problems


def _draw(cell: Cell) -> Runs:
    """``shared``: random problems of one depth, integrated."""
    sizes: Sizes = cell.setting
    depth = DEPTHS[cell.case]
    generator = cell.seeds.generator("split", cell.case)
    chance = cell.seeds.numpy("init", cell.case)
    Zs, nets, special = [], [], []
    for _ in range(sizes.problems):
        dims = chance.integers(1, sizes.width + 1, depth + 1).tolist()
        dims[chance.integers(depth + 1)] = 1
        Z = torch.randn(dims[-1], dims[0], generator=generator, dtype=torch.float64) * chance.uniform(0.5, 2)
        U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
        kind = chance.choice(["generic", "saddle", "origin"], p=[0.7, 0.15, 0.15])
        if kind == "generic" or (kind == "saddle" and len(s) < 2):
            u, v = (F.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0) for d in Z.shape)
            share, made = chance.choice([0.5, 0.05, 0.005]), False
        else:  # in the space of Z, with a_i + b_i = 0 for the first i, or for all
            a = F.normalize(torch.randn(len(s), generator=generator, dtype=torch.float64), dim=0)
            b = -a
            if kind == "saddle":
                b[1:] = -b[1:]
            u, v, share, made = U @ a, Vh.mT @ b, 0.5, True
        Zs.append(Z)
        nets.append(starts(float(share * s[0]), u, v, dims, generator))
        special.append(made)
    return _followed(stack(Zs, nets, special), sizes)


def _draw_data(cell: Cell) -> Runs:
    """``shared``: the target of half of a real data set, and random balanced starts."""
    sizes: Sizes = cell.setting
    x, y = _real(cell.case)
    rows = torch.randperm(len(x), generator=cell.seeds.generator("split"))[: len(x) // 2]
    x, y = x[rows], y[rows] - y[rows].mean(0)
    Z = target_matrix(x, y, whiten=True).Z
    generator = cell.seeds.generator("init", cell.case)
    top = float(torch.linalg.matrix_norm(Z, 2))
    nets = []
    for place in range(sizes.problems):
        u, v = (F.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0) for d in Z.shape)
        nets.append(starts((0.5, 0.05, 0.005)[place % 3] * top, u, v, [Z.shape[1], 3, 1, Z.shape[0]], generator))
    return _followed(stack([Z] * len(nets), nets, [False] * len(nets)), sizes)


def _real(name: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets: ten features and one number; or one of ten classes, and the image to be made of it."""
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        x, y = load_diabetes(return_X_y=True)
        return torch.as_tensor(x).double(), torch.as_tensor(y).double().unsqueeze(1)
    digits = load("digits")
    return F.one_hot(digits.y).double(), digits.x.flatten(1).double()


def _followed(problems: Problems, sizes: Sizes) -> Runs:
    longest = 1.05 * horizon(problems, sizes.cap, sizes.special_cap)
    t = torch.linspace(1 / sizes.times, 1, sizes.times, dtype=torch.float64)
    return follow(problems, t[:, None] * longest)


def _scored(runs: Runs, prediction: Prediction) -> dict[str, float]:
    """How right a prediction is, over the runs of a stack."""
    problems = runs.problems
    converged = ends(runs)
    right = (runs.W[-1] - prediction.limits).flatten(1).norm(dim=1) < NEAR * problems.top
    rates = fitted_rates(runs)
    path = torch.nan
    if prediction.path is not None:
        path = float(((runs.W - prediction.path).flatten(2).norm(dim=2) / problems.top).mean())
    return {
        "converged": float(converged.double().mean()),
        "limit_right": float(right[converged].double().mean()),  # NaN if no run converged
        "rate_error": float((prediction.rates / rates - 1).abs().nanmedian()),
        "path_error": path,
    }


def run_theory(cell: Cell) -> Outcome:
    """The paper's predictions, and how well the flow keeps what it must."""
    runs: Runs = cell.shared()
    return Outcome({**_scored(runs, theory(runs)), **invariants(runs)}, cost={"evaluations": runs.evaluations})


def run_lazy(cell: Cell) -> Outcome:
    """The flow with the kernel of the start."""
    runs: Runs = cell.shared()
    return Outcome(_scored(runs, lazy(runs)))


def run_decoupled(cell: Cell) -> Outcome:
    """Every mode for itself."""
    runs: Runs = cell.shared()
    return Outcome(_scored(runs, decoupled(runs)))


def run_minimum(cell: Cell) -> Outcome:
    """Always the global minimiser."""
    runs: Runs = cell.shared()
    return Outcome(_scored(runs, minimum(runs)))


PREDICTIONS = {
    "theory": Arm(run_theory, role="method", about="the paper: limit, reduced flow and rates from the start"),
    "lazy": Arm(run_lazy, role="rival", about="the flow with the neural tangent kernel of the start"),
    "decoupled": Arm(run_decoupled, role="rival", about="every singular mode for itself, as if the start were aligned"),
    "minimum": Arm(run_minimum, role="heuristic", about="always the global minimiser"),
}
PREMISE = Higher("converged", "theory", 0.5, text="more than half of the runs converge in the time given")


def _right(primary: bool = False) -> Within:
    return Within(
        "limit_right", "theory", 1.0, always=True, primary=primary, text="every run that converges ends where predicted"
    )


def _problems() -> Experiment:
    return Experiment(
        name="problems",
        arms=PREDICTIONS,
        cases=tuple(DEPTHS),
        premises=(PREMISE,),
        claims=(
            _right(primary=True),
            Within("balance_drift", "theory", by=1e-8, always=True),
            Within("ratio_drift", "theory", by=1e-5, always=True),
            Within("reduced_gap", "theory", by=1e-5, always=True),
            Lower("q_fall", "theory", 1e-6, always=True, text="q never falls, up to 1e-6 s_1"),
            Within("rate_error", "theory", by=0.02),
            Lower("rate_error", "theory", "lazy"),
            Lower("rate_error", "theory", "decoupled"),
            Lower("path_error", "theory", "lazy"),
            Lower("path_error", "theory", "decoupled"),
            Higher("limit_right", "theory", "minimum"),
        ),
        settings={"smoke": Sizes(problems=2, width=3, times=2, cap=0.5, special_cap=0.5), "bench": Sizes()},
        shared=_draw,
    )


def _data() -> Experiment:
    return Experiment(
        name="data",
        arms={name: PREDICTIONS[name] for name in ("theory", "lazy", "decoupled")},
        cases=("diabetes", "digits"),
        premises=(PREMISE,),
        claims=(
            _right(),
            Within("reduced_gap", "theory", by=1e-5, always=True),
            Within("rate_error", "theory", by=0.02),
            Lower("path_error", "theory", "lazy"),
            Lower("path_error", "theory", "decoupled"),
        ),
        settings={"smoke": Sizes(problems=2, times=2, cap=0.5), "bench": Sizes(problems=9)},
        shared=_draw_data,
        data=data_identity("digits"),
    )


# ---------------------------------------------------------------- stages


def _stages() -> Experiment:
    deep = ("N3", "N4", "N6")
    return Experiment(
        name="stages",
        arms={
            "theory": Arm(run_escape_theory, role="method", about="t ~ s_0^{-(1-2/N)}, or log(1/s_0) / (2 s_1)"),
            "lazy": Arm(run_escape_lazy, role="rival", cases=deep, about="t ~ s_0^{-(2-2/N)}"),
        },
        cases=tuple(DEPTHS),
        premises=(Higher("escaped", "theory", 0.9),),
        claims=(
            Within("exponent_error", "theory", by=0.03),
            Lower("exponent_error", "theory", "lazy", cases=deep),
        ),
        settings={"smoke": Stages(1, (10, 20), 4), "bench": Stages()},
        shared=draw_escapes,
    )


# ---------------------------------------------------------------- outside of the theorem


@dataclass(frozen=True)
class Outside:
    """Problems in a stack, times recorded, length of a run in units of s_1^{-(2-2/N)}, and steps of descent.

    ``step`` is in units of 1 / the largest curvature at the minimum, N s_1^{2-2/N}; ``noise`` is the standard deviation
    of each entry of the gradient, in units of s_1.
    """

    problems: int = 12
    times: int = 10
    length: float = 25.0
    step: float = 0.05
    noise: float = 0.3
    depth: int = 4


def run_network(cell: Cell) -> Outcome:
    """A network as the case has it, against what theory says of the leading singular triple of its start."""
    sizes: Outside = cell.setting
    problems = _outside_problems(cell)
    if cell.case in ("gd", "gd-large", "sgd"):
        step = LARGE if cell.case == "gd-large" else sizes.step
        steps = int(sizes.length * sizes.depth / step)
        path, t = descent(
            problems,
            step * problems.unit / sizes.depth,
            steps,
            sizes.times,
            sizes.noise if cell.case == "sgd" else 0.0,
            cell.seeds.generator("noise"),
        )
        if not path.isfinite().all():
            return Outcome(diverged="a weight left the finite numbers")
        said = rank_one_flow(problems.Z, problems.s, problems.u, problems.v, problems.depth, t).product()
    else:
        t = torch.linspace(1 / sizes.times, 1, sizes.times, dtype=torch.float64)[:, None]
        runs = follow(problems, sizes.length * t * problems.unit, rtol=1e-8)
        path, said = runs.W, runs.reduced.product()
    error = (path - said).flatten(2).norm(dim=2) / problems.top
    away = (path[-1] - problems.limits).flatten(1).norm(dim=1) / problems.top
    return Outcome(
        {
            "path_error": float(error.mean()),
            "limit_right": float((away < 0.05).double().mean()),
        }
    )


def _outside_problems(cell: Cell) -> Problems:
    """The same targets and balanced starts for all cases, changed as the case has it."""
    sizes: Outside = cell.setting
    generator = cell.seeds.generator("split")
    chance = cell.seeds.generator("noise", "weights")
    hidden = [3, 1, 3]
    Zs, nets = [], []
    for _ in range(sizes.problems):
        U, V = (torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0] for _ in range(2))
        s = torch.cat([torch.ones(1), 0.1 + 0.6 * torch.rand(3, generator=generator)]).double()
        u, v = (F.normalize(torch.randn(4, generator=generator, dtype=torch.float64), dim=0) for _ in range(2))
        net = starts(0.1, u, v, [4, *hidden, 4], generator)
        draws = [torch.randn(weight.shape, generator=chance, dtype=torch.float64) for weight in net]
        if cell.case == "wide":  # the same shapes but for the one neuron, random and balanced
            net = [0.5 * torch.randn(4, 4, generator=chance, dtype=torch.float64) for _ in net]
            net = [weight.detach() for weight in balance_(DeepLinear.from_weights(net)).weights]
        else:
            dose = DOSES.get(cell.case, 0.0)
            net = [w + dose * draw / w.shape[1] ** 0.5 for w, draw in zip(net, draws, strict=True)]
        Zs.append(U * s @ V.mT)
        nets.append(net)
    return stack(Zs, nets, [False] * len(nets))


def _outside() -> Experiment:
    off = tuple(DOSES)[1:]
    return Experiment(
        name="outside",
        arms={"network": Arm(run_network, role="method", about="a network against what theory says of its start")},
        cases=(*DOSES, "wide", "gd", "gd-large", "sgd"),
        claims=(
            Within("path_error", "network", by=1e-5, cases=("balanced",), always=True),
            Trend("path_error", "network", cases=tuple(DOSES)),
            Higher("limit_right", "network", 0.9, cases=off),
            Lower("limit_right", "network", 0.1, cases=("wide",)),
            Lower("path_error", "network", 0.02, cases=("gd",)),
            Higher("limit_right", "network", 0.9, cases=("gd-large",)),
            Higher("limit_right", "network", 0.9, cases=("sgd",)),
        ),
        settings={"smoke": Outside(problems=2, times=2, length=1.0, step=0.1), "bench": Outside()},
    )


STUDY = Study(
    "deep-linear",
    (_problems(), _data(), _stages(), _outside()),
    seed=0,
    about="Does gradient flow of a deep linear network with a one-neuron layer end where its start says it will, as "
    "fast as predicted, and how much of that is left without balance, without the one neuron, or with steps and noise?",
)
