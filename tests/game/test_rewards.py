"""The reward functions against torch's own functions, autograd and numbers worked out by hand."""

import dataclasses
import math

import pytest
import torch

from magnet.config import Config
from magnet.game import rewards
from magnet.game.rewards import REWARD_FUNCTIONS

LOGITS = torch.tensor([-7.0, -1.5, -0.2, 0.0, 0.3, 2.0, 9.0])
LOG = {x: -math.log1p(math.exp(-x)) for x in (-2.5, -2.0, -0.5, 0.5, 2.0, 2.5)}  # log sigmoid(x)
BY_HAND = {  # D's reward, D's gradients in the two logits, G's reward; the logits: 2 on a real, -0.5 on a fake image
    "log": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), LOG[-0.5]),
    "minimax": (LOG[2.0] + LOG[0.5], (math.exp(LOG[-2.0]), -math.exp(LOG[-0.5])), -LOG[0.5]),
    "hinge": (0 - 0.5, (0.0, -1.0), -0.5),
    "least-squares": (-(1**2) / 2 - 0.5**2 / 2, (-1.0, -0.5), -(1.5**2) / 2),
    "wasserstein": (2.5, (1.0, -1.0), -0.5),
    "relativistic": (LOG[2.5], (math.exp(LOG[-2.5]), -math.exp(LOG[-2.5])), LOG[-2.5]),
}
KINDS = pytest.mark.parametrize("kind", BY_HAND)


@KINDS
def test_each_reward_function_by_hand(kind):
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-0.5], requires_grad=True)
    value, gradients, reward = BY_HAND[kind]
    function = REWARD_FUNCTIONS[kind]
    pair = function.discriminator(real, fake)
    assert pair.item() == pytest.approx(value)
    assert [gradient.item() for gradient in torch.autograd.grad(pair, (real, fake))] == pytest.approx(gradients)
    on_real, on_fake = function.real(real, fake.detach()), function.fake(fake, real.detach())
    assert torch.autograd.grad(on_real, real)[0].item() == pytest.approx(gradients[0])
    assert torch.autograd.grad(on_fake, fake)[0].item() == pytest.approx(gradients[1])
    assert function.generator(fake, real).item() == pytest.approx(reward)


@pytest.mark.parametrize(
    "reward",
    [
        lambda x: REWARD_FUNCTIONS["log"].generator(x, None),
        lambda x: REWARD_FUNCTIONS["log"].discriminator(x, torch.zeros_like(x)),
        lambda x: REWARD_FUNCTIONS["log"].discriminator(torch.zeros_like(x), x),
    ],
    ids=["generator", "discriminator, real", "discriminator, fake"],
)
def test_rewards_and_their_gradients_are_finite_for_extreme_logits(reward):
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = reward(logits)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and slope.isfinite().all()
    assert value.min().item() == pytest.approx(-1e4, rel=1e-3)  # not clamped
    assert sorted(slope.abs().tolist()) == [0, 1]


@KINDS
def test_the_flags_of_a_reward_function_are_true(kind):
    """`paired`: both rewards are the pair's. `relative`: a shift of all logits changes nothing."""
    real, fake, function = LOGITS, LOGITS.roll(3), REWARD_FUNCTIONS[kind]
    on_real, on_fake, pair = function.real(real, fake), function.fake(fake, real), function.discriminator(real, fake)
    assert function.paired == (kind == "relativistic")
    for reward in (on_real, on_fake) if function.paired else (on_real + on_fake,):
        torch.testing.assert_close(reward, pair)
    assert function.relative == torch.allclose(function.discriminator(real + 3, fake + 3), pair, atol=1e-5)


@KINDS
def test_a_generator_earns_more_the_more_real_its_image_seems(kind):
    """Up to the logit 1 of a real image: "least-squares" pays less beyond it."""
    logits = torch.linspace(-4, 1, 11)
    assert (REWARD_FUNCTIONS[kind].generator(logits, torch.ones(11)).diff() > 0).all()


def test_values_at_equilibrium_by_hand():
    values = {kind: REWARD_FUNCTIONS[kind].equilibrium for kind in BY_HAND}
    assert values == pytest.approx({
        "log": -math.log(4), "minimax": -math.log(4), "hinge": -2, "least-squares": -1, "wasserstein": 0,
        "relativistic": -math.log(2),
    })  # fmt: skip


@pytest.mark.parametrize(("kind", "border"), [("wasserstein", 6), ("relativistic", 6), ("log", 0), ("hinge", 0)])
def test_where_only_differences_count_the_border_follows_the_logits(kind, border):
    real, fake = torch.tensor([7.0, 9.0]), torch.tensor([3.0, 5.0])
    assert float(REWARD_FUNCTIONS[kind].border(real, fake)) == border


def test_the_classification_reward_by_hand():
    classes = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [2 - math.log(math.e + math.e**2 + 1), -math.log(3)]
    assert rewards.classification_reward(classes, 1).tolist() == pytest.approx(expected)


def test_the_reward_functions_are_those_of_the_command_line_and_others_are_refused():
    (choices,) = [field.metadata["choices"] for field in dataclasses.fields(Config) if field.name == "reward_function"]
    assert tuple(REWARD_FUNCTIONS) == choices == tuple(BY_HAND)
    with pytest.raises(ValueError, match="there is no reward function 'logg'"):
        rewards.reward_function("logg")
