"""Returns, slopes and exploration against torch's own functions, autograd, numpy and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from magnet import returns

LOGITS = torch.tensor([-7.0, -1.5, -0.2, 0.0, 0.3, 2.0, 9.0])
FAR = [-1e4, 1e4]


def cross_entropy(logits, label):
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")


def test_the_generator_earns_minus_the_cross_entropy_of_calling_its_images_real():
    torch.testing.assert_close(returns.generator_return(LOGITS), -cross_entropy(LOGITS, 1.0))


def test_in_the_minimax_game_the_generator_earns_what_the_discriminator_loses_by_its_images():
    torch.testing.assert_close(returns.generator_return(LOGITS, "minimax"), cross_entropy(LOGITS, 0.0))


def test_the_discriminator_earns_minus_both_cross_entropies():
    real, fake = LOGITS, LOGITS.roll(2)
    earned = returns.discriminator_return(real_logits=real, fake_logits=fake)
    torch.testing.assert_close(earned, -cross_entropy(real, 1.0) - cross_entropy(fake, 0.0))


def test_the_discriminators_arguments_have_to_be_named():
    with pytest.raises(TypeError):
        returns.discriminator_return(LOGITS, LOGITS)


def test_a_judgement_earns_minus_the_cross_entropy_of_its_side():
    torch.testing.assert_close(returns.judgement_return(LOGITS, torch.ones(7)), -cross_entropy(LOGITS, 1.0))
    torch.testing.assert_close(returns.judgement_return(LOGITS, -torch.ones(7)), -cross_entropy(LOGITS, 0.0))


def test_equal_chances_earn_the_equilibrium():
    zero = torch.zeros(1)
    assert returns.equilibrium("log") == pytest.approx(-math.log(4))
    assert returns.discriminator_return(real_logits=zero, fake_logits=zero).item() == pytest.approx(-math.log(4))


RETURNS = {
    "generator": returns.generator_return,
    "discriminator, real": lambda x: returns.discriminator_return(real_logits=x, fake_logits=torch.zeros_like(x)),
    "discriminator, fake": lambda x: returns.discriminator_return(real_logits=torch.zeros_like(x), fake_logits=x),
    "judgement of real": lambda x: returns.judgement_return(x, torch.ones_like(x)),
    "judgement of fake": lambda x: returns.judgement_return(x, -torch.ones_like(x)),
}


@pytest.mark.parametrize("earned", RETURNS.values(), ids=RETURNS.keys())
def test_returns_and_their_gradients_are_finite_far_out(earned):
    logits = torch.tensor(FAR, requires_grad=True)
    value = earned(logits)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and slope.isfinite().all()
    assert value.min().item() == pytest.approx(-1e4, rel=1e-3)  # not clamped: what is wrong by 1e4 costs 1e4
    assert sorted(slope.abs().tolist()) == [0, 1]


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_judgement_slope_is_the_gradient_of_the_judgement_return(side):
    logits = torch.cat([LOGITS, torch.tensor(FAR)]).requires_grad_()
    real = torch.full_like(logits, side)
    (slope,) = torch.autograd.grad(returns.judgement_return(logits, real).sum(), logits)
    torch.testing.assert_close(returns.judgement_slope(logits.detach(), real), slope)


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_slope_penalty_by_hand(norm):
    slope = torch.zeros(2, 3, 4, 4)
    slope[0, 0, 0, :2] = torch.tensor([3.0, 4.0])  # of norm 5; the other of norm 0
    assert returns.slope_penalty(slope, norm).item() == pytest.approx(((5 - norm) ** 2 + norm**2) / 2, rel=1e-4)


def test_a_flat_discriminators_penalty_has_a_finite_gradient():
    slope = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(returns.slope_penalty(slope, 1.0), slope)
    assert gradient.isfinite().all()


def test_latent_step_by_hand_and_its_greatest_length():
    slope = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.06, -0.08]])
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.06, -0.08]]) / torch.tensor([[25.5], [0.5], [0.51]])
    torch.testing.assert_close(returns.latent_step(slope, 2.0, damping=0.5), 2 * expected)
    lengths = returns.latent_step(torch.linspace(0, 5, 10_001)[:, None], 0.9, damping=0.1)
    assert lengths.max().item() == pytest.approx(0.9 / (2 * 0.1**0.5), rel=1e-4)


def test_td_target_by_hand():
    reward, next_value = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, -4.0])
    torch.testing.assert_close(returns.td_target(reward, next_value, 0.75), torch.tensor([0.5, -2.5]))


def test_td_target_without_gamma_is_the_reward_and_needs_no_next_value():
    reward = torch.tensor([-1.0, 0.5])
    assert torch.equal(returns.td_target(reward, None, 0.0), reward)


def test_critic_loss_by_hand():
    numbers = {
        "value": torch.tensor([1.0, -2.0]),
        "target": torch.tensor([4.0, -1.0]),  # squared errors 9 and 1: mean 5
        "slope": torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, -1.0]]),
        "target_slope": torch.tensor([[0.0, 2.0, 2.0], [0.0, 3.0, -1.0]]),  # squared distances 5 and 9: mean 7
    }
    assert returns.critic_loss(**numbers, weight=0.5).item() == 5 + 0.5 * 7
    assert returns.critic_loss(**numbers, weight=0.0).item() == 5


def test_slope_cosine_by_hand_is_taken_over_the_whole_batch():
    slope, target = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    # (3 * 1) / (5 * sqrt(2)); the mean of the rows' cosines would be (1 / sqrt(2) + 0) / 2
    assert returns.slope_cosine(slope, target).item() == pytest.approx(3 / (5 * math.sqrt(2)))
    assert returns.slope_cosine(slope, -2 * slope).item() == pytest.approx(-1)


@pytest.mark.parametrize(("lam", "direction"), [(0, [-4.0, 10.0]), (1, [8.0, 2.0]), (0.25, [-1.0, 8.0])])
def test_ascent_direction_by_hand(lam, direction):
    return_slope, value_slope = torch.tensor([8.0, 2.0]), torch.tensor([-4.0, 10.0])
    assert returns.ascent_direction(return_slope, value_slope, lam).tolist() == direction


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, math.sqrt(0.5), 0.9, 1.0])
def test_exploration_keeps_zero_mean_and_unit_variance(sigma):
    explored = returns.explore(noise(40_000, 3), sigma=torch.full((40_000, 1), sigma), noise=noise(40_000, 3, seed=1))
    torch.testing.assert_close(explored.mean(dim=0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(explored.var(dim=0), torch.ones(3), atol=0.04, rtol=0)


def test_each_rows_sigma_says_how_much_of_it_is_noise():
    policy, random = noise(3, 4), noise(3, 4, seed=1)
    explored = returns.explore(policy, sigma=torch.tensor([[0.0], [1.0], [0.6]]), noise=random)
    assert torch.equal(explored[0], policy[0])
    assert torch.equal(explored[1], random[1])
    torch.testing.assert_close(explored[2], 0.8 * policy[2] + 0.6 * random[2])


def test_correlation_is_numpys():
    z = noise(50, 4) * torch.tensor([1.0, 2.0, 0.5, 3.0]) + torch.tensor([0.0, -5.0, 1.0, 2.0])
    z[:, 1] += z[:, 0]
    expected = torch.from_numpy(np.corrcoef(z.numpy(), rowvar=False)).float()
    torch.testing.assert_close(returns.correlation(z), expected, atol=1e-4, rtol=0)


UNCORRELATED = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])


def test_uncorrelated_coordinates_lose_nothing():
    assert returns.diversity_return(UNCORRELATED).item() == pytest.approx(0, abs=1e-9)
    assert returns.mean_correlation(UNCORRELATED).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("nz", [2, 5])
def test_equal_coordinates_lose_the_most(nz):
    z = noise(30, 1).repeat(1, nz)
    z[:, 1] *= -3  # neither sign nor scale counts
    # nz (nz - 1) entries off the diagonal, each 1 or -1, over nz
    assert returns.diversity_return(z).item() == pytest.approx(-(nz - 1), rel=1e-3)
    assert returns.mean_correlation(z).item() == pytest.approx(1, rel=1e-3)


def test_diversity_by_hand_for_two_coordinates():
    z = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]])
    # Both have mean 0 and variance 1; the products 1, 1, -1, 1, -1, 1 have mean 1/3.
    assert returns.diversity_return(z).item() == pytest.approx(-2 * (1 / 3) ** 2 / 2, rel=1e-4)
    assert returns.mean_correlation(z).item() == pytest.approx(1 / 3, rel=1e-4)


# Kinds of returns: (logit on real, on fake) -> by hand

KINDS = ["log", "minimax", "hinge", "least-squares", "wasserstein", "relativistic"]
LOG = {x: -math.log1p(math.exp(-x)) for x in (-2.5, -2.0, -0.5, 0.5, 2.0, 2.5)}  # log sigmoid(x)
BY_HAND = {  # D's return, D's slopes in the two logits, G's return; the logits: 2 on a real, -0.5 on a fake image
    "log": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), LOG[-0.5]),
    "minimax": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), -LOG[0.5]),
    "hinge": (0 - 0.5, (0.0, -1.0), -0.5),
    "least-squares": (-(1**2) / 2 - 0.5**2 / 2, (-1.0, -0.5), -(1.5**2) / 2),
    "wasserstein": (2.5, (1.0, -1.0), -0.5),
    "relativistic": (LOG[2.5], (math.exp(LOG[-2.5]), -math.exp(LOG[-2.5])), LOG[-2.5]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_by_hand(kind):
    real, fake = torch.tensor([2.0]), torch.tensor([-0.5])
    value, (real_slope, fake_slope), earned = BY_HAND[kind]
    assert returns.discriminator_return(real_logits=real, fake_logits=fake, kind=kind).item() == pytest.approx(value)
    assert returns.judgement_slope(real, torch.ones(1), kind, fake).item() == pytest.approx(real_slope)
    assert returns.judgement_slope(fake, -torch.ones(1), kind, real).item() == pytest.approx(fake_slope)
    assert returns.generator_return(fake, kind, real).item() == pytest.approx(earned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_each_kinds_judgement_slope_is_the_gradient_of_its_return(kind, side):
    logits, other = LOGITS.clone().requires_grad_(), LOGITS.roll(3)
    side = torch.full_like(LOGITS, side)
    (slope,) = torch.autograd.grad(returns.judgement_return(logits, side, kind, other).sum(), logits)
    torch.testing.assert_close(returns.judgement_slope(LOGITS, side, kind, other), slope)


@pytest.mark.parametrize("kind", KINDS)
def test_a_discriminators_slopes_are_those_of_its_return(kind):
    real, fake = LOGITS.clone().requires_grad_(), LOGITS.roll(3).requires_grad_()
    earned = returns.discriminator_return(real_logits=real, fake_logits=fake, kind=kind)
    slopes = torch.autograd.grad(earned.sum(), (real, fake))
    real, fake, ones = real.detach(), fake.detach(), torch.ones_like(LOGITS)
    torch.testing.assert_close(slopes[0], returns.judgement_slope(real, ones, kind, fake))
    torch.testing.assert_close(slopes[1], returns.judgement_slope(fake, -ones, kind, real))


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_earns_more_the_more_real_its_image_seems(kind):
    """Up to where a real image stands: beyond it least squares call it back."""
    seeming = torch.linspace(-4, 1, 11)
    assert (returns.generator_return(seeming, kind, torch.ones(11)).diff() > 0).all()


def test_values_at_equilibrium_by_hand():
    values = {kind: returns.equilibrium(kind) for kind in KINDS}
    assert values == pytest.approx({
        "log": -math.log(4), "minimax": -math.log(4), "hinge": -2, "least-squares": -1, "wasserstein": 0,
        "relativistic": -math.log(2),
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["wasserstein", "relativistic"])
def test_where_only_differences_count_the_border_moves_with_the_logits(kind):
    real, fake = torch.tensor([7.0, 9.0]), torch.tensor([3.0, 5.0])
    assert returns.border(real, fake, kind).item() == 6
    assert returns.border(real, fake, "log") == returns.border(real, fake, "hinge") == 0


# Several discriminators


def test_pools_by_hand():
    earned = torch.tensor([[-1.0, -3.0], [-2.0, -0.5]])
    torch.testing.assert_close(returns.pool(earned, "mean"), torch.tensor([-1.5, -1.75]))
    assert returns.pool(earned, "min").tolist() == [-2.0, -3.0]
    soft = [-math.log((math.exp(1) + math.exp(2)) / 2), -math.log((math.exp(3) + math.exp(0.5)) / 2)]
    assert returns.pool(earned, "softmax").tolist() == pytest.approx(soft)


@pytest.mark.parametrize("how", ["mean", "min", "softmax"])
def test_a_pool_of_one_is_its_return(how):
    earned = noise(1, 5)
    torch.testing.assert_close(returns.pool(earned, how), earned[0], atol=1e-6, rtol=0)


def test_slopes_of_the_pools():
    earned = torch.tensor([[-1.0, -3.0], [-2.0, -0.5], [-4.0, -1.0]])
    expected = {
        "mean": torch.full((3, 2), 1 / 3), "min": torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]),
        "softmax": torch.softmax(-earned, dim=0),
    }  # fmt: skip
    for how, slope in expected.items():
        leaf = earned.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(returns.pool(leaf, how).sum(), leaf)[0], slope)


def test_what_is_earned_by_being_told_apart_by_hand():
    names = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [2 - math.log(math.e + math.e**2 + 1), -math.log(3)]
    assert returns.naming_return(names, 1).tolist() == pytest.approx(expected)
