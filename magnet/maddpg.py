"""The trainer: Algorithm 1 of Lowe et al. 2017 (MADDPG, arXiv 1706.02275), played on faces.

    trainer = MADDPG(config, faces, device)
    metrics = trainer.step()        # one pass through the box; a dict of detached scalars

`config` is any object with the fields of config.py's Config.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from magnet.agent import Agent, Metrics, joint_actions, leading
from magnet.discriminator_agent import DiscriminatorAgent
from magnet.distributed import average, own, size, whole
from magnet.environment import FaceGame
from magnet.faces import Faces
from magnet.generator_agent import GeneratorAgent
from magnet.randomness import derived_seed, stream
from magnet.replay import Replay


@dataclass
class Batch:
    """What one step learns from. Of its B rows the first F are of this step, the others come from the ring.

    (Of several processes each has a share of either: B and F are its own here.)

    To each of the F states a generator tries A answers, of which the first, its policy's, is played; with the replayed
    actions it has C = A F + B - F of them. Lists have one entry a generator, `logits` and `names` one a discriminator.
    Actions keep their graphs: no pass is made twice.
    """

    state: Tensor  # s_t (B, 3, S, S)
    real: Tensor  # x_t = s_{t+1} (B, 3, S, S), a leaf, for R1 with the graph of its judgements
    policy: list[Tensor]  # G_a(s_t, h_t) (F, nz)
    answers: list[Tensor]  # the same with exploration, then noise alone (A F, nz)
    z: list[Tensor]  # the actions taken: the answers, improved, then the replayed (C, nz), leaves
    images: list[Tensor]  # G(z) by the present G (C, 3, S, S)
    fakes: list[Tensor]  # as they were put forward: by the present G, then by earlier ones (C, 3, S, S)
    logits: list[list[Tensor]]  # D_a's on real (B,), then on each of fakes (C,)
    names: list[list[Tensor | None]]  # whose D_a takes them for, (B, N), then (C, N), if it is asked
    memory: list[Tensor]  # h_{t+1}, with which the next state is met (B, 2, layers, hidden)
    next_real: Tensor  # indices of x_{t+1}, in the game after x_t; (B,) once the environment has stepped


def names(kind: str, count: int) -> list[str]:
    """What `count` agents of a kind are called: generator, or generator_0, generator_1, ... of several."""
    return [kind] if count == 1 else [f"{kind}_{i}" for i in range(count)]


def new_agents(config, device: torch.device) -> tuple[list[GeneratorAgent], list[DiscriminatorAgent]]:
    """The agents of a game, with fresh weights. If generators share, the first lends to the others."""
    generators = []
    for i, name in enumerate(names("generator", config.generators)):
        lender = generators[0] if config.share and i else None
        generators.append(GeneratorAgent(name, config, device, i, lender))
    discriminators = names("discriminator", config.discriminators)
    return generators, [DiscriminatorAgent(name, config, device) for name in discriminators]


class MADDPG:
    """Generator agents and discriminator agents, their game, and the ring of what they did.

    Of several processes (distributed.py) each acts and learns on its rows; the game, the ring, the memories and the
    metrics are whole on each. Raises ValueError if `faces` are too few for the batch.
    """

    def __init__(self, config, faces: Faces, device: torch.device):
        self.config, self.faces, self.device = config, faces, device
        torch.manual_seed(config.seed)  # the weights; all later draws have generators of their own
        self.generators, self.discriminators = new_agents(config, device)
        self.agents = [*self.generators, *self.discriminators]

        self.replayed = round(config.replay_fraction * config.batch_size)  # rows of a batch that come from the ring
        self.environment = FaceGame(
            faces, config.batch_size - self.replayed, config.episode_length,
            [agent.name for agent in self.generators], [agent.name for agent in self.discriminators],
            config.returns, config.pool,
        )  # fmt: skip
        self.fresh = self.environment.batch // size()  # of this process's rows those that are played now
        memory = self.generators[0].first_memory(1).shape[1:]
        self.replay = Replay(
            config.replay_size if self.replayed else 0,
            {
                "state": ((), torch.int64), "real": ((), torch.int64), "next_real": ((), torch.int64),
                "z": ((config.generators, config.nz), torch.float32),
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
        return self.steps * self.config.images_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the faces, at least 1."""
        return max(1, len(self.faces) // (self.environment.batch * self.config.discriminator_steps))

    def step(self) -> Metrics:
        """One pass through the box of Algorithm 1. Returns detached scalars by name, on the device.

        With `discriminator_steps` K the players play K times, and generators learn from the last alone.
        """
        for left in reversed(range(self.config.discriminator_steps)):
            old = self.replay.sample(self.replayed)  # before this step's enter the ring: G renders both at once
            batch = self.act({name: own(rows) for name, rows in old.items()})
            self.play(batch)  # and store
            metrics = self.update(batch, self.discriminators if left else self.agents)
        for agent in self.agents:
            agent.update_targets()
        self.steps += 1
        average(metrics.values())
        return metrics

    def act(self, old: dict[str, Tensor]) -> Batch:
        """Each agent selects its action, with exploration. `old`: the transitions from the ring that fill the batch."""
        state = self.observations[self.generators[0].name]
        real = self.observations[self.discriminators[0].name]
        acts = [agent.act(state, own(memory)) for agent, memory in zip(self.generators, self.memories, strict=True)]
        policy, answers, memories = map(list, zip(*acts, strict=True))
        self.memories = [whole(memory) for memory in memories]

        taken, first = [a.detach() for a in answers], leading(self.config, len(state))
        if self.config.latent_step:
            judges = [agent.networks["actor"] for agent in self.discriminators]
            taken = [agent.improved(a, judges, first) for agent, a in zip(self.generators, taken, strict=True)]
        z = [torch.cat([a, old["z"][:, i]]).requires_grad_() for i, a in enumerate(taken)]
        images = [agent.networks["generator"](a, first) for agent, a in zip(self.generators, z, strict=True)]
        tried = len(answers[0])
        fakes = [torch.cat([x.detach()[:tried], self.faces.unpack(old["image"][:, i])]) for i, x in enumerate(images)]
        real = torch.cat([real, self.faces.batch(old["real"])]).requires_grad_(self.config.r1 > 0)
        judged = [agent.act(real, fakes, first) for agent in self.discriminators]
        return Batch(
            state=torch.cat([state, self.faces.batch(old["state"])]), real=real,
            policy=policy, answers=answers, z=z, images=images, fakes=fakes,
            logits=[logits for logits, _ in judged], names=[names for _, names in judged],
            memory=[torch.cat([h, old["memory"][:, i]]) for i, h in enumerate(memories)],
            next_real=old["next_real"],
        )  # fmt: skip

    def play(self, batch: Batch) -> None:
        """Executes the first answers to this step's states, and stores the transitions.

        The rewards are left: the update needs those of the replayed rows too, and their slopes.
        """
        fresh = self.fresh
        shown = {agent.name: x[:fresh] for agent, x in zip(self.generators, batch.fakes, strict=True)}
        answers = [torch.stack([part.detach()[:fresh] for part in logits]) for logits in batch.logits]
        judged = dict(zip((agent.name for agent in self.discriminators), answers, strict=True))
        observations, _, _, truncated, info = self.environment.step(shown | judged)
        batch.next_real = torch.cat([own(info["next_real"]), batch.next_real])
        if self.replayed:
            self.replay.add({
                "state": info["state"], "real": info["real"], "next_real": info["next_real"],
                "z": whole(torch.stack([z.detach()[:fresh] for z in batch.z], dim=1)),
                "memory": torch.stack(self.memories, dim=1),
                "image": whole(self.faces.pack(torch.stack(list(shown.values()), dim=1))),
            })  # fmt: skip
        if all(truncated.values()):
            self.begin_episode(self.environment.reset())
        else:
            self.observations = observations

    def update(self, batch: Batch, learners: list[Agent]) -> Metrics:
        """For each agent of `learners`: its critic by the TD error and slope, its actor (and G) by the ascent.

        Discriminators first, so that generators answer to discriminators that have seen this batch; or generators
        first, to discriminators as they were when all acted: then the updates are simultaneous, for what a
        discriminator learns from does not change with a generator's step.
        """
        fresh = self.fresh
        next_values, others = self.next_values(batch), self.others(batch.z, batch.logits)
        judges = [agent.networks["actor"] for agent in self.discriminators]
        lessons = {
            agent.name: (batch.real, batch.fakes, batch.logits[j], batch.names[j], fresh)
            for j, agent in enumerate(self.discriminators)
        } | {
            agent.name: (
                batch.state, batch.real, batch.z[i], batch.images[i], batch.policy[i], batch.answers[i], judges
            )
            for i, agent in enumerate(self.generators)
        }  # fmt: skip
        order = [self.discriminators, self.generators[::-1]]  # of generators that share, the lender last
        if self.config.updates == "simultaneous":
            order.reverse()
        metrics = {}
        for agent in itertools.chain(*order):
            if agent in learners:
                learned = agent.update(*lessons[agent.name], next_values[agent.name], others[agent.name])
                metrics |= {f"{agent.name}/{key}": value for key, value in learned.items()}
        return metrics

    def others(self, z: list[Tensor], logits: list[list[Tensor]]) -> dict[str, Tensor | None]:
        """By agent what its critic is told of the others' actions (`joint_actions`); None unless critics are joint."""
        if self.config.critic == "own":
            return {agent.name: None for agent in self.agents}
        told = itertools.chain(*joint_actions(z, logits, self.fresh))
        return dict(zip((agent.name for agent in self.agents), told, strict=True))

    def next_values(self, batch: Batch) -> dict[str, Tensor | list[Tensor] | None]:
        """By agent Q'(s', a') for the TD targets; None where nothing needs them.

        After x_t the real next image is x_{t+1}; after a fake one it is what target actor and G would put forward then.
        """
        if self.config.gamma == 0 or self.config.algorithm == "gan":
            return {agent.name: None for agent in self.agents}
        next_state = batch.real  # s_{t+1} is x_t
        acts = [agent.next_action(next_state, h) for agent, h in zip(self.generators, batch.memory, strict=True)]
        next_z, next_fakes = map(list, zip(*acts, strict=True))
        next_real = self.faces.batch(batch.next_real)
        next_logits = [agent.next_logits(next_real, next_fakes) for agent in self.discriminators]
        others, values = self.others(next_z, next_logits), {}
        for agent, z in zip(self.generators, next_z, strict=True):
            values[agent.name] = agent.next_value(next_state, z, others[agent.name])
        for agent, logits in zip(self.discriminators, next_logits, strict=True):
            values[agent.name] = agent.next_value(next_real, next_fakes, logits, others[agent.name])
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
