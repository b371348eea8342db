"""The discriminator agent: D_a, which judges images, and D_c, which values its judgements."""

import torch
from torch import Tensor, nn

from magnet import returns
from magnet.agent import Agent, Metrics, encoder, for_answers
from magnet.networks import Critic, DiscriminatorActor


def discriminator_networks(config) -> dict[str, nn.Module]:
    """D_a and D_c; of a plain GAN D_a alone."""
    # Spectral normalisation takes the place of BatchNorm, whose gains would undo it.
    actor = DiscriminatorActor(*encoder(config, batch_norm=not config.spectral_norm), config.spectral_norm)
    if config.algorithm == "gan":
        return {"actor": actor}
    return {"actor": actor, "critic": Critic(*encoder(config), actions=1)}


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
            place = torch.rand(len(real), *[1] * (real.ndim - 1), generator=self.random, device=self.device)
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
