"""The evidence is that of the code beside it: replicate 0 at smoke scale gives what it gave then."""

from __future__ import annotations

import pytest

from torchstone import api, catalogue
from torchstone.bench import evidence


@pytest.mark.study
@pytest.mark.parametrize("name", evidence.names())
def test_the_study_still_does_what_its_evidence_shows(name: str) -> None:
    stored = evidence.load(name)
    assert stored is not None
    moved = evidence.moved(stored, api.run(name, scale="smoke", store=":memory:"))
    assert not moved, f"make evidence SLUG={name}: " + "; ".join(moved)


def test_every_ready_paper_has_a_study_and_evidence() -> None:
    ready = {row.slug for row in catalogue.papers() if row.status == "ready"}
    assert ready == set(evidence.names()) == set(api.study_names())
