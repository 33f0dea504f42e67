import math

import numpy as np
import pytest

from torchstone.bench import Choice, Integers, LogUniform, Seeds, Uniform
from torchstone.bench.space import Dist, draw
from torchstone.errors import StudyError


@pytest.mark.parametrize("dist", [Uniform(-1, 1), LogUniform(1e-4, 1), Integers(2, 4), Choice("a", "b")])
def test_distributions_stay_in_their_range(dist: Uniform | LogUniform | Integers | Choice) -> None:
    assert isinstance(dist, Dist)
    generator = np.random.default_rng(0)
    draws = [dist.sample(generator) for _ in range(300)]
    if isinstance(dist, Choice):
        assert set(draws) == {"a", "b"}
    else:
        assert dist.low <= min(draws) < max(draws) <= dist.high
    if isinstance(dist, Integers):
        assert set(draws) == {2, 3, 4}


def test_log_uniform_is_uniform_in_the_logarithm() -> None:
    generator = np.random.default_rng(0)
    logs = np.log([LogUniform(1e-3, 1e1).sample(generator) for _ in range(4000)])
    assert abs(logs.mean() - (math.log(1e-3) + math.log(1e1)) / 2) < 0.15
    assert abs(logs.std() - math.log(1e4) / math.sqrt(12)) < 0.1


def test_arms_that_share_a_hyper_parameter_try_the_same_values() -> None:
    one = {"lr": LogUniform(1e-3, 1), "q": Uniform(0, 1)}
    other = {"strength": Uniform(0, 5), "lr": LogUniform(1e-3, 1)}
    values = [(draw(one, j, Seeds(3))["lr"], draw(other, j, Seeds(3))["lr"]) for j in range(8)]
    assert all(a == b for a, b in values)
    assert len(set(values)) == 8
    assert draw(one, 0, Seeds(3)) != draw(one, 0, Seeds(4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(1, 1),
        lambda: LogUniform(0, 1),
        lambda: Integers(3, 2),
        lambda: Uniform(0, math.nan),
        lambda: Choice(),
    ],
)
def test_impossible_ranges_are_refused(make) -> None:
    with pytest.raises(StudyError, match="needs"):
        make()
