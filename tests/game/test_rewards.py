"""The reward functions against torch's own functions, autograd and numbers worked out by hand."""

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from magnet.config import Config
from magnet.game import rewards
from magnet.game.rewards import REWARD_FUNCTIONS

LOGITS = torch.tensor([-7.0, -1.5, -0.2, 0.0, 0.3, 2.0, 9.0])
FAR = [-1e4, 1e4]


def cross_entropy(logits, label):
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")


def test_the_generator_earns_minus_the_cross_entropy_of_calling_its_images_real():
    torch.testing.assert_close(REWARD_FUNCTIONS["log"].generator(LOGITS, None), -cross_entropy(LOGITS, 1.0))


def test_in_the_minimax_game_the_generator_earns_what_the_discriminator_loses_by_its_images():
    torch.testing.assert_close(REWARD_FUNCTIONS["minimax"].generator(LOGITS, None), cross_entropy(LOGITS, 0.0))


def test_the_discriminator_earns_minus_both_cross_entropies():
    real, fake = LOGITS, LOGITS.roll(2)
    reward = REWARD_FUNCTIONS["log"].discriminator(real, fake)
    torch.testing.assert_close(reward, -cross_entropy(real, 1.0) - cross_entropy(fake, 0.0))


def test_the_reward_of_one_image_is_minus_the_cross_entropy_of_its_label():
    torch.testing.assert_close(REWARD_FUNCTIONS["log"].real(LOGITS, None), -cross_entropy(LOGITS, 1.0))
    torch.testing.assert_close(REWARD_FUNCTIONS["log"].fake(LOGITS, None), -cross_entropy(LOGITS, 0.0))


def test_equal_chances_earn_the_equilibrium():
    zero = torch.zeros(1)
    assert REWARD_FUNCTIONS["log"].equilibrium == pytest.approx(-math.log(4))
    assert REWARD_FUNCTIONS["log"].discriminator(zero, zero).item() == pytest.approx(-math.log(4))


OF_ONE_LOGIT = {
    "generator": lambda x: REWARD_FUNCTIONS["log"].generator(x, None),
    "discriminator, real": lambda x: REWARD_FUNCTIONS["log"].discriminator(x, torch.zeros_like(x)),
    "discriminator, fake": lambda x: REWARD_FUNCTIONS["log"].discriminator(torch.zeros_like(x), x),
}


@pytest.mark.parametrize("earned", OF_ONE_LOGIT.values(), ids=OF_ONE_LOGIT.keys())
def test_rewards_and_their_gradients_are_finite_far_out(earned):
    logits = torch.tensor(FAR, requires_grad=True)
    value = earned(logits)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and slope.isfinite().all()
    assert value.min().item() == pytest.approx(-1e4, rel=1e-3)  # not clamped: what is wrong by 1e4 costs 1e4
    assert sorted(slope.abs().tolist()) == [0, 1]


KINDS = ["log", "minimax", "hinge", "least-squares", "wasserstein", "relativistic"]
LOG = {x: -math.log1p(math.exp(-x)) for x in (-2.5, -2.0, -0.5, 0.5, 2.0, 2.5)}  # log sigmoid(x)
BY_HAND = {  # D's reward, D's gradients in the two logits, G's reward; the logits: 2 on a real, -0.5 on a fake image
    "log": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), LOG[-0.5]),
    "minimax": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), -LOG[0.5]),
    "hinge": (0 - 0.5, (0.0, -1.0), -0.5),
    "least-squares": (-(1**2) / 2 - 0.5**2 / 2, (-1.0, -0.5), -(1.5**2) / 2),
    "wasserstein": (2.5, (1.0, -1.0), -0.5),
    "relativistic": (LOG[2.5], (math.exp(LOG[-2.5]), -math.exp(LOG[-2.5])), LOG[-2.5]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_reward_function_by_hand(kind):
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-0.5], requires_grad=True)
    value, gradients, reward = BY_HAND[kind]
    pair = REWARD_FUNCTIONS[kind].discriminator(real, fake)
    assert pair.item() == pytest.approx(value)
    assert [gradient.item() for gradient in torch.autograd.grad(pair, (real, fake))] == pytest.approx(gradients)
    on_real, on_fake = (
        REWARD_FUNCTIONS[kind].real(real, fake.detach()),
        REWARD_FUNCTIONS[kind].fake(fake, real.detach()),
    )
    assert torch.autograd.grad(on_real, real)[0].item() == pytest.approx(gradients[0])
    assert torch.autograd.grad(on_fake, fake)[0].item() == pytest.approx(gradients[1])
    assert REWARD_FUNCTIONS[kind].generator(fake, real).item() == pytest.approx(reward)


@pytest.mark.parametrize("kind", KINDS)
def test_a_discriminators_rewards_add_up_to_those_of_the_pair(kind):
    real, fake = LOGITS, LOGITS.roll(3)
    on_real, on_fake = REWARD_FUNCTIONS[kind].real(real, fake), REWARD_FUNCTIONS[kind].fake(fake, real)
    pair = REWARD_FUNCTIONS[kind].discriminator(real, fake)
    if kind == "relativistic":  # either is the pair's
        assert torch.equal(on_real, pair) and torch.equal(on_fake, pair)
    else:
        torch.testing.assert_close(on_real + on_fake, pair)


@pytest.mark.parametrize("kind", ["logg", "", None])
def test_an_unknown_reward_function_is_refused(kind):
    with pytest.raises(ValueError, match="there is no reward function"):
        rewards.reward_function(kind)


def test_the_reward_functions_are_those_of_the_command_line():
    (choices,) = [field.metadata["choices"] for field in dataclasses.fields(Config) if field.name == "reward_function"]
    assert tuple(REWARD_FUNCTIONS) == choices


def test_a_reward_function_without_all_its_parts_cannot_be_made():
    for part in ("real", "fake", "generator"):
        parts = {name: getattr(REWARD_FUNCTIONS["log"], name) for name in ("real", "fake", "generator") if name != part}
        with pytest.raises(TypeError, match=part):
            rewards.RewardFunction(**parts)


@pytest.mark.parametrize("kind", KINDS)
def test_marks_of_a_reward_function_are_true(kind):
    """Whether its rewards are of pairs, count differences alone, and are best at the logit of the chance."""
    real, fake, record = LOGITS, LOGITS.roll(3), REWARD_FUNCTIONS[kind]
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
    assert (REWARD_FUNCTIONS[kind].generator(seeming, torch.ones(11)).diff() > 0).all()


def test_values_at_equilibrium_by_hand():
    values = {kind: REWARD_FUNCTIONS[kind].equilibrium for kind in KINDS}
    assert values == pytest.approx({
        "log": -math.log(4), "minimax": -math.log(4), "hinge": -2, "least-squares": -1, "wasserstein": 0,
        "relativistic": -math.log(2),
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["wasserstein", "relativistic"])
def test_where_only_differences_count_the_border_moves_with_the_logits(kind):
    real, fake = torch.tensor([7.0, 9.0]), torch.tensor([3.0, 5.0])
    assert REWARD_FUNCTIONS[kind].border(real, fake).item() == 6
    assert REWARD_FUNCTIONS["log"].border(real, fake) == REWARD_FUNCTIONS["hinge"].border(real, fake) == 0


def test_the_classification_reward_by_hand():
    classes = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [2 - math.log(math.e + math.e**2 + 1), -math.log(3)]
    assert rewards.classification_reward(classes, 1).tolist() == pytest.approx(expected)
