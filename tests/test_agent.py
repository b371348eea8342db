"""What both kinds of agent share: frozen judges, targets, and their slow following."""

import pytest
import torch
from conftest import CPU, new_agents, small_config, weights
from torch import nn

from magnet.agent import as_played, for_answers, frozen, joint_actions, soft_update
from magnet.discriminator_agent import DiscriminatorAgent
from magnet.generator_agent import GeneratorAgent


def new_discriminator(**changes):
    return new_agents(DiscriminatorAgent, ["discriminator"], small_config(**changes))[0]


def new_generator(**changes):
    return new_agents(GeneratorAgent, ["generator"], small_config(**changes))[0]


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


def test_answers_and_what_was_played_by_hand():
    """2 states are played, with 3 answers each, and 1 row is replayed."""
    per_state = torch.tensor([1, 2, 9])
    spread = for_answers(per_state, fresh=2, count=3)
    assert spread.tolist() == [1, 2, 1, 2, 1, 2, 9]
    assert as_played(spread, fresh=2, batch=3).tolist() == [1, 2, 9]
    assert as_played(torch.arange(7), fresh=2, batch=3).tolist() == [0, 1, 6]


def test_joint_actions_by_hand():
    """Two generators, two discriminators; 1 state is played, with 2 answers, and 1 row is replayed."""
    z = [torch.tensor([[1.0], [2], [3]]), torch.tensor([[4.0], [5], [6]])]
    logits = [
        [torch.tensor([10.0, 11]), torch.tensor([20.0, 21, 22]), torch.tensor([30.0, 31, 32])],
        [torch.tensor([-10.0, -11]), torch.tensor([-20.0, -21, -22]), torch.tensor([-30.0, -31, -32])],
    ]
    to_generators, to_discriminators = joint_actions(z, logits, fresh=1)
    assert to_generators[0].tolist() == [[4, 20, -20], [5, 21, -21], [6, 22, -22]]
    assert to_generators[1].tolist() == [[1, 30, -30], [2, 31, -31], [3, 32, -32]]
    seen = [[1, 4], [3, 6], *2 * [[1, 4], [2, 5], [3, 6]]]
    told = [-10, -11, -20, -21, -22, -30, -31, -32]
    assert to_discriminators[0].tolist() == [[*pair, logit] for pair, logit in zip(seen, told, strict=True)]
    assert to_discriminators[1].tolist() == [[*pair, -logit] for pair, logit in zip(seen, told, strict=True)]
