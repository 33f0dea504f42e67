"""What data a study uses, as part of the identity of its runs."""

from __future__ import annotations

from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version

from torchstone.data.files import best_layout, data_root
from torchstone.data.known import KNOWN

__all__ = ["data_identity"]


def data_identity(name: str) -> str:
    """What is known of a data set without reading it: version of its package, or checksums of the files at hand."""
    known = KNOWN[name]
    if known.package:
        package = {"sklearn": "scikit-learn"}.get(known.package, known.package)
        try:
            return f"{name} of {package} {version(package)}"
        except PackageNotFoundError:
            return f"{name}, not installed"
    digest = blake2b(digest_size=8)
    for part in filter(None, (known, KNOWN.get(known.base))):
        layout, share = best_layout(part, data_root())
        digest.update(repr((share, [file.checksum for file in layout.files])).encode())
    return f"{name} {digest.hexdigest()}"
