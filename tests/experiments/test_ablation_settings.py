"""The settings of experiments/ablation.py: runs of train.py, and controls that lack what they ask about."""

import pytest
import torch
from conftest import new_trainer, relative_error, watch_steps

from experiments import ablation, runs
from magnet.agents.networks import discriminator_networks, generator_networks
from magnet.config import PRESETS, Config, check
from magnet.run import command_line


@pytest.mark.parametrize("setting", ablation.SETTINGS)
def test_every_setting_is_a_run_of_train(setting):
    _, base = ablation.parse([])
    flags = base | ablation.SETTINGS[setting][1] | {"seed": 1}
    given, _ = command_line.parse(runs.words(flags))
    assert given == flags
    check(Config(**given))


def test_the_controls_are_games_without_critics_or_without_what_is_asked_about():
    games = {name: ablation.complete(PRESETS["cpu"] | flags) for name, (_, flags) in ablation.SETTINGS.items()}
    critics = {
        name: [key for key, made in (("G", generator_networks), ("D", discriminator_networks)) if "critic" in made(one)]
        for name, one in games.items()
    }
    without = {
        "no-critics": [],
        "no-generator-critic": ["D"],
        "no-discriminator-critic": ["G"],
        "gan": [],
        "gan-plain": [],
    }
    assert critics == dict.fromkeys(games, ["G", "D"]) | without
    same = {"r1", "r1_every", "replay_fraction", "batch_size", "tau"}
    assert all(getattr(games["gan"], name) == getattr(games["default"], name) for name in same)
    assert games["gan-plain"].r1 == games["gan-plain"].replay_fraction == 0


def gradients_of_a_generators_actor(diversity_weight):
    """By which G_a makes its first step, with a critic of large gradients and with one that says the opposite."""
    found = []
    for scale in (1000, -1000):
        trainer = new_trainer(diversity_weight=diversity_weight, lr=1e-8)
        agent = trainer.generators[0]
        with torch.no_grad():
            for p in agent.critic.head[-1].parameters():
                p.mul_(scale)
        seen = watch_steps(agent)
        trainer.step()
        found.append(seen["actor"])
    return found


def test_the_deaf_generator_agent_cannot_learn_by_its_critic():
    first, second = gradients_of_a_generators_actor(ablation.SETTINGS["deaf"][1]["diversity_weight"])
    assert relative_error(first, second) < 1e-4
    first, second = gradients_of_a_generators_actor(Config().diversity_weight)
    assert relative_error(first, second) > 0.01, "else the test says nothing"
    first, second = gradients_of_a_generators_actor(0.0)
    assert relative_error(first, -second) < 1e-3


def test_the_base_is_the_preset_with_the_flags_of_all_runs():
    options, base = ablation.parse(["--only", "gan", "--nz", "7", "--seeds", "3"])
    assert (options.only, options.seeds) == (["gan"], [3])
    assert base == PRESETS["cpu"] | {"precision": "fp32", "checkpoint_every": 5, "nz": 7}
    assert "image_size" not in ablation.parse(["--preset", "default"])[1]


@pytest.mark.parametrize("word", [["--seed", "1"], ["--steps", "1"], ["--keep", "1"], ["--dry-run"], ["--only", "x"]])
def test_what_a_run_gets_from_the_program_is_no_flag(word):
    with pytest.raises(SystemExit, match="2"):
        ablation.parse(word)
