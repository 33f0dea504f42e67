from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchstone.data import carve_validation, out_of_bootstrap, random_split_indices


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 60), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 9), st.booleans())
def test_parts_are_disjoint_and_of_the_sizes_asked_for(n, weights, seed, stratified):
    sizes = [int(w * n) for w in weights]
    if sum(sizes) > n:
        sizes = sizes[:1]
    labels = torch.arange(n) % 3 if stratified else None
    parts = random_split_indices(n, sizes, generator=_generator(seed), stratify=labels)
    joined = torch.cat(parts)
    assert [len(p) for p in parts] == sizes
    assert len(joined.unique()) == len(joined)
    assert not len(joined) or (joined.min() >= 0 and joined.max() < n)


def test_shares_leave_nothing_over():
    parts = random_split_indices(7, (0.5, 0.25, 0.25), generator=_generator())
    assert [len(p) for p in parts] == [4, 1, 2]
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
    thirds = random_split_indices(10, [1 / 3] * 3, generator=_generator())
    assert sum(map(len, thirds)) == 10


def test_split_is_random_and_determined_by_the_generator():
    first, again, other = (random_split_indices(100, [50], generator=_generator(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Every sample lands in a part of one half about half of the time: 200 draws, +-5 sigma.
    counts = torch.zeros(10)
    for seed in range(200):
        counts[random_split_indices(10, [5], generator=_generator(seed))[0]] += 1
    assert ((counts - 100).abs() < 5 * math.sqrt(200 * 0.25)).all()


def test_stratified_parts_keep_the_shares():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 90 + [3] * 10)
    for seed in range(5):
        parts = random_split_indices(1000, [500, 100, 400], generator=_generator(seed), stratify=labels)
        for part in parts:
            expected = torch.tensor([0.6, 0.3, 0.09, 0.01]) * len(part)
            assert ((torch.bincount(labels[part], minlength=4) - expected).abs() <= 2.5).all()
    first = [random_split_indices(1000, [500], generator=_generator(s), stratify=labels)[0] for s in (0, 1)]
    assert set(first[0].tolist()) != set(first[1].tolist())


@pytest.mark.untyped
def test_wrong_sizes():
    with pytest.raises(ValueError, match=r"sizes \[6, 5\] add up to 11, but there are only 10 samples"):
        random_split_indices(10, [6, 5])
    with pytest.raises(ValueError, match="sizes must be >= 0"):
        random_split_indices(10, [-1, 5])
    with pytest.raises(ValueError, match="sizes must be >= 0"):
        random_split_indices(10, [math.nan])
    with pytest.raises(TypeError, match="all counts"):
        random_split_indices(10, [1, 0.5])
    with pytest.raises(ValueError, match="n must be >= 1, but is 0"):
        random_split_indices(0, [1])
    with pytest.raises(ValueError, match="stratify must have as many rows as the pool"):
        random_split_indices(10, [1], stratify=torch.zeros(3).long())


def test_out_of_bootstrap_share():
    n, draws = 50, 150
    shares = [len(out_of_bootstrap(n, generator=_generator(s))[1]) / n for s in range(draws)]
    expected = (1 - 1 / n) ** n
    # Exact variance of the number of empty cells.
    p2 = (1 - 2 / n) ** n
    variance = (expected * (1 - expected) + (n - 1) * (p2 - expected**2)) / n
    assert abs(sum(shares) / draws - expected) < 5 * math.sqrt(variance / draws)


def test_out_of_bootstrap_multiplicities_are_uniform():
    times = torch.zeros(4)
    for seed in range(200):
        train, test = out_of_bootstrap(4, generator=_generator(seed))
        assert len(train) == 4
        assert not set(train.tolist()) & set(test.tolist())
        assert set(train.tolist()) | set(test.tolist()) == {0, 1, 2, 3}
        times += torch.bincount(train, minlength=4)
    assert ((times - 200).abs() < 5 * math.sqrt(800 * 0.25 * 0.75)).all()


def test_groups_are_resampled_whole():
    groups = torch.tensor([5, 9, 5, 2, 9, 5])
    for seed in range(50):
        train, test = out_of_bootstrap(6, generator=_generator(seed), groups=groups)
        assert not set(groups[train].tolist()) & set(groups[test].tolist())
        assert set(train.tolist()) | set(test.tolist()) == set(range(6))
        times = torch.bincount(train, minlength=6)
        for group in (2, 5, 9):
            assert len(times[groups == group].unique()) == 1
        assert sum(int(times[groups == g][0]) for g in (2, 5, 9)) == 3


def test_strata_keep_their_sizes():
    labels = torch.tensor([0] * 20 + [1] * 5)
    groups = torch.arange(25) // 5
    for seed in range(20):
        train, _ = out_of_bootstrap(25, generator=_generator(seed), stratify=labels)
        assert torch.bincount(labels[train]).tolist() == [20, 5]
        train, test = out_of_bootstrap(25, generator=_generator(seed), stratify=labels, groups=groups)
        assert torch.bincount(labels[train]).tolist() == [20, 5]
        assert not set(groups[train].tolist()) & set(groups[test].tolist())
    with pytest.raises(ValueError, match="a group holds several classes"):
        out_of_bootstrap(25, stratify=labels, groups=torch.arange(25) // 6)


@given(st.integers(2, 40), st.integers(0, 20), st.booleans())
def test_no_duplicate_on_both_sides_of_validation(n, seed, grouped):
    groups = torch.arange(n) // 2 if grouped else None
    sample, _ = out_of_bootstrap(n, generator=_generator(seed))
    units = sample if groups is None else groups[sample]
    size = len(units.unique()) // 2
    train, validation = carve_validation(sample, size, generator=_generator(seed), groups=groups)
    assert len(validation.unique()) == len(validation)
    assert sorted([*train.tolist(), *sample[torch.isin(sample, validation)].tolist()]) == sorted(sample.tolist())
    side = (lambda index: index) if groups is None else (lambda index: groups[index])
    assert not set(side(train).tolist()) & set(side(validation).tolist())
    assert len(side(validation).unique()) == size


def test_validation_share_and_limits():
    train, validation = carve_validation(torch.tensor([3, 3, 3, 8, 9, 5]), 0.5, generator=_generator())
    assert len(validation) == 2
    assert len(train) + len(validation) >= 4
    with pytest.raises(ValueError, match="size must leave something to train on, but 2 takes all 2"):
        carve_validation(torch.tensor([3, 3, 8]), 2)
