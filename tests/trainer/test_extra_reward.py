"""The trainer with an extra reward: what the buffer stores, what the reward critic learns from, who follows it."""

import copy

import pytest
import torch
from conftest import (
    CPU,
    new_trainer,
    overhear,
    run,
    saved,
    small_config,
    small_faces,
    step_and_batch,
    watch_steps,
    weights,
)

from magnet.data.image_dataset import to_uint8
from magnet.game.environment import new_environment
from magnet.game.extra_rewards import ExtraReward
from magnet.maddpg import MADDPG

EXTRA = {"extra_reward": "resemble", "replay_fraction": 0.25}


def test_the_buffer_holds_the_rewards_of_its_images_beside_their_states():
    trainer = new_trainer(2, 1, **EXTRA)
    run(trainer, 7)  # more than the 20 rows of the buffer
    trainer.complete_rewards()
    stored = trainer.replay.storage
    states = to_uint8(trainer.dataset.batch(stored["state"]))
    for i in range(2):
        assert torch.equal(stored["extra"][:, i], trainer.environment.extra(states, stored["image"][:, i]))
    assert len(stored["extra"].unique()) > 35, "they vary; two of 40 may round to one number"


def test_the_reward_critic_learns_replayed_rows_and_the_last_step_in_standard_deviations():
    trainer = new_trainer(**EXTRA)
    run(trainer, 2)
    (agent,), (_, before) = trainer.generators, step_and_batch(trainer)
    calls, values = overhear(agent, "reward_critic"), []
    agent.reward_critic.register_forward_hook(lambda *call: values.append(call[2].detach()))
    metrics, batch = step_and_batch(trainer)
    states, images, reward, _ = calls[0].values()
    assert len(states) == 8 + 6  # a batch of replayed rows, then the last step's
    assert torch.equal(states[-6:], before.state[:6])
    assert torch.equal(to_uint8(images[-6:]), to_uint8(before.policy_images[0][:6]))
    extra = trainer.environment.extra(to_uint8(states), to_uint8(images))
    normaliser = trainer.environment.normaliser
    assert torch.equal(batch.reward_batch["extra"][:, 0], extra)
    torch.testing.assert_close(reward, (extra - normaliser.mean) / normaliser.variance.sqrt())
    # R^2 is on the last rows, from which no step has learned yet.
    error = (values[0][-6:] - reward[-6:]).square().mean()
    assert metrics["generator/reward_critic_r2"].item() == pytest.approx(1 - error.item())
    assert metrics["generator/extra_reward"].item() == pytest.approx(extra[-6:].mean().item())


def test_the_target_of_the_reward_critic_bootstraps_with_gamma():
    trainer = new_trainer(gamma=0.5, **EXTRA)
    run(trainer, 3)
    (agent,), targets = trainer.generators, copy.deepcopy(trainer.generators[0].targets)
    calls = overhear(agent, "reward_critic")
    _, batch = step_and_batch(trainer)
    rows = batch.reward_batch
    with torch.no_grad():
        _, recurrent, _ = targets["actor"].act(rows["state"], rows["recurrent"][:, 0])
        z, _, _ = targets["actor"].act(rows["next_state"], recurrent)
        expected = targets["reward_critic"](rows["next_state"], targets["generator"](z))
    torch.testing.assert_close(calls[0]["next_value"], expected)
    assert expected.std() > 0


def test_with_weight_0_all_else_is_trained_bit_for_bit_as_without():
    """No rows are replayed, because the reward critics sample from the buffer too."""
    plain, extra = new_trainer(r1=0.1), new_trainer(r1=0.1, extra_reward="resemble", extra_weight=0.0)
    run(plain, 6), run(extra, 6)
    with_extra, without = weights(extra.agents), weights(plain.agents)
    assert set(with_extra) - set(without) == {"generator/reward_critic", "generator/reward_critic target"}
    assert all(torch.equal(with_extra[name], one) for name, one in without.items())


def gradients(**changes):
    """The gradients of the generator's fourth step. Weight and noise affect no step before it."""
    trainer = new_trainer(extra_reward="resemble", architecture="dcgan", **{"extra_weight": 0.0} | changes)
    (agent,) = trainer.generators
    agent.config = small_config(**vars(trainer.config) | {"extra_weight": 0.0})
    run(trainer, 3)
    agent.config, steps = trainer.config, watch_steps(agent)
    run(trainer, 1)
    return steps


def test_g_and_g_a_or_g_a_alone_follow_the_reward_but_not_in_rows_of_noise():
    without, both, policy = gradients(), gradients(extra_weight=1.0), gradients(extra_weight=1.0, extra_to="policy")
    assert not torch.allclose(both["generator"], without["generator"])
    torch.testing.assert_close(policy["generator"], without["generator"])
    assert not torch.allclose(policy["actor"], without["actor"])
    torch.testing.assert_close(policy["actor"], both["actor"], rtol=1e-3, atol=1e-5)
    noise = gradients(extra_weight=1.0, epsilon=1.0)  # no image depends on its state
    torch.testing.assert_close(noise["generator"], gradients(epsilon=1.0)["generator"])
    assert all(torch.equal(both["reward_critic"], one["reward_critic"]) for one in (without, policy))


def darkness(states, images):
    """How close an image is to being as dark as its state is bright: only a policy can earn it."""
    return -abs(images.mean((1, 2, 3)) + states.mean((1, 2, 3)) - 255)


def test_a_policy_learns_a_reward_that_has_no_gradient():
    faces, rewards = small_faces(64), {}
    shades = torch.linspace(40, 215, 64)[:, None, None, None]
    faces._pixels = (faces._pixels.float() * 0.1 + shades).to(torch.uint8)
    for weight in (0.0, 5.0):
        config = small_config(lr=2e-3, batch_size=16, extra_reward="darkness", extra_weight=weight, epsilon=0.1)
        trainer = MADDPG(config, new_environment(config, faces, ExtraReward("darkness", darkness, "")), CPU)
        rewards[weight] = sum(metrics["generator/extra_reward"] for metrics in run(trainer, 150)[-30:]) / 30
    assert rewards[5.0] > rewards[0.0] + 10  # grey levels


def test_a_game_needs_the_function_that_its_config_names():
    for name, extra in (("resemble", None), ("", ExtraReward("r", darkness, ""))):
        with pytest.raises(ValueError, match="extra reward"):
            new_environment(small_config(extra_reward=name), small_faces(), extra)


def test_a_run_whose_reward_fails_is_saved_all_the_same(capsys):
    trainer = new_trainer(**EXTRA)
    run(trainer, 3)

    def fail(states, images):
        raise BrokenPipeError

    trainer.environment.extra = ExtraReward("gone.py", fail, "resemble")
    state = saved(trainer)
    assert "warning: The extra reward gone.py raised BrokenPipeError" in capsys.readouterr().out
    extra = state["replay"]["storage"]["extra"]
    assert (extra[-6:] == trainer.environment.normaliser.mean).all() and len(extra[:-6].unique()) == 12
