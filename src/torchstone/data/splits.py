"""Splits: which samples train, validate and test in one replicate.

The default split permutes the pool and cuts it. The out-of-bootstrap split draws the training samples with replacement
and tests on those never drawn, so that replicates vary in their data as new samples of the population would
(Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021).

Indices come back as int64 tensors on the CPU, wherever the generator lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from torchstone._checks import check_int, check_length

__all__ = ["carve_validation", "out_of_bootstrap", "random_split_indices"]


def random_split_indices(
    n: int,
    sizes: Sequence[int] | Sequence[float],
    *,
    generator: torch.Generator | None = None,
    stratify: Int64[Tensor, "n"] | None = None,
) -> tuple[Int64[Tensor, "_size"], ...]:
    """Cut a random permutation of ``0 .. n-1`` into disjoint parts.

    ``sizes`` are counts (ints) or shares of ``n`` (floats, rounded at the cuts, so that shares with sum 1 leave nothing
    over). With ``stratify`` each part holds each class in its share of the pool, to within a few samples.

    Shapes:
        ``stratify`` (n,) int64; returns one (size,) int64 tensor per size, in random order.

    Cost:
        O(n log n).

    Raises:
        ValueError: if a size is negative, the sizes exceed ``n``, or ``stratify`` has another length.
        TypeError: if the sizes mix counts and shares.

    Example:
        >>> train, test = random_split_indices(10, (0.7, 0.3), generator=torch.Generator().manual_seed(0))
        >>> len(train), len(test), len(set(train.tolist()) | set(test.tolist()))
        (7, 3, 10)
    """
    n = check_int("n", n, 1)
    edges = _edges(n, sizes)
    pool = torch.randperm(n, generator=generator, device=generator.device if generator is not None else "cpu").cpu()
    if stratify is not None:
        check_length("stratify", stratify, n, "the pool")
        pool = pool[torch.argsort(_place_in_class(stratify.cpu()[pool]), stable=True)]
    return tuple(pool[a:b] for a, b in itertools.pairwise(edges))


def out_of_bootstrap(
    n: int,
    *,
    generator: torch.Generator | None = None,
    groups: Int64[Tensor, "n"] | None = None,
    stratify: Int64[Tensor, "n"] | None = None,
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "test"]]:
    """Draw ``n`` samples with replacement to train on; test on the samples never drawn.

    The expected share of test samples is ``(1 - 1/n)^n``, about .368. With ``groups`` (subjects, users, graphs) whole
    groups are drawn, as many as there are, so no group is on both sides; with ``stratify`` the draws are made within
    each class. The test part may be empty when there are only a handful of samples or groups.

    Shapes:
        ``groups`` and ``stratify`` (n,) int64; returns ``(train, test)`` int64 in ascending order: (n,) with repeats
        (another length where groups differ in size), and the indices never drawn.

    Cost:
        O(n log n).

    Raises:
        ValueError: if a length is not ``n``, or a group holds several classes while ``stratify`` is given.

    Source:
        Bouthillier et al., MLSys 2021, section 3.

    Example:
        >>> train, test = out_of_bootstrap(6, generator=torch.Generator().manual_seed(0))
        >>> len(train), set(train.tolist()) & set(test.tolist())
        (6, set())
    """
    n = check_int("n", n, 1)
    unit = _units(n, groups)
    stratum = torch.zeros(int(unit.max()) + 1, dtype=torch.int64)
    if stratify is not None:
        check_length("stratify", stratify, n, "the pool")
        label = torch.unique(stratify.cpu(), return_inverse=True)[1]
        stratum[unit] = label
        if bool((stratum[unit] != label).any()):
            raise ValueError("stratify must be constant within each of the groups, but a group holds several classes")
    device = generator.device if generator is not None else "cpu"
    draws = torch.cat(
        [
            units[torch.randint(len(units), (len(units),), generator=generator, device=device).cpu()]
            for units in _members(stratum)
        ]
    )
    times = torch.bincount(draws, minlength=len(stratum))[unit]
    return torch.repeat_interleave(torch.arange(n), times), (times == 0).nonzero()[:, 0]


def carve_validation(
    sample: Int64[Tensor, "m"],
    size: int | float,
    *,
    generator: torch.Generator | None = None,
    groups: Int64[Tensor, "n"] | None = None,
) -> tuple[Int64[Tensor, "train"], Int64[Tensor, "validation"]]:
    """Split a bootstrap sample so that no duplicate of a validation sample is trained on.

    ``size`` of the *distinct* indices (a count, or a share of them as float) are drawn for validation, once each; the
    rest of ``sample``, with its repeats, is left for training. With ``groups``, ``size`` counts groups instead.

    Shapes:
        ``sample`` (m,) int64, repeats allowed; ``groups`` (n,) int64, indexed by the values of ``sample``; returns
        ``(train, validation)`` int64, validation in ascending order.

    Raises:
        ValueError: if ``size`` leaves nothing to train on, or is negative.

    Example:
        >>> train, val = carve_validation(torch.tensor([4, 4, 7, 7, 9]), 1, generator=torch.Generator().manual_seed(0))
        >>> len(val), set(train.tolist()) & set(val.tolist())
        (1, set())
    """
    unit = sample.cpu() if groups is None else groups.cpu()[sample.cpu()]
    distinct, unit = torch.unique(unit, return_inverse=True)
    (chosen,) = random_split_indices(len(distinct), [size], generator=generator)
    if len(chosen) == len(distinct):
        raise ValueError(f"size must leave something to train on, but {size!r} takes all {len(distinct)}")
    held = torch.isin(unit, chosen)
    return sample.cpu()[~held], torch.unique(sample.cpu()[held])


def _edges(n: int, sizes: Sequence[int] | Sequence[float]) -> list[int]:
    shares = [isinstance(size, float) for size in sizes]
    if any(shares) and not all(shares):
        raise TypeError(f"sizes must be all counts (int) or all shares (float), but are {list(sizes)!r}")
    edges, total = [0], 0.0
    for size in sizes:
        if not size >= 0:
            raise ValueError(f"sizes must be >= 0, but are {list(sizes)!r}")
        total += size
        edges.append(round(total * n) if isinstance(size, float) else int(total))
    if edges[-1] > n:
        raise ValueError(f"sizes {list(sizes)!r} add up to {edges[-1]}, but there are only {n} samples")
    return edges


def _place_in_class(labels: Tensor) -> Tensor:
    """Place of each entry among those of its class, from 0 to 1: sorting by it mixes the classes evenly."""
    place = torch.empty(len(labels), dtype=torch.float64)
    for members in _members(torch.unique(labels, return_inverse=True)[1]):
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return place


def _units(n: int, groups: Tensor | None) -> Tensor:
    """Number of the unit (the sample itself, or its group) of each sample, without gaps."""
    if groups is None:
        return torch.arange(n)
    check_length("groups", groups, n, "the pool")
    return torch.unique(groups.cpu(), return_inverse=True)[1]


def _members(unit: Tensor) -> list[Tensor]:
    """Indices that belong to each unit, for gapless unit numbers."""
    return list(torch.argsort(unit, stable=True).split(torch.bincount(unit).tolist()))
