"""What a batch of the trainer consists of: rows that are played now, and rows from the replay buffer."""

import copy

import pytest
import torch
from conftest import FULL, gradient, new_trainer, overhear, run, step_and_batch, watch_steps
from test_maddpg import memories_acted_on, networks_of
from torch.nn.functional import logsigmoid

FRESH = 6  # rows played now, of the 8 of a batch, where a quarter is replayed


@pytest.mark.parametrize("algorithm", ["magnet", "gan"])
@pytest.mark.parametrize(("fraction", "new"), [(0.0, 8), (0.25, 6), (0.5, 4)])
def test_the_configured_share_of_a_batch_is_replayed(fraction, new, algorithm):
    trainer = new_trainer(2, 1, replay_fraction=fraction, algorithm=algorithm)
    assert trainer.new_rows == new
    for step in range(4):
        _, batch = step_and_batch(trainer)
        rows = 8 if step else new  # the buffer is empty at first
        acts = [part for act in batch.acts for part in act if part is not None]
        everything = (
            *acts,
            *batch.policy_images,
            *batch.played_images,
            batch.state,
            batch.real,
            *batch.transitions.values(),
        )
        assert {len(x) for x in everything} == {rows}
        assert [len(part) for one in batch.outputs[0] for part in one[:2]] == [rows] * 6
        assert len(trainer.replay) == (min(20, (step + 1) * new) if fraction else 0)


def test_what_was_played_is_stored_with_the_recurrent_state_from_before_the_action():
    trainer = new_trainer(2, 1, **FULL)
    run(trainer, 1)
    heard = memories_acted_on(trainer)
    _, batch = step_and_batch(trainer)
    ring, faces = {name: ring[FRESH : 2 * FRESH] for name, ring in trainer.replay.storage.items()}, trainer.dataset
    assert len(trainer.replay) == 2 * FRESH
    assert torch.equal(faces.batch(ring["state"]), batch.state[:FRESH])
    assert torch.equal(faces.batch(ring["real"]), batch.real[:FRESH])
    assert torch.equal(ring["next_real"], batch.transitions["next_real"][:FRESH])
    for i in range(2):
        before = heard[i][0][:FRESH]
        assert torch.equal(ring["recurrent"][:, i], before) and before.any()
        assert not torch.allclose(before, batch.acts[i].recurrent[:FRESH], atol=1e-3)
        assert torch.equal(batch.played_images[i][:FRESH], batch.policy_images[i].detach()[:FRESH])
        assert (ring["image"][:, i] - 127.5 * (batch.played_images[i][:FRESH] + 1)).abs().max() <= 0.5 + 1e-4


def test_replayed_rows_are_transitions_of_the_buffer_on_which_the_present_policy_acts_anew():
    trainer = new_trainer(2, 1, exploration=0.0, epsilon=0.0, episode_length=10, **FULL)
    run(trainer, 3)
    ring = {name: ring[: len(trainer.replay)].clone() for name, ring in trainer.replay.storage.items()}
    states, present, heard = trainer.dataset.batch(ring["state"]), networks_of(trainer), memories_acted_on(trainer)
    assert len(states) == 3 * FRESH
    _, batch = step_and_batch(trainer)
    for row in range(FRESH, 8):
        same = (states == batch.state[row]).flatten(1).all(dim=1) & (
            ring["next_real"] == batch.transitions["next_real"][row]
        )
        (place,) = same.nonzero().flatten()
        assert torch.equal(batch.real[row], trainer.dataset.batch(ring["real"][place][None])[0])
        for i in range(2):
            assert torch.equal(heard[i][0][row], ring["recurrent"][place, i])
            torch.testing.assert_close(batch.played_images[i][row], ring["image"][place, i] / 127.5 - 1)
    assert heard[0][0][FRESH:].any(), "memories within an episode are not zero"
    for i, networks in enumerate(present[:2]):
        actor, memory = networks["actor"], heard[i][0]
        policy, after = actor(batch.state, memory)
        torch.testing.assert_close(batch.acts[i].policy, policy)
        torch.testing.assert_close(batch.acts[i].recurrent, after)
        torch.testing.assert_close(batch.acts[i].embedding, actor.embed(actor.stack(batch.state)).detach())
        torch.testing.assert_close(batch.policy_images[i], networks["generator"](policy))
        assert not torch.allclose(batch.policy_images[i][FRESH:], batch.played_images[i][FRESH:], atol=1e-3)


def test_the_policy_learns_on_all_rows_of_the_batch():
    trainer = new_trainer(exploration=0.0, epsilon=0.0, diversity_weight=0.0, replay_fraction=0.25, lr=0.01)
    run(trainer, 2)
    (generator,), heard, (before, _) = trainer.generators, memories_acted_on(trainer), networks_of(trainer)
    steps = watch_steps(generator)
    _, batch = step_and_batch(trainer)
    d_a = trainer.discriminators[0].networks["actor"]

    def expected(rows):
        images = before["generator"](before["actor"](batch.state, heard[0][0])[0])
        value = generator.critic(batch.acts[0].embedding, d_a(images)[:, None])
        return gradient(-value[:rows].mean(), before["actor"])

    torch.testing.assert_close(steps["actor"], expected(8), rtol=1e-3, atol=1e-5)
    assert (steps["actor"] - expected(FRESH)).norm() > 0.02 * steps["actor"].norm()


def test_no_reward_is_stored():
    assert set(new_trainer(**FULL).replay.storage) == {"state", "real", "next_real", "recurrent", "image"}


def test_rewards_of_replayed_transitions_are_those_of_the_present_networks():
    rewards = {}
    for shift in (0.0, 3.0):  # the second discriminator thinks better of every image
        trainer = new_trainer(lr=0.01, **FULL)
        run(trainer, 2)
        (discriminator,), (generator,) = trainer.discriminators, trainer.generators
        with torch.no_grad():
            discriminator.networks["actor"].logit.bias.add_(shift)
        d_a = copy.deepcopy(discriminator.networks["actor"])  # before this step
        discriminated, taught = overhear(discriminator), overhear(generator)
        _, batch = step_and_batch(trainer)

        torch.testing.assert_close(taught[0]["reward"], logsigmoid(d_a(batch.played_images[0])).detach())
        right, side = discriminated[0]["actions"].T  # label * logit, and the label
        assert side.tolist() == [1] * 8 + [-1] * 8
        torch.testing.assert_close(discriminated[0]["reward"], logsigmoid(right))
        rewards[shift] = taught[0]["reward"][FRESH:], discriminated[0]["reward"].view(2, 8)[:, FRESH:]
    assert (rewards[3.0][0] > rewards[0.0][0]).all()
    assert (rewards[3.0][1][0] > rewards[0.0][1][0]).all()  # called real: more for real images,
    assert (rewards[3.0][1][1] < rewards[0.0][1][1]).all()  # less for fakes
