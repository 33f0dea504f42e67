from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchstone.data.embedded import digits
from torchstone.dynamics import Whitening, gram, information_fraction
from torchstone.dynamics.whitening import spectrum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def some_digits(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels that are not constant, and labels of the first n."""
    data = digits()
    x = data.x.flatten(1).double()
    x = x[:, x.std(0) > 0]
    order = torch.randperm(len(x), generator=seeded(seed))
    return x[order[:n]], x[order[n : n + m]], nn.functional.one_hot(data.y[order[:n]], 10).double()


def full(x: Tensor, x_test: Tensor, **options: Any) -> Whitening:
    """Whitened together; that test data become unreachable is the point here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Whitening(fit="full", **options).fit(x, x_test)


def rotation(d: int, seed: int = 9) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def trajectory(x: Tensor, x_test: Tensor, y: Tensor, first: Tensor, steps: int, lr: float = 0.1) -> tuple[Tensor, ...]:
    """Gradient descent of a network with a dense first layer; returns its outputs, and test pre-activations."""
    w, v = first.clone(), normal(y.shape[1], len(first), seed=5) / len(first) ** 0.5
    losses = []
    for _ in range(steps):
        z = x @ w.T
        hidden = z.relu()
        error = (hidden @ v.T - y) / len(x)
        losses.append((error * len(x)).square().sum(1).mean() / 2)
        back = (error @ v) * (z > 0)
        v, w = v - lr * error.T @ hidden, w - lr * back.T @ x
    return (x_test @ w.T).relu() @ v.T, x_test @ w.T, torch.stack(losses)


# ---------------------------------------------------------------- the matrix


def test_by_hand():
    """F = diag(9, 16): divide by 3 and 4, or keep the mean squared norm 25/2 by c = sqrt(25/2)."""
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    plain = Whitening(rescale=False).fit(x)
    torch.testing.assert_close(plain.matrix, torch.diag(torch.tensor([1 / 3, 1 / 4])).double())
    torch.testing.assert_close(plain.transform(x), torch.eye(2))
    scaled = Whitening().fit(x)
    torch.testing.assert_close(scaled.transform(x), torch.eye(2) * 12.5**0.5)
    assert scaled.rank_ == 2
    assert scaled.transform(x).dtype == torch.float32
    turned = Whitening("pca", rescale=False).fit(x)  # the larger first
    torch.testing.assert_close(turned.matrix.abs(), torch.tensor([[0.0, 1 / 4], [1 / 3, 0.0]]).double())


@pytest.mark.parametrize("mode", ["zca", "pca"])
@pytest.mark.parametrize(("n", "d"), [(200, 7), (5, 12)])
def test_second_moments_become_a_projector(mode: str, n: int, d: int):
    x = normal(n, d) @ torch.diag(torch.logspace(0, -2, d).double())
    whitening = Whitening(mode, rescale=False).fit(x)
    white = whitening(x)
    rank = min(n, d)
    assert int(whitening.rank_) == rank
    assert white.shape[1] == (d if mode == "zca" else rank)
    for moment in (white @ white.mT, white.mT @ white):
        values = torch.linalg.eigvalsh(moment)
        expected = torch.zeros_like(values)
        expected[len(values) - rank :] = 1
        torch.testing.assert_close(values, expected, atol=1e-9, rtol=0)


def test_digits_become_a_projector():
    x, x_test, _ = some_digits(100, 200)
    white = Whitening(fit="full", rescale=False).fit(x, x_test)(torch.cat([x, x_test]))
    values = torch.linalg.eigvalsh(white @ white.T)
    assert float(torch.minimum(values.abs(), (values - 1).abs()).max()) < 1e-9
    assert 50 < round(float(values.sum())) < 61  # pixels of few digits are all zero: rank, not shape


def test_rescaling_keeps_the_mean_squared_norm():
    x = normal(40, 6) * torch.tensor([3.0, 1, 1, 1, 1, 0.1]).double() + 2
    for mode in ("zca", "pca"):
        white = Whitening(mode).fit(x)(x)
        torch.testing.assert_close(white.square().sum(1).mean(), x.square().sum(1).mean())
    centred = Whitening(center=True).fit(x)(x)
    torch.testing.assert_close(centred.square().sum(1).mean(), (x - x.mean(0)).square().sum(1).mean())
    torch.testing.assert_close(centred.mean(0), torch.zeros(6).double(), atol=1e-12, rtol=0)


def test_the_rank_is_decided_by_eps():
    x = torch.diag(torch.tensor([1.0, 1e-2, 1e-6], dtype=torch.float64))  # shares 1, 1e-4, 1e-12
    assert [int(Whitening(eps=eps).fit(x).rank_) for eps in (0.0, 1e-10, 1e-4, 1e-3)] == [3, 2, 1, 1]
    dropped = Whitening(rescale=False).fit(x)(x)
    torch.testing.assert_close(dropped, torch.diag(torch.tensor([1.0, 1.0, 0.0]).double()))


def test_zca_is_pca_but_for_a_rotation_and_nearest_to_the_data():
    x, x_test = normal(9, 4), normal(3, 4, seed=1)
    zca, pca = full(x, x_test), full(x, x_test, mode="pca")
    torch.testing.assert_close(gram(zca(x), zca(x_test)), gram(pca(x), pca(x_test)))
    torch.testing.assert_close(zca.matrix, zca.matrix.T)


@pytest.mark.parametrize("mode", ["zca", "pca"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_inverse_brings_back_what_the_fit_spans(mode: str, center: bool, rescale: bool):
    x = normal(5, 8)
    whitening = Whitening(mode, center=center, rescale=rescale).fit(x)
    torch.testing.assert_close(whitening.inverse_transform(whitening(x)), x)
    other = normal(3, 8, seed=2)
    once = whitening.inverse_transform(whitening(other))
    torch.testing.assert_close(whitening(once), whitening(other))
    assert not torch.allclose(once, other)


def test_scikit_learn_whitens_the_same_but_for_its_scale():
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = normal(50, 6) * torch.arange(1, 7) + 1
    ours = Whitening("pca", center=True, rescale=False).fit(x)(x) * 49**0.5
    theirs = torch.from_numpy(np.asarray(decomposition.PCA(whiten=True, svd_solver="full").fit_transform(x.numpy())))
    torch.testing.assert_close(ours.abs(), theirs.abs())


def test_float32_data_are_whitened_in_float64():
    """The smallest eigenvalue is 1e-8 of the largest: float32 would see noise."""
    x = (normal(30, 10) @ torch.diag(torch.logspace(0, -4, 10).double()) @ rotation(10)).float()
    white = Whitening(rescale=False).fit(x)(x).double()
    torch.testing.assert_close(white.T @ white, torch.eye(10).double(), atol=1e-5, rtol=0)
    in_float32 = torch.linalg.eigh(x.T @ x)
    noisy = (x @ (in_float32.eigenvectors / in_float32.eigenvalues.abs().sqrt())).double()
    assert float((noisy.T @ noisy - torch.eye(10)).abs().max()) > 1e-2


@pytest.mark.parametrize("mode", ["zca", "pca"])
def test_a_wide_spectrum_is_whitened_to_nearly_all_digits(mode: str):
    """Eigenvalues down to 1e-9 of the largest: dividing by their roots alone would leave errors of 1e-8."""
    x = normal(40, 30) @ torch.diag(torch.logspace(0, -4.5, 30).double()) @ rotation(30)
    whitening = Whitening(mode, rescale=False).fit(x)
    white = whitening(x)
    values = torch.linalg.eigvalsh(white.T @ white)
    assert float((values - 1).abs().max()) < 1e-10
    torch.testing.assert_close(whitening.inverse_transform(white), x, atol=1e-12, rtol=0)


# ---------------------------------------------------------------- many data sets at once


@pytest.mark.parametrize("mode", ["zca", "pca"])
@pytest.mark.parametrize("center", [False, True])
def test_a_stack_is_whitened_as_each_alone(mode: str, center: bool):
    x, x_test = normal(3, 9, 5), normal(3, 4, 5, seed=1)
    x[1, :, 2:] = 0
    x_test[1, :, 2:] = 0  # of rank 2, so with rows of zeros in the mode "pca"
    stack = full(x, x_test, mode=mode, center=center)
    assert stack.rank_.tolist() == [5, 2, 5]
    for s in range(3):
        alone = full(x[s], x_test[s], mode=mode, center=center)
        torch.testing.assert_close(stack(x)[s][:, : alone.matrix.shape[0]], alone(x[s]), atol=1e-12, rtol=0)
        torch.testing.assert_close(stack.inverse_transform(stack(x))[s], alone.inverse_transform(alone(x[s])))
        torch.testing.assert_close(
            information_fraction(x, x_test, stack)[s], information_fraction(x[s], x_test[s], alone)
        )
    assert not stack(x)[1, :, 2:].any()


def test_another_data_set_of_the_stack_changes_no_bit():
    x = normal(2, 9, 5)
    before = Whitening().fit(x)(x)[1]
    x[0] *= torch.logspace(0, -4, 5).double()  # which takes a step more
    assert torch.equal(Whitening().fit(x)(x)[1], before)


# ---------------------------------------------------------------- the diagnostics


def test_gram_by_hand():
    k = gram(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0]]))
    assert k.tolist() == [[5.0, 2.0, 3.0], [2.0, 1.0, 0.0], [3.0, 0.0, 9.0]]
    assert gram(torch.ones(4, 2, 3), torch.ones(4, 5, 3)).shape == (4, 7, 7)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12), st.integers(0, 99), st.floats(0.01, 100))
def test_the_fraction_knows_neither_rotation_nor_scale(n: int, m: int, d: int, seed: int, scale: float):
    x, x_test = normal(n, d, seed=seed), normal(m, d, seed=seed + 1000)
    turn = scale * rotation(d, seed)
    torch.testing.assert_close(information_fraction(x, x_test, lambda v: v @ turn), torch.tensor(1.0).double())
    shrink = torch.linspace(0.1, 1, d).double()
    k, white = gram(x, x_test), gram(x * shrink, x_test * shrink)

    def kappa(k: Tensor) -> Tensor:  # literally
        return k[:n, n:].norm() / (k[:n, :n].trace() * k[n:, n:].trace()).sqrt()

    torch.testing.assert_close(information_fraction(x, x_test, lambda v: v * shrink), kappa(white) / kappa(k))


def test_what_is_left_of_digits():
    x, x_test, _ = some_digits(20, 20)
    assert float(information_fraction(x, x_test, full(x, x_test))) < 1e-9
    assert 0.1 < float(information_fraction(x, x_test, Whitening().fit(x))) < 0.7


# ---------------------------------------------------------------- what the paper proves


def test_rotating_inputs_and_first_weights_changes_nothing():
    x, x_test, y = some_digits(50, 60)
    d = x.shape[1]
    first, turn = normal(32, d, seed=4) / d**0.5, rotation(d)
    plain, *_ = trajectory(x, x_test, y, first, 200)
    turned, *_ = trajectory(x @ turn.T, x_test @ turn.T, y, first @ turn.T, 200)
    assert float((plain - turned).abs().max()) < 1e-10
    other, *_ = trajectory(x @ turn.T, x_test @ turn.T, y, first, 200)
    assert float((plain - other).abs().max()) > 1e-2


def test_test_samples_whitened_with_the_training_samples_are_out_of_reach():
    x, x_test, y = some_digits(20, 20)
    d = x.shape[1]
    whitening = full(x, x_test)
    assert int(whitening.rank_) == 40
    first = normal(64, d, seed=4) / d**0.5
    white, white_test = whitening(x), whitening(x_test)
    _, reached, losses = trajectory(white, white_test, y, first, 500)
    assert float((reached - white_test @ first.T).abs().max()) < 1e-9
    assert float(losses[-1]) < 1e-3 < float(losses[0])
    _, reached, _ = trajectory(x, x_test, y, first, 500)
    assert float((reached - x_test @ first.T).abs().max()) > 0.1


def test_zca_and_pca_train_alike_from_turned_weights():
    x, x_test, y = some_digits(30, 60)
    zca, pca = Whitening().fit(x), Whitening("pca").fit(x)
    first = normal(16, x.shape[1], seed=4)
    axes = spectrum(x.T @ x)[1][:, : int(pca.rank_)]
    one, *_ = trajectory(zca(x), zca(x_test), y, first, 100)
    two, *_ = trajectory(pca(x), pca(x_test), y, first @ axes, 100)
    torch.testing.assert_close(one, two, atol=1e-10, rtol=0)


def test_a_warning_by_rank_not_by_shape():
    x, x_test, _ = some_digits(20, 20)
    with pytest.warns(UserWarning, match="n \\+ m = 40 .* rank 40.* cannot change"):
        Whitening(fit="full").fit(x, x_test)
    with pytest.warns(UserWarning, match="rank 39.* all change alike"):
        Whitening(fit="full", center=True).fit(x, x_test)
    Whitening(fit="full").fit(x, torch.cat([x_test, x_test[:1]]))  # 41 samples of rank 40 are fewer than d
    Whitening().fit(x)
    with pytest.warns(UserWarning, match="20 samples have rank 20: a sample of a distribution"):
        Whitening(fit="distribution").fit(x)


# ---------------------------------------------------------------- as a module


def test_a_frozen_first_layer_saves_and_loads():
    x = normal(30, 6)
    net = nn.Sequential(Whitening("pca", center=True).fit(x), nn.Linear(6, 3).double())
    copy = nn.Sequential(Whitening("pca", center=True), nn.Linear(6, 3).double())
    copy.load_state_dict(net.state_dict())
    assert torch.equal(copy(x), net(x))
    assert [name for name, _ in net.named_parameters()] == ["1.weight", "1.bias"]
    smaller = Whitening("pca", center=True).fit(normal(30, 4))
    smaller.load_state_dict(net[0].state_dict())
    assert torch.equal(smaller(x), net[0](x))
    assert repr(smaller) == "Whitening('pca', fit='train', eps=1e-10, center=True, rescale=True)"


def test_gradients_pass_through():
    whitening = Whitening("pca", center=True).fit(normal(9, 3))
    assert torch.autograd.gradcheck(whitening, [normal(4, 3, seed=1).requires_grad_()])


# ---------------------------------------------------------------- errors


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: Whitening("svd"), ValueError, "mode must be one of 'zca', 'pca', but is 'svd'"),
        (lambda: Whitening(fit="test"), ValueError, "fit must be one of 'train', 'full', 'distribution'"),
        (lambda: Whitening(eps=-1.0), ValueError, "eps must lie in"),
        (lambda: Whitening().fit(torch.ones(4)), ValueError, r"x must have shape \(n, d\) or \(s, n, d\)"),
        (lambda: Whitening().fit(torch.ones(4, 2).long()), TypeError, "x must be a floating point tensor"),
        (lambda: Whitening().fit(np.eye(2)), TypeError, "x must be a floating point tensor, but has type ndarray"),  # pyright: ignore[reportArgumentType]
        (lambda: Whitening().fit(torch.tensor([[1.0, float("nan")]])), ValueError, "x holds 1 NaN"),
        (lambda: Whitening().fit(torch.ones(0, 3)), ValueError, "at least 1 sample"),
        (lambda: Whitening().fit(torch.zeros(4, 3)), ValueError, "rank 0: all samples are zero"),
        (lambda: Whitening(center=True).fit(torch.full((7, 3), 0.1)), ValueError, "rank 0: all samples are equal"),
        (lambda: Whitening().fit(torch.ones(4, 3), torch.ones(2, 3)), ValueError, "fit='train' takes no x_test"),
        (lambda: Whitening(fit="full").fit(torch.ones(4, 3)), ValueError, "fit='full' needs x_test"),
        (lambda: Whitening(fit="full").fit(torch.ones(4, 3), torch.ones(2, 4)), ValueError, "x and x_test must agree"),
        (lambda: Whitening().transform(torch.ones(4, 3)), RuntimeError, "call fit, or load a state"),
        (lambda: Whitening().inverse_transform(torch.ones(4, 3)), RuntimeError, "call fit, or load a state"),
        (lambda: Whitening().fit(torch.rand(4, 3))(torch.ones(4, 2)), ValueError, r"\(n, 3\).* but has \(4, 2\)"),
        (lambda: Whitening().fit(torch.rand(2, 4, 3))(torch.ones(4, 3)), ValueError, r"\(2, n, 3\)"),
        (lambda: gram(torch.ones(4, 3), torch.ones(4, 2)), ValueError, "x_train and x_test must agree"),
        (lambda: information_fraction(torch.eye(2)[:1], torch.eye(2)[1:], abs), ValueError, "inner products are 0"),
    ],
)
def test_errors_name_argument_and_limit(act: Any, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        act()
