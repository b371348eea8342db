"""The TD targets of Algorithm 1, line 11, by hand: each value comes from the network that it is said to come from."""

import copy

import pytest
import torch
from conftest import FULL, new_trainer, run, step_and_batch
from test_maddpg import copy_networks, watch_recurrent_states
from torch.nn.functional import logsigmoid

GAMMA = FULL["gamma"]


@pytest.mark.parametrize(
    ("generators", "discriminators", "reward_function"), [(1, 1, "log"), (3, 2, "log"), (2, 3, "relativistic")]
)
def test_td_errors_by_hand_with_gamma(generators, discriminators, reward_function):
    """The loss is the mean of (Q(s, a) - r - gamma Q'(s', a'))^2, of replayed rows too.

    Q takes D_a's features from before this step. s' is x_t; a' is the target actor's at h_{t+1}, which the target G
    turns into an image; Q' takes the target discriminator's features.
    """
    trainer = new_trainer(generators, discriminators, lr=0.01, reward_function=reward_function, **FULL)
    run(trainer, 4)
    recurrent_states, online = watch_recurrent_states(trainer), copy_networks(trainer)
    targets = copy.deepcopy([agent.targets for agent in trainer.agents])
    streams = [torch.Generator() for _ in trainer.discriminators]
    for stream, agent in zip(streams, trainer.discriminators, strict=True):
        stream.set_state(agent.random.get_state())
    metrics, batch = step_and_batch(trainer)
    d_as, target_d_as = online[generators:], targets[generators:]
    images = [batch.real.detach(), *batch.played_images]
    assert {len(one) for one in images} == {8}
    outputs = [[d_a["actor"].discriminate(one) for one in images] for d_a in d_as]

    next_images, next_embeddings = [trainer.dataset.batch(batch.transitions["next_real"])], []
    for i in range(generators):
        target = targets[i]["actor"]
        _, recurrent = online[i]["actor"](batch.state, recurrent_states[i][0])  # h_{t+1}
        next_images.append(targets[i]["generator"](target(batch.real, recurrent)[0]))
        next_embeddings.append(target.embed(target.stack(batch.real)))
    next_outputs = [[d_a["actor"].discriminate(one) for one in next_images] for d_a in target_d_as]

    def logits_on(outputs, i):
        return torch.stack([one[1 + i].logits for one in outputs], dim=1)

    def pay(logits, others):
        return logsigmoid(logits if reward_function == "log" else logits - others)

    for i, agent in enumerate(trainer.generators):
        reward = sum(pay(one[1 + i].logits, one[0].logits) for one in outputs) / discriminators
        next_value = targets[i]["critic"](next_embeddings[i], logits_on(next_outputs, i))
        embedding = online[i]["actor"].embed(online[i]["actor"].stack(batch.state))
        value = online[i]["critic"](embedding, logits_on(outputs, i))
        error = (value - reward - GAMMA * next_value).square().mean()
        assert metrics[f"{agent.name}/critic_loss"].item() == pytest.approx(error.item(), rel=1e-4)

    labels = torch.cat([torch.ones(8), -torch.ones(8 * generators)])
    for j, agent in enumerate(trainer.discriminators):
        logits = [one.logits for one in outputs[j]]
        explored = torch.cat(logits) + labels * torch.randn(len(labels), generator=streams[j])
        on_real, *on_fakes = explored.split(8)
        if reward_function == "relativistic":  # a real image is paired with each generator's
            rewards = [sum(logsigmoid(on_real - fake) for fake in logits[1:]) / generators]
            rewards += [logsigmoid(logits[0] - fake) for fake in on_fakes]
        else:
            rewards = [logsigmoid(on_real), *[logsigmoid(-fake) for fake in on_fakes]]
        features, next_features = (torch.cat([one.features for one in some[j]]) for some in (outputs, next_outputs))
        next_logits = torch.cat([one.logits for one in next_outputs[j]])
        value = d_as[j]["critic"](features, torch.stack([labels * explored, labels], dim=1))
        next_value = target_d_as[j]["critic"](next_features, torch.stack([labels * next_logits, labels], dim=1))
        error = (value - torch.cat(rewards) - GAMMA * next_value).square().mean()
        assert metrics[f"{agent.name}/critic_loss"].item() == pytest.approx(error.item(), rel=1e-4)
