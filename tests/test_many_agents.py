"""Several generators and discriminators, and the options of the update: who learns when, and from what."""

import copy

import pytest
import torch
from conftest import differing, new_trainer, overhear, run, same, saved, small_faces, step_and_batch, weights
from torch.nn.functional import logsigmoid

from magnet import returns
from magnet.agent import joint_actions
from magnet.config import PRESETS, WITH_RETURNS, Config, check, complete
from magnet.environment import FaceGame
from magnet.errors import UserError
from magnet.evaluation import Evaluation
from magnet.faces import to_uint8
from magnet.metrics import sliced_wasserstein
from magnet.randomness import stream
from magnet.sampling import GRID_BATCH, FixedGrids, Sampler, draw

REPLAY = {"replay_fraction": 0.25, "answers": 2}
OPTIONS = {  # with two agents of each kind
    "shared, specialised": {"share": True, "specialise": 1.0},
    "joint, gamma": {"critic": "joint", "gamma": 0.9, "lambda_generator": 0.5, "lambda_discriminator": 0.5},
    "at once": {"updates": "simultaneous", "pool": "softmax"},
    "two steps, relativistic": {"discriminator_steps": 2, "returns": "relativistic", "r2": 1.0, "pool": "min"},
    "plain GANs": {"algorithm": "gan", "specialise": 1.0, "returns": "hinge"},
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


# Who learns when


def test_simultaneous_generators_answer_to_discriminators_as_they_were():
    trainer = new_trainer(2, 2, lr=0.01, updates="simultaneous")
    unlearned = copy.deepcopy([agent.networks["actor"] for agent in trainer.discriminators])
    metrics, batch = step_and_batch(trainer)
    for agent, images in zip(trainer.generators, batch.images, strict=True):
        stale = sum(logsigmoid(judge(images)).mean() for judge in unlearned) / 2
        assert metrics[f"{agent.name}/return"].item() == pytest.approx(stale.item(), rel=1e-4)


def test_the_discriminators_step_is_the_same_in_either_order():
    trainers = [new_trainer(2, 2, updates=updates) for updates in ("alternating", "simultaneous")]
    for trainer in trainers:
        trainer.step()
    one, other = (weights(trainer.discriminators) for trainer in trainers)
    assert differing(one, other) == set()
    one, other = (weights(trainer.generators) for trainer in trainers)
    assert "generator_0/generator" in differing(one, other)


def test_generators_learn_once_in_k_updates_of_the_discriminators():
    trainer, steps = new_trainer(discriminator_steps=3, replay_fraction=0.25), []
    for agent in trainer.agents:
        for key, optimizer in agent.optimizers.items():
            optimizer.register_step_post_hook(lambda *_, name=f"{agent.name}/{key}": steps.append(name))
    states, step = [], trainer.environment.step
    trainer.environment.step = lambda actions: states.append(trainer.environment.state) or step(actions)
    trainer.step()
    assert sorted(steps) == sorted(
        3 * ["discriminator/actor", "discriminator/critic"]
        + ["generator/actor", "generator/critic", "generator/generator"]
    )
    assert len({tuple(state.tolist()) for state in states}) == 3, "each on a state of its own"
    assert trainer.images_seen == 3 * 8 and trainer.config.images_per_step == 3 * 8
    assert len(trainer.replay) == 3 * 6
    assert trainer.steps_per_epoch == max(1, 20 // (3 * 6))


# What critics see


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_joint_critics_are_told_the_other_agents_actions(gamma):
    trainer = new_trainer(2, 2, critic="joint", gamma=gamma, **REPLAY)
    run(trainer, 1)
    lessons = [overhear(agent) for agent in trainer.agents]
    targets = copy.deepcopy([agent.targets for agent in trainer.agents])
    _, batch = step_and_batch(trainer)
    to_generators, to_discriminators = joint_actions(batch.z, batch.logits, 6)
    for (lesson,), others in zip(lessons, [*to_generators, *to_discriminators], strict=True):
        assert torch.equal(lesson["others"], others)
    if gamma:
        next_z = [targets[i]["actor"](batch.real, batch.memory[i])[0] for i in range(2)]
        next_images = [targets[i]["generator"](next_z[i]) for i in range(2)]
        next_real = trainer.faces.batch(batch.next_real)
        next_logits = [[targets[2 + j]["actor"](x) for x in (next_real, *next_images)] for j in range(2)]
        told = torch.cat([next_z[0], next_z[1], next_logits[0][1][:, None], next_logits[1][1][:, None]], dim=1)
        value = targets[0]["critic"](batch.real, told).detach()
        torch.testing.assert_close(lessons[0][0]["next_value"], torch.cat([value[:6], value[:6], value[6:]]))
    else:
        assert lessons[0][0]["next_value"] is None


def test_generators_that_share_differ_in_their_first_layer_alone():
    trainer = new_trainer(3, 1, share=True)
    run(trainer, 3)
    layers = [agent.networks["generator"].layers for agent in trainer.generators]
    for own, lent in zip(layers[1:], layers[:1] * 2, strict=True):
        assert not torch.equal(own[0].weight, lent[0].weight)
        assert all(mine is lents for mine, lents in zip(list(own)[1:], list(lent)[1:], strict=True))
        averaged = [agent.targets["generator"].layers[3].weight for agent in trainer.generators]
        assert torch.equal(averaged[0], averaged[1])
    assert all(p.grad is None for agent in trainer.agents for n in agent.networks.values() for p in n.parameters())


def test_each_generator_earns_by_the_name_that_is_its_own():
    trainer = new_trainer(2, 1, specialise=1.0, replay_fraction=0.0)
    judge = trainer.discriminators[0].networks["actor"]
    metrics, batch = step_and_batch(trainer)
    for i, agent in enumerate(trainer.generators):
        names = judge.name(judge.stack(batch.images[i])).log_softmax(dim=1)
        assert metrics[f"{agent.name}/told_apart"].item() == pytest.approx(names[:, i].mean().item(), rel=1e-4)


# What is shown


@pytest.mark.parametrize(("generators", "rows"), [(2, 4), (3, 2), (9, 1)])
def test_grids_have_rows_for_each_generator_of_the_same_noise_and_states(generators, rows):
    trainer = new_trainer(generators)
    grids = FixedGrids(trainer.generators, trainer.faces, 0)
    drawn = grids.draw()
    assert len(drawn["prior"]) == len(drawn["policy"]) == generators * rows * 8
    for i, agent in enumerate(trainer.generators):
        mine = drawn["prior"][i * rows * 8 : (i + 1) * rows * 8]
        assert torch.equal(mine, Sampler(agent, trainer.faces, batch=GRID_BATCH).prior(grids.z))
        assert torch.equal(drawn["policy"][i * rows * 8 :: 2][: rows * 4], grids.state)


@pytest.mark.parametrize("kind", ["prior", "policy", "interpolation"])
def test_every_generator_makes_its_share_of_the_samples(kind):
    trainer = new_trainer(3)
    faces = trainer.faces if kind == "policy" else None
    images, states = draw([Sampler(agent, faces) for agent in trainer.generators], kind, 8)
    alone = [draw([Sampler(agent, faces)], kind, n)[0] for agent, n in zip(trainer.generators, (3, 3, 2), strict=True)]
    assert torch.equal(images, torch.cat(alone))
    assert (states is None) == (kind != "policy")


def test_scores_during_training_are_of_all_generators():
    trainer = new_trainer(2, evaluate_every=1)
    evaluation = Evaluation(trainer.generators, trainer.faces, trainer.config)
    halves = [Sampler(a, None).prior(z) for a, z in zip(trainer.generators, evaluation.z.chunk(2), strict=True)]
    expected = sliced_wasserstein(to_uint8(torch.cat(halves)), evaluation.real, stream(0, "projections"))
    assert evaluation.after(1)["swd"] == pytest.approx(expected["swd"], rel=1e-5)


# Settings


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"specialise": 1.0}, "--specialise 1 is for several"),
        ({"share": True}, "--share is for several"),
        ({"algorithm": "gan", "critic": "joint"}, "no critics"),
        ({"returns": "wasserstein", "gradient_penalty": 0.0}, "needs a bound"),
    ],
)
def test_what_cannot_go_together_is_one_sentence(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        check(complete(flags))


def test_returns_bring_what_they_ask_for_unless_flags_say_otherwise():
    for kind, brought in WITH_RETURNS.items():
        config = complete(PRESETS["cpu"] | {"returns": kind})
        check(config)
        assert {name: getattr(config, name) for name in brought} == brought
        name, value = next(iter(brought.items()))
        assert getattr(complete({"returns": kind, name: value + 1}), name) == value + 1
    assert complete({}) == Config()


# The game


@pytest.mark.parametrize("how", ["mean", "min", "softmax"])
@pytest.mark.parametrize("kind", ["log", "hinge", "relativistic"])
def test_the_games_rewards_are_of_its_kind_and_pooled(kind, how):
    generators, discriminators = ["g_0", "g_1"], ["d_0", "d_1", "d_2"]
    game = FaceGame(small_faces(), 4, 3, generators, discriminators, kind, how)
    game.reset(0)
    logits = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))  # discriminators, real and fakes, B
    shown = dict.fromkeys(generators, torch.zeros(4, 3, 32, 32))
    _, rewards, *_ = game.step(shown | dict(zip(discriminators, logits, strict=True)))
    for i, name in enumerate(generators):
        each = [returns.generator_return(logits[j, 1 + i], kind, logits[j, 0]) for j in range(3)]
        torch.testing.assert_close(rewards[name], returns.pool(torch.stack(each), how))
    for j, name in enumerate(discriminators):
        each = [
            returns.discriminator_return(real_logits=logits[j, 0], fake_logits=logits[j, 1 + i], kind=kind)
            for i in range(2)
        ]
        torch.testing.assert_close(rewards[name], sum(each) / 2)


def test_what_the_log_calls_return_is_what_the_game_pays():
    trainer = new_trainer(2, 2, pool="min", returns="relativistic", updates="simultaneous", replay_fraction=0.0)
    paid, step = [], trainer.environment.step
    trainer.environment.step = lambda actions: paid.append(step(actions)) or paid[0]
    metrics = trainer.step()
    for agent in trainer.agents:
        assert metrics[f"{agent.name}/return"].item() == pytest.approx(paid[0][1][agent.name].mean().item(), rel=1e-4)
