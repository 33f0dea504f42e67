"""Reader of music genres labelled by a crowd: the annotators are real people, paid by the answer."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from torchstone.data.annotators import answer_table, majority_vote
from torchstone.data.arrays import from_arrays, with_test
from torchstone.data.tensors import TensorData
from torchstone.errors import CorruptDataError, DataNotFoundError

__all__ = ["read_music_genre_crowd"]

_GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
_FEATURES = tuple(f"feature{i}" for i in range(124))
_ANSWERS = ("WorkerID", "Input.song", "Answer.pred_label")


def read_music_genre_crowd(folder: Path | str) -> TensorData:
    """Read 700 songs with the answers of 44 workers, and 300 test songs, all with their right genre of ten.

    ``y`` is the right genre. The columns ``annotator`` and ``answer`` hold who answered what, padded by -1, and
    ``majority`` the genre that most named (of equal ones the one named first). The features are brought to mean 0 and
    standard deviation 1 on the 700 songs: in their own units they differ by a factor of a million.

    Shapes:
        ``x`` (700, 124), test (300, 124); ``annotator`` and ``answer`` (700, 7) int64; ``majority`` (700,).

    Raises:
        DataNotFoundError: if a file is missing.
        CorruptDataError: if one is no such table, or an answer is about a song that is not there.

    Source:
        Rodrigues, Pereira, Ribeiro, *Learning from multiple annotators*, Pattern Recognition Letters 2013; songs from
        GTZAN (Tzanetakis and Cook, 2002).
    """
    folder = Path(folder)
    songs, x, y = _songs(folder / "music_genre_gold.csv")
    _, x_test, y_test = _songs(folder / "music_genre_test.csv")
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    data = from_arrays((x - mean) / scale, y, name="music-genre-crowd", class_names=_GENRES)
    data = with_test(data, (x_test - mean) / scale, y_test)
    annotator, answer = _answers(folder / "mturk_answers.csv", songs)
    try:
        majority = majority_vote(answer, len(_GENRES))
    except ValueError as error:
        raise CorruptDataError(f"{folder / 'mturk_answers.csv'}: {error}") from None
    columns = {"annotator": annotator, "answer": answer, "majority": majority}
    return TensorData(data.x, data.y, data.class_names, data.name, columns, data.test)


def _songs(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Names, features and genres of the songs in a table."""
    rows = _rows(path, ("id", *_FEATURES, "class"))
    try:
        x = np.array([[float(row[name]) for name in _FEATURES] for row in rows])
    except ValueError as error:
        raise CorruptDataError(f"{path}: a feature is no number ({error})") from error
    return [row["id"] for row in rows], x, [row["class"] for row in rows]


def _answers(path: Path, songs: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = _rows(path, _ANSWERS)
    worker, song, genre = ([row[name] for row in rows] for name in _ANSWERS)
    number_of_song = {name: i for i, name in enumerate(songs)}
    number_of_worker = {name: i for i, name in enumerate(sorted(set(worker)))}
    number_of_genre = {name: i for i, name in enumerate(_GENRES)}
    for kind, values, known in (("song", song, number_of_song), ("genre", genre, number_of_genre)):
        for value in values:
            if value not in known:
                raise CorruptDataError(f"{path}: an answer names the {kind} {value!r}, which does not exist")
    return answer_table(
        torch.tensor([number_of_song[name] for name in song]),
        torch.tensor([number_of_worker[name] for name in worker]),
        torch.tensor([number_of_genre[name] for name in genre]),
        len(songs),
    )


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise CorruptDataError(f"{path}: it has no rows")
    for row in rows:
        if any(row.get(name) is None for name in columns):
            raise CorruptDataError(f"{path}: a row lacks one of the columns {columns[0]} .. {columns[-1]}")
    return rows
