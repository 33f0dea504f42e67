"""torchstone: deep-learning methods as plain PyTorch objects, and the bench on which each one's claim is tested.

The methods live in packages by field (``torchstone.noise``, ...) and need nothing of the bench.
:func:`torchstone.run` runs a paper's study, :func:`torchstone.compare` the methods of one problem on your own data;
both return the verdicts. Importing this package imports none of that until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.api import Result, compare, refit_winner, run

__all__ = ["Result", "__version__", "compare", "refit_winner", "run"]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    if name in ("Result", "compare", "refit_winner", "run"):
        from torchstone import api

        return getattr(api, name)
    raise AttributeError(f"module 'torchstone' has no attribute {name!r}")
