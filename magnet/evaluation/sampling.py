"""Samples of a trained generator agent: its averaged networks, with BatchNorm statistics of their own.

Prior samples are G(z) of noise z ~ N(0, I). Policy samples are G(z) of G_a's actions z on real states. Guided samples
are G(z) of noise that the discriminator's gradient has moved.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent
from magnet.agents.layers import Convolutions, SyncedBatchNorm
from magnet.data.image_dataset import ImageDataset, from_uint8, to_uint8
from magnet.support.random_streams import stream

BATCHES, BATCH = 16, 128  # over which the statistics are taken
GRID_BATCH = 32  # instead, for the grids of a run, which waits for them
# States that G_a sees before it is sampled. In training z is normalised over a batch whose rows have all seen equally
# many states. The first actions of an episode lie nearer to each other: with the statistics of later ones, they would
# look alike.
WARM_UP = 8
LANGEVIN_STEPS, LANGEVIN_STEP = 10, 0.05  # of guided samples


def copy_in_float32(network: nn.Module) -> nn.Module:
    """A copy of `network` in training mode, without autocast, for this process alone.

    So pictures do not depend on where they are made.
    """
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, SyncedBatchNorm):
            module.alone = True
        elif isinstance(module, Convolutions):
            module.dtype = torch.float32
    return network


@torch.no_grad()
def copy_with_statistics(network: nn.Module, play: Callable[[nn.Module], None]) -> nn.Module:
    """A float32 copy of `network` for evaluation. Its BatchNorms hold plain averages over what `play(copy)` shows it.

    The running statistics belong to the trained weights, not to their average, and would make worse pictures. Compare
    the standing statistics of Brock et al. 2019 (BigGAN).
    """
    network = copy_in_float32(network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain average instead of a running one
    play(network)
    return network.eval()


class Sampler:
    """Copies of one agent's G and G_a as they stand now, ready to be sampled.

    It draws nothing from the run's own random generators. `actor` is None if only prior samples can be drawn.
    """

    def __init__(
        self, agent: GeneratorAgent, dataset: ImageDataset | None, seed: int = 0, averaged: bool = True,
        batch: int = BATCH,
    ):  # fmt: skip
        """dataset: the images that are G_a's states; None for prior samples alone, or for a plain GAN.

        averaged: sample the targets, running averages of the trained networks; else these themselves. batch: the rows
        of the batches over which the statistics are taken.
        """
        self.batch, self.index = batch, agent.index
        self.config, self.device, self.dataset = agent.config, agent.device, dataset
        networks, self.actor = agent.targets if averaged else agent.networks, None
        if agent.mid_episode is not None:  # exported weights: their BatchNorms hold the statistics already
            self.generator, self.mid_episode = copy_in_float32(networks["generator"]).eval(), agent.mid_episode
            if "actor" in networks:
                self.actor = copy_in_float32(networks["actor"]).eval()
        else:
            self.reseed(0, "statistics")
            self.generator = copy_with_statistics(networks["generator"], self._show_noise)
            if dataset:
                # The recurrent state in the middle of an episode (batch, 2, layers, hidden), as in training.
                self.mid_episode = self.warm_up(batch, copy_in_float32(networks["actor"]))
                self.actor = copy_with_statistics(networks["actor"], self._show_states)
        self.reseed(seed)

    def reseed(self, seed: int, purpose: str = "sampler") -> None:
        """Restarts the random stream: it then draws as a new Sampler with `seed` does."""
        # Generators of a team have noise and states of their own, so that their samples together are independent.
        self.random = stream(seed, f"{purpose}/{self.index}" if self.index else purpose, self.device)

    def _show_noise(self, generator: nn.Module) -> None:
        for _ in range(BATCHES):
            generator(self.draw_noise(self.batch))

    def _show_states(self, actor: nn.Module) -> None:
        for t in range(BATCHES):
            if t % self.run_length == 0:
                recurrent = self.mid_episode  # at first, and where an episode would end
            _, recurrent = actor(self.draw_states(self.batch), recurrent)

    @property
    def run_length(self) -> int:
        """The number of states that are left of an episode after `warm_up`."""
        return self.config.episode_length - min(WARM_UP, self.config.episode_length - 1)

    @torch.no_grad()
    def warm_up(self, count: int, actor: nn.Module | None = None) -> Tensor:
        """The recurrent state (count, 2, layers, hidden) in the middle of an episode, after some random states."""
        actor = actor or self.actor
        recurrent = actor.initial_recurrent_state(count)
        for _ in range(self.config.episode_length - self.run_length):
            _, recurrent = actor(self.draw_states(count), recurrent)
        return recurrent

    def draw_noise(self, count: int) -> Tensor:
        """z ~ N(0, I), (count, nz)."""
        return torch.randn(count, self.config.nz, generator=self.random, device=self.device)

    def draw_states(self, count: int) -> Tensor:
        """Real images (count, 3, S, S), from the dataset and their mirror images."""
        indices = torch.randint(2 * len(self.dataset), (count,), generator=self.random, device=self.device)
        return self.dataset.batch(indices)

    @torch.no_grad()
    def generate(self, z: Tensor) -> Tensor:
        """G(z): (B, nz) -> images (B, 3, S, S) in [-1, 1]."""
        return self.generator(z)

    @torch.no_grad()
    def act(self, states: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor]:
        """The images (B, 3, S, S) of G_a's actions on states (B, 3, S, S), and the next recurrent state.

        recurrent: from `warm_up`, or from the last call in the same episode.
        """
        z, recurrent = self.actor(states, recurrent)
        return self.generator(z), recurrent

    def answer(self, states: Tensor) -> Tensor:
        """G(z) of G_a's actions on states uint8 (N, 3, S, S), in the middle of an episode; uint8 on the CPU."""
        recurrent = self.mid_episode.repeat(-(-len(states) // len(self.mid_episode)), 1, 1, 1)[: len(states)]
        answers = []
        for part, memory in zip(states.split(BATCH), recurrent.split(BATCH), strict=True):
            answers.append(to_uint8(self.act(from_uint8(part.to(self.device)), memory)[0]).cpu())
        return torch.cat(answers)


class Guide:
    """Refines noise with the discriminators' gradient, so that they rate G(z) as more real."""

    def __init__(self, discriminators: list[DiscriminatorAgent]):
        """discriminators: whose running averages of D_a are used."""
        self.discriminators = [copy_in_float32(agent.targets["actor"]) for agent in discriminators]

    def __call__(self, sampler: Sampler, z: Tensor) -> Tensor:
        """z ~ N(0, I), (B, nz) -> z (B, nz), about from the density N(z; 0, I) exp(l(G(z))), with l the mean logit.

        If D were optimal for G, G(z) of such z would be distributed as the data are (Che et al. 2020, DDLS, arXiv
        2003.06060, algorithm 1: Langevin steps in z). D_a runs as in training, with the statistics of the batch.
        """
        for _ in range(LANGEVIN_STEPS):
            z = z.detach().requires_grad_()
            images = sampler.generator(z)
            logits = torch.stack([discriminator(images) for discriminator in self.discriminators]).mean(dim=0)
            (gradient,) = torch.autograd.grad(logits.sum(), z)  # no parameter gets one
            noise = torch.randn(z.shape, generator=sampler.random, device=z.device)
            z = z.detach() + LANGEVIN_STEP / 2 * (gradient - z.detach()) + LANGEVIN_STEP**0.5 * noise
        return z


class FixedGrids:
    """The grids of a run: 64 samples of fixed noise, and G_a's answers to 32 fixed states, each beside its state.

    For points they show 2,500 samples, and the answers to 1,250 states, over points of the data. Several generators
    share the noise and states. Each has a part of the grid: as many rows of 8 pictures as fit into 64, or one.
    """

    def __init__(self, agents: list[GeneratorAgent], dataset: ImageDataset, seed: int):
        self.agents, self.dataset = agents, dataset
        random, count = stream(seed, "grid"), max(8, dataset.grid_size // len(agents) // 8 * 8)
        z = torch.randn(dataset.grid_size, agents[0].config.nz, generator=random)
        indices = torch.randperm(len(dataset), generator=random)[: dataset.grid_size // 2]
        self.z = z[:count].to(agents[0].device)
        self.states = dataset.batch(indices.to(dataset.device))[: count // 2]

    def draw(self) -> dict[str, Tensor]:
        """The grids of the present networks by kind, "prior" and "policy": (N, 3, S, S) in [-1, 1] each."""
        has_policy = "actor" in self.agents[0].networks
        dataset = self.dataset if has_policy else None
        samplers = [Sampler(agent, dataset, batch=max(GRID_BATCH, len(self.states))) for agent in self.agents]
        grids = {"prior": torch.cat([self.dataset.grid(sampler.generate(self.z)) for sampler in samplers])}
        if has_policy:
            count = len(self.states)
            answers = [sampler.act(self.states, sampler.mid_episode[:count])[0] for sampler in samplers]
            grids["policy"] = torch.cat([self.dataset.grid(images, self.states) for images in answers])
        return grids
