"""The claim behind SOP in a linear model: descent finds min 1/2 |theta|^2 + lam |s|_1 with y = J theta + s."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import lsq_linear


def problem(seed: int, samples: int = 20, features: int = 40, outliers: int = 3):
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((samples, features)) / math.sqrt(features)
    noise = np.zeros(samples)
    noise[rng.choice(samples, outliers, replace=False)] = rng.choice([-1, 1], outliers) * rng.uniform(3, 6, outliers)
    return design, design @ rng.standard_normal(features) + noise


def convex_solution(design, y, lam: float):
    """The dual is a least-squares problem in a box: min |J'nu - b|, |nu| <= lam, with J b = y; theta = J'nu."""
    nu = lsq_linear(design.T, np.linalg.pinv(design) @ y, bounds=(-lam, lam)).x
    return design.T @ nu, nu


def descend(design, y, gammas, lam: float, step: float = 5e-4):
    """Plain gradient descent on 1/2 |J theta + u^2 - v^2 - y|^2 from theta = 0, u = v = gamma; one row per gamma."""
    gamma = np.array(gammas)[:, None]
    ratio = -np.log(gamma) / (2 * lam)
    theta = np.zeros((len(gammas), design.shape[1]))
    u = gamma * np.ones(len(y))
    v = u.copy()
    for step_number in range(200_000):
        residual = theta @ design.T + u * u - v * v - y
        if step_number % 1000 == 0 and np.abs(residual).max() < 1e-6:
            break
        theta -= step * residual @ design
        u, v = u - 2 * step * ratio * u * residual, v + 2 * step * ratio * v * residual
    assert np.abs(theta @ design.T + u * u - v * v - y).max() < 1e-5
    return theta, u * u - v * v


def test_the_convex_solver_satisfies_the_optimality_conditions():
    design, y = problem(1)
    theta, nu = convex_solution(design, y, lam=1.0)
    noise = y - design @ theta
    active = np.abs(noise) > 1e-8
    assert np.abs(nu).max() <= 1 + 1e-9
    np.testing.assert_allclose(nu[active], np.sign(noise[active]), atol=1e-9)


def test_the_rate_ratio_sets_the_l1_weight_and_the_error_falls_like_one_over_log_gamma():
    design, y = problem(1)
    expected, _ = convex_solution(design, y, lam=1.0)
    theta, noise = descend(design, y, (1e-2, 1e-4, 1e-8), lam=1.0)
    errors = np.linalg.norm(theta - expected, axis=1) / np.linalg.norm(expected)
    np.testing.assert_allclose(errors, [0.118, 0.063, 0.035], rtol=0.15)  # log gamma doubles, the error halves
    assert (np.diff(errors) < 0).all()
    assert ((errors[:-1] / errors[1:] > 1.6) & (errors[:-1] / errors[1:] < 2.2)).all()
    largest = np.argsort(-np.abs(y - design @ expected))[:3]
    assert set(largest) == set(np.argsort(-np.abs(noise[2]))[:3])
