"""The two kinds of agent: each has an actor and a critic, their targets and optimizers, and learns by one `update`.

DDPG (Lillicrap et al. 2015, arXiv 1509.02971) for each agent, as in MADDPG (Lowe et al. 2017, arXiv 1706.02275), with
changes (the README's differences). The two that reach deepest: critics are taught the slope of the return as well as
the return, and an actor follows lambda * dr/da + (1 - lambda) * dQ/da, not dQ/da alone (`returns.ascent_direction`).
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from magnet import returns
from magnet.networks import Critic, DiscriminatorActor, Generator, GeneratorActor
from magnet.randomness import restore, stream

Metrics = dict[str, Tensor]


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, no parameter of `modules` gets a gradient; gradients still pass through to what they judge."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target <- tau * online + (1 - tau) * target; BatchNorm's statistics are copied, they are averages already."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
    for moved, source in zip(target.buffers(), online.buffers(), strict=True):
        moved.copy_(source)


def logit_slope(generator: nn.Module, judges: list[nn.Module], z: Tensor) -> Tensor:
    """dl/dz (B, nz) of the judges' mean logit on G(z), z (B, nz). No parameter gets a gradient."""
    z = z.detach().requires_grad_()
    with frozen([generator, *judges]):
        images = generator(z)
        logits = torch.stack([judge(images) for judge in judges]).mean(dim=0)
    return torch.autograd.grad(logits.sum(), z)[0]


class Agent:
    """What both kinds share: networks by name, a target and an optimizer for each, random numbers of their own.

    In an update the actor follows the critic as it stood before the critic's own step of that update, so that one pass
    through the critic's convolutions serves both. (Algorithm 1 takes the step first.)
    """

    def __init__(self, name: str, config, device: torch.device, networks: dict[str, nn.Module]):
        self.name, self.config, self.device = name, config, device
        self.random = stream(config.seed, name, device)
        targets = {key: copy.deepcopy(net).requires_grad_(False) for key, net in networks.items()}
        place = {"device": device, "memory_format": torch.channels_last}
        self.networks = {key: net.to(**place) for key, net in networks.items()}
        self.targets = {key: net.to(**place) for key, net in targets.items()}
        self.optimizers = {
            key: torch.optim.Adam(net.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
            for key, net in self.networks.items()
        }

    def descend(self, key: str) -> Tensor:
        """One optimizer step on the gradients that `key` holds, which are then cleared. Returns their norm, ()."""
        norm = nn.utils.get_total_norm(p.grad for p in self.networks[key].parameters())
        self.optimizers[key].step()
        self.optimizers[key].zero_grad()
        return norm

    def update_targets(self) -> None:
        """Every target moves by tau: the last line of Algorithm 1."""
        for key, target in self.targets.items():
            soft_update(target, self.networks[key], self.config.tau)

    def state_dict(self) -> dict:
        """Networks, targets, optimizers and random state: the live tensors, to be written before the next step."""
        parts = {"networks": self.networks, "targets": self.targets, "optimizers": self.optimizers}
        saved = {part: {key: one.state_dict() for key, one in members.items()} for part, members in parts.items()}
        return saved | {"random": self.random.get_state()}

    def load_state_dict(self, saved: dict) -> None:
        """Takes over what `state_dict` gave."""
        self.load_networks(saved)
        for key, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][key])
        restore(self.random, saved["random"])

    def load_networks(self, saved: dict) -> None:
        """Of what `state_dict` gave takes the networks and targets alone, which is enough for sampling."""
        for key in self.networks:
            self.networks[key].load_state_dict(saved["networks"][key])
            self.targets[key].load_state_dict(saved["targets"][key])

    def teach_critic(
        self, encoded: Tensor, actions: Tensor, reward: Tensor, return_slope: Tensor, next_value: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """The critic's loss and step: value towards the TD target, slope towards the return's.

        encoded (B, hidden) by the critic, with its graph; actions and return_slope (B, A); reward and next_value (B,),
        the latter None if gamma = 0. Returns dQ/da (B, A) as it was before the step, and the metrics.
        """
        actions = actions.detach().requires_grad_()
        value = self.networks["critic"].value(encoded, actions)
        (slope,) = torch.autograd.grad(value.sum(), actions, create_graph=True)
        target = returns.td_target(reward, next_value, self.config.gamma)
        loss = returns.critic_loss(
            value=value, target=target, slope=slope, target_slope=return_slope, weight=self.config.slope_weight
        )
        loss.backward()
        slope = slope.detach()
        return slope, {
            "td_error": (value.detach() - target).square().mean(),
            "slope_cosine": returns.slope_cosine(slope, return_slope),
            "critic_gradient": self.descend("critic"),
        }


def for_answers(values: Tensor, fresh: int, count: int) -> Tensor:
    """Repeats the first `fresh` rows of `values` (B, ...) for `count` answers; the others, replayed, had one each.

    -> (count * fresh + B - fresh, ...), the order in which a generator's actions stand.
    """
    return torch.cat([*[values[:fresh]] * count, values[fresh:]])


def discriminator_networks(config) -> dict[str, nn.Module]:
    """D_a and D_c; of a plain GAN D_a alone."""
    shape = {"image_size": config.image_size, "width": config.width, "bf16": config.precision == "bf16"}
    actor = DiscriminatorActor(**shape, spectral_norm=config.spectral_norm)
    if config.algorithm == "gan":
        return {"actor": actor}
    return {"actor": actor, "critic": Critic(**shape, actions=1)}


def generator_networks(config) -> dict[str, nn.Module]:
    """G_a, G and G_c; of a plain GAN G alone."""
    shape = {"image_size": config.image_size, "width": config.width, "bf16": config.precision == "bf16"}
    if config.algorithm == "gan":
        return {"generator": Generator(**shape, nz=config.nz)}
    return {
        "actor": GeneratorActor(**shape, nz=config.nz),
        "generator": Generator(**shape, nz=config.nz),
        "critic": Critic(**shape, actions=config.nz),
    }


class DiscriminatorAgent(Agent):
    """D_a and D_c. Its action on an image is the logit l of the chance that the image is real."""

    def __init__(self, name: str, config, device: torch.device):
        super().__init__(name, config, device, discriminator_networks(config))

    def act(self, real: Tensor, fakes: list[Tensor]) -> list[Tensor]:
        """Logits on real images (B, 3, S, S), then on each generator's (C, 3, S, S): (B,), then (C,) each.

        In separate passes, so that BatchNorm normalises real and fake images apart (Radford et al. 2015).
        """
        return [self.networks["actor"](images) for images in (real, *fakes)]

    def next_value(self, next_real: Tensor, next_fakes: list[Tensor]) -> list[Tensor]:
        """Q'(s', a') of the targets on the images that come next (B, 3, S, S): (B,) for real, then each generator's."""
        with torch.no_grad():
            seen = [next_real, *next_fakes]
            logits = torch.cat([self.targets["actor"](images) for images in seen])
            return list(self.targets["critic"](torch.cat(seen), logits[:, None]).chunk(len(seen)))

    def update(
        self, real: Tensor, fakes: list[Tensor], logits: list[Tensor], next_value: list[Tensor] | None, fresh: int
    ) -> Metrics:
        """Critic, then actor, on real images (B, 3, S, S) and each generator's fakes (C, 3, S, S).

        logits: what `act` gave for them, with its graph; next_value: as `next_value` gives it. The critic is taught at
        logits with unit noise, else it would never see what another policy earns. Return and accuracies are those of
        the first `fresh` rows, as the game was played: the others' fakes are old, or were not played.
        """
        side = torch.cat([torch.ones_like(logits[0]), *[-torch.ones_like(fake) for fake in logits[1:]]])
        # The return is a mean: of the real term, and of the fake terms over generators and their images.
        share = torch.cat([torch.full_like(part, 1 / len(part)) for part in logits])
        share[len(real) :] /= len(fakes)
        joined = torch.cat(logits)
        direction, metrics = returns.judgement_slope(joined.detach(), side), {}
        if "critic" in self.networks:
            if next_value:
                count = 1 + (len(fakes[0]) - len(real)) // fresh
                next_value = torch.cat([next_value[0], *[for_answers(v, fresh, count) for v in next_value[1:]]])
            images = torch.cat([real, *fakes])
            value_slope, metrics = self.update_critic(images, joined.detach(), side, next_value)
            direction = returns.ascent_direction(direction, value_slope, self.config.lambda_discriminator)
        joined.backward(-direction * share)  # the deterministic policy gradient: dl/dtheta times the direction in l
        if self.config.r1:
            metrics["r1"] = self.penalise(real, 0.0, self.config.r1 / 2)
        if self.config.gradient_penalty:
            place = torch.rand(len(real), 1, 1, 1, generator=self.random, device=self.device)
            between = torch.cat([torch.lerp(real, fake[: len(real)], place) for fake in fakes])
            metrics["gradient_penalty"] = self.penalise(between, 1.0, self.config.gradient_penalty)
        metrics["actor_gradient"] = self.descend("actor")

        real_logits, *fake_logits = (part.detach()[:fresh] for part in logits)
        fake_logits = torch.stack(fake_logits)
        value = returns.discriminator_return(real_logits=real_logits, fake_logits=fake_logits).mean()
        return metrics | {
            "return": value,  # its mean is the game's V(D, G)
            "from_equilibrium": value - returns.EQUILIBRIUM,
            "accuracy_real": (real_logits > 0).float().mean(),
            "accuracy_fake": (fake_logits <= 0).float().mean(),
        }

    def penalise(self, images: Tensor, norm: float, weight: float) -> Tensor:
        """Adds to D_a's gradient that of `weight` times the penalty on its slope in `images`; returns the penalty.

        The slope is that of the batch's summed logits: with BatchNorm an image moves its neighbours' too, a little
        (cosine with its own slope 0.96 at the start). With spectral_norm, which has none, it is the image's own.
        """
        images = images.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.networks["actor"](images).sum(), images, create_graph=True)
        penalty = returns.slope_penalty(slope, norm)
        (weight * penalty).backward()
        return penalty.detach()

    def update_critic(
        self, images: Tensor, logits: Tensor, side: Tensor, next_value: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """Teaches the critic around the logits (B,) of images (B, 3, S, S); side (B,) is 1 for real, -1 for fake ones.

        Returns dQ/dl at the logits (B,), as it was before the critic's step, and metrics.
        """
        encoded = self.networks["critic"].encode(images)
        policy = logits[:, None].clone().requires_grad_()
        (value_slope,) = torch.autograd.grad(self.networks["critic"].value(encoded.detach(), policy).sum(), policy)

        explored = logits + torch.randn(logits.shape, generator=self.random, device=self.device)
        reward, slope = returns.judgement_return(explored, side), returns.judgement_slope(explored, side)
        _, metrics = self.teach_critic(encoded, explored[:, None], reward, slope[:, None], next_value)
        return value_slope.squeeze(1), metrics


class GeneratorAgent(Agent):
    """G_a, G and G_c. Its action on a state is the hidden state z, which G makes a picture of.

    In a plain GAN (Goodfellow et al. 2014) there is G alone: its answers are noise, whatever the state, and nothing is
    remembered.
    """

    def __init__(self, name: str, config, device: torch.device):
        super().__init__(name, config, device, generator_networks(config))

    def first_memory(self, batch: int) -> Tensor:
        """The memory at the start of an episode: zeros (B, 2, layers, hidden), or (B, 0) of a plain GAN."""
        if "actor" not in self.networks:
            return torch.zeros(batch, 0, device=self.device)
        return self.networks["actor"].first_memory(batch)

    def act(self, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The policy's z (B, nz) and the answers (A B, nz), both with their graphs, and the next memory, detached.

        The first B answers are the policy's, explored; the others, and all of a plain GAN's, are noise alone.
        """
        count = self.config.answers * len(state)
        if "actor" not in self.networks:
            noise = torch.randn(count, self.config.nz, generator=self.random, device=self.device)
            return noise[: len(state)], noise, memory
        policy, memory = self.networks["actor"](state, memory)
        sigma = torch.rand(len(policy), 1, generator=self.random, device=self.device) * self.config.exploration
        noise = torch.randn(count, self.config.nz, generator=self.random, device=self.device)
        noise, others = noise.split([len(policy), count - len(policy)])
        return policy, torch.cat([returns.explore(policy, sigma=sigma, noise=noise), others]), memory.detach()

    def improved(self, z: Tensor, judges: list[nn.Module]) -> Tensor:
        """z (C, nz) after a step up the slope of the judges' mean logit on G(z), without a graph.

        Unlike LOGAN's, the players' gradients do not pass through the step.
        """
        slope = logit_slope(self.networks["generator"], judges, z)
        return z.detach() + returns.latent_step(slope, self.config.latent_step)

    def next_action(self, next_state: Tensor, next_memory: Tensor) -> tuple[Tensor, Tensor]:
        """What the targets would do next: z' (B, nz), and the image that they would show."""
        with torch.no_grad():
            z, _ = self.targets["actor"](next_state, next_memory)
            return z, self.targets["generator"](z)

    def next_value(self, next_state: Tensor, next_z: Tensor) -> Tensor:
        """Q'(s', a') of the target critic (B,)."""
        with torch.no_grad():
            return self.targets["critic"](next_state, next_z)

    def update(
        self, state: Tensor, z: Tensor, images: Tensor, policy: Tensor, answers: Tensor,
        judges: list[nn.Module], next_value: Tensor | None,
    ) -> Metrics:  # fmt: skip
        """G, then critic, then actor.

        state (B, 3, S, S), of which the first F <= B rows are of this step, the others replayed. policy (F, nz) and
        answers (A F, nz): what `act` gave for the first. z (C, nz), a leaf that requires a gradient: the answers as
        `improved`, then the replayed actions; images G(z), with their graph. Noise and replayed actions teach G and the
        critic alone, for only an action of the present policy can be led back to it. judges: the D_a's.
        """
        with frozen(judges):
            logits = torch.stack([judge(images) for judge in judges])
            earned = returns.generator_return(logits, self.config.returns).mean(dim=0)
        earned.mean().neg().backward()  # G ascends its return; what reaches its input is the return's slope
        return_slope = -z.grad * len(z)  # z.grad is that of minus the mean
        played = earned.detach()[: len(policy)]
        metrics = {"return": played.mean(), "generator_gradient": self.descend("generator")}
        if "critic" not in self.networks:
            return metrics

        fresh, count = len(policy), len(answers) // len(policy)
        encoded = for_answers(self.networks["critic"].encode(state), fresh, count)
        if next_value is not None:
            next_value = for_answers(next_value, fresh, count)
        value_slope, critic_metrics = self.teach_critic(encoded, z, earned.detach(), return_slope, next_value)

        direction = returns.ascent_direction(return_slope, value_slope, self.config.lambda_generator)[:fresh]
        diversity = returns.diversity_return(policy)
        loss = -self.config.diversity_weight * diversity
        torch.autograd.backward([answers[:fresh], loss], [-direction / fresh, torch.ones_like(loss)])
        metrics["actor_gradient"] = self.descend("actor")

        policy = policy.detach()
        return metrics | critic_metrics | {
            "diversity": diversity.detach(),
            "z_correlation": returns.mean_correlation(policy),
            # Normalised, z always has unit deviation: what tells of a collapse is the deviation before.
            "z_deviation": self.networks["actor"].normalise.running_var.sqrt().mean(),
        }  # fmt: skip
