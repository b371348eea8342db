"""The trainer: Algorithm 1 of Lowe et al. 2017 (MADDPG, arXiv 1706.02275), played on images.

    trainer = MADDPG(config, new_environment(config, dataset), device)
    metrics = trainer.step()        # one pass through Algorithm 1's loop: a dict of detached scalars

`config` is any object with the fields of config.py's Config. The lines of Algorithm 1:

     1-3   for each episode: a random process for exploration; the initial state      begin_episode
     4-5   for each time step: each agent selects its action, with exploration        act
     6-8   execute the actions; store the transition; the new state                   play
     9-10  for each agent: a minibatch from the replay buffer                         sample_replay, collect
     11    the TD target y = r + gamma Q'(x', a')                                     next_values: Q'; td_target in
                                                                                      agents/losses.py: y
     12    the critic by the squared TD error                                         update_critic in agents/agent.py
     13    the actor by the gradient of its critic                                    update in agents/generator.py and
                                                                                      agents/discriminator.py
     15    the targets                                                                step; update_targets in agent.py

The replay buffer stores the environment's `fields` (the indices of a transition's images), the recurrent states before
the action, and the generated images. It stores no rewards by D_a: each update computes them with the present D_a. Extra
rewards (game/extra_rewards.py) are stored one step after their images, when they are known without waiting for a GPU.

`act` and `learn` are tensor operations on fixed shapes: on a GPU they are recorded as CUDA graphs. The environment and
the replay buffer, which cannot be recorded, are called in `collect` and `play`.
"""

import torch
from torch import Tensor

from magnet.agents.agent import Metrics
from magnet.agents.batch import Batch
from magnet.agents.discriminator import DiscriminatorAgent, critic_inputs
from magnet.agents.generator import GeneratorAgent, image_logits
from magnet.config import agent_names
from magnet.game.replay_buffer import ReplayBuffer
from magnet.support.cuda_graphs import StepGraphs
from magnet.support.distributed import all_gather_rows, all_reduce_mean, local_rows, world_size
from magnet.support.errors import UserError
from magnet.support.random_streams import derived_seed, stream

# Every fifth step computes all metrics. Since 5 shares no factor with R1's 8, an eighth of these steps have R1.
MEASURE_EVERY = 5
TARGETS_EVERY = 8  # every eighth step moves the targets as far as eight single steps would


def new_agents(config, device: torch.device) -> tuple[list[GeneratorAgent], list[DiscriminatorAgent]]:
    """The agents of a game, with fresh weights."""
    generators, discriminators = agent_names(config)
    return (
        [GeneratorAgent(name, config, device, i) for i, name in enumerate(generators)],
        [DiscriminatorAgent(name, config, device, i) for i, name in enumerate(discriminators)],
    )


class MADDPG:
    """The agents, their environment, and the replay buffer.

    environment: an Environment, or another class with its methods. With several processes (distributed.py) each one
    acts and learns on its own rows; the game, the buffer, the recurrent states and the metrics cover all rows.
    """

    def __init__(self, config, environment, device: torch.device):
        self.config, self.environment, self.device, self.dataset = config, environment, device, environment.dataset
        self.generators, self.discriminators = new_agents(config, device)
        self.agents = [*self.generators, *self.discriminators]
        self.new_rows = environment.batch // world_size()  # rows played in a step, this process's share
        self.replayed_rows = config.batch_size - environment.batch  # of all processes
        recurrent = self.generators[0].initial_recurrent_state(1).shape[1:]
        self.replay = ReplayBuffer(
            config.replay_size if self.replayed_rows or config.extra_reward else 0,
            environment.fields | {
                "recurrent": ((config.generators, *recurrent), torch.float32),
                "image": ((config.generators, *config.shape), self.dataset.storage_dtype),
            },
            device, stream(config.seed, "replay", device),
        )  # fmt: skip
        self.steps = 0
        self.graphs = self.new_graphs()
        self.begin_episode(environment.reset(derived_seed(config.seed, "environment")))

    def new_graphs(self) -> StepGraphs | None:
        """The recorder of the coming steps as CUDA graphs; None where each operation is launched alone."""
        possible = self.device.type == "cuda" and world_size() == 1 and self.config.cuda_graphs == "auto"
        return StepGraphs(self.agents) if possible else None

    def begin_episode(self, observations: dict[str, Tensor]) -> None:
        """Alg. 1, line 3; the recurrent states are zero where an episode starts."""
        self.observations = observations
        recurrent = [agent.initial_recurrent_state(self.environment.batch) for agent in self.generators]
        self.recurrent = torch.stack(recurrent, dim=1)  # h_t of all rows (B, generators, 2, layers, hidden)

    @property
    def images_seen(self) -> int:
        """How many real images each discriminator has learned from, replayed ones counted again."""
        return self.steps * self.config.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the faces, at least 1."""
        return max(1, len(self.dataset) // self.environment.batch)

    def step(self) -> Metrics:
        """One pass through the loop of Algorithm 1. Returns detached scalars by name, on the device."""
        batch = self.collect(self.sample_replay())  # line 10; before this step's transitions enter the buffer
        act, learn = self.act, self.learn
        if self.graphs:
            batch, act, learn = self.graphs.prepare(batch, act, learn)
        act(batch)
        metrics = self.play(batch)
        metrics |= learn(batch)
        self.steps += 1
        if self.steps % TARGETS_EVERY == 0:
            for agent in self.agents:
                agent.update_targets(TARGETS_EVERY, self.steps)  # line 15
        # All processes must take part in this, and only the first one runs `state_dict`.
        if world_size() > 1 and self.config.extra_reward:
            self.complete_rewards()
        all_reduce_mean(metrics.values())
        return metrics

    def sample_replay(self) -> dict[str, Tensor]:
        """Line 10: transitions from the replay buffer: first those that this step replays.

        With an extra reward, the rows for the reward critics follow: a random batch, then the last step's transitions.
        """
        if not self.config.extra_reward:
            return self.replay.sample(self.replayed_rows)
        self.complete_rewards()
        return self.replay.sample(self.replayed_rows + self.config.batch_size, latest=self.environment.batch)

    def collect(self, sampled: dict[str, Tensor]) -> Batch:
        """The batch of this step: its new rows, then the replayed rows of this process.

        sampled: transitions as `sample_replay` returns them: the replayed rows, then those of the reward critics.
        """
        count = self.replayed_rows // world_size()
        sampled = {name: local_rows(rows) for name, rows in sampled.items()}
        replayed = {name: rows[:count] for name, rows in sampled.items()}
        state, real = self.environment.recall(sampled)
        reward_batch = {}
        if self.config.extra_reward and len(self.replay):
            extra = sampled["extra"][count:]
            reward_batch = {
                "state": state[count:], "image": self.dataset.unpack(sampled["image"][count:]),
                "extra": extra, "reward": self.environment.normaliser.standardise(extra),
            }  # fmt: skip
            if self.config.gamma:
                next_state, _ = self.environment.next_observations({k: rows[count:] for k, rows in sampled.items()})
                reward_batch |= {"next_state": next_state, "recurrent": sampled["recurrent"][count:]}
        state = torch.cat([self.observations[self.generators[0].name], state[:count]])
        real = torch.cat([self.observations[self.discriminators[0].name], real[:count]])
        recurrent = torch.cat([local_rows(self.recurrent), replayed["recurrent"]])
        r1 = 0.0 if self.steps % self.config.r1_every else self.config.r1 * self.config.r1_every
        real.requires_grad_(r1 > 0)
        # With fp16 the metrics of every step show which steps are skipped.
        with_metrics = self.steps % MEASURE_EVERY == 0 or self.config.precision == "fp16"
        return Batch(self.new_rows, replayed, state, real, r1, with_metrics, recurrent, replayed["image"], reward_batch)

    def complete_rewards(self) -> None:
        """Stores the extra rewards of the last step, whose images have left the GPU by now. Raises UserError."""
        if (rewards := self.environment.compute_pending_rewards()) is not None:
            self.replay.complete({"extra": rewards})

    def act(self, batch: Batch) -> None:
        """Line 5: each agent acts by its present policy. In replayed rows D_a observes the stored images."""
        for i, agent in enumerate(self.generators):
            act, replayed = agent.act(batch.state, batch.recurrent[:, i]), batch.replayed_images[:, i]
            images = agent.networks["generator"](act.action)
            batch.acts.append(act)
            batch.policy_images.append(images)
            batch.played_images.append(torch.cat([images.detach()[: batch.new_rows], self.dataset.unpack(replayed)]))
        for agent in self.discriminators:
            batch.outputs.append([agent.networks["actor"].discriminate(x) for x in (batch.real, *batch.played_images)])

    def play(self, batch: Batch) -> Metrics:
        """Lines 6 to 8: executes this step's actions and stores the transitions. Returns the mean rewards, for the log.

        It copies what outlives the step, because a CUDA graph writes to the same memory again.
        """
        images = torch.stack([played[: batch.new_rows] for played in batch.played_images], dim=1)
        actions = {agent.name: images[:, i] for i, agent in enumerate(self.generators)}
        for agent, outputs in zip(self.discriminators, batch.outputs, strict=True):
            actions[agent.name] = torch.stack([one.logits.detach()[: batch.new_rows] for one in outputs])
        options = {"wait": False} if self.config.extra_reward else {}  # other environments need not have this argument
        observations, rewards, _, truncated, transitions = self.environment.step(actions, **options)
        batch.transitions = {
            name: torch.cat([local_rows(rows), batch.transitions[name]]) for name, rows in transitions.items()
        }
        if self.config.gamma:
            batch.next_observations = self.environment.next_observations(batch.transitions)
        if self.replay.capacity:
            images = all_gather_rows(self.dataset.pack(images))
            self.replay.add(transitions | {"recurrent": self.recurrent, "image": images})
        if all(truncated.values()):
            self.begin_episode(self.environment.reset())
        else:
            self.observations = observations
            self.recurrent = all_gather_rows(
                torch.stack([act.recurrent[: batch.new_rows] for act in batch.acts], dim=1)
            )
        return {f"{name}/reward": reward.mean() for name, reward in rewards.items()}

    def learn(self, batch: Batch) -> Metrics:
        """Lines 11 to 14: for each agent its critic, then its actor (and G). Discriminators first.

        Returns detached scalars by name.
        """
        logits = torch.stack([torch.stack([one.logits.detach() for one in outputs]) for outputs in batch.outputs])
        batch.rewards, batch.next_values = self.environment.rewards(logits), self.next_values(batch)
        metrics = {agent.name: agent.update(batch) for agent in self.discriminators}
        discriminators = [agent.networks["actor"] for agent in self.discriminators]
        metrics |= {agent.name: agent.update(batch, discriminators) for agent in self.generators}
        return {f"{name}/{key}": value for name, values in metrics.items() for key, value in values.items()}

    @torch.no_grad()
    def next_values(self, batch: Batch) -> dict[str, Tensor | None]:
        """Line 11: Q'(s', a') of each agent by the targets of all, for the TD targets; None where none is needed."""
        values = dict.fromkeys(agent.name for agent in self.agents)
        if batch.next_observations is None:
            return values
        next_state, next_real = batch.next_observations
        images, embeddings = [next_real], []
        for agent, act in zip(self.generators, batch.acts, strict=True):
            action, _, embedding = agent.targets["actor"].act(next_state, act.recurrent)
            images.append(agent.targets["generator"](action))
            embeddings.append(embedding)
        outputs = [[agent.targets["actor"].discriminate(x) for x in images] for agent in self.discriminators]
        for i, agent in enumerate(self.generators):
            if agent.critic:
                values[agent.name] = agent.targets["critic"](embeddings[i], image_logits(outputs, i))
        for agent, one in zip(self.discriminators, outputs, strict=True):
            if agent.critic:
                values[agent.name] = agent.targets["critic"](*critic_inputs(one))
        return values

    def state_dict(self) -> dict:
        """Everything that the coming steps depend on: plain types and live tensors, to be saved before the next."""
        if self.config.extra_reward:
            try:
                self.complete_rewards()
            except UserError as error:  # the function may use another process, which a signal may have ended
                print(f"warning: {error} The last step's rewards are saved as the mean of all before.")
                self.replay.complete({"extra": self.environment.normaliser.mean})
        return {
            "agents": {agent.name: agent.state_dict() for agent in self.agents},
            "environment": self.environment.state_dict(), "replay": self.replay.state_dict(),
            "recurrent": list(self.recurrent.unbind(dim=1)), "steps": self.steps,
        }  # fmt: skip

    def load_state_dict(self, saved: dict) -> None:
        """Restores what `state_dict` returned."""
        for agent in self.agents:
            agent.load_state_dict(saved["agents"][agent.name])
        self.observations = self.environment.load_state_dict(saved["environment"])
        self.replay.load_state_dict(saved["replay"])
        self.recurrent = torch.stack([one.to(self.device) for one in saved["recurrent"]], dim=1)
        self.steps = saved["steps"]
        self.graphs = self.new_graphs()  # the old ones write to Adam's former moments
