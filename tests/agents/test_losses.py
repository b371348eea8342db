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
MOVED = THIRD - torch.tensor([5.0, -3.0])  # the mean does not count


@pytest.mark.parametrize(
    ("even", "odd", "expected"),
    [
        (UNCORRELATED, UNCORRELATED, 0),
        (EQUAL, EQUAL, -4),  # 5 * 4 entries off the diagonal, each 1 or -1 squared, over 5
        (MOVED, 4 * MOVED, -1 / 9),  # two entries, over 2: the product of the two correlations
        (MOVED, -MOVED, -1 / 9),
        (MOVED, THIRD * torch.tensor([1.0, -1.0]), 1 / 9),
    ],
)
def test_diversity_by_hand_takes_correlations_over_even_and_over_odd_rows(even, odd, expected):
    z = torch.stack([even, odd], dim=1).flatten(0, 1)
    assert losses.diversity_objective(z).item() == pytest.approx(expected, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize(("z", "expected"), [(UNCORRELATED, 0), (EQUAL, 1), (THIRD, 1 / 3)])
def test_mean_correlation_by_hand(z, expected):
    assert losses.mean_correlation(z).item() == pytest.approx(expected, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("rows", [4, 7])
def test_diversity_of_independent_coordinates_is_0_on_average(rows):
    """The square of one correlation over all rows is 1 / (rows - 1) on average."""
    draws, nz = 20_000, 4
    z = noise(draws * rows, nz).view(draws, rows, nz)
    batched = torch.func.vmap(losses.diversity_objective)(z)
    assert torch.allclose(batched[0], losses.diversity_objective(z[0]), atol=1e-6)
    error = batched.std().item() / draws**0.5
    assert abs(batched.mean().item()) < 4 * error
    assert 10 * error < (nz - 1) / (rows - 1), "the test would notice a bias"
