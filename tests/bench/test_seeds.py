from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchstone.bench import SOURCES, Seeds
from torchstone.errors import UnknownNameError


def test_streams_are_the_documented_seed_sequences() -> None:
    expected = np.random.SeedSequence(7, spawn_key=(crc32(b"noise"), 3, crc32(b"labels")))
    assert (Seeds(7, 3).sequence("noise", "labels").generate_state(4) == expected.generate_state(4)).all()


@given(st.integers(0, 2**31), st.integers(0, 1000))
def test_streams_of_a_replicate_differ_from_each_other_and_from_the_next_replicate(study: int, replicate: int) -> None:
    seeds = [Seeds(study, r).integer(source) for r in (replicate, replicate + 1) for source in SOURCES]
    assert len(set(seeds)) == 2 * len(SOURCES)


def test_generators_are_fresh_and_equal_each_time() -> None:
    seeds = Seeds(0, 1)
    draws = [torch.rand(3, generator=seeds.generator("order")) for _ in range(2)]
    assert torch.equal(*draws)
    assert (seeds.numpy("order").random(3) == seeds.numpy("order").random(3)).all()


def test_numbers_and_words_name_sub_streams() -> None:
    seeds = Seeds()
    assert seeds.integer("hpo", "lr", 1) == seeds.integer("hpo", "lr", "1") != seeds.integer("hpo", "lr", 2)


def test_varying_holds_all_other_sources_at_replicate_zero() -> None:
    first, fifth = Seeds(1, 0), Seeds(1, 5).varying("order")
    assert fifth.integer("order") == Seeds(1, 5).integer("order") != first.integer("order")
    assert all(fifth.integer(source) == first.integer(source) for source in SOURCES if source != "order")


@pytest.mark.parametrize("ask", [lambda: Seeds().generator("ordr"), lambda: Seeds().varying("ordr")])
def test_unknown_source_is_named_with_the_nearest(ask) -> None:
    with pytest.raises(UnknownNameError, match="unknown source of variation 'ordr': did you mean 'order'"):
        ask()
