"""A batch of the trainer: new rows, which it plays now, and rows from the replay buffer."""

import pytest
import torch
from conftest import FULL, new_trainer, run, step_and_batch
from test_maddpg import copy_networks, watch_recurrent_states

NEW = 6  # new rows of the 8 of a batch, where a quarter is replayed


@pytest.mark.parametrize(
    ("fraction", "new", "algorithm"), [(0.0, 8, "magnet"), (0.25, 6, "gan"), (0.25, 6, "magnet"), (0.5, 4, "magnet")]
)
def test_the_configured_share_of_a_batch_is_replayed(fraction, new, algorithm):
    trainer = new_trainer(2, 1, replay_fraction=fraction, algorithm=algorithm)
    assert trainer.new_rows == new and trainer.steps_per_epoch == 20 // new
    for step in range(4):
        assert trainer.steps == step and trainer.images_seen == 8 * step
        _, batch = step_and_batch(trainer)
        rows = 8 if step else new  # the buffer is empty at first
        tensors = [part for act in batch.acts for part in act if part is not None]
        tensors += [*batch.policy_images, *batch.played_images, batch.state, batch.real, *batch.transitions.values()]
        tensors += [part for one in batch.outputs[0] for part in one[:2]]
        assert {len(tensor) for tensor in tensors} == {rows}
        assert len(trainer.replay) == (min(20, (step + 1) * new) if fraction else 0)


def test_the_buffer_stores_new_rows_with_the_recurrent_state_from_before_the_action_and_no_reward():
    trainer = new_trainer(2, 1, **FULL)
    run(trainer, 1)
    recurrent_states = watch_recurrent_states(trainer)
    _, batch = step_and_batch(trainer)
    stored, faces = {name: rows[NEW : 2 * NEW] for name, rows in trainer.replay.storage.items()}, trainer.dataset
    assert set(stored) == {"state", "real", "next_real", "recurrent", "image"} and len(trainer.replay) == 2 * NEW
    assert torch.equal(faces.batch(stored["state"]), batch.state[:NEW])
    assert torch.equal(faces.batch(stored["real"]), batch.real[:NEW])
    assert torch.equal(stored["next_real"], batch.transitions["next_real"][:NEW])
    for i in range(2):
        before = recurrent_states[i][0][:NEW]
        assert torch.equal(stored["recurrent"][:, i], before) and before.any()
        assert not torch.allclose(before, batch.acts[i].recurrent[:NEW], atol=1e-3)
        assert torch.equal(batch.played_images[i][:NEW], batch.policy_images[i][:NEW])
        assert not batch.played_images[i].requires_grad, "discriminators' updates must not reach generators"
        assert (stored["image"][:, i] - 127.5 * (batch.played_images[i][:NEW] + 1)).abs().max() <= 0.5 + 1e-4


def test_replayed_rows_are_transitions_of_the_buffer_on_which_the_present_policy_acts_anew():
    trainer = new_trainer(2, 1, exploration=0.0, epsilon=0.0, episode_length=10, **FULL)
    run(trainer, 3)
    stored = {name: rows[: len(trainer.replay)].clone() for name, rows in trainer.replay.storage.items()}
    states, networks = trainer.dataset.batch(stored["state"]), copy_networks(trainer)
    recurrent_states = watch_recurrent_states(trainer)
    assert len(states) == 3 * NEW
    _, batch = step_and_batch(trainer)
    for row in range(NEW, 8):
        equal = (states == batch.state[row]).flatten(1).all(dim=1)
        equal &= stored["next_real"] == batch.transitions["next_real"][row]
        (place,) = equal.nonzero().flatten()
        assert torch.equal(batch.real[row], trainer.dataset.batch(stored["real"][place][None])[0])
        for i in range(2):
            assert torch.equal(recurrent_states[i][0][row], stored["recurrent"][place, i])
            torch.testing.assert_close(batch.played_images[i][row], stored["image"][place, i] / 127.5 - 1)
    assert recurrent_states[0][0][NEW:].any(), "within an episode they are not zero"
    for i, act in enumerate(batch.acts):
        actor, recurrent = networks[i]["actor"], recurrent_states[i][0]
        policy, next_recurrent = actor(batch.state, recurrent)
        torch.testing.assert_close(act.policy, policy)
        torch.testing.assert_close(act.recurrent, next_recurrent)
        torch.testing.assert_close(act.embedding, actor.embed(actor.stack(batch.state)).detach())
        torch.testing.assert_close(batch.policy_images[i], networks[i]["generator"](policy))
        assert not torch.allclose(batch.policy_images[i][NEW:], batch.played_images[i][NEW:], atol=1e-3)
