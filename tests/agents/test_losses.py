"""Penalties, exploration and correlations against numpy and numbers worked out by hand.

The tests of the agents' updates cover TD targets and cosines.
"""

import numpy as np
import pytest
import torch

from magnet.agents import losses


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_gradient_penalty_by_hand(norm):
    gradient = torch.zeros(2, 3, 4, 4)
    gradient[0, 0, 0, :2] = torch.tensor([3.0, 4.0])  # the first has norm 5, the second norm 0
    gradient.requires_grad_()
    penalty = losses.gradient_penalty(gradient, norm)
    assert penalty.item() == pytest.approx(((5 - norm) ** 2 + norm**2) / 2, rel=1e-4)
    assert torch.autograd.grad(penalty, gradient)[0].isfinite().all(), "where D_a is flat too"


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_exploration_keeps_zero_mean_and_unit_variance():
    policy, random = noise(40_000, 3), noise(40_000, 3, seed=1)
    explored = losses.explore(policy, sigma=0.6, noise=random)
    torch.testing.assert_close(explored, 0.8 * policy + 0.6 * random)
    torch.testing.assert_close(explored.mean(dim=0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(explored.var(dim=0), torch.ones(3), atol=0.04, rtol=0)


def test_correlation_is_numpys():
    z = noise(50, 4) * torch.tensor([1.0, 2.0, 0.5, 3.0]) + torch.tensor([0.0, -5.0, 1.0, 2.0])
    z[:, 1] += z[:, 0]
    expected = torch.from_numpy(np.corrcoef(z.numpy(), rowvar=False)).float()
    torch.testing.assert_close(losses.correlation(z), expected, atol=1e-4, rtol=0)


UNCORRELATED = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
EQUAL = torch.linspace(-1, 1, 8)[:, None] * torch.tensor([1.0, -3.0, 1.0, 1.0, 1.0])  # neither sign nor scale counts
# Both columns have mean 0 and variance 1; the products 1, 1, -1, 1, -1, 1 have mean 1/3.
THIRD = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]])


@pytest.mark.parametrize(
    ("z", "expected"),
    [
        (UNCORRELATED, 0),
        (THIRD, -1 / 9),  # two entries off the diagonal, over 2
        (THIRD * torch.tensor([1.0, -2.0]), -4 / 9),  # covariances, not correlations
        (THIRD[:, [0, 1, 1]], -(4 / 9 + 2) / 3),
    ],
)
def test_diversity_by_hand(z, expected):
    assert losses.diversity_objective(z).item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("z", "expected"), [(UNCORRELATED, 0), (EQUAL, 1), (THIRD, 1 / 3)])
def test_mean_correlation_by_hand(z, expected):
    assert losses.mean_correlation(z).item() == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_noise_is_near_the_best_z_that_a_batch_can_have():
    """A covariance of trace nz and rank rows - 1 has squares of at least nz^2 / (rows - 1), nz on the diagonal."""
    rows, nz, scores = 16, 64, []
    for seed in range(20):
        z = noise(rows, nz, seed)
        z = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
        scores.append(losses.diversity_objective(z).item())
    best = -(nz / (rows - 1) - 1)
    assert np.mean(scores) == pytest.approx(-(nz - 1) / (rows - 1), rel=0.02)
    assert max(scores) < best < 0.7 * np.mean(scores)
