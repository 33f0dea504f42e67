"""Labels by several annotators: who gave which answer to which sample, as tables that a loader or a loss can use.

A table of answers has one row per sample and one column per answer: ``answers`` (n, R) with -1 where there are fewer,
and beside it the annotators' ids (n, R), with -1 there too, or feature vectors of each answer (n, R, m). What is known
of an answer, but not of a test sample, is called privileged information.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from torchstone._checks import check_finite, check_index, check_int, check_length, check_ndim

__all__ = ["Annotations", "AnnotatorDataset", "answer_table", "majority_vote", "simulate_answers"]


class Annotations(NamedTuple):
    """What is known of the labels of some samples.

    Attributes:
        pi: privileged information: ids (..., R) int64, features (..., R, m) float, or the pair of both.
        y: the answers (..., R), -1 where there is none.
        mask: where there is one.
    """

    pi: Any
    y: Int64[Tensor, "*n r"]
    mask: Bool[Tensor, "*n r"]


class AnnotatorDataset(Dataset[tuple[Any, Any, Tensor, Tensor]]):
    """Add all annotators' answers to the inputs of a dataset: items ``(x, pi, y, mask)``.

    Items have R entries each, so that they stack: where a sample has fewer answers, ``mask`` is False, answer and id
    are -1 and features 0. With ``sample=r`` each visit draws r of a sample's answers without replacement, other ones
    each time; what is left over if there are fewer is padded. The dataset's own labels are not used.

    Args:
        dataset: a map-style dataset of pairs ``(x, y)``.
        answers: class numbers, -1 where there is no answer.
        annotators: id of who gave each answer, -1 where there is none.
        features: further privileged information on each answer; 0 is put where there is no answer.
        num_annotators: how many annotators there are; by default the largest id + 1.
        sample: how many answers to draw at each visit; all by default.
        generator: source of the draws. In a loader's worker process it would repeat itself each epoch; there torch's
            own stream is used, which ``DataLoader(generator=...)`` decides.

    Shapes: ``answers`` and ``annotators`` (n, R) int64, or (n,) for one answer each; ``features`` (n, R, m) float, or
        (n, m). An item's ``pi`` is (R,) ids, (R, m) features or the pair of both; ``y`` and ``mask`` (R,).
    Cost: O(R) a visit besides that of ``dataset``; the tables are kept in memory.
    Raises: TypeError on a wrong dtype or a dataset without numbered items; ValueError if neither annotators nor
        features are given, shapes disagree, an answer has no annotator, or an id is ``num_annotators`` or more.
    Source: Collier, Jenatton, Kokiopoulou, Berent, *Transfer and Marginalize*, ICML 2022 (sub-sampling of annotators).

    Example:
        >>> images = torch.utils.data.TensorDataset(torch.zeros(2, 3), torch.zeros(2))
        >>> data = AnnotatorDataset(images, torch.tensor([[4, 1], [2, -1]]), torch.tensor([[0, 7], [7, -1]]))
        >>> data[1][1:]
        (tensor([ 7, -1]), tensor([ 2, -1]), tensor([ True, False]))
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        answers: Int64[Tensor, "n ..."],
        annotators: Int64[Tensor, "n ..."] | None = None,
        features: Float[Tensor, "n ..."] | None = None,
        *,
        num_annotators: int | None = None,
        sample: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError(f"dataset must have numbered items, but {type(dataset).__name__} has not")
        if annotators is None and features is None:
            raise ValueError("give annotators (ids) or features, or both: who gave the answers is what is added here")
        self.dataset: Any = dataset
        self.answers = _table("answers", answers)
        check_length("answers", self.answers, len(self.dataset), "dataset")
        self.annotators = None if annotators is None else _table("annotators", annotators)
        self.features = None if features is None else _vectors(features, self.answers)
        self.num_annotators = self._checked_annotators(num_annotators)
        self.sample = None if sample is None else check_int("sample", sample, 1)
        self.generator = generator

    @property
    def pi_dim(self) -> int:
        """Numbers in a feature vector, 0 without features."""
        return 0 if self.features is None else self.features.shape[2]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any, Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any, Tensor, Tensor]]:
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(indices)
        else:
            items = [self.dataset[i] for i in indices]
        found = self.annotations(torch.as_tensor(indices, dtype=torch.int64))
        pi = zip(*found.pi, strict=True) if isinstance(found.pi, tuple) else found.pi
        return [(item[0], a, y, mask) for item, a, y, mask in zip(items, pi, found.y, found.mask, strict=True)]

    def annotations(self, index: Int64[Tensor, " batch"]) -> Annotations:
        """Return what is known of the labels of the samples ``index``, drawn anew: for data in memory."""
        index = index.to(self.answers.device)
        y = self.answers[index]
        chosen = self._draw(y)
        parts = [
            table[index] if chosen is None else table[index].take_along_dim(_like(chosen, table), 1)
            for table in (self.annotators, self.features)
            if table is not None
        ]
        y = y if chosen is None else y.take_along_dim(chosen, 1)
        return Annotations(parts[0] if len(parts) == 1 else tuple(parts), y, y >= 0)

    def to(self, device: torch.device | str) -> AnnotatorDataset:
        """Return the same with the tables on ``device``; the wrapped dataset stays where it is."""
        return AnnotatorDataset(
            self.dataset,
            self.answers.to(device),
            None if self.annotators is None else self.annotators.to(device),
            None if self.features is None else self.features.to(device),
            num_annotators=self.num_annotators or None,
            sample=self.sample,
            generator=self.generator,
        )

    def _draw(self, y: Tensor) -> Tensor | None:
        """Places of the answers to take, those that exist first; ``None`` for all."""
        if self.sample is None or self.sample >= y.shape[1]:
            return None
        generator = self.generator if get_worker_info() is None else None
        device = y.device if generator is None else generator.device
        key = torch.rand(y.shape, generator=generator, device=device).to(y.device)
        return key.masked_fill(y < 0, 2.0).argsort(1)[:, : self.sample]

    def _checked_annotators(self, number: int | None) -> int:
        if self.annotators is None:
            return 0
        if self.annotators.shape != self.answers.shape:
            raise ValueError(
                f"annotators must have the shape of answers {tuple(self.answers.shape)}, but have "
                f"{tuple(self.annotators.shape)}"
            )
        there = self.answers >= 0
        if ((self.annotators < 0) & there).any():
            at = int(((self.annotators < 0) & there).any(1).nonzero()[0])
            raise ValueError(f"annotators must name who gave each answer, but sample {at} has an answer by nobody")
        self.annotators = self.annotators.where(there, -1)
        most = int(self.annotators.max())
        if number is None:
            return most + 1
        if most >= check_int("num_annotators", number, 1):
            raise ValueError(f"annotators must lie in 0..{number - 1} (num_annotators), but one is {most}")
        return number


def answer_table(
    item: Int64[Tensor, " rows"], annotator: Int64[Tensor, " rows"], answer: Int64[Tensor, " rows"], num_items: int
) -> tuple[Int64[Tensor, "n r"], Int64[Tensor, "n r"]]:
    """Return the tables of annotators and answers from a long list of (item, annotator, answer), in its order.

    Shapes: all lists (rows,) int64; returns two tables (num_items, R), R the most answers that an item has, padded by
        -1.
    Raises: TypeError or ValueError if lengths or dtypes disagree or an item is out of range.

    Example:
        >>> answer_table(torch.tensor([1, 0, 1]), torch.tensor([5, 6, 7]), torch.tensor([2, 2, 0]), 2)
        (tensor([[ 6, -1],
                [ 5,  7]]), tensor([[ 2, -1],
                [ 2,  0]]))
    """
    check_index("item", item, num_items)
    for name, values in (("annotator", annotator), ("answer", answer)):
        check_length(name, values, len(item), "item")
    order = item.argsort(stable=True)
    counts = torch.bincount(item, minlength=num_items)
    start = counts.cumsum(0) - counts
    place = torch.arange(len(item)) - start[item[order]]
    tables = torch.full((2, num_items, max(int(counts.max()), 1)), -1)
    tables[0, item[order], place] = annotator[order]
    tables[1, item[order], place] = answer[order]
    return tables[0], tables[1]


def majority_vote(answers: Int64[Tensor, "n r"], num_classes: int) -> Int64[Tensor, " n"]:
    """Return the class with most votes; of equal ones the one that was named first.

    Shapes: ``answers`` (n, R), -1 where there is none; returns (n,).
    Raises: ValueError for a sample without an answer or a class out of range.

    Example:
        >>> majority_vote(torch.tensor([[3, 0, 0], [2, 1, -1]]), 4)
        tensor([0, 2])
    """
    check_ndim("answers", answers, 2, "(n, answers)")
    if int(answers.max()) >= num_classes or int(answers.min()) < -1:
        raise ValueError(
            f"answers must lie in -1..{num_classes - 1}, but span {int(answers.min())}..{int(answers.max())}"
        )
    there = answers >= 0
    if not there.any(1).all():
        raise ValueError(f"sample {int((~there.any(1)).nonzero()[0])} has no answer to vote with")
    votes = ((answers.unsqueeze(2) == answers.unsqueeze(1)) & there.unsqueeze(2)).sum(2)
    return answers.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)  # argmax: the first of equals


def simulate_answers(
    y: Int64[Tensor, " n"],
    confusion: Float[Tensor, "annotators classes classes"],
    per_item: int = 1,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Int64[Tensor, "n r"], Int64[Tensor, "n r"]]:
    """Draw answers of simulated annotators: ids and answers, of ``per_item`` different annotators for each sample.

    Annotator a answers c to a sample of class k with probability ``confusion[a, k, c]``. Who is asked is drawn evenly.

    Shapes: ``y`` (n,) int64; ``confusion`` (A, C, C) float, rows of sum 1; returns ids and answers (n, per_item) int64.
    Raises: TypeError on a wrong dtype; ValueError if rows are no distributions, a label is out of range, or there are
        fewer annotators than ``per_item``.

    Example:
        >>> never_wrong = torch.eye(3).expand(5, 3, 3)
        >>> simulate_answers(torch.tensor([2, 0]), never_wrong, 2)[1]
        tensor([[2, 2],
                [0, 0]])
    """
    check_ndim("confusion", confusion, 3, "(annotators, classes, classes)")
    many, classes, columns = confusion.shape
    if classes != columns or (confusion < 0).any() or not torch.allclose(confusion.sum(2), confusion.new_ones(())):
        raise ValueError("confusion must hold one distribution over the classes per annotator and class")
    check_index("y", y, classes)
    check_int("per_item", per_item, 1, many)
    device = y.device if generator is None else generator.device
    key = torch.rand(len(y), many, generator=generator, device=device)
    ids = key.argsort(1)[:, :per_item].to(y.device)
    rows = confusion.to(device)[ids.to(device), y.to(device).unsqueeze(1)]
    drawn = torch.multinomial(rows.flatten(0, 1), 1, generator=generator).view(len(y), per_item)
    return ids, drawn.to(y.device)


def _table(name: str, values: Tensor) -> Tensor:
    if values.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64, but have {values.dtype}")
    table = values.unsqueeze(1) if values.ndim == 1 else values
    check_ndim(name, table, 2, "(n,) or (n, answers)")
    if not table.shape[1] or (table.numel() and int(table.min()) < -1):
        raise ValueError(f"{name} must have at least 1 column of numbers from 0 on, or -1 for none")
    return table


def _vectors(values: Tensor, answers: Tensor) -> Tensor:
    if not values.is_floating_point():
        raise TypeError(f"features must be floating point, but have dtype {values.dtype}")
    vectors = values.unsqueeze(1) if values.ndim == 2 else values
    if vectors.ndim != 3 or vectors.shape[:2] != answers.shape or not vectors.shape[2]:
        raise ValueError(f"features must have shape {(*answers.shape, 'm')} as answers, but have {tuple(values.shape)}")
    vectors = vectors.masked_fill((answers < 0).unsqueeze(2), 0)
    check_finite("features", vectors)
    return vectors


def _like(chosen: Tensor, table: Shaped[Tensor, "n r ..."]) -> Tensor:
    return chosen if table.ndim == 2 else chosen.unsqueeze(2)
