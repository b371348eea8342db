"""The trainer: what a step learns from, and in which order."""

import copy

import pytest
import torch
from conftest import (
    FULL,
    PRECISIONS,
    differing,
    gradient,
    new_trainer,
    overhear,
    run,
    small_config,
    small_faces,
    step_and_batch,
    trainer_on,
    watch_steps,
    weights,
)
from torch.nn.functional import logsigmoid

from magnet import maddpg

pytestmark = pytest.mark.usefixtures("every_step")
TEAMS = pytest.mark.parametrize(("generators", "discriminators"), [(1, 1), (2, 2), (1, 2), (2, 1)])


def networks_of(trainer) -> list[dict]:
    """Copies of each agent's networks, in the order of trainer.agents."""
    return copy.deepcopy([agent.networks for agent in trainer.agents])


def memories_acted_on(trainer) -> list[list]:
    """For each generator a list that fills with the recurrent states h_t with which it acts, one a step."""
    heard = [[] for _ in trainer.generators]
    for agent, recurrents in zip(trainer.generators, heard, strict=True):

        def note(state, memory, act=agent.act, recurrents=recurrents):
            recurrents.append(memory)
            return act(state, memory)

        agent.act = note
    return heard


# One step

DISCRIMINATOR_METRICS = {
    "reward", "accuracy_real", "accuracy_fake", "critic_loss", "gradient_cosine", "critic_gradient", "actor_gradient",
}  # fmt: skip
GENERATOR_METRICS = {
    "reward", "diversity", "z_correlation", "z_deviation",
    "critic_loss", "gradient_cosine", "critic_gradient", "actor_gradient", "generator_gradient",
}  # fmt: skip


@PRECISIONS
def test_a_step_returns_detached_finite_scalars_by_name(precision):
    metrics = new_trainer(precision=precision, **FULL).step()
    for agent, names in (("discriminator", DISCRIMINATOR_METRICS), ("generator", GENERATOR_METRICS)):
        assert {name for name in metrics if name.startswith(agent)} == {f"{agent}/{name}" for name in names}
    for name, value in metrics.items():
        assert value.shape == () and value.dtype == torch.float32 and not value.requires_grad, name
        assert value.isfinite(), name


@TEAMS
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
    assert not torch.allclose(batch.acts[0].policy, batch.acts[1].policy, atol=0.1)
    logits = [torch.cat([one for _, one, _ in outputs]) for outputs in batch.outputs]
    assert not torch.allclose(*logits, atol=1e-3)


def test_each_discriminator_judges_real_images_and_those_that_every_generator_played():
    trainer = new_trainer(2, 2, replay_fraction=0.25)
    run(trainer, 1)
    d_as = networks_of(trainer)[2:]
    _, batch = step_and_batch(trainer)
    for d_a, outputs in zip(d_as, batch.outputs, strict=True):
        for (features, logits, classes), images in zip(outputs, [batch.real, *batch.played_images], strict=True):
            torch.testing.assert_close(features, d_a["actor"].stack(images))
            torch.testing.assert_close(logits, d_a["actor"](images))
            assert classes is None


@TEAMS
def test_the_return_is_the_reward_of_the_states_played_now_before_any_agent_learns(generators, discriminators):
    trainer = new_trainer(generators, discriminators, lr=0.01, **FULL)
    run(trainer, 2)
    d_as, new = networks_of(trainer)[generators:], slice(6)
    metrics, batch = step_and_batch(trainer)
    real = [d_a["actor"](batch.real)[new] for d_a in d_as]
    fake = [[d_a["actor"](images)[new] for images in batch.played_images] for d_a in d_as]
    for i, agent in enumerate(trainer.generators):
        expected = sum(logsigmoid(logits[i]).mean() for logits in fake) / discriminators
        assert metrics[f"{agent.name}/reward"].item() == pytest.approx(expected.item(), rel=1e-4)
        now = sum(logsigmoid(a.networks["actor"](batch.played_images[i])[new]).mean() for a in trainer.discriminators)
        assert abs(now / discriminators - expected) > 0.01
    for j, agent in enumerate(trainer.discriminators):
        expected = logsigmoid(real[j]).mean() + sum(logsigmoid(-one).mean() for one in fake[j]) / generators
        assert metrics[f"{agent.name}/reward"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("critics", ["both", "discriminator"])
def test_generators_learn_from_discriminators_and_critics_that_have_made_this_step_on_all_rows(critics):
    trainer = new_trainer(2, 2, lr=0.01, replay_fraction=0.25, critics=critics)
    run(trainer, 2)
    before, shown = networks_of(trainer), [[], []]
    for agent, z in zip(trainer.generators, shown, strict=True):
        agent.networks["generator"].register_forward_pre_hook(lambda _, inputs, z=z: z.append(inputs[0].detach()))
    steps = [watch_steps(agent) for agent in trainer.generators]
    _, batch = step_and_batch(trainer)

    def expected(i, discriminators, critic):
        (z,), generator_network = shown[i], before[i]["generator"]
        assert len(z) == 8
        outputs = [networks["actor"].discriminate(generator_network(z)) for networks in discriminators]
        objective = sum(logsigmoid(logits) for _, logits, _ in outputs) / 2
        if critic:
            objective = critic(batch.acts[i].embedding, torch.stack([one for _, one, _ in outputs], dim=1))
        return gradient(-objective.mean(), generator_network)

    learned = [agent.networks for agent in trainer.discriminators]
    for i, agent in enumerate(trainer.generators):
        found = steps[i]["generator"]
        torch.testing.assert_close(found, expected(i, learned, agent.critic), rtol=1e-3, atol=1e-6)
        stale = [expected(i, before[2:], agent.critic)]
        if agent.critic:
            stale.append(expected(i, learned, before[i]["critic"]))
        assert all((found - other).norm() > 0.02 * found.norm() for other in stale)


def test_a_discriminators_update_does_not_reach_the_generators():
    trainer = new_trainer()
    batch = trainer.collect(trainer.replay.sample(trainer.replayed_rows))
    trainer.act(batch)
    trainer.play(batch)
    (discriminator,), (generator,) = trainer.discriminators, trainer.generators
    before = weights(trainer.agents)
    batch.next_values = dict.fromkeys(("generator", "discriminator"))
    discriminator.update(batch)
    assert differing(before, weights(trainer.agents)) == {"discriminator/actor", "discriminator/critic"}
    assert all(p.grad is None for network in generator.networks.values() for p in network.parameters())
    assert not any(images.requires_grad for images in batch.played_images)


def test_targets_move_in_every_eighth_step_as_far_as_in_eight(monkeypatch):
    monkeypatch.setattr(maddpg, "TARGETS_EVERY", 8)
    trainer = new_trainer(tau=0.1, **FULL)
    before = weights(trainer.agents)
    run(trainer, 7)
    assert not any(name.endswith("target") for name in differing(before, weights(trainer.agents)))
    run(trainer, 1)
    after = weights(trainer.agents)
    for name in before:
        if not name.endswith("target"):
            expected = torch.lerp(after[name], before[f"{name} target"], 0.9**8)
            torch.testing.assert_close(after[f"{name} target"], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reward_function": "relativistic", "spectral_norm": True},
    ],
    ids=str,
)
def test_metrics_that_take_time_are_of_every_fifth_step_and_change_no_weight(monkeypatch, changes):
    always, at_times = (new_trainer(**FULL | changes) for _ in range(2))
    expected = run(always, 7)
    monkeypatch.setattr(maddpg, "MEASURE_EVERY", 5)
    found = run(at_times, 7)
    assert found[0] == expected[0] and found[5] == expected[5]
    costly = {name for name in found[0] if name not in found[1]}
    assert {name.split("/")[1] for name in costly} == {
        "gradient_cosine", "critic_gradient", "actor_gradient", "generator_gradient", "z_correlation", "z_deviation",
    }  # fmt: skip
    for t in (1, 2, 3, 4, 6):
        assert found[t] == {name: value for name, value in expected[t].items() if name not in costly}
    assert not differing(weights(always.agents), weights(at_times.agents))


def test_targets_move_by_tau_after_all_agents_have_learned():
    trainer = new_trainer(tau=0.25, **FULL)
    before = weights(trainer.agents)
    trainer.step()
    after = weights(trainer.agents)
    for name in before:
        if not name.endswith("target"):
            expected = 0.25 * after[name] + 0.75 * before[f"{name} target"]
            torch.testing.assert_close(after[f"{name} target"], expected)


def test_critics_compute_in_float32_with_bf16_convolutions():
    trainer = new_trainer(precision="bf16", **FULL)
    critic_batches = [(copy.deepcopy(agent.critic), overhear(agent)) for agent in trainer.agents]
    metrics = trainer.step()
    for agent, (critic, (heard,)) in zip(trainer.agents, critic_batches, strict=True):
        assert {value.dtype for value in heard.values()} == {torch.float32}
        error = critic(heard["features"], heard["actions"]) - heard["reward"] - 0.9 * heard["next_value"]
        assert metrics[f"{agent.name}/critic_loss"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("every", [1, 3])
def test_r1_is_in_every_kth_step_alone_with_k_times_the_weight(every):
    trainer = new_trainer(r1=0.5, r1_every=every, critics="generator")
    (discriminator,) = trainer.discriminators
    steps = watch_steps(discriminator)
    for t in range(5):
        d_a = copy.deepcopy(discriminator.networks["actor"])
        metrics, batch = step_and_batch(trainer)
        real = batch.real.detach().requires_grad_()
        logits = d_a(real)
        loss = -(logsigmoid(logits) + logsigmoid(-d_a(batch.played_images[0]))).mean()
        assert ("discriminator/r1" in metrics) == (t % every == 0)
        if t % every == 0:
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            penalty = slope.square().sum(dim=(1, 2, 3)).mean()
            assert metrics["discriminator/r1"].item() == pytest.approx(penalty.item(), rel=1e-3)
            loss = loss + every * 0.5 / 2 * penalty
        torch.testing.assert_close(steps["actor"], gradient(loss, d_a), rtol=1e-3, atol=1e-6)


# Episodes and epochs


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_memory_is_zero_where_an_episode_starts_and_carried_on_inside(fraction):
    trainer, carried = new_trainer(2, 1, episode_length=3, replay_fraction=fraction), None
    heard, new = memories_acted_on(trainer), trainer.new_rows
    for t in range(7):
        actors = [networks["actor"] for networks in networks_of(trainer)[:2]]
        _, batch = step_and_batch(trainer)
        for i, actor in enumerate(actors):
            before = heard[i][t]
            if t % 3 == 0:
                assert not before[:new].any()
            else:
                assert torch.equal(before[:new], carried[i]) and before[:new].any()
            torch.testing.assert_close(batch.acts[i].recurrent, actor(batch.state, before)[1])
        carried = [act.recurrent[:new] for act in batch.acts]


def test_a_step_plays_the_environments_state_and_real_next_state():
    trainer = new_trainer()
    game, faces = trainer.environment, trainer.dataset
    for t in range(7):
        state, real = faces.batch(game.state), faces.batch(game.real)
        _, batch = step_and_batch(trainer)
        assert torch.equal(batch.state, state) and torch.equal(batch.real, real)
        if t % 3 < 2:  # inside an episode
            assert torch.equal(batch.transitions["next_real"], game.real)
            assert torch.equal(faces.batch(game.state), real)


@pytest.mark.parametrize(("fraction", "new"), [(0.0, 8), (0.25, 6), (0.5, 4)])
def test_counters(fraction, new):
    trainer = new_trainer(replay_fraction=fraction)
    assert trainer.steps == trainer.images_seen == 0
    assert trainer.steps_per_epoch == 20 // new
    run(trainer, 3)
    assert trainer.steps == 3 and trainer.images_seen == 3 * 8


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="too few"):
        trainer_on(small_config(), small_faces(15))
