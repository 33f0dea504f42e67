"""The contracts of a map-style dataset and of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from torchstone._checks import check_int
from torchstone.testing import contracts
from torchstone.testing.contracts import demand, same, stream, tensors

__all__ = ["check_dataset", "check_sampler"]


def check_dataset(
    dataset: Any,
    *,
    with_index: bool = False,
    require: Sequence[str] = ("Raises",),
    skip: Collection[str] = (),
) -> None:
    """Check that a map-style dataset keeps its contracts.

    They are ``docstring`` (has the blocks in ``require``), ``length`` (at least one item, and ``IndexError`` past the
    last, which ends a ``for`` loop), ``repeatable`` (an item asked for twice is the same), ``collates`` (items stack
    to a batch), ``loader`` (a shuffling ``DataLoader`` gives each row once) and, ``with_index``, ``index`` (the last
    element of an item is its number in the dataset, through a shuffling loader too).

    Args:
        dataset: what to check; its items are read several times.
        with_index: whether items end with their index.
        require: blocks that the docstring must have.
        skip: names of contracts that do not apply.

    Raises:
        AssertionError: with one line for each broken contract.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.rand(5, 2), torch.arange(5))
        >>> check_dataset(data, with_index=True, require=())
    """
    checks: dict[str, Callable[[], None]] = {
        "docstring": lambda: contracts.check_docstring(type(dataset), require=require),
        "length": lambda: _check_length(dataset),
        "repeatable": lambda: contracts.check_repeatable(lambda: [dataset[i] for i in _places(dataset)]),
        "collates": lambda: default_collate([dataset[i] for i in _places(dataset)]),
        "loader": lambda: _check_loader(dataset),
    }
    if with_index:
        checks["index"] = lambda: _check_index(dataset)
    contracts.run_checks(type(dataset).__name__, checks, skip=skip)


def check_sampler(
    make: Callable[[torch.Generator], Iterable[Any]],
    size: int,
    *,
    require: Sequence[str] = ("Raises",),
    skip: Collection[str] = (),
) -> None:
    """Check that a sampler, of single numbers or of batches of them, keeps its contracts.

    They are ``docstring`` (has the blocks in ``require``), ``range`` (integers in 0..size-1), ``length`` (``len`` tells
    how many come), ``generator`` (the order depends on the generator alone) and ``epochs`` (a second pass draws anew).

    Args:
        make: builds the sampler from a generator.
        size: items in the dataset it samples from; enough that two random orders differ.
        require: blocks that the docstring must have.
        skip: names of contracts that do not apply.

    Raises:
        AssertionError: with one line for each broken contract.

    Example:
        >>> data = range(20)
        >>> check_sampler(lambda g: torch.utils.data.RandomSampler(data, generator=g), 20, require=())
    """
    check_int("size", size, 1)
    sampler = make(torch.Generator().manual_seed(0))
    checks: dict[str, Callable[[], None]] = {
        "docstring": lambda: contracts.check_docstring(type(sampler), require=require),
        "range": lambda: _check_range(sampler, size),
        "length": lambda: _check_announced(sampler),
        "generator": lambda: contracts.check_generator(lambda generator: list(make(generator))),
        "epochs": lambda: demand(
            list(sampler) != list(sampler), "two passes give the same order", "draw inside __iter__, not in __init__"
        ),
    }
    contracts.run_checks(type(sampler).__name__, checks, skip=skip)


def _places(dataset: Any) -> list[int]:
    """Return a few valid indices, the first and the last among them."""
    return sorted({0, 1 % len(dataset), len(dataset) // 2, len(dataset) - 1})


def _check_length(dataset: Any) -> None:
    demand(len(dataset) > 0, "the dataset is empty", "check it with at least one item")
    try:
        dataset[len(dataset)]
    except IndexError:
        return
    except Exception as error:
        raise AssertionError(f"item len(dataset) raises {type(error).__name__}; raise IndexError") from error
    raise AssertionError("item len(dataset) exists; raise IndexError")


def _shuffled(dataset: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))


def _check_loader(dataset: Any) -> None:
    rows = sum(len(tensors(batch)[0]) for batch in _shuffled(dataset))
    demand(
        rows == len(dataset), f"a loader gives {rows} rows, but len is {len(dataset)}", "let __len__ count the items"
    )


def _check_index(dataset: Any) -> None:
    mend = "return the argument of __getitem__ as the last element"
    for i in _places(dataset):
        demand(int(dataset[i][-1]) == i, f"item {i} says that its index is {dataset[i][-1]}", mend)
    for batch in _shuffled(dataset):
        index: Tensor = batch[-1]
        demand(index.dtype == torch.int64, f"a batch of indices has dtype {index.dtype}", "return a Python int")
        with stream(0):
            again = default_collate([dataset[int(i)] for i in index])
        demand(same(tensors(batch)[:1], tensors(again)[:1]), "a shuffled batch has rows of other indices", mend)


def _numbers(drawn: Iterable[Any]) -> list[Any]:
    """Return the numbers that a sampler drew, batches unpacked."""
    return [number for item in drawn for number in (item if isinstance(item, list | tuple) else [item])]


def _check_range(sampler: Iterable[Any], size: int) -> None:
    for number in _numbers(sampler):
        demand(isinstance(number, int), f"{number!r} is a {type(number).__name__}", "yield Python ints (.tolist())")
        demand(0 <= number < size, f"{number} does not lie in 0..{size - 1}", "yield places in the dataset")


def _check_announced(sampler: Any) -> None:
    announced, drawn = len(sampler), len(list(sampler))
    demand(announced == drawn, f"len is {announced}, but {drawn} come", "let __len__ count what __iter__ yields")
