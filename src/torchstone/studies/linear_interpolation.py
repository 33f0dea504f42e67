"""Study of linear interpolation: does the shape of the loss between initial and final weights tell of test accuracy?

Vlaar and Frankle, *What Can Linear Interpolation of Neural Network Loss Landscapes Tell Us?*, ICML 2022, claim that it
does not: over ways to train, the shape of the curve (a barrier, its monotonicity, the length of its plateau) and test
accuracy change independently of each other. They also look at single layers: a network depends on some more than on
others, and starts of which some layers are trained end at a lower test accuracy.

How a claim about correlations becomes one about a replicate. A replicate trains every architecture in ten ways, on one
draw of the data. Within each architecture the ten are ordered by a number that describes the shape, and by test
accuracy; Spearman's rank correlation is averaged over architectures. The primary claim holds in a replicate if for no
shape the average exceeds 0.6 in size: the largest of four is taken, so chance works against the claim. It is refuted
where one shape, whichever it is, orders ways to train as test accuracy does. The same numbers for what can be had
without a path (training loss of the first pass and at the end, distance travelled, trace of the Hessian) stand beside:
as many of them, so that neither group has more chances to be the best.

Two of the ten ways change the training data (few samples, noisy labels), and so change accuracy much and the loss too.
The claim is judged without them as well.

Departures from the paper: small networks and images, so that anybody can run it; the adversarial start is trained on
random labels for a fixed number of passes, not until it has learnt all; losses along a path are measured on a part of
the samples, the same at each point. All sources of chance vary. Sizes were fixed by what a replicate costs, without
sight of any score at that size. Known before, from a few runs on digits: plain MLPs showed no barrier, and networks
with BatchNorm one of 0.33 to 0.45 with final running statistics alone.
"""

from __future__ import annotations

from dataclasses import replace

from torchstone.bench.claims import Claim, Higher, Lower, Within
from torchstone.bench.study import Arm, Experiment, Study
from torchstone.studies._data import data_identity
from torchstone.studies._linear_interpolation_cifar10 import WAYS, Large, draw_large, run_large
from torchstone.studies._linear_interpolation_identities import identities
from torchstone.studies._linear_interpolation_layers import Start, Starts, pretrain
from torchstone.studies._linear_interpolation_nets import CONDITIONS, Net, Nets, Sizes, draw
from torchstone.studies._linear_interpolation_ranks import SHAPES, ranks

__all__ = ["STUDY"]

STRONG = 0.6
WORDS = {
    "barrier": "the height of the barrier",
    "gap": "the largest rise",
    "alpha_half": "the length of the plateau",
    "area": "the area under the curve",
}
SPREAD = Higher("spread", "", 0.02, text="in every architecture the ways to train differ by 2 points of test accuracy")


def _shape_claims(*, primary: bool = False) -> tuple[Claim, ...]:
    return (
        Lower(
            "best_shape",
            "",
            STRONG,
            primary=primary,
            text="no shape of the path orders ways to train as test accuracy does (mean |rho| over 0.6)",
        ),
        *(
            Lower(f"size_{name}", "", STRONG, text=f"{WORDS[name]} does not order them so (mean |rho| over 0.6)")
            for name in SHAPES
        ),
        Lower(
            "best_shape_same_data",
            "",
            STRONG,
            text="no shape orders them so among those that share their training data",
        ),
        Lower(
            "r2_shape",
            "",
            STRONG**2,
            text="all shapes together explain less than 36 % of the variance in ways that the regression has not seen",
        ),
        Higher(
            "best_rival",
            "",
            "best_shape",
            text="a number that needs no path orders ways to train better than any shape",
        ),
    )


def _statistics_claims(arm: str) -> tuple[Claim, ...]:
    return (
        Higher(
            "final_excess",
            arm,
            0.1,
            text=f"with final running statistics the barrier of {arm} is higher by more than 0.1 than with new ones",
        ),
        Within(
            "batch_excess",
            arm,
            0.0,
            by=0.1,
            text=f"with those of each batch the barrier of {arm} is, up to 0.1, as high as with new ones",
        ),
    )


def _nets(names: tuple[str, ...]) -> dict[str, Arm]:
    return {name: Arm(Net(name), stacked=Nets(name)) for name in names}


def _digits() -> Experiment:
    bench = Sizes()
    return Experiment(
        name="digits",
        arms=_nets(("mlp2", "mlp6", "cnn3", "cnn3-bn")),
        cases=tuple(CONDITIONS),
        premises=(SPREAD,),
        claims=(
            *_shape_claims(primary=True),
            *_statistics_claims("cnn3-bn"),
            *(
                Lower("barrier", name, 1e-3, text=f"the loss of {name} never rises above its start")
                for name in ("mlp2", "mlp6")
            ),
        ),
        settings={
            "smoke": replace(bench, train=100, test=60, epochs=1, random_epochs=1, curve=30, points=3, signs=2),
            "bench": bench,
        },
        derive=ranks,
        shared=draw,
        data=data_identity("digits"),
    )


def _fashion() -> Experiment:
    return Experiment(
        name="fashion",
        arms=_nets(("mlp6", "cnn3-bn")),
        cases=tuple(CONDITIONS),
        premises=(SPREAD,),
        claims=(*_shape_claims(), *_statistics_claims("cnn3-bn")),
        settings={"bench": Sizes(source="fashion_mnist", pool=4, train=400, test=1000, curve=100)},
        derive=ranks,
        shared=draw,
        needs=("fashion_mnist",),
        data=data_identity("fashion_mnist"),
    )


def _layers() -> Experiment:
    bench = Sizes()
    parts = {"scratch": "", "convs-trained": r"conv\d", "head-trained": "head", "all-trained": ".*"}
    return Experiment(
        name="layers",
        arms={
            name: Arm(Start(layers), stacked=Starts(layers), role="baseline" if not layers else "method")
            for name, layers in parts.items()
        },
        claims=(
            Higher(
                "rewound_spread",
                "scratch",
                0.1,
                text="a network depends on some layers more: test errors with one at its start differ by more than 0.1",
            ),
            Lower("accuracy", "convs-trained", "scratch"),
            Lower("accuracy", "head-trained", "scratch"),
            Lower("accuracy", "convs-trained", "all-trained"),
            Lower("accuracy", "head-trained", "all-trained"),
        ),
        settings={
            "smoke": replace(bench, train=100, test=60, epochs=1, curve=30, points=3),
            "bench": bench,
        },
        shared=pretrain,
        data=data_identity("digits"),
    )


def _identities() -> Experiment:
    def zero(metric: str, by: float, text: str) -> Claim:
        return Within(metric, "line", 0.0, by=by, always=True, text=text)

    return Experiment(
        name="identities",
        arms={"line": Arm(identities, role="method")},
        claims=(
            zero("parabola", 1e-10, "the curve of a linear model with squared loss is a parabola"),
            Lower("convex_gap", "line", 1e-12, always=True, text="on the way to its minimum a convex loss never rises"),
            zero("ends", 0.0, "at 0 and 1 the losses are those of the two states, to the bit"),
            zero("restored", 0.0, "afterwards the model is as before, to the bit"),
            zero("permuted", 1e-12, "hidden units of both ends in another order change no loss"),
            Higher("permuted_one", "line", 1e-9, always=True, text="those of one end in another order do"),
            zero("rescaled", 1e-10, "with new statistics the scale of weights before BatchNorm changes no loss"),
            zero("stacked", 1e-12, "all points in one pass equal one after another"),
        ),
        replicates=(6, 10),
        settings={"smoke": None, "bench": None},
    )


def _cifar10() -> Experiment:
    return Experiment(
        name="cifar10",
        arms={"resnet18": Arm(run_large)},
        cases=tuple(WAYS),
        premises=(SPREAD,),
        claims=(
            *_shape_claims(),
            *_statistics_claims("resnet18"),
            Higher("rewound_spread", "resnet18", 0.1),
        ),
        settings={"paper": Large()},
        derive=ranks,
        shared=draw_large,
        needs=("cifar10", "gpu"),
        data=data_identity("cifar10"),
    )


STUDY = Study(
    "linear-interpolation",
    (_digits(), _fashion(), _layers(), _identities(), _cifar10()),
    about="Does the shape of the loss on the line from initial to final weights tell how accurate the network is?",
)
