from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from torch import nn

from torchstone.errors import CorruptDataError
from torchstone.training import FileCheckpoint


def test_round_trip_of_everything_a_run_holds(tmp_path):
    net = nn.Linear(2, 1)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    adam.step()
    stream = torch.Generator().manual_seed(3)
    state = {
        "net": net.state_dict(),
        "adam": adam.state_dict(),
        "stream": stream.get_state(),
        "milestones": Counter([1, 2]),
        "nothing": None,
        "text": "a",
        "flag": True,
    }
    checkpoint = FileCheckpoint(tmp_path / "deep" / "er" / "run.pt")
    assert checkpoint.load() is None
    checkpoint.save(state)
    loaded = checkpoint.load()
    assert loaded is not None
    assert torch.equal(loaded["net"]["weight"], net.weight)
    assert torch.equal(loaded["stream"], state["stream"])
    assert loaded["milestones"] == Counter([1, 2])
    assert (loaded["nothing"], loaded["text"], loaded["flag"]) == (None, "a", True)
    adam.load_state_dict(loaded["adam"])


def test_failed_save_keeps_the_old_state_and_leaves_no_litter(tmp_path, monkeypatch):
    checkpoint = FileCheckpoint(tmp_path / "run.pt")
    checkpoint.save({"epoch": 1})

    def full(file: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save({"epoch": 2})
    monkeypatch.undo()
    assert checkpoint.load() == {"epoch": 1}
    assert os.listdir(tmp_path) == ["run.pt"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"run\.pt is not a readable checkpoint; delete it to start anew"):
        FileCheckpoint(path).load()


def test_truncated_file_is_refused(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "run.pt")
    checkpoint.save({"x": torch.zeros(1000)})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-200])
    with pytest.raises(CorruptDataError):
        checkpoint.load()


def test_objects_are_refused_before_the_file_is_touched(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "run.pt")
    with pytest.raises(TypeError, match=r"state\['optimizers'\]\[0\]\['f'\] is a function"):
        checkpoint.save({"optimizers": [{"f": lambda: 0}]})
    assert not checkpoint.path.exists()


def test_a_pickle_with_code_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"x": Evil()}, tmp_path / "run.pt")
    with pytest.raises(CorruptDataError):
        FileCheckpoint(tmp_path / "run.pt").load()
    assert not (tmp_path / "pwned").exists()
