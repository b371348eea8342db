"""The discriminator agent: which networks its update changes, and that each step follows the gradient of an objective
that is written down here once more."""

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

from magnet.agents.batch import Batch, Discrimination
from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent

B = 8
REWARDS = {  # by D_a's logit on an image with a label, 1 or -1, and its logit on the image beside it
    "log": lambda logits, label, beside: logsigmoid(label * logits),
    "minimax": lambda logits, label, beside: logsigmoid(label * logits),
    "hinge": lambda logits, label, beside: -(1 - label * logits).relu(),
    "least-squares": lambda logits, label, beside: -((logits - label) ** 2) / 2,
    "wasserstein": lambda logits, label, beside: label * logits,
    "relativistic": lambda logits, label, beside: logsigmoid(label * (logits - beside)),
}


def new_discriminator(**changes):
    """Always the same for the same `changes`."""
    return new_agents(DiscriminatorAgent, ["discriminator"], small_config(**changes))[0]


def images_of(agent):
    """Real images, and those of each generator."""
    return pictures(0), [pictures(1 + i) for i in range(agent.config.generators)]


def update_discriminator(agent, next_value=None, r1=0.0):
    """One update as the trainer makes it. Returns its metrics."""
    real, fakes = images_of(agent)
    real.requires_grad_(r1 > 0)
    outputs = [agent.networks["actor"].discriminate(images) for images in (real, *fakes)]
    return agent.update(new_batch(agent, real, fakes, outputs, next_value, r1=r1))


def new_batch(agent, real, fakes, outputs, next_value=None, new_rows=B, r1=0.0):
    """The trainer's batch for one discriminator."""
    return Batch(
        new_rows, transitions={}, state=real, real=real, r1=r1, played_images=fakes, outputs=[outputs],
        next_values={agent.name: next_value},
    )  # fmt: skip


def rewards(kind, logits, present):
    """The rewards of logits, on real images and then on each generator's, beside the other images' `present` logits."""
    real, *fakes = logits.split(B)
    present_real, *present_fakes = present.detach().split(B)
    on_real = sum(REWARDS[kind](real, 1, fake) for fake in present_fakes) / len(fakes)
    return torch.cat([on_real, *[REWARDS[kind](fake, -1, present_real) for fake in fakes]])


def pair_reward(kind, logits):
    """The mean over all pairs of a real image and each generator's beside it."""
    real, *fakes = logits.split(B)
    if kind == "relativistic":
        pairs = [logsigmoid(real - fake) for fake in fakes]
    else:
        pairs = [REWARDS[kind](real, 1, None) + REWARDS[kind](fake, -1, None) for fake in fakes]
    return torch.stack(pairs).mean()


def expected_step(agent, next_value):
    """Makes the critic's step. Returns the gradients of D_c's and D_a's losses, and the values that enter them."""
    config, actor = agent.config, agent.networks["actor"]
    kind, (real, fakes) = config.reward_function, images_of(agent)
    features = [actor.stack(images) for images in (real, *fakes)]
    logits = torch.cat([actor.logit(one).squeeze(1) for one in features])
    expected, values, objective = {}, {}, pair_reward(kind, logits)
    if agent.critic:
        fake_rows = config.generators * B
        labels = torch.tensor([1.0] * B + [-1.0] * fake_rows)
        shares = torch.tensor([1 / B] * B + [1 / fake_rows] * fake_rows)

        def value(logits):
            return agent.critic(torch.cat(features).detach(), torch.stack([labels * logits, labels], dim=1))

        explored = logits.detach() + labels * torch.randn(logits.shape, generator=agent.random)
        target = rewards(kind, explored, logits)
        if next_value is not None:
            target = target + config.gamma * next_value
        loss = ((value(explored) - target) ** 2).mean()
        expected["critic"], values["critic_loss"] = step_critic(agent, loss), loss

        leaf = logits.detach().requires_grad_()
        sums = (shares * value(leaf)).sum(), (shares * rewards(kind, leaf, logits)).sum()
        slopes = [torch.autograd.grad(one, leaf)[0] for one in sums]
        values["gradient_cosine"] = cosine_similarity(*slopes, dim=0)
        objective = (slopes[0] * logits).sum()  # has the gradient of the value in D_a's weights
    if config.specialise:
        chances = [actor.classifier(one).softmax(dim=1)[:, i] for i, one in enumerate(features[1:])]
        objective = objective + config.specialise * torch.stack(chances).log().mean()
        correct = [actor.classifier(one).argmax(dim=1) == i for i, one in enumerate(features[1:])]
        values["classifier_accuracy"] = torch.cat(correct).float().mean()
    return expected | {"actor": -gradient(objective, actor)}, values


@pytest.mark.parametrize(
    "changes",
    [
        {"generators": 1},
        {"gamma": 0.9},
        {"reward_function": "minimax", "gamma": 0.9},
        {"reward_function": "hinge"},
        {"reward_function": "least-squares", "gamma": 0.9},
        {"reward_function": "wasserstein"},
        {"reward_function": "relativistic", "gamma": 0.9},
        {"reward_function": "relativistic", "generators": 1},
        {"critics": "none", "generators": 1},
        {"critics": "none", "reward_function": "minimax"},
        {"critics": "none", "reward_function": "hinge"},
        {"critics": "none", "reward_function": "least-squares"},
        {"critics": "generator", "reward_function": "wasserstein"},
        {"critics": "generator", "reward_function": "relativistic"},
        {"algorithm": "gan"},
        {"specialise": 3.0},
        {"specialise": 3.0, "critics": "none"},
    ],
    ids=str,
)
def test_d_c_learns_by_its_td_error_and_d_a_ascends_q_or_else_the_reward(changes):
    """D_c learns at explored logits. D_a follows it after its step. The classifier's reward is added."""
    changes = {"lr": 0.01, "generators": 2} | changes
    twin, agent = (new_discriminator(**changes) for _ in range(2))
    next_value = torch.linspace(-3, 3, (1 + agent.config.generators) * B) if agent.config.gamma else None
    before = agent.random.get_state()
    expected, values = expected_step(twin, next_value)
    assert set(expected) == set(agent.networks) == set(agent.targets) == set(agent.optimizers)
    steps = watch_steps(agent)
    metrics = update_discriminator(agent, next_value)
    for key, step in expected.items():
        assert relative_error(steps[key], step) < (1e-4 if key == "critic" else 1e-3), key
        values[f"{key}_gradient"] = step.norm()
    computed = {name: value.item() for name, value in metrics.items() if not name.startswith("accuracy")}
    assert computed == pytest.approx({name: value.item() for name, value in values.items()}, rel=1e-3, abs=1e-4)
    if not agent.critic:
        assert torch.equal(agent.random.get_state(), before), "there is nothing to explore"


def test_an_update_changes_the_agents_own_actor_and_critic_alone_and_leaves_no_gradient():
    config = small_config(generators=2, specialise=1.0, r2=1.0, gradient_penalty=1.0)
    agents = new_agents(DiscriminatorAgent, ["d_0", "d_1"], config) + new_agents(GeneratorAgent, ["g"], config)
    before = weights(agents)
    update_discriminator(agents[0], r1=1.0)
    assert differing(before, weights(agents)) == {"d_0/actor", "d_0/critic"}
    parameters = [p for agent in agents for network in agent.networks.values() for p in network.parameters()]
    assert all(p.grad is None and p.requires_grad for p in parameters)


def penalty(agent, images, norm):
    """(|dl/dx| - norm)^2, the mean over the images."""
    images = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(agent.networks["actor"](images).sum(), images, create_graph=True)
    return ((slope.flatten(1).norm(dim=1) - norm) ** 2).mean()


def expected_penalty(agent, name):
    """R1, R2 or the gradient penalty of the agent's next update."""
    real, fakes = images_of(agent)
    if name == "r1":
        return penalty(agent, real, 0.0)
    for images in (real, *fakes):  # the game's passes come first; in each, spectral_norm makes a power iteration
        agent.networks["actor"](images)
    if name == "r2":  # each generator's images in their own pass
        return sum(penalty(agent, fake, 0.0) for fake in fakes) / len(fakes)
    if agent.critic:
        torch.randn((1 + len(fakes)) * B, generator=agent.random)  # the critic's noise comes first
    share = torch.rand(B, 1, 1, 1, generator=agent.random)
    return penalty(agent, torch.cat([real + share * (fake - real) for fake in fakes]), 1.0)


@pytest.mark.parametrize(("name", "factor"), [("r1", 1 / 2), ("r2", 1 / 2), ("gradient_penalty", 1)])
@pytest.mark.parametrize(
    "changes", [{"generators": 2}, {"critics": "generator"}, {"generators": 2, "spectral_norm": True}], ids=str
)
def test_d_a_descends_the_gradient_penalties_beside(changes, name, factor):
    steps, metrics = [], {}
    for weight in (0.0, 3.0):
        agent = new_discriminator(**changes, **({} if name == "r1" else {name: weight}))
        gradients = watch_steps(agent)
        metrics[weight] = update_discriminator(agent, r1=weight if name == "r1" else 0.0)
        steps.append(gradients["actor"])
    twin = new_discriminator(**changes)
    value = expected_penalty(twin, name)
    assert relative_error(steps[1] - steps[0], 3 * factor * gradient(value, twin.networks["actor"])) < 1e-3
    assert name not in metrics[0.0] and metrics[3.0][name].item() == pytest.approx(value.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "new_rows", "real_accuracy", "fake_accuracy"),
    [("log", 4, 3 / 4, 2 / 4), ("log", 2, 2 / 2, 1 / 2), ("wasserstein", 4, 2 / 4, 3 / 4)],
)
def test_accuracies_of_the_new_rows_by_hand(kind, new_rows, real_accuracy, fake_accuracy):
    """A logit of exactly 0 counts as fake. For "wasserstein" the border is (0.875 + 0.375) / 2."""
    agent, real, fake = new_discriminator(reward_function=kind), pictures(0, 4), pictures(1, 4)
    outputs = []
    for images, logits in zip((real, fake), ([0.5, 3.0, 2.0, -2.0], [0.0, 0.5, -1.5, 2.5]), strict=True):
        features, own, classes = agent.networks["actor"].discriminate(images)
        outputs.append(Discrimination(features, own * 0 + torch.tensor(logits), classes))
    metrics = agent.update(new_batch(agent, real, [fake], outputs, new_rows=new_rows))
    assert (metrics["accuracy_real"].item(), metrics["accuracy_fake"].item()) == (real_accuracy, fake_accuracy)
