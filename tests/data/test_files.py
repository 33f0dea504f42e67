from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from torchstone.data import available, data_root, files, get, known, verify
from torchstone.errors import DataNotFoundError, MissingDependencyError, UnknownNameError

CONTENT = {"one.bin": b"first file", "sub/two.bin": b"second" * 1000}


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """A known set "toy" of two files, whose address is a folder."""
    server = tmp_path / "server"
    for name, content in CONTENT.items():
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).write_bytes(content)
    parts = tuple(
        known.DataFile(
            name,
            f"sha256:{hashlib.sha256(content).hexdigest()}",
            ((tmp_path / "mirror-that-is-down" / name).as_uri(), (server / name).as_uri()),
        )
        for name, content in CONTENT.items()
    )
    layouts = (known.Layout("toy", parts), known.Layout("elsewhere/toy", parts))
    toy = known.KnownSet("toy", "two files", "none", "none:none", layouts=layouts)
    more = known.KnownSet("more", "adds to toy", "none", "none:none", layouts=layouts[:1], base="toy")
    monkeypatch.setitem(known.KNOWN, "toy", toy)
    monkeypatch.setitem(known.KNOWN, "more", more)
    return server


def _status(name: str, root: Path) -> str:
    return next(row.status for row in available(root=root) if row.name == name)


def test_root(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHSTONE_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root(tmp_path) == tmp_path
    assert data_root() == tmp_path / "env"
    monkeypatch.delenv("TORCHSTONE_DATA")
    assert data_root() == tmp_path / "cache" / "torchstone"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == Path.home() / ".cache" / "torchstone"


def test_get_verify_and_heal(served, tmp_path):
    root = tmp_path / "root"
    assert _status("toy", root) == "absent"
    assert [row.status for row in verify("toy", root=root)] == ["missing", "missing"]
    steps = []
    rows = get("toy", root=root, progress=lambda *step: steps.append(step))
    assert [row.status for row in rows] == ["downloaded", "downloaded"]
    assert [row.path for row in rows] == [root / "toy" / name for name in CONTENT]
    assert {row.path.read_bytes() for row in rows} == set(CONTENT.values())
    assert steps == [("one.bin", 10, 10), ("two.bin", 6000, 6000)]
    assert _status("toy", root) == "ready"
    assert [row.status for row in verify("toy", root=root)] == ["ok", "ok"]
    assert [row.status for row in get("toy", root=root)] == ["ok", "ok"]
    rows[1].path.write_bytes(b"damaged")
    assert [row.status for row in verify("toy", root=root)] == ["ok", "corrupt"]
    assert [row.status for row in get("toy", root=root)] == ["ok", "downloaded"]
    rows[0].path.unlink()
    assert _status("toy", root) == "partial"
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == ["two.bin"]


def test_a_complete_copy_elsewhere_is_kept(served, tmp_path):
    root = tmp_path / "root"
    for name, content in CONTENT.items():
        (root / "elsewhere" / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "elsewhere" / "toy" / name).write_bytes(content)
    assert _status("toy", root) == "ready"
    assert [row.path.parts[-3:-1] for row in get("toy", root=root)] == [("elsewhere", "toy"), ("toy", "sub")]
    assert not (root / "toy").exists()


def test_the_base_comes_first(served, tmp_path):
    rows = get("more", root=tmp_path / "root")
    assert [row.status for row in rows] == ["downloaded", "downloaded", "ok", "ok"]
    assert len(verify("more", root=tmp_path / "root")) == 4


def test_a_failed_download_leaves_nothing(served, tmp_path):
    root = tmp_path / "root"
    (served / "one.bin").write_bytes(b"tampered with")
    with pytest.raises(DataNotFoundError) as caught:
        get("toy", root=root)
    message = str(caught.value)
    right = hashlib.sha256(CONTENT["one.bin"]).hexdigest()
    for part in (
        "one.bin could not be downloaded",
        "mirror-that-is-down",
        f"its checksum is sha256:{hashlib.sha256(b'tampered with').hexdigest()}",
        f"get it by hand (sha256:{right}) and put it at {root / 'toy' / 'one.bin'}",
    ):
        assert part in message
    assert not [p for p in root.rglob("*") if p.is_file()]


def test_an_interrupted_download_leaves_nothing(served, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("toy", root=tmp_path / "root", progress=interrupt)
    assert not [p for p in (tmp_path / "root").rglob("*") if p.is_file()]


def test_unwritable_root(served, tmp_path):
    (tmp_path / "root").write_text("a file where the folder should be")
    with pytest.raises(DataNotFoundError, match=r"one\.bin could not be downloaded .*root"):
        get("toy", root=tmp_path / "root")


def test_names_and_embedded_sets(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match=r"unknown data set 'cifar': did you mean 'cifar10'\?"):
        verify("cifar")
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        get("mnst")
    assert get("digits", root=tmp_path) == verify("digits", root=tmp_path) == []
    assert _status("digits", tmp_path) == "ready"
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    assert _status("digits", tmp_path) == "not installed"
    with pytest.raises(MissingDependencyError, match="sklearn"):
        get("digits", root=tmp_path)


def test_the_table_is_sound():
    for name, row in known.KNOWN.items():
        assert row.name == name
        assert bool(row.package) != bool(row.layouts)
        assert not row.base or row.base in known.KNOWN
        if row.layouts:
            assert row.layouts[0].complete
            assert all(file.urls for file in row.layouts[0].files)
        for layout in row.layouts:
            for file in layout.files:
                algorithm, _, value = file.checksum.partition(":")
                assert len(value) == 2 * hashlib.new(algorithm).digest_size


@pytest.mark.real_data
def test_the_real_files_have_the_known_checksums(data_root):
    for name in ("mnist", "fashion_mnist", "cifar10n"):
        rows = verify(name, root=data_root)
        assert rows
        assert {row.status for row in rows} == {"ok"}
    assert _status("mnist", data_root) == "ready"
    assert _status("cifar10", data_root) == _status("cifar10n", data_root) == "partial"
