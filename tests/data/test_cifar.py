from __future__ import annotations

import io
import lzma
import math
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from torchstone.data import load
from torchstone.data.cifar import add_cifar10n, read_cifar10
from torchstone.errors import CorruptDataError, DataNotFoundError

ALL = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def batch(name: str, n: int = 10) -> dict:
    rng = np.random.default_rng(ALL.index(name))
    return {
        "batch_label": name,
        "labels": [int(c) for c in (np.arange(n) + ALL.index(name)) % 10],
        "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
    }


def write_batches(folder: Path, names=ALL, *, xz: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = pickle.dumps(batch(name), protocol=2)
        (folder / (f"{name}.xz" if xz else name)).write_bytes(lzma.compress(content) if xz else content)


def test_official_folder(tmp_path):
    write_batches(tmp_path / "cifar10" / "cifar-10-batches-py")
    data = load("cifar10", root=tmp_path)
    assert data.test is not None
    assert (data.x.shape, data.test.x.shape) == ((50, 3, 32, 32), (10, 3, 32, 32))
    first = batch("data_batch_1")["data"]
    # Planar layout: 1 024 red, green, blue values, row by row.
    assert float(data.x[4, 2, 1, 7]) == pytest.approx(first[4, 2 * 1024 + 32 + 7] / 255)
    assert data.y[10:20].tolist() == batch("data_batch_2")["labels"]
    assert data.columns["index"][[0, 9, 10, 40]].tolist() == [0, 9, 10_000, 40_000]
    assert data.class_names[3] == "cat"
    assert data.notes == ("10 of 10000 test images",)


def test_what_is_present_is_taken(tmp_path):
    write_batches(tmp_path, ["data_batch_2", "data_batch_5"], xz=True)
    data = read_cifar10(tmp_path)
    assert data.test is None
    assert data.y.tolist() == batch("data_batch_2")["labels"] + batch("data_batch_5")["labels"]
    assert data.columns["index"][[0, 10]].tolist() == [10_000, 40_000]
    assert data.notes == (
        "20 of 50000 training images: data_batch_1, data_batch_3, data_batch_4 missing",
        "no test images: test_batch missing",
    )


def test_archive_completes_an_excerpt(tmp_path):
    write_batches(tmp_path / "cifar-10-batches-py", ["data_batch_1"], xz=True)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ALL:
            content = pickle.dumps(batch(name), protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    data = read_cifar10(tmp_path)
    assert len(data) == 50
    write_batches(tmp_path / "unpacked")
    assert data.fingerprint() == read_cifar10(tmp_path / "unpacked").fingerprint()
    archive_file = tmp_path / "cifar-10-python.tar.gz"
    archive_file.write_bytes(archive_file.read_bytes()[:5000])
    with pytest.raises(CorruptDataError, match=r"cifar-10-python\.tar\.gz: damaged archive"):
        read_cifar10(tmp_path)


def test_damaged_batches(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    whole = batch("data_batch_1")
    cases = {
        b"garbage": "data_batch_1: not a readable pickle",
        lzma.compress(pickle.dumps(whole))[:-20]: "data_batch_1: damaged xz file",
        pickle.dumps({**whole, "labels": Payload()}): r"refers to '(posix|nt)\.system'",
        pickle.dumps([1, 2]): "it holds no images under 'data'",
        pickle.dumps({**whole, "data": whole["data"].astype(float)}): "it holds no images",
        pickle.dumps({**whole, "data": whole["data"][:, :-1]}): "it holds no images",
        pickle.dumps({**whole, "labels": whole["labels"][:-1]}): "it holds no 10 labels 0 .. 9",
        pickle.dumps({**whole, "labels": [10] * 10}): "it holds no 10 labels 0 .. 9",
    }
    for content, message in cases.items():
        (tmp_path / "data_batch_1").write_bytes(content)
        with pytest.raises(CorruptDataError, match=message):
            read_cifar10(tmp_path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(
        DataNotFoundError, match=r"no data_batch_1 \.\. 5 .plain or \.xz. and no cifar-10-python\.tar\.gz in"
    ):
        read_cifar10(tmp_path / "gone")


def write_human(folder: Path, *, clean=None) -> dict[str, np.ndarray]:
    """CIFAR-10N files whose labels agree with the batches of these tests."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    labels = np.zeros(50_000, np.int64)
    for place in range(5):
        labels[place * 10_000 : place * 10_000 + 10] = batch(ALL[place])["labels"]
    keys = ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
    human = {"clean_label": labels if clean is None else clean, **{k: rng.integers(0, 10, 50_000) for k in keys}}
    torch.save(human, folder / "CIFAR-10_human.pt")
    lines = ["Image-batch,Worker1-id,Work-time-in-seconds-1,Worker2-id,Work-time-in-seconds-2,Worker3-id,Work-time-3"]
    lines += [f"{10 * i}--{10 * i + 9},{i},1,{i + 1},2,{i + 2},3" for i in range(5000)]
    (folder / "side_info_cifar10N.csv").write_text("\n".join(lines) + "\n")
    return human


def test_human_labels_follow_the_official_order(tmp_path):
    write_batches(tmp_path / "cifar10" / "cifar-10-batches-py", ["data_batch_2", "data_batch_4"])
    human = write_human(tmp_path / "cifar10n")
    data = load("cifar10n", root=tmp_path)
    assert data.name == "cifar10n"
    rows = [*range(10_000, 10_010), *range(30_000, 30_010)]
    assert data.columns["worse"].tolist() == human["worse_label"][rows].tolist()
    assert data.columns["random3"].tolist() == human["random_label3"][rows].tolist()
    assert data.columns["worker2"].tolist() == [1001] * 10 + [3001] * 10
    assert data.columns["time3"].tolist() == [3] * 20
    assert data.columns["answer"][:, 1].tolist() == human["random_label2"][rows].tolist()
    assert data.columns["annotator"][0].tolist() == [1000, 1001, 1002]
    assert data.columns["pi"][0, :, 0].tolist() == pytest.approx([math.log(1), math.log(2), math.log(3)])
    assert data.columns["random3_annotator"].tolist() == [1002] * 10 + [3002] * 10
    for i in range(20):  # the first who gave the label, who need not exist in this made-up file
        gave = [k for k in range(3) if data.columns["answer"][i, k] == data.columns["worse"][i]] or [0]
        assert int(data.columns["worse_annotator"][i]) == int(data.columns["annotator"][i, gave[0]])
        assert float(data.columns["worse_pi"][i]) == float(data.columns["pi"][i, gave[0], 0])
    (tmp_path / "cifar10n" / "side_info_cifar10N.csv").unlink()
    data = load("cifar10n", root=tmp_path)
    assert not {"worker1", "annotator", "worse_annotator"} & data.columns.keys()
    assert data.notes[-1] == "no worker ids and times: side_info_cifar10N.csv missing"


def test_damaged_human_labels(tmp_path):
    write_batches(tmp_path, ["data_batch_1"])
    cifar10 = read_cifar10(tmp_path)
    with pytest.raises(DataNotFoundError, match=r"CIFAR-10_human\.pt"):
        add_cifar10n(tmp_path, cifar10)
    write_human(tmp_path, clean=np.zeros(50_000, np.int64))
    with pytest.raises(CorruptDataError, match="its clean labels are not those of the images"):
        add_cifar10n(tmp_path, cifar10)
    write_human(tmp_path)
    side = tmp_path / "side_info_cifar10N.csv"
    for text, message in (("a\n0--9,x,1\n", "not a table of integers"), ("a\n0--9,1,2\n", "expected 5000 rows")):
        side.write_text(text)
        with pytest.raises(CorruptDataError, match=message):
            add_cifar10n(tmp_path, cifar10)
    torch.save({"clean_label": np.zeros(5, np.int64)}, tmp_path / "CIFAR-10_human.pt")
    with pytest.raises(CorruptDataError, match="it holds no 50000 integers under 'clean_label'"):
        add_cifar10n(tmp_path, cifar10)


@pytest.mark.real_data
def test_the_real_human_labels(data_root):
    data = load("cifar10n", root=data_root)
    first = data.subset((data.columns["index"] < 10_000).nonzero()[:, 0])
    assert len(first) == 10_000
    assert first.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    rates = {name: float((first.columns[name] != first.y).double().mean()) for name in ("aggre", "random1", "worse")}
    assert rates == pytest.approx({"aggre": 0.0912, "random1": 0.1782, "worse": 0.4104}, abs=1e-9)
    assert [int(data.columns[k][0]) for k in ("worker1", "time1", "worker3", "time3")] == [198, 25, 197, 21]
    assert (data.columns["answer"] == data.columns["worse"].unsqueeze(1)).any(1).all()
    assert data.test is not None
    assert data.test.y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    means = (data.x.mean((0, 2, 3)) * 255).tolist()
    assert means == pytest.approx([125.307, 122.950, 113.865], abs=0.5)
