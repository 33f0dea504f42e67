"""The words in which the bench judges a claim: one enum, and no other words anywhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

__all__ = ["Verdict"]


class Verdict(StrEnum):
    """What the replicates say about a claim; a member is its own text, and ``meaning`` says it in one sentence.

    Example:
        >>> print(Verdict.REPRODUCED)
        reproduced
        >>> Verdict("refuted").meaning
        'The opposite of the claim is established: it fails more often than it holds.'
    """

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        """Make the member ``word`` and hang its ``meaning`` on it."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member

    REPRODUCED = (
        "reproduced",
        "The claim holds more often than not, and a meaningful margin is compatible with the data.",
    )
    HOLDS = "holds", "The claim says what must always be so, and no replicate contradicts it."
    NOT_MEANINGFUL = (
        "significant, not meaningful",
        "The claim holds more often than not, but the margin is shown to be too small to matter.",
    )
    NOT_SIGNIFICANT = "not significant", "The replicates decide neither for the claim nor against it."
    REFUTED = "refuted", "The opposite of the claim is established: it fails more often than it holds."
    PREMISE_NOT_MET = (
        "premise not met",
        "What the claim presupposes did not happen, so the claim was not put to the test.",
    )
    DEGENERATE = "degenerate", "Every comparison is a tie, so the scores cannot tell the arms apart."
    TOO_FEW = "too few replicates", "There are fewer replicates than any decision at this error rate needs."
    NOT_RUN = "not run", "No replicate was run, for want of data, of a package or of time."
