"""The game through PettingZoo: PettingZoo's own tests, and what agents observe and earn."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import small_faces

from magnet.game.environment import Environment
from magnet.game.extra_rewards import load_extra_reward
from magnet.support.errors import UserError

B, T = 4, 3
ONE, TWO = (["generator"], ["discriminator"]), (["g_0", "g_1"], ["d_0", "d_1"])
TEAMS = pytest.mark.parametrize("names", [ONE, TWO], ids=["1x1", "2x2"])


def new_env(names=ONE, extra=None):
    pytest.importorskip("pettingzoo")
    from magnet.game.parallel_env import ParallelEnvironment

    return ParallelEnvironment(Environment(small_faces(), B, T, *names, extra=extra))


def sample_actions(env):
    return {name: env.action_space(name).sample() for name in env.agents}


def play_episode(env, seed=None):
    """The steps of an episode: observations, actions, and all that `step` returns."""
    observations, results = env.reset(seed=seed)[0], []
    while env.agents:
        actions = sample_actions(env)
        results.append((observations, actions, *env.step(actions)))
        observations = results[-1][2]
    return results


# PettingZoo's own tests


@TEAMS
@pytest.mark.filterwarnings("error::UserWarning")  # half of its findings are warnings
@pytest.mark.parametrize("cycles", [2, 10], ids=["cut short", "to the end"])
def test_pettingzoos_test_of_parallel_environments(names, cycles):
    env = new_env(names)
    from pettingzoo.test import parallel_api_test

    parallel_api_test(env, num_cycles=cycles)


@TEAMS
def test_pettingzoos_test_of_seeds(names):
    new_env()
    from pettingzoo.test import parallel_seed_test

    parallel_seed_test(lambda: new_env(names))


@TEAMS
@pytest.mark.filterwarnings("ignore::UserWarning")  # advice: agents that observe alike, no more than three dimensions
def test_it_can_be_played_in_turns(names):
    """Many libraries want one agent after another; PettingZoo converts, and its test of that is stricter."""
    env = new_env(names)
    from pettingzoo.test import api_test
    from pettingzoo.utils import parallel_to_aec

    api_test(parallel_to_aec(env), num_cycles=20)


# An episode


@TEAMS
def test_rewards_are_the_games_own_one_step_late(names):
    """The game gets a generator's images, and the logits by which discriminators answer them in the next step.

    The extra reward depends on images and states, so it shows that the game gets the right ones.
    """
    extra = load_extra_reward("resemble")
    game, env = Environment(small_faces(), B, T, *names, extra=extra), new_env(names, extra)
    game.reset(seed=5)
    results = play_episode(env, seed=5)
    assert len(results) == T + 1
    _, _, _, first_rewards, _, _, first_infos = results[0]
    assert set(first_rewards.values()) == {0.0} and not any(first_infos.values())
    for (_, generated, *_), (_, classified, _, rewards, _, truncated, infos) in zip(results, results[1:], strict=False):
        actions = {name: generated[name] for name in names[0]} | {name: classified[name] for name in names[1]}
        _, expected, _, end, indices = game.step({name: torch.from_numpy(one) for name, one in actions.items()})
        assert truncated == end
        for name in names[0] + names[1]:
            np.testing.assert_array_equal(infos[name]["rewards"], expected[name].numpy())
            assert rewards[name] == pytest.approx(expected[name].mean().item())
            assert all((infos[name][key] == value.numpy()).all() for key, value in indices.items())


@TEAMS
def test_agents_observe_states_and_discriminators_the_images_that_they_classify(names):
    """Beside the images, a discriminator observes the next state: the real images with which they are compared."""
    env = new_env(names)
    results = play_episode(env, seed=0)

    def faces(indices):
        return env.game.dataset.batch(torch.from_numpy(indices)).numpy()

    grey = np.zeros((len(names[0]), B, 3, 32, 32), np.float32)
    generated = [grey, *(np.stack([actions[name] for name in names[0]]) for _, actions, *_ in results)]
    next_infos = [infos for *_, infos in results[1:]] + [None]
    for images, (observations, *_, infos), later in zip(generated, results, next_infos, strict=False):
        for name in names[1]:
            np.testing.assert_array_equal(observations[name][0], observations[names[0][0]])
            np.testing.assert_array_equal(observations[name][1:], images)
            if images is not grey:
                np.testing.assert_array_equal(observations[name][0], faces(infos[name]["real"]))
        for name in names[0]:
            if later:
                np.testing.assert_array_equal(observations[name], faces(later[name]["state"]))


def states_of_two_episodes(env, seed):
    return np.stack([one["generator"] for one, *_ in play_episode(env, seed) + play_episode(env)])


def test_a_seed_fixes_all_episodes_and_without_one_they_differ():
    env = new_env()
    first = states_of_two_episodes(env, 1)
    np.testing.assert_array_equal(states_of_two_episodes(env, 1), first)  # whatever was played before
    np.testing.assert_array_equal(states_of_two_episodes(new_env(), 1), first)
    assert not np.array_equal(states_of_two_episodes(env, 2), first)
    assert not np.array_equal(states_of_two_episodes(new_env(), None), states_of_two_episodes(new_env(), None))
    assert not np.array_equal(first[0], first[T + 1]), "the next episode has other images"


def test_agents_may_overwrite_what_step_returns():
    clean, env = new_env(TWO), new_env(TWO)
    clean.reset(seed=0), env.reset(seed=0)
    for _ in range(2 * T):
        if not env.agents:
            clean.reset(), env.reset()
        actions = sample_actions(clean)
        expected, _, _, _, expected_infos = clean.step(actions)
        observations, _, _, _, infos = env.step({name: action.copy() for name, action in actions.items()})
        for name in TWO[0] + TWO[1]:
            np.testing.assert_array_equal(observations[name], expected[name])
            assert all((infos[name][key] == value).all() for key, value in expected_infos[name].items())
            for array in (observations[name], *infos[name].values()):
                array[:] = 0


# Mistakes


@pytest.mark.parametrize(
    "spoil",
    [
        lambda actions: actions.pop("generator"),
        lambda actions: actions.update(stranger=actions["generator"]),
        lambda actions: actions.update(generator=actions["generator"] * 1.5),
        lambda actions: actions.update(discriminator=actions["discriminator"].T),
        lambda actions: actions.update(discriminator=actions["discriminator"] * np.float32("nan")),
    ],
    ids=["missing", "stranger", "too bright", "transposed", "not a number"],
)
def test_other_actions_are_refused(spoil):
    env = new_env()
    env.reset(seed=0)
    actions = sample_actions(env) | {"generator": np.ones((B, 3, 32, 32), np.float32)}
    env.step(actions)
    spoil(actions)
    with pytest.raises(ValueError, match="generator|discriminator"):
        env.step(actions)


def test_after_the_end_the_message_asks_for_reset():
    env = new_env()
    play_episode(env)
    with pytest.raises(ValueError, match="reset"):
        env.step({})


def test_without_pettingzoo_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    monkeypatch.delitem(sys.modules, "magnet.game.parallel_env", raising=False)
    with pytest.raises(UserError, match="`pip3 install pettingzoo`"):
        import magnet.game.parallel_env  # noqa: F401


def test_the_programs_do_not_need_pettingzoo():
    modules = "train, sample, evaluate, magnet.maddpg, magnet.evaluation.sampling, magnet.evaluation.scores"
    check = f"import sys; sys.modules['pettingzoo'] = sys.modules['gymnasium'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", check], check=True)
