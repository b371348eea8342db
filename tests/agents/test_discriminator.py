"""The discriminator agent: what its update changes, and that each of its steps follows the gradient that autograd gives
for an objective that is written down here once more."""

import pytest
import torch
from conftest import CPU, differing, gradient, new_agents, pictures, relative_error, small_config, watch_steps, weights
from torch.nn.functional import cosine_similarity, logsigmoid

from magnet.agents.batch import Batch
from magnet.agents.discriminator import DiscriminatorAgent, critic_inputs
from magnet.agents.generator import GeneratorAgent

B = 8
CRITICS = pytest.mark.parametrize("critics", ["both", "none"])
GENERATORS = pytest.mark.parametrize("generators", [1, 2])
# Of D's logit on an image with a label, 1 or -1, and its logit on the image beside it
JUDGEMENTS = {
    "log": lambda logits, label, beside: logsigmoid(label * logits),
    "minimax": lambda logits, label, beside: logsigmoid(label * logits),
    "hinge": lambda logits, label, beside: -(1 - label * logits).relu(),
    "least-squares": lambda logits, label, beside: -((logits - label) ** 2) / 2,
    "wasserstein": lambda logits, label, beside: label * logits,
    "relativistic": lambda logits, label, beside: logsigmoid(label * (logits - beside)),
}
KINDS = pytest.mark.parametrize("kind", JUDGEMENTS)


def new_discriminator(**changes):
    """Always the same for the same `changes`."""
    return new_agents(DiscriminatorAgent, ["discriminator"], small_config(**changes))[0]


def shown(generators):
    """Real images, and those of each generator."""
    return pictures(0), [pictures(1 + i) for i in range(generators)]


def update_discriminator(agent, generators, next_value=None, new=B, r1=0.0):
    """One update as the trainer makes it. Returns its metrics."""
    real, fakes = shown(generators)
    real.requires_grad_(r1 > 0)
    outputs = [agent.networks["actor"].discriminate(images) for images in (real, *fakes)]
    return agent.update(batch_of(real, fakes, outputs, next_value, new, r1))


def batch_of(real, fakes, outputs, next_value=None, new=B, r1=0.0):
    """The batch of the trainer in which one discriminator has judged."""
    played = {
        "new_rows": new,
        "transitions": {},
        "state": real,
        "real": real,
        "played_images": fakes,
        "outputs": [outputs],
    }
    return Batch(**played, r1=r1, next_values=dict.fromkeys(("discriminator", "d_0", "d_1"), next_value))


def rewards(kind, logits, present):
    """What each logit of real images, then of each generator's, would earn beside the `present` ones of the others."""
    real, *fakes = logits.split(B)
    present_real, *present_fakes = present.detach().split(B)
    on_real = sum(JUDGEMENTS[kind](real, 1, fake) for fake in present_fakes) / len(fakes)
    return torch.cat([on_real, *[JUDGEMENTS[kind](fake, -1, present_real) for fake in fakes]])


def discriminated(agent, generators):
    """Features ((1 + N) B, F) without their graph, logits with theirs, and labels: ((1 + N) B,)."""
    real, fakes = shown(generators)
    actor = agent.networks["actor"]
    features = [actor.stack(images) for images in (real, *fakes)]
    logits = [actor.logit(one).squeeze(1) for one in features]
    labels = torch.tensor([1.0] * B + [-1.0] * (generators * B))
    return torch.cat(features).detach(), torch.cat(logits), labels


def mean_squared_td_error(agent, generators, next_value=None):
    """The squared TD error of D_c at explored logits, mean over real and fake images, with its graph."""
    features, logits, labels = discriminated(agent, generators)
    explored = logits.detach() + labels * torch.randn(logits.shape, generator=agent.random)
    target = rewards(agent.config.reward_function, explored, logits)
    if next_value is not None:
        target = target + agent.config.gamma * next_value
    return ((agent.critic(features, torch.stack([labels * explored, labels], dim=1)) - target) ** 2).mean()


def pair_reward(logits, generators, kind):
    """The mean over all pairs of a real image and each generator's beside it."""
    real, *fakes = logits.chunk(1 + generators)
    if kind == "relativistic":
        pairs = [logsigmoid(real - fake) for fake in fakes]
    else:
        pairs = [JUDGEMENTS[kind](real, 1, None) + JUDGEMENTS[kind](fake, -1, None) for fake in fakes]
    return torch.stack(pairs).mean()


def check_update(generators, **changes):
    """That one update of an agent with `changes` makes the step of D_a that is expected. Returns its metrics."""
    twin, agent = (new_discriminator(lr=0.01, **changes) for _ in range(2))
    kind = twin.config.reward_function
    if twin.critic:  # which learns first: the actor follows the critic after its step
        loss = mean_squared_td_error(twin, generators)
        for p, g in zip(twin.critic.parameters(), torch.autograd.grad(loss, twin.critic.parameters()), strict=True):
            p.grad = g
        twin.optimizers["critic"].step()
    features, logits, labels = discriminated(twin, generators)
    objective = pair_reward(logits, generators, kind)
    if twin.critic:
        share = torch.tensor([1 / B] * B + [1 / (generators * B)] * (generators * B))
        leaf = logits.detach().requires_grad_()
        reward = (share * rewards(kind, leaf, logits)).sum()
        value = (share * twin.critic(features, torch.stack([labels * leaf, labels], dim=1))).sum()
        gradients = [torch.autograd.grad(one, leaf)[0] for one in (value, reward)]
        objective = (gradients[0] * logits).sum()  # its gradient is that of the shared value
    expected = -gradient(objective, twin.networks["actor"])
    steps = watch_steps(agent)
    metrics = update_discriminator(agent, generators)
    assert relative_error(steps["actor"], expected) < 1e-3
    assert metrics["actor_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-3)
    if twin.critic:
        cosine = cosine_similarity(*gradients, dim=0).item()
        assert metrics["gradient_cosine"].item() == pytest.approx(cosine, abs=1e-4)
        assert metrics["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    return metrics


@GENERATORS
def test_d_c_is_shown_features_without_a_graph_and_the_logit_of_each_right_answer_with_its_label(generators):
    outputs = [
        (torch.randn(B, 5).requires_grad_(), torch.randn(B).requires_grad_(), None) for _ in range(1 + generators)
    ]
    features, actions = critic_inputs(outputs)
    assert torch.equal(features, torch.cat([one for one, *_ in outputs])) and not features.requires_grad
    right = torch.cat([logits if i == 0 else -logits for i, (_, logits, _) in enumerate(outputs)])
    assert torch.equal(actions[:, 0], right) and actions.requires_grad
    assert actions[:, 1].tolist() == [1.0] * B + [-1.0] * (generators * B)


def test_a_discriminators_update_changes_its_own_actor_and_critic_alone():
    config = small_config(generators=2, specialise=1.0, r2=1.0, gradient_penalty=1.0)
    agents = new_agents(DiscriminatorAgent, ["d_0", "d_1"], config) + new_agents(GeneratorAgent, ["g"], config)
    before = weights(agents)
    update_discriminator(agents[0], generators=2, r1=1.0)
    assert differing(before, weights(agents)) == {"d_0/actor", "d_0/critic"}
    parameters = [p for agent in agents for network in agent.networks.values() for p in network.parameters()]
    assert all(p.grad is None and p.requires_grad for p in parameters)


@KINDS
@pytest.mark.parametrize("gamma", [0.0, 0.9])
@GENERATORS
def test_d_c_learns_by_its_td_error_at_explored_logits(kind, gamma, generators):
    agent, twin = (new_discriminator(gamma=gamma, reward_function=kind) for _ in range(2))
    next_value = torch.linspace(-3, 3, (1 + generators) * B) if gamma else None  # of real, then of each generator's
    loss = mean_squared_td_error(twin, generators, next_value)
    expected = gradient(loss, twin.critic)
    steps = watch_steps(agent)
    metrics = update_discriminator(agent, generators, next_value)
    assert relative_error(steps["critic"], expected) < 1e-4
    assert metrics["critic_gradient"].item() == pytest.approx(expected.norm().item(), rel=1e-4)
    assert metrics["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-4)


@CRITICS
@GENERATORS
@KINDS
def test_d_a_ascends_q_or_else_the_reward(critics, generators, kind):
    metrics = check_update(generators, critics=critics, reward_function=kind)
    assert ("gradient_cosine" in metrics) == (critics == "both")


@pytest.mark.parametrize("changes", [{"critics": "generator"}, {"algorithm": "gan"}], ids=["without D_c", "gan"])
@GENERATORS
@KINDS
def test_without_a_critic_d_a_ascends_the_reward_alone(changes, generators, kind):
    agent = new_discriminator(reward_function=kind, **changes)
    assert agent.critic is None
    assert set(agent.networks) == set(agent.targets) == set(agent.optimizers) == {"actor"}
    expected = -gradient(pair_reward(discriminated(agent, generators)[1], generators, kind), agent.networks["actor"])
    before, steps = agent.random.get_state(), watch_steps(agent)
    metrics = update_discriminator(agent, generators)
    assert relative_error(steps["actor"], expected) < 1e-4
    assert set(metrics) == {"actor_gradient", "accuracy_real", "accuracy_fake"}
    assert torch.equal(agent.random.get_state(), before), "there is nothing to explore"


@CRITICS
def test_the_classifier_learns_which_generator_made_an_image(critics):
    changes = {"critics": critics, "generators": 2}
    steps = []
    for specialise in (1.0, 3.0):
        agent = new_discriminator(specialise=specialise, **changes)
        steps.append(watch_steps(agent))
        metrics = update_discriminator(agent, 2)
    actor = new_discriminator(specialise=1.0, **changes).networks["actor"]
    classes = [actor.classifier(actor.stack(images)) for images in shown(2)[1]]
    chances = torch.stack([one.softmax(dim=1)[:, i] for i, one in enumerate(classes)])
    expected = -gradient(chances.log().mean(), actor)
    assert relative_error((steps[1]["actor"] - steps[0]["actor"]) / 2, expected) < 1e-3
    rightly = sum(((one[:, i] > one[:, 1 - i]).float().mean().item()) for i, one in enumerate(classes)) / 2
    assert metrics["classifier_accuracy"].item() == pytest.approx(rightly)


@GENERATORS
@pytest.mark.parametrize("changes", [{}, {"critics": "generator"}, {"spectral_norm": True}], ids=str)
def test_d_a_descends_the_gradient_penalties_beside(generators, changes):
    def step(r1=0.0, **more):
        agent = new_discriminator(**changes, **more)
        steps = watch_steps(agent)
        metrics = update_discriminator(agent, generators, r1=r1)
        return steps["actor"], metrics

    def penalty(agent, images, norm):
        images = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(agent.networks["actor"](images).sum(), images, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - norm) ** 2).mean()

    def after_the_game():  # spectral_norm makes a power iteration in each pass
        agent = new_discriminator(**changes)
        for images in (real, *fakes):
            agent.networks["actor"](images)
        return agent

    (plain, nothing), (real, fakes) = step(), shown(generators)
    assert not {"r1", "r2", "gradient_penalty"} & set(nothing)

    agent = new_discriminator(**changes)
    value = penalty(agent, real, 0.0)
    found, metrics = step(r1=3.0)
    assert relative_error(found - plain, 3 / 2 * gradient(value, agent.networks["actor"])) < 1e-3
    assert metrics["r1"].item() == pytest.approx(value.item(), rel=1e-3)

    agent = after_the_game()
    value = sum(penalty(agent, fake, 0.0) for fake in fakes) / generators  # in passes of their own, as they are judged
    found, metrics = step(r2=3.0)
    assert relative_error(found - plain, 3 / 2 * gradient(value, agent.networks["actor"])) < 1e-3
    assert metrics["r2"].item() == pytest.approx(value.item(), rel=1e-3)

    agent = after_the_game()
    if agent.critic:
        torch.randn((1 + generators) * B, generator=agent.random)  # the critic's noise comes first
    share = torch.rand(B, 1, 1, 1, generator=agent.random)
    value = penalty(agent, torch.cat([real + share * (fake - real) for fake in fakes]), 1.0)
    found, metrics = step(gradient_penalty=10.0)
    assert relative_error(found - plain, 10 * gradient(value, agent.networks["actor"])) < 1e-3
    assert metrics["gradient_penalty"].item() == pytest.approx(value.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "fresh", "real_right", "fake_right"),
    [("log", 4, 3 / 4, 2 / 4), ("log", 2, 2 / 2, 1 / 2), ("wasserstein", 4, 2 / 4, 3 / 4)],
)
def test_accuracies_of_the_fresh_rows_by_hand(kind, fresh, real_right, fake_right):
    """A logit of exactly 0 is called fake. Of "wasserstein" the border is (0.875 + 0.375) / 2."""
    agent, real, fake = new_discriminator(reward_function=kind), pictures(0, 4), pictures(1, 4)
    logged = torch.tensor([[0.5, 3.0, 2.0, -2.0], [0.0, 0.5, -1.5, 2.5]])
    outputs = []
    for images, logits in zip((real, fake), logged, strict=True):
        features, own, classes = agent.networks["actor"].discriminate(images)
        outputs.append((features, own * 0 + logits, classes))
    metrics = agent.update(batch_of(real, [fake], outputs, new=fresh))
    assert (metrics["accuracy_real"].item(), metrics["accuracy_fake"].item()) == (real_right, fake_right)


def test_a_discriminators_critic_takes_features_and_a_logit_with_its_label():
    config = small_config(generators=3)
    critic = DiscriminatorAgent("discriminator", config, CPU).critic
    assert critic.embed.in_features == config.features and critic.embed_action[0].in_features == 2
