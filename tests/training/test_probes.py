from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from torchstone.training import knn_probe, linear_probe


def split(
    seed: int = 0, classes: int = 3, n: int = 60, m: int = 25, d: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlapping Gaussian classes with features of very different scale and offset."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n + m) % classes
    x = torch.randn(n + m, d, generator=g) + torch.randn(classes, d, generator=g)[y]
    x = x * torch.logspace(-1, 1, d) + 3
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("l2", [0.1, 10.0])
@pytest.mark.parametrize("standardize", [True, False])
def test_linear_probe_is_sklearns_logistic_regression(classes, l2, standardize):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y, x_test, y_test = split(classes=classes)
    got = linear_probe(x, y, x_test, y_test, l2=l2, standardize=standardize)
    a, b = x.double().numpy(), x_test.double().numpy()
    if standardize:
        scaler = StandardScaler().fit(a)
        a, b = scaler.transform(a), scaler.transform(b)
    reference = LogisticRegression(C=1 / l2, solver="newton-cg", tol=1e-10, max_iter=10_000).fit(a, y.numpy())
    np.testing.assert_allclose(got.probabilities.numpy(), reference.predict_proba(b), atol=1e-5)
    assert got.accuracy == pytest.approx(reference.score(b, y_test.numpy()))


def test_linear_probe_with_a_class_that_training_lacks_and_a_constant_feature():
    x, y, x_test, y_test = split(classes=2)
    x, x_test = torch.cat([x, torch.ones(60, 1)], 1), torch.cat([x_test, torch.ones(25, 1)], 1)
    plain = linear_probe(x, y, x_test, y_test)
    gap = linear_probe(x, 3 * y, x_test, 3 * y_test + (y_test == 0))
    assert gap.probabilities.shape == (25, 4)
    assert gap.probabilities[:, 1:3].eq(0).all()
    assert torch.equal(gap.probabilities[:, [0, 3]], plain.probabilities)


def test_linear_probe_ignores_shift_and_scale_when_standardized():
    x, y, x_test, y_test = split()
    one = linear_probe(x, y, x_test, y_test)
    two = linear_probe(100 * x - 7, y, 100 * x_test - 7, y_test)
    torch.testing.assert_close(one.probabilities, two.probabilities, atol=1e-4, rtol=0)


def test_linear_probe_works_without_gradients():
    with torch.no_grad():
        assert linear_probe(*split()).accuracy > 0.5


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("k", [1, 2, 7, 60])
def test_knn_probe_is_sklearns_classifier(metric, weights, k):
    from sklearn.neighbors import KNeighborsClassifier

    x, y, x_test, y_test = split(classes=4)
    y = y + (y > 1)  # a class number that does not occur
    reference = KNeighborsClassifier(k, metric=metric, weights=weights, algorithm="brute").fit(x.double(), y)
    got = knn_probe(x, y, x_test, y_test, k=k, metric=metric, weights=weights, chunk=7)
    np.testing.assert_allclose(
        got.probabilities[:, [0, 1, 3, 4]].numpy(), reference.predict_proba(x_test.double()), atol=1e-9
    )
    assert np.array_equal(got.probabilities.argmax(1).numpy(), reference.predict(x_test.double()))


def test_knn_equal_votes_go_to_the_smaller_class_as_in_sklearn():
    from sklearn.neighbors import KNeighborsClassifier

    x, y = torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([2, 1, 1, 2])
    test = torch.tensor([[0.4], [3.6]])
    got = knn_probe(x, y, test, torch.tensor([1, 1]), k=2, metric="euclidean")
    assert got.accuracy == 1.0
    assert KNeighborsClassifier(2).fit(x, y).predict(test).tolist() == [1, 1]


def test_knn_equal_distances_go_to_the_earlier_row():
    g = torch.Generator().manual_seed(0)
    x, test = (torch.randint(0, 3, (n, 2), generator=g).float() for n in (30, 20))
    y, y_test = torch.randint(0, 3, (30,), generator=g), torch.randint(0, 3, (20,), generator=g)
    for k in (1, 4, 9):
        for weights in ("uniform", "distance"):
            got = knn_probe(x, y, test, y_test, k=k, metric="euclidean", weights=weights)
            for row, t in enumerate(test):
                nearest = sorted((float((t - voter).norm()), i) for i, voter in enumerate(x))[:k]
                if weights == "distance":
                    here = [(d, i) for d, i in nearest if d == 0]
                    votes = [(1.0, i) for _, i in here] or [(1 / d, i) for d, i in nearest]
                else:
                    votes = [(1.0, i) for _, i in nearest]
                total = torch.zeros(3, dtype=torch.float64)
                for vote, i in votes:
                    total[y[i]] += vote
                torch.testing.assert_close(got.probabilities[row], total / total.sum())


@pytest.mark.untyped
@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_bad_data(probe):
    x, y, x_test, y_test = split()
    for arguments, error, message in [
        ((x[:, :3], y, x_test, y_test), ValueError, r"as many columns as train_features \(3\), but has 5"),
        ((x, y[:5], x_test, y_test), ValueError, r"y must have as many rows as train_features \(60\), but has 5"),
        ((x, y, x_test, y_test[:5]), ValueError, r"y_test must have as many rows as test_features \(25\)"),
        ((x, y.float(), x_test, y_test), TypeError, "y must have dtype torch.int64"),
        ((x, y, x_test[:0], y_test[:0]), ValueError, "test_features must have at least 1 row"),
        ((x / 0, y, x_test, y_test), ValueError, "train_features holds 300 NaN or infinite"),
        ((x[0], y, x_test, y_test), ValueError, r"train_features must have shape \(n, features\)"),
    ]:
        with pytest.raises(error, match=message):
            probe(*arguments)


def test_bad_options():
    x, y, x_test, y_test = split()
    for run, message in [
        (lambda: linear_probe(x, 0 * y, x_test, y_test), "at least 2 classes, but holds only 0"),
        (lambda: linear_probe(x, y, x_test, y_test, l2=0.0), r"l2 must lie in \(0, inf\], but is 0.0"),
        (lambda: knn_probe(x, y, x_test, y_test, k=61), r"k must be in 1\.\.60, but is 61"),
        (lambda: knn_probe(x, y, x_test, y_test, metric="l1"), "metric must be one of 'cosine', 'euclidean'"),
        (lambda: knn_probe(x, y, x_test, y_test, weights="rank"), "weights must be one of 'uniform', 'distance'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run()
