"""What may be skipped: what needs more than the installation is required only where TORCHSTONE_REQUIRE names it."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is no failure: timings never decide a test.
settings.register_profile("torchstone", deadline=None)
settings.load_profile("torchstone")

if os.environ.get("TORCHSTONE_CHECK_SHAPES"):
    from jaxtyping import install_import_hook

    install_import_hook(
        [f"torchstone.{package}" for package in ("noise", "dynamics", "models", "training", "data")],
        "beartype.beartype",
    )

REQUIRED = frozenset(filter(None, os.environ.get("TORCHSTONE_REQUIRE", "").split(",")))


def _data_root() -> Path | None:
    root = os.environ.get("TORCHSTONE_DATA")
    return Path(root) if root and Path(root).is_dir() else None


def _absent(marker: str) -> str:
    """Why the tests with a marker cannot run here, or the empty string."""
    if marker == "real_data" and _data_root() is None:
        return "TORCHSTONE_DATA names no folder"
    if marker == "compiler" and shutil.which("cc") is None:
        return "no C compiler"
    if marker == "browser" and (shutil.which("chromium") is None or find_spec("playwright") is None):
        return "no Chromium, or no playwright to drive it"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, name in (("real_data", "data"), ("compiler", "compiler"), ("browser", "browser")):
        reason = _absent(marker)
        if reason and name not in REQUIRED:
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; without it a test marked `real_data` fails where data are required."""
    root = _data_root()
    assert root is not None, "TORCHSTONE_REQUIRE names data, but TORCHSTONE_DATA names no folder"
    return root


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's own store or cache, or starts worker processes without asking for them."""
    monkeypatch.setenv("TORCHSTONE_JOBS", "1")
    monkeypatch.setenv("TORCHSTONE_STORE", str(tmp_path / "results.db"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
