"""Returns, gradients and exploration against torch's own functions, autograd, numpy and numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from magnet.config import Config
from magnet.game import returns
from magnet.game.returns import RETURNS

LOGITS = torch.tensor([-7.0, -1.5, -0.2, 0.0, 0.3, 2.0, 9.0])
FAR = [-1e4, 1e4]


def cross_entropy(logits, label):
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")


def test_the_generator_earns_minus_the_cross_entropy_of_calling_its_images_real():
    torch.testing.assert_close(RETURNS["log"].generator(LOGITS, None), -cross_entropy(LOGITS, 1.0))


def test_in_the_minimax_game_the_generator_earns_what_the_discriminator_loses_by_its_images():
    torch.testing.assert_close(RETURNS["minimax"].generator(LOGITS, None), cross_entropy(LOGITS, 0.0))


def test_the_discriminator_earns_minus_both_cross_entropies():
    real, fake = LOGITS, LOGITS.roll(2)
    reward = RETURNS["log"].discriminator(real, fake)
    torch.testing.assert_close(reward, -cross_entropy(real, 1.0) - cross_entropy(fake, 0.0))


def test_the_reward_of_one_image_is_minus_the_cross_entropy_of_its_label():
    torch.testing.assert_close(RETURNS["log"].real(LOGITS, None), -cross_entropy(LOGITS, 1.0))
    torch.testing.assert_close(RETURNS["log"].fake(LOGITS, None), -cross_entropy(LOGITS, 0.0))


def test_equal_chances_earn_the_equilibrium():
    zero = torch.zeros(1)
    assert RETURNS["log"].equilibrium == pytest.approx(-math.log(4))
    assert RETURNS["log"].discriminator(zero, zero).item() == pytest.approx(-math.log(4))


OF_ONE_LOGIT = {
    "generator": lambda x: RETURNS["log"].generator(x, None),
    "discriminator, real": lambda x: RETURNS["log"].discriminator(x, torch.zeros_like(x)),
    "discriminator, fake": lambda x: RETURNS["log"].discriminator(torch.zeros_like(x), x),
}


@pytest.mark.parametrize("earned", OF_ONE_LOGIT.values(), ids=OF_ONE_LOGIT.keys())
def test_returns_and_their_gradients_are_finite_far_out(earned):
    logits = torch.tensor(FAR, requires_grad=True)
    value = earned(logits)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and slope.isfinite().all()
    assert value.min().item() == pytest.approx(-1e4, rel=1e-3)  # not clamped: what is wrong by 1e4 costs 1e4
    assert sorted(slope.abs().tolist()) == [0, 1]


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_gradient_penalty_by_hand(norm):
    gradient = torch.zeros(2, 3, 4, 4)
    gradient[0, 0, 0, :2] = torch.tensor([3.0, 4.0])  # of norm 5; the other of norm 0
    assert returns.gradient_penalty(gradient, norm).item() == pytest.approx(((5 - norm) ** 2 + norm**2) / 2, rel=1e-4)


def test_a_flat_discriminators_penalty_has_a_finite_gradient():
    gradient = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (second,) = torch.autograd.grad(returns.gradient_penalty(gradient, 1.0), gradient)
    assert second.isfinite().all()


def test_td_target_by_hand():
    reward, next_value = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, -4.0])
    torch.testing.assert_close(returns.td_target(reward, next_value, 0.75), torch.tensor([0.5, -2.5]))


def test_td_target_without_gamma_is_the_reward_and_needs_no_next_value():
    reward = torch.tensor([-1.0, 0.5])
    assert torch.equal(returns.td_target(reward, None, 0.0), reward)


def test_gradient_cosine_by_hand_is_taken_over_the_whole_batch():
    gradient, target = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    # (3 * 1) / (5 * sqrt(2)); the mean of the rows' cosines would be (1 / sqrt(2) + 0) / 2
    assert returns.gradient_cosine(gradient, target).item() == pytest.approx(3 / (5 * math.sqrt(2)))
    assert returns.gradient_cosine(gradient, -2 * gradient).item() == pytest.approx(-1)
    assert returns.gradient_cosine(gradient[:, 0], 5 * gradient[:, 0]).item() == pytest.approx(1)  # (B,) as well


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, math.sqrt(0.5), 0.9, 1.0])
def test_exploration_keeps_zero_mean_and_unit_variance(sigma):
    explored = returns.explore(noise(40_000, 3), sigma=sigma, noise=noise(40_000, 3, seed=1))
    torch.testing.assert_close(explored.mean(dim=0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(explored.var(dim=0), torch.ones(3), atol=0.04, rtol=0)


def test_sigma_says_how_much_is_noise():
    policy, random = noise(3, 4), noise(3, 4, seed=1)
    assert torch.equal(returns.explore(policy, sigma=0.0, noise=random), policy)
    assert torch.equal(returns.explore(policy, sigma=1.0, noise=random), random)
    torch.testing.assert_close(returns.explore(policy, sigma=0.6, noise=random), 0.8 * policy + 0.6 * random)


def test_correlation_is_numpys():
    z = noise(50, 4) * torch.tensor([1.0, 2.0, 0.5, 3.0]) + torch.tensor([0.0, -5.0, 1.0, 2.0])
    z[:, 1] += z[:, 0]
    expected = torch.from_numpy(np.corrcoef(z.numpy(), rowvar=False)).float()
    torch.testing.assert_close(returns.correlation(z), expected, atol=1e-4, rtol=0)


UNCORRELATED = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])


def halves(even, odd):
    """Rows of `even` and of `odd` in turn."""
    return torch.stack([even, odd], dim=1).flatten(0, 1)


def test_uncorrelated_coordinates_lose_nothing():
    assert returns.diversity_return(halves(UNCORRELATED, UNCORRELATED)).item() == pytest.approx(0, abs=1e-9)
    assert returns.mean_correlation(UNCORRELATED).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("nz", [2, 5])
def test_equal_coordinates_lose_the_most(nz):
    z = noise(30, 1).repeat(1, nz)
    z[:, 1] *= -3  # neither sign nor scale counts
    # nz (nz - 1) entries off the diagonal, each 1 or -1, over nz
    assert returns.diversity_return(z).item() == pytest.approx(-(nz - 1), rel=1e-3)
    assert returns.mean_correlation(z).item() == pytest.approx(1, rel=1e-3)


# Both columns have mean 0 and variance 1; the products 1, 1, -1, 1, -1, 1 have mean 1/3.
THIRD = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]])


def test_diversity_by_hand_is_of_the_correlations_over_even_and_over_odd_rows():
    """Two entries off the diagonal, over nz = 2: the product of the two correlations, which may be of either sign."""
    z = THIRD - torch.tensor([5.0, -3.0])  # the mean does not count
    assert returns.diversity_return(halves(z, 4 * z)).item() == pytest.approx(-(1 / 9), rel=1e-4)
    assert returns.diversity_return(halves(z, -z)).item() == pytest.approx(-(1 / 9), rel=1e-4)
    mirrored = THIRD * torch.tensor([1.0, -1.0])
    assert returns.diversity_return(halves(z, mirrored)).item() == pytest.approx(1 / 9, rel=1e-4)
    assert returns.mean_correlation(THIRD).item() == pytest.approx(1 / 3, rel=1e-4)


@pytest.mark.parametrize("rows", [4, 7, 16])
def test_diversity_of_independent_coordinates_is_0_on_average(rows):
    """Whereas the square of one correlation over all rows is 1 / (rows - 1) on average."""
    draws, nz = 20_000, 4
    z = noise(draws * rows, nz).view(draws, rows, nz)
    batched = torch.func.vmap(returns.diversity_return)(z)
    assert torch.allclose(batched[0], returns.diversity_return(z[0]), atol=1e-6)
    error = batched.std().item() / draws**0.5
    assert abs(batched.mean().item()) < 4 * error
    assert 10 * error < (nz - 1) / (rows - 1), "a bias would be seen"


def test_diversity_is_the_correlations_square_on_average_where_coordinates_depend():
    """Coordinates with correlation 0.6: about -0.36 for nz = 2, of many rows."""
    z = noise(100_000, 2)
    z[:, 1] = 0.6 * z[:, 0] + 0.8 * z[:, 1]
    assert returns.diversity_return(z).item() == pytest.approx(-0.36, abs=0.01)


# Kinds of returns: (logit on real, on fake) -> by hand

KINDS = ["log", "minimax", "hinge", "least-squares", "wasserstein", "relativistic"]
LOG = {x: -math.log1p(math.exp(-x)) for x in (-2.5, -2.0, -0.5, 0.5, 2.0, 2.5)}  # log sigmoid(x)
BY_HAND = {  # D's return, D's gradients in the two logits, G's return; the logits: 2 on a real, -0.5 on a fake image
    "log": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), LOG[-0.5]),
    "minimax": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), -LOG[0.5]),
    "hinge": (0 - 0.5, (0.0, -1.0), -0.5),
    "least-squares": (-(1**2) / 2 - 0.5**2 / 2, (-1.0, -0.5), -(1.5**2) / 2),
    "wasserstein": (2.5, (1.0, -1.0), -0.5),
    "relativistic": (LOG[2.5], (math.exp(LOG[-2.5]), -math.exp(LOG[-2.5])), LOG[-2.5]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_by_hand(kind):
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-0.5], requires_grad=True)
    value, gradients, reward = BY_HAND[kind]
    pair = RETURNS[kind].discriminator(real, fake)
    assert pair.item() == pytest.approx(value)
    assert [gradient.item() for gradient in torch.autograd.grad(pair, (real, fake))] == pytest.approx(gradients)
    on_real, on_fake = RETURNS[kind].real(real, fake.detach()), RETURNS[kind].fake(fake, real.detach())
    assert torch.autograd.grad(on_real, real)[0].item() == pytest.approx(gradients[0])
    assert torch.autograd.grad(on_fake, fake)[0].item() == pytest.approx(gradients[1])
    assert RETURNS[kind].generator(fake, real).item() == pytest.approx(reward)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_a_discriminators_return_make_up_the_whole(kind):
    real, fake = LOGITS, LOGITS.roll(3)
    on_real, on_fake = RETURNS[kind].real(real, fake), RETURNS[kind].fake(fake, real)
    pair = RETURNS[kind].discriminator(real, fake)
    if kind == "relativistic":  # either is the pair's
        assert torch.equal(on_real, pair) and torch.equal(on_fake, pair)
    else:
        torch.testing.assert_close(on_real + on_fake, pair)


@pytest.mark.parametrize("kind", ["logg", "", None])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(ValueError, match="there are no returns of the kind"):
        returns.return_of(kind)


def test_the_kinds_are_those_of_the_command_line():
    (choices,) = [field.metadata["choices"] for field in dataclasses.fields(Config) if field.name == "returns"]
    assert tuple(RETURNS) == choices


def test_a_kind_without_all_its_parts_cannot_be_made():
    for part in ("real", "fake", "generator"):
        parts = {name: getattr(RETURNS["log"], name) for name in ("real", "fake", "generator") if name != part}
        with pytest.raises(TypeError, match=part):
            returns.Return(**parts)


@pytest.mark.parametrize("kind", KINDS)
def test_marks_of_a_kind_are_true(kind):
    """Whether its rewards are of pairs, count differences alone, and are best at the logit of the chance."""
    real, fake, record = LOGITS, LOGITS.roll(3), RETURNS[kind]
    total = record.real(real, fake) + record.fake(fake, real)
    assert record.paired == (not torch.allclose(record.discriminator(real, fake), total))
    moved = record.discriminator(real + 3, fake + 3)
    assert record.relative == torch.allclose(moved, record.discriminator(real, fake), atol=1e-5)
    if not record.relative:
        logit = torch.tensor(1.1, requires_grad=True)
        chance = logit.detach().sigmoid()
        expected = chance * record.real(logit, None) + (1 - chance) * record.fake(logit, None)
        best = abs(torch.autograd.grad(expected, logit)[0].item()) < 1e-6
        assert record.probability == best


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_earns_more_the_more_real_its_image_seems(kind):
    """Up to where a real image stands: beyond it least squares call it back."""
    seeming = torch.linspace(-4, 1, 11)
    assert (RETURNS[kind].generator(seeming, torch.ones(11)).diff() > 0).all()


def test_values_at_equilibrium_by_hand():
    values = {kind: RETURNS[kind].equilibrium for kind in KINDS}
    assert values == pytest.approx({
        "log": -math.log(4), "minimax": -math.log(4), "hinge": -2, "least-squares": -1, "wasserstein": 0,
        "relativistic": -math.log(2),
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["wasserstein", "relativistic"])
def test_where_only_differences_count_the_border_moves_with_the_logits(kind):
    real, fake = torch.tensor([7.0, 9.0]), torch.tensor([3.0, 5.0])
    assert RETURNS[kind].border(real, fake).item() == 6
    assert RETURNS["log"].border(real, fake) == RETURNS["hinge"].border(real, fake) == 0


def test_what_is_earned_by_being_told_apart_by_hand():
    classes = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [2 - math.log(math.e + math.e**2 + 1), -math.log(3)]
    assert returns.classification_return(classes, 1).tolist() == pytest.approx(expected)
