"""Search spaces, and the hash-seeded random draws that give every arm the same tuning budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from torchstone.bench.seeds import Seeds
from torchstone.errors import StudyError

__all__ = ["Choice", "Dist", "Integers", "LogUniform", "Uniform", "draw"]


@runtime_checkable
class Dist(Protocol):
    """A distribution of one hyper-parameter."""

    def sample(self, generator: np.random.Generator) -> Any:
        """One draw."""
        ...


def _check_order(low: float, high: float, kind: str) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise StudyError(f"{kind} needs finite low < high, got low={low}, high={high}")


@dataclass(frozen=True)
class Uniform:
    """Uniform on ``[low, high)``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_order(self.low, self.high, "Uniform")

    def sample(self, generator: np.random.Generator) -> float:
        """One draw."""
        return float(generator.uniform(self.low, self.high))


@dataclass(frozen=True)
class LogUniform:
    """Uniform in the logarithm on ``[low, high)``, ``low > 0``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_order(self.low, self.high, "LogUniform")
        if self.low <= 0:
            raise StudyError(f"LogUniform needs low > 0, got {self.low}")

    def sample(self, generator: np.random.Generator) -> float:
        """One draw."""
        return float(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))


@dataclass(frozen=True)
class Integers:
    """Uniform on the integers ``low, ..., high``."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_order(self.low, self.high, "Integers")

    def sample(self, generator: np.random.Generator) -> int:
        """One draw."""
        return int(generator.integers(self.low, self.high, endpoint=True))


@dataclass(frozen=True, init=False)
class Choice:
    """Uniform on the listed options."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        if not options:
            raise StudyError("Choice needs at least one option")
        object.__setattr__(self, "options", options)

    def sample(self, generator: np.random.Generator) -> Any:
        """One draw."""
        return self.options[int(generator.integers(len(self.options)))]


def draw(space: Mapping[str, Dist], number: int, seeds: Seeds) -> dict[str, Any]:
    """Draw ``number`` (from 0) of a search space.

    The draw of a hyper-parameter depends on the study's seed, its name and ``number`` alone. Arms that share a
    hyper-parameter and its distribution therefore try the same values: tuning is paired, as the replicates are.

    Example:
        >>> space = {"lr": LogUniform(1e-3, 1e-1), "q": Uniform(0, 1)}
        >>> draw(space, 2, Seeds(0))["lr"] == draw({"lr": space["lr"]}, 2, Seeds(0))["lr"]
        True
    """
    return {name: dist.sample(seeds.numpy("hpo", name, number)) for name, dist in space.items()}
