"""Targets, losses and exploration against torch's own functions, numpy and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from magnet.agents import losses


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_gradient_penalty_by_hand(norm):
    gradient = torch.zeros(2, 3, 4, 4)
    gradient[0, 0, 0, :2] = torch.tensor([3.0, 4.0])  # of norm 5; the other of norm 0
    assert losses.gradient_penalty(gradient, norm).item() == pytest.approx(((5 - norm) ** 2 + norm**2) / 2, rel=1e-4)


def test_a_flat_discriminators_penalty_has_a_finite_gradient():
    gradient = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (second,) = torch.autograd.grad(losses.gradient_penalty(gradient, 1.0), gradient)
    assert second.isfinite().all()


def test_td_target_by_hand():
    reward, next_value = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, -4.0])
    torch.testing.assert_close(losses.td_target(reward, next_value, 0.75), torch.tensor([0.5, -2.5]))


def test_td_target_without_gamma_is_the_reward_and_needs_no_next_value():
    reward = torch.tensor([-1.0, 0.5])
    assert torch.equal(losses.td_target(reward, None, 0.0), reward)


def test_gradient_cosine_by_hand_is_taken_over_the_whole_batch():
    gradient, target = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    # (3 * 1) / (5 * sqrt(2)); the mean of the rows' cosines would be (1 / sqrt(2) + 0) / 2
    assert losses.gradient_cosine(gradient, target).item() == pytest.approx(3 / (5 * math.sqrt(2)))
    assert losses.gradient_cosine(gradient, -2 * gradient).item() == pytest.approx(-1)
    assert losses.gradient_cosine(gradient[:, 0], 5 * gradient[:, 0]).item() == pytest.approx(1)  # (B,) as well


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, math.sqrt(0.5), 0.9, 1.0])
def test_exploration_keeps_zero_mean_and_unit_variance(sigma):
    explored = losses.explore(noise(40_000, 3), sigma=sigma, noise=noise(40_000, 3, seed=1))
    torch.testing.assert_close(explored.mean(dim=0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(explored.var(dim=0), torch.ones(3), atol=0.04, rtol=0)


def test_sigma_says_how_much_is_noise():
    policy, random = noise(3, 4), noise(3, 4, seed=1)
    assert torch.equal(losses.explore(policy, sigma=0.0, noise=random), policy)
    assert torch.equal(losses.explore(policy, sigma=1.0, noise=random), random)
    torch.testing.assert_close(losses.explore(policy, sigma=0.6, noise=random), 0.8 * policy + 0.6 * random)


def test_correlation_is_numpys():
    z = noise(50, 4) * torch.tensor([1.0, 2.0, 0.5, 3.0]) + torch.tensor([0.0, -5.0, 1.0, 2.0])
    z[:, 1] += z[:, 0]
    expected = torch.from_numpy(np.corrcoef(z.numpy(), rowvar=False)).float()
    torch.testing.assert_close(losses.correlation(z), expected, atol=1e-4, rtol=0)


UNCORRELATED = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])


def halves(even, odd):
    """Rows of `even` and of `odd` in turn."""
    return torch.stack([even, odd], dim=1).flatten(0, 1)


def test_uncorrelated_coordinates_lose_nothing():
    assert losses.diversity_objective(halves(UNCORRELATED, UNCORRELATED)).item() == pytest.approx(0, abs=1e-9)
    assert losses.mean_correlation(UNCORRELATED).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("nz", [2, 5])
def test_equal_coordinates_lose_the_most(nz):
    z = noise(30, 1).repeat(1, nz)
    z[:, 1] *= -3  # neither sign nor scale counts
    # nz (nz - 1) entries off the diagonal, each 1 or -1, over nz
    assert losses.diversity_objective(z).item() == pytest.approx(-(nz - 1), rel=1e-3)
    assert losses.mean_correlation(z).item() == pytest.approx(1, rel=1e-3)


# Both columns have mean 0 and variance 1; the products 1, 1, -1, 1, -1, 1 have mean 1/3.
THIRD = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]])


def test_diversity_by_hand_is_of_the_correlations_over_even_and_over_odd_rows():
    """Two entries off the diagonal, over nz = 2: the product of the two correlations, which may be of either sign."""
    z = THIRD - torch.tensor([5.0, -3.0])  # the mean does not count
    assert losses.diversity_objective(halves(z, 4 * z)).item() == pytest.approx(-(1 / 9), rel=1e-4)
    assert losses.diversity_objective(halves(z, -z)).item() == pytest.approx(-(1 / 9), rel=1e-4)
    mirrored = THIRD * torch.tensor([1.0, -1.0])
    assert losses.diversity_objective(halves(z, mirrored)).item() == pytest.approx(1 / 9, rel=1e-4)
    assert losses.mean_correlation(THIRD).item() == pytest.approx(1 / 3, rel=1e-4)


@pytest.mark.parametrize("rows", [4, 7, 16])
def test_diversity_of_independent_coordinates_is_0_on_average(rows):
    """Whereas the square of one correlation over all rows is 1 / (rows - 1) on average."""
    draws, nz = 20_000, 4
    z = noise(draws * rows, nz).view(draws, rows, nz)
    batched = torch.func.vmap(losses.diversity_objective)(z)
    assert torch.allclose(batched[0], losses.diversity_objective(z[0]), atol=1e-6)
    error = batched.std().item() / draws**0.5
    assert abs(batched.mean().item()) < 4 * error
    assert 10 * error < (nz - 1) / (rows - 1), "a bias would be seen"


def test_diversity_is_the_correlations_square_on_average_where_coordinates_depend():
    """Coordinates with correlation 0.6: about -0.36 for nz = 2, of many rows."""
    z = noise(100_000, 2)
    z[:, 1] = 0.6 * z[:, 0] + 0.8 * z[:, 1]
    assert losses.diversity_objective(z).item() == pytest.approx(-0.36, abs=0.01)


# Kinds of returns: (logit on real, on fake) -> by hand
