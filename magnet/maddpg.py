"""The trainer: Algorithm 1 of Lowe et al. 2017 (MADDPG, arXiv 1706.02275), played on faces.

    trainer = MADDPG(config, faces, device)
    metrics = trainer.step()        # one pass through the box; a dict of detached scalars

`config` is any object with the fields of config.py's Config.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from magnet.agent import Metrics
from magnet.discriminator_agent import DiscriminatorAgent, critic_inputs
from magnet.distributed import average, own, size, whole
from magnet.environment import FaceGame
from magnet.faces import Faces
from magnet.generator_agent import GeneratorAgent
from magnet.randomness import derived_seed, stream
from magnet.replay import Replay


@dataclass
class Batch:
    """What one step learns from: B rows, of which the first F are of this step, the others from the replay buffer.

    (Of several processes each has a share of either: B and F are its own here.) Lists have one entry a generator,
    `outputs` one a discriminator. Actions keep their graphs: no pass is made twice.
    """

    state: Tensor  # s_t (B, 3, S, S)
    real: Tensor  # x_t = s_{t+1} (B, 3, S, S), a leaf, for R1 with the graph of its logits
    seen: list[Tensor | None]  # what G_a sees of s_t (B, nz)
    policy: list[Tensor | None]  # mu(s_t, h_t) by the present G_a (B, nz)
    images: list[Tensor]  # G(z) of these actions with exploration (B, 3, S, S)
    played: list[Tensor]  # the images that were played: the first F of these, then by earlier G; without a graph
    outputs: list[list[tuple]]  # D_a's features, logits and classes: of real, then of each of played
    memory: list[Tensor]  # h_{t+1}, with which the next state is met (B, 2, layers, hidden)
    next_real: Tensor  # indices of x_{t+1}, in the game after x_t; (B,) once the environment has stepped


def names(kind: str, count: int) -> list[str]:
    """What `count` agents of a kind are called: generator, or generator_0, generator_1, ... of several."""
    return [kind] if count == 1 else [f"{kind}_{i}" for i in range(count)]


def new_agents(config, device: torch.device) -> tuple[list[GeneratorAgent], list[DiscriminatorAgent]]:
    """The agents of a game, with fresh weights."""
    generators = names("generator", config.generators)
    discriminators = names("discriminator", config.discriminators)
    return (
        [GeneratorAgent(name, config, device, i) for i, name in enumerate(generators)],
        [DiscriminatorAgent(name, config, device) for name in discriminators],
    )


class MADDPG:
    """Generator agents and discriminator agents, their game, and the replay buffer.

    Of several processes (distributed.py) each acts and learns on its rows; the game, the buffer, the memories and the
    metrics are whole on each. Raises ValueError if `faces` are too few for the batch.
    """

    def __init__(self, config, faces: Faces, device: torch.device):
        self.config, self.faces, self.device = config, faces, device
        self.generators, self.discriminators = new_agents(config, device)
        self.agents = [*self.generators, *self.discriminators]

        self.replayed = round(config.replay_fraction * config.batch_size)  # rows of a batch that are replayed
        self.environment = FaceGame(
            faces, config.batch_size - self.replayed, config.episode_length,
            [agent.name for agent in self.generators], [agent.name for agent in self.discriminators], config.returns,
        )  # fmt: skip
        self.fresh = self.environment.batch // size()  # of this process's rows those that are played now
        memory = self.generators[0].first_memory(1).shape[1:]
        self.replay = Replay(
            config.replay_size if self.replayed else 0,
            {
                "state": ((), torch.int64), "real": ((), torch.int64), "next_real": ((), torch.int64),
                "memory": ((config.generators, *memory), torch.float32),
                "image": ((config.generators, *config.shape), faces.stored),
            },
            device, stream(config.seed, "replay", device),
        )  # fmt: skip
        self.steps = 0
        self.begin_episode(self.environment.reset(derived_seed(config.seed, "environment")))

    def begin_episode(self, observations: dict[str, Tensor]) -> None:
        """Memory is zero where an episode starts."""
        self.observations = observations
        self.memories = [agent.first_memory(self.environment.batch) for agent in self.generators]

    @property
    def images_seen(self) -> int:
        """How many real images each discriminator has judged, replayed ones counted again."""
        return self.steps * self.config.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the faces, at least 1."""
        return max(1, len(self.faces) // self.environment.batch)

    def step(self) -> Metrics:
        """One pass through the box of Algorithm 1. Returns detached scalars by name, on the device."""
        old = self.replay.sample(self.replayed)  # before this step's transitions enter the buffer
        batch = self.act({name: own(rows) for name, rows in old.items()})
        metrics = self.play(batch)
        metrics |= self.update(batch)
        for agent in self.agents:
            agent.update_targets()
        self.steps += 1
        average(metrics.values())
        return metrics

    @property
    def penalised(self) -> bool:
        """Whether this step has R1: every `r1_every`-th."""
        return self.config.r1 > 0 and self.steps % self.config.r1_every == 0

    def act(self, old: dict[str, Tensor]) -> Batch:
        """Each agent selects its action, with exploration. `old`: the replayed transitions that fill the batch."""
        state = torch.cat([self.observations[self.generators[0].name], self.faces.batch(old["state"])])
        real = torch.cat([self.observations[self.discriminators[0].name], self.faces.batch(old["real"])])
        real.requires_grad_(self.penalised)
        discriminators = [agent.networks["actor"] for agent in self.discriminators]
        acts, images, played = [], [], []
        for i, agent in enumerate(self.generators):
            action, *others = agent.act(state, torch.cat([own(self.memories[i]), old["memory"][:, i]]))
            acts.append(others)
            images.append(agent.networks["generator"](action))
            played.append(torch.cat([images[i].detach()[: self.fresh], self.faces.unpack(old["image"][:, i])]))
        policy, memory, seen = map(list, zip(*acts, strict=True))
        outputs = [[network.discriminate(x) for x in (real, *played)] for network in discriminators]
        return Batch(state, real, seen, policy, images, played, outputs, memory, old["next_real"])

    def play(self, batch: Batch) -> Metrics:
        """Executes the actions on this step's states, and stores the transitions. Returns the mean rewards."""
        fresh = self.fresh
        images = {agent.name: x[:fresh] for agent, x in zip(self.generators, batch.played, strict=True)}
        logits = {
            agent.name: torch.stack([logits.detach()[:fresh] for _, logits, _ in outputs])
            for agent, outputs in zip(self.discriminators, batch.outputs, strict=True)
        }
        observations, rewards, _, truncated, info = self.environment.step(images | logits)
        batch.next_real = torch.cat([own(info["next_real"]), batch.next_real])
        if self.replayed:
            self.replay.add({
                "state": info["state"], "real": info["real"], "next_real": info["next_real"],
                "memory": torch.stack(self.memories, dim=1),
                "image": whole(self.faces.pack(torch.stack(list(images.values()), dim=1))),
            })  # fmt: skip
        if all(truncated.values()):
            self.begin_episode(self.environment.reset())
        else:
            self.observations = observations
            self.memories = [whole(memory[:fresh]) for memory in batch.memory]
        return {f"{name}/return": reward.mean() for name, reward in rewards.items()}

    def update(self, batch: Batch) -> Metrics:
        """For each agent: its critic by the TD error, its actor (and G) by its critic. Discriminators first.

        Rewards, of replayed rows too, are those of the present networks before any of them learns.
        """
        logits = torch.stack([torch.stack([one.detach() for _, one, _ in outputs]) for outputs in batch.outputs])
        rewards, next_values = self.environment.rewards(logits), self.next_values(batch)
        r1 = self.config.r1 * self.config.r1_every if self.penalised else 0.0
        metrics = {}
        for agent, outputs in zip(self.discriminators, batch.outputs, strict=True):
            learned = agent.update(batch.real, batch.played, outputs, next_values[agent.name], self.fresh, r1)
            metrics |= {f"{agent.name}/{key}": value for key, value in learned.items()}
        discriminators = [agent.networks["actor"] for agent in self.discriminators]
        for i, agent in enumerate(self.generators):
            actions = torch.cat([outputs[1 + i][0].detach() for outputs in batch.outputs], dim=1)
            learned = agent.update(
                batch.seen[i], batch.policy[i], batch.images[i], actions, rewards[agent.name],
                next_values[agent.name], batch.real.detach(), discriminators,
            )  # fmt: skip
            metrics |= {f"{agent.name}/{key}": value for key, value in learned.items()}
        return metrics

    @torch.no_grad()
    def next_values(self, batch: Batch) -> dict[str, Tensor | None]:
        """By agent Q'(s', a') for the TD targets; None where nothing needs them.

        After x_t the real next image is x_{t+1}; after a fake one it is what target actor and G would show then.
        """
        values = dict.fromkeys(agent.name for agent in self.agents)
        if self.config.gamma == 0:
            return values
        next_state, seen, next_images = batch.real.detach(), [], [self.faces.batch(batch.next_real)]  # s_{t+1} is x_t
        for agent, memory in zip(self.generators, batch.memory, strict=True):
            action, _, observed = agent.targets["actor"].act(next_state, memory)
            next_images.append(agent.targets["generator"](action))
            seen.append(observed)
        outputs = [[agent.targets["actor"].discriminate(x) for x in next_images] for agent in self.discriminators]
        for i, agent in enumerate(self.generators):
            if agent.critic:
                actions = torch.cat([one[1 + i][0] for one in outputs], dim=1)
                values[agent.name] = agent.targets["critic"](seen[i], actions)
        for agent, one in zip(self.discriminators, outputs, strict=True):
            if agent.critic:
                values[agent.name] = agent.targets["critic"](*critic_inputs(one))
        return values

    def state_dict(self) -> dict:
        """Everything that the coming steps depend on: plain types and live tensors, to be written before the next."""
        return {
            "agents": {agent.name: agent.state_dict() for agent in self.agents},
            "environment": self.environment.state_dict(), "replay": self.replay.state_dict(),
            "memories": self.memories, "steps": self.steps,
        }  # fmt: skip

    def load_state_dict(self, saved: dict) -> None:
        """Goes on where `saved` stood."""
        for agent in self.agents:
            agent.load_state_dict(saved["agents"][agent.name])
        self.observations = self.environment.load_state_dict(saved["environment"])
        self.replay.load_state_dict(saved["replay"])
        self.memories = [memory.to(self.device) for memory in saved["memories"]]
        self.steps = saved["steps"]
