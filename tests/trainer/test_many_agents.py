"""Several generators and discriminators: who learns from what, what is shown of them, and what the game pays them."""

import pytest
import torch
from conftest import differing, new_trainer, overhear, run, same, saved, small_faces, step_and_batch, weights
from test_maddpg import networks_of

from magnet.config import PRESETS, REWARD_FUNCTION_DEFAULTS, Config, check, complete
from magnet.data.image_dataset import to_uint8
from magnet.evaluation.drawing import draw
from magnet.evaluation.metrics import sliced_wasserstein
from magnet.evaluation.sampling import GRID_BATCH, FixedGrids, Sampler
from magnet.evaluation.scores import Evaluation
from magnet.game.environment import Environment
from magnet.game.rewards import REWARD_FUNCTIONS
from magnet.support.errors import UserError
from magnet.support.random_streams import stream

pytestmark = pytest.mark.usefixtures("every_step")

REPLAY = {"replay_fraction": 0.25}
OPTIONS = {  # with two agents of each kind
    "specialised": {"specialise": 1.0},
    "gamma, between critic and return": {"gamma": 0.9},
    "relativistic, penalties": {"reward_function": "relativistic", "r1": 0.1, "r1_every": 2, "r2": 1.0},
    "specialised without critics": {"specialise": 1.0, "critics": "none"},
    "plain GANs": {"algorithm": "gan", "specialise": 1.0, "reward_function": "hinge"},
}
EACH_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@EACH_OPTION
def test_every_agent_learns_and_all_numbers_are_finite(options):
    trainer = new_trainer(2, 2, **REPLAY, **options)
    for _ in range(2):
        before = weights(trainer.agents)
        metrics = trainer.step()
        assert differing(before, weights(trainer.agents)) == set(before)
    assert all(value.isfinite() for value in metrics.values())
    assert {name.split("/")[0] for name in metrics} == {agent.name for agent in trainer.agents}


@EACH_OPTION
def test_several_agents_go_on_exactly_from_what_was_saved(options):
    whole, restored = (new_trainer(2, 2, seed=seed, **REPLAY, **options) for seed in (0, 7))
    run(whole, 2)
    restored.load_state_dict(saved(whole))
    assert run(restored, 2) == run(whole, 2)
    assert same(saved(restored), saved(whole))


# What critics see


def test_critics_see_the_features_of_the_discriminators_as_they_were_and_whose_an_image_is():
    trainer = new_trainer(3, 2, lr=0.01, **REPLAY)
    run(trainer, 1)
    heard, before = [overhear(agent) for agent in trainer.agents], networks_of(trainer)
    states = [agent.random.get_state() for agent in trainer.discriminators]
    _, batch = step_and_batch(trainer)
    shown = [
        [networks["actor"].discriminate(images) for images in (batch.real, *batch.played_images)]
        for networks in before[3:]
    ]
    for i in range(3):
        (critic_batch,) = heard[i]
        assert critic_batch["actions"].shape == (8, 2)
        torch.testing.assert_close(critic_batch["actions"], torch.stack([one[1 + i][1] for one in shown], 1).detach())
        torch.testing.assert_close(critic_batch["features"], batch.acts[i].embedding)
    labels = torch.tensor(8 * [1.0] + 3 * 8 * [-1.0])
    for (critic_batch,), outputs, state in zip(heard[3:], shown, states, strict=True):
        torch.testing.assert_close(critic_batch["features"], torch.cat([one for one, *_ in outputs]).detach())
        logits, draw = torch.cat([one for _, one, _ in outputs]).detach(), torch.Generator()
        draw.set_state(state)
        explored = labels * logits + torch.randn(4 * 8, generator=draw)
        torch.testing.assert_close(critic_batch["actions"], torch.stack([explored, labels], dim=1))
        assert critic_batch["next_value"] is None


def test_each_generator_earns_by_the_class_that_is_its_own():
    trainer = new_trainer(2, 2, specialise=1.0, lr=0.01)
    d_as = [agent.networks["actor"] for agent in trainer.discriminators]  # they have learned before generators earn
    metrics, batch = step_and_batch(trainer)
    for i, agent in enumerate(trainer.generators):
        chances = [d_a.classifier(d_a.stack(batch.policy_images[i])).log_softmax(dim=1)[:, i].mean() for d_a in d_as]
        assert metrics[f"{agent.name}/classification"].item() == pytest.approx(sum(chances).item() / 2, rel=1e-4)


# What is shown


@pytest.mark.parametrize(("generators", "rows"), [(2, 4), (3, 2), (9, 1)])
def test_grids_have_rows_for_each_generator_of_the_same_noise_and_states(generators, rows):
    trainer = new_trainer(generators)
    grids = FixedGrids(trainer.generators, trainer.dataset, 0)
    drawn = grids.draw()
    assert len(drawn["prior"]) == len(drawn["policy"]) == generators * rows * 8
    for i, agent in enumerate(trainer.generators):
        mine = drawn["prior"][i * rows * 8 : (i + 1) * rows * 8]
        assert torch.equal(mine, Sampler(agent, trainer.dataset, batch=GRID_BATCH).generate(grids.z))
        assert torch.equal(drawn["policy"][i * rows * 8 :: 2][: rows * 4], grids.states)


@pytest.mark.parametrize("kind", ["prior", "policy", "interpolation"])
def test_every_generator_makes_its_share_of_the_samples(kind):
    trainer = new_trainer(3)
    faces = trainer.dataset if kind == "policy" else None
    images, states = draw([Sampler(agent, faces) for agent in trainer.generators], kind, 8)
    alone = [draw([Sampler(agent, faces)], kind, n)[0] for agent, n in zip(trainer.generators, (3, 3, 2), strict=True)]
    assert torch.equal(images, torch.cat(alone))
    assert (states is None) == (kind != "policy")


def test_scores_during_training_are_of_all_generators():
    trainer = new_trainer(2, evaluate_every=1)
    evaluation = Evaluation(trainer.generators, trainer.dataset, trainer.config)
    halves = [Sampler(a, None).generate(z) for a, z in zip(trainer.generators, evaluation.z.chunk(2), strict=True)]
    expected = sliced_wasserstein(to_uint8(torch.cat(halves)), evaluation.real, stream(0, "projections"))
    assert evaluation.score(1)["swd"] == pytest.approx(expected["swd"], rel=1e-5)


# Settings


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"specialise": 1.0}, "--specialise 1 is for several"),
        ({"algorithm": "gan", "gamma": 0.5}, "this game has none: give --gamma 0"),
        ({"critics": "none", "gamma": 0.5}, "this game has none: give --gamma 0"),
        ({"reward_function": "wasserstein", "gradient_penalty": 0.0}, "needs bounded"),
    ],
)
def test_what_cannot_go_together_is_one_sentence(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        check(complete(flags))


def test_returns_bring_what_they_ask_for_unless_flags_say_otherwise():
    for kind, brought in REWARD_FUNCTION_DEFAULTS.items():
        config = complete(PRESETS["cpu"] | {"reward_function": kind})
        check(config)
        assert {name: getattr(config, name) for name in brought} == brought
        name, value = next(iter(brought.items()))
        assert getattr(complete({"reward_function": kind, name: value + 1}), name) == value + 1
    assert complete({}) == Config()


# The game


@pytest.mark.parametrize("kind", ["log", "hinge", "relativistic"])
def test_the_games_rewards_are_of_its_kind_and_means_over_the_others(kind):
    generators, discriminators = ["g_0", "g_1"], ["d_0", "d_1", "d_2"]
    game = Environment(small_faces(), 4, 3, generators, discriminators, kind)
    game.reset(0)
    logits = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))  # discriminators, real and fakes, B
    shown = dict.fromkeys(generators, torch.zeros(4, 3, 32, 32))
    _, rewards, *_ = game.step(shown | dict(zip(discriminators, logits, strict=True)))
    for i, name in enumerate(generators):
        each = [REWARD_FUNCTIONS[kind].generator(logits[j, 1 + i], logits[j, 0]) for j in range(3)]
        torch.testing.assert_close(rewards[name], sum(each) / 3)
    for j, name in enumerate(discriminators):
        each = [REWARD_FUNCTIONS[kind].discriminator(logits[j, 0], logits[j, 1 + i]) for i in range(2)]
        torch.testing.assert_close(rewards[name], sum(each) / 2)


def test_what_the_log_calls_return_and_generators_critics_learn_from_is_what_the_game_pays():
    trainer = new_trainer(2, 2, reward_function="relativistic", lr=0.01, **REPLAY)
    run(trainer, 1)
    paid, step = [], trainer.environment.step
    trainer.environment.step = lambda actions: paid.append(step(actions)) or paid[0]
    heard = [overhear(agent) for agent in trainer.generators]
    metrics = trainer.step()
    rewards = paid[0][1]
    for agent in trainer.agents:
        assert metrics[f"{agent.name}/reward"].item() == pytest.approx(rewards[agent.name].mean().item(), rel=1e-4)
    for agent, (critic_batch,) in zip(trainer.generators, heard, strict=True):
        assert torch.equal(critic_batch["reward"][:6], rewards[agent.name]) and len(critic_batch["reward"]) == 8
