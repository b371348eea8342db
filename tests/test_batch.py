"""What a batch of the trainer consists of: the answers to fresh states, improved, and rows replayed from the ring."""

import copy

import pytest
import torch
from conftest import (
    FULL,
    new_trainer,
    overhear,
    run,
    step_and_batch,
)
from torch.nn.functional import logsigmoid

from magnet import returns

FRESH = 6  # rows played now, of the 8 of a batch, where a quarter comes from the ring


@pytest.mark.parametrize(("fraction", "fresh"), [(0.0, 8), (0.25, 6), (0.5, 4)])
def test_the_configured_share_of_a_batch_comes_from_the_ring(fraction, fresh):
    trainer = new_trainer(2, 1, replay_fraction=fraction)
    for step in range(4):
        _, batch = step_and_batch(trainer)
        rows = 8 if step else fresh  # the ring is empty at first
        assert {len(x) for x in (*batch.policy, *batch.answers)} == {fresh}
        everything = (*batch.z, *batch.images, *batch.fakes, *batch.memory, batch.state, batch.real, batch.next_real)
        assert {len(x) for x in everything} == {rows}
        assert [len(part) for part in batch.logits[0]] == [rows] * 3


@pytest.mark.parametrize("algorithm", ["magnet", "gan"])
def test_all_answers_teach_and_the_first_is_played_and_stored(algorithm):
    trainer = new_trainer(1, 1, replay_fraction=0.25, answers=3, algorithm=algorithm)
    run(trainer, 1)
    _, batch = step_and_batch(trainer)
    assert len(batch.answers[0]) == 3 * FRESH
    assert {len(x) for x in (batch.z[0], batch.images[0], batch.fakes[0], batch.logits[0][1])} == {3 * FRESH + 2}
    assert {len(x) for x in (batch.real, batch.state, batch.logits[0][0])} == {8}
    stored = trainer.replay.ring["z"][FRESH : 2 * FRESH, 0]
    assert torch.equal(stored, batch.z[0].detach()[:FRESH])
    assert len(trainer.replay) == 2 * FRESH


@pytest.mark.parametrize(("algorithm", "answers", "first"), [("magnet", 1, 8), ("gan", 3, 20), ("magnet", 3, FRESH)])
def test_the_policys_answers_pass_through_g_and_d_a_apart_from_those_of_noise(algorithm, answers, first):
    trainer = new_trainer(1, 1, replay_fraction=0.25, algorithm=algorithm, answers=answers)
    run(trainer, 1)
    painter, judge = (copy.deepcopy(agent.networks) for agent in trainer.agents)
    _, batch = step_and_batch(trainer)
    (z,), (image,), (fake,), logits = batch.z, batch.images, batch.fakes, batch.logits[0][1]
    for part in (slice(first), slice(first, None)):
        if len(z[part]):
            torch.testing.assert_close(image[part], painter["generator"](z[part]))
            torch.testing.assert_close(logits[part], judge["actor"](fake[part]))
            assert torch.equal(image[part], painter["generator"](z)[part]) == (first == len(z))


def test_answers_are_improved_before_they_are_shown_stored_and_learned_from():
    config = {"replay_fraction": 0.25, "answers": 2, "exploration": 0.0}
    plain, improving = new_trainer(**config), new_trainer(**config, latent_step=0.5)
    batches = [step_and_batch(trainer)[1] for trainer in (plain, improving)]
    assert torch.equal(batches[0].answers[0], batches[1].answers[0])
    z, moved = (batch.z[0].detach() for batch in batches)
    assert torch.equal(z, batches[0].answers[0].detach())
    generator, discriminator = new_trainer(**config).agents  # the same seed: as they were when they acted
    painter, judge = generator.networks["generator"], discriminator.networks["actor"]
    tried = z[: 2 * FRESH].requires_grad_()
    logits = torch.cat([judge(painter(part)) for part in tried.split(FRESH)])  # the policy's, then those of noise
    expected = returns.latent_step(torch.autograd.grad(logits.sum(), tried)[0], 0.5)
    torch.testing.assert_close(moved[: 2 * FRESH] - z[: 2 * FRESH].detach(), expected)
    assert torch.equal(improving.replay.ring["z"][:FRESH, 0], moved[:FRESH])
    images = painter(moved, FRESH)
    torch.testing.assert_close(batches[1].fakes[0], images)


def test_what_was_played_is_stored():
    trainer = new_trainer(2, 1, **FULL)
    _, batch = step_and_batch(trainer)
    ring, faces = {name: ring[:FRESH] for name, ring in trainer.replay.ring.items()}, trainer.faces
    assert len(trainer.replay) == FRESH
    assert torch.equal(faces.batch(ring["state"]), batch.state)
    assert torch.equal(faces.batch(ring["real"]), batch.real)
    assert torch.equal(ring["next_real"], batch.next_real)
    for i in range(2):
        assert torch.equal(ring["z"][:, i], batch.answers[i].detach())
        assert torch.equal(ring["memory"][:, i], batch.memory[i])
        assert (ring["image"][:, i] - 127.5 * (batch.fakes[i] + 1)).abs().max() <= 0.5 + 1e-4


def test_replayed_rows_are_transitions_of_the_ring_with_images_drawn_anew():
    trainer = new_trainer(2, 1, **FULL)
    run(trainer, 2)
    ring = {name: ring[: len(trainer.replay)].clone() for name, ring in trainer.replay.ring.items()}
    present = copy.deepcopy([agent.networks["generator"] for agent in trainer.generators])
    _, batch = step_and_batch(trainer)
    assert len(ring["z"]) == 2 * FRESH
    for row in range(FRESH, 8):
        (place,) = (ring["z"][:, 0] == batch.z[0][row]).all(dim=1).nonzero()[0]
        assert torch.equal(batch.state[row], trainer.faces.batch(ring["state"][place][None])[0])
        assert torch.equal(batch.real[row], trainer.faces.batch(ring["real"][place][None])[0])
        assert batch.next_real[row] == ring["next_real"][place]
        for i in range(2):
            assert torch.equal(batch.z[i][row], ring["z"][place, i])
            assert torch.equal(batch.memory[i][row], ring["memory"][place, i])
            torch.testing.assert_close(batch.fakes[i][row], ring["image"][place, i] / 127.5 - 1)
    for generator, z, images, fakes in zip(present, batch.z, batch.images, batch.fakes, strict=True):
        torch.testing.assert_close(images, generator(z))
        torch.testing.assert_close(fakes[:FRESH], images[:FRESH])
        assert not torch.allclose(fakes[FRESH:], images[FRESH:], atol=1e-3)


def test_no_reward_is_stored():
    assert set(new_trainer(**FULL).replay.ring) == {"state", "real", "next_real", "z", "memory", "image"}


def test_rewards_of_replayed_transitions_are_those_of_the_present_networks():
    rewards = {}
    for shift in (0.0, 3.0):  # the second discriminator thinks better of every image
        trainer = new_trainer(**FULL)
        run(trainer, 2)
        (discriminator,), (generator,) = trainer.discriminators, trainer.generators
        with torch.no_grad():
            discriminator.networks["actor"].logit.bias.add_(shift)
        judged, taught = overhear(discriminator), overhear(generator)
        _, batch = step_and_batch(trainer)

        present = logsigmoid(discriminator.networks["actor"](batch.images[0]))
        torch.testing.assert_close(taught[0]["reward"], present.detach())
        side = torch.cat([torch.ones(8), -torch.ones(8)])
        torch.testing.assert_close(judged[0]["reward"], logsigmoid(side * judged[0]["actions"].squeeze(1)).detach())
        rewards[shift] = taught[0]["reward"][FRESH:], judged[0]["reward"].view(2, 8)[:, FRESH:]
    assert (rewards[3.0][0] > rewards[0.0][0]).all()
    assert (rewards[3.0][1][0] > rewards[0.0][1][0]).all()  # called real: more for real images,
    assert (rewards[3.0][1][1] < rewards[0.0][1][1]).all()  # less for fakes
