from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchstone.noise import knn_prior
from torchstone.noise.knn_prior import confident_references, knn_vote
from torchstone.testing.contracts import check_generator

N, D, C = 60, 3, 4


def cloud(seed: int = 0, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, D, generator=generator)
    return features, (2 * torch.randn(n, C, generator=generator)).softmax(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 100])
def test_references_are_the_surest_of_each_batch_and_class(batch_size):
    _, probs = cloud()
    order = torch.randperm(N, generator=generator()).argsort()  # place -> sample
    expected = set()
    for batch in order.split(batch_size):
        for c in range(C):
            of_class = [int(i) for i in batch if probs[i].argmax() == c]
            if of_class:
                expected.add(max(of_class, key=lambda i: float(probs[i].max())))
    found = confident_references(probs, batch_size=batch_size, generator=generator())
    assert found.tolist() == sorted(expected)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_votes_equal_those_of_scikit_learn(k, chunk):
    neighbors = pytest.importorskip("sklearn.neighbors")
    features, _ = cloud(1)
    references, labels = cloud(2, 25)[0], torch.arange(25) % C
    peer = neighbors.KNeighborsClassifier(k, weights="distance").fit(references.numpy(), labels.numpy())
    votes = knn_vote(features, references, labels, num_classes=C, k=k, chunk=chunk)
    torch.testing.assert_close(votes, torch.from_numpy(peer.predict_proba(features.numpy())).float())
    assert votes.argmax(1).tolist() == peer.predict(features.numpy()).tolist()


@pytest.mark.parametrize("mode", ["onehot", "proba"])
def test_the_prior_equals_that_of_scikit_learn(mode):
    neighbors = pytest.importorskip("sklearn.neighbors")
    features, probs = cloud(3)
    index = confident_references(probs, batch_size=12, generator=generator())
    predicted = probs.argmax(1)
    peer = neighbors.KNeighborsClassifier(10, weights="distance").fit(features[index], predicted[index])
    prior = knn_prior(features, probs, batch_size=12, mode=mode, generator=generator())
    if mode == "onehot":
        assert prior.argmax(1).tolist() == peer.predict(features).tolist()
        assert prior.sum() == prior.amax(1).sum() == N
    else:
        torch.testing.assert_close(prior, torch.from_numpy(peer.predict_proba(features)).float())


def test_a_reference_has_its_own_label_even_far_from_the_origin():
    features, probs = cloud(4)
    features = features + 1000  # distances by a matrix product would have lost most digits
    index = confident_references(probs, batch_size=12, generator=generator())
    prior = knn_prior(features, probs, batch_size=12, mode="proba", generator=generator())
    own = prior[index, probs.argmax(1)[index]]
    assert torch.equal(own, torch.ones(len(index)))


def test_the_neighbours_are_the_same_far_from_the_origin():
    features, _ = cloud(1)
    references, labels = cloud(2, 25)[0], torch.arange(25) % C
    near, far = (knn_vote(features + s, references + s, labels, num_classes=C, k=1) for s in (0, 1024))
    assert torch.equal(near, far)


def test_references_at_distance_zero_vote_alone_and_alike():
    line = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    votes = knn_vote(line[:1], line, torch.tensor([0, 1, 1, 2]), num_classes=4, k=4)
    torch.testing.assert_close(votes, torch.tensor([[1 / 3, 2 / 3, 0.0, 0.0]]))


def test_leading_shares_are_kept_as_they_are():
    features, probs = cloud()
    full = knn_prior(features, probs, batch_size=12, mode="proba", generator=generator())
    cut = knn_prior(features, probs, batch_size=12, mode="proba", top=2, generator=generator())
    assert ((cut > 0).sum(1) <= 2).all()
    assert torch.equal(cut, full.where(full >= full.topk(2, 1).values[:, 1:], 0))


@settings(max_examples=20)
@given(st.permutations(range(C)), st.integers(0, 100))
def test_permuting_the_classes_permutes_the_prior(order, seed):
    features, probs = cloud(seed)
    places = torch.tensor(order)
    plain, permuted = (
        knn_prior(features, p, batch_size=12, k=5, mode="proba", generator=generator())
        for p in (probs, probs[:, places])
    )
    torch.testing.assert_close(permuted, plain[:, places])


def test_classes_never_predicted_get_no_mass_and_a_warning():
    features, probs = cloud()
    probs = torch.cat([probs, torch.zeros(N, 2)], 1)
    with pytest.warns(UserWarning, match=r"classes \[4, 5\] are never predicted"):
        prior = knn_prior(features, probs, batch_size=12, mode="proba")
    assert prior[:, 4:].sum() == 0


def test_batches_are_the_generators():
    features, probs = cloud()
    check_generator(lambda g: confident_references(probs, batch_size=12, generator=g))
    check_generator(lambda g: knn_prior(features, probs, batch_size=12, k=3, mode="proba", generator=g))


@pytest.mark.untyped
def test_errors():
    features, probs = cloud()
    references, labels = features[:5], torch.arange(5) % C
    nan = features.clone()
    nan[3, 1] = torch.nan
    for call, message in (
        (lambda: knn_prior(features, probs, k=10), r"k must be at most the number of references, 4, but is 10: take"),
        (lambda: knn_prior(nan, probs, k=2), r"features holds 1 NaN or infinite values, the first at index \(3, 1\)"),
        (lambda: knn_prior(features, probs.log() * torch.inf), "probs holds"),
        (lambda: knn_prior(features[:4], probs), r"probs must have as many rows as features \(4\), but has 60"),
        (lambda: knn_prior(features, probs, mode="soft"), "mode must be one of 'onehot', 'proba', but is 'soft'"),
        (lambda: knn_prior(features, probs, mode="proba", top=5), r"top must be in 1..4, but is 5"),
        (lambda: knn_prior(features[:0], probs[:0]), "probs must have at least 1 row"),
        (lambda: confident_references(probs, batch_size=0), "batch_size must be >= 1"),
        (lambda: knn_vote(features, references[:, :2], labels, num_classes=C), "as many columns as features"),
        (lambda: knn_vote(features, references, labels + 2, num_classes=C), r"labels must lie in 0..3"),
        (lambda: knn_vote(features, references, labels, num_classes=C, k=0), "k must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
