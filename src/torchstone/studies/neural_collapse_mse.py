"""Study of neural collapse under MSE: does descent always end there, do networks, and what do its by-products save?

Zhou, Li, Ding, You, Qu, Zhu, *On the Optimization Landscape of Neural Collapse under MSE Loss: Global Optimality with
Unconstrained Features*, ICML 2022, claim that in the model where a network's last features are free, regularised MSE
has no minima but the collapsed ones, and strict saddles for the rest, so that descent from anywhere ends in collapse;
that networks collapse too while they train; that the last layer may therefore be fixed to a simplex, with as many
features as classes; and that a rescaled MSE helps where there are many classes.

``landscape`` sends plain gradient descent from random starts, small and large, over a grid of regularisation that
crosses both phase boundaries (tau = 1, and lambda_b = tau / (1 - tau)), and compares where it ends with the closed
form. The arm ``too-narrow`` has fewer features than a simplex needs and must stay above: the measure can fail.
``critical-points`` checks the theorem itself, at every point of the grid: that the closed form is a minimum, that what
lacks a direction is a strict saddle, that the origin is one exactly for tau < 1.

``networks`` trains perceptrons with BatchNorm on digits and looks six times at the collapse of the training features.
All arms have a tuned learning rate. ``classes`` measures what the rescaled loss gains with 10, 30 and 100 classes, on
Gaussians.

How the design was fixed. Momentum, weight decay, batch size and the schedule are the paper's; alpha and M are two of
its values. K, n and d of ``landscape``, and the perceptron of ``networks``, were laid down before any run, in the
knowledge of one early run on digits, with one seed and without tuning, in which NC1 fell under MSE, with a fixed
simplex, and under cross-entropy. The other sizes were chosen by cost alone: pilots, on another seed, showed seconds and
steps. Some of the descents of ``landscape`` were looked at, on another seed, while they were programmed.

Departures from the paper: networks and data are small, so that anybody can run it; learning rates are tuned. At scale
``paper`` the networks are ResNet-18s on CIFAR-10, not augmented, at the paper's rate; that takes a GPU. A data set of
100 kinds of photographs is not among ours, so the claim about many classes rests on Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torchstone.bench.claims import Higher, Lower, Ratio, Within
from torchstone.bench.outcome import Row
from torchstone.bench.space import LogUniform
from torchstone.bench.study import Arm, Experiment, Study
from torchstone.studies._data import data_identity
from torchstone.studies._nc_landscape import STARTS, Landscape, run_descent, run_minima, run_origin, run_saddles
from torchstone.studies._nc_networks import (
    Gaussians,
    Images,
    Training,
    draw_gaussians,
    draw_images,
    run_networks,
    run_one,
)

__all__ = ["STUDY"]

LR = LogUniform(0.005, 0.5)
CLASSES = {"K10": 10, "K30": 30, "K100": 100}


def _landscape() -> Experiment:
    return Experiment(
        name="landscape",
        arms={
            "descent": Arm(run_descent, {"narrower": 0}, role="method", about="gradient descent, d = K + 2"),
            "too-narrow": Arm(
                run_descent,
                {"narrower": 4},
                role="control",
                cases=("unit",),
                about="gradient descent, d = K - 2: no room for a simplex",
            ),
        },
        cases=tuple(STARTS),
        claims=(
            Within(
                "reached",
                "descent",
                1.0,
                primary=True,
                text="gradient descent ends at the global minimum from every random start, small or large, at every "
                "regularisation",
            ),
            Within(
                "phase", "descent", 1.0, text="it ends with the frame that the phase diagram over tau and lambda_b says"
            ),
            Lower("frame", "descent", 0.01, text="and with the W W^T of the closed form, up to 0.01"),
            Higher("lowest", "descent", -1e-12, always=True, text="nothing lies below the closed form f*"),
            Higher(
                "blocked",
                "too-narrow",
                1 - 1e-9,
                cases=("unit",),
                always=True,
                text="with d = K - 2 f stays above f* by what a missing direction costs, (1 - tau)^2 / 2K [unit]",
            ),
            Higher("reached", "descent", "too-narrow", cases=("unit",)),
        ),
        replicates=(6, 12),
        settings={"smoke": Landscape(starts=1, steps=150), "bench": Landscape()},
    )


def _critical_points() -> Experiment:
    return Experiment(
        name="critical-points",
        arms={
            "minimum": Arm(run_minima, role="method", about="the closed form, randomly rotated"),
            "saddle": Arm(run_saddles, about="the closed form without 1 .. K - 1 of its directions"),
            "origin": Arm(run_origin, about="W = H = 0"),
        },
        claims=(
            Lower("loss_error", "minimum", 1e-12, always=True, text="the closed form has the loss f*, up to 1e-12"),
            Lower("gradient", "minimum", 1e-12, always=True, text="its gradient is zero"),
            Higher("curvature", "minimum", -1e-9, always=True, text="its Hessian has no negative eigenvalue"),
            Lower("gradient", "saddle", 1e-12, always=True, text="without some of its directions it is critical still"),
            Lower("curvature", "saddle", 0.0, always=True, text="but a strict saddle"),
            Within("error", "saddle", 0.0, by=1e-9, always=True, text="with the least eigenvalue of the formula"),
            Within("sign", "origin", 1.0, always=True, text="the origin is a strict saddle if and only if tau < 1"),
            Within("error", "origin", 0.0, by=1e-9, always=True, text="with the least eigenvalue of the formula there"),
        ),
        replicates=(6, 6),
        settings={"smoke": Landscape(num_classes=3, per_class=2, dim=4), "bench": Landscape()},
    )


def _net(role: str, about: str, **hyper: Any) -> Arm:
    usual = {"lr": 0.05, "loss": "mse", "alpha": 1.0, "height": 1.0, "smoothing": 0.0, "etf": False, "narrow": False}
    return Arm(run_one, {**usual, **hyper}, {"lr": LR}, role=role, stacked=run_networks, about=about)


MSE = _net("method", "MSE on one-hot labels, all layers learnt")
CE = _net("rival", "cross-entropy", loss="ce")
ALPHA = _net("method", "MSE with alpha = 5, the weight of the true class", alpha=5.0)
HEIGHT = _net("method", "MSE with M = 5, the height of the target", height=5.0)
NETWORKS = {
    "mse": MSE,
    "alpha5": ALPHA,
    "height5": HEIGHT,
    "both5": _net("method", "MSE with alpha = M = 5", alpha=5.0, height=5.0),
    "etf": _net("method", "MSE, the last layer a fixed simplex", etf=True),
    "etf-narrow": _net(
        "method", "MSE, the last layer a fixed simplex, as many features as classes", etf=True, narrow=True
    ),
    "ce": CE,
    "ce-smooth": _net("rival", "cross-entropy, labels smoothed by 0.1", loss="ce", smoothing=0.1),
}
FITTED = Higher("train_accuracy", "mse", 0.99, text="under MSE more than 99 % of the training samples are fitted")


def _networks() -> Experiment:
    bench = Images()
    return Experiment(
        name="networks",
        arms=NETWORKS,
        cases=("digits",),
        premises=(FITTED,),
        claims=_collapse_claims(10),
        settings={
            "smoke": replace(bench, train=200, val=50, test=100, training=Training(epochs=2)),
            "bench": bench,
        },
        shared=draw_images,
        data=data_identity("digits"),
    )


def _collapse_claims(classes: int) -> tuple[Any, ...]:
    return (
        Higher("nc1_fall", "mse", text="NC1 falls while a network trains under MSE"),
        Higher("nc1_fall", "etf-narrow", text="and with a fixed simplex and as many features as classes"),
        Higher("nc1_order", "mse", 0.5, text="it falls steadily: Kendall's tau of NC1 against time is beyond 1/2"),
        Higher("nc2_fall", "mse", text="the last layer comes closer to a simplex (NC2)"),
        Higher("nc3_fall", "mse", text="the last layer and the class means come into line (NC3)"),
        Within(
            "bias_relation",
            "mse",
            1 / math.sqrt(classes),
            by=0.02,
            text=f"under MSE |W mu + b| is 1 / sqrt(K) = {1 / math.sqrt(classes):.3f}, up to 0.02",
        ),
        Lower("bias_relation", "ce", "mse"),
        Higher("accuracy", "etf-narrow", "mse", by=-0.005),
        Higher("accuracy", "etf", "mse", by=-0.005),
        Ratio("parameters", "etf-narrow", "mse", at_most=0.8, always=True),
        Within("accuracy", "mse", "ce", by=0.01),
        Higher("accuracy", "mse", "ce-smooth", by=-0.005),
        Lower("nc1", "both5", "mse"),
        Higher("accuracy", "both5", "mse", by=-0.005),
    )


def _gains(row: Row) -> Mapping[str, float]:
    """How much more the rescaled losses gain with 100 classes than with 10."""
    gain = {
        (arm, case): float(row.value("accuracy", arm, case)) - float(row.value("accuracy", "mse", case))
        for arm in ("alpha5", "height5")
        for case in CLASSES
    }
    return {f"growth_{arm}": gain[arm, "K100"] - gain[arm, "K10"] for arm in ("alpha5", "height5")}


def _classes() -> Experiment:
    bench = Gaussians(CLASSES)
    return Experiment(
        name="classes",
        arms={"mse": MSE, "alpha5": ALPHA, "height5": HEIGHT, "ce": CE},
        cases=tuple(CLASSES),
        tune_on="K100",
        claims=(
            Higher("accuracy", "height5", "mse", cases=("K100",)),
            Higher("accuracy", "alpha5", "mse", cases=("K100",)),
            Higher("growth_height5", "", text="height5 gains more over mse with 100 classes than with 10"),
            Higher("growth_alpha5", "", text="alpha5 gains more over mse with 100 classes than with 10"),
            Lower("nc1", "height5", "mse", cases=("K100",)),
            Higher("accuracy", "height5", "ce", by=-0.01, cases=("K100",)),
        ),
        derive=_gains,
        settings={
            "smoke": replace(bench, classes={"K10": 3, "K30": 4, "K100": 6}, training=Training(epochs=1)),
            "bench": bench,
        },
        shared=draw_gaussians,
    )


def _cifar10() -> Experiment:
    paper = Images("cifar10", 49_000, 1_000, 0, "resnet18", dim=512, training=Training(epochs=200))
    fixed = {name: replace(arm, space={}) for name, arm in NETWORKS.items()}
    return Experiment(
        name="cifar10",
        arms=fixed,
        cases=("cifar10",),
        premises=(FITTED,),
        claims=_collapse_claims(10),
        replicates=(6, 6),
        settings={"paper": paper},
        shared=draw_images,
        needs=("cifar10", "gpu"),
        data=data_identity("cifar10"),
    )


STUDY = Study(
    "neural-collapse-mse",
    (_landscape(), _critical_points(), _networks(), _classes(), _cifar10()),
    seed=0,
    about="Does gradient descent on regularised MSE always end in neural collapse, do networks collapse too, and what "
    "is a fixed simplex as last layer, or a rescaled loss, good for?",
)
