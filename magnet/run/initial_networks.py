"""`--init`: a new run begins with the networks of another run, of a checkpoint or of exported weights.

Use it to learn a small set of images, or to teach an extra reward to a trained policy.
"""

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from magnet.agents.agent import Agent
from magnet.config import Config
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import find_networks_fault, refuse, restore_config
from magnet.run.exported import STATES
from magnet.run.saved_runs import load_checkpoint
from magnet.run.summary import TITLES
from magnet.support.errors import UserError

NETWORK_PARAMETERS = ("image_size", "width", "nz", "architecture")


def adopt_architecture(config: Config, flags: dict) -> Config:
    """`config` with the sizes and architecture of the networks in `config.init`, if that names some.

    flags: the parameters that the user gave. Raises UserError if they ask for others.
    """
    if not config.init:
        return config
    path, contents = load_checkpoint(Path(config.init))
    source = restore_config(path, contents["config"])
    values = {name: getattr(source, name) for name in NETWORK_PARAMETERS}
    if differing_names := [name for name in NETWORK_PARAMETERS if flags.get(name, values[name]) != values[name]]:
        words = " and ".join(f"--{name.replace('_', '-')} {values[name]}" for name in differing_names)
        raise UserError(f"The networks of --init {config.init} have {words}: leave out other values.")
    return dataclasses.replace(config, **values)


def fits(network: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Whether `weights` have the names and shapes of the network's."""
    shapes = {name: one.shape for name, one in network.state_dict().items()}
    return shapes == {name: one.shape for name, one in weights.items()}


def take_networks(agents: list[Agent], init: str) -> str:
    """Gives `agents` the networks and targets that `init` has for them. Returns a sentence that says which.

    Exported weights are running averages: networks and targets both begin with them. Raises UserError if it has none.
    """
    path, contents = load_checkpoint(Path(init))
    is_exported = contents["format"] == checkpoint.WEIGHTS
    config = restore_config(path, contents["config"])
    refuse(path, find_networks_fault(contents["trainer"], config, STATES if is_exported else 0))
    taken_titles, new_titles = [], []
    for agent in agents:
        role = agent.name.partition("_")[0]
        parts = contents["trainer"]["agents"].get(agent.name, {"targets": {}})
        for key, network in agent.networks.items():
            target = parts["targets"].get(key, {})
            if key == "reward_critic" and config.extra_reward != agent.config.extra_reward:
                target = {}  # it has learned another reward
            if fits(network, target):
                network.load_state_dict(dict(target if is_exported else parts["networks"][key]))
                agent.targets[key].load_state_dict(dict(target))
            (taken_titles if fits(network, target) else new_titles).append(
                TITLES[role, key] + agent.name.removeprefix(role)
            )
    if not taken_titles:
        raise UserError(f"--init {init} has no network of this game; give a run with the same agents and data.")
    steps = contents["trainer"]["steps"]
    return f"From {path} after {steps} steps: {', '.join(taken_titles)}. New: {', '.join(new_titles) or 'nothing'}."
