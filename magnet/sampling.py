"""How a trained generator agent is sampled: its averaged networks, with statistics of BatchNorm of their own.

Prior samples are G(z) of noise z ~ N(0, I), policy samples G(z) of the z with which G_a answers real states.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from magnet.agents import GeneratorAgent, stream
from magnet.faces import Faces
from magnet.logbook import Logbook

BATCHES, BATCH = 16, 128  # over which the statistics are taken


@torch.no_grad()
def with_own_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> nn.Module:
    """A copy of `network` for evaluation, whose BatchNorms hold the averages over `batches` of its inputs.

    The running statistics were taken from the trained weights, not from their average; with them its pictures are worse
    by far (the README has the figures). Compare the standing statistics of Brock et al. 2019, section 4.1.
    """
    network = copy.deepcopy(network).train()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average instead of a running one
    for inputs in batches:
        network(*inputs)
    return network.eval()


class Sampler:
    """G and G_a of one agent, as they stand now, ready to be sampled. Draws nothing from the run's own generators."""

    def __init__(self, agent: GeneratorAgent, faces: Faces | None, seed: int = 0):
        """faces: whose states G_a answers; None if only prior samples are wanted."""
        self.random = stream(seed, "statistics", agent.device)
        self.nz, self.device, self.faces = agent.config.nz, agent.device, faces
        noise = ((self.noise(BATCH),) for _ in range(BATCHES))
        self.generator = with_own_statistics(agent.targets["generator"], noise)
        self.actor = faces and with_own_statistics(agent.targets["actor"], self._states(agent.targets["actor"]))

    def noise(self, count: int) -> Tensor:
        """z ~ N(0, I), (count, nz)."""
        return torch.randn(count, self.nz, generator=self.random, device=self.device)

    def _states(self, actor: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """An episode for the actor's statistics: states, and the memories with which they are met."""
        memory = actor.first_memory(BATCH)
        for _ in range(BATCHES):
            indices = torch.randint(2 * len(self.faces), (BATCH,), generator=self.random, device=self.device)
            state = self.faces.batch(indices)
            yield state, memory
            _, memory = actor(state, memory)

    @torch.no_grad()
    def prior(self, z: Tensor) -> Tensor:
        """G(z): (B, nz) -> images (B, 3, S, S) in [-1, 1]."""
        return self.generator(z)

    @torch.no_grad()
    def policy(self, state: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """G_a's answer to states (B, 3, S, S): the images (B, 3, S, S) that it puts forward, and its next memory.

        memory: the last call's in the same episode; None begins one.
        """
        z, memory = self.actor(state, self.actor.first_memory(len(state)) if memory is None else memory)
        return self.generator(z), memory


class FixedGrids:
    """The grids of a run: 64 pictures of fixed noise, and G_a's answers to 32 fixed states, each beside its state."""

    def __init__(self, agent: GeneratorAgent, faces: Faces, seed: int):
        self.agent, self.faces = agent, faces
        draw = stream(seed, "grid")
        self.z = torch.randn(64, agent.config.nz, generator=draw).to(agent.device)
        self.state = faces.batch(torch.randperm(len(faces), generator=draw)[:32].to(faces.device))

    def draw(self, book: Logbook) -> None:
        """Writes both grids of the present networks into `book`."""
        sampler = Sampler(self.agent, self.faces)
        book.picture("prior", sampler.prior(self.z))
        answers, _ = sampler.policy(self.state)
        book.picture("policy", torch.stack([self.state, answers], dim=1).flatten(0, 1), "-policy")
