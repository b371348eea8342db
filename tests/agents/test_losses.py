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


def test_covariance_is_numpys():
    z = noise(50, 4) @ noise(4, 4, seed=1)
    z = z - z.mean(dim=0)
    torch.testing.assert_close(
        losses.covariance(z), torch.from_numpy(np.cov(z.numpy(), rowvar=False, bias=True)).float()
    )


def test_diversity_and_mean_covariance_by_hand():
    """The diagonal does not count. Each of the 3 covariances stands in two places."""
    earlier, covariance = torch.eye(3), torch.full((3, 3), 7.0)
    earlier[0, 1] = earlier[1, 0] = 0.5
    earlier[0, 2] = earlier[2, 0] = -0.25
    covariance[0, 1] = covariance[1, 0] = 0.4
    covariance[0, 2] = covariance[2, 0] = 0.2
    assert losses.diversity_objective(covariance, earlier).item() == pytest.approx(-2 * (0.5 * 0.4 - 0.25 * 0.2) / 3)
    assert losses.diversity_objective(earlier, earlier).item() == pytest.approx(-2 * (0.5**2 + 0.25**2) / 3)
    assert losses.mean_covariance(earlier).item() == pytest.approx((0.5 + 0.25) / 3)
