"""The trainer: what a step learns from, and in which order."""

import copy

import pytest
import torch
from conftest import (
    CPU,
    FULL,
    PRECISIONS,
    differing,
    gradient,
    new_trainer,
    overhear,
    relative_error,
    run,
    small_config,
    small_faces,
    step_and_batch,
    watch_steps,
    weights,
)
from torch.nn.functional import logsigmoid

from magnet import returns
from magnet.maddpg import MADDPG

FRESH = 6  # rows played now, of the 8 of a batch, where a quarter comes from the ring


# One step

DISCRIMINATOR_METRICS = {
    "return", "from_equilibrium", "accuracy_real", "accuracy_fake",
    "td_error", "slope_cosine", "critic_gradient", "actor_gradient",
}  # fmt: skip
GENERATOR_METRICS = {
    "return", "diversity", "z_correlation", "z_deviation",
    "td_error", "slope_cosine", "critic_gradient", "actor_gradient", "generator_gradient",
}  # fmt: skip


@PRECISIONS
def test_a_step_returns_detached_finite_scalars_by_name(precision):
    metrics = new_trainer(precision=precision, **FULL).step()
    for agent, names in (("discriminator", DISCRIMINATOR_METRICS), ("generator", GENERATOR_METRICS)):
        assert {name for name in metrics if name.startswith(agent)} == {f"{agent}/{name}" for name in names}
    for name, value in metrics.items():
        assert value.shape == () and value.dtype == torch.float32 and not value.requires_grad, name
        assert value.isfinite(), name


@pytest.mark.parametrize(("generators", "discriminators"), [(1, 1), (2, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("changes", [{}, FULL], ids=["gamma 0", "gamma 0.9, replay"])
def test_every_agent_learns_in_every_step(generators, discriminators, changes):
    trainer = new_trainer(generators, discriminators, **changes)
    for _ in range(3):
        before = weights(trainer.agents)
        metrics = trainer.step()
        assert differing(before, weights(trainer.agents)) == set(before)
    for agents, names in ((trainer.generators, GENERATOR_METRICS), (trainer.discriminators, DISCRIMINATOR_METRICS)):
        for agent in agents:
            assert all(metrics[f"{agent.name}/{name}"].isfinite() for name in names)


def test_several_agents_of_a_kind_differ():
    trainer = new_trainer(2, 2)
    _, batch = step_and_batch(trainer)
    assert [agent.name for agent in trainer.agents] == [
        "generator_0", "generator_1", "discriminator_0", "discriminator_1",
    ]  # fmt: skip
    assert not torch.allclose(batch.z[0], batch.z[1], atol=0.1)
    assert not torch.allclose(torch.cat(batch.logits[0]), torch.cat(batch.logits[1]), atol=1e-3)


def test_each_discriminator_judges_real_images_and_every_generators():
    trainer = new_trainer(2, 2)
    judges = copy.deepcopy([agent.networks["actor"] for agent in trainer.discriminators])
    _, batch = step_and_batch(trainer)
    for judge, logits in zip(judges, batch.logits, strict=True):
        for row, images in zip(logits, [batch.real, *batch.fakes], strict=True):
            torch.testing.assert_close(row, judge(images))


@PRECISIONS
def test_generators_answer_to_discriminators_that_have_seen_this_batch(precision):
    trainer = new_trainer(2, 2, lr=0.01, precision=precision)
    judges = [agent.networks["actor"] for agent in trainer.discriminators]
    unlearned = copy.deepcopy(judges)
    metrics, batch = step_and_batch(trainer)
    for agent, images in zip(trainer.generators, batch.images, strict=True):
        with torch.no_grad():
            earned, stale = (sum(logsigmoid(j(images)).mean() for j in some) / 2 for some in (judges, unlearned))
        assert metrics[f"{agent.name}/return"].item() == pytest.approx(earned.item(), rel=1e-4)
        assert abs(earned - stale) > 0.01


def test_a_discriminators_update_does_not_reach_the_generators():
    trainer = new_trainer()
    batch = trainer.act(trainer.replay.sample(trainer.replayed))
    trainer.play(batch)
    (discriminator,), (generator,) = trainer.discriminators, trainer.generators
    before = weights(trainer.agents)
    discriminator.update(batch.real, batch.fakes, batch.logits[0], batch.names[0], len(batch.real), None, None)
    assert differing(before, weights(trainer.agents)) == {"discriminator/actor", "discriminator/critic"}
    assert all(p.grad is None for network in generator.networks.values() for p in network.parameters())
    assert batch.z[0].grad is None


def test_targets_move_by_tau_after_all_agents_have_learned():
    trainer = new_trainer(tau=0.25, **FULL)
    before = weights(trainer.agents)
    trainer.step()
    after = weights(trainer.agents)
    for name in before:
        if not name.endswith("target"):
            expected = 0.25 * after[name] + 0.75 * before[f"{name} target"]
            torch.testing.assert_close(after[f"{name} target"], expected)


def test_critics_slopes_are_those_of_float32_with_bf16_convolutions():
    trainer = new_trainer(precision="bf16", **FULL)
    lessons = [(copy.deepcopy(agent.networks["critic"]), overhear(agent)) for agent in trainer.agents]
    trainer.step()
    for critic, (taught,) in lessons:
        actions = taught["actions"].detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic.value(taught["encoded"].detach(), actions).sum(), actions)
        assert relative_error(taught["slope"], slope) < 1e-5


# Episodes and epochs


def test_memory_is_zero_where_an_episode_starts_and_carried_on_inside():
    trainer, calls = new_trainer(episode_length=3), []
    actor = trainer.generators[0].networks["actor"]
    actor.register_forward_hook(lambda _, inputs, outputs: calls.append((inputs[1], outputs[1].detach())))
    run(trainer, 7)
    for t, (before, _) in enumerate(calls):
        if t % 3 == 0:
            assert not before.any()
        else:
            assert torch.equal(before, calls[t - 1][1]) and before.any()


def test_a_step_plays_the_environments_state_and_real_next_state():
    trainer = new_trainer()
    game, faces = trainer.environment, trainer.faces
    for t in range(7):
        state, real = faces.batch(game.state), faces.batch(game.real)
        _, batch = step_and_batch(trainer)
        assert torch.equal(batch.state, state) and torch.equal(batch.real, real)
        if t % 3 < 2:  # inside an episode
            assert torch.equal(batch.next_real, game.real)
            assert torch.equal(faces.batch(game.state), real)


@pytest.mark.parametrize(("fraction", "fresh"), [(0.0, 8), (0.25, 6), (0.5, 4)])
def test_counters(fraction, fresh):
    trainer = new_trainer(replay_fraction=fraction)
    assert trainer.steps == trainer.images_seen == 0
    assert trainer.steps_per_epoch == 20 // fresh
    run(trainer, 3)
    assert trainer.steps == 3
    if not fraction:
        assert trainer.images_seen == 3 * 8


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="too few"):
        MADDPG(small_config(), small_faces(15), CPU)


# Replay


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


# TD targets


@pytest.mark.parametrize("generators", [1, 2])
def test_td_errors_by_hand_with_gamma(generators):
    """td_error is the mean of (Q(s, a) - r - gamma Q'(s', a'))^2, each from the network that it is said to be from."""
    trainer = new_trainer(generators, 1, **FULL)
    run(trainer, 4)
    random = trainer.discriminators[0].random.get_state()
    networks = {agent.name: copy.deepcopy(agent.networks) for agent in trainer.agents}
    targets = {agent.name: copy.deepcopy(agent.targets) for agent in trainer.agents}
    metrics, batch = step_and_batch(trainer)
    judge = trainer.discriminators[0].networks["actor"]  # it has learned before generators ask it

    next_fakes = []
    for i, agent in enumerate(trainer.generators):
        next_z, _ = targets[agent.name]["actor"](batch.real, batch.memory[i])
        next_fakes.append(targets[agent.name]["generator"](next_z))
        target = logsigmoid(judge(batch.images[i])) + 0.9 * targets[agent.name]["critic"](batch.real, next_z)
        error = (networks[agent.name]["critic"](batch.state, batch.z[i]) - target).square().mean()
        assert metrics[f"{agent.name}/td_error"].item() == pytest.approx(error.item(), rel=1e-4)

    name = "discriminator"
    draw = torch.Generator()
    draw.set_state(random)
    logits = torch.stack(batch.logits[0])
    logits = logits + torch.randn(logits.numel(), generator=draw).view_as(logits)
    reward = torch.cat([logsigmoid(logits[0]), logsigmoid(-logits[1:]).flatten()])
    next_images = [trainer.faces.batch(batch.next_real), *next_fakes]
    next_logits = torch.cat([targets[name]["actor"](images) for images in next_images])
    target = reward + 0.9 * targets[name]["critic"](torch.cat(next_images), next_logits[:, None])
    value = networks[name]["critic"](torch.cat([batch.real, *batch.fakes]), logits.view(-1, 1))
    assert metrics[f"{name}/td_error"].item() == pytest.approx((value - target).square().mean().item(), rel=1e-4)


# The plain GAN


def test_a_plain_gan_has_two_networks_that_ascend_their_returns_on_noise():
    trainer = new_trainer(algorithm="gan")
    (generator,), (discriminator,) = trainer.generators, trainer.discriminators
    assert (list(generator.networks), list(discriminator.networks)) == (["generator"], ["actor"])
    batch = trainer.act(trainer.replay.sample(trainer.replayed))
    trainer.play(batch)
    real, fake = batch.logits[0]
    steps = watch_steps(discriminator), watch_steps(generator)
    expected = gradient(-(logsigmoid(real) + logsigmoid(-fake)).mean(), discriminator.networks["actor"])
    discriminator.update(batch.real, batch.fakes, batch.logits[0], batch.names[0], len(batch.real), None, None)
    torch.testing.assert_close(steps[0], {"actor": expected})

    judge, g = discriminator.networks["actor"], generator.networks["generator"]
    expected = gradient(-logsigmoid(judge(g(batch.z[0].detach()))).mean(), g)
    metrics = generator.update(
        batch.state, batch.real, batch.z[0], batch.images[0], batch.policy[0], batch.answers[0], [judge], None, None
    )
    torch.testing.assert_close(steps[1], {"generator": expected})
    assert set(metrics) == {"return", "generator_gradient"}


def test_a_plain_gan_plays_standard_noise():
    trainer = new_trainer(algorithm="gan")
    z = torch.cat([trainer.generators[0].act(trainer.observations["generator"], None)[1] for _ in range(500)])
    assert z.mean().abs() < 0.02 and abs(z.std() - 1) < 0.02
