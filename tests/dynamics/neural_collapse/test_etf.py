from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchstone.dynamics import ETFClassifier, simplex_etf
from torchstone.dynamics.neural_collapse.etf import centred_basis, random_basis


@settings(max_examples=30)
@given(k=st.integers(2, 12), spare=st.integers(-1, 5), turned=st.booleans())
def test_rows_have_norm_one_and_the_smallest_cosine(k: int, spare: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(k) if turned else None
    rotation = "random" if turned else "identity"
    rows = simplex_etf(k, max(k + spare, 1), rotation=rotation, generator=generator, dtype=torch.float64)
    expected = torch.full((k, k), -1 / (k - 1)).double().fill_diagonal_(1.0)
    torch.testing.assert_close(rows @ rows.T, expected)
    torch.testing.assert_close(rows.sum(0), torch.zeros(rows.shape[1]).double())


def test_along_the_axes_it_is_the_projection_itself() -> None:
    rows = simplex_etf(3, 5, dtype=torch.float64)
    torch.testing.assert_close(rows[:, :3], math.sqrt(1.5) * (torch.eye(3).double() - 1 / 3))
    assert not rows[:, 3:].any()


def test_random_rotations_follow_their_generator() -> None:
    one, two, three = (
        simplex_etf(3, 5, rotation="random", generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)
    basis = random_basis(7, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3).double())


def test_helmert_is_orthonormal_and_centred() -> None:
    basis = centred_basis(6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5).double())
    torch.testing.assert_close(basis.sum(0), torch.zeros(5).double())


def test_the_classifier_trains_its_bias_alone() -> None:
    head = ETFClassifier(8, 5)
    assert [name for name, _ in head.named_parameters()] == ["bias"]
    x = torch.randn(4, 8, requires_grad=True)
    torch.testing.assert_close(head(x), x @ head.weight.T)
    torch.testing.assert_close(head(x[None]), head(x)[None])
    assert not list(ETFClassifier(8, 5, bias=False).parameters())


def test_the_frame_is_saved() -> None:
    one, two = ETFClassifier(8, 5, rotation="random"), ETFClassifier(8, 5, rotation="random")
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, two.weight)


@pytest.mark.untyped
def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="dim must be >= 9, num_classes - 1, for a simplex of 10 rows, but is 8"):
        simplex_etf(10, 8)
    with pytest.raises(ValueError, match="num_classes must be >= 2"):
        simplex_etf(1, 8)
    with pytest.raises(ValueError, match="rotation must be one of"):
        simplex_etf(3, 8, rotation="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="x must have 8 features"):
        ETFClassifier(8, 5)(torch.ones(2, 7))
