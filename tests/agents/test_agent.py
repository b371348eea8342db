"""What both kinds of agent share: targets that follow slowly, first weights, and critics' steps."""

import pytest
import torch
from conftest import CPU, new_agents, small_config, watch_steps, weights
from torch import nn

from magnet.agents.agent import Agent, soft_update
from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent
from magnet.support.random_streams import derived_seed


def new_discriminator(**changes):
    return new_agents(DiscriminatorAgent, ["discriminator"], small_config(**changes))[0]


def new_generator(**changes):
    return new_agents(GeneratorAgent, ["generator"], small_config(**changes))[0]


def agent_of(makers, config):
    """An agent of the networks that `makers` make."""
    return type("Other", (Agent,), {"makers": staticmethod(lambda config: makers)})("agent", config, CPU)


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


# First weights


def first_weights(kind, name="agent", **changes):
    """By network: the weights that a new agent starts with."""
    return {key.split("/")[1]: value for key, value in weights([kind(name, small_config(**changes), CPU)]).items()}


@pytest.mark.parametrize("changes", [{"critics": "none"}, {"algorithm": "gan"}], ids=str)
def test_games_of_one_seed_start_from_the_same_g_and_d_a(changes):
    for kind, shared in ((GeneratorAgent, "generator"), (DiscriminatorAgent, "actor")):
        assert torch.equal(first_weights(kind)[shared], first_weights(kind, **changes)[shared])


def test_first_weights_are_not_those_of_another_seed_name_or_network():
    for kind in (GeneratorAgent, DiscriminatorAgent):
        first = first_weights(kind)
        for other in (first_weights(kind, seed=1), first_weights(kind, name="another")):
            assert all(not torch.equal(first[key], other[key]) for key in first)
    config = small_config(seed=3)
    makers = dict.fromkeys(("one", "other"), lambda: nn.Linear(3, 2))
    one, other = agent_of(makers, config).networks.values()
    assert not torch.equal(one.weight, other.weight)
    torch.manual_seed(derived_seed(3, "agent/other"))
    assert torch.equal(other.weight, nn.Linear(3, 2).weight)


@pytest.mark.parametrize("kind", [DiscriminatorAgent, GeneratorAgent])
def test_new_agents_neither_use_nor_move_pytorchs_own_random_numbers(kind):
    torch.manual_seed(1)
    first, before = first_weights(kind), torch.get_rng_state()
    torch.manual_seed(2)
    second = first_weights(kind)
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


# Critics


@pytest.mark.parametrize("gamma", [0.0, 0.75])
def test_a_critics_step_is_that_of_its_squared_td_error_by_hand(gamma):
    """A linear critic Q = w . features + v . action: dL/dw = mean of 2 (Q - y) features, with y held fixed."""

    class Linear(nn.Linear):
        def forward(self, features, actions):
            return super().forward(torch.cat([features, actions], dim=1)).squeeze(1)

    agent = agent_of({"critic": lambda: Linear(3, 1, bias=False)}, small_config(gamma=gamma))
    features, actions = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0], [1.0]])
    with torch.no_grad():
        agent.critic.weight.copy_(torch.tensor([[1.0, -1.0, 0.5]]))
    # values 0.5 and 1.5; targets 2 and -1 of the rewards, to which gamma adds 3 and -1.5
    errors = [0.5 - 2, 1.5 + 1] if gamma == 0 else [0.5 - 5, 1.5 + 2.5]
    expected = torch.tensor([errors[0] * 1, errors[0] * 2 - errors[1], errors[0] * 3 + errors[1]])
    steps = watch_steps(agent)
    next_value = torch.tensor([4.0, -2.0]) if gamma else None
    metrics = agent.update_critic(features, actions, torch.tensor([2.0, -1.0]), next_value)
    torch.testing.assert_close(steps["critic"], expected)
    assert metrics["critic_loss"].item() == pytest.approx((errors[0] ** 2 + errors[1] ** 2) / 2)
    assert metrics["critic_gradient"].item() == pytest.approx(expected.norm().item())
    assert agent.critic.weight.grad is None


def test_the_average_lengthens_with_the_training_once_its_half_life_is_longer_than_taus():
    """After 1,000 steps a twentieth is 50: in 50 steps the targets go half of the way. tau 0.25 alone goes further."""
    agent = new_discriminator(tau=0.25, average=0.05)
    before = weights([agent])
    agent.update_targets(steps=50, made=1000)
    after = weights([agent])
    online, target = before["discriminator/actor"], before["discriminator/actor target"]
    torch.testing.assert_close(after["discriminator/actor target"], (online + target) / 2)
    for changes, made in (({"average": 0.05}, 10), ({"average": 0.0}, 1000), ({"average": 0.05, "gamma": 0.9}, 1000)):
        agent = new_discriminator(tau=0.25, **changes)
        before = weights([agent])
        agent.update_targets(steps=2, made=made)
        expected = torch.lerp(before["discriminator/actor"], before["discriminator/actor target"], 0.75**2)
        torch.testing.assert_close(weights([agent])["discriminator/actor target"], expected)
