"""Study my-study: does averaging the weights of SGD help when samples are few?

A study is data, arms (ways to do the job) and claims about them that can come out
false. This one works as it stands; change one thing at a time and run the tests:

    pytest test_my_study.py                     # seconds: it runs, and can be refuted
    torchstone run my_study.py --scale smoke    # the same from the command line
    torchstone run my_study.py                  # the verdict; a second call goes on

To have it in `torchstone list`, announce it in the pyproject.toml of your package:

    [project.entry-points."torchstone.studies"]
    my-study = "my_study:STUDY"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchstone.bench import (
    Arm,
    Cell,
    Experiment,
    Higher,
    LogUniform,
    Outcome,
    Ratio,
    Sealed,
    Study,
)
from torchstone.data import TensorData, load, random_split_indices

# ---------------------------------------------------------------- data

DATA = "digits"
"""Your own: a file.npz, a file.csv, a folder of images, or module:function."""


@dataclass(frozen=True)
class Sizes:
    """What differs between the scales. All of it is part of what a run is."""

    train: int = 100
    val: int = 300
    steps: int = 500
    batch: int = 10


@dataclass(frozen=True)
class Parts:
    """The data of one replicate."""

    train: TensorData
    val: TensorData
    test: Sealed[TensorData]


def split(cell: Cell) -> Parts:
    """Draw the samples of a replicate; done once for all of its arms."""
    data = load(DATA)
    sizes = cell.setting
    counts = (sizes.train, sizes.val, len(data) - sizes.train - sizes.val)
    # All chance comes from cell.seeds: split, init, order, augment, noise.
    generator = cell.seeds.generator("split")
    train, val, test = random_split_indices(len(data), counts, generator=generator)
    # Sealed test data cannot be opened while hyper-parameters are tuned.
    return Parts(data.subset(train), data.subset(val), cell.seal(data.subset(test)))


# ---------------------------------------------------------------- arms


def descend(cell: Cell, lr: float) -> list[Tensor]:
    """Softmax regression by SGD; the weights after each step."""
    train, sizes = cell.shared().train, cell.setting
    x = with_bias(train.x)
    weights = torch.zeros(x.shape[1], train.num_classes)
    order = cell.seeds.generator("order")
    path = []
    for _ in range(sizes.steps):
        batch = torch.randint(len(x), (sizes.batch,), generator=order)
        target = F.one_hot(train.y[batch], train.num_classes)
        error = (x[batch] @ weights).softmax(1) - target
        weights = weights - lr * x[batch].T @ error / sizes.batch
        path.append(weights)
    return path


def run_last(cell: Cell, *, lr: float) -> Outcome:
    """Take the weights after the last step."""
    path = descend(cell, lr)
    return score(cell, lambda x: with_bias(x) @ path[-1], steps=len(path))


def run_averaged(cell: Cell, *, lr: float) -> Outcome:
    """Take the mean of the weights over the second half of the steps."""
    path = descend(cell, lr)
    mean = torch.stack(path[len(path) // 2 :]).mean(0)
    return score(cell, lambda x: with_bias(x) @ mean, steps=len(path))


def run_nearest(cell: Cell) -> Outcome:
    """Take the class with the nearest mean: what is possible without learning."""
    train = cell.shared().train
    x = train.x.flatten(1)
    means = torch.stack([x[train.y == c].mean(0) for c in range(train.num_classes)])
    means = means.nan_to_num(1e6)  # a class without samples is far from everything
    return score(cell, lambda x: -torch.cdist(x.flatten(1), means))


def with_bias(x: Tensor) -> Tensor:
    """Inputs as rows, with a column of ones."""
    return F.pad(x.flatten(1), (0, 1), value=1.0)


def score(cell: Cell, predict: Callable[[Tensor], Tensor], steps: int = 0) -> Outcome:
    """Validation accuracy to tune by, test accuracy to judge by."""
    objective = accuracy(predict, cell.shared().val)
    if cell.tuning:  # a draw of hyper-parameters is told nothing else
        return Outcome(objective=objective)
    test = cell.shared().test.open()
    return Outcome(
        {"accuracy": accuracy(predict, test)},
        objective=objective,
        cost={"steps": steps},  # counted, never seconds: claims may speak about it
    )


def accuracy(predict: Callable[[Tensor], Tensor], data: TensorData) -> float:
    """Share of the samples that get their own class."""
    return (predict(data.x).argmax(1) == data.y).double().mean().item()


# ---------------------------------------------------------------- claims

LR = LogUniform(0.03, 10.0)
"""Learning rates that are tried: the same, and as many, for both arms."""

MAIN = Experiment(
    name="main",
    arms={
        "last": Arm(run_last, space={"lr": LR}, role="baseline"),
        "averaged": Arm(run_averaged, space={"lr": LR}, role="method"),
        "nearest": Arm(run_nearest, role="heuristic"),
    },
    # A premise must hold before the claims mean anything.
    premises=(Higher("accuracy", "last", 0.5),),
    # Written down before anything runs. Exactly one is primary: the study's verdict.
    claims=(
        Higher("accuracy", "averaged", "last", primary=True),
        Higher("accuracy", "averaged", "nearest"),
        Ratio("steps", "averaged", "last", at_most=1.0, always=True),
    ),
    settings={"smoke": Sizes(steps=20), "bench": Sizes()},
    shared=split,
    replicates=(6, 29),  # from 6 on it stops as soon as every claim is decided
    tries=8,  # random draws of lr for each arm that has a space
    data=f"{DATA} {load(DATA).fingerprint()}",  # other data, other runs
)

STUDY = Study(
    name="my-study",
    experiments=(MAIN,),
    about="Does averaging the weights of SGD help when samples are few?",
)
