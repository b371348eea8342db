"""The generator agent: G_a, which answers states, G, which paints its answers, and G_c, which values them."""

import torch
from torch import Tensor, nn

from magnet import returns
from magnet.agent import Agent, Metrics, encoder, for_answers, frozen, joint, leading, logit_slope
from magnet.distributed import whole
from magnet.networks import Critic, Generator, GeneratorActor, PointGenerator


def painter(config) -> nn.Module:
    """G: z (B, nz) -> what is put forward."""
    if config.points:
        return PointGenerator(config.width, config.nz)
    return Generator(config.image_size, config.width, config.nz, config.precision == "bf16")


def generator_networks(config) -> dict[str, nn.Module]:
    """G_a, G and G_c; of a plain GAN G alone."""
    if config.algorithm == "gan":
        return {"generator": painter(config)}
    others = (config.generators - 1) * config.nz + config.discriminators if config.critic == "joint" else 0
    return {
        "actor": GeneratorActor(*encoder(config), config.nz),
        "generator": painter(config),
        "critic": Critic(*encoder(config), actions=config.nz + others),
    }


class GeneratorAgent(Agent):
    """G_a, G and G_c. Its action on a state is the hidden state z, which G makes a picture of.

    In a plain GAN (Goodfellow et al. 2014) there is G alone: its answers are noise, whatever the state, and nothing is
    remembered.
    """

    def __init__(self, name: str, config, device: torch.device, index: int = 0, lender: "GeneratorAgent | None" = None):
        """index: its place among the generators. lender: another, whose G it uses but for the first layer, which is its
        own (Hoang et al. 2018, MGAN); the lender has to be the last of them to learn.
        """
        networks, borrowed = generator_networks(config), ()
        if lender:
            layers, lent = networks["generator"].layers, lender.networks["generator"].layers
            for i in range(1, len(layers)):
                layers[i] = lent[i]
            borrowed = [p for layer in list(lent)[1:] for p in layer.parameters()]
        super().__init__(name, config, device, networks, borrowed)
        self.index = index

    def first_memory(self, batch: int) -> Tensor:
        """The memory at the start of an episode: zeros (B, 2, layers, hidden), or (B, 0) of a plain GAN."""
        if "actor" not in self.networks:
            return torch.zeros(batch, 0, device=self.device)
        return self.networks["actor"].first_memory(batch)

    def act(self, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The policy's z (B, nz) and the answers (A B, nz), both with their graphs, and the next memory, detached.

        The first B answers are the policy's, explored; the others are noise alone. Of a plain GAN all are noise, and
        the first stand for the policy's.
        """
        count = self.config.answers * len(state)
        if "actor" not in self.networks:
            noise = self.drawn(torch.randn, count, self.config.nz)
            return noise[: len(state)], noise, memory
        policy, memory = self.networks["actor"](state, memory)
        sigma = self.drawn(torch.rand, len(policy), 1) * self.config.exploration
        noise = self.drawn(torch.randn, count, self.config.nz)
        noise, others = noise.split([len(policy), count - len(policy)])
        return policy, torch.cat([returns.explore(policy, sigma=sigma, noise=noise), others]), memory.detach()

    def improved(self, z: Tensor, judges: list[nn.Module], first: int = 0) -> Tensor:
        """z (C, nz) after a step up the slope of the judges' mean logit on G(z), without a graph.

        Unlike LOGAN's, the players' gradients do not pass through the step.
        """
        slope = logit_slope(self.networks["generator"], judges, z, first)
        return z.detach() + returns.latent_step(slope, self.config.latent_step)

    def next_action(self, next_state: Tensor, next_memory: Tensor) -> tuple[Tensor, Tensor]:
        """What the targets would do next: z' (B, nz), and the image that they would show."""
        with torch.no_grad():
            z, _ = self.targets["actor"](next_state, next_memory)
            return z, self.targets["generator"](z)

    def next_value(self, next_state: Tensor, next_z: Tensor, others: Tensor | None) -> Tensor:
        """Q'(s', a') of the target critic (B,)."""
        with torch.no_grad():
            return self.targets["critic"](next_state, joint(next_z, others))

    def update(
        self, state: Tensor, real: Tensor, z: Tensor, images: Tensor, policy: Tensor, answers: Tensor,
        judges: list[nn.Module], next_value: Tensor | None, others: Tensor | None,
    ) -> Metrics:  # fmt: skip
        """G, then critic, then actor.

        state and real (B, 3, S, S), of which the first F <= B rows are of this step, the others replayed. policy
        (F, nz) and answers (A F, nz): what `act` gave for the first. z (C, nz), a leaf that requires a gradient: the
        answers as `improved`, then the replayed actions; images G(z), with their graph. Noise and replayed actions
        teach G and the critic alone, for only an action of the present policy can be led back to it. judges: the D_a's;
        others: what a joint critic sees beside z (C, K).
        """
        config, fresh, count = self.config, len(policy), self.config.answers
        with frozen(judges):
            logits, names = zip(*[judge.judge(images, leading(config, fresh)) for judge in judges], strict=True)
            beside = None
            if config.returns == "relativistic":
                with torch.no_grad():
                    beside = torch.stack([for_answers(judge(real), fresh, count) for judge in judges])
            earned = returns.pool(returns.generator_return(torch.stack(logits), config.returns, beside), config.pool)
            metrics = {"return": earned.detach()[:fresh].mean()}
            if config.specialise:
                told_apart = torch.stack([returns.naming_return(name, self.index) for name in names]).mean(dim=0)
                earned = earned + config.specialise * told_apart
                metrics["told_apart"] = told_apart.detach()[:fresh].mean()
        earned.mean().neg().backward()  # G ascends its return; what reaches its input is the return's slope
        return_slope = -z.grad * len(z)  # z.grad is that of minus the mean
        metrics["generator_gradient"] = self.descend("generator")
        if "critic" not in self.networks:
            return metrics

        encoded = for_answers(self.networks["critic"].encode(state), fresh, count)
        if next_value is not None:
            next_value = for_answers(next_value, fresh, count)
        value_slope, critic_metrics = self.teach_critic(encoded, z, earned.detach(), return_slope, next_value, others)

        direction = returns.ascent_direction(return_slope, value_slope, config.lambda_generator)[:fresh]
        policy = whole(policy)
        diversity = returns.diversity_return(policy)
        loss = -config.diversity_weight * diversity
        torch.autograd.backward([answers[:fresh], loss], [-direction / fresh, torch.ones_like(loss)])
        metrics["actor_gradient"] = self.descend("actor")

        policy = policy.detach()
        return metrics | critic_metrics | {
            "diversity": diversity.detach(),
            "z_correlation": returns.mean_correlation(policy),
            # Normalised, z always has unit deviation: what tells of a collapse is the deviation before.
            "z_deviation": self.networks["actor"].normalise.running_var.sqrt().mean(),
        }  # fmt: skip
