"""The game for other multi-agent libraries: a ParallelEnv of PettingZoo (Terry et al. 2021, arXiv 2009.14471).

    game = Environment(dataset, batch=16, episode_length=25, generators=["generator"], discriminators=["discriminator"])
    env = ParallelEnvironment(game)
    observations, infos = env.reset(seed=0)

In PettingZoo all agents act at once, on what they observed. A discriminator must have observed the images that it
classifies, so here it acts on them one step after they were generated.
"""

import numpy as np
import torch
from torch import Tensor

from magnet.game.environment import Environment
from magnet.support.errors import UserError

try:
    from gymnasium.spaces import Box
    from pettingzoo import ParallelEnv
except ImportError:
    raise UserError("magnet/game/parallel_env.py needs PettingZoo: `pip3 install pettingzoo` installs it.") from None


class ParallelEnvironment(ParallelEnv):
    """`game` in PettingZoo's interface: observations and actions are float32 arrays, rewards floats.

    A generator observes the state (B, 3, S, S) in [-1, 1]; its action is as many generated images. A discriminator
    observes (1 + generators, B, 3, S, S): the state, then the images that each generator made in the step before; its
    action is their logits (1 + generators, B). In an episode's first step discriminators observe grey images and their
    actions have no effect, because nothing has been generated. The T = `episode_length` steps of the game follow. No
    discriminator observes the images of the last step.
    """

    metadata = {"name": "magnet_faces_v0", "render_modes": []}
    render_mode = None

    def __init__(self, game: Environment):
        """game: only this object may play it. Its seed is random until `reset` is called with one."""
        self.game, self.agents, self.possible_agents = game, [], game.generators + game.discriminators
        images = tuple(game.reset(seed=game.random.seed())[game.generators[0]].shape)
        observed = (1 + len(game.generators), *images)
        self.observation_spaces = {name: Box(-1, 1, images) for name in game.generators}
        self.observation_spaces |= {name: Box(-1, 1, observed) for name in game.discriminators}
        self.action_spaces = {name: Box(-1, 1, images) for name in game.generators}
        self.action_spaces |= {name: Box(-np.inf, np.inf, observed[:2]) for name in game.discriminators}

    def observation_space(self, agent: str) -> Box:
        """The space of `agent`'s observations."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Box:
        """The space of `agent`'s actions."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begins an episode; a seed restarts all episodes. Returns observations and empty infos. options: ignored."""
        observations = self.game.reset(seed)
        self.agents = list(self.possible_agents)
        self.generated = {}
        state, self.next_state = (observations[names[0]] for names in (self.game.generators, self.game.discriminators))
        grey = dict.fromkeys(self.game.generators, torch.zeros_like(state))
        return self._observations(state, grey), {name: {} for name in self.agents}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, dict, dict, dict, dict]:
        """A step of all agents: observations, rewards, terminations, truncations, infos.

        rewards: means over the batch. A discriminator's is for these logits, a generator's for its images of the step
        before; both are 0 in an episode's first step. infos, empty after the first step: the agent's "rewards" (B,)
        float32 by image, and indices (B,) int64 as in `Environment.step`: the "state" of the generated images, the
        "real" images beside them, and "next_real". No episode terminates; the last step truncates it. Raises ValueError
        if an agent's action is missing or outside its space, or if the episode has ended.
        """
        if not self.agents or set(actions) != set(self.agents):
            raise ValueError(f"the agents to act are {self.agents}, not {list(actions)}; reset() begins an episode")
        for name, action in actions.items():
            if not self.action_spaces[name].contains(action):
                raise ValueError(f"the action of {name} is not in its space {self.action_spaces[name]}")
        actions = {name: torch.tensor(action, device=self.next_state.device) for name, action in actions.items()}
        images = {name: actions.pop(name) for name in self.game.generators}

        if self.generated:
            observations, by_image, terminated, truncated, indices = self.game.step(self.generated | actions)
            self.next_state = observations[self.game.discriminators[0]]
            rewards = {name: reward.mean().item() for name, reward in by_image.items()}
            infos = {name: _arrays(indices | {"rewards": reward}) for name, reward in by_image.items()}
        else:
            rewards, infos = dict.fromkeys(self.agents, 0.0), {name: {} for name in self.agents}
            terminated, truncated = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.generated = images
        self.agents = [name for name in self.agents if not truncated[name]]
        return self._observations(self.next_state, images), rewards, terminated, truncated, infos

    def _observations(self, state: Tensor, generated: dict[str, Tensor]) -> dict[str, np.ndarray]:
        observed = torch.stack([state, *generated.values()])
        return _arrays(dict.fromkeys(self.game.generators, state) | dict.fromkeys(self.game.discriminators, observed))


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    # They are copies, because an agent may write into its observation.
    return {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
