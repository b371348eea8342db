"""How a trained generator agent is sampled: its averaged networks, with statistics of BatchNorm of their own.

Prior samples are G(z) of noise z ~ N(0, I), policy samples G(z) of G_a's actions z on real states, guided
samples G(z) of noise that was moved to where the discriminator takes G(z) for real.
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
# many; the first actions of an episode lie nearer to each other, and with the statistics of the later ones they look
# alike. After 8 states nothing changes any more (docs/results.md).
WARM_UP = 8
LANGEVIN_STEPS, LANGEVIN_STEP = 10, 0.05  # of guided samples; steps of 0.02 and 0.1 scored alike (docs/results.md)


def in_float32(network: nn.Module) -> nn.Module:
    """A copy of `network` in training mode, for this process alone, without autocast.

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
def with_own_statistics(network: nn.Module, play: Callable[[nn.Module], None]) -> nn.Module:
    """A float32 copy of `network` for evaluation, whose BatchNorms hold plain averages over what `play(copy)` shows it.

    The running statistics were taken from the trained weights, not from their average; with them its pictures are
    worse, early in a run by far (README). Compare the standing statistics of Brock et al. 2019 (BigGAN).
    """
    network = in_float32(network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain average instead of a running one
    play(network)
    return network.eval()


class Sampler:
    """G and G_a of one agent, as they stand now, ready to be sampled. Draws nothing from the run's own generators."""

    def __init__(
        self, agent: GeneratorAgent, dataset: ImageDataset | None, seed: int = 0, averaged: bool = True,
        batch: int = BATCH,
    ):  # fmt: skip
        """dataset: whose images are G_a's states; None if only prior samples are wanted, or there is no G_a (a plain
        GAN).

        averaged: sample the targets, running averages of the trained networks; else these themselves. batch: inputs in
        each of the batches over which the statistics are taken.
        """
        self.batch, self.index = batch, agent.index
        self.config, self.device, self.dataset = agent.config, agent.device, dataset
        networks = agent.targets if averaged else agent.networks
        if agent.mid_episode is not None:  # exported weights: their BatchNorms hold the statistics already
            self.generator, self.mid_episode = in_float32(networks["generator"]).eval(), agent.mid_episode
            self.actor = in_float32(networks["actor"]).eval() if "actor" in networks else None
        else:
            self.reseed(0, "statistics")
            self.generator = with_own_statistics(networks["generator"], self._show_noise)
            if dataset:
                # The recurrent state in the middle of an episode (batch, 2, layers, hidden), as in training.
                self.mid_episode = self._recurrent_after_warm_up(in_float32(networks["actor"]), batch)
                self.actor = with_own_statistics(networks["actor"], self._show_states)
        self.reseed(seed)

    def reseed(self, seed: int, purpose: str = "sampler") -> None:
        """Draws as a new Sampler with `seed` does. The statistics are the same for all seeds."""
        # Generators of a team have noise and states of their own, so that their samples together are independent.
        self.random = stream(seed, f"{purpose}/{self.index}" if self.index else purpose, self.device)

    def _show_noise(self, generator: nn.Module) -> None:
        for _ in range(BATCHES):
            generator(self.noise(self.batch))

    def _show_states(self, actor: nn.Module) -> None:
        for t in range(BATCHES):
            if t % self.run_length == 0:
                recurrent = self.mid_episode  # at first, and where an episode would end
            _, recurrent = actor(self.state(self.batch), recurrent)

    @property
    def run_length(self) -> int:
        """How many states are left of an episode after those before `recurrent_state`."""
        return self.config.episode_length - self._warm_up

    @property
    def _warm_up(self) -> int:
        return min(WARM_UP, self.config.episode_length - 1)

    @torch.no_grad()
    def _recurrent_after_warm_up(self, actor: nn.Module, count: int) -> Tensor:
        recurrent = actor.initial_recurrent_state(count)
        for _ in range(self._warm_up):
            _, recurrent = actor(self.state(count), recurrent)
        return recurrent

    def recurrent_state(self, count: int) -> Tensor:
        """The recurrent state (count, 2, layers, hidden) in the middle of an episode, after some random states."""
        return self._recurrent_after_warm_up(self.actor, count)

    def noise(self, count: int) -> Tensor:
        """z ~ N(0, I), (count, nz)."""
        return torch.randn(count, self.config.nz, generator=self.random, device=self.device)

    def state(self, count: int) -> Tensor:
        """Real images (count, 3, S, S), drawn from the dataset and their mirror images."""
        indices = torch.randint(2 * len(self.dataset), (count,), generator=self.random, device=self.device)
        return self.dataset.batch(indices)

    @torch.no_grad()
    def prior(self, z: Tensor) -> Tensor:
        """G(z): (B, nz) -> images (B, 3, S, S) in [-1, 1]."""
        return self.generator(z)

    @torch.no_grad()
    def policy(self, state: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor]:
        """By G_a on states (B, 3, S, S): the generated images (B, 3, S, S), and the next recurrent state.

        recurrent: as `recurrent_state` gives it, or the last call's in the same episode.
        """
        z, recurrent = self.actor(state, recurrent)
        return self.generator(z), recurrent

    def answer(self, states: Tensor) -> Tensor:
        """G(z) of G_a's actions z on states uint8 (N, 3, S, S), as in the middle of an episode; alike, on the CPU."""
        recurrent = self.mid_episode.repeat(-(-len(states) // len(self.mid_episode)), 1, 1, 1)[: len(states)]
        answers = []
        for part, memory in zip(states.split(BATCH), recurrent.split(BATCH), strict=True):
            answers.append(to_uint8(self.policy(from_uint8(part.to(self.device)), memory)[0]).cpu())
        return torch.cat(answers)


def logit_gradient(generator: nn.Module, discriminators: list[nn.Module], z: Tensor) -> Tensor:
    """dl/dz (B, nz) of the discriminators' mean logit on G(z), z (B, nz). No parameter gets a gradient."""
    z = z.detach().requires_grad_()
    images = generator(z)
    logits = torch.stack([discriminator(images) for discriminator in discriminators]).mean(dim=0)
    return torch.autograd.grad(logits.sum(), z)[0]


class Guide:
    """Moves noise to where discriminators take G(z) for real."""

    def __init__(self, discriminators: list[DiscriminatorAgent], averaged: bool = True):
        """averaged: ask the targets of D_a, running averages; else D_a itself."""
        chosen = [agent.targets if averaged else agent.networks for agent in discriminators]
        self.discriminators = [in_float32(networks["actor"]) for networks in chosen]

    def __call__(self, sampler: Sampler, z: Tensor) -> Tensor:
        """z ~ N(0, I), (B, nz) -> z (B, nz), about from the density N(z; 0, I) exp(l(G(z))), with l the mean logit.

        If D were optimal for G, G(z) of such z would be distributed as the data are: Langevin steps in z, Che et al.
        2020 (DDLS, arXiv 2003.06060, algorithm 1). D_a runs as in training, by the statistics of the batch.
        """
        for _ in range(LANGEVIN_STEPS):
            gradient = logit_gradient(sampler.generator, self.discriminators, z)
            noise = torch.randn(z.shape, generator=sampler.random, device=z.device)
            z = z + LANGEVIN_STEP / 2 * (gradient - z) + LANGEVIN_STEP**0.5 * noise
        return z


class FixedGrids:
    """The grids of a run: 64 images of fixed noise, and images of G_a's actions on 32 fixed states, each beside its
    state.

    Of points 2,500 of fixed noise, and the points of the actions on 1,250 fixed states, over points of the data.
    Several generators have the same noise and states, each in a part of the grid: rows of 8 pictures, as many as fit
    into 64, or one.
    """

    def __init__(self, agents: list[GeneratorAgent], dataset: ImageDataset, seed: int):
        self.agents, self.dataset = agents, dataset
        draw, count = stream(seed, "grid"), max(8, dataset.grid_size // len(agents) // 8 * 8)
        z = torch.randn(dataset.grid_size, agents[0].config.nz, generator=draw)
        state = dataset.batch(torch.randperm(len(dataset), generator=draw)[: dataset.grid_size // 2].to(dataset.device))
        self.z, self.state = z[:count].to(agents[0].device), state[: count // 2]

    def draw(self) -> dict[str, Tensor]:
        """The grids of the present networks by name, "prior" and "policy": (N, 3, S, S) in [-1, 1] each."""
        has_policy = "actor" in self.agents[0].networks
        dataset = self.dataset if has_policy else None
        samplers = [Sampler(agent, dataset, batch=max(GRID_BATCH, len(self.state))) for agent in self.agents]
        grids = {"prior": torch.cat([self.dataset.grid(sampler.prior(self.z)) for sampler in samplers])}
        if has_policy:
            count = len(self.state)
            generated = [sampler.policy(self.state, sampler.mid_episode[:count])[0] for sampler in samplers]
            grids["policy"] = torch.cat([self.dataset.grid(images, self.state) for images in generated])
        return grids
