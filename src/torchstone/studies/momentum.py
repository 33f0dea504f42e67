"""Study of momentum: does it generalise better than plain gradient descent that fits the training data as well?

Jelassi and Li, *Towards understanding how momentum improves generalization in deep learning*, ICML 2022, prove it for
patches of which all show one feature, but a minority only faintly: at one learning rate both reach zero training
error, gradient descent by memorising the minority's noise, momentum by growing the feature. Their experiments: on
CIFAR-10 momentum helps, the more the larger the batch; on Gaussian inputs labelled by random teachers it does not.

``patches`` is the theorem's data and network at finite size, where feature, signal and noise can be read off, with the
two controls in which nobody is faint, and other learning rates for both arms alike. ``dose`` varies momentum alone.
``rivals`` asks what else would do it: a learning rate of one's own, tuned on the training loss (which is all that
tuning sees anywhere in this study but in ``cifar10``), mini-batches, Adam, noise in the gradient, ten times as many
steps. ``digits`` and ``fashion`` are two classes of images, a tenth of which are shrunk towards the mean, and a small
network without normalisation; ``teachers`` is the Gaussian case, where no difference is expected. ``cifar10`` is the
paper's protocol as far as it is known; it takes an accelerator.

Momentum is dampened throughout (:class:`torchstone.dynamics.DampenedSGD`): without dampening it would be a learning
rate 1 / (1 - gamma) times as large. ``momentum-torch`` starts its buffer as :class:`torch.optim.SGD` does.

How the design was fixed. Sizes of ``patches`` and the values of momentum and learning rate are finite ones of which
means over six seeds were known beforehand: small margins are classified right in .54 of the cases without momentum,
.54, .67, .92, .97, .97 with momentum .5, .9, .97, .99, .995; .60 and .54 at learning rates .1 and 2, .81 at 8 without
momentum; C grows from 14 to 1070. Claims and the other experiments were laid down before any run of this study. Pilots
on other seeds printed seconds, training accuracies and training losses, and nothing else.

Departures from the paper: finite sizes for its powers and logarithms of the dimension; a small network where it has
large ones; images with small margin made by shrinking.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torchstone.bench.claims import Claim, ClosesGap, Higher, Lower, Ratio, Trend, Within
from torchstone.bench.space import LogUniform
from torchstone.bench.study import Arm, Experiment, Study
from torchstone.studies._data import data_identity
from torchstone.studies._momentum_cifar import CASES, Cifar, cifar10, growth, run_cifar
from torchstone.studies._momentum_nets import Images, Teachers, draw_images, draw_teacher, run_net, stack_nets
from torchstone.studies._momentum_patches import Case, Patches, draw, run_adam, run_sgd, stack_adam, stack_sgd

__all__ = ["STUDY"]

LR = LogUniform(0.1, 10.0)


def _descent(role: str, about: str, *, tune: bool = False, lr: float = 0.5, momentum: float = 0.0, **more: Any) -> Arm:
    """Gradient descent on patches."""
    hyper = {"lr": lr, "momentum": momentum, **more}
    return Arm(run_sgd, hyper, {"lr": LR} if tune else {}, role=role, about=about, stacked=stack_sgd)


GD = _descent("baseline", "gradient descent, all data in each step, learning rate 0.5")
MOMENTUM = _descent("method", "the same with dampened momentum 0.99", momentum=0.99)


def _interpolates(arm: str, *cases: str) -> Claim:
    where = f" [{', '.join(cases)}]" if cases else ""
    return Within("train", arm, 1.0, cases=cases, text=f"{arm} classifies all training data right{where}")


def _patches() -> Experiment:
    bench = Patches(
        {
            "margins": Case(),
            "lr0.1": Case(hyper={"lr": 0.1, "longer": 2}),  # slow: in 2000 steps not everything is fitted
            "lr2": Case(hyper={"lr": 2.0}),
            "lr8": Case(hyper={"lr": 8.0}),
            "no-minority": Case(mu=0.0),
            "one-margin": Case(beta=1.0),
        }
    )
    here = ("margins",)
    torch_start = _descent(
        "ablation", "momentum whose buffer starts at the first gradient", momentum=0.99, zero_init=False
    )
    return Experiment(
        name="patches",
        arms={"gd": GD, "momentum": MOMENTUM, "momentum-torch": replace(torch_start, cases=here)},
        cases=tuple(bench.cases),
        premises=(_interpolates("gd"), _interpolates("momentum")),
        claims=(
            Higher("test_small", "momentum", "gd", cases=here, primary=True),
            Higher("test_small", "momentum", "gd", by=0.2, cases=here),
            Higher("test_small", "momentum", 0.9, cases=here),
            Higher("test", "momentum", "gd", cases=here),
            Ratio("feature", "momentum", "gd", at_least=10.0, cases=here),
            Lower("signal", "gd", 0.5, cases=here, text="gd fits small margins mostly by their noise [margins]"),
            Higher(
                "signal",
                "momentum",
                0.5,
                cases=here,
                text="momentum fits small margins mostly by the feature [margins]",
            ),
            Higher("test_small", "momentum", "gd", cases=("lr0.1",)),
            Higher("test_small", "momentum", "gd", cases=("lr2",)),
            Higher("test_small", "momentum", "gd", cases=("lr8",)),
            Within("test_small", "momentum-torch", "momentum", by=0.05),
            Within("test", "momentum", "gd", by=0.005, cases=("no-minority",)),
            Within("test_small", "momentum", "gd", by=0.01, cases=("one-margin",)),
            *(
                Lower(
                    "identity",
                    arm,
                    1e-10,
                    always=True,
                    text=f"closed forms of the gradient and of the growth of the feature agree with autograd ({arm})",
                )
                for arm in ("gd", "momentum")
            ),
        ),
        settings={"smoke": _small(bench), "bench": bench},
        replicates=(30, 40),
        shared=draw,
    )


def _dose() -> Experiment:
    values = (0.0, 0.5, 0.9, 0.97, 0.99, 0.995)
    bench = Patches({f"gamma{value:g}": Case(hyper={"momentum": value}) for value in values})
    cases = tuple(bench.cases)
    return Experiment(
        name="dose",
        arms={"momentum": replace(MOMENTUM, about="gradient descent with dampened momentum, learning rate 0.5")},
        cases=cases,
        premises=(_interpolates("momentum"),),
        claims=(Trend("test_small", "momentum", cases=cases), Trend("feature", "momentum", cases=cases)),
        settings={"smoke": _small(bench), "bench": bench},
        replicates=(30, 40),
        shared=draw,
    )


def _rivals() -> Experiment:
    bench = Patches({"margins": Case()})
    adam = {"lr": 0.01, "momentum": 0.9}
    arms = {
        "gd": GD,
        "momentum": MOMENTUM,
        "momentum-tuned": _descent("method", "momentum with a learning rate of its own", tune=True, momentum=0.99),
        "gd-tuned": _descent("rival", "gd with a learning rate of its own", tune=True),
        "sgd": _descent("rival", "20 examples in each step, as many passes", tune=True, batch=20),
        "noisy-gd": _descent("rival", "Gaussian noise as large as the gradient added to it", tune=True, noise=1.0),
        "adam": Arm(
            run_adam, adam, {"lr": LogUniform(1e-3, 0.1)}, role="rival", about="Adam, all data", stacked=stack_adam
        ),
        "gd-longer": _descent("rival", "gd with ten times as many steps", longer=10),
    }
    return Experiment(
        name="rivals",
        arms=arms,
        cases=("margins",),
        premises=tuple(_interpolates(arm) for arm in arms),
        claims=(
            Higher("test_small", "momentum", "gd-tuned"),
            Higher("test_small", "momentum", "gd-longer"),
            *(Higher("test_small", "momentum-tuned", arm) for arm in ("gd-tuned", "sgd", "noisy-gd", "adam")),
            Higher("test_small", "gd-tuned", "gd"),
            ClosesGap("test_small", "gd-tuned", "gd", to="momentum", by=0.5),
        ),
        settings={"smoke": _small(bench), "bench": bench},
        replicates=(30, 40),
        shared=draw,
    )


def _small(bench: Patches) -> Patches:
    return replace(bench, n=60, n_test=200, steps=20)


NET_LR = {"lr": LogUniform(0.05, 2.0)}
NET_GD = Arm(
    run_net,
    {"lr": 0.3, "momentum": 0.0},
    NET_LR,
    about="gradient descent, all data in each step, its learning rate tuned on the training loss",
    stacked=stack_nets,
)
NET_MOMENTUM = Arm(
    run_net,
    {"lr": 0.3, "momentum": 0.99},
    tuned_as="gd",
    role="method",
    about="dampened momentum 0.99 at the learning rate of gd",
    stacked=stack_nets,
)
NET_TUNED = replace(NET_MOMENTUM, space=NET_LR, tuned_as=None, about="dampened momentum 0.99, tuned as gd is")


def _images(name: str, bench: Images, *, needs: tuple[str, ...] = ()) -> Experiment:
    arms = {"gd": NET_GD, "momentum": NET_MOMENTUM, "momentum-tuned": NET_TUNED}
    return Experiment(
        name=name,
        arms=arms,
        cases=tuple(bench.cases),
        premises=tuple(_interpolates(arm) for arm in arms),
        claims=(
            Higher("test_small", "momentum", "gd"),
            Higher("test_small", "momentum-tuned", "gd"),
            Higher("test", "momentum", "gd"),
            Within("test_large", "momentum", "gd", by=0.01),
        ),
        settings={"smoke": replace(bench, n=60, n_test=100, steps=3), "bench": bench},
        replicates=(6, 20),
        shared=draw_images,
        needs=needs,
        data=data_identity(bench.source),
    )


def _teachers() -> Experiment:
    bench = Teachers({"linear": 0, "hidden10": 10})
    return Experiment(
        name="teachers",
        arms={"gd": NET_GD, "momentum": NET_MOMENTUM},
        cases=tuple(bench.cases),
        premises=(_interpolates("gd"), _interpolates("momentum")),
        claims=(Within("test", "momentum", "gd", by=0.01),),
        settings={"smoke": replace(bench, n=50, n_test=100, steps=3), "bench": bench},
        replicates=(6, 20),
        shared=draw_teacher,
    )


def _cifar10() -> Experiment:
    rates = {"lr": LogUniform(0.01, 1.0)}
    full = ("resnet18-full", "vgg19-full")
    return Experiment(
        name="cifar10",
        arms={
            "gd": Arm(run_cifar, {"lr": 0.1, "momentum": 0.0}, rates, about="(stochastic) gradient descent, tuned"),
            "momentum": Arm(
                run_cifar, {"lr": 0.1, "momentum": 0.9}, rates, role="method", about="the same with dampened momentum"
            ),
        },
        cases=CASES,
        premises=(_interpolates("gd", *full), _interpolates("momentum", *full)),
        claims=(
            Higher("test", "momentum", "gd", cases=full),
            Higher("growth", "", text="the gap between momentum and gd grows with the batch"),
        ),
        settings={"paper": Cifar()},
        replicates=(6, 6),
        shared=cifar10,
        derive=growth,
        needs=("cifar10", "gpu"),
        data=data_identity("cifar10"),
    )


SHRUNK = {"factor0.15": 0.15, "factor0.3": 0.3}
STUDY = Study(
    "momentum",
    (
        _patches(),
        _dose(),
        _rivals(),
        _images("digits", Images(SHRUNK, "digits", (3, 8), n=180, n_test=200)),
        _images(
            "fashion",
            Images({"factor0.2": 0.2}, "fashion_mnist", (5, 7), n=200, n_test=2000, pool=2),
            needs=("fashion_mnist",),
        ),
        _teachers(),
        _cifar10(),
    ),
    about="Does momentum generalise better than gradient descent that fits the training data as well, because it grows "
    "a feature that gradient descent leaves for noise?",
)
