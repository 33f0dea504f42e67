"""What the arms of one cell are given: noisy training and validation data, sealed clean test data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from torchstone.bench.seeds import Seeds
from torchstone.bench.study import Cell, Sealed
from torchstone.data.registry import load
from torchstone.data.splits import random_split_indices
from torchstone.data.tensors import TensorData
from torchstone.tracks._label_source import LabelSource, parse_labels

__all__ = ["PRIVILEGED", "Problem", "Setting", "Task", "part_sizes", "privileged"]

PRIVILEGED = ("annotator", "answer", "pi")
"""Columns that tell what is known of the labels, of training and validation samples only."""


@dataclass(frozen=True)
class Setting:
    """Sizes and rules of a comparison on noisy labels, the same for all its arms.

    Args:
        labels: case -> where its labels come from: ``given``, ``column:NAME``, or ``kind:rate`` of noise.
        model: what :func:`torchstone.models.build` takes.
        epochs: passes over the training data.
        batch_size: samples in one step.
        momentum: of the networks' SGD.
        weight_decay: of the networks' SGD.
        augment: ``"none"``, or ``"crop-flip"`` for images.
        val_fraction: share of the samples that are not tested on; they are not trained on but tuned on.
        test_fraction: share of the samples that are tested on, where the data have no test part of their own.
        samples: use at most so many samples in all, drawn anew in each replicate.
        val: whether validation labels are ``"noisy"``, as the training labels are, or ``"clean"``.
    """

    labels: Mapping[str, str]
    model: Any = "mlp"
    epochs: int = 40
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "none"
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    samples: int | None = None
    val: str = "noisy"

    def source(self, case: str) -> LabelSource:
        """Where the labels of a case come from."""
        return parse_labels(self.labels[case])


@dataclass(frozen=True, eq=False)
class Task:
    """The data of one cell.

    Args:
        train: training samples with the labels that methods may see.
        val: validation samples, for tuning and for methods that select by them.
        test: test samples with right labels.
        truth: right labels of the training samples, ``None`` where nobody knows them.
        val_truth: the same of the validation samples.
        done: outcomes, and trained networks, that several arms of the cell report on or start from.
    """

    train: TensorData
    val: TensorData
    test: Sealed[TensorData]
    truth: Sealed[Tensor | None]
    val_truth: Sealed[Tensor | None]
    done: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Problem:
    """``Experiment.shared`` of a comparison: splits the data of a cell and makes its labels noisy.

    Args:
        data: the data, or the name of a known set, which is then read when it is first needed.
    """

    data: TensorData | str

    def dataset(self) -> TensorData:
        """The whole data."""
        return self.data if isinstance(self.data, TensorData) else _known(self.data)

    def __call__(self, cell: Cell) -> Task:
        """The task of a cell; splits, noise and order of samples depend on its seeds alone."""
        data, setting = self.dataset(), cell.setting
        source = setting.source(cell.case)
        train, val, test = _parts(data, setting, cell.seeds)
        known = privileged(data, source)
        seen = torch.cat([train, val])
        given = source.labels(data.subset(seen), cell.seeds.generator("noise", "labels"))
        noisy_train, noisy_val = given.split([len(train), len(val)])
        return Task(
            train=_bare(data, train, noisy_train, known),
            val=_bare(data, val, data.y[val]) if setting.val == "clean" else _bare(data, val, noisy_val, known),
            test=cell.seal(_bare(data, test) if data.test is None else _bare(data.test, test)),
            truth=cell.seal(data.y[train] if source.truth_known else None),
            val_truth=cell.seal(data.y[val] if source.truth_known else None),
        )

    def everything(self, setting: Setting, case: str) -> TensorData:
        """All samples outside the data's own test part, with the labels that their owner gave them.

        Noise that a comparison put into right labels is left out again.
        """
        data, source = self.dataset(), setting.source(case)
        labels = data.columns[source.detail] if source.kind == "column" else data.y
        return TensorData(data.x, labels, data.class_names, data.name, privileged(data, source))


def privileged(data: TensorData, source: LabelSource) -> dict[str, Tensor]:
    """What the data know of the labels of a case, under the names of :data:`PRIVILEGED`.

    Of labels in a column C the columns ``C_annotator``, ``C_answer`` and ``C_pi`` tell, or, if there are none of these,
    ``annotator``, ``answer`` and ``pi``, which belong to the data's own labels too. Of noise that a comparison put in
    nobody knows anything: the answers to right labels would give them away.
    """
    if source.kind not in ("column", "given"):
        return {}
    for prefix in (f"{source.detail}_", "") if source.detail else ("",):
        found = {name: data.columns[prefix + name] for name in PRIVILEGED if prefix + name in data.columns}
        if found:
            return found
    return {}


def part_sizes(data: TensorData, setting: Setting) -> tuple[int, int, int]:
    """Numbers of training, validation and test samples.

    Raises:
        ValueError: if one of the parts would be empty.
    """
    own_test = 0 if data.test is None else len(data.test)
    total = len(data) + own_test
    used = min(setting.samples or total, total)
    test = round(used * setting.test_fraction)
    if own_test:
        test = min(test, own_test) if used < total else own_test
    rest = min(used - test, len(data))
    val = round(rest * setting.val_fraction)
    for name, size in (("train", rest - val), ("validate", val), ("test", test)):
        if size < 1:
            raise ValueError(
                f"data {data.name!r} have {total} samples, which leaves none to {name} on with "
                f"val_fraction={setting.val_fraction:g} and test_fraction={setting.test_fraction:g}"
            )
    return rest - val, val, test


def _parts(data: TensorData, setting: Setting, seeds: Seeds) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the three parts; the test indices point into the data's own test part where there is one."""
    sizes = part_sizes(data, setting)
    generator = seeds.generator("split")
    if data.test is None:
        train, val, test = random_split_indices(len(data), sizes, generator=generator, stratify=data.y)
        return train, val, test
    train, val = random_split_indices(len(data), sizes[:2], generator=generator, stratify=data.y)
    held = data.test
    (test,) = random_split_indices(len(held), sizes[2:], generator=seeds.generator("split", "test"), stratify=held.y)
    return train, val, test


def _bare(
    data: TensorData, index: Tensor, labels: Tensor | None = None, columns: Mapping[str, Tensor] | None = None
) -> TensorData:
    """Samples and labels, and of the columns those named: others may hold right labels.

    A test part is not for methods, and has no columns: nobody knows at that time who will have given a label.
    """
    y = data.y[index] if labels is None else labels
    kept = {name: column[index] for name, column in (columns or {}).items()}
    return TensorData(data.x[index], y, data.class_names, data.name, kept)


@lru_cache(maxsize=4)
def _known(name: str) -> TensorData:
    return load(name)
