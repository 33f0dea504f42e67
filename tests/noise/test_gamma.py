from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Dirichlet, Gamma, kl_divergence

from torchstone.noise import gamma_kl, sample_gamma
from torchstone.testing.contracts import check_generator

ALPHAS = (1.1, 2.0, 6.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.floats(1e-3, 1e4), st.floats(1e-3, 1e4))
def test_divergence_equals_that_of_torch_distributions(q, p):
    a, b = (torch.tensor(value, dtype=torch.float64) for value in (q, p))
    expected = kl_divergence(Gamma(a, 1.0), Gamma(b, 1.0))
    torch.testing.assert_close(gamma_kl(a, b), expected, rtol=1e-6, atol=1e-6)
    assert gamma_kl(a, b) > -1e-6


def test_divergence_is_zero_for_equal_concentrations_alone():
    q = torch.tensor([0.5, 1.1, 3.0, 40.0], dtype=torch.float64)
    table = gamma_kl(q[:, None], q)
    assert table.diag().abs().max() == 0
    assert (table + torch.eye(4)).min() > 0.01


def test_divergence_by_an_integral():
    # KL = integral of t^(a - 1) e^-t / Gamma(a) * (log ratio of the densities)
    a, b = 3.0, 1.5
    t = torch.linspace(0, 60, 400_001, dtype=torch.float64)[1:]
    density = (a - 1) * t.log() - t - math.lgamma(a)
    ratio = (a - b) * t.log() - math.lgamma(a) + math.lgamma(b)
    expected = torch.trapezoid(density.exp() * ratio, t)
    torch.testing.assert_close(
        gamma_kl(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)), expected
    )


def test_gradient_of_the_divergence():
    q = torch.tensor([1.1, 2.0, 50.0], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([6.1, 1.1, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gamma_kl, (q, p))


def test_extreme_concentrations_stay_finite():
    alpha = torch.tensor([1e-10, 1e-3, 1.0, 1e5, 1e10], requires_grad=True)
    value = gamma_kl(alpha[:, None], alpha.detach())
    assert value.isfinite().all()
    assert torch.autograd.grad(value[1:].sum(), alpha)[0].isfinite().all()
    for sampler in ("exact", "approx"):
        z = sample_gamma(alpha[1:], sampler=sampler, generator=generator())
        assert z.isfinite().all()
        assert torch.autograd.grad(z.sum(), alpha)[0].isfinite().all()


def test_half_precision_is_computed_in_single():
    assert gamma_kl(torch.ones(2).bfloat16(), torch.ones(2).bfloat16()).dtype == torch.float32
    assert sample_gamma(torch.ones(2).bfloat16(), generator=generator()).dtype == torch.float32


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_exact_sampler_has_the_moments_of_a_gamma_variable(alpha):
    z = sample_gamma(torch.full((200_000,), alpha, dtype=torch.float64), generator=generator())
    # Five standard errors of the mean, and of the variance (fourth central moment 3 a^2 + 6 a).
    assert abs(float(z.mean()) - alpha) < 5 * math.sqrt(alpha / len(z))
    assert abs(float(z.var()) - alpha) < 5 * math.sqrt((2 * alpha**2 + 6 * alpha) / len(z))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_published_sampler_has_its_closed_form_moments_and_not_those_of_a_gamma_variable(alpha):
    z = sample_gamma(torch.full((200_000,), alpha, dtype=torch.float64), sampler="approx", generator=generator())
    scale = math.exp(math.lgamma(alpha + 1) / alpha)
    mean, second = scale * alpha / (alpha + 1), scale**2 * alpha / (alpha + 2)
    spread = math.sqrt(second - mean**2)
    assert abs(float(z.mean()) - mean) < 5 * spread / math.sqrt(len(z))
    assert abs(float(z.var()) / spread**2 - 1) < 0.02
    assert mean < 0.52 * alpha
    assert spread**2 < 0.25 * alpha


def test_moments_of_the_published_sampler_at_the_prior():
    # The numbers in the module's docstring: alpha = 6.1 is 1 + 1/10 + 5.
    scale = math.exp(math.lgamma(7.1) / 6.1)
    mean = scale * 6.1 / 7.1
    assert (round(mean, 1), round(scale**2 * 6.1 / 8.1 - mean**2, 2)) == (2.6, 0.14)


def test_the_published_sampler_is_right_for_small_concentrations():
    alpha = torch.full((200_000,), 0.02, dtype=torch.float64)
    exact, approx = (sample_gamma(alpha, sampler=s, generator=generator(7)).log() for s in ("exact", "approx"))
    shares = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)
    torch.testing.assert_close(approx.quantile(shares), exact.quantile(shares), rtol=0.06, atol=0.06)


def test_normalised_exact_variables_are_dirichlet():
    alpha = torch.tensor([1.1, 2.0, 5.0], dtype=torch.float64)
    z = sample_gamma(alpha.expand(100_000, 3), normalize=True, generator=generator())
    torch.testing.assert_close(z.sum(1), torch.ones(100_000, dtype=torch.float64))
    expected = Dirichlet(alpha)
    torch.testing.assert_close(z.mean(0), expected.mean, rtol=0.01, atol=0)
    torch.testing.assert_close(z.var(0), expected.variance, rtol=0.03, atol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_of_the_exact_sampler_against_finite_differences_of_means(normalize):
    """d E[f(z)] / d alpha, with f(z) = z_0 z_1 + z_0^2, whose mean is known."""
    alpha = torch.tensor([1.3, 2.5], dtype=torch.float64)

    def mean(a: torch.Tensor) -> torch.Tensor:
        total = a.sum()
        scale = total * (total + 1) if normalize else 1.0
        return (a[0] * a[1] + a[0] * (a[0] + 1)) / scale

    step = 1e-5
    expected = torch.stack([(mean(alpha + e) - mean(alpha - e)) / (2 * step) for e in step * torch.eye(2)])
    many = alpha.expand(100_000, 2).clone().requires_grad_()
    z = sample_gamma(many, normalize=normalize, generator=generator())
    (gradient,) = torch.autograd.grad((z[:, 0] * z[:, 1] + z[:, 0] ** 2).sum(), many)
    error = gradient.std(0) / math.sqrt(len(many))
    assert ((gradient.mean(0) - expected).abs() < 5 * error).all()


def test_gradient_of_the_exact_sampler_is_that_of_torch():
    alpha = torch.tensor([1.1, 6.1], requires_grad=True)
    (ours,) = torch.autograd.grad(sample_gamma(alpha, generator=generator()).sum(), alpha)
    seed = int(torch.randint(2**63 - 1, (), generator=generator()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        (theirs,) = torch.autograd.grad(Gamma(alpha, 1.0).rsample().sum(), alpha)
    assert torch.equal(ours, theirs)


def test_gradient_of_the_published_sampler_by_differences():
    alpha = torch.tensor([1.1, 2.0, 6.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: sample_gamma(a, sampler="approx", generator=generator()), (alpha,))


@pytest.mark.parametrize("sampler", ["exact", "approx"])
def test_all_chance_is_the_generators(sampler):
    check_generator(lambda g: sample_gamma(torch.full((4, 3), 2.0), sampler=sampler, generator=g))


def test_an_unknown_sampler():
    with pytest.raises(ValueError, match="sampler must be one of 'exact', 'approx', but is 'best'"):
        sample_gamma(torch.ones(2), sampler="best")
