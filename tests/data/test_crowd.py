from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchstone.data import load
from torchstone.data.crowd import read_music_genre_crowd
from torchstone.errors import CorruptDataError, DataNotFoundError

HEADER = ",".join(["id", *(f"feature{i}" for i in range(124)), "class"])
ANSWERS = "WorkerID,Input.song,Input.true_label,Answer.pred_label"


def song(number: int, genre: str) -> str:
    """A song whose first feature is its number and whose last never varies."""
    return ",".join([f"{genre}.{number}.mp3", str(number), *["0.5"] * 123, genre])


def write(folder: Path, *, answers: str = "", gold: str = "", test: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "music_genre_gold.csv").write_text(gold or "\n".join([HEADER, song(1, "rock"), song(3, "blues")]))
    (folder / "music_genre_test.csv").write_text(test or "\n".join([HEADER, song(4, "jazz"), song(2, "rock")]))
    rows = ["w2,blues.3.mp3,blues,jazz", "w1,rock.1.mp3,rock,rock", "w1,blues.3.mp3,blues,blues"]
    # The original's lines end like those of an old Macintosh.
    (folder / "mturk_answers.csv").write_bytes((answers or "\r".join([ANSWERS, *rows])).encode())
    return folder


def test_songs_answers_and_votes(tmp_path):
    write(tmp_path / "music_genre_crowd")
    data = load("music-genre-crowd", root=tmp_path)
    assert data.class_names[0] == "blues"
    assert [data.class_names[c] for c in data.y] == ["rock", "blues"]
    assert data.columns["annotator"].tolist() == [[0, -1], [1, 0]]
    assert data.columns["answer"].tolist() == [[9, -1], [5, 0]]
    assert [data.class_names[c] for c in data.columns["majority"]] == ["rock", "jazz"]  # a tie: the first
    assert data.x[:, 0].tolist() == [-1, 1]
    assert data.x[:, 1:].eq(0).all()
    assert data.test is not None
    assert data.test.x[:, 0].tolist() == [2, 0]  # by mean and deviation of the training songs
    assert [data.class_names[c] for c in data.test.y] == ["jazz", "rock"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"answers": ANSWERS + "\nw,pop.9.mp3,pop,pop"}, r"mturk_answers.csv: an answer names the song 'pop.9.mp3'"),
        ({"answers": ANSWERS + "\nw,rock.1.mp3,rock,punk"}, "an answer names the genre 'punk', which does not exist"),
        ({"answers": ANSWERS + "\nw,rock.1.mp3,rock,rock"}, "mturk_answers.csv: sample 1 has no answer to vote with"),
        ({"answers": ANSWERS}, "mturk_answers.csv: it has no rows"),
        ({"answers": "a,b\n1,2"}, r"a row lacks one of the columns WorkerID .. Answer.pred_label"),
        ({"gold": HEADER + "\n" + song(1, "rock").replace("0.5", "loud")}, "music_genre_gold.csv: a feature is no num"),
        ({"test": HEADER + "\n" + song(1, "punk")}, "label 'punk' of sample 0 is none of the classes blues, classical"),
    ],
)
def test_damaged_files(tmp_path, files, message):
    with pytest.raises(CorruptDataError, match=message):
        read_music_genre_crowd(write(tmp_path / "music", **files))


def test_a_missing_file(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"there is no file .*music_genre_gold.csv"):
        read_music_genre_crowd(tmp_path)


@pytest.mark.real_data
def test_the_real_songs(data_root):
    data = load("music-genre-crowd", root=data_root)
    assert data.test is not None
    assert (len(data), len(data.test), data.x.shape[1]) == (700, 300, 124)
    answer, annotator = data.columns["answer"], data.columns["annotator"]
    assert int((answer >= 0).sum()) == 2945
    assert torch.equal(answer >= 0, annotator >= 0)
    assert int(annotator.max()) == 43
    assert float((answer == data.y[:, None])[answer >= 0].float().mean()) == pytest.approx(0.56, abs=0.001)
