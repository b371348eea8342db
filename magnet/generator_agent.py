"""The generator agent: G_a, which answers states, G, which makes images of its actions, and G_c, which values them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from magnet import returns
from magnet.agent import Agent, Metrics, encoder
from magnet.distributed import whole
from magnet.networks import Critic, Generator, GeneratorActor, PointGenerator


def generator_networks(config) -> dict[str, Callable[[], nn.Module]]:
    """What makes G_a, G and G_c; at lambda 1 no G_c, of a plain GAN G alone."""
    if config.points:
        networks = {"generator": partial(PointGenerator, config.width, config.nz)}
    else:
        bf16 = config.precision == "bf16"
        networks = {"generator": partial(Generator, config.image_size, config.width, config.nz, bf16)}
    if config.algorithm == "gan":
        return networks
    networks["actor"] = lambda: GeneratorActor(*encoder(config), config.nz)
    if config.lambda_generator < 1:
        networks["critic"] = partial(Critic, config.nz, config.discriminators * config.features)
    return networks


class GeneratorAgent(Agent):
    """G_a, G and G_c. Its action on a state is the hidden state z, of which G makes an image.

    In a plain GAN (Goodfellow et al. 2014) there is G alone: its actions are noise, whatever the state.
    """

    def __init__(self, name: str, config, device: torch.device, index: int = 0):
        """index: its place among the generators."""
        super().__init__(name, config, device, generator_networks(config))
        self.index = index

    def first_memory(self, batch: int) -> Tensor:
        """The recurrent state at the start of an episode: zeros (B, 2, layers, hidden), or (B, 0) of a plain GAN."""
        if "actor" not in self.networks:
            return torch.zeros(batch, 0, device=self.device)
        return self.networks["actor"].first_memory(batch)

    def act(self, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """The action z (B, nz), with exploration; the policy's own action (B, nz); the next recurrent state; and what
        G_a sees of the state (B, nz), the latter two without a graph.

        Of a plain GAN the action is noise, and there is neither a policy nor what it sees.
        """
        noise = self.drawn(torch.randn, len(state), self.config.nz)
        if "actor" not in self.networks:
            return noise, None, memory, None
        policy, memory, seen = self.networks["actor"].act(state, memory)
        sigma = self.drawn(torch.rand, len(state), 1) * self.config.exploration
        return returns.explore(policy, sigma=sigma, noise=noise), policy, memory.detach(), seen.detach()

    def update(
        self, seen: Tensor | None, policy: Tensor | None, images: Tensor, played: Tensor, reward: Tensor,
        next_value: Tensor | None, real: Tensor, discriminators: list[nn.Module],
    ) -> Metrics:  # fmt: skip
        """Critic, then actor: G_a and G ascend Q of G_a's present actions (at lambda > 0 the return as well).

        seen (B, nz), policy (B, nz): as `act` gave them; images G(z) (B, 3, S, S) of the explored actions, with the
        graph. played (B, M F): the M discriminators' features of the images that were played, G_c's view of the
        actions, and reward (B,) what these earn; next_value (B,): Q' or None if gamma = 0. real (B, 3, S, S): the real
        images beside. discriminators: the M D_a's.
        """
        config, metrics = self.config, {}
        if self.critic:
            metrics = self.update_critic(seen, played, reward, next_value)
        outputs = [discriminator.discriminate(images) for discriminator in discriminators]
        features, logits, classes = zip(*outputs, strict=True)
        beside = None
        if config.returns == "relativistic":
            with torch.no_grad():
                beside = torch.stack([discriminator(real) for discriminator in discriminators])
        objective = earned = returns.generator_return(torch.stack(logits), config.returns, beside).mean(dim=0)
        if self.critic:  # Alg. 1, line 13: the actor by the gradient of its critic
            actions = torch.cat(features, dim=1)
            actions.retain_grad()
            gradients = torch.autograd.grad(earned.sum(), features, retain_graph=True)
            value = self.critic(seen, actions)
            objective = config.lambda_generator * earned + (1 - config.lambda_generator) * value
        loss = -objective.mean()
        if config.specialise:
            classified = torch.stack([returns.classification_return(c, self.index) for c in classes]).mean()
            loss = loss - config.specialise * classified
            metrics["classified"] = classified.detach()
        if policy is not None:
            policy = whole(policy)
            diversity = returns.diversity_return(policy)
            loss = loss - config.diversity_weight * diversity
        learners = [network for key, network in self.networks.items() if key != "critic"]  # nor do discriminators learn
        inputs = [p for network in learners for p in network.parameters()]
        loss.backward(inputs=[*inputs, *([actions] if self.critic else [])])
        metrics["generator_gradient"] = self.descend("generator")
        if self.critic:
            metrics["gradient_cosine"] = returns.gradient_cosine(
                whole(-actions.grad), whole(torch.cat(gradients, dim=1))
            )
        if policy is None:
            return metrics
        metrics["actor_gradient"] = self.descend("actor")
        policy = policy.detach()
        return metrics | {
            "diversity": diversity.detach(),
            "z_correlation": returns.mean_correlation(policy),
            # Normalised, z always has unit deviation: what tells of a collapse is the deviation before.
            "z_deviation": self.networks["actor"].normalise.running_var.sqrt().mean(),
        }
