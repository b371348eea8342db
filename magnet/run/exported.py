"""Exported weights: what sampling needs of a run, in half the bytes, without optimizers, replay buffer or paths.

The file has the form of a checkpoint, but another format. For each agent it holds the running averages of G, G_a and
D_a. The BatchNorms of G and G_a hold the statistics with which they are sampled. Some recurrent states stand for the
middle of an episode. So no training image is needed any more.
"""

import dataclasses
from pathlib import Path

from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent
from magnet.config import Config
from magnet.data.image_dataset import ImageDataset
from magnet.evaluation.sampling import Sampler
from magnet.game.extra_rewards import EXTRA_REWARDS
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import pack_weights

STATES = 32  # recurrent states that a file holds


def export(
    path: Path, generators: list[GeneratorAgent], discriminators: list[DiscriminatorAgent], faces: ImageDataset | None,
    steps: int, fingerprint: str,
) -> None:  # fmt: skip
    """Writes the running averages of agents after `steps` steps to `path`.

    faces: the images that the run learned from, for G_a's statistics; None for a plain GAN. fingerprint: theirs. Raises
    Diverged and OSError as checkpoint.save does.
    """
    config, agents = generators[0].config, {}
    for agent in generators:
        sampler = Sampler(agent, faces)
        networks = {"generator": sampler.generator} | ({"actor": sampler.actor} if faces else {})
        states = sampler.mid_episode if faces else agent.initial_recurrent_state(STATES)
        agents[agent.name] = {
            "targets": {key: pack_weights(network) for key, network in networks.items()},
            "mid_episode": states[:STATES].half().clone(),
        }
    for agent in discriminators:
        agents[agent.name] = {"targets": {"actor": pack_weights(agent.targets["actor"])}}
    without_machine = {
        "data": "synthetic" if config.data == "synthetic" else "", "models_dir": Config.models_dir, "init": "",
        "threads": Config.threads, "extra_reward": config.extra_reward if config.extra_reward in EXTRA_REWARDS else "",
    }  # fmt: skip
    contents = {
        "format": checkpoint.WEIGHTS, "config": dataclasses.asdict(config) | without_machine, "faces": fingerprint,
        "trainer": {"steps": steps, "agents": agents}, "best": None,
    }  # fmt: skip
    checkpoint.save(path, contents)


def load_exported(agent: GeneratorAgent | DiscriminatorAgent, state: dict) -> None:
    """Gives `agent` the weights in `state`, its checked part of exported weights."""
    for key, weights in state["targets"].items():
        agent.targets[key].load_state_dict(dict(weights))
    agent.networks = agent.targets  # the file holds the averages alone
    if "mid_episode" in state:
        agent.mid_episode = state["mid_episode"].float().to(agent.device)
