"""The generator agent: what its update changes, and that every step has the direction that autograd gives for the
objective written down here once more."""

import pytest
import torch
from conftest import CPU, differing, gradient, new_agents, pictures, relative_error, small_config, watch_steps, weights
from torch import nn
from torch.nn.functional import logsigmoid

from magnet import returns
from magnet.discriminator_agent import DiscriminatorAgent
from magnet.generator_agent import GeneratorAgent
from magnet.randomness import stream

B, NZ = 8, 6
LAMBDAS = pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])


def new_generator(**changes):
    return new_agents(GeneratorAgent, ["generator"], small_config(**changes))[0]


FRESH = 5  # rows played now, of B; the others are replayed


def actions(agent, replayed=2):
    """What the trainer hands to `update`: policy and answers of the fresh rows, and z of all actions, a leaf."""
    policy, answers, _ = agent.act(pictures(0, FRESH), agent.networks["actor"].first_memory(FRESH))
    old = torch.randn(B - FRESH, NZ, generator=torch.Generator().manual_seed(replayed))
    return policy, answers, torch.cat([answers.detach(), old]).requires_grad_()


def in_passes(network, values, config):
    """`network` on the policy's answers and on the others, in a pass each if noise is answered too."""
    first = FRESH if config.answers > 1 else len(values)
    return torch.cat([network(part) for part in (values[:first], values[first:]) if len(part)])


def update_generator(agent, judges, next_value=None, replayed=2, others=None):
    """One update on fresh rows and others that the seed `replayed` gives. Returns its metrics."""
    policy, answers, z = actions(agent, replayed)
    state = torch.cat([pictures(0, FRESH), pictures(replayed, B - FRESH)])
    images = in_passes(agent.networks["generator"], z, agent.config)
    return agent.update(state, pictures(9), z, images, policy, answers, judges, next_value, others)


REWARDS = {  # of logits on G's images and on the real ones beside them
    "log": lambda fake, real: logsigmoid(fake),
    "minimax": lambda fake, real: -logsigmoid(-fake),
    "hinge": lambda fake, real: fake,
    "least-squares": lambda fake, real: -((fake - 1) ** 2) / 2,
    "wasserstein": lambda fake, real: fake,
    "relativistic": lambda fake, real: logsigmoid(fake - real),
}
POOLS = {
    "mean": lambda earned: earned.mean(dim=0),
    "min": lambda earned: earned.min(dim=0).values,
    "softmax": lambda earned: -(-earned).exp().mean(dim=0).log(),
}


def generator_objectives(agent, judges, next_value=None, others=None):
    """Per row the return and Q of actions that lead back to G_a; z's diversity; G_c's loss."""
    random = agent.random.get_state()
    policy, answers, z = actions(agent)
    agent.random.set_state(random)
    critic, config = agent.networks["critic"], agent.config
    if next_value is not None:
        next_value = torch.cat([next_value[:FRESH].repeat(config.answers), next_value[FRESH:]])

    told = torch.zeros(len(z), 0) if others is None else others

    def q(actions):  # the statistics of BatchNorm are those of the B states, each taken once
        encoded = critic.encode(torch.cat([pictures(0, FRESH), pictures(2, B - FRESH)]))
        return critic.value(
            torch.cat([encoded[:FRESH].repeat(config.answers, 1), encoded[FRESH:]]), torch.cat([actions, told], 1)
        )

    def reward(z):
        images, earned, named = in_passes(agent.networks["generator"], z, config), [], []
        for judge in judges:
            real = judge(pictures(9)).detach()
            beside = torch.cat([real[:FRESH].repeat(config.answers), real[FRESH:]])
            earned.append(REWARDS[config.returns](in_passes(judge, images, config), beside))
            if config.specialise:
                features = in_passes(judge.stack, images, config)
                named.append(judge.name(features).log_softmax(dim=1)[:, agent.index])
        earned = POOLS[config.pool](torch.stack(earned))
        return earned + config.specialise * sum(named) / len(judges) if named else earned

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


def new_judges(count=2, **changes):
    agents = new_agents(DiscriminatorAgent, [f"d_{i}" for i in range(count)], small_config(**changes))
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


@pytest.mark.parametrize("kind", REWARDS)
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


@pytest.mark.parametrize("change", [{"pool": "min"}, {"pool": "softmax"}, {"specialise": 2.0}, {"critic": "joint"}])
@pytest.mark.parametrize("kind", ["log", "relativistic"])
def test_pools_specialisation_and_joint_critics_reach_all_three_networks(change, kind):
    config = {"generators": 3, "discriminators": 2, "answers": 2, "lambda_generator": 0.5, "returns": kind} | change
    agent, judges = new_generator(**config), new_judges(2, **config)
    agent.index = 1
    others = torch.randn(2 * FRESH + B - FRESH, 2 * NZ + 2, generator=torch.Generator().manual_seed(3))
    others = others if "critic" in change else None
    parts = generator_objectives(agent, judges, None, others)
    objective = (parts["earned"] + parts["value"]).sum() / 2 / FRESH + agent.config.diversity_weight * parts[
        "diversity"
    ]
    expected = {
        "generator": -gradient(parts["earned"].mean(), agent.networks["generator"]),
        "critic": gradient(parts["loss"], agent.networks["critic"]),
        "actor": -gradient(objective, agent.networks["actor"]),
    }
    steps = watch_steps(agent)
    metrics = update_generator(agent, judges, others=others)
    for key, step in expected.items():
        assert relative_error(steps[key], step) < 1e-4, key
    assert metrics["td_error"].item() == pytest.approx(parts["td_error"].item(), rel=1e-4)
    assert metrics["slope_cosine"].item() == pytest.approx(parts["cosine"].item(), abs=1e-4)
    assert all(p.grad is None for judge in judges for p in judge.parameters())


def test_the_return_that_is_logged_is_the_games_and_being_told_apart_stands_beside_it():
    config = {"generators": 2, "specialise": 2.0}
    agent, judges = new_generator(**config), new_judges(2, **config)
    total = generator_objectives(agent, judges)["earned"][:FRESH].mean()
    metrics = update_generator(agent, judges)
    assert (metrics["return"] + 2 * metrics["told_apart"]).item() == pytest.approx(total.item(), rel=1e-4)
    assert metrics["told_apart"] < 0


def test_generators_that_share_have_a_first_layer_each_and_the_lender_moves_the_rest():
    config = small_config(generators=2, share=True)
    lender = new_agents(GeneratorAgent, ["g_0"], config)[0]
    borrower = GeneratorAgent("g_1", config, CPU, 1, lender)
    own, lent = ([a.networks["generator"].layers[i] for a in (borrower, lender)] for i in (0, 1))
    assert own[0] is not own[1] and lent[0] is lent[1]
    judges = new_judges(1)
    lent_gradients = []
    for agent in (borrower, lender):
        objective = generator_objectives(agent, judges)["earned"].mean()
        lent_gradients.append(-gradient(objective, nn.ModuleList(list(lender.networks["generator"].layers)[1:])))
    before = weights([lender, borrower])
    update_generator(borrower, judges)
    first = borrower.networks["generator"].layers[0].weight
    assert {name for name in differing(before, weights([lender, borrower])) if "g_0" in name} == set()
    assert borrower.optimizers["generator"].param_groups[0]["params"] == [first]
    steps = watch_steps(lender)
    update_generator(lender, judges)
    found = steps["generator"][lender.networks["generator"].layers[0].weight.numel() :]
    assert relative_error(found, sum(lent_gradients)) < 1e-4
    assert all(p.grad is None for a in (lender, borrower) for p in a.networks["generator"].parameters())
    assert "g_1/generator" in differing(before, weights([lender, borrower]))


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
