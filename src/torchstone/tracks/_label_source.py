"""Where the labels of a comparison come from: a word such as ``symmetric:0.4``, and what it does to the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchstone.data.label_noise import asymmetric_noise, instance_dependent_noise, pair_flip_noise, symmetric_noise
from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, did_you_mean

__all__ = ["KINDS", "LabelSource", "parse_labels", "parse_noise"]

Inject = Callable[[TensorData, float, Mapping[int, int], torch.Generator], Tensor]


def _symmetric(data: TensorData, rate: float, mapping: Mapping[int, int], generator: torch.Generator) -> Tensor:
    return symmetric_noise(data.y, rate=rate, num_classes=data.num_classes, own_class=True, generator=generator)


def _symmetric_other(data: TensorData, rate: float, mapping: Mapping[int, int], generator: torch.Generator) -> Tensor:
    return symmetric_noise(data.y, rate=rate, num_classes=data.num_classes, own_class=False, generator=generator)


def _pair(data: TensorData, rate: float, mapping: Mapping[int, int], generator: torch.Generator) -> Tensor:
    return pair_flip_noise(data.y, rate=rate, num_classes=data.num_classes, generator=generator)


def _asymmetric(data: TensorData, rate: float, mapping: Mapping[int, int], generator: torch.Generator) -> Tensor:
    return asymmetric_noise(data.y, rate=rate, num_classes=data.num_classes, mapping=mapping, generator=generator)


def _instance(data: TensorData, rate: float, mapping: Mapping[int, int], generator: torch.Generator) -> Tensor:
    return instance_dependent_noise(data.x, data.y, rate=rate, num_classes=data.num_classes, generator=generator)


KINDS: dict[str, Inject] = {
    "symmetric": _symmetric,
    "symmetric-other": _symmetric_other,
    "pair": _pair,
    "asymmetric": _asymmetric,
    "instance": _instance,
}
"""Kinds of noise that can be put into clean labels."""

_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The maps of Patrini et al., CVPR 2017: classes that are easily confused.
_MAPS = {
    _DIGITS: {2: 7, 3: 8, 5: 6, 6: 5, 7: 1},
    _CIFAR10: {9: 1, 2: 0, 3: 5, 5: 3, 4: 7},
}


@dataclass(frozen=True)
class LabelSource:
    """What one case trains on.

    Args:
        kind: one of :data:`KINDS` (the data's labels are right; noise is put into them), ``"column"`` (a column of the
            data holds noisy labels, the data's own are right) or ``"given"`` (the data's own labels are noisy).
        rate: share of the samples that are selected for noise.
        detail: the map of ``asymmetric``, the name of the ``column``.
    """

    kind: str
    rate: float = 0.0
    detail: str = ""

    @property
    def truth_known(self) -> bool:
        """Whether the right label of every sample is known."""
        return self.kind != "given"

    def check(self, data: TensorData) -> None:
        """Raise unless these data can be labelled so."""
        if self.kind == "column":
            _check_column(data, self.detail)
        if self.kind == "asymmetric":
            self._mapping(data.class_names)

    def labels(self, data: TensorData, generator: torch.Generator) -> Tensor:
        """The labels to train on, one for each sample of ``data``."""
        if self.kind == "given":
            return data.y
        if self.kind == "column":
            return data.columns[self.detail]
        mapping = self._mapping(data.class_names) if self.kind == "asymmetric" else {}
        return KINDS[self.kind](data, self.rate, mapping, generator)

    def _mapping(self, names: tuple[str, ...]) -> Mapping[int, int]:
        if not self.detail:
            if names in _MAPS:
                return _MAPS[names]
            raise ValueError(
                "asymmetric noise needs to know which classes are taken for which: asymmetric:0.4:cat>dog,dog>cat"
            )
        mapping = {}
        for pair in self.detail.split(","):
            source, arrow, target = (part.strip() for part in pair.partition(">"))
            if not arrow:
                raise ValueError(f"asymmetric noise is written class>class, with commas between; got {pair!r}")
            for name in (source, target):
                if name not in names:
                    raise did_you_mean("class", name, names)
            mapping[names.index(source)] = names.index(target)
        return mapping


def parse_noise(text: str) -> LabelSource:
    """Read ``kind:rate``, for ``asymmetric`` with an optional ``:class>class,class>class``.

    Raises:
        UnknownNameError: for a kind that does not exist.
        ValueError: if there is no rate in [0, 1].

    Example:
        >>> parse_noise("symmetric:0.4")
        LabelSource(kind='symmetric', rate=0.4, detail='')
    """
    kind, _, rest = text.partition(":")
    rate, _, detail = rest.partition(":")
    if kind not in KINDS:
        raise did_you_mean("kind of noise", kind, KINDS)
    try:
        number = float(rate)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"noise is written kind:rate with a rate in [0, 1], such as {kind}:0.4; got {text!r}")
    if detail and kind != "asymmetric":
        raise ValueError(f"only asymmetric noise takes a map of classes; got {text!r}")
    return LabelSource(kind, number, detail)


def parse_labels(text: str) -> LabelSource:
    """Read what a case of a setting says: ``given``, ``column:NAME``, or noise as :func:`parse_noise` takes it."""
    kind, _, rest = text.partition(":")
    if kind == "given":
        return LabelSource("given")
    return LabelSource("column", detail=rest) if kind == "column" else parse_noise(text)


def _check_column(data: TensorData, name: str) -> None:
    if name not in data.columns:
        raise did_you_mean(f"column of {data.name}", name, data.columns)
    column = data.columns[name]
    if column.ndim != 1 or column.dtype != torch.int64:
        raise CorruptDataError(
            f"column {name!r} of {data.name} must hold one class number per sample, but has {column.dtype} "
            f"{tuple(column.shape)}"
        )
    outside = (column < 0) | (column >= data.num_classes)
    if outside.any():
        at = int(outside.nonzero()[0, 0])
        raise CorruptDataError(
            f"column {name!r} of {data.name} must hold labels in 0..{data.num_classes - 1}, but sample {at} has "
            f"{int(column[at])}"
        )
