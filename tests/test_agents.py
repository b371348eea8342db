"""The two kinds of agent: what each update changes, and that every step has the direction that autograd gives for the
objective written down here once more."""

import pytest
import torch
from conftest import CPU, differing, gradient, relative_error, small_config, watch_steps, weights
from torch import nn
from torch.nn.functional import logsigmoid

from magnet import returns
from magnet.agent import frozen, soft_update
from magnet.discriminator_agent import DiscriminatorAgent
from magnet.generator_agent import GeneratorAgent
from magnet.randomness import stream

B, NZ = 8, 6
LAMBDAS = pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])


def new_agents(kind, names, config):
    """Agents of a kind whose networks differ, their targets too, and whose logits and pictures are not all near 0."""
    torch.manual_seed(0)
    agents = [kind(name, config, CPU) for name in names]
    for agent in agents:
        for network in (*agent.networks.values(), *agent.targets.values()):
            for layer in network.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    nn.init.normal_(layer.weight, std=2 / layer.weight[0].numel() ** 0.5)
    return agents


def new_discriminator(**changes):
    return new_agents(DiscriminatorAgent, ["discriminator"], small_config(**changes))[0]


def new_generator(**changes):
    return new_agents(GeneratorAgent, ["generator"], small_config(**changes))[0]


def pictures(seed, count=B):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Helpers


def test_frozen_lets_gradients_pass_and_leaves_none():
    judge, x = nn.Linear(3, 1), torch.ones(2, 3, requires_grad=True)
    with frozen([judge]):
        judged = judge(x)
    judged.sum().backward()
    assert torch.equal(x.grad, judge.weight.detach().expand(2, 3))
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())


def test_frozen_is_undone_after_an_exception():
    judge = nn.Linear(3, 1)
    with pytest.raises(ZeroDivisionError), frozen([judge]):
        assert not any(p.requires_grad for p in judge.parameters())
        raise ZeroDivisionError
    assert all(p.requires_grad for p in judge.parameters())


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_soft_update_moves_weights_by_tau_and_copies_statistics(tau):
    torch.manual_seed(0)
    target, online = (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2))
    online(torch.randn(5, 3))  # its statistics move on
    before = [p.detach().clone() for p in target.parameters()]
    soft_update(target, online, tau)
    for moved, old, new in zip(target.parameters(), before, online.parameters(), strict=True):
        torch.testing.assert_close(moved, tau * new + (1 - tau) * old)
        if tau in (0, 1):
            assert torch.equal(moved, new if tau else old)
    for moved, new in zip(target.buffers(), online.buffers(), strict=True):
        assert torch.equal(moved, new)
    assert online[1].running_mean.abs().min() > 0


def test_soft_update_refuses_networks_of_different_length():
    with pytest.raises(RuntimeError):
        soft_update(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), 0.5)


@pytest.mark.parametrize("new_agent", [new_discriminator, new_generator])
def test_every_target_moves_by_tau(new_agent):
    agent = new_agent(tau=0.25)
    before = weights([agent])
    agent.update_targets()
    after = weights([agent])
    for key in agent.networks:
        online, target = before[f"{agent.name}/{key}"], before[f"{agent.name}/{key} target"]
        torch.testing.assert_close(after[f"{agent.name}/{key} target"], 0.25 * online + 0.75 * target)
        assert torch.equal(after[f"{agent.name}/{key}"], online)


@pytest.mark.parametrize("kind", [DiscriminatorAgent, GeneratorAgent])
def test_targets_begin_as_copies_that_no_gradient_reaches(kind):
    agent = kind("agent", small_config(), CPU)
    at_start = weights([agent])
    for key in agent.networks:
        assert torch.equal(at_start[f"agent/{key}"], at_start[f"agent/{key} target"])
        assert not any(p.requires_grad for p in agent.targets[key].parameters())


# The discriminator agent


def update_discriminator(agent, generators, next_value=None):
    """One update on real images and those of `generators` generators. Returns its metrics."""
    real, fakes = pictures(0), [pictures(1 + i) for i in range(generators)]
    return agent.update(real, fakes, *agent.act(real, fakes), len(real), next_value, None)


def discriminator_objectives(agent, generators, next_value):
    """What D_a ascends: the return and Q, both a mean over real images plus the mean over fakes; and D_c's loss."""
    real, fakes = pictures(0), [pictures(1 + i) for i in range(generators)]
    images, actor, critic = torch.cat([real, *fakes]), agent.networks["actor"], agent.networks["critic"]
    logits = torch.cat([actor(batch) for batch in (real, *fakes)])
    share = torch.cat([torch.full((B,), 1 / B), torch.full((generators * B,), 1 / (generators * B))])

    def reward(logits):
        return torch.cat([logsigmoid(logits[:B]), logsigmoid(-logits[B:])])

    draw = torch.Generator()
    draw.set_state(agent.random.get_state())
    explored = (logits + torch.randn(logits.shape, generator=draw)).detach().requires_grad_()
    (return_slope,) = torch.autograd.grad(reward(explored).sum(), explored)
    value = critic(images, explored[:, None])
    (slope,) = torch.autograd.grad(value.sum(), explored, create_graph=True)
    target = reward(explored).detach() + (0 if next_value is None else agent.config.gamma * next_value)
    td_error = (value - target).square().mean()
    loss = td_error + agent.config.slope_weight * (slope - return_slope).square().mean()
    cosine = (slope * return_slope).sum() / slope.norm() / return_slope.norm()
    return (share * reward(logits)).sum(), (share * critic(images, logits[:, None])).sum(), loss, td_error, cosine


@pytest.mark.parametrize("generators", [1, 2])
def test_the_discriminator_judges_real_and_each_generators_images_in_passes_of_their_own(generators):
    agent, real, fakes = new_discriminator(), pictures(0), [pictures(1 + i) for i in range(generators)]
    logits, _ = agent.act(real, fakes)
    assert len(logits) == 1 + generators
    for row, images in zip(logits, (real, *fakes), strict=True):
        assert torch.equal(row, agent.networks["actor"](images))
    together = agent.networks["actor"](torch.cat([real, *fakes]))
    assert not torch.allclose(torch.cat(logits), together, atol=1e-3)


def test_a_discriminators_update_changes_its_own_actor_and_critic_alone():
    config = small_config(lambda_discriminator=0.5)
    agents = new_agents(DiscriminatorAgent, ["d_0", "d_1"], config) + new_agents(GeneratorAgent, ["g"], config)
    before = weights(agents)
    update_discriminator(agents[0], generators=2)
    assert differing(before, weights(agents)) == {"d_0/actor", "d_0/critic"}
    assert all(p.grad is None for agent in agents for net in agent.networks.values() for p in net.parameters())


@LAMBDAS
@pytest.mark.parametrize("generators", [1, 2])
def test_d_a_ascends_lambda_of_the_return_and_the_rest_of_q(lam, generators):
    agent = new_discriminator(lambda_discriminator=lam)
    earned, value, *_ = discriminator_objectives(agent, generators, None)
    expected = -gradient(lam * earned + (1 - lam) * value, agent.networks["actor"])
    steps = watch_steps(agent)
    metrics = update_discriminator(agent, generators)
    assert relative_error(steps["actor"], expected) < 1e-4
    assert metrics["actor_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-4)


@pytest.mark.parametrize("generators", [1, 2])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_d_a_descends_the_penalties_beside(generators, spectral_norm):
    def steps_gradient(**changes):
        agent = new_discriminator(spectral_norm=spectral_norm, **changes)
        steps = watch_steps(agent)
        metrics = update_discriminator(agent, generators)
        return steps["actor"], metrics

    def penalty(agent, images, norm):
        images = images.requires_grad_()
        (slope,) = torch.autograd.grad(agent.networks["actor"](images).sum(), images, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - norm) ** 2).mean()

    plain, _ = steps_gradient()
    real, fakes = pictures(0), [pictures(1 + i) for i in range(generators)]

    agent = new_discriminator(spectral_norm=spectral_norm)
    agent.act(real, fakes)  # spectral_norm: a power iteration for each batch, as in the update
    expected = gradient(penalty(agent, real, 0.0), agent.networks["actor"])
    found, metrics = steps_gradient(r1=3.0)
    assert relative_error(found - plain, 3 / 2 * expected) < 1e-3
    assert metrics["r1"].item() == pytest.approx(penalty(agent, real, 0.0).item(), rel=1e-2)

    agent = new_discriminator(spectral_norm=spectral_norm)
    agent.act(real, fakes)
    torch.randn((1 + generators) * B, generator=agent.random)  # the critic's noise comes first
    share = torch.rand(B, 1, 1, 1, generator=agent.random)
    between = torch.cat([real + share * (fake - real) for fake in fakes])
    expected = gradient(penalty(agent, between, 1.0), agent.networks["actor"])
    found, _ = steps_gradient(gradient_penalty=10.0)
    assert relative_error(found - plain, 10 * expected) < 1e-3


@pytest.mark.parametrize(("slope_weight", "gamma"), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.9)])
@pytest.mark.parametrize("generators", [1, 2])
def test_d_c_is_taught_value_and_slope_of_the_return_at_explored_logits(slope_weight, gamma, generators):
    agent = new_discriminator(slope_weight=slope_weight, gamma=gamma)
    next_value = torch.linspace(-3, 3, (1 + generators) * B) if gamma else None  # of real, then of each generator's
    *_, loss, td_error, cosine = discriminator_objectives(agent, generators, next_value)
    expected = gradient(loss, agent.networks["critic"])
    steps = watch_steps(agent)
    metrics = update_discriminator(agent, generators, next_value.chunk(1 + generators) if gamma else None)
    assert relative_error(steps["critic"], expected) < 1e-4
    assert metrics["critic_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-4)
    assert metrics["td_error"].item() == pytest.approx(td_error.item(), rel=1e-4)
    assert metrics["slope_cosine"].item() == pytest.approx(cosine.item(), abs=1e-4)


def test_the_discriminators_metrics_by_hand():
    agent, real, fakes = new_discriminator(), pictures(0, count=4), [pictures(1, count=4)]
    chances = torch.tensor([[0.6, 0.9, 0.8, 0.2], [0.1, 0.5, 0.7, 0.9]])
    acted, names = agent.act(real, fakes)
    logits = [one * 0 + chance.logit() for one, chance in zip(acted, chances, strict=True)]
    metrics = agent.update(real, fakes, logits, names, len(real), None, None)
    earned = (chances[0].log() + (1 - chances[1]).log()).mean().item()
    assert metrics["return"].item() == pytest.approx(earned)
    assert metrics["from_equilibrium"].item() == pytest.approx(earned + torch.tensor(4).log().item())
    assert metrics["accuracy_real"].item() == 3 / 4
    assert metrics["accuracy_fake"].item() == 2 / 4  # a half chance is called fake


@pytest.mark.parametrize("generators", [1, 2])
def test_the_discriminators_next_value_is_that_of_its_targets(generators):
    agent, real, fakes = new_discriminator(), pictures(0), [pictures(1 + i) for i in range(generators)]
    logits = torch.cat([agent.targets["actor"](images) for images in (real, *fakes)])
    expected = agent.targets["critic"](torch.cat([real, *fakes]), logits[:, None])
    found = torch.cat(agent.next_value(real, fakes, agent.next_logits(real, fakes), None))
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


def test_with_several_answers_every_fake_counts_alike_and_keeps_its_next_value():
    """Real (B,), fakes of 2 answers to the first 5 states and 3 replayed ones: 13, with the next values of 8 states."""
    agent = new_discriminator(gamma=0.9, lambda_discriminator=0.5)
    real, fake = pictures(0), pictures(1, 13)
    next_value = [torch.linspace(-3, 3, B), torch.linspace(5, 6, B)]
    states = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7]
    draw = torch.Generator()
    draw.set_state(agent.random.get_state())
    actor, critic = agent.networks["actor"], agent.networks["critic"]
    logits = torch.cat([actor(real), actor(fake)])
    side, share = torch.tensor([1.0] * B + [-1.0] * 13), torch.tensor([1 / B] * B + [1 / 13] * 13)
    value = critic(torch.cat([real, fake]), logits[:, None])
    expected = -gradient((share * (logsigmoid(side * logits) + value) / 2).sum(), actor)
    explored = logits.detach() + torch.randn(logits.shape, generator=draw)
    target = logsigmoid(side * explored) + 0.9 * torch.cat([next_value[0], next_value[1][states]])
    td_error = (critic(torch.cat([real, fake]), explored[:, None]) - target).square().mean()

    steps = watch_steps(agent)
    metrics = agent.update(real, [fake], *agent.act(real, [fake]), 5, next_value, None)
    assert relative_error(steps["actor"], expected) < 1e-4
    assert metrics["td_error"].item() == pytest.approx(td_error.item(), rel=1e-4)


# The generator agent

FRESH = 5  # rows played now, of B; the others are replayed


def actions(agent, replayed=2):
    """What the trainer hands to `update`: policy and answers of the fresh rows, and z of all actions, a leaf."""
    policy, answers, _ = agent.act(pictures(0, FRESH), agent.networks["actor"].first_memory(FRESH))
    old = torch.randn(B - FRESH, NZ, generator=torch.Generator().manual_seed(replayed))
    return policy, answers, torch.cat([answers.detach(), old]).requires_grad_()


def update_generator(agent, judges, next_value=None, replayed=2):
    """One update on fresh rows and others that the seed `replayed` gives. Returns its metrics."""
    policy, answers, z = actions(agent, replayed)
    state = torch.cat([pictures(0, FRESH), pictures(replayed, B - FRESH)])
    return agent.update(
        state, pictures(9), z, agent.networks["generator"](z), policy, answers, judges, next_value, None
    )  # fmt: skip


def generator_objectives(agent, judges, next_value=None):
    """Per row the return and Q of actions that lead back to G_a; z's diversity; G_c's loss."""
    random = agent.random.get_state()
    policy, answers, z = actions(agent)
    agent.random.set_state(random)
    critic, config = agent.networks["critic"], agent.config
    if next_value is not None:
        next_value = torch.cat([next_value[:FRESH].repeat(config.answers), next_value[FRESH:]])

    def q(actions):  # the statistics of BatchNorm are those of the B states, each taken once
        encoded = critic.encode(torch.cat([pictures(0, FRESH), pictures(2, B - FRESH)]))
        return critic.value(torch.cat([encoded[:FRESH].repeat(config.answers, 1), encoded[FRESH:]]), actions)

    def reward(z):
        logits = [judge(agent.networks["generator"](z)) for judge in judges]
        earned = [-logsigmoid(-x) if config.returns == "minimax" else logsigmoid(x) for x in logits]
        return sum(earned) / len(judges)

    (return_slope,) = torch.autograd.grad(reward(z).sum(), z)
    value = q(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    td_error = (value - reward(z).detach() - (0 if next_value is None else config.gamma * next_value)).square().mean()
    loss = td_error + config.slope_weight * (slope - return_slope).square().sum() / len(z)
    cosine = (slope * return_slope).sum() / slope.norm() / return_slope.norm()

    led_back = torch.cat([answers[:FRESH], z[FRESH:].detach()])
    return {
        "earned": reward(led_back), "value": q(led_back), "diversity": returns.diversity_return(policy),
        "loss": loss, "td_error": td_error, "cosine": cosine,
    }  # fmt: skip


def new_judges(count=2):
    agents = new_agents(DiscriminatorAgent, [f"d_{i}" for i in range(count)], small_config())
    return [agent.networks["actor"] for agent in agents]


def test_without_exploration_the_generator_follows_its_policy():
    agent = new_generator(exploration=0.0)
    policy, explored, _ = agent.act(pictures(0), agent.networks["actor"].first_memory(B))
    assert torch.equal(policy, explored)


@pytest.mark.parametrize(("largest", "answers"), [(0.3, 1), (1.0, 1), (0.3, 3)])
def test_first_answers_are_explored_with_a_sigma_each_and_the_others_are_noise(largest, answers):
    agent = new_generator(exploration=largest, answers=answers)
    policy, found, memory = agent.act(pictures(0), agent.networks["actor"].first_memory(B))
    draw = stream(agent.config.seed, agent.name)
    sigma, noise = torch.rand(B, 1, generator=draw) * largest, torch.randn(answers * B, NZ, generator=draw)
    torch.testing.assert_close(found[:B], (1 - sigma**2).sqrt() * policy + sigma * noise[:B])
    assert torch.equal(found[B:], noise[B:])
    assert policy.shape == (B, NZ) and found.requires_grad and policy.requires_grad
    assert not memory.requires_grad


@pytest.mark.parametrize("judges", [1, 2])
def test_improved_answers_lie_up_the_slope_of_the_mean_logit_and_nobody_learns_from_the_way_there(judges):
    agent, judges = new_generator(latent_step=0.01), new_judges(judges)
    z = torch.randn(B, NZ, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logit = sum(judge(agent.networks["generator"](z)) for judge in judges) / len(judges)
    (slope,) = torch.autograd.grad(logit.sum(), z)
    found = agent.improved(z, judges)
    torch.testing.assert_close(found, z.detach() + returns.latent_step(slope, 0.01))
    better = sum(judge(agent.networks["generator"](found)) for judge in judges) / len(judges)
    assert better.sum() > logit.sum()
    assert not found.requires_grad and z.grad is None
    networks = [agent.networks["generator"], *judges]
    assert all(p.grad is None and p.requires_grad for network in networks for p in network.parameters())


def test_memory_is_carried_on_without_its_graph():
    agent, state = new_generator(), pictures(0)
    zeros = agent.networks["actor"].first_memory(B)
    *_, memory = agent.act(state, zeros)
    assert torch.equal(memory, agent.networks["actor"](state, zeros)[1].detach()) and not memory.requires_grad


def test_a_generators_update_changes_its_own_three_networks_alone_and_leaves_no_gradient():
    config = small_config(lambda_generator=0.5)
    agents = new_agents(GeneratorAgent, ["g_0", "g_1"], config) + new_agents(DiscriminatorAgent, ["d_0", "d_1"], config)
    judges = [agent.networks["actor"] for agent in agents[2:]]
    before = weights(agents)
    update_generator(agents[0], judges)
    assert differing(before, weights(agents)) == {"g_0/actor", "g_0/generator", "g_0/critic"}
    assert all(p.grad is None for agent in agents for net in agent.networks.values() for p in net.parameters())
    assert all(p.requires_grad for judge in judges for p in judge.parameters())


@pytest.mark.parametrize("kind", ["log", "minimax"])
@pytest.mark.parametrize(("judges", "answers"), [(1, 1), (2, 1), (2, 3)])
def test_g_ascends_its_return_on_fresh_and_replayed_rows(judges, kind, answers):
    agent, judges = new_generator(returns=kind, answers=answers), new_judges(judges)
    earned = generator_objectives(agent, judges)["earned"]
    expected = -gradient(earned.mean(), agent.networks["generator"])
    steps = watch_steps(agent)
    metrics = update_generator(agent, judges)
    assert relative_error(steps["generator"], expected) < 1e-4
    assert metrics["return"].item() == pytest.approx(earned[:FRESH].mean().item(), rel=1e-5)  # of what was played
    assert metrics["generator_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-4)


@pytest.mark.parametrize(("slope_weight", "gamma"), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.9)])
@pytest.mark.parametrize(("judges", "answers"), [(1, 1), (2, 1), (2, 3)])
def test_g_c_is_taught_value_and_slope_of_the_return_at_explored_actions(slope_weight, gamma, judges, answers):
    agent, judges = new_generator(slope_weight=slope_weight, gamma=gamma, answers=answers), new_judges(judges)
    next_value = torch.linspace(-3, 3, B) if gamma else None
    expected = generator_objectives(agent, judges, next_value)
    step = gradient(expected["loss"], agent.networks["critic"])
    steps = watch_steps(agent)
    metrics = update_generator(agent, judges, next_value)
    assert relative_error(steps["critic"], step) < 1e-4
    assert metrics["critic_gradient"].item() == pytest.approx(step.norm().item(), rel=1e-4)
    assert metrics["td_error"].item() == pytest.approx(expected["td_error"].item(), rel=1e-4)
    assert metrics["slope_cosine"].item() == pytest.approx(expected["cosine"].item(), abs=1e-4)


@LAMBDAS
@pytest.mark.parametrize(("diversity_weight", "answers"), [(0.0, 1), (10.0, 1), (10.0, 3)])
def test_g_a_ascends_lambda_of_the_return_and_the_rest_of_q_and_diversity(lam, diversity_weight, answers):
    agent = new_generator(lambda_generator=lam, diversity_weight=diversity_weight, answers=answers)
    judges = new_judges()
    parts = generator_objectives(agent, judges)
    # BatchNorm lets a fresh action change what replayed rows earn: the sum is over all, the mean over the fresh.
    objective = (lam * parts["earned"] + (1 - lam) * parts["value"]).sum() / FRESH
    expected = -gradient(objective + diversity_weight * parts["diversity"], agent.networks["actor"])
    steps = watch_steps(agent)
    metrics = update_generator(agent, judges)
    assert relative_error(steps["actor"], expected) < 1e-4
    assert metrics["actor_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-4)
    assert metrics["diversity"].item() == pytest.approx(parts["diversity"].item(), rel=1e-4)


@LAMBDAS
def test_replayed_rows_do_not_reach_g_a(lam):
    """With BatchNorm's batch statistics out of play, other replayed rows leave G_a's step as it is, and change G's."""
    steps = []
    for replayed in (2, 3):
        agent, judges = new_generator(lambda_generator=lam), new_judges()
        for network in (agent.networks["generator"], agent.networks["critic"], *judges):
            network.eval()
        steps.append(watch_steps(agent))
        update_generator(agent, judges, replayed=replayed)
    assert relative_error(steps[0]["actor"], steps[1]["actor"]) < 1e-5
    assert relative_error(steps[0]["generator"], steps[1]["generator"]) > 0.01
    assert relative_error(steps[0]["critic"], steps[1]["critic"]) > 0.01


def test_the_generators_next_action_and_value_are_those_of_its_targets():
    agent, state = new_generator(), pictures(0)
    memory = torch.randn(B, *agent.networks["actor"].memory_shape, generator=torch.Generator().manual_seed(1))
    z, images = agent.next_action(state, memory)
    value = agent.next_value(state, z, None)
    torch.testing.assert_close(z, agent.targets["actor"](state, memory)[0].detach())
    torch.testing.assert_close(images, agent.targets["generator"](z).detach())
    torch.testing.assert_close(value, agent.targets["critic"](state, z).detach())
    assert not (z.requires_grad or images.requires_grad or value.requires_grad)


def test_return_and_accuracies_are_those_of_the_fresh_rows():
    (agent,) = new_agents(DiscriminatorAgent, ["discriminator"], small_config())
    real, fake = torch.randn(2, B, 3, 32, 32).tanh()
    logits, names = agent.act(real, [fake])
    metrics = agent.update(real, [fake], logits, names, 3, None, None)
    real_logits, fake_logits = (part.detach()[:3] for part in logits)
    expected = (logsigmoid(real_logits) + logsigmoid(-fake_logits)).mean()
    assert metrics["return"].item() == pytest.approx(expected.item())
    assert metrics["from_equilibrium"].item() == pytest.approx(expected.item() + torch.log(torch.tensor(4.0)).item())
    assert metrics["accuracy_real"].item() == pytest.approx((real_logits > 0).float().mean().item())
    assert metrics["accuracy_fake"].item() == pytest.approx((fake_logits <= 0).float().mean().item())
    assert expected != (logsigmoid(logits[0]) + logsigmoid(-logits[1])).mean()
