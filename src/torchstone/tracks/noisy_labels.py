"""Track ``noisy-labels``: which method still learns the right thing when many training labels are wrong?

A method is a function ``fit(make_model, train, val, cell, **hyper) -> predictor``:

* ``make_model()`` gives a freshly initialised network, each time it is called another one;
* ``train`` and ``val`` are :class:`~torchstone.data.TensorData` with the labels as they are, wrong ones among them;
* ``cell.setting`` is the :class:`Setting` (epochs, batch size, ...), ``cell.seeds`` the source of all chance,
  ``cell.device`` where to compute; ``cell.snapshot(predictor)`` after each epoch draws the learning curve, and
  ``cell.checkpoint`` may keep the state of a long training;
* the predictor maps inputs to logits: a network, or any callable. If it has an attribute ``noise_score`` with one
  number per training sample, higher for labels that look wrong, these are scored too.

An own method may carry two attributes: ``hyper``, the keywords it is called with, and ``space``, those that are tuned,
with their distributions. The learning rate of the built-in methods is drawn from :data:`LR`; an own method with
``space = {"lr": LR}`` tries the very same values::

    def mine(make_model, train, val, cell, *, lr=0.05):
        model = make_model()
        ...
        return model

    mine.space = {"lr": LR}
    torchstone.compare("noisy-labels", data="digits", noise="symmetric:0.4", arms={"ce": None, "mine": mine})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchstone import models
from torchstone._checks import check_float, check_int, check_one_of
from torchstone._imports import import_object
from torchstone.bench.claims import Higher
from torchstone.bench.identity import canonical_json
from torchstone.bench.result import Result
from torchstone.bench.space import LogUniform, Uniform
from torchstone.bench.study import Arm, Experiment, Study, Track
from torchstone.data.registry import OWN_DATA_HELP, load
from torchstone.data.tensors import TensorData
from torchstone.errors import did_you_mean
from torchstone.noise import hidden_layers
from torchstone.noise.last_layer import last_linear
from torchstone.tracks._label_source import parse_noise
from torchstone.tracks._noisy_data import Problem, Setting, part_sizes
from torchstone.tracks._noisy_fits import fit_ce, fit_elr, fit_gce, fit_sop
from torchstone.tracks._npc_fit import fit_npc
from torchstone.tracks._own_arms import ArmChoice, choose_arms
from torchstone.tracks._refit import refit_winner
from torchstone.tracks._rog_fit import fit_rog
from torchstone.tracks._tram_fit import fit_tram, unknown_annotators
from torchstone.tracks._trial import BestEpoch, Trial

__all__ = [
    "ARMS",
    "DATA_HELP",
    "LR",
    "TRACK",
    "BestEpoch",
    "Problem",
    "Setting",
    "Trial",
    "fit_ce",
    "fit_elr",
    "fit_gce",
    "fit_sop",
    "refit",
    "study",
]

LR = LogUniform(0.01, 0.3)
"""Search space of the learning rate of the network, the same for all arms."""

ARMS: dict[str, Arm] = {
    "ce": Arm(Trial(fit_ce), {"lr": 0.05}, {"lr": LR}, role="baseline", about="cross entropy"),
    "gce": Arm(
        Trial(fit_gce),
        {"lr": 0.05, "q": 0.7},
        {"lr": LR, "q": Uniform(0.1, 1.0)},
        role="rival",
        about="generalized cross entropy (Zhang and Sabuncu, NeurIPS 2018)",
    ),
    "elr": Arm(
        Trial(fit_elr),
        {"lr": 0.05, "strength": 3.0, "momentum": 0.7},
        {"lr": LR, "strength": LogUniform(1.0, 10.0), "momentum": Uniform(0.5, 0.95)},
        role="rival",
        about="early-learning regularization (Liu et al., NeurIPS 2020)",
    ),
    "sop": Arm(
        Trial(fit_sop),
        {"lr": 0.05, "scale_u": 1.0, "scale_v": 1.0},
        {"lr": LR, "scale_u": LogUniform(0.3, 3.0), "scale_v": LogUniform(0.3, 3.0)},
        role="method",
        about="sparse over-parameterization (Liu et al., ICML 2022)",
    ),
    "rog": Arm(
        Trial(fit_rog),
        {"lr": 0.05},
        {"lr": LR},
        role="method",
        about="robust generative classifier (Lee et al., ICML 2019)",
    ),
    "npc": Arm(
        Trial(fit_npc),
        {"lr": 0.05, "npc_lr": 1e-3, "rho": 5.0},
        {"lr": LR, "npc_lr": LogUniform(3e-4, 3e-3), "rho": LogUniform(1.0, 10.0)},
        role="method",
        about="noisy prediction calibration (Bae et al., ICML 2022)",
    ),
    "tram": Arm(
        Trial(fit_tram),
        {"lr": 0.05},
        {"lr": LR},
        role="method",
        about="transfer and marginalize (Collier et al., ICML 2022); needs to know who gave each label",
    ),
}

DATA_HELP = f"""\
{OWN_DATA_HELP.rstrip()}

Here the training labels are noisy and the test labels must be clean. Say which is which in one of three ways:

  --noise KIND:RATE    the labels of the data are right; noise is put into those of the training and validation
                       samples, the test samples keep theirs. RATE is the share of samples that are selected; KIND is
                       symmetric        redrawn among all classes (a few keep their label)
                       symmetric-other  redrawn among the other classes
                       pair             moved to the next class
                       asymmetric       moved to a class easily confused with it: known for digits and CIFAR-10, else
                                        written asymmetric:0.4:cat>dog,dog>cat
                       instance         moved by a random projection of the sample
  --labels COLUMN      a column of the data holds noisy labels (cifar10n: aggre, worse, random1 .. 3); the data's own
                       labels are right and are used for the test samples
  a test part          the labels of the data are noisy, those of their test part are clean

Validation labels are as noisy as the training labels; with --val clean they are right, where that is known.

The arm tram needs to know who gave each label. Methods see that of training and validation samples, never of test
samples. It is told by arrays of an .npz file, columns of a TensorData, or columns of a .csv file:

  annotator   number of the annotator, from 0 on (in a .csv file any text): one per sample, or a table (n, R)
  answer      the labels that R annotators gave (n, R), -1 for none, if there are several (not in a .csv file);
              other methods train on the one label of the sample, that of y or of the column named by --labels
  pi          other features of each label, such as the seconds it took: (n, m) or (n, R, m); in a .csv file the
              columns that begin with pi_

Where --labels COLUMN has annotators of its own, call these columns COLUMN_annotator and COLUMN_pi, as cifar10n does.
Without a test part of their own a random fifth of the data is tested on, another in each replicate.
"""


def study(
    *,
    data: Any,
    model: Any = None,
    arms: ArmChoice | None = None,
    baseline: str | None = None,
    tries: int = 8,
    noise: str | Sequence[str] | None = None,
    labels: str | Sequence[str] | None = None,
    val: str = "noisy",
    epochs: int = 40,
    batch_size: int = 64,
    augment: str = "none",
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    samples: int | None = None,
    replicates: tuple[int, int] = (6, 29),
    seed: int = 0,
    test: str | Path | None = None,
    label: str | None = None,
    size: tuple[int, int] | None = None,
) -> Study:
    """Build the comparison of methods for noisy labels on one data set.

    Args:
        data: what :func:`torchstone.data.load` takes.
        model: what :func:`torchstone.models.build` takes; by default a multi-layer perceptron.
        arms: names of :data:`TRACK`'s arms, ``"name=module:function"`` for own methods; or a mapping name -> ``None``,
            a function or ``"module:function"``. By default all of the track's arms that data and model allow.
        baseline: the arm that each other arm is claimed to beat; by default ``"ce"``, or the first arm.
        tries: random draws for each arm that has a search space.
        noise: noise to put into right labels, ``"kind:rate"``; several make several cases.
        labels: name of the column that holds the noisy labels; several make several cases.
        val: whether validation labels are ``"noisy"``, as the training labels are, or ``"clean"``.
        epochs: passes over the training data.
        batch_size: samples in one step.
        augment: ``"none"``, or ``"crop-flip"`` for images.
        val_fraction: share of the samples, test samples apart, that are tuned on and not trained on.
        test_fraction: share of the samples that are tested on, where the data have no test part.
        samples: use at most so many samples.
        replicates: smallest and largest number of replicates.
        seed: seed of the whole comparison.
        test: path of clean test data, as ``data``.
        label: label column of a CSV file.
        size: size to which the images of a folder are brought.

    Returns:
        A study with one experiment, one claim for each arm but the baseline, and one case for each kind of labels. The
        primary claim is about the first own method, or else about the first arm that is not the baseline.

    Raises:
        UnknownNameError: for an unknown data set, model, arm, kind of noise or column.
        CorruptDataError: if the data cannot be used.
        StudyError: if the model is a lambda or a local function, which has no identity.
        ValueError: if the data offer no clean test labels, the model does not fit the data, or an argument is out of
            range.
    """
    loaded = load(data, test=test, label=label, size=size)
    factory = import_object(model, kind="model") if isinstance(model, str) and ":" in model else model
    canonical_json({"model": factory})  # a model without an identity is refused here, not after the first run
    setting = Setting(
        labels=_cases(loaded, noise, labels),
        model=factory or "mlp",
        epochs=check_int("epochs", epochs, 1),
        batch_size=check_int("batch_size", batch_size, 1),
        augment=check_one_of("augment", augment, ("none", "crop-flip")),
        val_fraction=check_float("val_fraction", val_fraction, 0, 1, open_low=True, open_high=True),
        test_fraction=check_float("test_fraction", test_fraction, 0, 1, open_low=True, open_high=True),
        samples=None if samples is None else check_int("samples", samples, 3),
        val=check_one_of("val", val, ("noisy", "clean")),
    )
    _check_data(loaded, setting)
    generator = torch.Generator().manual_seed(0)
    network = models.build(setting.model, loaded.x.shape[1:], loaded.num_classes, generator=generator)
    obstacles = _obstacles(loaded, setting, network)
    offered = {name: arm for name, arm in ARMS.items() if arms is not None or name not in obstacles}
    chosen, own = choose_arms(arms, offered, Trial, positional=4)
    for name in chosen:
        if name in obstacles and name not in own:
            raise ValueError(obstacles[name])
    base = _baseline(baseline, chosen)
    chosen = {name: _with_model(arm, factory) for name, arm in chosen.items()}
    others = [name for name in chosen if name != base]
    primary = next((name for name in own if name != base), others[0])
    experiment = Experiment(
        name="comparison",
        arms=chosen,
        claims=tuple(Higher("accuracy", name, base, primary=name == primary) for name in others),
        cases=tuple(setting.labels),
        settings={"smoke": replace(setting, epochs=min(epochs, 2)), "bench": setting, "paper": setting},
        replicates=replicates,
        tries=tries,
        shared=Problem(loaded),
        data=f"{loaded.name} {loaded.fingerprint()}",
    )
    about = f"{', '.join(chosen)} on {loaded.name}, trained on labels that are {', '.join(setting.labels)}"
    return Study(f"noisy-labels@{loaded.name}", (experiment,), seed=seed, about=about)


def refit(result: Result, path: str | Path, device: str = "cpu") -> Path:
    """Train the arm with the best mean accuracy on all data and save its weights.

    All data are those outside a test part of their own, with the labels their owner gave them: noise that the
    comparison put in is left out. The arm has its tuned hyper-parameters. ``val`` is then the training data themselves.

    Args:
        result: what :func:`torchstone.compare` gave.
        path: file to write, in the format of safetensors; an old one is replaced in one step. Its metadata name arm,
            hyper-parameters, classes, shape of an input and model.
        device: where to train.

    Returns:
        The path.

    Raises:
        TorchstoneError: if no replicate is complete, or the winner's predictor is no network.
    """
    return refit_winner(result, Path(path), device)


def _cases(data: TensorData, noise: str | Sequence[str] | None, labels: str | Sequence[str] | None) -> dict[str, str]:
    """Case -> where its labels come from, as :class:`Setting` wants it."""
    if noise is not None and labels is not None:
        raise ValueError("give noise (put into right labels) or labels (a column of noisy ones), not both")
    if noise is not None:
        kinds = [noise] if isinstance(noise, str) else list(noise)
        for kind in kinds:
            parse_noise(kind)
        return {kind: kind for kind in kinds}
    if labels is not None:
        columns = [labels] if isinstance(labels, str) else list(labels)
        return {column: f"column:{column}" for column in columns}
    if data.test is None:
        raise ValueError(
            f"data {data.name!r} have no clean labels to test on: give noise='symmetric:0.4' if their labels are "
            "right, a clean test part (test=..., a folder test/, or x_test and y_test) if they are noisy, or "
            "labels='COLUMN' if a column holds the noisy ones"
        )
    return {"given": "given"}


def _check_data(data: TensorData, setting: Setting) -> None:
    part_sizes(data, setting)
    for case in setting.labels:
        source = setting.source(case)
        source.check(data)
        if setting.val == "clean" and not source.truth_known:
            raise ValueError("val='clean' needs right labels beside the noisy ones: give noise or labels")
    if setting.augment != "none" and data.x.ndim != 4:
        raise ValueError(f"augment={setting.augment!r} is for images, but a sample has shape {tuple(data.x.shape[1:])}")


def _obstacles(data: TensorData, setting: Setting, network: nn.Module) -> dict[str, str]:
    """Built-in arms that these data or this model do not allow, and why."""
    found = {"tram": unknown_annotators(data, setting)}
    for name, look in (("rog", lambda: hidden_layers(network, data.x[:2])), ("npc", lambda: last_linear(network))):
        try:
            look()
        except (TypeError, ValueError) as error:
            found[name] = f"arm {name!r} cannot be used with this model: {error}"
    return {name: reason for name, reason in found.items() if reason}


def _with_model(arm: Arm, factory: Any) -> Arm:
    """The arm with the user's own factory, whose code then belongs to the identity of its runs."""
    return replace(arm, run=Trial(arm.run.fit, factory)) if isinstance(arm.run, Trial) and callable(factory) else arm


def _baseline(name: str | None, arms: Mapping[str, Arm]) -> str:
    if len(arms) < 2:
        raise ValueError(f"a comparison needs at least two arms, got {', '.join(arms) or 'none'}")
    if name is None:
        return "ce" if "ce" in arms else next(iter(arms))
    if name not in arms:
        raise did_you_mean("baseline", name, arms)
    return name


TRACK = Track(
    name="noisy-labels",
    arms=ARMS,
    study=study,
    about="Which method still learns the right thing when many training labels are wrong?",
    data_help=DATA_HELP,
    refit=refit,
)
