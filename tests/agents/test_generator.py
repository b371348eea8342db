"""The generator agent: what its update changes, and that each of its steps follows the gradient that autograd gives for
an objective that is written down here once more."""

import pytest
import torch
from conftest import CPU, differing, gradient, new_agents, pictures, relative_error, small_config, watch_steps, weights
from torch.nn.functional import cosine_similarity, logsigmoid

from magnet.agents.batch import Batch
from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent
from magnet.support.random_streams import stream

B, NZ = 8, 6
CRITICS = pytest.mark.parametrize("critics", ["both", "none"])
DISCRIMINATORS = pytest.mark.parametrize("discriminators", [1, 2])
STATE, PLAYED, REAL = 0, 5, 9  # seeds: the states, the images that were played, the real images beside them
REWARD = torch.linspace(-2, 1, B)  # what the critic is told, unlike what the present images earn

REWARDS = {  # of logits on G's images and on the real ones beside them
    "log": lambda fake, real: logsigmoid(fake),
    "minimax": lambda fake, real: -logsigmoid(-fake),
    "hinge": lambda fake, real: fake,
    "least-squares": lambda fake, real: -((fake - 1) ** 2) / 2,
    "wasserstein": lambda fake, real: fake,
    "relativistic": lambda fake, real: logsigmoid(fake - real),
}


def new_generator(**changes):
    """Always the same for the same `changes`."""
    return new_agents(GeneratorAgent, ["generator"], small_config(**changes))[0]


def new_discriminators(count, /, **changes):
    """The D_a of `count` agents, always the same."""
    agents = new_agents(DiscriminatorAgent, [f"d_{i}" for i in range(count)], small_config(**changes))
    return [agent.networks["actor"] for agent in agents]


def update_generator(agent, discriminators, next_value=None):
    """One update as the trainer makes it. Returns its metrics."""
    act = agent.act(pictures(STATE), agent.initial_recurrent_state(B))
    return agent.update(batch_of(act, agent, discriminators, next_value), discriminators)


def batch_of(act, agent, discriminators, next_value=None):
    """The batch of the trainer in which `agent` has acted; of the generators before it nothing is in it."""
    real, played, before = pictures(REAL), pictures(PLAYED), [None] * agent.index
    outputs = [[actor.discriminate(real), *before, actor.discriminate(played)] for actor in discriminators]
    return Batch(
        new_rows=B, transitions={}, state=pictures(STATE), real=real, r1=0.0, acts=[*before, act],
        policy_images=[*before, agent.networks["generator"](act.action)], outputs=outputs,
        rewards={agent.name: REWARD}, next_values={agent.name: next_value},
    )  # fmt: skip


def mean_squared_td_error(agent, discriminators, next_value=None):
    """The squared TD error, mean over the batch, of G_c at the logits of the played images, with its graph."""
    actor = agent.networks["actor"]
    seen = actor.embed(actor.stack(pictures(STATE))).detach()
    logits = torch.stack([one(pictures(PLAYED)).detach() for one in discriminators], dim=1)
    target = REWARD if next_value is None else REWARD + agent.config.gamma * next_value
    return ((agent.networks["critic"](seen, logits) - target) ** 2).sum() / B


def expected_actors_step(agent, discriminators):
    """Of an agent like the one that learns: the gradients of G's and G_a's loss, and the values that enter it."""
    config, actor = agent.config, agent.networks["actor"]
    noise = torch.randn(B, NZ, generator=agent.random)
    random, sigma = torch.rand(B, 1, generator=agent.random) < config.epsilon, config.exploration
    policy, _ = actor(pictures(STATE), actor.initial_recurrent_state(B))
    explored = (1 - sigma**2) ** 0.5 * policy + sigma * noise
    images = agent.networks["generator"](torch.where(random, noise, explored))
    features = [one.stack(images) for one in discriminators]
    logits = [one.logit(f).squeeze(1) for one, f in zip(discriminators, features, strict=True)]
    reals = [one(pictures(REAL)).detach() for one in discriminators]
    reward = sum(REWARDS[config.reward_function](*pair) for pair in zip(logits, reals, strict=True)) / len(
        discriminators
    )
    objective = reward.mean()
    found = {}
    if agent.critic:
        seen = actor.embed(actor.stack(pictures(STATE))).detach()
        value = agent.networks["critic"](seen, torch.stack(logits, dim=1))
        objective = value.mean()
        gradients = [torch.stack(torch.autograd.grad(v.sum(), logits, retain_graph=True)) for v in (value, reward)]
        found["gradient_cosine"] = cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0)
    if config.specialise:
        pairs = zip(discriminators, features, strict=True)
        chances = torch.stack([one.classifier(f).softmax(dim=1)[:, agent.index] for one, f in pairs])
        found["classification"] = chances.log().mean()
        objective = objective + config.specialise * found["classification"]
    product = torch.corrcoef(policy[::2].T) * torch.corrcoef(policy[1::2].T)
    found["diversity"] = -(product.sum() - product.trace()) / NZ
    objective = objective + config.diversity_weight * found["diversity"]
    return {key: -gradient(objective, agent.networks[key]) for key in ("generator", "actor")}, found


def check_update(discriminators, index=0, **changes):
    """That one update of an agent with `changes` makes the steps that are expected of it. Returns its metrics."""
    changes = {"discriminators": discriminators, "lr": 0.01} | changes
    actors = new_discriminators(discriminators, **changes)
    twin, agent = new_generator(**changes), new_generator(**changes)
    twin.index = agent.index = index
    if twin.critic:  # which learns first: the actor follows the critic after its step
        loss = mean_squared_td_error(twin, actors)
        for p, g in zip(twin.critic.parameters(), torch.autograd.grad(loss, twin.critic.parameters()), strict=True):
            p.grad = g
        twin.optimizers["critic"].step()
    expected, values = expected_actors_step(twin, actors)
    steps = watch_steps(agent)
    metrics = update_generator(agent, actors)
    for key, step in expected.items():
        assert relative_error(steps[key], step) < 1e-3, key
        assert metrics[f"{key}_gradient"].item() == pytest.approx(step.norm().item(), rel=1e-3)
    assert {name: metrics[name].item() for name in values} == pytest.approx(
        {name: value.item() for name, value in values.items()}, rel=1e-3, abs=1e-5
    )
    return metrics


# Actions


def test_without_exploration_the_action_is_the_policys():
    agent = new_generator(exploration=0.0, epsilon=0.0)
    action, policy, *_ = agent.act(pictures(STATE), agent.initial_recurrent_state(B))
    assert torch.equal(action, policy)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_an_action_is_noise_with_chance_epsilon_and_else_has_noise_of_sigma(epsilon, sigma):
    agent = new_generator(exploration=sigma, epsilon=epsilon)
    action, policy, *_ = agent.act(pictures(STATE), agent.initial_recurrent_state(B))
    draw = stream(agent.config.seed, agent.name)
    noise, random = torch.randn(B, NZ, generator=draw), torch.rand(B, 1, generator=draw) < epsilon
    assert random.any() == (epsilon > 0) and random.all() == (epsilon == 1)
    explored = (1 - sigma**2) ** 0.5 * policy + sigma * noise
    torch.testing.assert_close(action, torch.where(random, noise, explored))
    assert action.shape == policy.shape == (B, NZ) and action.requires_grad and policy.requires_grad


def test_memory_and_what_the_actor_sees_come_without_their_graph():
    agent, state = new_generator(), pictures(STATE)
    zeros, actor = agent.initial_recurrent_state(B), agent.networks["actor"]
    _, _, memory, seen, _ = agent.act(state, zeros)
    assert torch.equal(memory, actor(state, zeros)[1].detach()) and not memory.requires_grad
    assert torch.equal(seen, actor.embed(actor.stack(state)).detach()) and not seen.requires_grad


# Updates


def test_a_generators_update_changes_its_own_three_networks_alone_and_leaves_no_gradient():
    config = small_config(discriminators=2, generators=2, specialise=1.0)
    agents = new_agents(GeneratorAgent, ["g_0", "g_1"], config) + new_agents(DiscriminatorAgent, ["d_0", "d_1"], config)
    discriminators = [agent.networks["actor"] for agent in agents[2:]]
    before = weights(agents)
    update_generator(agents[0], discriminators)
    assert differing(before, weights(agents)) == {"g_0/actor", "g_0/generator", "g_0/critic"}
    parameters = [p for agent in agents for network in agent.networks.values() for p in network.parameters()]
    assert all(p.grad is None and p.requires_grad for p in parameters)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
@DISCRIMINATORS
def test_g_c_learns_by_its_td_error_at_the_features_of_the_played_images(gamma, discriminators):
    changes = {"gamma": gamma, "discriminators": discriminators}
    agent, actors = new_generator(**changes), new_discriminators(discriminators)
    next_value = torch.linspace(3, -3, B) if gamma else None
    loss = mean_squared_td_error(agent, actors, next_value)
    expected = gradient(loss, agent.critic)
    steps = watch_steps(agent)
    metrics = update_generator(agent, actors, next_value)
    assert relative_error(steps["critic"], expected) < 1e-4
    assert metrics["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["critic_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-4)


@CRITICS
@DISCRIMINATORS
@pytest.mark.parametrize("diversity_weight", [0.0, 10.0])
def test_g_and_g_a_ascend_q_or_else_the_reward_and_diversity(critics, discriminators, diversity_weight):
    metrics = check_update(discriminators, critics=critics, diversity_weight=diversity_weight)
    assert ("gradient_cosine" in metrics) == (critics == "both")


@CRITICS
@DISCRIMINATORS
@pytest.mark.parametrize("kind", REWARDS)
def test_every_reward_function_reaches_g_and_g_a(critics, discriminators, kind):
    check_update(discriminators, critics=critics, reward_function=kind)


@CRITICS
@DISCRIMINATORS
def test_generators_ascend_the_log_probability_that_the_classifier_names_them(critics, discriminators):
    metrics = check_update(discriminators, index=1, critics=critics, generators=3, specialise=2.0)
    assert metrics["classification"] < 0


def test_with_a_critic_the_actor_follows_it_and_not_the_reward_function():
    """Another reward function for the actor alone: neither rewards nor critic change, nor do the steps of G and G_a."""
    steps = []
    for kind in ("log", "hinge"):
        agent = new_generator(reward_function=kind)
        steps.append(watch_steps(agent))
        update_generator(agent, new_discriminators(1))
    for key in ("critic", "generator", "actor"):
        assert torch.equal(steps[0][key], steps[1][key])


def test_z_correlation_and_z_deviation_by_hand():
    agent, (discriminator,) = new_generator(), new_discriminators(1)
    policy = agent.networks["actor"](pictures(STATE), agent.initial_recurrent_state(B))[0]
    correlations = torch.corrcoef(policy.T).abs()
    with torch.no_grad():
        agent.networks["actor"].normalise.running_var.copy_(torch.arange(1.0, NZ + 1) ** 2)
        agent.networks["actor"].normalise.momentum = 0.0
    metrics = update_generator(agent, [discriminator])
    assert metrics["z_correlation"].item() == pytest.approx((correlations.sum().item() - NZ) / NZ / (NZ - 1), rel=1e-3)
    assert metrics["z_deviation"].item() == pytest.approx((NZ + 1) / 2)


# Without a critic


@DISCRIMINATORS
def test_without_a_critic_there_is_none_anywhere(discriminators):
    agent = new_generator(critics="discriminator", discriminators=discriminators)
    assert agent.critic is None
    for part in (agent.networks, agent.targets, agent.optimizers):
        assert set(part) == {"generator", "actor"}
    assert set(update_generator(agent, new_discriminators(discriminators))) == {
        "generator_gradient", "actor_gradient", "diversity", "z_correlation", "z_deviation",
    }  # fmt: skip


@pytest.mark.parametrize("kind", REWARDS)
@DISCRIMINATORS
def test_in_a_plain_gan_g_alone_ascends_the_return_of_images_of_noise(kind, discriminators):
    agent, actors = new_generator(algorithm="gan", reward_function=kind), new_discriminators(discriminators)
    assert set(agent.networks) == set(agent.targets) == set(agent.optimizers) == {"generator"}
    z = torch.randn(B, NZ, generator=stream(agent.config.seed, agent.name))
    act = agent.act(pictures(STATE), agent.initial_recurrent_state(B))
    assert torch.equal(act.action, z) and act.policy is act.embedding is None and act.recurrent.shape == (B, 0)

    images = agent.networks["generator"](z)
    reward = sum(REWARDS[kind](actor(images), actor(pictures(REAL)).detach()) for actor in actors) / discriminators
    expected = -gradient(reward.mean(), agent.networks["generator"])
    steps = watch_steps(agent)
    metrics = agent.update(batch_of(act, agent, actors), actors)
    assert relative_error(steps["generator"], expected) < 1e-4
    assert set(metrics) == {"generator_gradient"}


def test_a_generators_critic_takes_what_g_a_sees_and_the_logits_of_all_discriminators():
    config = small_config(discriminators=3)
    agent = GeneratorAgent("generator", config, CPU)
    assert agent.critic.embed.in_features == config.nz
    assert agent.critic.embed_action[0].in_features == 3
