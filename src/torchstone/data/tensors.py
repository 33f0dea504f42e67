"""Data in memory: one labelled set as tensors, and the wrapper that adds a sample's number to each item.

Sets of the size the bench works with fit in memory, so a set is a frozen record of tensors: it is indexed on the
device, split by index, and identified by its contents. :class:`IndexedDataset` is for methods that keep state per
training sample (and for data that do not fit): it works with any ``torch.utils.data.Dataset``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from torchstone._checks import check_index, check_length
from torchstone.errors import CorruptDataError

__all__ = ["IndexedDataset", "TensorData"]


@dataclass(frozen=True, eq=False, repr=False)
class TensorData(Dataset[tuple[Tensor, Tensor]]):
    """A labelled data set in memory, and so a map-style dataset of pairs ``(x[i], y[i])``.

    Attributes:
        x: the inputs.
        y: the class numbers, ``0 .. num_classes - 1``.
        class_names: one name per class.
        name: what messages and reports call the set.
        columns: further values per sample (labels by other annotators, worker ids, groups, ...).
        test: the official test part of the set, whose labels are clean; ``None`` if it has none.
        notes: what a reader of results should know about this copy (such as files that are missing).

    Shapes:
        ``x`` (n, ...) float32; ``y`` (n,) int64; each column (n, ...).

    Raises:
        CorruptDataError: from :meth:`validate`, which every reader of this package calls.

    Example:
        >>> data = TensorData(torch.rand(3, 2), torch.tensor([0, 1, 0]), ("cat", "dog"), "pets")
        >>> data
        TensorData(pets: 3 samples of shape (2,), 2 classes)
        >>> data.subset(torch.tensor([2])).y
        tensor([0])
    """

    x: Float32[Tensor, "n ..."]
    y: Int64[Tensor, "n"]
    class_names: tuple[str, ...]
    name: str
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    test: TensorData | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.y.device)
        return list(zip(self.x[index].unbind(), self.y[index].unbind(), strict=True))

    def __repr__(self) -> str:
        parts = [f"{len(self)} samples of shape {tuple(self.x.shape[1:])}", f"{self.num_classes} classes"]
        parts += [f"columns {', '.join(self.columns)}"] if self.columns else []
        parts += [f"test {len(self.test)}"] if self.test is not None else []
        return f"TensorData({self.name}: {', '.join(parts)})"

    def subset(self, index: Int64[Tensor, "m"]) -> TensorData:
        """Return the samples ``index`` (repeats allowed), in that order; the test part stays whole."""
        check_index("index", index, len(self))
        index = index.to(self.y.device)
        return replace(self, x=self.x[index], y=self.y[index], columns={k: v[index] for k, v in self.columns.items()})

    def with_labels(self, y: Int64[Tensor, "n"]) -> TensorData:
        """Return the same set with the labels ``y``; the test part keeps its own."""
        check_length("y", y, len(self), "x")
        return replace(self, y=y.to(self.y.device))

    def to(self, device: torch.device | str) -> TensorData:
        """Return the set, its columns and its test part on ``device``."""
        return replace(
            self,
            x=self.x.to(device),
            y=self.y.to(device),
            columns={k: v.to(device) for k, v in self.columns.items()},
            test=None if self.test is None else self.test.to(device),
        )

    def fingerprint(self) -> str:
        """Return 128 bits of BLAKE2b, as hex, over everything that can change a result.

        That is ``x``, ``y``, the class names, the columns and the test part; not ``name`` or ``notes`` (a set may be
        moved), nor the device and the strides of the tensors.
        """
        digest = hashlib.blake2b(digest_size=16)
        parts: list[tuple[str, Tensor]] = [("x", self.x), ("y", self.y), *sorted(self.columns.items())]
        for name, tensor in parts:
            digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digest.update(repr(self.class_names).encode())
        digest.update(b"" if self.test is None else self.test.fingerprint().encode())
        return digest.hexdigest()

    def validate(self) -> TensorData:
        """Return the set itself, or raise ``CorruptDataError`` with one sentence on what is wrong.

        Wrong are: no samples, lengths that differ, another dtype than float32 and int64, NaN or infinite inputs, labels
        outside ``0 .. num_classes - 1``, labels of a single class, and a test part that does not fit the training part.
        """
        self._check_part(f"data {self.name!r}")
        first = int(self.y[0])
        if bool((self.y == first).all()):
            only = self.class_names[first]
            raise CorruptDataError(
                f"data {self.name!r}: all {len(self)} labels are {only!r}, but two classes are needed"
            )
        if self.test is not None:
            if self.test.class_names != self.class_names:
                raise CorruptDataError(f"data {self.name!r}: the test part names other classes than the training part")
            if self.test.x.shape[1:] != self.x.shape[1:]:
                shapes = f"{tuple(self.test.x.shape[1:])}, but training samples {tuple(self.x.shape[1:])}"
                raise CorruptDataError(f"data {self.name!r}: test samples have shape {shapes}")
            self.test._check_part(f"data {self.name!r}, test part")
        return self

    def _check_part(self, what: str) -> None:
        if self.x.dtype != torch.float32 or self.y.dtype != torch.int64:
            raise CorruptDataError(
                f"{what}: x and y must be float32 and int64, but are {self.x.dtype} and {self.y.dtype}"
            )
        if self.y.ndim != 1 or self.x.ndim < 1:
            raise CorruptDataError(f"{what}: y must have shape (n,), but has {tuple(self.y.shape)}")
        for name, tensor in (("y", self.y), *((f"column {k!r}", v) for k, v in self.columns.items())):
            if tensor.shape[:1] != self.x.shape[:1]:
                raise CorruptDataError(
                    f"{what}: x has {len(self.x)} samples, but {name} has shape {tuple(tensor.shape)}"
                )
        if self.x.numel() == 0:
            raise CorruptDataError(f"{what}: it is empty (x has shape {tuple(self.x.shape)})")
        outside = (self.y < 0) | (self.y >= self.num_classes)
        if outside.any():
            at = int(outside.nonzero()[0, 0])
            raise CorruptDataError(
                f"{what}: labels must lie in 0..{self.num_classes - 1}, but {int(outside.sum())} do not, "
                f"the first being {int(self.y[at])} at sample {at}"
            )
        bad = ~self.x.isfinite()
        if bad.any():
            at = tuple(int(i) for i in bad.nonzero()[0])
            raise CorruptDataError(f"{what}: x holds {int(bad.sum())} NaN or infinite values, the first at index {at}")


class IndexedDataset(Dataset[tuple[Any, Any, int]]):
    """Add to each pair ``(x, y)`` of a map-style dataset its number: ``(x, y, i)``.

    Losses that keep state per training sample need ``i``, which a shuffled loader hides. It counts inside the wrapped
    dataset, so wrap what is trained on: the split, not the full set it was taken from. Batches are fetched at once
    where the wrapped dataset has ``__getitems__``.

    Shapes:
        As the wrapped dataset; under the default collate function ``i`` becomes an int64 tensor of shape (batch,).

    Raises:
        TypeError: if ``dataset`` has no numbered items, or an item is not a pair.

    Example:
        >>> data = TensorData(torch.zeros(3, 2), torch.tensor([5, 6, 7]), tuple("abcdefgh"), "toy")
        >>> loader = torch.utils.data.DataLoader(IndexedDataset(data), batch_size=2)
        >>> [(y.tolist(), i.tolist()) for _, y, i in loader]
        [([5, 6], [0, 1]), ([7], [2])]
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise TypeError(
                f"dataset must have numbered items (__getitem__ and __len__), but {type(dataset).__name__} has not"
            )
        self.dataset: Any = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        number = index + len(self) if index < 0 else index
        return *self._pair(self.dataset[number], number), number

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any, int]]:
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(indices)
        else:
            items = [self.dataset[i] for i in indices]
        return [(*self._pair(item, i), i) for item, i in zip(items, indices, strict=True)]

    def _pair(self, item: Any, index: int) -> tuple[Any, Any]:
        if not isinstance(item, tuple | list) or len(item) != 2:
            got = f"{len(item)} values" if isinstance(item, tuple | list) else type(item).__name__
            raise TypeError(f"dataset must give pairs (x, y), but item {index} is {got}")
        return item[0], item[1]
