"""The game: which images make a state, what the agents earn, when an episode ends, and how a saved game goes on."""

import dataclasses
import re

import pytest
import torch
from conftest import pictures, small_config, small_faces

from magnet.config import check
from magnet.data.image_dataset import to_uint8
from magnet.game import environment
from magnet.game.environment import Environment, refuse_too_few
from magnet.game.extra_rewards import ExtraReward
from magnet.game.rewards import REWARD_FUNCTIONS
from magnet.support import distributed
from magnet.support.errors import UserError

B, T = 8, 3
ONE, TWO = (["generator"], ["discriminator"]), (["g_0", "g_1"], ["d_0", "d_1"])


def new_environment(count=20, batch=B, episode_length=T, names=ONE, reward="log"):
    return Environment(small_faces(count), batch, episode_length, *names, reward)


def actions_in(game, logit=0.0):
    """Actions of every agent: grey images, and the same logit on all of them."""
    images = torch.zeros(game.batch, 3, 32, 32)
    logits = torch.full((1 + len(game.generators), game.batch), logit)
    return dict.fromkeys(game.generators, images) | dict.fromkeys(game.discriminators, logits)


def play(game, steps):
    """Resets where an episode ends. Returns each step's info, with the observations before and after the step."""
    observations, infos = game.reset(seed=0), []
    for _ in range(steps):
        before = observations
        observations, _, _, truncated, info = game.step(actions_in(game))
        infos.append(info | {"before": before, "after": observations})
        if all(truncated.values()):
            observations = game.reset()
    return infos


# States and episodes


@pytest.mark.parametrize("names", [ONE, TWO], ids=["1x1", "2x2"])
def test_every_agent_observes_images_and_has_a_reward_for_each(names):
    game = new_environment(names=names)
    observations, agents = game.reset(seed=0), set(names[0] + names[1])
    after, rewards, *others, _ = game.step(actions_in(game))
    assert all(set(values) == agents for values in (observations, after, rewards, *others))
    for images in observations.values():
        assert images.shape == (B, 3, 32, 32) and images.dtype == torch.float32 and images.abs().max() <= 1
    assert all(reward.shape == (B,) for reward in rewards.values())


@pytest.mark.parametrize("count", [2 * B, 2 * B + 1, 31])
def test_an_epoch_has_each_image_at_most_once_and_two_states_in_a_row_have_none_in_common(count):
    infos = play(new_environment(count), steps=60)  # 20 episodes, at least 15 epochs
    states = [infos[0]["state"], infos[0]["real"], *(info["next_real"] for info in infos)]
    for first, second in zip(states, states[1:], strict=False):
        assert len((torch.cat([first, second]) % count).unique()) == 2 * B
    per_epoch = count // B
    epochs = [states[i : i + per_epoch] for i in range(0, len(states) - per_epoch + 1, per_epoch)]
    assert all(len((torch.cat(epoch) % count).unique()) == per_epoch * B for epoch in epochs)
    assert len({tuple((epoch[0] % count).tolist()) for epoch in epochs}) == len(epochs), "each is shuffled"


def test_every_image_comes_as_it_is_and_mirrored():
    indices = torch.cat([info["real"] for info in play(new_environment(), steps=100)])
    assert indices.unique().tolist() == list(range(40))
    assert 0.4 < (indices >= 20).float().mean() < 0.6


def test_the_indices_in_info_are_those_of_the_observations_and_the_real_next_state_is_the_next_state():
    game = new_environment()
    for info in play(game, steps=7):
        assert torch.equal(info["before"]["generator"], game.dataset.batch(info["state"]))
        assert torch.equal(info["before"]["discriminator"], game.dataset.batch(info["real"]))
        assert torch.equal(info["after"]["generator"], game.dataset.batch(info["real"]))
        assert torch.equal(info["after"]["discriminator"], game.dataset.batch(info["next_real"]))


def test_the_next_state_does_not_depend_on_the_actions():
    games = new_environment(), new_environment()
    for game in games:
        game.reset(seed=0)
    for _ in range(5):
        after = [game.step(actions_in(game, logit))[0] for game, logit in zip(games, (-3.0, 3.0), strict=True)]
        assert torch.equal(after[0]["discriminator"], after[1]["discriminator"])


@pytest.mark.parametrize("length", [1, 3])
def test_episodes_are_truncated_after_t_steps_and_never_terminated(length):
    game = new_environment(episode_length=length)
    game.reset(seed=0)
    for _ in range(3):
        for t in range(1, length + 1):
            _, _, terminated, truncated, _ = game.step(actions_in(game))
            assert set(terminated.values()) == {False} and set(truncated.values()) == {t == length}
        game.reset()


# Rewards


@pytest.mark.parametrize("kind", ["log", "relativistic"])
def test_rewards_are_means_over_the_agents_of_the_other_side_for_any_number_of_rows(kind):
    """The rewards of replayed rows, which no step plays, are computed like those of the rows that are played."""
    generators, discriminators = ["g_0", "g_1"], ["d_0", "d_1", "d_2"]
    game, function = new_environment(batch=2, names=(generators, discriminators), reward=kind), REWARD_FUNCTIONS[kind]
    game.reset(seed=0)
    logits = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(1))  # discriminators, real and fakes, rows
    rewards = game.rewards(logits)
    for i, name in enumerate(generators):
        expected = sum(function.generator(logits[j, 1 + i], logits[j, 0]) for j in range(3)) / 3
        torch.testing.assert_close(rewards[name], expected)
    for j, name in enumerate(discriminators):
        expected = sum(function.discriminator(logits[j, 0], logits[j, 1 + i]) for i in range(2)) / 2
        torch.testing.assert_close(rewards[name], expected)
    _, paid, *_ = game.step(actions_in(game) | dict(zip(discriminators, logits[..., :2], strict=True)))
    assert list(paid) == list(rewards) == generators + discriminators
    for name, reward in paid.items():
        torch.testing.assert_close(reward, rewards[name][:2])


def brightness(states, images):
    """The mean of an image, and a hundredth of that of its state."""
    return images.mean((1, 2, 3)) + states.mean((1, 2, 3)) / 100


def test_the_extra_reward_is_added_in_standard_deviations_of_all_before():
    extra = ExtraReward("b", brightness, "b")
    waiting, late = (Environment(small_faces(), 4, T, *TWO, extra=extra, extra_weight=0.5) for _ in range(2))
    plain = new_environment(batch=4, names=TWO)
    for game in (waiting, late, plain):
        game.reset(seed=0)
    images = {"g_0": pictures(0, 4), "g_1": pictures(1, 4) / 2}
    actions = images | dict.fromkeys(TWO[1], torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    history = []
    for _ in range(3):
        states = to_uint8(plain.dataset.batch(plain.state)).numpy()
        expected = [torch.from_numpy(brightness(states, to_uint8(images[name]).numpy())).float() for name in TWO[0]]
        history.append(torch.stack(expected, dim=1))
        _, without, *_ = plain.step(actions)
        _, rewards, _, _, info = waiting.step(actions)
        _, late_rewards, _, _, late_info = late.step(actions, wait=False)
        assert torch.equal(info["extra"], history[-1]) and "extra" not in late_info
        assert torch.equal(late.compute_pending_rewards(), history[-1]) and late.compute_pending_rewards() is None
        all_rewards = torch.stack(history)
        for i, name in enumerate(TWO[0]):
            deviations = (expected[i] - all_rewards.mean()) / all_rewards.std(correction=0)
            torch.testing.assert_close(rewards[name], without[name] + 0.5 * deviations, rtol=0.02, atol=0.02)
            assert torch.equal(late_rewards[name], without[name])
        assert all(torch.equal(rewards[name], without[name]) for name in TWO[1])


# Seeds and saved games


def indices_of_two_episodes(game, seed):
    game.reset(seed=seed)
    indices = [game.step(actions_in(game))[-1]["state"] for _ in range(T)]
    game.reset()
    return torch.cat(indices + [game.step(actions_in(game))[-1]["state"] for _ in range(T)]).tolist()


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    before, game = torch.get_rng_state(), new_environment()
    first = indices_of_two_episodes(game, seed=1)
    assert indices_of_two_episodes(game, seed=1) == first  # whatever was played before
    assert indices_of_two_episodes(new_environment(), seed=1) == first
    assert indices_of_two_episodes(game, seed=2) != first
    assert torch.equal(torch.get_rng_state(), before), "the game has its own random generator"


@pytest.mark.parametrize("steps", [0, 2, 3, 4])
def test_a_restored_game_goes_on_identically(steps):
    game, restored = new_environment(), new_environment()
    play(game, steps)
    restored.reset(seed=99)
    state = game.state_dict()
    copies = {name: torch.as_tensor(value).clone() for name, value in state.items()}
    observations = restored.load_state_dict(state)
    assert torch.equal(observations["generator"], game.dataset.batch(game.state))
    assert torch.equal(observations["discriminator"], game.dataset.batch(game.real))
    for _ in range(10):
        results = [one.step(actions_in(one)) for one in (game, restored)]
        (_, _, _, truncated, info), (_, _, _, restored_truncated, restored_info) = results
        assert truncated == restored_truncated
        assert all(torch.equal(info[name], restored_info[name]) for name in ("state", "real", "next_real"))
        if all(truncated.values()):
            game.reset(), restored.reset()
    assert all(torch.equal(torch.as_tensor(state[name]), value) for name, value in copies.items()), "it stays as it was"


# Too few images


def test_too_few_images_for_two_states_are_refused():
    new_environment(2 * B)
    with pytest.raises(ValueError, match="15 images are too few for two states of 8"):
        new_environment(2 * B - 1)


@pytest.mark.parametrize(
    ("images", "batch_size", "replay_fraction", "sentence"),
    [
        (30, 64, 0.25, "faces: 30 images are too few for --batch-size 64, which needs 96: give `--batch-size 16` or"),
        (5, 8, 0.68, "which needs 6: give `--batch-size 7` or more images."),  # a batch of 4 has one new row
        (5, 16, 0.25, "5 images are too few for any --batch-size: give at least 6."),
    ],
)
def test_too_few_images_are_refused_with_a_batch_size_that_works(images, batch_size, replay_fraction, sentence):
    config = small_config(data="faces", batch_size=batch_size, replay_fraction=replay_fraction, replay_size=1000)
    with pytest.raises(UserError) as error:
        refuse_too_few(config, images)
    assert sentence in str(error.value)


@pytest.mark.parametrize(("fraction", "processes"), [(0.0, 2), (0.25, 1), (0.3, 2), (0.75, 1), (0.9, 2)])
def test_the_advised_batch_size_is_a_game_for_these_images(monkeypatch, fraction, processes):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    for batch_size in (10, 63, 64):
        config = small_config(batch_size=batch_size, replay_fraction=fraction, replay_size=1000, device="cpu")
        needed = 2 * environment.new_rows(config, batch_size)
        refuse_too_few(config, needed)
        for images in range(1, needed):
            with pytest.raises(UserError) as error:
                refuse_too_few(config, images)
            advice = re.search(r"give (?:`--batch-size (\d+)`|at least (\d+))", str(error.value))
            if advice[1]:
                advised = dataclasses.replace(config, batch_size=int(advice[1]))
                check(advised)
                distributed.require_even_shares(advised)
                environment.new_environment(advised, small_faces(images))
            else:  # so many are a game with some batch size, one less is none
                assert images < int(advice[2])
                with pytest.raises(UserError, match="too few for any"):
                    refuse_too_few(config, int(advice[2]) - 1)
