from __future__ import annotations

import pytest
import torch

from torchstone.data import TensorData
from torchstone.errors import CorruptDataError, UnknownNameError
from torchstone.tracks._label_source import KINDS, LabelSource, parse_labels, parse_noise

PETS = TensorData(torch.rand(600, 3), torch.arange(600) % 3, ("cat", "dog", "emu"), "pets")
TEN = TensorData(torch.rand(20, 3), torch.arange(20) % 10, tuple("0123456789"), "ten")


def labels(text: str, data: TensorData = PETS) -> torch.Tensor:
    return parse_labels(text).labels(data, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("symmetric:0.6", 0.4),  # a third of the redrawn labels stay
        ("symmetric-other:0.6", 0.6),
        ("pair:0.6", 0.6),
        ("asymmetric:0.6:cat>dog", 0.2),
        ("instance:0.6", 0.6),
    ],
)
def test_share_of_changed_labels(text: str, share: float) -> None:
    assert float((labels(text) != PETS.y).double().mean()) == pytest.approx(share, abs=0.05)


def test_every_kind_is_tried_above_and_rate_0_changes_nothing() -> None:
    assert set(KINDS) == {"symmetric", "symmetric-other", "pair", "asymmetric", "instance"}
    for kind in KINDS.keys() - {"asymmetric", "instance"}:
        assert torch.equal(labels(f"{kind}:0"), PETS.y)


def test_known_labels() -> None:
    assert torch.equal(labels("pair:1"), (PETS.y + 1) % 3)
    assert torch.equal(labels("asymmetric:1:cat>dog, dog > cat"), torch.tensor([1, 0, 2]).repeat(200))
    assert labels("asymmetric:1", TEN)[:10].tolist() == [0, 1, 7, 8, 4, 6, 5, 1, 8, 9]
    assert torch.equal(labels("given"), PETS.y)
    column = TensorData(PETS.x, PETS.y, PETS.class_names, "pets", {"worse": (PETS.y + 2) % 3})
    assert torch.equal(labels("column:worse", column), column.columns["worse"])


def test_truth_is_known_unless_the_labels_are_taken_as_they_are() -> None:
    known = {text: parse_labels(text).truth_known for text in ("given", "column:x", "pair:0.1")}
    assert known == {"given": False, "column:x": True, "pair:0.1": True}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("symmetrik:0.4", UnknownNameError, "did you mean 'symmetric'"),
        ("symmetric", ValueError, r"rate in \[0, 1\], such as symmetric:0.4; got 'symmetric'"),
        ("pair:1.5", ValueError, "got 'pair:1.5'"),
        ("pair:nan", ValueError, "got 'pair:nan'"),
        ("pair:0.4:a>b", ValueError, "only asymmetric"),
        ("given", UnknownNameError, "kind of noise 'given'"),
    ],
)
def test_noise_that_cannot_be_read(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_noise(text)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (LabelSource("asymmetric", 0.4), ValueError, "asymmetric:0.4:cat>dog,dog>cat"),
        (LabelSource("asymmetric", 0.4, "cat>dgo"), UnknownNameError, "did you mean 'dog'"),
        (LabelSource("asymmetric", 0.4, "cat-dog"), ValueError, "got 'cat-dog'"),
        (LabelSource("column", detail="worsse"), UnknownNameError, "did you mean 'worse'"),
        (LabelSource("column", detail="float"), CorruptDataError, "one class number per sample, but has torch.float32"),
        (LabelSource("column", detail="high"), CorruptDataError, r"labels in 0..2, but sample 4 has 9"),
    ],
)
def test_labels_that_do_not_fit_the_data(source: LabelSource, error: type[Exception], message: str) -> None:
    high = PETS.y.clone()
    high[4] = 9
    columns = {"worse": PETS.y, "float": PETS.y.float(), "high": high}
    with pytest.raises(error, match=message):
        source.check(TensorData(PETS.x, PETS.y, PETS.class_names, "pets", columns))
