"""What is said of a policy's answers: by hand for images that copy their state, or that do not know it."""

import pytest
import torch
from conftest import new_trainer, pictures, run

from magnet.data.image_dataset import from_uint8, to_uint8
from magnet.evaluation.answers import critic_cosines, differentiable_resemble, score_answers, measure_firsts
from magnet.evaluation.sampling import Sampler
from magnet.game.extra_rewards import load_extra_reward

REWARD = load_extra_reward("resemble")


def states(count=200):
    """Flat pictures (count, 3, 32, 32) uint8 of different greys."""
    return torch.linspace(0, 255, count).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()


def test_answers_that_copy_their_state_are_always_first():
    shown = to_uint8(pictures(0, 200))
    found = score_answers(REWARD, shown, shown)
    others = REWARD(shown.roll(1, dims=0), shown).mean().item()
    assert found == {"extra_reward": 0, "gap": pytest.approx(-others)}
    assert measure_firsts(REWARD, shown, shown) == 1


def test_answers_that_do_not_know_their_state_have_no_gap():
    same = states(1).expand(200, -1, -1, -1)
    found = score_answers(REWARD, states(), same)
    assert found["gap"] == pytest.approx(0, abs=1e-6) and measure_firsts(REWARD, states(), same) <= 0.02


def test_one_answer_that_is_wrong_is_counted():
    shown = to_uint8(pictures(0, 150))
    answers = shown.clone()
    answers[7] = shown[8]
    assert measure_firsts(REWARD, shown, answers) == pytest.approx(0.99)  # of the first 100; the others are too few
    with pytest.raises(ValueError, match="too few"):
        measure_firsts(REWARD, shown[:99], answers[:99])


def test_the_reward_with_a_gradient_is_the_one_without():
    first, second = to_uint8(pictures(0, 5)), to_uint8(pictures(1, 5))
    torch.testing.assert_close(differentiable_resemble(from_uint8(first), from_uint8(second)), REWARD(first, second))


def test_a_critic_that_is_the_truth_points_as_the_truth_does():
    trainer = new_trainer(extra_reward="resemble")
    run(trainer, 3)
    agent, shown = trainer.generators[0], trainer.dataset.batch(torch.arange(16))
    memory = Sampler(agent, trainer.dataset).mid_episode[:16]
    found = critic_cosines(agent, shown, memory)
    assert all(-1 <= value < 0.999 for value in found.values())
    critic = agent.networks["reward_critic"]
    for sign in (1, -1):
        same = critic_cosines(agent, shown, memory, lambda state, image, sign=sign: sign * critic(state, image))
        assert list(same.values()) == pytest.approx([sign, sign], abs=1e-4)
