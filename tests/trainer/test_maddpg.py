"""The trainer: what a step learns from, and in which order."""

import copy

import pytest
import torch
from conftest import FULL, PRECISIONS, differing, gradient, new_trainer, run, step_and_batch, watch_steps, weights
from torch.nn.functional import logsigmoid

from magnet import maddpg

pytestmark = pytest.mark.usefixtures("every_step")


def copy_networks(trainer) -> list[dict]:
    """Copies of each agent's networks, in the order of trainer.agents."""
    return copy.deepcopy([agent.networks for agent in trainer.agents])


def watch_recurrent_states(trainer) -> list[list]:
    """For each generator a list that fills with the recurrent states h_t on which it acts, one a step."""
    states = [[] for _ in trainer.generators]
    for agent, own in zip(trainer.generators, states, strict=True):

        def note(state, recurrent, act=agent.act, own=own):
            own.append(recurrent)
            return act(state, recurrent)

        agent.act = note
    return states


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
    assert set(metrics) == {f"discriminator/{name}" for name in DISCRIMINATOR_METRICS} | {
        f"generator/{name}" for name in GENERATOR_METRICS
    }
    for name, value in metrics.items():
        assert value.shape == () and value.dtype == torch.float32 and not value.requires_grad, name
        assert value.isfinite(), name


def test_the_logged_reward_is_that_of_the_new_rows_before_any_agent_learns():
    trainer = new_trainer(3, 2, lr=0.01, **FULL)
    run(trainer, 2)
    d_as, new = copy_networks(trainer)[3:], slice(6)
    metrics, batch = step_and_batch(trainer)
    real = [d_a["actor"](batch.real)[new] for d_a in d_as]
    fake = [[d_a["actor"](images)[new] for images in batch.played_images] for d_a in d_as]
    for i, agent in enumerate(trainer.generators):
        expected = sum(logsigmoid(logits[i]).mean() for logits in fake) / 2
        assert metrics[f"{agent.name}/reward"].item() == pytest.approx(expected.item(), rel=1e-4)
        later = sum(logsigmoid(a.networks["actor"](batch.played_images[i])[new]).mean() for a in trainer.discriminators)
        assert abs(later / 2 - expected) > 0.01
    for j, agent in enumerate(trainer.discriminators):
        expected = logsigmoid(real[j]).mean() + sum(logsigmoid(-logits).mean() for logits in fake[j]) / 3
        assert metrics[f"{agent.name}/reward"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("critics", ["both", "discriminator"])
def test_generators_learn_from_discriminators_and_critics_that_have_made_this_step_on_all_rows(critics):
    deterministic = {"exploration": 0.0, "epsilon": 0.0, "diversity_weight": 0.0}
    trainer = new_trainer(2, 2, lr=0.01, replay_fraction=0.25, critics=critics, **deterministic)
    run(trainer, 2)
    before, recurrent_states = copy_networks(trainer), watch_recurrent_states(trainer)
    steps = [watch_steps(agent) for agent in trainer.generators]
    _, batch = step_and_batch(trainer)
    updated = [agent.networks for agent in trainer.discriminators]

    for i, agent in enumerate(trainer.generators):

        def expected(key, discriminators=updated, critic=agent.critic, rows=8, i=i):
            actor, generator_network = before[i]["actor"], before[i]["generator"]
            images = generator_network(actor(batch.state, recurrent_states[i][0])[0])
            logits = torch.stack([networks["actor"](images) for networks in discriminators], dim=1)
            value = critic(batch.acts[i].embedding, logits) if critic else logsigmoid(logits).mean(dim=1)
            return gradient(-value[:rows].mean(), before[i][key])

        for key in ("generator", "actor"):
            step = steps[i][key]
            torch.testing.assert_close(step, expected(key), rtol=1e-3, atol=1e-5)
            others = [expected(key, discriminators=before[2:]), expected(key, rows=6)]
            others += [expected(key, critic=before[i]["critic"])] if agent.critic else []
            assert all((step - other).norm() > 0.02 * step.norm() for other in others)


@pytest.mark.parametrize("every", [1, 8])
def test_targets_move_after_all_agents_have_learned_as_far_as_in_single_steps(monkeypatch, every):
    monkeypatch.setattr(maddpg, "TARGETS_EVERY", every)
    trainer = new_trainer(tau=0.25, **FULL)
    before = weights(trainer.agents)
    run(trainer, every - 1)
    assert not any(name.endswith("target") for name in differing(before, weights(trainer.agents)))
    run(trainer, 1)
    after = weights(trainer.agents)
    targets = [name for name in before if name.endswith(" target")]
    assert len(targets) == 5
    for name in targets:
        expected = torch.lerp(after[name.removesuffix(" target")], before[name], 0.75**every)
        torch.testing.assert_close(after[name], expected)


@pytest.mark.parametrize("changes", [{}, {"reward_function": "relativistic", "spectral_norm": True}], ids=str)
def test_metrics_that_take_time_are_of_every_fifth_step_and_change_no_weight(monkeypatch, changes):
    always, at_times = (new_trainer(**FULL | changes) for _ in range(2))
    expected = run(always, 7)
    monkeypatch.setattr(maddpg, "MEASURE_EVERY", 5)
    metrics = run(at_times, 7)
    costly = metrics[0].keys() - metrics[1].keys()
    assert {name.split("/")[1] for name in costly} == {
        "gradient_cosine", "critic_gradient", "actor_gradient", "generator_gradient", "z_correlation", "z_deviation",
    }  # fmt: skip
    for t in range(7):
        cheap = {name: value for name, value in expected[t].items() if name not in costly}
        assert metrics[t] == (cheap if t % 5 else expected[t])
    assert not differing(weights(always.agents), weights(at_times.agents))


def test_r1_is_in_every_kth_step_alone_with_k_times_the_weight():
    trainer = new_trainer(r1=0.5, r1_every=3)
    for t in range(5):
        metrics, batch = step_and_batch(trainer)
        assert batch.r1 == (0 if t % 3 else 3 * 0.5)
        assert ("discriminator/r1" in metrics) == batch.real.requires_grad == (t % 3 == 0)


def test_the_recurrent_state_is_zero_where_an_episode_starts_and_carried_on_inside():
    trainer, carried = new_trainer(2, 1, episode_length=3, replay_fraction=0.25), None
    recurrent_states, new = watch_recurrent_states(trainer), slice(6)
    for t in range(7):
        actors = [networks["actor"] for networks in copy_networks(trainer)[:2]]
        _, batch = step_and_batch(trainer)
        for i, actor in enumerate(actors):
            before = recurrent_states[i][t]
            assert before[new].any() == (t % 3 > 0)
            assert t % 3 == 0 or torch.equal(before[new], carried[i])
            torch.testing.assert_close(batch.acts[i].recurrent, actor(batch.state, before)[1])
        carried = [act.recurrent[new] for act in batch.acts]
