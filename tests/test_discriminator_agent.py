"""The discriminator agent: what its update changes, and that every step has the direction that autograd gives for the
objective written down here once more."""

import pytest
import torch
from conftest import differing, gradient, new_agents, pictures, relative_error, small_config, watch_steps, weights
from torch.nn.functional import logsigmoid

from magnet.discriminator_agent import DiscriminatorAgent, logits_beside
from magnet.generator_agent import GeneratorAgent

B, NZ = 8, 6
LAMBDAS = pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])


def new_discriminator(**changes):
    return new_agents(DiscriminatorAgent, ["discriminator"], small_config(**changes))[0]


def update_discriminator(agent, generators, next_value=None, others=None):
    """One update on real images and those of `generators` generators. Returns its metrics."""
    real, fakes = pictures(0).requires_grad_(), [pictures(1 + i) for i in range(generators)]
    return agent.update(real, fakes, *agent.act(real, fakes), len(real), next_value, others)


REWARDS = {  # of logits on images of a side, and on those beside them
    "log": lambda logits, side, beside: logsigmoid(side * logits),
    "hinge": lambda logits, side, beside: -(1 - side * logits).relu(),
    "least-squares": lambda logits, side, beside: -((logits - side) ** 2) / 2,
    "wasserstein": lambda logits, side, beside: side * logits,
    "relativistic": lambda logits, side, beside: logsigmoid(side * (logits - beside)),
}


def discriminator_objectives(agent, generators, next_value, others=None):
    """What D_a ascends: the return and Q, both a mean over real images plus the mean over fakes; and D_c's loss."""
    real, fakes = pictures(0), [pictures(1 + i) for i in range(generators)]
    images, actor, critic = torch.cat([real, *fakes]), agent.networks["actor"], agent.networks["critic"]
    logits = torch.cat([actor(batch) for batch in (real, *fakes)])
    share = torch.cat([torch.full((B,), 1 / B), torch.full((generators * B,), 1 / (generators * B))])

    fake = logits[B:].detach().view(generators, B)
    beside = torch.cat([fake.mean(dim=0), *[logits[:B].detach()] * generators])

    def q(logits):
        return critic(images, logits[:, None] if others is None else torch.cat([logits[:, None], others], dim=1))

    def reward(logits):
        side = torch.cat([torch.ones(B), -torch.ones(generators * B)])
        return REWARDS[agent.config.returns](logits, side, beside)

    draw = torch.Generator()
    draw.set_state(agent.random.get_state())
    explored = (logits + torch.randn(logits.shape, generator=draw)).detach().requires_grad_()
    (return_slope,) = torch.autograd.grad(reward(explored).sum(), explored)
    value = q(explored)
    (slope,) = torch.autograd.grad(value.sum(), explored, create_graph=True)
    target = reward(explored).detach() + (0 if next_value is None else agent.config.gamma * next_value)
    td_error = (value - target).square().mean()
    loss = td_error + agent.config.slope_weight * (slope - return_slope).square().mean()
    cosine = (slope * return_slope).sum() / slope.norm() / return_slope.norm()
    return (share * reward(logits)).sum(), (share * q(logits)).sum(), loss, td_error, cosine


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
@pytest.mark.parametrize("kind", ["hinge", "least-squares", "wasserstein", "relativistic"])
def test_other_returns_teach_d_a_and_d_c_alike(kind, generators):
    agent = new_discriminator(returns=kind, lambda_discriminator=0.5, gradient_penalty=0.0)
    earned, value, loss, td_error, _ = discriminator_objectives(agent, generators, None)
    expected = gradient(loss, agent.networks["critic"]), -gradient((earned + value) / 2, agent.networks["actor"])
    steps = watch_steps(agent)
    metrics = update_discriminator(agent, generators)
    assert relative_error(steps["critic"], expected[0]) < 1e-4
    assert relative_error(steps["actor"], expected[1]) < 1e-4
    assert metrics["td_error"].item() == pytest.approx(td_error.item(), rel=1e-4)


def test_a_joint_critic_sees_what_the_others_do_and_shows_the_slope_in_its_own_action_alone():
    config = {"critic": "joint", "generators": 2, "discriminators": 3, "lambda_discriminator": 0.5}
    agent = new_discriminator(**config)
    others = torch.randn(3 * B, 2 * NZ + 2, generator=torch.Generator().manual_seed(3))
    earned, value, loss, td_error, cosine = discriminator_objectives(agent, 2, None, others)
    expected = gradient(loss, agent.networks["critic"]), -gradient((earned + value) / 2, agent.networks["actor"])
    steps = watch_steps(agent)
    metrics = update_discriminator(agent, 2, others=others)
    assert relative_error(steps["critic"], expected[0]) < 1e-4
    assert relative_error(steps["actor"], expected[1]) < 1e-4
    assert metrics["td_error"].item() == pytest.approx(td_error.item(), rel=1e-4)
    assert metrics["slope_cosine"].item() == pytest.approx(cosine.item(), abs=1e-4)

    def next_value(others):
        return torch.cat(agent.next_value(pictures(0), [pictures(1), pictures(2)], [torch.zeros(B)] * 3, others))

    assert not torch.allclose(next_value(others), next_value(others + 1))


def test_with_specialise_d_a_learns_beside_to_name_the_generators():
    def step(weight):
        agent = new_discriminator(generators=2, specialise=weight)
        steps = watch_steps(agent)
        return agent, steps, update_discriminator(agent, 2)

    agent = new_discriminator(generators=2, specialise=3.0)
    actor, fakes = agent.networks["actor"], [pictures(1), pictures(2)]
    names = [actor.name(actor.stack(fake)).log_softmax(dim=1) for fake in fakes]
    expected = -gradient(3.0 * torch.cat([name[:, i] for i, name in enumerate(names)]).mean(), actor)
    rightly = torch.cat([name.argmax(dim=1) == i for i, name in enumerate(names)]).float().mean()
    _, barely, _ = step(1e-9)
    _, steps, metrics = step(3.0)
    assert relative_error(steps["actor"] - barely["actor"], expected) < 1e-3
    assert metrics["named_rightly"].item() == rightly


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

    agent = new_discriminator(spectral_norm=spectral_norm)  # which makes a power iteration in each pass
    expected = gradient(penalty(agent, real, 0.0), agent.networks["actor"])
    found, metrics = steps_gradient(r1=3.0)
    assert relative_error(found - plain, 3 / 2 * expected) < 1e-3
    assert metrics["r1"].item() == pytest.approx(penalty(agent, real, 0.0).item(), rel=1e-2)

    agent = new_discriminator(spectral_norm=spectral_norm)
    agent.act(real, fakes)
    each = [penalty(agent, fake, 0.0) for fake in fakes]  # in passes of their own, as they are judged
    expected = gradient(sum(each) / generators, agent.networks["actor"])
    found, metrics = steps_gradient(r2=3.0)
    assert relative_error(found - plain, 3 / 2 * expected) < 1e-3

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
    agent = new_discriminator(gamma=0.9, lambda_discriminator=0.5, answers=2)
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


def test_relativistic_returns_compare_an_image_with_that_beside_it_in_the_game():
    """2 states are played, with 2 answers each, and 1 row is replayed: rows of the fakes are a0 a1 b0 b1 old."""
    real, fakes = torch.tensor([1.0, 2.0, 3.0]), [torch.tensor([10.0, 20, 30, 40, 50]), torch.tensor([0.0, 2, 4, 6, 8])]
    beside = logits_beside([real, *fakes], fresh=2, count=2).tolist()
    assert beside == [5, 11, 29, *[1, 2, 1, 2, 3], *[1, 2, 1, 2, 3]]
