"""The trainer with an extra reward: what is stored, what the reward critic learns from, who follows it, going on."""

import pytest
import torch
from conftest import (
    CPU,
    new_trainer,
    run,
    same,
    saved,
    small_config,
    small_faces,
    step_and_batch,
    watch_steps,
    weights,
)

from magnet.agents.agent import Agent
from magnet.data.image_dataset import to_uint8
from magnet.game.environment import new_environment
from magnet.game.extra_rewards import ExtraReward
from magnet.maddpg import MADDPG

EXTRA = {"extra_reward": "resemble", "replay_fraction": 0.25}


def test_the_buffer_holds_the_rewards_of_its_images_beside_their_states():
    trainer = new_trainer(2, 1, **EXTRA)
    run(trainer, 7)  # the ring of 20 has wrapped
    trainer.complete_rewards()
    stored = trainer.replay.storage
    states = to_uint8(trainer.dataset.batch(stored["state"]))
    for i in range(2):
        assert torch.equal(stored["extra"][:, i], trainer.environment.extra(states, stored["image"][:, i]))
    assert len(stored["extra"].unique()) > 35, "they vary; two of 40 may round to one number"


def test_the_reward_critic_learns_the_last_step_and_replayed_rows_in_deviations(monkeypatch):
    trainer = new_trainer(**EXTRA)
    _, before = step_and_batch(trainer)
    heard, update_critic = [], Agent.update_critic

    def note(self, observation, action, reward, value, key="critic", fresh=0, with_metrics=True):
        if key == "reward_critic":
            heard.append((observation, action, reward, fresh))
        return update_critic(self, observation, action, reward, value, key, fresh, with_metrics)

    monkeypatch.setattr(Agent, "update_critic", note)
    _, batch = step_and_batch(trainer)
    ((states, images, rewards, fresh),) = heard
    assert fresh == 6 and len(states) == 8 + 6  # a batch of replayed rows, and the last step's
    assert torch.equal(states[-6:], before.state[:6])
    assert torch.equal(to_uint8(images[-6:]), to_uint8(before.policy_images[0][:6]))
    paid = trainer.environment.extra(to_uint8(states), to_uint8(images))
    scale = trainer.environment.normaliser
    torch.testing.assert_close(rewards, (paid - scale.mean) / scale.variance.sqrt())
    assert torch.equal(batch.reward_batch["extra"][:, 0], paid)


def test_r2_is_on_rows_that_no_step_has_learned_from():
    trainer = new_trainer(**EXTRA)
    run(trainer, 3)
    critic, agent = [], trainer.generators[0]
    agent.networks["reward_critic"].register_forward_hook(lambda *call: critic.append(call[2].detach()))
    metrics, batch = step_and_batch(trainer)
    errors = (critic[0][-6:] - batch.reward_batch["reward"][-6:, 0]).square()
    assert metrics["generator/reward_critic_r2"].item() == pytest.approx(1 - errors.mean().item())
    assert metrics["generator/extra_reward"].item() == pytest.approx(batch.reward_batch["extra"][-6:].mean().item())


def test_at_weight_0_all_else_is_trained_bit_for_bit_as_without():
    """With an empty share of replayed rows: the reward critics draw from the buffer too."""
    plain, listens = new_trainer(r1=0.1), new_trainer(r1=0.1, extra_reward="resemble", extra_weight=0.0)
    run(plain, 6), run(listens, 6)
    found, without = weights(listens.agents), weights(plain.agents)
    assert set(found) - set(without) == {"generator/reward_critic", "generator/reward_critic target"}
    assert all(torch.equal(found[name], one) for name, one in without.items())


def gradients(**changes):
    """Those with which G and G_a make their fourth step, of runs that are alike up to there."""
    trainer = new_trainer(extra_reward="resemble", **{"extra_weight": 0.0} | changes)
    weight, trainer.generators[0].config = trainer.generators[0].config, trainer.config
    for agent in trainer.generators:
        agent.config = small_config(**vars(trainer.config) | {"extra_weight": 0.0})
    run(trainer, 3)
    for agent in trainer.generators:
        agent.config = weight
    seen = watch_steps(trainer.generators[0])
    run(trainer, 1)
    return seen


def test_both_follow_the_reward_or_the_policy_alone_and_noise_neither():
    without, both, policy = gradients(), gradients(extra_weight=1.0), gradients(extra_weight=1.0, extra_to="policy")
    assert not torch.allclose(both["generator"], without["generator"])
    torch.testing.assert_close(policy["generator"], without["generator"])
    assert not torch.allclose(policy["actor"], without["actor"])
    torch.testing.assert_close(policy["actor"], both["actor"], rtol=1e-3, atol=1e-5)
    noise = gradients(extra_weight=1.0, epsilon=1.0)  # no image answers a state
    torch.testing.assert_close(noise["generator"], gradients(epsilon=1.0)["generator"])
    assert all(torch.equal(both["reward_critic"], one["reward_critic"]) for one in (without, policy))


def test_the_target_of_the_reward_critic_bootstraps_with_gamma(monkeypatch):
    trainer = new_trainer(gamma=0.5, **EXTRA)
    run(trainer, 3)
    agent, heard, update_critic = trainer.generators[0], [], Agent.update_critic

    def note(self, observation, action, reward, value, key="critic", fresh=0, with_metrics=True):
        if key == "reward_critic":
            heard.append(value)
        return update_critic(self, observation, action, reward, value, key, fresh, with_metrics)

    monkeypatch.setattr(Agent, "update_critic", note)
    targets = {key: (net, [p.clone() for p in net.parameters()]) for key, net in agent.targets.items()}
    _, batch = step_and_batch(trainer)
    for net, before in targets.values():
        torch._foreach_copy_([p.data for p in net.parameters()], before)
    rows = batch.reward_batch
    with torch.no_grad():
        _, memory, _ = agent.targets["actor"].act(rows["state"], rows["recurrent"][:, 0])
        z, _, _ = agent.targets["actor"].act(rows["next_state"], memory)
        expected = agent.targets["reward_critic"](rows["next_state"], agent.targets["generator"](z))
    torch.testing.assert_close(heard[0], expected)
    assert heard[0].std() > 0


def darkness(states, images):
    """Whether an image is as dark as its state is bright: what only a policy can know."""
    return -abs(images.mean((1, 2, 3)) + states.mean((1, 2, 3)) - 255)


def test_a_policy_learns_a_reward_that_has_no_gradient():
    faces, found = small_faces(64), {}
    shades = torch.linspace(40, 215, 64)[:, None, None, None]
    faces._pixels = (faces._pixels.float() * 0.1 + shades).to(torch.uint8)
    for weight in (0.0, 5.0):
        config = small_config(lr=2e-3, batch_size=16, extra_reward="darkness", extra_weight=weight)
        game = new_environment(config, faces, ExtraReward("darkness", darkness, ""))
        trainer = MADDPG(config, game, CPU)
        metrics = run(trainer, 150)
        found[weight] = sum(m["generator/extra_reward"] for m in metrics[-30:]) / 30
    assert found[5.0] > found[0.0] + 10  # grey levels


N, M = 5, 4


@pytest.mark.parametrize(("gamma", "fraction", "team"), [(0.0, 0.0, 1), (0.9, 0.25, 2)])
def test_n_plus_m_steps_are_n_steps_a_restored_trainer_and_m_steps(gamma, fraction, team):
    config = EXTRA | {"gamma": gamma, "replay_fraction": fraction}
    whole, restored, unsaved = (new_trainer(team, team, seed=seed, **config) for seed in (0, 7, 0))
    run(whole, N), run(unsaved, N)
    restored.load_state_dict(saved(whole))
    expected = run(whole, M)
    assert run(restored, M) == expected and run(unsaved, M) == expected  # saving changes nothing
    assert same(saved(restored), saved(whole)) and same(saved(unsaved), saved(whole))


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
