"""What both kinds of agent share: targets that follow slowly, first weights, and critics' steps."""

import pytest
import torch
from conftest import CPU, new_agents, small_config, watch_steps, weights
from torch import nn

from magnet.agents.agent import Agent, soft_update
from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent


def agent_of(makers, config):
    """An agent of the networks that `makers` make."""
    return type("Other", (Agent,), {"makers": staticmethod(lambda config: makers)})("agent", config, CPU)


# Targets


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_soft_update_moves_weights_by_tau_and_copies_statistics(tau):
    torch.manual_seed(0)
    target, online = (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2))
    online(torch.randn(5, 3))  # changes its statistics
    before = [p.detach().clone() for p in target.parameters()]
    soft_update(target, online, tau)
    for moved, old, new in zip(target.parameters(), before, online.parameters(), strict=True):
        torch.testing.assert_close(moved, tau * new + (1 - tau) * old, rtol=0, atol=1e-6 if 0 < tau < 1 else 0)
    assert all(torch.equal(*pair) for pair in zip(target.buffers(), online.buffers(), strict=True))
    assert online[1].running_mean.abs().min() > 0


def test_soft_update_refuses_networks_of_different_length():
    with pytest.raises(RuntimeError):
        soft_update(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), 0.5)


@pytest.mark.parametrize(
    ("changes", "steps", "made", "kept"),
    [
        ({"average": 0.05}, 50, 1000, 0.5),  # the half-life is a twentieth of 1,000 steps
        ({"average": 0.05}, 2, 10, 0.75**2),  # tau's half-life is longer
        ({"average": 0.0}, 2, 1000, 0.75**2),
        ({"average": 0.05, "gamma": 0.9}, 2, 1000, 0.75**2),
    ],
)
def test_the_half_life_of_the_average_grows_with_the_training(changes, steps, made, kept):
    (agent,) = new_agents(DiscriminatorAgent, ["agent"], small_config(tau=0.25, **changes))
    before = weights([agent])
    agent.update_targets(steps, made)
    expected = torch.lerp(before["agent/actor"], before["agent/actor target"], kept)
    torch.testing.assert_close(weights([agent])["agent/actor target"], expected)


# First weights


def first_weights(kind, name="agent", **changes):
    """The weights of a new agent."""
    return {key.split("/")[1]: value for key, value in weights([kind(name, small_config(**changes), CPU)]).items()}


@pytest.mark.parametrize("kind", [DiscriminatorAgent, GeneratorAgent])
def test_first_weights_depend_on_seed_and_agent_and_not_on_pytorchs_random_state(kind):
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), first_weights(kind)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(first[key], value) for key, value in first_weights(kind).items())
    for other in (first_weights(kind, seed=1), first_weights(kind, name="another")):
        assert all(not torch.equal(first[key], other[key]) for key in first)


def test_networks_of_an_agent_have_different_first_weights():
    twins = dict.fromkeys(("one", "other"), lambda: nn.Linear(3, 2))
    one, other = agent_of(twins, small_config()).networks.values()
    assert not torch.equal(one.weight, other.weight)


# Critics


class LinearCritic(nn.Linear):
    """Q = w . features + v . action."""

    def forward(self, features, actions):
        return super().forward(torch.cat([features, actions], dim=1)).squeeze(1)


@pytest.mark.parametrize("gamma", [0.0, 0.75])
def test_a_critics_step_is_that_of_its_squared_td_error_by_hand(gamma):
    """dL/dw is the mean of 2 (Q - y) features, with y held fixed."""
    agent = agent_of({"critic": lambda: LinearCritic(3, 1, bias=False)}, small_config(gamma=gamma))
    features, actions = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0], [1.0]])
    with torch.no_grad():
        agent.critic.weight.copy_(torch.tensor([[1.0, -1.0, 0.5]]))
    # Values 0.5 and 1.5. The targets are the rewards 2 and -1, to which gamma adds 3 and -1.5.
    errors = [0.5 - 2, 1.5 + 1] if gamma == 0 else [0.5 - 5, 1.5 + 2.5]
    expected = torch.tensor([errors[0] * 1, errors[0] * 2 - errors[1], errors[0] * 3 + errors[1]])
    steps = watch_steps(agent)
    next_value = torch.tensor([4.0, -2.0]) if gamma else None
    metrics = agent.update_critic(features, actions, torch.tensor([2.0, -1.0]), next_value)
    torch.testing.assert_close(steps["critic"], expected)
    assert metrics["critic_loss"].item() == pytest.approx((errors[0] ** 2 + errors[1] ** 2) / 2)
    assert metrics["critic_gradient"].item() == pytest.approx(expected.norm().item())
    assert agent.critic.weight.grad is None
