"""The TD targets of Algorithm 1, line 11, by hand: each value from the network that it is said to be from."""

import copy

import pytest
import torch
from conftest import FULL, new_trainer, run, step_and_batch
from test_maddpg import memories_acted_on, networks_of
from torch.nn.functional import logsigmoid

GAMMA = FULL["gamma"]


@pytest.mark.parametrize(("generators", "discriminators"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("reward_function", ["log", "relativistic"])
def test_td_errors_by_hand_with_gamma(generators, discriminators, reward_function):
    """td_error is the mean of (Q(s, a) - r - gamma Q'(s', a'))^2, of replayed rows too.

    Q of D_a's features as they were before this step. s' is x_t; a' is the target actor's at h_{t+1}, shown by the
    target G; Q' is of the target discriminator's features.
    """
    trainer = new_trainer(generators, discriminators, lr=0.01, reward_function=reward_function, **FULL)
    run(trainer, 4)
    heard, online = memories_acted_on(trainer), networks_of(trainer)
    targets = copy.deepcopy([agent.targets for agent in trainer.agents])
    draws = [torch.Generator() for _ in trainer.discriminators]
    for draw, agent in zip(draws, trainer.discriminators, strict=True):
        draw.set_state(agent.random.get_state())
    metrics, batch = step_and_batch(trainer)
    d_as, target_judges = online[generators:], targets[generators:]
    images = [batch.real.detach(), *batch.played_images]
    discriminated = [[d_a["actor"].discriminate(shown) for shown in images] for d_a in d_as]

    next_images = [trainer.dataset.batch(batch.transitions["next_real"])]
    next_seen = []
    for i in range(generators):
        actor, target = online[i]["actor"], targets[i]["actor"]
        _, recurrent = actor(batch.state, heard[i][0])  # h_{t+1}
        next_images.append(targets[i]["generator"](target(batch.real, recurrent)[0]))
        next_seen.append(target.embed(target.stack(batch.real)))
    next_judged = [[d_a["actor"].discriminate(shown) for shown in next_images] for d_a in target_judges]

    def paid(logits, others):
        return logsigmoid(logits if reward_function == "log" else logits - others)

    for i, agent in enumerate(trainer.generators):
        assert len(batch.played_images[i]) == 8
        reward = sum(paid(one[1 + i][1], one[0][1]) for one in discriminated) / discriminators
        next_value = targets[i]["critic"](next_seen[i], torch.stack([one[1 + i][1] for one in next_judged], dim=1))
        seen = online[i]["actor"].embed(online[i]["actor"].stack(batch.state))
        value = online[i]["critic"](seen, torch.stack([one[1 + i][1] for one in discriminated], dim=1))
        error = (value - reward - GAMMA * next_value).square().mean()
        assert metrics[f"{agent.name}/critic_loss"].item() == pytest.approx(error.item(), rel=1e-4)

    labels = torch.cat([torch.ones(8), -torch.ones(8 * generators)])
    for j, agent in enumerate(trainer.discriminators):
        logits = [one for _, one, _ in discriminated[j]]
        explored = torch.cat(logits) + labels * torch.randn(len(labels), generator=draws[j])
        on_real, *on_fakes = explored.split(8)
        if reward_function == "relativistic":  # a real image is paired with each generator's
            rewards = [sum(logsigmoid(on_real - fake) for fake in logits[1:]) / generators]
            rewards += [logsigmoid(logits[0] - fake) for fake in on_fakes]
        else:
            rewards = [logsigmoid(on_real), *[logsigmoid(-fake) for fake in on_fakes]]
        features, next_features = (torch.cat([one for one, *_ in some[j]]) for some in (discriminated, next_judged))
        next_actions = torch.stack([labels * torch.cat([one for _, one, _ in next_judged[j]]), labels], dim=1)
        value = d_as[j]["critic"](features, torch.stack([labels * explored, labels], dim=1))
        target = torch.cat(rewards) + GAMMA * target_judges[j]["critic"](next_features, next_actions)
        assert metrics[f"{agent.name}/critic_loss"].item() == pytest.approx(
            (value - target).square().mean().item(), rel=1e-4
        )
