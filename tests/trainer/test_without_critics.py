"""Games without critics: the plain GAN, and MAGNET whose actors follow the reward itself."""

import pytest
import torch
from conftest import differing, gradient, new_trainer, run, same, saved, watch_steps, weights
from torch.nn.functional import logsigmoid

from magnet.run.checkpoint_validation import find_networks_fault, find_trainer_fault

pytestmark = pytest.mark.usefixtures("every_step")


def test_a_plain_gan_has_two_networks_that_ascend_their_rewards_on_noise():
    trainer = new_trainer(algorithm="gan")
    (generator,), (discriminator,) = trainer.generators, trainer.discriminators
    assert (list(generator.networks), list(discriminator.networks)) == (["generator"], ["actor"])
    assert generator.critic is None and discriminator.critic is None
    g, d_a, shown = generator.networks["generator"], discriminator.networks["actor"], []
    g.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    batch = trainer.collect(trainer.replay.sample(trainer.replayed_rows))
    trainer.act(batch)
    trainer.play(batch)
    (_, real, _), (_, fake, _) = batch.outputs[0]
    steps = watch_steps(discriminator), watch_steps(generator)
    expected = gradient(-(logsigmoid(real) + logsigmoid(-fake)).mean(), d_a)
    discriminator.update(batch)
    torch.testing.assert_close(steps[0], {"actor": expected})

    (z,) = shown
    expected = gradient(-logsigmoid(d_a(g(z))).mean(), g)
    metrics = generator.update(batch, [d_a])
    torch.testing.assert_close(steps[1], {"generator": expected})
    assert set(metrics) == {"generator_gradient"}


def test_a_plain_gan_plays_standard_noise():
    trainer = new_trainer(algorithm="gan")
    (agent,) = trainer.generators
    z = torch.cat(
        [agent.act(trainer.observations["generator"], agent.initial_recurrent_state(8))[0] for _ in range(500)]
    )
    assert z.mean().abs() < 0.02 and abs(z.std() - 1) < 0.02


@pytest.mark.parametrize("changes", [{"algorithm": "gan"}, {"critics": "none"}])
def test_games_without_critics_start_from_the_weights_of_those_with_them(changes):
    full, less = weights(new_trainer(2, 2).agents), weights(new_trainer(2, 2, **changes).agents)
    assert {name.split("/")[1] for name in full.keys() - less.keys()} >= {"critic", "critic target"}
    assert less.keys() < full.keys() and differing(less, full) == set()


WITHOUT = {  # who has no critic, and the settings
    "generator": {"critics": "discriminator", "gamma": 0.9},
    "discriminator": {"critics": "generator", "gamma": 0.9},
    "both": {"critics": "none"},
    "gan": {"algorithm": "gan"},
}


@pytest.mark.parametrize("without", WITHOUT)
def test_a_run_without_critics_steps_is_saved_and_goes_on_exactly(without):
    options = {"replay_fraction": 0.25, "r1": 0.1, "r1_every": 2} | WITHOUT[without]
    whole, restored = (new_trainer(2, 2, seed=seed, **options) for seed in (0, 7))
    for agent in whole.agents:
        kind = agent.name.split("_")[0]
        absent = without in (kind, "both", "gan")
        assert absent == (agent.critic is None) == ("critic" not in agent.targets) == ("critic" not in agent.optimizers)
    for _ in range(3):
        before = weights(whole.agents)
        metrics = whole.step()
        assert differing(before, weights(whole.agents)) == set(before)
        assert all(value.isfinite() for value in metrics.values())
        for agent in whole.agents:
            logged = {name for name in metrics if name.startswith(f"{agent.name}/")}
            critics = {f"{agent.name}/{name}" for name in ("critic_loss", "gradient_cosine", "critic_gradient")}
            assert logged & critics == (critics if agent.critic else set())
    state = saved(whole)
    assert find_trainer_fault(state, restored) is None and find_networks_fault(state, whole.config) is None
    restored.load_state_dict(state)
    assert run(restored, 3) == run(whole, 3)
    assert same(saved(restored), saved(whole))


@pytest.mark.parametrize("without", WITHOUT)
def test_a_checkpoint_of_a_game_with_other_critics_is_no_checkpoint_of_this_one(without):
    """Keys that are missing or that nothing reads are named."""
    config = {"gamma": 0.0} | WITHOUT[without]
    less, full = new_trainer(**config), new_trainer(critics="both")
    for found, reader in ((less, full), (full, less)):
        fault = find_trainer_fault(saved(found), reader)
        assert ("critic" in fault or without == "gan") and ("is missing" in fault or "unknown key" in fault)
