from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from torchstone.noise import HeteroscedasticSoftmax, PIHead
from torchstone.testing import check_generator, check_module

B, R, D, M, C, W, A = 5, 3, 4, 2, 3, 6, 7


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(**options) -> PIHead:
    return PIHead(D, M, C, width=W, generator=draws(), **options).double()


def inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(B, D, dtype=torch.float64, generator=draws(1))
    return features, torch.randn(*shape, M, dtype=torch.float64, generator=draws(2))


def literal(module: PIHead, phi: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """The equations for one image and one annotator, concatenation and all."""
    assert module.pi is not None
    e = torch.relu(module.pi.weight @ a + module.pi.bias)
    j = torch.relu(module.joint.weight @ torch.cat([phi, e]) + module.joint.bias)
    if module.residual:
        j = j + e
    return module.out.weight @ torch.cat([phi, j]) + module.out.bias


@pytest.mark.parametrize("residual", [True, False])
def test_the_equations_one_by_one(residual):
    module = head(residual=residual)
    features, pi = inputs(B, R)
    expected = torch.stack([torch.stack([literal(module, f, a) for a in row]) for f, row in zip(features, pi)])  # noqa: B905
    torch.testing.assert_close(module(features, pi), expected)
    torch.testing.assert_close(module(features, pi[:, 1]), expected[:, 1])


def test_an_embedding_is_a_one_hot_vector():
    embedding = nn.Embedding(A, W).double()
    with_ids = PIHead(D, M, C, width=W, embedding=embedding, generator=draws()).double()
    one_hot = PIHead(D, A + M, C, width=W).double()
    assert one_hot.pi is not None
    assert with_ids.pi is not None
    with torch.no_grad():
        one_hot.pi.weight.copy_(torch.cat([embedding.weight.T, with_ids.pi.weight], 1))
        one_hot.pi.bias.copy_(with_ids.pi.bias)
    for layer in ("joint", "out"):
        getattr(one_hot, layer).load_state_dict(getattr(with_ids, layer).state_dict())
    features, values = inputs(B, R)
    ids = torch.randint(A, (B, R), generator=draws(3))
    vectors = torch.cat([nn.functional.one_hot(ids, A).double(), values], -1)
    torch.testing.assert_close(with_ids(features, (ids, values)), one_hot(features, vectors))


def test_nobody_adds_nothing_and_teaches_nothing():
    module = PIHead(D, 0, C, width=W, embedding=nn.Embedding(A, W))
    ids = torch.tensor([[2, -1]])
    embedded = module.embed(ids)
    assert module.embedding is not None
    torch.testing.assert_close(embedded[0, 0], module.embedding.weight[2].relu())
    assert embedded[0, 1].eq(0).all()
    module(torch.ones(1, D), ids).sum().backward()
    grad = module.embedding.weight.grad
    assert grad is not None
    assert [row for row in range(A) if grad[row].any()] == [2]


def test_many_hypothetical_annotators_in_one_product():
    module = head()
    features, pi = inputs(A)
    tiled = module(features, pi.expand(B, A, M))
    torch.testing.assert_close(module.combine(features.unsqueeze(1), module.embed(pi)), tiled)


def test_gradcheck():
    module = head()
    features, pi = inputs(B, R)
    assert torch.autograd.gradcheck(module, (features.requires_grad_(), pi.requires_grad_()))


@pytest.mark.untyped
def test_the_contracts_of_a_module():
    features, pi = torch.randn(B, D), torch.randn(B, R, M)
    ids = torch.randint(A, (B, R))
    refuses = (
        ((features[0], pi), ("features", "(batch, 4)", "(4,)")),
        ((features[:, :3], pi), ("features", "(5, 3)")),
        ((features, pi[..., :1]), ("pi", "(batch, annotators, 2)", "(5, 3, 1)")),
        ((features, pi[:4]), ("pi", "features (5)", "4")),
        ((features, ids), ("pi", "int64", "nn.Embedding(num_annotators, width)")),
        ((features, (ids, pi)), ("pi", "tuple", "embedding")),
    )
    make = partial(PIHead, D, M, C, width=W, generator=None)
    check_module(make, [features, pi], refuses=refuses, compiles=True)
    check_generator(lambda generator: list(PIHead(D, M, C, generator=generator).parameters()))

    def with_ids() -> PIHead:
        return PIHead(D, 0, C, width=W, embedding=nn.Embedding(A, W))

    refuses = (
        ((features, pi), ("pi", "ids", "float32")),
        ((features, ids + A), ("pi", "0..6", str(int(ids.max()) + A))),
        ((features, ids - 8), ("pi", "-1 for nobody")),
        ((features, ids[None]), ("pi", "(1, 5, 3)")),
        ((features, (ids, pi)), ("pi", "tuple", "pi_dim is 0")),
    )
    check_module(with_ids, [features, ids], refuses=refuses, compiles=True)

    def with_both() -> PIHead:
        return PIHead(D, M, C, width=W, embedding=nn.Embedding(A, W))

    refuses = (
        ((features, ids), ("pair (ids, features)",)),
        ((features, (ids[:, :2], pi)), ("pi", "(5, 2)", "(5, 3, 2)")),
        ((features, (ids, pi.long())), ("pi", "int64")),
    )
    check_module(with_both, [features, (ids, pi)], refuses=refuses, skip=["contiguity", "empty"])


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"feature_dim": 0}, ValueError, "feature_dim must be >= 1"),
        ({"pi_dim": 0}, ValueError, "pi_dim must be >= 1, but is 0"),
        ({"num_classes": 1}, ValueError, "num_classes must be >= 2"),
        ({"width": 2.5}, TypeError, "width must be an integer"),
        ({"embedding": nn.Embedding(3, 4)}, ValueError, r"embedding must have width \(128\) numbers .* has 4"),
        ({"softmax": HeteroscedasticSoftmax(2)}, ValueError, r"softmax must be for num_classes \(3\), but is for 2"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        PIHead(**{"feature_dim": D, "pi_dim": M, "num_classes": C, **arguments})
