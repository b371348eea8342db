"""The game: which images make a state, what the agents earn, when an episode ends, and that it can be gone on with."""

import dataclasses
import math
import re

import pytest
import torch
from conftest import pictures, small_config, small_faces

from magnet.config import check
from magnet.data.image_dataset import to_uint8
from magnet.game import environment
from magnet.game.environment import Environment, refuse_too_few
from magnet.game.extra_rewards import ExtraReward
from magnet.support import distributed
from magnet.support.errors import UserError

B, T = 8, 3
ONE, TWO = (["generator"], ["discriminator"]), (["g_0", "g_1"], ["d_0", "d_1"])
FOREVER = 10**9


def new_environment(count=20, batch=B, episode_length=T, names=ONE, kind="log"):
    return Environment(small_faces(count), batch, episode_length, *names, kind)


def answer(game, logit=0.0):
    """Actions of every agent; the game wants images of generators, and looks only at the logits."""
    images = torch.zeros(game.batch, 3, 32, 32)
    logits = torch.full((1 + len(game.generators), game.batch), logit)
    return dict.fromkeys(game.generators, images) | dict.fromkeys(game.discriminators, logits)


def play(game, steps):
    """Steps that reset where an episode ends: the info of each, with the observations that it was played on."""
    observations, infos = game.reset(seed=0), []
    for _ in range(steps):
        seen = observations
        observations, _, _, truncated, info = game.step(answer(game))
        infos.append(info | {"seen": seen, "next": observations})
        if all(truncated.values()):
            observations = game.reset()
    return infos


@pytest.mark.parametrize("names", [ONE, TWO], ids=["1x1", "2x2"])
def test_every_dict_has_an_entry_for_each_agent(names):
    game = new_environment(names=names)
    observations = game.reset(seed=0)
    everyone = set(names[0] + names[1])
    assert set(observations) == everyone
    assert all(set(returned) == everyone for returned in game.step(answer(game))[:4])


def test_observations_are_images_and_rewards_are_one_per_image():
    game = new_environment()
    observations = game.reset(seed=0)
    _, rewards, *_ = game.step(answer(game))
    assert all(seen.shape == (B, 3, 32, 32) and seen.dtype == torch.float32 for seen in observations.values())
    assert all(seen.abs().max() <= 1 for seen in observations.values())
    assert all(reward.shape == (B,) for reward in rewards.values())


@pytest.mark.parametrize("count", [2 * B, 2 * B + 1, 20, 3 * B, 31])
def test_no_image_stands_twice_in_two_consecutive_states(count):
    infos = play(new_environment(count), steps=60)  # 20 episodes, at least 15 shuffled orders
    for info in infos:
        state, real, next_real = (info[name] % count for name in ("state", "real", "next_real"))
        assert len(torch.cat([state, real]).unique()) == 2 * B
        assert len(torch.cat([real, next_real]).unique()) == 2 * B


@pytest.mark.parametrize("count", [2 * B, 2 * B + 1, 20, 3 * B, 31])
def test_an_epoch_shows_each_image_at_most_once(count):
    infos = play(new_environment(count, episode_length=FOREVER), steps=60)
    states = [infos[0]["state"], infos[0]["real"], *(info["next_real"] for info in infos)]
    per_epoch = count // B
    for start in range(0, len(states) - per_epoch + 1, per_epoch):
        epoch = torch.cat(states[start : start + per_epoch]) % count
        assert len(epoch.unique()) == per_epoch * B


def test_every_image_comes_as_it_is_and_mirrored():
    shown = torch.cat([info["real"] for info in play(new_environment(), steps=100)])
    assert shown.unique().tolist() == list(range(40))
    assert 0.4 < (shown >= 20).float().mean() < 0.6


def test_orders_are_shuffled_anew():
    infos = play(new_environment(2 * B + 1, episode_length=FOREVER), steps=12)
    assert len({tuple(sorted((info["real"] % 17).tolist())) for info in infos}) > 6


def test_the_indices_in_info_are_those_of_the_observations():
    game = new_environment()
    for info in play(game, steps=7):
        assert torch.equal(info["seen"]["generator"], game.dataset.batch(info["state"]))
        assert torch.equal(info["seen"]["discriminator"], game.dataset.batch(info["real"]))
        assert torch.equal(info["next"]["discriminator"], game.dataset.batch(info["next_real"]))


def test_the_real_next_state_is_the_next_state():
    for info in play(new_environment(), steps=7):
        assert torch.equal(info["next"]["generator"], info["seen"]["discriminator"])


def test_the_next_state_does_not_depend_on_the_actions():
    games = new_environment(), new_environment()
    for game in games:
        game.reset(seed=0)
    for _ in range(5):
        nexts = [game.step(answer(game, logit))[0] for game, logit in zip(games, (-3.0, 3.0), strict=True)]
        assert torch.equal(nexts[0]["discriminator"], nexts[1]["discriminator"])


def test_rewards_by_hand_for_one_generator_and_one_discriminator():
    game = new_environment(batch=2)
    game.reset(seed=0)
    chances = torch.tensor([[1 / 2, 3 / 4], [1 / 4, 1 / 10]])  # of being real: row 0 real images, row 1 fakes
    _, rewards, *_ = game.step({"generator": torch.zeros(2, 3, 32, 32), "discriminator": chances.logit()})
    torch.testing.assert_close(rewards["generator"], torch.tensor([1 / 4, 1 / 10]).log())
    torch.testing.assert_close(rewards["discriminator"], torch.tensor([1 / 2 * 3 / 4, 3 / 4 * 9 / 10]).log())


def test_in_the_minimax_game_the_generators_reward_is_the_discriminators_loss():
    game = new_environment(batch=2, kind="minimax")
    game.reset(seed=0)
    chances = torch.tensor([[1 / 2, 3 / 4], [1 / 4, 1 / 10]])
    _, rewards, *_ = game.step({"generator": torch.zeros(2, 3, 32, 32), "discriminator": chances.logit()})
    torch.testing.assert_close(rewards["generator"], -torch.tensor([3 / 4, 9 / 10]).log())


def test_rewards_by_hand_for_two_generators_and_two_discriminators():
    game = new_environment(batch=1, names=TWO)
    game.reset(seed=0)
    images = torch.zeros(1, 3, 32, 32)
    discriminated = {  # chances of the real image, of g_0's and of g_1's
        "d_0": torch.tensor([[1 / 2], [1 / 4], [1 / 3]]).logit(),
        "d_1": torch.tensor([[3 / 4], [3 / 5], [1 / 10]]).logit(),
    }
    _, rewards, *_ = game.step({"g_0": images, "g_1": images} | discriminated)
    expected = {
        "g_0": (math.log(1 / 4) + math.log(3 / 5)) / 2,
        "g_1": (math.log(1 / 3) + math.log(1 / 10)) / 2,
        "d_0": math.log(1 / 2) + (math.log(3 / 4) + math.log(2 / 3)) / 2,
        "d_1": math.log(3 / 4) + (math.log(2 / 5) + math.log(9 / 10)) / 2,
    }
    assert {name: reward.item() for name, reward in rewards.items()} == pytest.approx(expected)


LOGITS = torch.tensor([[[2.0], [-0.5], [1.0]], [[-1.0], [3.0], [0.0]]])  # of two: on the real image, then on the fakes
SIGMOID = {x: 1 / (1 + math.exp(-x)) for x in (2.5, 1, -4, -1)}
HINGE = {  # worked out by hand for LOGITS
    "g_0": (-0.5 + 3) / 2, "g_1": (1 + 0) / 2,
    "d_0": 0 + (-0.5 - 2) / 2, "d_1": -2 + (-4 - 1) / 2,
}  # fmt: skip
LEAST_SQUARES = {
    "g_0": -(1.5**2 + 2**2) / 4, "g_1": -(0 + 1) / 4,
    "d_0": -(1**2) / 2 - (0.5**2 + 2**2) / 4, "d_1": -(2**2) / 2 - (4**2 + 1) / 4,
}  # fmt: skip
RELATIVISTIC = {  # of each image against the real one beside it, by the same discriminator
    "g_0": (math.log(1 - SIGMOID[2.5]) + math.log(1 - SIGMOID[-4])) / 2,
    "g_1": (math.log(1 - SIGMOID[1]) + math.log(1 - SIGMOID[-1])) / 2,
    "d_0": (math.log(SIGMOID[2.5]) + math.log(SIGMOID[1])) / 2,
    "d_1": (math.log(SIGMOID[-4]) + math.log(SIGMOID[-1])) / 2,
}


@pytest.mark.parametrize(
    ("kind", "expected"), [("hinge", HINGE), ("least-squares", LEAST_SQUARES), ("relativistic", RELATIVISTIC)]
)
def test_rewards_of_other_kinds_by_hand(kind, expected):
    rewards = new_environment(batch=1, names=TWO, kind=kind).rewards(LOGITS)
    assert {name: reward.item() for name, reward in rewards.items()} == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["log", "minimax", "hinge", "least-squares", "wasserstein", "relativistic"])
def test_a_step_pays_the_rewards_of_its_logits_for_any_number_of_rows(kind):
    """Those of replayed rows, which no step plays, are computed like those of the rows that are played."""
    game = new_environment(batch=2, names=TWO, kind=kind)
    game.reset(seed=0)
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    whole = game.rewards(logits)
    actions = dict(zip(game.discriminators, logits[..., :2], strict=True))
    _, paid, *_ = game.step(dict.fromkeys(game.generators, torch.zeros(2, 3, 32, 32)) | actions)
    assert set(whole) == set(paid) == {"g_0", "g_1", "d_0", "d_1"}
    for name, reward in paid.items():
        assert whole[name].shape == (5,)
        torch.testing.assert_close(reward, whole[name][:2])


def test_a_game_of_an_unknown_kind_of_returns_is_refused():
    with pytest.raises(ValueError, match="there is no reward function 'logg'"):
        new_environment(kind="logg").rewards(torch.zeros(1, 2, B))


@pytest.mark.parametrize("length", [1, 3])
def test_episodes_are_truncated_after_t_steps_and_never_terminated(length):
    game = new_environment(episode_length=length)
    game.reset(seed=0)
    for _ in range(3):
        for t in range(1, length + 1):
            _, _, terminated, truncated, _ = game.step(answer(game))
            assert set(terminated.values()) == {False}
            assert set(truncated.values()) == {t == length}
        game.reset()


def sequence(game, seed):
    """The indices of two episodes."""
    game.reset(seed=seed)
    shown = [game.step(answer(game))[-1]["state"] for _ in range(T)]
    game.reset()
    return torch.cat(shown + [game.step(answer(game))[-1]["state"] for _ in range(T)]).tolist()


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    game = new_environment()
    first = sequence(game, seed=1)
    assert sequence(game, seed=1) == first  # whatever was played before
    assert sequence(new_environment(), seed=1) == first
    assert sequence(game, seed=2) != first


def test_the_game_draws_from_its_own_random_generator():
    before = torch.get_rng_state()
    sequence(new_environment(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", range(5))
def test_a_restored_game_goes_on_identically(steps):
    game, restored = new_environment(), new_environment()
    play(game, steps)
    restored.reset(seed=99)
    saved = game.state_dict()
    observations = restored.load_state_dict(saved)
    assert torch.equal(observations["generator"], game.dataset.batch(game.state))
    assert torch.equal(observations["discriminator"], game.dataset.batch(game.real))
    for _ in range(10):
        results = [one.step(answer(one)) for one in (game, restored)]
        (_, _, _, truncated, info), (_, _, _, truncated_too, info_too) = results
        assert truncated == truncated_too
        assert all(torch.equal(info[name], info_too[name]) for name in ("state", "real", "next_real"))
        if all(truncated.values()):
            game.reset(), restored.reset()


def test_a_saved_state_stays_as_it_was_when_the_game_goes_on():
    game = new_environment()
    play(game, 2)
    saved = game.state_dict()
    kept = {name: torch.as_tensor(value).clone() for name, value in saved.items()}
    for _ in range(10):
        game.step(answer(game))
    assert all(torch.equal(torch.as_tensor(saved[name]), value) for name, value in kept.items())


def test_too_few_images_for_two_states_are_refused():
    new_environment(2 * B)
    with pytest.raises(ValueError, match="15 images are too few for two states of 8"):
        new_environment(2 * B - 1)


@pytest.mark.parametrize(
    ("images", "batch_size", "replay_fraction", "sentence"),
    [
        (30, 64, 0.25, "faces: 30 images are too few for --batch-size 64, which needs 96: give `--batch-size 16` or"),
        (95, 64, 0.25, "which needs 96: give `--batch-size 32` or more images."),
        (11, 6, 0.0, "which needs 12: give `--batch-size 4` or"),
        (7, 16, 0.75, "which needs 8: give `--batch-size 8` or"),  # of 4 rows one would be new, too few
        (9, 100, 0.9, "which needs 20: give `--batch-size 32` or"),
        (5, 9, 0.6, "which needs 8: give `--batch-size 4` or"),
        (5, 8, 0.68, "which needs 6: give `--batch-size 7` or"),  # a batch of 4 has one new row
        (5, 16, 0.25, "5 images are too few for any --batch-size: give at least 6."),
        (1, 4, 0.0, "1 images are too few for any --batch-size: give at least 8."),
        (3, 100, 0.9, "3 images are too few for any --batch-size: give at least 4."),
    ],
)
def test_too_few_images_are_told_a_batch_size_that_works(images, batch_size, replay_fraction, sentence):
    config = small_config(data="faces", batch_size=batch_size, replay_fraction=replay_fraction, replay_size=1000)
    with pytest.raises(UserError) as error:
        refuse_too_few(config, images)
    assert sentence in str(error.value)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9])
def test_the_advised_batch_size_is_a_game_for_these_images(monkeypatch, fraction, processes):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    for batch_size in (10, 16, 63, 64):
        config = small_config(batch_size=batch_size, replay_fraction=fraction, replay_size=1000, device="cpu")
        for images in range(1, 2 * batch_size):
            try:
                refuse_too_few(config, images)
                continue
            except UserError as error:
                advice = re.search(r"give (?:`--batch-size (\d+)`|at least (\d+))", str(error))
            if advice[1]:
                advised = dataclasses.replace(config, batch_size=int(advice[1]))
                check(advised)
                distributed.require_even_shares(advised)
                environment.new_environment(advised, small_faces(images))
            else:  # so many are a game with some batch size, one less is none
                assert images < int(advice[2])
                with pytest.raises(UserError, match="too few for any"):
                    refuse_too_few(config, int(advice[2]) - 1)


def brightness(states, images):
    """Of an image, and a hundredth of that of its state."""
    return images.mean((1, 2, 3)) + states.mean((1, 2, 3)) / 100


def test_the_extra_reward_is_paid_beside_log_d_in_deviations_of_all_before():
    games = [
        Environment(small_faces(), 4, T, *TWO, extra=ExtraReward("b", brightness, "b"), extra_weight=0.5)
        for _ in range(2)
    ]
    plain = new_environment(batch=4, names=TWO)
    for game in (*games, plain):
        game.reset(seed=0)
    images = {"g_0": pictures(0, 4), "g_1": pictures(1, 4) / 2}
    logits = dict.fromkeys(TWO[1], torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    given = []
    for _ in range(3):
        states = to_uint8(plain.dataset.batch(plain.state)).numpy()
        _, paid, _, _, info = games[0].step(images | logits)
        _, late, _, _, lacking = games[1].step(images | logits, wait=False)
        _, without, *_ = plain.step(images | logits)
        expected = [torch.from_numpy(brightness(states, to_uint8(images[name]).numpy())).float() for name in TWO[0]]
        given.append(torch.stack(expected, dim=1))
        assert torch.equal(info["extra"], given[-1]) and "extra" not in lacking
        assert torch.equal(games[1].compute_pending_rewards(), given[-1]) and games[1].compute_pending_rewards() is None
        every = torch.stack(given)
        for i, name in enumerate(TWO[0]):
            deviations = (expected[i] - every.mean()) / every.std(correction=0)
            torch.testing.assert_close(paid[name], without[name] + 0.5 * deviations, rtol=0.02, atol=0.02)
            assert torch.equal(late[name], without[name])
        assert all(torch.equal(paid[name], without[name]) for name in TWO[1])
