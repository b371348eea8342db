"""Where the networks of a new run begin: `--init`, the networks of another run, of a checkpoint or of exported weights.

Use it to learn a small set of images, or to teach an extra reward to a trained policy.
"""

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from magnet.agents.agent import Agent
from magnet.config import Config
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import networks_fault, refuse, restored_config
from magnet.run.exported import STATES
from magnet.run.saved_runs import load_checkpoint
from magnet.support.errors import UserError

SIZES = ("image_size", "width", "nz", "architecture")
TITLES = {
    "generator/generator": "G", "generator/actor": "G_a", "generator/critic": "G_c", "generator/reward_critic": "Q_r",
    "discriminator/actor": "D_a", "discriminator/critic": "D_c",
}  # fmt: skip


def with_sizes_of_init(config: Config, given: dict) -> Config:
    """`config` with the image size, width and nz of the networks that `config.init` names, if it names some.

    given: the parameters that the user gave. Raises UserError if they ask for other sizes.
    """
    if not config.init:
        return config
    path, saved = load_checkpoint(Path(config.init))
    found = restored_config(path, saved["config"])
    sizes = {name: getattr(found, name) for name in SIZES}
    if differing := [name for name in SIZES if given.get(name, sizes[name]) != sizes[name]]:
        flags = " and ".join(f"--{name.replace('_', '-')} {sizes[name]}" for name in differing)
        raise UserError(f"The networks of --init {config.init} have {flags}: leave out other values.")
    return dataclasses.replace(config, **sizes)


def is_like(network: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Whether `weights` are those of such a network."""
    shapes = {name: one.shape for name, one in network.state_dict().items()}
    return shapes == {name: one.shape for name, one in weights.items()}


def take_networks(agents: list[Agent], init: str) -> str:
    """Gives `agents` the networks and targets of `init`, as far as it has them. Returns a sentence that says which.

    Exported weights are running averages; networks and targets both begin there. Raises UserError if it has none.
    """
    path, saved = load_checkpoint(Path(init))
    exported = saved["format"] == checkpoint.WEIGHTS
    config = restored_config(path, saved["config"])
    refuse(path, networks_fault(saved["trainer"], config, STATES if exported else 0))
    taken, new = [], []
    for agent in agents:
        kind = agent.name.partition("_")[0]
        parts = saved["trainer"]["agents"].get(agent.name, {"targets": {}})
        for key, network in agent.networks.items():
            title = TITLES[f"{kind}/{key}"] + agent.name.removeprefix(kind)
            target = parts["targets"].get(key, {})
            if key == "reward_critic" and config.extra_reward != agent.config.extra_reward:
                target = {}  # it has learned another reward
            if is_like(network, target):
                network.load_state_dict(dict(target if exported else parts["networks"][key]))
                agent.targets[key].load_state_dict(dict(target))
            (taken if is_like(network, target) else new).append(title)
    if not taken:
        raise UserError(f"--init {init} has no network of this game; give a run with the same agents and data.")
    steps = saved["trainer"]["steps"]
    return f"From {path} after {steps} steps: {', '.join(taken)}. New: {', '.join(new) or 'nothing'}."
