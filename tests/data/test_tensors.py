from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

from torchstone.data import IndexedDataset, TensorData
from torchstone.errors import CorruptDataError


@pytest.fixture
def pets() -> TensorData:
    x = torch.arange(24.0).reshape(4, 2, 3)
    test = TensorData(torch.ones(2, 2, 3), torch.tensor([1, 1]), ("cat", "dog"), "pets test")
    return TensorData(
        x, torch.tensor([0, 1, 1, 0]), ("cat", "dog"), "pets", {"who": torch.tensor([7, 8, 9, 7])}, test, ("a note",)
    )


def test_parts(pets: TensorData):
    part = pets.subset(torch.tensor([3, 1, 1]))
    assert part.y.tolist() == [0, 1, 1]
    assert torch.equal(part.x, pets.x[[3, 1, 1]])
    assert part.columns["who"].tolist() == [7, 8, 8]
    assert part.test is pets.test
    assert (part.num_classes, len(part), part.name, part.notes) == (2, 3, "pets", ("a note",))
    noisy = pets.with_labels(torch.tensor([1, 1, 1, 0]))
    assert noisy.y.tolist() == [1, 1, 1, 0]
    assert noisy.x is pets.x
    assert repr(pets) == "TensorData(pets: 4 samples of shape (2, 3), 2 classes, columns who, test 2)"
    assert len(pets.subset(torch.empty(0, dtype=torch.int64))) == 0


@pytest.mark.untyped
def test_wrong_index_and_labels(pets: TensorData):
    with pytest.raises(ValueError, match=r"index must lie in 0\.\.3, but spans 1\.\.4"):
        pets.subset(torch.tensor([1, 4]))
    with pytest.raises(TypeError, match="index must have dtype"):
        pets.subset(torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"y must have as many rows as x \(4\), but has 1"):
        pets.with_labels(torch.tensor([1]))


def test_is_a_dataset(pets: TensorData):
    batches = list(DataLoader(pets, batch_size=3))
    assert torch.equal(torch.cat([x for x, _ in batches]), pets.x)
    assert torch.equal(torch.cat([y for _, y in batches]), pets.y)
    assert pets[1][1] == 1


def test_to_moves_everything(pets: TensorData):
    moved = pets.to("meta")
    assert moved.test is not None
    assert {t.device.type for t in (moved.x, moved.y, moved.columns["who"], moved.test.x)} == {"meta"}


def test_fingerprint_is_of_the_contents(pets: TensorData):
    assert pets.test is not None
    mark = pets.fingerprint()
    assert len(mark) == 32
    # Known value: a change of the scheme would invalidate stored results, so it must be made knowingly.
    assert mark == "643ddd6dee5a203554c0c74e4397eee8"
    strided = replace(pets, x=pets.x.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    strided = replace(strided, y=torch.stack([pets.y, pets.y], 1)[:, 0])
    assert not strided.x.is_contiguous()
    assert not strided.y.is_contiguous()
    same = [strided, replace(pets, name="other", notes=()), replace(pets, columns=dict(pets.columns))]
    assert {s.fingerprint() for s in same} == {mark}
    other = pets.x.clone()
    other[3, 1, 2] += 1e-3
    different = [
        replace(pets, x=other),
        replace(pets, x=pets.x.reshape(4, 3, 2)),
        replace(pets, columns={"who": pets.columns["who"].int()}),
        pets.with_labels(torch.tensor([0, 1, 1, 1])),
        replace(pets, class_names=("cat", "cow")),
        replace(pets, columns={}),
        replace(pets, columns={"whom": pets.columns["who"]}),
        replace(pets, test=None),
        replace(pets, test=replace(pets.test, y=torch.tensor([0, 1]))),
        pets.subset(torch.tensor([1, 0, 2, 3])),
    ]
    marks = [d.fingerprint() for d in different]
    assert len({mark, *marks}) == 1 + len(different)


@pytest.mark.untyped
def test_validate_says_what_is_wrong(pets: TensorData):
    assert pets.validate() is pets
    assert pets.test is not None
    nan = pets.x.clone()
    nan[1, 0, 2] = nan[3] = torch.nan
    cases = {
        r"'pets': all 4 labels are 'dog', but two classes are needed": pets.with_labels(torch.ones(4).long()),
        r"x holds 7 NaN or infinite values, the first at index \(1, 0, 2\)": replace(pets, x=nan),
        r"labels must lie in 0\.\.1, but 2 do not, the first being 5 at sample 2": pets.with_labels(
            torch.tensor([0, 1, 5, -1])
        ),
        r"x has 4 samples, but y has shape \(3,\)": replace(pets, y=torch.tensor([0, 1, 1])),
        r"x has 4 samples, but column 'who' has shape \(1,\)": replace(pets, columns={"who": torch.tensor([1])}),
        r"it is empty": pets.subset(torch.empty(0, dtype=torch.int64)),
        r"x and y must be float32 and int64, but are torch.float64": replace(pets, x=pets.x.double()),
        r"y must have shape \(n,\), but has \(4, 1\)": replace(pets, y=pets.y[:, None]),
        r"test part names other classes": replace(pets, test=replace(pets.test, class_names=("a", "b"))),
        r"test samples have shape \(3,\), but training samples \(2, 3\)": replace(
            pets, test=replace(pets.test, x=torch.ones(2, 3))
        ),
        r"'pets', test part: labels must lie": replace(pets, test=replace(pets.test, y=torch.tensor([0, 2]))),
    }
    for message, data in cases.items():
        with pytest.raises(CorruptDataError, match=message):
            data.validate()


def test_indexed_dataset_survives_shuffling(pets: TensorData):
    seen = {}
    loader = DataLoader(IndexedDataset(pets), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(1))
    for x, y, index in loader:
        assert index.dtype == torch.int64
        assert torch.equal(x, pets.x[index])
        assert torch.equal(y, pets.y[index])
        seen |= dict.fromkeys(index.tolist())
    assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("wrap", [TensorDataset, StackDataset, lambda x, y: Subset(TensorDataset(x, y), range(4))])
def test_indexed_dataset_wraps_any_dataset(pets: TensorData, wrap):
    indexed = IndexedDataset(wrap(pets.x, pets.y))
    assert len(indexed) == 4
    x, y, i = indexed[-1]
    assert (y, i) == (0, 3)
    assert torch.equal(x, pets.x[3])
    assert [item[2] for item in indexed.__getitems__([2, 0])] == [2, 0]
    assert [int(item[1]) for item in indexed.__getitems__([2, 0])] == [1, 0]


def test_indexed_dataset_counts_inside_what_it_wraps(pets: TensorData):
    indexed = IndexedDataset(Subset(TensorDataset(pets.x, pets.y), [3, 1]))
    assert [(int(y), i) for _, y, i in (indexed[0], indexed[1])] == [(0, 0), (1, 1)]


@pytest.mark.untyped
def test_indexed_dataset_refuses():
    class Triples(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return 1, 2, 3

    class Stream(IterableDataset):
        def __iter__(self):
            yield 1, 2

    with pytest.raises(TypeError, match=r"pairs \(x, y\), but item 1 is 3 values"):
        IndexedDataset(Triples())[1]
    with pytest.raises(TypeError, match="but item 0 is 3 values"):
        next(iter(DataLoader(IndexedDataset(Triples()), batch_size=2)))
    with pytest.raises(TypeError, match="but item 0 is Tensor"):
        IndexedDataset(torch.zeros(3, 2))[0]  # pyright: ignore[reportArgumentType]  # on purpose
    with pytest.raises(TypeError, match=r"numbered items .__getitem__ and __len__., but Stream has not"):
        IndexedDataset(Stream())
