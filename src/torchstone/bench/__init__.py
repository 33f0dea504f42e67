"""The bench: from claims to verdicts.

It knows no method and imports no torch when loaded. This front holds the words in which a study is written;
``torchstone.bench.statistics`` judges anybody's numbers without any study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchstone._imports import lazy_front

if TYPE_CHECKING:
    from torchstone.bench.claims import Claim, ClosesGap, Higher, Lower, Ratio, Trend, Within
    from torchstone.bench.outcome import Outcome, Row
    from torchstone.bench.seeds import SOURCES, Seeds
    from torchstone.bench.space import Choice, Integers, LogUniform, Uniform
    from torchstone.bench.study import Arm, Cell, Experiment, Sealed, Study, Track

__all__ = [
    "SOURCES",
    "Arm",
    "Cell",
    "Choice",
    "Claim",
    "ClosesGap",
    "Experiment",
    "Higher",
    "Integers",
    "LogUniform",
    "Lower",
    "Outcome",
    "Ratio",
    "Row",
    "Sealed",
    "Seeds",
    "Study",
    "Track",
    "Trend",
    "Uniform",
    "Within",
]

# Searched in this order on first use of a name; all of them need NumPy, which asking a store does not.
_MODULES = ("claims", "outcome", "seeds", "space", "study")
__getattr__, __dir__ = lazy_front(__name__, __all__, _MODULES)
