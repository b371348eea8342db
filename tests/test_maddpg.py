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

from magnet.maddpg import MADDPG

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
