"""Study of noisy prediction calibration: does it mend a classifier that was trained on noisy labels?

Bae, Shin, Na, Jang, Song, Moon, *From Noisy Prediction to True Label: Noisy Prediction Calibration via Generative
Model*, ICML 2022, claim that calibrating the predictions of a trained classifier with a conditional generative model
raises its clean test accuracy, whatever the noise and however it was trained, most of all where it was trained until it
had fitted its labels.

The same networks are repaired by all arms: one trained by cross entropy until it has fitted its labels (``ce``, a
premise that is tested), and one stopped after an eighth of the epochs (``ce-early``). The control that decides is
``knn``: the vote of nearest neighbours from which NPC takes its prior, by itself. If it does as well, the generative
model adds nothing. ``npc-random`` has an encoder that was never trained, ``temperature`` rescales the logits.

Departures from the paper: small networks and data, so that anybody can run it; SGD with a cosine schedule for the
classifier. ``npc`` samples the latent exactly, ``npc-published`` with the paper's approximation; both are tuned alike.
The learning rate of the classifier is no choice of a method that comes after it, so it is fixed, in the middle of the
range of the study ``sop``; each arm that has something of its own to choose gets the same number of draws for that.
At scale ``paper`` a ResNet-18 (the paper: a network of nine layers) is trained on CIFAR-10; it takes a GPU.

How the design at bench scale was fixed. Kinds of noise, arms, claims and the ranges of what is tuned were laid down
before any run; data, networks, batch size and epochs are those of the study ``sop``. The number of cases of the dearer
arms was set by the time they take. Pilots, on other seeds, printed seconds and how much of the wrong labels cross
entropy had memorised, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from torchstone.bench.claims import Higher, Lower, Within
from torchstone.bench.outcome import Row
from torchstone.bench.space import Integers, LogUniform, Uniform
from torchstone.bench.study import Arm, Cell, Experiment, Study
from torchstone.data.tensors import TensorData
from torchstone.noise.knn_prior import confident_references, knn_vote
from torchstone.noise.last_layer import PENULTIMATE, last_linear, penultimate
from torchstone.studies._data import data_identity
from torchstone.studies._rivals.noisy_labels import fit_prune_and_retrain, repair_temperature
from torchstone.studies.sop import FULL_CIFAR10, human_labels
from torchstone.tracks._npc_fit import repair_npc
from torchstone.tracks._post_hoc import PostHoc, as_trained
from torchstone.tracks._rog_fit import repair_rog
from torchstone.tracks.noisy_labels import Problem, Setting, Trial, fit_ce

__all__ = ["NPC_SPACE", "STUDY", "fit_ce_early", "gains", "repair_knn", "repair_without_prior"]

LR = 0.1
"""Learning rate of every classifier."""

NPC_SPACE = {"npc_lr": LogUniform(3e-4, 3e-3), "rho": LogUniform(1.0, 10.0)}
"""What is tuned of NPC: around the published learning rate, and the prior's weights that its authors searched."""


def fit_ce_early(
    make_model: Callable[[], nn.Module], train: TensorData, val: TensorData, cell: Cell, *, lr: float
) -> nn.Module:
    """Cross entropy for an eighth of the epochs."""
    short = replace(cell.setting, epochs=max(cell.setting.epochs // 8, 1))
    return fit_ce(make_model, train, val, replace(cell, setting=short), lr=lr)


class _Neighbours(nn.Module):
    """The share of each class in the vote of the nearest references, on the features of a network."""

    def __init__(self, network: nn.Module, references: Tensor, labels: Tensor, num_classes: int, k: int) -> None:
        super().__init__()
        self.network, self.num_classes, self.k = network, num_classes, k
        self.network.set_submodule(last_linear(network)[0], nn.Identity())
        self.register_buffer("references", references)
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Tensor:
        references, labels = self.get_buffer("references"), self.get_buffer("labels")
        return knn_vote(self.network(x), references, labels, num_classes=self.num_classes, k=self.k)


def repair_knn(network: nn.Module, train: TensorData, val: TensorData, cell: Cell, *, k: int = 10) -> nn.Module:
    """The vote that gives NPC its prior, asked about new inputs: no generative model."""
    found = penultimate(network, train.x, device=cell.device)
    probs = found.logits.softmax(1)
    index = confident_references(probs, generator=cell.seeds.generator("noise", "knn"))
    features, labels = found.features[PENULTIMATE][index], probs.argmax(1)[index]
    return _Neighbours(network, features, labels, train.num_classes, min(k, len(index))).to(cell.device)


def repair_without_prior(
    network: nn.Module, train: TensorData, val: TensorData, cell: Cell, *, npc_lr: float = 1e-3
) -> nn.Module:
    """NPC whose latent is drawn to no class more than to another."""
    return repair_npc(network, train, val, cell, npc_lr=npc_lr, rho=0.0)


def gains(row: Row) -> dict[str, float]:
    """What NPC gains over each of the two classifiers: mean over the cases in which both were repaired."""
    cases = row.cases_of("npc", "npc-early")

    def gain(arm: str, than: str) -> float:
        differences = [
            float(row.value("accuracy", arm, case)) - float(row.value("accuracy", than, case)) for case in cases
        ]
        return sum(differences) / len(differences)

    return {"gain": gain("npc", "ce"), "gain_early": gain("npc-early", "ce-early")}


FIXED = {"lr": LR}
CE = Arm(PostHoc(as_trained), FIXED, about="cross entropy until the labels are fitted")
CE_EARLY = Arm(PostHoc(as_trained, fit_ce_early), FIXED, about="cross entropy for an eighth of the epochs")
KNN = Arm(
    PostHoc(repair_knn),
    FIXED,
    {"k": Integers(1, 30)},
    role="control",
    about="the vote of nearest neighbours that is NPC's prior, alone",
)
NPC = Arm(PostHoc(repair_npc), FIXED, NPC_SPACE, role="method", about="noisy prediction calibration after ce")
NPC_EARLY = replace(NPC, run=PostHoc(repair_npc, fit_ce_early), about="noisy prediction calibration after ce-early")
PUBLISHED = replace(
    NPC,
    hyper={**FIXED, "sampler": "approx"},
    role="published",
    about="npc with the paper's approximate samples of the latent",
)


def _mnist() -> Experiment:
    bench = Setting(
        labels={
            "sym20": "symmetric-other:0.2",
            "sym40": "symmetric-other:0.4",
            "sym60": "symmetric-other:0.6",
            "asym40": "pair:0.4",
            "idn40": "instance:0.4",
        },
        model="mlp",
        epochs=40,
        batch_size=128,
        test_fraction=0.2,
        val_fraction=0.2,
    )
    early, some = ("sym40", "asym40", "idn40"), ("sym40", "asym40")
    return Experiment(
        name="mnist",
        arms={
            "ce": CE,
            "ce-early": replace(CE_EARLY, cases=early),
            "knn": KNN,
            "knn-early": replace(KNN, run=PostHoc(repair_knn, fit_ce_early), cases=early),
            "npc": NPC,
            "npc-early": replace(NPC_EARLY, cases=early),
            "npc-published": replace(PUBLISHED, cases=some),
            "npc-no-prior": Arm(
                PostHoc(repair_without_prior),
                FIXED,
                {"npc_lr": NPC_SPACE["npc_lr"]},
                role="ablation",
                cases=some,
                about="npc whose prior prefers no class",
            ),
            "npc-random": Arm(
                PostHoc(repair_npc),
                {**FIXED, "npc_epochs": 0},
                role="control",
                about="npc whose encoder is not trained",
            ),
            "temperature": Arm(
                PostHoc(repair_temperature), FIXED, role="control", about="logits of ce over a temperature"
            ),
            "rog": Arm(
                PostHoc(repair_rog),
                FIXED,
                {"support_fraction": Uniform(0.5, 0.9)},
                role="rival",
                about="robust generative classifier (Lee et al., ICML 2019) on the features of ce",
            ),
            "prune-retrain": Arm(
                Trial(fit_prune_and_retrain),
                FIXED,
                {"share": LogUniform(0.1, 0.5)},
                role="rival",
                cases=some,
                about="train again without the labels that confident learning rejects (Northcutt et al., JAIR 2021)",
            ),
        },
        cases=tuple(bench.labels),
        tune_on="sym40",
        premises=(
            Higher(
                "memorised",
                "ce",
                0.5,
                cases=("sym40",),
                text="cross entropy memorises: in the end it predicts more than half of the wrong labels [sym40]",
            ),
        ),
        claims=(
            Higher("accuracy", "npc", "ce", primary=True),
            Higher("accuracy", "npc", "ce", by=0.01),
            Higher("accuracy", "npc-early", "ce-early"),
            Higher("gain", "", "gain_early", text="npc gains more over ce than over ce-early"),
            Higher("accuracy", "npc", "knn"),
            Higher("accuracy", "npc-early", "knn-early"),
            Higher("accuracy", "npc", "ce-early"),
            Higher("accuracy", "npc-published", "ce"),
            Higher("accuracy", "npc", "npc-published"),
            Higher("accuracy", "npc", "npc-no-prior"),
            Higher("accuracy", "npc", "npc-random"),
            Higher("accuracy", "npc", "rog"),
            Higher("accuracy", "npc", "prune-retrain"),
            Lower("memorised", "npc", "ce"),
            Within("accuracy", "temperature", "ce", by=0.0015, always=True),  # rounding may decide one sample
        ),
        replicates=(6, 24),
        settings={"smoke": replace(bench, epochs=8, samples=500), "bench": bench},
        shared=Problem("mnist5k"),
        derive=gains,
        data=data_identity("mnist5k"),
    )


def _cifar10n() -> Experiment:
    cases = ("worse", "aggre")
    bench = human_labels(cases)
    return Experiment(
        name="cifar10n",
        arms={"ce": CE, "ce-early": CE_EARLY, "knn": KNN, "npc": NPC, "npc-early": NPC_EARLY},
        cases=cases,
        # Human errors are plausible: a net that has seen none of them makes a third of them by itself.
        premises=(Higher("memorised", "ce", 0.5, cases=("worse",)),),
        claims=(
            Higher("accuracy", "npc", "ce"),
            Higher("accuracy", "npc", "knn"),
            Higher("accuracy", "npc-early", "ce-early"),
        ),
        replicates=(6, 20),
        settings={
            "smoke": replace(bench, epochs=1, samples=300),
            "bench": bench,
            "paper": replace(FULL_CIFAR10, labels=bench.labels),
        },
        shared=Problem("cifar10n"),
        needs=("cifar10n",),
        data=data_identity("cifar10n"),
    )


def _cifar10() -> Experiment:
    labels = {
        "sym20": "symmetric-other:0.2",
        "sym80": "symmetric-other:0.8",
        "asym20": "asymmetric:0.2",
        "asym40": "asymmetric:0.4",
        "idn20": "instance:0.2",
        "idn40": "instance:0.4",
    }
    return Experiment(
        name="cifar10",
        arms={
            "ce": CE,
            "ce-early": CE_EARLY,
            "knn": KNN,
            "npc": NPC,
            "npc-early": NPC_EARLY,
            "npc-published": replace(PUBLISHED, space={}, about="npc as published, rates and approximation"),
        },
        cases=tuple(labels),
        tune_on="idn40",
        premises=(Higher("memorised", "ce", 0.5, cases=("idn40",)),),
        claims=(
            Higher("accuracy", "npc", "ce"),
            Higher("accuracy", "npc-published", "ce"),
            Higher("accuracy", "npc-early", "ce-early"),
            Higher("gain", "", "gain_early", text="npc gains more over ce than over ce-early"),
            Higher("accuracy", "npc", "knn"),
        ),
        settings={"paper": replace(FULL_CIFAR10, labels=labels)},
        replicates=(6, 6),
        shared=Problem("cifar10"),
        derive=gains,
        needs=("cifar10", "gpu"),
        data=data_identity("cifar10"),
    )


STUDY = Study(
    "npc",
    (_mnist(), _cifar10n(), _cifar10()),
    about="Does a generative model of a trained classifier's predictions make them right, where its labels were noisy?",
)
