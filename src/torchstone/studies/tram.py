"""Study of TRAM: does a network learn more from noisy labels if a head of it may see who gave them?

Collier, Jenatton, Kokiopoulou, Berent, *Transfer and Marginalize: Explaining Away Label Noise with Privileged
Information*, ICML 2022, claim that sharing features with a head that sees privileged information beats training
without it, putting its mean in at test time, averaging over it, and distillation, at the test cost of a plain network.

Four experiments. ``linear`` draws data sets in which the gain has a closed form, its sign included: information that
explains nothing costs its parameters. ``mnist`` is a simulated crowd, half of which guesses, as one-hot ids; beside the
arms of the paper it has rivals that were made for crowds, controls (annotators at the wrong labels, random vectors) and
better information than ids. ``music`` and ``cifar10n`` have labels by real people.

Departures from the paper: small networks and data, so that anybody can run it; its CIFAR-10H protocol needs the raw
annotations, which are not at hand; validation labels are noisy, as there, but select by accuracy. Learning rates are
searched for each arm by itself, with equal effort, because TRAM adds up two losses.

How the design was fixed. Image set, network, crowds and arms were laid down before any run; epochs, sizes and which arm
runs on which case were set by the time they take. No pilot showed a score of any arm.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from torchstone.bench.claims import Higher, Lower, Ratio, Within
from torchstone.bench.space import Uniform
from torchstone.bench.study import Arm, Experiment, Study
from torchstone.models import StridedCNN
from torchstone.studies._data import data_identity
from torchstone.studies._linear_gaussian import Drawn, LinearSetting, Risk
from torchstone.studies._tram_arms import (
    CROWDS,
    SimulatedCrowd,
    by_marginal,
    by_mean_pi,
    by_no_pi,
    by_student,
    by_zero_pi,
    fit_crowd_layer,
    fit_dawid_skene,
    fit_distilled,
    fit_no_pi,
    fit_without_spammers,
    train_on_confidence,
    train_on_everything,
    train_on_ids,
    train_on_indicator,
    train_on_permuted,
    train_on_random,
    train_undetached,
)
from torchstone.tracks._post_hoc import PostHoc
from torchstone.tracks.noisy_labels import LR, Problem, Setting, Trial, fit_ce

__all__ = ["STUDY", "half_size_cnn"]

SIGMAS = (0.0, 0.5, 1.0, 3.0)
SIZES = (20, 40, 80)
LINEAR = {f"sigma{sigma:g}-d{d}": (sigma, d) for sigma in SIGMAS for d in SIZES}
LR_ONLY = {"lr": 0.05}
RATES = {"lr": LR}


def half_size_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A strided CNN of width 16 on images of half the size."""
    return nn.Sequential(nn.AvgPool2d(2), StridedCNN(input_shape[0], num_classes, width=16))


NO_PI = Arm(Trial(fit_no_pi), LR_ONLY, RATES, role="baseline", about="cross entropy with all answers")
TRAM = Arm(PostHoc(by_no_pi, train_on_ids), LR_ONLY, RATES, role="method", about="TRAM, told who gave each label")
NO_DETACH = Arm(
    PostHoc(by_no_pi, train_undetached),
    LR_ONLY,
    RATES,
    role="ablation",
    about="tram whose head without privileged information trains the features too",
)
MARGINAL = Arm(
    PostHoc(by_marginal, train_on_ids),
    LR_ONLY,
    RATES,
    role="rival",
    about="the mean of the head that sees annotators, over all of them",
)
CROWD_LAYER = Arm(
    Trial(fit_crowd_layer),
    LR_ONLY,
    RATES,
    role="rival",
    about="a confusion matrix for each annotator (after Rodrigues and Pereira, AAAI 2018)",
)
DAWID_SKENE = Arm(
    Trial(fit_dawid_skene),
    LR_ONLY,
    RATES,
    role="rival",
    about="cross entropy with the votes of Dawid and Skene (1979)",
)
PERMUTED = Arm(
    PostHoc(by_no_pi, train_on_permuted),
    tuned_as="tram",
    role="control",
    about="tram with the right annotators at the wrong labels",
)


def _linear() -> Experiment:
    useless = tuple(case for case, (sigma, _) in LINEAR.items() if not sigma)
    useful = tuple(case for case in LINEAR if case not in useless)
    loud = tuple(case for case, (sigma, _) in LINEAR.items() if sigma == 3)
    bench = LinearSetting(LINEAR)
    return Experiment(
        name="linear",
        arms={
            "no-pi": Arm(Risk("no-pi"), role="baseline", about="least squares on x"),
            "tram": Arm(
                Risk("tram"), role="method", about="least squares on x and a; the scale of its x part refitted"
            ),
            "marginal": Arm(Risk("marginal"), role="rival", about="least squares on x and a, then the mean over a"),
        },
        cases=tuple(LINEAR),
        claims=(
            Lower("risk", "tram", "no-pi", cases=useful, text="risk of tram is lower than that of no-pi if a matters"),
            Higher(
                "risk", "tram", "no-pi", cases=useless, text="risk of tram is higher than that of no-pi if it does not"
            ),
            Ratio("risk", "tram", "no-pi", cases=loud, at_most=0.08),
            Higher("risk", "tram", "marginal", cases=useful, text="risk of tram is higher than that of the exact mean"),
            Within("deviation", "no-pi", 0.0, by=0.05),
            Within("deviation", "tram", 0.0, by=0.05),
            Within("deviation", "marginal", 0.0, by=0.05),
        ),
        settings={"smoke": replace(bench, repetitions=20), "bench": bench, "paper": bench},
        shared=Drawn(),
    )


def _mnist() -> Experiment:
    bench = Setting(
        labels=dict.fromkeys(CROWDS, "column:label"),
        model="mlp",
        epochs=15,
        batch_size=128,
        test_fraction=0.2,
        val_fraction=0.2,
    )
    one_each, ids = ("a20", "a400"), ("a20",)
    return Experiment(
        name="mnist",
        arms={
            "no-pi": NO_PI,
            "tram": TRAM,
            "tram-no-detach": replace(NO_DETACH, cases=one_each),
            "tram-distilled": Arm(
                Trial(fit_distilled),
                {"lr": 0.05, "distillation": 0.5},
                {"lr": LR, "distillation": Uniform(0.0, 1.0)},
                role="method",
                cases=ids,
                about="tram whose head without privileged information learns from the other head too",
            ),
            "marginal": replace(MARGINAL, cases=ids),
            "mean-pi": Arm(
                PostHoc(by_mean_pi, train_on_ids),
                tuned_as="marginal",
                role="rival",
                cases=ids,
                about="the head that sees annotators, given their mean",
            ),
            "zero-pi": Arm(
                PostHoc(by_zero_pi, train_on_ids),
                tuned_as="marginal",
                role="rival",
                cases=ids,
                about="the head that sees annotators, given zeros",
            ),
            "distillation": Arm(
                PostHoc(by_student, train_on_ids),
                {"lr": 0.05, "student_lr": 0.05},
                {"lr": LR, "student_lr": LR},
                role="rival",
                cases=ids,
                about="a new network that learns from the head that sees annotators, and from the labels",
            ),
            "crowd-layer": CROWD_LAYER,
            "dawid-skene": replace(DAWID_SKENE, hyper={}, space={}, tuned_as="no-pi", cases=("a20x3",)),
            "permuted": replace(PERMUTED, cases=ids),
            "random-pi": Arm(
                PostHoc(by_no_pi, train_on_random),
                LR_ONLY,
                RATES,
                role="control",
                cases=ids,
                about="tram told nothing but a random vector for each label",
            ),
            "tram-confidence": Arm(
                PostHoc(by_no_pi, train_on_confidence),
                LR_ONLY,
                RATES,
                role="method",
                cases=ids,
                about="tram told who gave each label, and how sure they were",
            ),
            "tram-indicator": Arm(
                PostHoc(by_no_pi, train_on_indicator),
                LR_ONLY,
                RATES,
                role="oracle",
                cases=ids,
                about="tram told which labels are wrong",
            ),
            "no-spammers": Arm(
                Trial(fit_without_spammers),
                LR_ONLY,
                RATES,
                role="oracle",
                cases=one_each,
                about="cross entropy without the labels of those who guess",
            ),
        },
        cases=tuple(CROWDS),
        tune_on="a20",
        premises=(
            Higher(
                "accuracy",
                "no-spammers",
                "no-pi",
                text="who guesses does harm: without their labels cross entropy is more accurate",
            ),
        ),
        claims=(
            Higher("accuracy", "tram", "no-pi", cases=ids, primary=True),
            Higher("accuracy", "tram", "no-pi", cases=("a400",)),
            Higher("accuracy", "tram", "no-pi", cases=("a20x3",)),
            Higher("accuracy", "tram", "tram-no-detach"),
            Higher("accuracy", "tram", "marginal"),
            Higher("accuracy", "tram", "mean-pi"),
            Higher("accuracy", "tram", "zero-pi"),
            Higher("accuracy", "tram", "distillation"),
            Higher("accuracy", "tram-distilled", "tram"),
            Higher("accuracy", "tram", "crowd-layer"),
            Higher("accuracy", "tram", "dawid-skene"),
            Higher("accuracy", "tram", "permuted"),
            Higher("accuracy", "random-pi", "no-pi"),
            Higher("accuracy", "tram-confidence", "tram"),
            Higher("accuracy", "tram-indicator", "tram"),
            Lower("memorised", "tram", "no-pi"),
            Ratio("forwards", "tram", "no-pi", at_most=1.0, always=True),
        ),
        settings={
            "smoke": replace(bench, epochs=1, samples=400),
            "bench": bench,
            "paper": replace(bench, epochs=60, val_fraction=0.1),
        },
        shared=SimulatedCrowd("mnist5k"),
        data=data_identity("mnist5k"),
    )


def _music() -> Experiment:
    bench = Setting(labels={"crowd": "column:majority"}, model="mlp", epochs=30, batch_size=64, val_fraction=0.2)
    return Experiment(
        name="music",
        arms={
            "no-pi": NO_PI,
            "majority": Arm(Trial(fit_ce), LR_ONLY, RATES, role="baseline", about="cross entropy with the majority"),
            "tram": TRAM,
            "tram-no-detach": NO_DETACH,
            "marginal": MARGINAL,
            "crowd-layer": CROWD_LAYER,
            "dawid-skene": DAWID_SKENE,
            "permuted": PERMUTED,
        },
        cases=("crowd",),
        claims=(
            Higher("accuracy", "tram", "no-pi"),
            Higher("accuracy", "tram", "majority"),
            Higher("accuracy", "tram", "permuted"),
            Higher("accuracy", "tram", "tram-no-detach"),
            Higher("accuracy", "tram", "marginal"),
            Higher("accuracy", "tram", "crowd-layer"),
            Higher("accuracy", "tram", "dawid-skene"),
        ),
        settings={"smoke": replace(bench, epochs=1), "bench": bench, "paper": replace(bench, epochs=120)},
        shared=Problem("music-genre-crowd"),
        needs=("music-genre-crowd",),
        data=data_identity("music-genre-crowd"),
    )


def _cifar10n() -> Experiment:
    cases = ("worse", "random1")
    bench = Setting(
        labels={case: f"column:{case}" for case in cases},
        model=half_size_cnn,
        epochs=16,
        batch_size=128,
        samples=2000,
        test_fraction=0.25,
        val_fraction=0.2,
    )
    return Experiment(
        name="cifar10n",
        arms={
            "no-pi": NO_PI,
            "tram": Arm(
                PostHoc(by_no_pi, train_on_everything),
                LR_ONLY,
                RATES,
                role="method",
                about="TRAM, told who gave each label and how long it took",
            ),
            "crowd-layer": CROWD_LAYER,
        },
        cases=cases,
        claims=(
            Higher("accuracy", "tram", "no-pi", cases=("worse",)),
            Higher("accuracy", "tram", "no-pi", cases=("random1",)),
            Higher("accuracy", "tram", "crowd-layer"),
        ),
        replicates=(6, 20),
        settings={
            "smoke": replace(bench, epochs=1, samples=300),
            "bench": bench,
            "paper": replace(bench, model="resnet18", epochs=120, augment="crop-flip", samples=None, val_fraction=0.1),
        },
        shared=Problem("cifar10n"),
        needs=("cifar10n",),
        data=data_identity("cifar10n"),
    )


STUDY = Study(
    "tram",
    (_mnist(), _linear(), _music(), _cifar10n()),
    about="Does a network learn more from noisy labels if a head of it may see who gave them?",
)
