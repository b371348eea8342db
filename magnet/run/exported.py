"""Weights to pass on: what sampling needs of a run, in half the bytes, without optimizers, replay buffer or paths.

Such a file has the form of a checkpoint, of another format: of each agent the running averages of G, G_a and D_a. The
BatchNorms of G and G_a hold the statistics with which they are sampled, and some recurrent states stand for the middle
of an episode, so no image of the training is needed any more.
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
from magnet.run.checkpoint_validation import halved

STATES = 32  # recurrent states that a file holds


def export(
    path: Path, generators: list[GeneratorAgent], discriminators: list[DiscriminatorAgent], faces: ImageDataset | None,
    steps: int, fingerprint: str,
) -> None:  # fmt: skip
    """Writes the averages of agents after `steps` steps to `path`.

    faces: what G_a's statistics are taken over, the images that it learned from, of this fingerprint; None of a plain
    GAN. Raises Diverged and OSError as checkpoint.save does.
    """
    config, agents = generators[0].config, {}
    for agent in generators:
        sampler = Sampler(agent, faces)
        networks = {"generator": sampler.generator} | ({"actor": sampler.actor} if faces else {})
        states = sampler.mid_episode if faces else agent.initial_recurrent_state(STATES)
        agents[agent.name] = {
            "targets": {key: halved(network) for key, network in networks.items()},
            "mid_episode": states[:STATES].half().clone(),
        }
    for agent in discriminators:
        agents[agent.name] = {"targets": {"actor": halved(agent.targets["actor"])}}
    without_paths = {"data": "synthetic" if config.data == "synthetic" else "", "models_dir": Config.models_dir}
    without_paths |= {"threads": Config.threads}  # of the machine
    without_paths |= {"init": "", "extra_reward": config.extra_reward if config.extra_reward in EXTRA_REWARDS else ""}
    contents = {
        "format": checkpoint.WEIGHTS, "config": dataclasses.asdict(config) | without_paths, "faces": fingerprint,
        "trainer": {"steps": steps, "agents": agents}, "best": None,
    }  # fmt: skip
    checkpoint.save(path, contents)


def take_over(agents: list[GeneratorAgent | DiscriminatorAgent], saved: dict) -> None:
    """Gives `agents` the weights in `saved`, a checked trainer's state of exported weights."""
    for agent in agents:
        found = saved["agents"][agent.name]
        for key, weights in found["targets"].items():
            agent.targets[key].load_state_dict(dict(weights))
        agent.networks = agent.targets  # there is nothing but the averages
        if "mid_episode" in found:
            agent.mid_episode = found["mid_episode"].float().to(agent.device)
