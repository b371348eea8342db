"""The game through PettingZoo: its own tests, and that nothing is won or lost on the way."""

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
both = pytest.mark.parametrize("names", [ONE, TWO], ids=["1x1", "2x2"])


def new_environment(names=ONE, episode_length=T):
    return Environment(small_faces(), B, episode_length, *names)


def new_env(names=ONE, episode_length=T):
    pytest.importorskip("pettingzoo")
    from magnet.game.parallel_env import ParallelEnvironment

    return ParallelEnvironment(new_environment(names, episode_length))


def sampled(env):
    """An action of every agent, at random."""
    return {name: env.action_space(name).sample() for name in env.agents}


def seeded(env, seed=3):
    """`env`, whose episodes and random actions begin anew."""
    env.reset(seed=seed)
    for space in env.action_spaces.values():
        space.seed(seed)
    return env


def episode(env):
    """The steps of an episode: what was observed, what was done, and all that came of it."""
    seen, results = env.reset()[0], []
    while env.agents:
        actions = sampled(env)
        results.append((seen, actions, *env.step(actions)))
        seen = results[-1][2]
    return results


@both
@pytest.mark.filterwarnings("error::UserWarning")  # as which half of its findings come
@pytest.mark.parametrize("cycles", [2, 10], ids=["cut short", "to the end"])
def test_pettingzoos_own_test_of_parallel_environments(names, cycles):
    env = new_env(names)
    from pettingzoo.test import parallel_api_test

    parallel_api_test(env, num_cycles=cycles)


@both
def test_pettingzoos_own_test_of_seeds(names):
    new_env()
    from pettingzoo.test import parallel_seed_test

    parallel_seed_test(lambda: new_env(names))


@both
@pytest.mark.filterwarnings("ignore::UserWarning")  # advice: agents that see alike, no more than three dimensions
def test_it_can_be_played_in_turns(names):
    """Many libraries want agents one after another; PettingZoo translates, and tests the translation more strictly."""
    env = new_env(names)
    from pettingzoo.test import api_test
    from pettingzoo.utils import parallel_to_aec

    api_test(parallel_to_aec(env), num_cycles=20)


@both
def test_rewards_are_the_games_own_one_step_late(names):
    game, env = new_environment(names), new_env(names)
    game.reset(seed=5)
    env.reset(seed=5)
    results = episode(env)
    assert len(results) == T + 1
    _, _, _, first_rewards, _, _, first_infos = results[0]
    assert set(first_rewards.values()) == {0.0} and not any(first_infos.values())
    for (_, generated, *_), (_, shown, _, rewards, _, truncated, infos) in zip(results, results[1:], strict=False):
        played = {name: generated[name] for name in names[0]} | {name: shown[name] for name in names[1]}
        played = {name: torch.from_numpy(action) for name, action in played.items()}
        _, expected, _, cut, indices = game.step(played)
        assert truncated == cut
        for name in names[0] + names[1]:
            np.testing.assert_array_equal(infos[name]["rewards"], expected[name].numpy())
            assert rewards[name] == pytest.approx(expected[name].mean().item())
            assert all((infos[name][key] == indices[key].numpy()).all() for key in ("state", "real", "next_real"))


@both
def test_discriminators_see_what_they_judge(names):
    """Beside the state that its generators were to foresee, that is, the real images by which they are judged."""
    env = new_env(names)
    env.reset(seed=0)
    results = episode(env)
    grey = np.zeros((len(names[0]), B, 3, 32, 32), np.float32)
    generated = [grey] + [np.stack([played[name] for name in names[0]]) for _, played, *_ in results]
    for images, (seen, _, _, _, _, _, infos) in zip(generated, results, strict=False):
        for name in names[1]:
            np.testing.assert_array_equal(seen[name][0], seen[names[0][0]])
            np.testing.assert_array_equal(seen[name][1:], images)
            if images is not grey:
                real = env.game.dataset.batch(torch.from_numpy(infos[name]["real"])).numpy()
                np.testing.assert_array_equal(seen[name][0], real)


def test_the_game_is_given_images_and_what_was_said_of_them(monkeypatch):
    env, given = new_env(), []
    step = env.game.step
    monkeypatch.setattr(env.game, "step", lambda actions: given.append(actions) or step(actions))
    env.reset(seed=0)
    results = episode(env)
    assert len(given) == T
    for played, (_, before, *_), (_, now, *_) in zip(given, results, results[1:], strict=False):
        np.testing.assert_array_equal(played["generator"].numpy(), before["generator"])
        np.testing.assert_array_equal(played["discriminator"].numpy(), now["discriminator"])


@both
def test_generators_see_the_state_that_they_answer(names):
    env = new_env(names)
    env.reset(seed=0)
    results = episode(env)
    for (seen, *_), (*_, infos) in zip(results, results[1:], strict=False):
        for name in names[0]:
            state = env.game.dataset.batch(torch.from_numpy(infos[name]["state"])).numpy()
            np.testing.assert_array_equal(seen[name], state)


def states(env, seed):
    """The states of two episodes."""
    env.reset(seed=seed)
    return np.stack([seen["generator"] for seen, *_ in episode(env) + episode(env)])


def test_a_seed_fixes_all_episodes_and_no_seed_none():
    env = new_env()
    first = states(env, 1)
    np.testing.assert_array_equal(states(env, 1), first)  # whatever was played before
    np.testing.assert_array_equal(states(new_env(), 1), first)
    assert not np.array_equal(states(env, 2), first)
    assert not np.array_equal(states(new_env(), None), states(new_env(), None))


def test_episodes_without_a_seed_go_on_through_the_images():
    shown = states(new_env(), 1)
    assert not np.array_equal(shown[0], shown[T + 1])


def test_agents_may_write_into_what_they_get():
    clean, env = new_env(TWO), new_env(TWO)
    clean.reset(seed=0), env.reset(seed=0)
    for _ in range(2 * T):
        if not env.agents:
            clean.reset(), env.reset()
        actions = sampled(clean)
        expected, _, _, _, expected_infos = clean.step(actions)
        seen, _, _, _, infos = env.step({name: action.copy() for name, action in actions.items()})
        for name in TWO[0] + TWO[1]:
            np.testing.assert_array_equal(seen[name], expected[name])
            assert all((infos[name][key] == value).all() for key, value in expected_infos[name].items())
            for array in (seen[name], *infos[name].values()):
                array[:] = 0


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
    actions = sampled(env) | {"generator": np.ones((B, 3, 32, 32), np.float32)}
    env.step(actions)
    spoil(actions)
    with pytest.raises(ValueError, match="generator|discriminator"):
        env.step(actions)


def test_after_the_end_reset_is_asked_for():
    env = new_env()
    episode(env)
    with pytest.raises(ValueError, match="reset"):
        env.step({})


def test_without_pettingzoo_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    monkeypatch.delitem(sys.modules, "magnet.game.parallel_env", raising=False)
    with pytest.raises(UserError, match="`pip3 install pettingzoo`"):
        import magnet.game.parallel_env  # noqa: F401


def test_the_trainer_does_not_need_pettingzoo():
    modules = "train, sample, evaluate, magnet.maddpg, magnet.evaluation.sampling, magnet.evaluation.scores"
    check = f"import sys; sys.modules['pettingzoo'] = sys.modules['gymnasium'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_an_extra_reward_is_part_of_what_generators_earn():
    pytest.importorskip("pettingzoo")
    from magnet.game.parallel_env import ParallelEnvironment

    games = [Environment(small_faces(), B, T, *ONE, extra=extra) for extra in (None, load_extra_reward("resemble"))]
    plain, extra = (episode(seeded(ParallelEnvironment(game))) for game in games)
    for (*_, infos), (*_, others) in zip(plain[1:], extra[1:], strict=True):
        assert others["generator"]["extra"].shape == (B, 1) and "extra" not in infos["generator"]
        shift = others["generator"]["rewards"] - infos["generator"]["rewards"]
        order = others["generator"]["extra"][:, 0].argsort()
        assert (np.diff(shift[order]) > 0).all()  # what is better by the function earns more
        np.testing.assert_array_equal(others["discriminator"]["rewards"], infos["discriminator"]["rewards"])
