"""Independent random streams of one replicate, one per source of variation.

A replicate differs from the next in its train/test split, its initial weights, the order of its batches, its
augmentation, its noise (label noise, dropout, whatever a method draws) and, where tuning is repeated, its search.
Each source has a stream of its own, so that adding an arm or drawing more augmentation never shifts another source;
all arms of a replicate get the same streams, which is what pairs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from torchstone.errors import did_you_mean

if TYPE_CHECKING:
    import torch

__all__ = ["SOURCES", "Seeds"]

# Stored runs refer to a source by its place: add at the end only.
SOURCES = ("split", "init", "order", "augment", "noise", "hpo")


@dataclass(frozen=True, slots=True)
class Seeds:
    """The streams of replicate ``replicate`` of the study with seed ``study``.

    Stream ``source`` with sub-stream names ``n1, n2, ...`` is
    ``SeedSequence(study, spawn_key=(crc32(source), replicate, crc32(n1), crc32(n2), ...))``: it depends on nothing
    else, not on the arms, the cases or the order of execution.

    Args:
        study: seed of the whole study.
        replicate: number of the replicate, from 0.
        held: sources that do not vary: they take the streams of replicate 0 (see :meth:`varying`).

    Raises:
        UnknownNameError: for a source that is not in :data:`SOURCES`.

    Example:
        >>> seeds = Seeds(0, replicate=3)
        >>> seeds.integer("init") == Seeds(0, 3).integer("init") != seeds.integer("order")
        True
        >>> seeds.generator("noise", "labels").initial_seed() == seeds.generator("noise", "dropout").initial_seed()
        False
    """

    study: int = 0
    replicate: int = 0
    held: frozenset[str] = frozenset()

    def sequence(self, source: str, *names: str | int) -> np.random.SeedSequence:
        """The NumPy seed sequence of a stream."""
        if source not in SOURCES:
            raise did_you_mean("source of variation", source, SOURCES)
        replicate = 0 if source in self.held else self.replicate
        return np.random.SeedSequence(
            self.study, spawn_key=(crc32(source.encode()), replicate, *(crc32(str(name).encode()) for name in names))
        )

    def integer(self, source: str, *names: str | int) -> int:
        """A 63-bit integer seed, for libraries that take nothing better."""
        return int(self.sequence(source, *names).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def numpy(self, source: str, *names: str | int) -> np.random.Generator:
        """A fresh NumPy generator at the start of a stream."""
        return np.random.default_rng(self.sequence(source, *names))

    def generator(self, source: str, *names: str | int, device: str = "cpu") -> torch.Generator:
        """A fresh torch generator at the start of a stream."""
        import torch

        return torch.Generator(device).manual_seed(self.integer(source, *names))

    def varying(self, *sources: str) -> Seeds:
        """The same streams, but only ``sources`` vary over the replicates: how large is the variance each one causes?

        Example:
            >>> one, two = (Seeds(0, i).varying("init") for i in (1, 2))
            >>> one.integer("split") == two.integer("split"), one.integer("init") == two.integer("init")
            (True, False)
        """
        for source in sources:
            if source not in SOURCES:
                raise did_you_mean("source of variation", source, SOURCES)
        return replace(self, held=frozenset(SOURCES) - frozenset(sources))
