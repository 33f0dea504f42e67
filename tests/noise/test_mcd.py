from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchstone.noise import MinCovDetTied, gaussian_classifier, mcd
from torchstone.noise.mcd import smallest_per_class, tied_gaussians

N, D, C = 240, 5, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def well_conditioned(generator: torch.Generator) -> torch.Tensor:
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    return rotation * torch.linspace(0.5, 2.0, D, dtype=torch.float64)


def noisy_blobs(seed: int = 0, n: int = N, wrong: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes with a full covariance, a share of the labels redrawn."""
    generator = seeded(seed)
    truth = torch.arange(n) % C
    mix = well_conditioned(generator)
    x = (torch.randn(n, D, generator=generator, dtype=torch.float64) + 3 * torch.eye(C, D)[truth].double()) @ mix
    redrawn = torch.randint(C, (n,), generator=generator)
    labels = torch.where(torch.rand(n, generator=generator) < wrong, redrawn, truth)
    return x, labels


def oracle(x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, keep: list[int], steps: int):
    """The algorithm in loops over classes and samples, with SciPy's pseudo-inverse."""
    from scipy.linalg import pinvh

    points, labels = x.numpy(), y.numpy()
    support = [[i for i in range(len(labels)) if labels[i] == c and start[i]] for c in range(C)]

    def estimate():
        means = [points[rows].mean(0) for rows in support]
        scatter = sum(np.outer(points[i] - means[c], points[i] - means[c]) for c in range(C) for i in support[c])
        return means, scatter / sum(keep), pinvh(scatter / sum(keep))

    for _ in range(steps):
        means, _, precision = estimate()
        for c in range(C):
            rows = [i for i in range(len(labels)) if labels[i] == c]
            distance = [(points[i] - means[c]) @ precision @ (points[i] - means[c]) for i in rows]
            support[c] = [rows[j] for j in np.argsort(distance, kind="stable")[: keep[c]]]
    means, covariance, precision = estimate()
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate(support)] = True
    return np.array(means), covariance, precision, chosen


@pytest.mark.parametrize("fraction", [0.7, None, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_equals_the_algorithm_in_plain_loops(fraction, steps):
    x, y = noisy_blobs()
    counts = torch.bincount(y).tolist()
    keep = [(n + D + 1) // 2 if fraction is None else math.floor(fraction * n) for n in counts]
    start = smallest_per_class(torch.rand(N, generator=seeded(1)), y, torch.tensor(keep))
    means, covariance, precision, support = oracle(x, y, start, keep, steps)
    found = MinCovDetTied(fraction, steps, generator=seeded(1)).fit(x, y)
    np.testing.assert_allclose(found.means_, means, rtol=1e-10)
    np.testing.assert_allclose(found.covariance_, covariance, rtol=1e-10)
    np.testing.assert_allclose(found.precision_, precision, rtol=1e-8)
    np.testing.assert_array_equal(found.support_, support)
    expected = [(x[i] - found.means_[y[i]]) @ found.precision_ @ (x[i] - found.means_[y[i]]) for i in range(N)]
    torch.testing.assert_close(found.gaussians_.mahalanobis(x, y), torch.stack(expected))


def test_the_smallest_of_each_class_by_hand():
    score = torch.tensor([5.0, 1.0, 1.0, 0.0, 2.0, 1.0])
    labels = torch.tensor([1, 1, 1, 0, 0, 1])
    assert smallest_per_class(score, labels, torch.tensor([1, 2])).tolist() == [False, True, True, True, False, False]
    assert smallest_per_class(score, labels, torch.tensor([0, 4])).sum() == 4


def test_what_is_kept_of_each_class():
    x, y = torch.randn(130, 4, generator=seeded()), torch.tensor([0] * 100 + [1] * 30)
    for fraction, expected in ((None, [52, 17]), (0.7, [70, 21]), (0.29, [29, 8]), (1e-6, [1, 1]), (1.0, [100, 30])):
        support = MinCovDetTied(fraction, ridge=0.1).fit(x, y).support_
        assert torch.bincount(y[support]).tolist() == expected
    official = MinCovDetTied.official()
    assert (official.support_fraction, official.n_steps, official.n_init) == (0.7, 1, 1)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([None, 0.5, 0.8]), st.floats(0.0, 0.45))
def test_no_step_raises_the_determinant(seed, fraction, wrong):
    x, y = noisy_blobs(seed, wrong=wrong)
    found = MinCovDetTied(fraction, None, generator=seeded(seed)).fit(x, y)
    falls = np.diff(found.log_dets_)
    assert (falls <= 1e-10).all()
    assert found.log_dets_[-1] == pytest.approx(torch.logdet(found.covariance_).item())


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([None, 0.7]), st.sampled_from([1, None]))
def test_affine_maps_of_the_features_are_followed(seed, fraction, steps):
    x, y = noisy_blobs(seed)
    generator = seeded(seed + 1)
    a = well_conditioned(generator)
    b = 10 * torch.randn(D, generator=generator, dtype=torch.float64)
    plain = MinCovDetTied(fraction, steps, generator=seeded(seed)).fit(x, y)
    moved = MinCovDetTied(fraction, steps, generator=seeded(seed)).fit(x @ a.T + b, y)
    assert torch.equal(moved.support_, plain.support_)
    torch.testing.assert_close(moved.means_, plain.means_ @ a.T + b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved.covariance_, a @ plain.covariance_ @ a.T, rtol=1e-6, atol=1e-6)
    one, other = (gaussian_classifier(found.means_, found.precision_) for found in (plain, moved))
    torch.testing.assert_close(one(x).log_softmax(1), other(x @ a.T + b).log_softmax(1), rtol=1e-6, atol=1e-6)


def test_keeping_all_is_the_linear_discriminant_analysis_of_scikit_learn():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = noisy_blobs(n=402)
    new = torch.randn(1000, D, generator=seeded(9), dtype=torch.float64) * 5
    # scikit-learn weighs the covariances of the classes by the priors: equal ones ask for equal classes.
    equal = torch.arange(402) % C
    for labels, priors in ((equal, None), (y, torch.bincount(y) / len(y))):
        found = MinCovDetTied(1.0).fit(x, labels)
        ours = gaussian_classifier(found.means_, found.precision_, priors=priors)(new).softmax(1).detach().numpy()
        for solver in ("lsqr", "eigen"):
            given = np.full(C, 1 / C) if priors is None else None
            peer = LinearDiscriminantAnalysis(solver=solver, priors=given).fit(x.numpy(), labels.numpy())
            assert (ours.argmax(1) == peer.predict(new.numpy())).all()
            np.testing.assert_allclose(ours, peer.predict_proba(new.numpy()), rtol=1e-5, atol=1e-12)


def test_one_class_agrees_with_scikit_learn():
    from sklearn.covariance import MinCovDet

    x = torch.randn(300, 3, generator=seeded(), dtype=torch.float64)
    x[:90] += torch.tensor([6.0, 0.0, 0.0])
    ours = MinCovDetTied(None, None, 30, generator=seeded()).fit(x, torch.zeros(300, dtype=torch.int64))
    peer = MinCovDet(random_state=0, support_fraction=152 / 300).fit(x.numpy())
    sigma = torch.from_numpy(peer.covariance_).diagonal().sqrt()
    assert int(ours.support_.sum()) == int(peer.raw_support_.sum()) == 152
    assert ((ours.means_[0] - torch.from_numpy(peer.raw_location_)).abs() < 1e-2 * sigma).all()
    assert ours.log_dets_[-1] <= np.linalg.slogdet(np.cov(x[peer.raw_support_].T.numpy(), bias=True))[1] + 1e-2


@pytest.mark.parametrize("where", [20.0, 1e4])
def test_a_far_cluster_is_left_out(where):
    x, y = noisy_blobs(n=600, wrong=0.0)
    # In each class 20 % of the samples are moved to one far place, another for each.
    outliers = torch.arange(600) % 15 < 3
    direction = torch.randn(C, D, generator=seeded(2), dtype=torch.float64)
    x = torch.where(outliers[:, None], x + where * direction[y], x)
    found = MinCovDetTied(0.7, None, generator=seeded()).fit(x, y)
    assert not (found.support_ & outliers).any()
    clean = MinCovDetTied(1.0).fit(x[~outliers], y[~outliers])
    sigma = clean.covariance_.diagonal().sqrt()
    assert ((found.means_ - clean.means_).abs() < 0.3 * sigma).all()
    assert ((MinCovDetTied(1.0).fit(x, y).means_ - clean.means_).abs() > sigma).any(1).all()


def test_the_largest_support_that_withstands_half():
    """Theory: (N - d + 1) / 2 arbitrary samples leave MCD bounded; one is enough to carry the sample mean away."""
    x = torch.randn(101, 2, generator=seeded(), dtype=torch.float64)
    y = torch.zeros(101, dtype=torch.int64)
    bad = x.clone()
    bad[:49] = 1e6 * torch.randn(49, 2, generator=seeded(1), dtype=torch.float64)
    assert MinCovDetTied(None, None, 50, generator=seeded()).fit(bad, y).means_.norm() < 1
    bad = x.clone()
    bad[0] = 1e6
    assert MinCovDetTied(1.0).fit(bad, y).means_.norm() > 1e4


def test_contaminated_moments():
    """Theory: the sample mean moves by delta D, the sample covariance gains delta (1 - delta) D D^T; MCD's do not."""
    n, delta = 40_000, 0.2
    shift = torch.tensor([8.0, 0.0], dtype=torch.float64)
    x = torch.randn(n, 2, generator=seeded(), dtype=torch.float64)
    x[: int(delta * n)] += shift
    y = torch.zeros(n, dtype=torch.int64)
    sample = MinCovDetTied(1.0).fit(x, y)
    torch.testing.assert_close(sample.means_[0], delta * shift, atol=0.02, rtol=0)
    expected = torch.eye(2).double() + delta * (1 - delta) * torch.outer(shift, shift)
    torch.testing.assert_close(sample.covariance_, expected, atol=0.1, rtol=0)
    robust = MinCovDetTied(0.7, None, generator=seeded()).fit(x, y)
    assert robust.means_.abs().max() < 0.02
    scale = robust.covariance_.diagonal().mean()  # a multiple of the identity: the tails are cut
    assert 0.3 < scale < 0.9
    torch.testing.assert_close(robust.covariance_ / scale, torch.eye(2).double(), atol=0.05, rtol=0)


def test_of_several_starts_the_smallest_determinant_is_taken():
    x, y = noisy_blobs(wrong=0.45)
    generator = seeded(3)
    single = [MinCovDetTied(None, 1, generator=generator).fit(x, y).log_dets_[-1] for _ in range(8)]
    assert len(set(single)) > 1
    assert MinCovDetTied(None, 1, 8, generator=seeded(3)).fit(x, y).log_dets_[-1] == min(single)


def test_without_a_number_of_steps_it_goes_on_until_nothing_changes():
    x, y = noisy_blobs()
    found = MinCovDetTied(0.7, None, generator=seeded()).fit(x, y)
    more = MinCovDetTied(0.7, len(found.log_dets_) + 5, generator=seeded()).fit(x, y)
    assert len(found.log_dets_) > 2
    assert torch.equal(found.support_, more.support_)
    assert found.log_dets_[:2] == MinCovDetTied(0.7, 1, generator=seeded()).fit(x, y).log_dets_


def test_chunks_change_nothing(monkeypatch):
    x, y = noisy_blobs()
    whole = MinCovDetTied(0.7, 3, generator=seeded()).fit(x, y)
    monkeypatch.setattr(mcd, "CHUNK", 7)
    parts = MinCovDetTied(0.7, 3, generator=seeded()).fit(x, y)
    assert torch.equal(whole.support_, parts.support_)
    torch.testing.assert_close(whole.covariance_, parts.covariance_, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_agree(dtype):
    x, y = noisy_blobs(n=900)
    x = x.to(dtype)
    exact = MinCovDetTied(0.7, 2, generator=seeded()).fit(x.double(), y)
    found = MinCovDetTied(0.7, 2, generator=seeded()).fit(x, y)
    assert found.means_.dtype == found.covariance_.dtype == found.precision_.dtype == torch.float32
    torch.testing.assert_close(found.means_.double(), exact.means_, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.precision_.double(), exact.precision_, rtol=1e-3, atol=1e-3)


def test_a_dead_feature_is_left_alone():
    x, y = noisy_blobs()
    dead = torch.cat([x, torch.zeros(N, 1, dtype=torch.float64)], 1)
    with_dead, without = (MinCovDetTied(0.7, 2, generator=seeded()).fit(z, y) for z in (dead, x))
    torch.testing.assert_close(with_dead.precision_[:D, :D], without.precision_)
    assert not with_dead.precision_[D].any()
    ridge = MinCovDetTied(0.7, 2, ridge=0.5, generator=seeded()).fit(dead, y)
    regular = ridge.covariance_ + 0.5 * ridge.covariance_.trace() / (D + 1) * torch.eye(D + 1)
    torch.testing.assert_close(ridge.precision_, regular.inverse())


def test_the_shared_covariance_is_that_around_the_own_means():
    x = torch.tensor([[0.0], [2.0], [10.0], [14.0]], dtype=torch.float64)
    found = tied_gaussians(x, torch.tensor([0, 0, 1, 1]), num_classes=2)
    assert found.means.tolist() == [[1.0], [12.0]]
    assert found.covariance.item() == 2.5
    assert found.precision.item() == pytest.approx(0.4)
    assert found.log_det == pytest.approx(math.log(2.5))


def test_chance_comes_from_the_generator_alone():
    x, y = noisy_blobs(wrong=0.45)
    before = torch.random.get_rng_state()
    one, same, other = (MinCovDetTied(0.6, 0, generator=seeded(seed)).fit(x, y) for seed in (1, 1, 2))
    assert torch.equal(one.support_, same.support_)
    assert not torch.equal(one.support_, other.support_)
    assert torch.equal(before, torch.random.get_rng_state())


def test_too_few_samples_are_told_of():
    x, y = torch.randn(40, 30, generator=seeded()), torch.arange(40) % 2
    with pytest.warns(UserWarning, match="class 0 has 20 samples of 30 features and keeps them all"):
        assert MinCovDetTied().fit(x, y).support_.all()
    with pytest.warns(UserWarning, match="28 samples in 2 classes cannot fix a covariance of 30 features"):
        found = MinCovDetTied(0.7).fit(x, y)
    assert found.precision_.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MinCovDetTied(0.7, ridge=0.1).fit(x, y)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(4), torch.zeros(4).long(), ValueError, r"features must have shape \(n, d\)"),
        (torch.zeros(4, 2), torch.zeros(3).long(), ValueError, r"labels must have as many rows as features \(4\)"),
        (torch.zeros(4, 2), torch.zeros(4), TypeError, "labels must have dtype torch.int64"),
        (torch.zeros(4, 2), torch.tensor([0, 1, 2, 5]), ValueError, r"labels must lie in 0..2, but spans 0..5"),
        (torch.zeros(4, 2), torch.tensor([0, 0, 2, 2]), ValueError, "class 1 of 3 has none"),
        (torch.full((4, 2), math.nan), torch.tensor([0, 1, 2, 2]), ValueError, "features holds 8 NaN or infinite"),
        (torch.zeros(0, 2), torch.zeros(0).long(), ValueError, "features must have at least 1 row"),
        (torch.zeros(4, 2).long(), torch.zeros(4).long(), TypeError, "features must be floating point"),
    ],
)
def test_bad_input(x, y, error, message):
    with pytest.raises(error, match=message):
        MinCovDetTied(0.7).fit(x, y, num_classes=3)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"support_fraction": 0.0}, r"support_fraction must lie in \(0, 1\], but is 0.0"),
        ({"support_fraction": 1.5}, "support_fraction must lie in"),
        ({"n_steps": -1}, "n_steps must be >= 0"),
        ({"n_init": 0}, "n_init must be >= 1"),
        ({"ridge": -1.0}, "ridge must lie in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MinCovDetTied(**arguments)
