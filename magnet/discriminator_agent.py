"""The discriminator agent: D_a, which judges images, and D_c, which values its judgements."""

import torch
from torch import Tensor, nn

from magnet import returns
from magnet.agent import Agent, Metrics, as_played, encoder, for_answers, joint
from magnet.distributed import whole
from magnet.networks import Critic, DiscriminatorActor


def discriminator_networks(config) -> dict[str, nn.Module]:
    """D_a and D_c; of a plain GAN D_a alone."""
    # Spectral normalisation takes the place of BatchNorm, whose gains would undo it.
    stack, features = encoder(config, batch_norm=not config.spectral_norm)
    names = config.generators if config.specialise else 0
    actor = DiscriminatorActor(stack, features, config.spectral_norm, names)
    if config.algorithm == "gan":
        return {"actor": actor}
    others = config.generators * config.nz + config.discriminators - 1 if config.critic == "joint" else 0
    return {"actor": actor, "critic": Critic(*encoder(config), actions=1 + others)}


class DiscriminatorAgent(Agent):
    """D_a and D_c. Its action on an image is the logit l of the chance that the image is real."""

    def __init__(self, name: str, config, device: torch.device):
        super().__init__(name, config, device, discriminator_networks(config))

    def act(self, real: Tensor, fakes: list[Tensor], first: int = 0) -> tuple[list[Tensor], list[Tensor | None]]:
        """Logits on real images (B, 3, S, S), then on each generator's (C, 3, S, S): (B,), then (C,) each.

        And, with config.specialise, whose it takes them for: (B, N), then (C, N) each. In separate passes, so that
        BatchNorm normalises real and fake images apart (Radford et al. 2015), and of these the first `first`.
        """
        judge = self.networks["actor"].judge
        logits, names = zip(judge(real), *[judge(images, first) for images in fakes], strict=True)
        return list(logits), list(names)

    def next_logits(self, next_real: Tensor, next_fakes: list[Tensor]) -> list[Tensor]:
        """What the target of D_a would answer to the images that come next (B, 3, S, S): (B,) for each."""
        with torch.no_grad():
            return [self.targets["actor"](images) for images in (next_real, *next_fakes)]

    def next_value(
        self, next_real: Tensor, next_fakes: list[Tensor], next_logits: list[Tensor], others: Tensor | None
    ) -> list[Tensor]:
        """Q'(s', a') of the target critic: (B,) for the real images, then for each generator's."""
        with torch.no_grad():
            seen, actions = torch.cat([next_real, *next_fakes]), joint(torch.cat(next_logits)[:, None], others)
            return list(self.targets["critic"](seen, actions).chunk(1 + len(next_fakes)))

    def update(
        self, real: Tensor, fakes: list[Tensor], logits: list[Tensor], names: list[Tensor | None], fresh: int,
        next_value: list[Tensor] | None, others: Tensor | None,
    ) -> Metrics:  # fmt: skip
        """Critic, then actor, on real images (B, 3, S, S) and each generator's fakes (C, 3, S, S).

        With config.r1 `real` has to be a leaf that required a gradient in `act`: R1 asks for the slope there.
        logits, names: what `act` gave for them, with its graph; next_value: as `next_value` gives it; others: what a
        joint critic sees beside each logit (B + N C, K). The critic is taught at logits with unit noise, else it would
        never see what another policy earns. Return and accuracies are those of the first `fresh` rows, as the game was
        played: the others' fakes are old, or were not played.
        """
        config, count = self.config, self.config.answers
        side = torch.cat([torch.ones_like(logits[0]), *[-torch.ones_like(fake) for fake in logits[1:]]])
        # The return is a mean: of the real term, and of the fake terms over generators and their images.
        share = torch.cat([torch.full_like(part, 1 / len(part)) for part in logits])
        share[len(real) :] /= len(fakes)
        joined, beside = torch.cat(logits), logits_beside(logits, fresh, count)
        direction, metrics = returns.judgement_slope(joined.detach(), side, config.returns, beside), {}
        if "critic" in self.networks:
            if next_value:
                next_value = torch.cat([next_value[0], *[for_answers(v, fresh, count) for v in next_value[1:]]])
            images = torch.cat([real.detach(), *fakes])
            value_slope, metrics = self.update_critic(images, joined.detach(), side, beside, next_value, others)
            direction = returns.ascent_direction(direction, value_slope, config.lambda_discriminator)
        # The deterministic policy gradient: dl/dtheta times the direction in l.
        losses, slopes = [joined], [-direction * share]
        if config.specialise:
            named = torch.stack([returns.naming_return(names[1 + i], i) for i in range(len(fakes))])
            losses, slopes = [*losses, -config.specialise * named.mean()], [*slopes, None]
            metrics["named_rightly"] = torch.stack(
                [(names[1 + i].argmax(dim=1) == i).float().mean() for i in range(len(fakes))]
            ).mean()
        if config.r1:  # at the slope of the pass that judged the real images
            (slope,) = torch.autograd.grad(logits[0].sum(), real, create_graph=True)
            penalty = returns.slope_penalty(slope, 0.0)
            losses, slopes = [*losses, config.r1 / 2 * penalty], [*slopes, None]
            metrics["r1"] = penalty.detach()
        torch.autograd.backward(losses, slopes, inputs=self.own["actor"])
        real, judged = real.detach(), [fake[: len(real)] for fake in fakes]  # of all answers as many as are real
        if config.r2:
            metrics["r2"] = self.penalise(judged, 0.0, config.r2 / 2)
        if config.gradient_penalty:
            place = self.drawn(torch.rand, len(real), *[1] * (real.ndim - 1))
            between = torch.cat([torch.lerp(real, fake, place) for fake in judged])
            metrics["gradient_penalty"] = self.penalise([between], 1.0, config.gradient_penalty)
        metrics["actor_gradient"] = self.descend("actor")

        real_logits, *fake_logits = (whole(part.detach()[:fresh]) for part in logits)
        fake_logits = torch.stack(fake_logits)
        earned = returns.discriminator_return(real_logits=real_logits, fake_logits=fake_logits, kind=config.returns)
        value, border = earned.mean(), returns.border(real_logits, fake_logits, config.returns)
        return metrics | {
            "return": value,
            "from_equilibrium": value - returns.equilibrium(config.returns),
            "accuracy_real": (real_logits > border).float().mean(),
            "accuracy_fake": (fake_logits <= border).float().mean(),
        }

    def penalise(self, batches: list[Tensor], norm: float, weight: float) -> Tensor:
        """Adds to D_a's gradient that of `weight` times the penalty on its slope in images; returns the penalty.

        batches: images (B, 3, S, S) that are judged together; the penalty is their mean. The slope is that of the
        batch's summed logits: with BatchNorm an image moves its neighbours' too, a little (cosine with its own slope
        0.96 at the start). With spectral_norm, which has none, it is the image's own.
        """
        penalties = []
        for images in batches:
            images = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.networks["actor"](images).sum(), images, create_graph=True)
            penalty = returns.slope_penalty(slope, norm)
            (weight / len(batches) * penalty).backward(inputs=self.own["actor"])  # and not at the images
            penalties.append(penalty.detach())
        return torch.stack(penalties).mean()

    def update_critic(
        self, images: Tensor, logits: Tensor, side: Tensor, beside: Tensor | None, next_value: Tensor | None,
        others: Tensor | None,
    ) -> tuple[Tensor, Metrics]:  # fmt: skip
        """Teaches the critic around the logits (B,) of images (B, 3, S, S); side (B,) is 1 for real, -1 for fake ones.

        Returns dQ/dl at the logits (B,), as it was before the critic's step (zeros where D_a does not follow it), and
        metrics.
        """
        encoded, kind = self.networks["critic"].encode(images), self.config.returns
        value_slope = torch.zeros_like(logits)
        if self.config.lambda_discriminator < 1:  # else nothing follows it
            policy = logits[:, None].clone().requires_grad_()
            value = self.networks["critic"].value(encoded.detach(), joint(policy, others))
            value_slope = torch.autograd.grad(value.sum(), policy)[0].squeeze(1)

        explored = logits + self.drawn(torch.randn, len(logits))
        reward = returns.judgement_return(explored, side, kind, beside)
        slope = returns.judgement_slope(explored, side, kind, beside)
        _, metrics = self.teach_critic(encoded, explored[:, None], reward, slope[:, None], next_value, others)
        return value_slope, metrics


def logits_beside(logits: list[Tensor], fresh: int, count: int) -> Tensor:
    """What relativistic returns compare each logit with: (B + N C,), for logits (B,) on real, (C,) on fake images.

    Beside a fake stands the real next state of its row; beside a real image what was played against it, of which
    several generators' logits are averaged.
    """
    real, *fakes = (part.detach() for part in logits)
    played = torch.stack([as_played(fake, fresh, len(real)) for fake in fakes]).mean(dim=0)
    return torch.cat([played, *[for_answers(real, fresh, count)] * len(fakes)])
