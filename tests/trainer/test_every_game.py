"""In every kind of game all agents learn, and a restored trainer goes on exactly."""

import pytest
from conftest import differing, new_trainer, run, same, saved, weights

from magnet.run.checkpoint_validation import find_networks_fault, find_trainer_fault

pytestmark = pytest.mark.usefixtures("every_step")

BASE = {"generators": 2, "discriminators": 2, "replay_fraction": 0.25, "r1": 0.1, "r1_every": 2}
CRITICS = {  # which agents have no critic: the settings
    "no G_c": {"critics": "discriminator", "gamma": 0.9},
    "no D_c": {"critics": "generator", "gamma": 0.9},
    "no critics": {"critics": "none"},
    "plain GANs": {"algorithm": "gan"},
}
GAMES = CRITICS | {
    "1x1 without replay": {"generators": 1, "discriminators": 1, "replay_fraction": 0.0},
    "1x2 with gamma": {"generators": 1, "gamma": 0.9},
    "2x1": {"discriminators": 1},
    "2x2 with gamma": {"gamma": 0.9},
    "specialised": {"specialise": 1.0},
    "specialised without critics": {"specialise": 1.0, "critics": "none"},
    "specialised plain GANs": {"specialise": 1.0, "algorithm": "gan", "reward_function": "hinge"},
    "relativistic with penalties": {"reward_function": "relativistic", "r2": 1.0},
    "wasserstein": {"reward_function": "wasserstein", "gradient_penalty": 10.0, "spectral_norm": True, "r1": 0.0},
    "extra reward": {"generators": 1, "discriminators": 1, "extra_reward": "resemble", "replay_fraction": 0.0},
    "extra reward with gamma": {"extra_reward": "resemble", "gamma": 0.9},
}
N, M = 4, 2  # steps before and after the checkpoint: over the ends of episodes and of the buffer


@pytest.mark.parametrize("game", GAMES)
def test_all_agents_learn_and_n_plus_m_steps_are_n_steps_a_restored_trainer_and_m_steps(game):
    config = BASE | GAMES[game]
    whole, restored, unsaved = (new_trainer(**config, seed=seed) for seed in (0, 7, 0))
    run(whole, N - 1)
    before = weights(whole.agents)
    metrics = whole.step()
    assert differing(before, weights(whole.agents)) == set(before)
    assert {name.split("/")[0] for name in metrics} == {agent.name for agent in whole.agents}
    assert all(value.isfinite() for value in metrics.values())

    state = saved(whole)
    assert find_trainer_fault(state, restored) is None and find_networks_fault(state, whole.config) is None
    restored.load_state_dict(state)
    expected = run(whole, M)
    assert run(restored, M) == expected and same(saved(restored), saved(whole))
    assert run(unsaved, N + M)[N:] == expected, "saving changes nothing"


@pytest.mark.parametrize("changes", [{"algorithm": "gan"}, {"critics": "none"}])
def test_games_without_critics_start_from_the_weights_of_those_with_them(changes):
    full, bare = weights(new_trainer(2, 2).agents), weights(new_trainer(2, 2, **changes).agents)
    assert {name.split("/")[1] for name in full.keys() - bare.keys()} >= {"critic", "critic target"}
    assert bare.keys() < full.keys() and differing(bare, full) == set()


@pytest.mark.parametrize("game", CRITICS)
def test_a_checkpoint_of_a_game_with_other_critics_is_refused(game):
    """The fault names keys that are missing or unknown."""
    bare, full = new_trainer(**{"gamma": 0.0} | CRITICS[game]), new_trainer(critics="both")
    for writer, reader in ((bare, full), (full, bare)):
        fault = find_trainer_fault(saved(writer), reader)
        assert ("critic" in fault or game == "plain GANs") and ("is missing" in fault or "unknown key" in fault)
