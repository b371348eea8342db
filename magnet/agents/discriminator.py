"""The discriminator agent: D_a, which classifies images as real or generated, and D_c, which values its logits."""

import torch
from torch import Tensor

from magnet.agents import losses
from magnet.agents.agent import Agent, Metrics
from magnet.agents.batch import Batch, Discrimination
from magnet.agents.networks import discriminator_networks
from magnet.game.rewards import classification_reward, reward_function
from magnet.support.distributed import all_gather_rows


def critic_inputs(outputs: list[Discrimination]) -> tuple[Tensor, Tensor]:
    """D_c's inputs: features ((1 + N) B, F) without a graph, and actions ((1 + N) B, 2), label * logit and the label.

    The label is 1 for real and -1 for generated images. MADDPG's critic knows the other agents' actions (Lowe et al.
    2017, eq. 6): here, which images are a generator's. label * logit is the logit of the right class. If the critic saw
    the logit itself, it would have to learn the product, and D_a may diverge before it does (docs/results.md).

    outputs: D_a's outputs on the real images (B, ...), then on the images of each of N generators.
    """
    features, logits, _ = zip(*outputs, strict=True)
    real, logits = len(logits[0]), torch.cat(logits)
    labels = torch.full_like(logits, -1.0)
    labels[:real] = 1.0
    return torch.cat(features).detach(), torch.stack([labels * logits, labels], dim=1)


def sum_of_means(values: Tensor, real: int) -> Tensor:
    """The mean of the first `real` values, on real images, plus the mean of the others: a scalar.

    The discriminator's reward is such a sum for any number of generators.
    """
    return values[:real].mean() + values[real:].mean()


class DiscriminatorAgent(Agent):
    """D_a and D_c. Its action on an image is the logit l of the probability that the image is real."""

    makers = staticmethod(discriminator_networks)

    def update(self, batch: Batch) -> Metrics:
        """Alg. 1, lines 12 and 13: the critic, then the actor, on real and generated images."""
        config, metrics, rewards = self.config, {}, reward_function(self.config.reward_function)
        outputs, real = batch.outputs[self.index], batch.real
        _, logits, classes = zip(*outputs, strict=True)
        real_logits, fake_logits = logits[0], torch.stack(logits[1:])
        if not self.critic:
            objective = rewards.discriminator(real_logits, fake_logits).mean()
        else:
            features, actions = critic_inputs(outputs)
            if batch.with_metrics:
                actions.retain_grad()

            def reward(right: Tensor) -> Tensor:
                """Rewards ((1 + N) B,) by `right`, logits of the right class; the paired images keep D_a's logits."""
                logits = actions[:, 1].detach() * right
                real, fake = logits[: len(real_logits)], logits[len(real_logits) :].view_as(fake_logits)
                on_real = rewards.real(real.expand_as(fake), fake_logits.detach()).mean(dim=0)
                return torch.cat([on_real, rewards.fake(fake, real_logits.detach()).flatten()])

            # Exploration: D_c learns the rewards of logits around D_a's own, and so their gradient.
            explored = actions.detach().clone()
            explored[:, 0] += self.draw(torch.randn, len(explored))
            next_value = batch.next_values[self.name]
            reward_explored = reward(explored[:, 0])
            metrics = self.update_critic(
                features, explored, reward_explored, next_value, with_metrics=batch.with_metrics
            )
            objective = sum_of_means(self.critic(features, actions), len(real))
        loss = -objective
        if config.specialise:
            named = [classification_reward(c, i) for i, c in enumerate(classes[1:])]
            loss = loss - config.specialise * torch.stack(named).mean()
            accuracy = [(c.argmax(dim=1) == i).float().mean() for i, c in enumerate(classes[1:])]
            metrics["classifier_accuracy"] = torch.stack(accuracy).mean()
        if batch.r1:  # R1 reuses D_a's forward pass on the real images
            (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            penalty = losses.gradient_penalty(gradient, 0.0)
            loss = loss + batch.r1 / 2 * penalty
            metrics["r1"] = penalty.detach()
        inputs = [*self.parameters("actor"), *([actions] if self.critic and batch.with_metrics else [])]
        self.scaler.scale(loss).backward(inputs=inputs)  # Alg. 1, line 13
        real = real.detach()
        if config.r2:
            metrics["r2"] = self.penalise(batch.played_images, 0.0, config.r2 / 2)
        if config.gradient_penalty:
            place = self.draw(torch.rand, len(real), *[1] * (real.ndim - 1))
            between = torch.cat([torch.lerp(real, fake, place) for fake in batch.played_images])
            metrics["gradient_penalty"] = self.penalise([between], 1.0, config.gradient_penalty)
        metrics |= self.descend("actor", batch.with_metrics)
        self.scaler.update()
        if self.critic and batch.with_metrics:
            leaf = actions[:, 0].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(sum_of_means(reward(leaf), len(real)), leaf)
            by_critic, by_reward = all_gather_rows(-actions.grad[:, 0]), all_gather_rows(gradient)
            metrics["gradient_cosine"] = losses.gradient_cosine(by_critic, by_reward)
        # Accuracies are on the rows of this step.
        real_logits = all_gather_rows(real_logits.detach()[: batch.new_rows])
        fake_logits = all_gather_rows(fake_logits.detach().T[: batch.new_rows]).T
        border = rewards.border(real_logits, fake_logits)
        return metrics | {
            "accuracy_real": (real_logits > border).mean(dtype=torch.float32),
            "accuracy_fake": (fake_logits <= border).mean(dtype=torch.float32),
        }

    def penalise(self, batches: list[Tensor], norm: float, weight: float) -> Tensor:
        """Adds the gradient of `weight` times the penalty on D_a's gradient in images. Returns the penalty.

        batches: images (B, 3, S, S), each passed through D_a together; the penalty is the mean over batches. It takes
        the gradient of the batch's summed logits, so BatchNorm lets an image affect its neighbours slightly.
        """
        penalties = []
        for images in batches:
            images = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.networks["actor"](images).sum(), images, create_graph=True)
            penalty = losses.gradient_penalty(gradient, norm)
            loss = self.scaler.scale(weight / len(batches) * penalty)
            loss.backward(inputs=self.parameters("actor"))
            penalties.append(penalty.detach())
        return torch.stack(penalties).mean()
