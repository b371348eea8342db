"""The generator agent: which networks its update changes, and that each step follows the gradient of an objective that
is written down here once more."""

import pytest
import torch
from conftest import (
    differing,
    gradient,
    new_agents,
    pictures,
    relative_error,
    small_config,
    step_critic,
    watch_steps,
    weights,
)
from torch.nn.functional import cosine_similarity, logsigmoid

from magnet.agents.batch import Batch
from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent
from magnet.support.random_streams import stream

B, NZ = 8, 6
STATE, PLAYED, REAL = 0, 5, 9  # seeds: the states, the played images, the real images beside them
REWARD = torch.linspace(-2, 1, B)  # the critic learns these rewards, not those of the present images

REWARDS = {  # by logits on G's images and on the real ones beside them
    "log": lambda fake, real: logsigmoid(fake),
    "minimax": lambda fake, real: -logsigmoid(-fake),
    "hinge": lambda fake, real: fake,
    "least-squares": lambda fake, real: -((fake - 1) ** 2) / 2,
    "wasserstein": lambda fake, real: fake,
    "relativistic": lambda fake, real: logsigmoid(fake - real),
}


def new_generator(index=0, **changes):
    """Always the same for the same arguments."""
    (agent,) = new_agents(GeneratorAgent, ["generator"], small_config(**changes))
    agent.index = index
    return agent


def new_discriminators(config):
    """The D_a's of a game, always the same."""
    names = [f"d_{i}" for i in range(config.discriminators)]
    return [agent.networks["actor"] for agent in new_agents(DiscriminatorAgent, names, config)]


def act(agent):
    return agent.act(pictures(STATE), agent.initial_recurrent_state(B))


def update_generator(agent, discriminators, next_value=None):
    """One update as the trainer makes it. Returns its metrics. The batch has no other generator's actions."""
    actions, before = act(agent), [None] * agent.index
    real, played = pictures(REAL), pictures(PLAYED)
    outputs = [[actor.discriminate(real), *before, actor.discriminate(played)] for actor in discriminators]
    batch = Batch(
        new_rows=B, transitions={}, state=pictures(STATE), real=real, r1=0.0, acts=[*before, actions],
        policy_images=[*before, agent.networks["generator"](actions.action)], outputs=outputs,
        rewards={agent.name: REWARD}, next_values={agent.name: next_value},
    )  # fmt: skip
    return agent.update(batch, discriminators)


def critic_step(agent, discriminators, next_value):
    """Makes the critic's step. Returns its gradient and the squared TD error at the logits of the played images."""
    actor = agent.networks["actor"]
    embedding = actor.embed(actor.stack(pictures(STATE))).detach()
    logits = torch.stack([one(pictures(PLAYED)).detach() for one in discriminators], dim=1)
    target = REWARD if next_value is None else REWARD + agent.config.gamma * next_value
    loss = ((agent.critic(embedding, logits) - target) ** 2).sum() / B
    return step_critic(agent, loss), loss


def actor_gradients(agent, discriminators):
    """The gradients of G's and G_a's loss, and the values that enter it."""
    config, g, actor = agent.config, agent.networks["generator"], agent.networks.get("actor")
    z = torch.randn(B, NZ, generator=agent.random)
    if actor:
        random, sigma = torch.rand(B, 1, generator=agent.random) < config.epsilon, config.exploration
        policy, _ = actor(pictures(STATE), actor.initial_recurrent_state(B))
        z = torch.where(random, z, (1 - sigma**2) ** 0.5 * policy + sigma * z)
    features = [one.stack(g(z)) for one in discriminators]
    logits = [one.logit(f).squeeze(1) for one, f in zip(discriminators, features, strict=True)]
    real_logits = [one(pictures(REAL)).detach() for one in discriminators]
    rewards = [REWARDS[config.reward_function](*pair) for pair in zip(logits, real_logits, strict=True)]
    reward, values = sum(rewards) / len(discriminators), {}
    objective = reward.mean()
    if agent.critic:
        embedding = actor.embed(actor.stack(pictures(STATE))).detach()
        value = agent.critic(embedding, torch.stack(logits, dim=1))
        objective = value.mean()
        gradients = [torch.cat(torch.autograd.grad(v.sum(), logits, retain_graph=True)) for v in (value, reward)]
        values["gradient_cosine"] = cosine_similarity(*gradients, dim=0)
    if config.specialise:
        pairs = zip(discriminators, features, strict=True)
        chances = torch.stack([one.classifier(f).softmax(dim=1)[:, agent.index] for one, f in pairs])
        values["classification"] = chances.log().mean()
        objective = objective + config.specialise * values["classification"]
    if actor:
        squares = torch.cov(policy.T, correction=0).square()
        values["diversity"] = -(squares.sum() - squares.trace()) / NZ
        objective = objective + config.diversity_weight * values["diversity"]
    keys = agent.networks.keys() & {"generator", "actor"}
    return {key: -gradient(objective, agent.networks[key]) for key in keys}, values


@pytest.mark.parametrize(
    "changes",
    [
        {"diversity_weight": 0.0},
        {"gamma": 0.9},
        {"reward_function": "minimax", "discriminators": 2, "gamma": 0.9, "diversity_weight": 10.0},
        {"reward_function": "hinge", "discriminators": 2},
        {"reward_function": "least-squares", "discriminators": 2},
        {"reward_function": "wasserstein"},
        {"reward_function": "relativistic", "discriminators": 2},
        {"critics": "discriminator", "discriminators": 2, "diversity_weight": 10.0},
        {"critics": "none", "reward_function": "minimax"},
        {"critics": "none", "reward_function": "hinge", "discriminators": 2},
        {"critics": "none", "reward_function": "least-squares"},
        {"critics": "none", "reward_function": "wasserstein", "discriminators": 2},
        {"critics": "none", "reward_function": "relativistic", "discriminators": 2},
        {"specialise": 2.0, "generators": 3, "index": 1, "discriminators": 2},
        {"specialise": 2.0, "generators": 3, "index": 1, "critics": "none"},
        {"algorithm": "gan", "discriminators": 2},
        {"algorithm": "gan", "reward_function": "relativistic", "discriminators": 2},
    ],
    ids=str,
)
def test_the_critic_learns_by_its_td_error_and_g_and_g_a_ascend_q_or_else_the_reward(changes):
    """Diversity and the classifier's reward are added. The actor follows the critic after the critic's step."""
    twin, agent = (new_generator(lr=0.01, **changes) for _ in range(2))
    actors, expected, values = new_discriminators(agent.config), {}, {}
    next_value = torch.linspace(3, -3, B) if agent.config.gamma else None
    if twin.critic:
        expected["critic"], values["critic_loss"] = critic_step(twin, actors, next_value)
    gradients, more = actor_gradients(twin, actors)
    expected |= gradients
    values |= more
    assert set(expected) == set(agent.networks) == set(agent.targets) == set(agent.optimizers)
    steps = watch_steps(agent)
    metrics = update_generator(agent, actors, next_value)
    for key, step in expected.items():
        assert relative_error(steps[key], step) < (1e-4 if key == "critic" else 1e-3), key
        values[f"{key}_gradient"] = step.norm()
    computed = {name: value.item() for name, value in metrics.items() if name not in ("z_correlation", "z_deviation")}
    assert computed == pytest.approx({name: value.item() for name, value in values.items()}, rel=1e-3, abs=1e-5)


# Actions


@pytest.mark.parametrize(("epsilon", "sigma"), [(0.0, 0.0), (0.0, 0.1), (0.4, 0.1), (0.4, 1.0), (1.0, 0.1)])
def test_an_action_is_noise_with_chance_epsilon_and_else_has_noise_of_sigma(epsilon, sigma):
    agent = new_generator(exploration=sigma, epsilon=epsilon)
    action, policy, recurrent, embedding, _ = act(agent)
    draw = stream(agent.config.seed, agent.name)
    noise, random = torch.randn(B, NZ, generator=draw), torch.rand(B, 1, generator=draw) < epsilon
    assert random.any() == (epsilon > 0) and random.all() == (epsilon == 1)
    torch.testing.assert_close(action, torch.where(random, noise, (1 - sigma**2) ** 0.5 * policy + sigma * noise))
    assert action.shape == (B, NZ) and action.requires_grad and policy.requires_grad
    assert not recurrent.requires_grad and not embedding.requires_grad


# Routing and metrics


def test_an_update_changes_the_agents_own_three_networks_alone_and_leaves_no_gradient():
    config = small_config(discriminators=2, generators=2, specialise=1.0)
    agents = new_agents(GeneratorAgent, ["g_0", "g_1"], config) + new_agents(DiscriminatorAgent, ["d_0", "d_1"], config)
    before = weights(agents)
    update_generator(agents[0], [agent.networks["actor"] for agent in agents[2:]])
    assert differing(before, weights(agents)) == {"g_0/actor", "g_0/generator", "g_0/critic"}
    parameters = [p for agent in agents for network in agent.networks.values() for p in network.parameters()]
    assert all(p.grad is None and p.requires_grad for p in parameters)


def test_z_correlation_and_z_deviation_by_hand():
    agent = new_generator()
    actor = agent.networks["actor"]
    correlations = torch.corrcoef(act(agent).policy.detach().T).abs()
    with torch.no_grad():
        actor.normalise.running_var.copy_(torch.arange(1.0, NZ + 1) ** 2)
        actor.normalise.momentum = 0.0
    metrics = update_generator(agent, new_discriminators(agent.config))
    assert metrics["z_correlation"].item() == pytest.approx((correlations.sum().item() - NZ) / NZ / (NZ - 1), rel=1e-3)
    assert metrics["z_deviation"].item() == pytest.approx((NZ + 1) / 2)
