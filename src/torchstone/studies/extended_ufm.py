"""Study of the extended unconstrained-features model: which frame do features collapse to, and in which layers?

Tirer and Bruna, *Extended Unconstrained Features Model for Exploring Deep Neural Collapse*, ICML 2022, prove it for
models W_L ... W_1 H with free features H under regularised squared error. Without a bias class means and last layer
are an orthogonal frame, with a free one a simplex ETF; with two weights so are the features of both layers; with a
ReLU between them those of the deeper one. They hold that practical networks do the same, the more the deeper.

``descent`` is the models under plain gradient descent, at strengths of regularisation on both sides of the threshold:
nothing ends below the value of the theorems, and what reaches it has their structure. How many runs do is no theorem:
zero is a local minimum as soon as there are two weights, and directions are lost one by one. ``threshold`` starts at
the stationary points themselves: past q = 2^(-4/3) the collapsed one is worse than zero but does not vanish until
q = 0.4725. ``digits`` and ``fashion`` are networks with three hidden layers; rivals are cross entropy, normalised
features and no weight decay. On digits the curves of NC1 in the last two layers are also compared with those of the
models, and with the passing of time alone. ``mnist`` and ``cifar10`` are the paper's protocol on a GPU.

Which frame, and where to look. Features after a ReLU have no negative entries, and uncentred means without negative
entries are nearer to an orthogonal frame than to a simplex whatever they are; centred, the two frames are one. So the
means the last layer sees decide nothing, and a claim says that they do not. Decisive are the rows of the last layer
(the primary claim) and the means before the ReLU, whose signs are free.

How the design was fixed. K, d, strength of weight decay, learning rates and arms are the paper's as far as they are
known, made smaller; the weight decay of the small networks is ten times the paper's, for they train that much shorter.
Claims were laid down before any run at these sizes. Pilots, on other seeds, printed seconds and training accuracy; of
``descent`` also where gradient descent ended with three classes and features of width 6: models with a ReLU often
stayed above f*, upon which the width was set to the paper's 20. It was known beforehand that quasi-Newton descent on
the model with a ReLU reaches the value of the linear one, with means of H_1 off an orthogonal frame.

Departures from the paper: small networks and data; no tuning, one learning rate for all; no weight decay of biases.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torchstone.bench.claims import Claim, Higher, Lower, Trend, Within
from torchstone.bench.study import Arm, Experiment, Study
from torchstone.studies._data import data_identity
from torchstone.studies._extended_ufm_descent import (
    MODELS,
    Descent,
    Edge,
    run_descent,
    run_edge,
    stack_descent,
    stack_edge,
)
from torchstone.studies._extended_ufm_nets import Nets, agreement, draw, run_model, run_net, stack_models, stack_nets
from torchstone.studies._extended_ufm_resnet import Full, known_data, run_resnet

__all__ = ["STUDY"]

LINEAR = ("plain", "linear2", "linear3")
FREE, BIASED = ("no-bias",), ("bias",)


def _descent() -> Experiment:
    def start(about: str, role: str = "method", *, bias: bool = False, init_std: float = 0.2, cases: Any = ()) -> Arm:
        hyper = {"bias": bias, "init_std": init_std}
        return Arm(run_descent, hyper, role=role, cases=cases, about=about, stacked=stack_descent)

    def theorem(metric: str, most: float, text: str) -> tuple[Claim, ...]:
        return tuple(
            Lower(metric, arm, most, cases=LINEAR, always=True, text=f"{text} ({arm}) [{', '.join(LINEAR)}]")
            for arm in ("no-bias", "bias")
        )

    bench = Descent()
    return Experiment(
        name="descent",
        arms={
            "no-bias": start("gradient descent from normal starts of standard deviation 0.2"),
            "bias": start("the same with a free bias", bias=True),
            "small-start": start("no bias, standard deviation 0.01", "ablation", init_std=0.01, cases=LINEAR),
        },
        cases=tuple(MODELS),
        claims=(
            *(
                Higher("lowest", arm, -1e-9, cases=cases, always=True, text=f"no run ends below f* ({arm}) [{where}]")
                for arm, cases, where in (
                    ("no-bias", LINEAR, "linear models"),
                    ("bias", LINEAR, "linear models"),
                    ("no-bias", ("relu2",), "relu2"),
                    ("no-bias", ("relu3",), "relu3"),
                )
            ),
            *theorem("gram", 1e-3, "at f* Gram matrices of means are those of the frame in every layer"),
            *theorem("nc1", 1e-6, "at f* features of every layer are their class means"),
            *theorem("balance", 1e-6, "at f* neighbouring factors are balanced"),
            *theorem("past", 1e-6, "past the threshold runs end at zero"),
            *(
                Within("reached", arm, 1.0, cases=("plain",), always=True, text=f"all runs reach f* ({arm}) [plain]")
                for arm in ("no-bias", "bias", "small-start")
            ),
            *(
                Higher("reached_weak", "no-bias", 0.5, cases=(case,), text=f"weakly regularised runs reach f* [{case}]")
                for case in ("linear2", "linear3", "relu2", "relu3")
            ),
            Trend("missing", "no-bias", cases=LINEAR),
            Higher("zero", "small-start", 0.5, cases=("linear2", "linear3")),
            Lower("frame_last", "no-bias", 1e-3, cases=("relu2",)),
            Higher("frame_first", "no-bias", 0.05, cases=("relu2",)),
            Lower("reached", "bias", 0.5, cases=("relu2", "relu3")),
        ),
        settings={
            "smoke": replace(bench, steps=40),
            "bench": bench,
            "paper": replace(bench, per_class=50, lr=0.1, steps=100_000),
        },
        replicates=(20, 20),
    )


def _threshold() -> Experiment:
    bench = Edge({"q0.39": 0.39, "q0.40": 0.40, "q0.46": 0.46, "q0.48": 0.48})

    def start(about: str, *, collapsed: bool) -> Arm:
        return Arm(run_edge, {"collapsed": collapsed}, role="method", about=about, stacked=stack_edge)

    def ends(arm: str, *cases: str) -> Claim:
        where = f"{arm} ends at zero [{', '.join(cases)}]"
        return Within("loss", arm, 0.5, by=1e-9, cases=cases, always=True, text=where)

    return Experiment(
        name="threshold",
        arms={
            "from-collapse": start("descent from beside the collapsed stationary point", collapsed=True),
            "from-zero": start("descent from beside zero", collapsed=False),
        },
        cases=tuple(bench.cases),
        claims=(
            *(
                Lower("gradient", arm, 1e-12, cases=cases, always=True, text=f"the start of {arm} is stationary")
                for arm, cases in (("from-collapse", ("q0.39", "q0.40", "q0.46")), ("from-zero", ()))
            ),
            Lower("loss", "from-collapse", 0.5, cases=("q0.39",), always=True, by=1e-4),
            Higher("loss", "from-collapse", 0.5, cases=("q0.40", "q0.46"), always=True, by=1e-4),
            ends("from-collapse", "q0.48"),
            ends("from-zero", *bench.cases),
        ),
        settings={"smoke": replace(bench, sizes=replace(bench.sizes, steps=40)), "bench": bench},
        replicates=(6, 6),
    )


MSE = Arm(run_net, role="method", about="squared error with weight decay", stacked=stack_nets)
CE = Arm(run_net, {"loss": "ce"}, role="rival", about="cross entropy with weight decay", stacked=stack_nets)
FITS = Higher("train", "mse", 0.99, text="networks fit: more than 99 % of the training data are classified right")


def _frames(*, primary: bool = False) -> tuple[Claim, ...]:
    """Which frame, by the rows of the last layer and by the means before the last ReLU."""
    return (
        Higher(
            "rows_gap",
            "mse",
            0.0,
            cases=FREE,
            primary=primary,
            text="rows of the last layer are nearer to an orthogonal frame than to a simplex [no-bias]",
        ),
        Lower("rows_gap", "mse", 0.0, cases=BIASED, text="rows of the last layer are nearer to a simplex [bias]"),
        Higher("before_gap", "mse", 0.0, cases=FREE, text="means before the ReLU are nearer to orthogonal [no-bias]"),
        Lower("before_gap", "mse", 0.0, cases=BIASED, text="means before the ReLU are nearer to a simplex [bias]"),
        Higher("means_gap", "mse", 0.0, always=True, text="means after the ReLU are nearer to orthogonal in any case"),
    )


def _deeper(*steps: str) -> tuple[Claim, ...]:
    return tuple(
        Higher(f"fall_{step}", "mse", 0.0, text=f"NC1 falls from layer {step[0]} to layer {step[1]}") for step in steps
    )


def _digits() -> Experiment:
    bench = Nets("digits", per_class=128, epochs=120)

    def model(name: str, role: str, about: str) -> Arm:
        return Arm(run_model, {"kind": name}, role=role, cases=FREE, about=about, stacked=stack_models)

    return Experiment(
        name="digits",
        arms={
            "mse": MSE,
            "no-decay": Arm(
                run_net, {"decay": False}, role="ablation", about="squared error, no weight decay", stacked=stack_nets
            ),
            "ce": CE,
            "normalised": Arm(
                run_net,
                {"loss": "ce", "normalise": True},
                role="rival",
                about="cross entropy on features of one norm",
                stacked=stack_nets,
            ),
            "plain-ufm": model("plain", "baseline", "the plain model, one layer of features"),
            "linear-ufm": model("linear2", "ablation", "the extended model without a ReLU"),
            "relu-ufm": model("relu2", "method", "the extended model with a ReLU"),
        },
        cases=("no-bias", "bias"),
        premises=(FITS,),
        claims=(
            *_frames(primary=True),
            Lower("rows_gap", "ce", 0.0, cases=FREE, text="under cross entropy rows are nearer to a simplex [no-bias]"),
            Higher("rows_gap", "mse", "ce", cases=FREE),
            Higher("rows_gap", "mse", "normalised", cases=FREE),
            Lower("rows_of", "mse", "no-decay", cases=FREE),
            *_deeper("12", "23"),
            Higher("fall_time", "mse", 0.0, text="NC1 of the last layer falls in training"),
            Lower("nc1_3", "mse", "no-decay"),
            Higher("tau_relu", "", "tau_plain", text="the model with a ReLU ranks NC1 better than the plain one"),
            Higher("tau_relu", "", "tau_linear", text="the model with a ReLU ranks NC1 better than the linear one"),
            Higher("tau_relu", "", "tau_time", text="the model with a ReLU ranks NC1 better than time alone"),
        ),
        settings={
            "smoke": replace(bench, epochs=2, points=2, model=replace(bench.model, steps=40)),
            "bench": bench,
        },
        replicates=(6, 16),
        shared=draw,
        derive=agreement,
        data=data_identity("digits"),
    )


def _fashion() -> Experiment:
    bench = Nets("fashion_mnist", per_class=1000, epochs=15, pool=2, points=5)
    return Experiment(
        name="fashion",
        arms={"mse": MSE, "ce": CE},
        cases=("no-bias", "bias"),
        premises=(Higher("train", "mse", 0.9, text="networks fit: more than 90 % of the training data are right"),),
        claims=(
            *_frames(),
            Higher("rows_gap", "mse", "ce", cases=FREE),
            *_deeper("12", "23"),
        ),
        settings={"smoke": replace(bench, per_class=50, epochs=1, points=1), "bench": bench},
        replicates=(6, 12),
        shared=draw,
        needs=("fashion_mnist",),
        data=data_identity("fashion_mnist"),
    )


def _paper(source: str) -> Experiment:
    return Experiment(
        name=source,
        arms={"mse": Arm(run_resnet, role="method", about="ResNet-18, squared error with weight decay")},
        cases=("no-bias", "bias"),
        premises=(FITS,),
        claims=(
            *_frames(),
            *_deeper("12", "23", "34"),
        ),
        settings={"paper": Full(source)},
        replicates=(6, 6),
        shared=known_data,
        needs=(source, "gpu"),
        data=data_identity(source),
    )


STUDY = Study(
    "extended-ufm",
    (_descent(), _threshold(), _digits(), _fashion(), _paper("mnist"), _paper("cifar10")),
    about="Do features of regularised squared error collapse to an orthogonal frame without a bias and to a simplex "
    "with one, in models where that is a theorem and in networks, and does a second layer explain what networks do?",
)
