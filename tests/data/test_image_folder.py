from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchstone.data import load
from torchstone.errors import CorruptDataError, DataNotFoundError


def write_image(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


def grey(value: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def test_grey_images(tmp_path):
    write_image(tmp_path / "dog" / "2.png", grey(51))
    write_image(tmp_path / "cat" / "b" / "1.png", grey(255))
    write_image(tmp_path / "cat" / "a.PNG", grey(0))
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    data = load(tmp_path)
    assert data.x.shape == (3, 1, 4, 6)
    assert data.class_names == ("cat", "dog")
    assert data.y.tolist() == [0, 0, 1]
    assert data.x[:, 0, 0, 0].tolist() == pytest.approx([0, 1, 0.2])
    assert data.notes == (f"1 files are not images, such as {tmp_path / 'cat' / 'Thumbs.db'}",)


def test_one_colour_image_makes_all_rgb(tmp_path):
    colour = np.zeros((4, 6, 3), np.uint8)
    colour[1, 2] = (255, 0, 51)
    write_image(tmp_path / "a" / "1.png", colour)
    write_image(tmp_path / "a" / "2.png", colour, "RGBA")
    write_image(tmp_path / "b" / "3.png", grey(102))
    data = load(tmp_path)
    assert data.x.shape == (3, 3, 4, 6)
    assert data.x[0, :, 1, 2].tolist() == pytest.approx([1, 0, 0.2])
    assert data.x[1].equal(data.x[0])
    assert data.x[2].unique().tolist() == pytest.approx([0.4])


def test_train_and_test_folders(tmp_path):
    for part, value in (("train", 0), ("test", 255)):
        for name in ("cat", "dog") if part == "train" else ("dog",):
            write_image(tmp_path / part / name / "1.png", grey(value))
    data = load(tmp_path)
    assert data.test is not None
    assert (data.y.tolist(), data.test.y.tolist(), data.test.class_names) == ([0, 1], [1], ("cat", "dog"))
    assert (float(data.x.max()), float(data.test.x.min())) == (0, 1)
    again = load(tmp_path / "train", test=tmp_path / "test")
    assert again.fingerprint() == data.fingerprint()
    write_image(tmp_path / "test" / "cow" / "1.png", grey(0))
    with pytest.raises(CorruptDataError, match=r"class 'cow' has no folder in .*train"):
        load(tmp_path)


def test_sizes(tmp_path):
    write_image(tmp_path / "a" / "1.png", grey(9))
    write_image(tmp_path / "b" / "1.png", grey(9, 8, 6))
    with pytest.raises(CorruptDataError, match=r"a/1\.png is 4 x 6, but .*b/1\.png is 8 x 6; give a size"):
        load(tmp_path)
    assert load(tmp_path, size=(3, 5)).x.shape == (2, 1, 3, 5)
    with pytest.raises(ValueError, match="height must be >= 1, but is 0"):
        load(tmp_path, size=(0, 5))


def test_bad_images_are_named(tmp_path):
    write_image(tmp_path / "a" / "1.png", grey(9))
    write_image(tmp_path / "b" / "1.png", np.random.default_rng(0).integers(0, 255, (4, 6), dtype=np.uint8))
    bad = tmp_path / "b" / "1.png"
    whole = bad.read_bytes()
    for content in (b"", b"not an image", whole[:-30]):
        bad.write_bytes(content)
        with pytest.raises(CorruptDataError, match=r"b/1\.png: not a readable image"):
            load(tmp_path)
    write_image(bad, np.zeros((4, 6), np.uint16))
    with pytest.raises(CorruptDataError, match=r"b/1\.png: it is not of 8 bits a channel"):
        load(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(CorruptDataError, match="it holds no class folders with images"):
        load(tmp_path)
    write_image(tmp_path / "a" / "1.png", grey(9))
    with pytest.raises(CorruptDataError, match="all 1 labels are 'a', but two classes are needed"):
        load(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(CorruptDataError, match="class folder 'b' holds no image"):
        load(tmp_path)
    write_image(tmp_path / "b" / "1.png", grey(9))
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*gone"):
        load(tmp_path, test=tmp_path / "gone")
