"""The generator agent: the policy G_a, the generator G, which turns its actions into images, and their critic G_c.

With an extra reward, a second critic Q_r learns it.
"""

import torch
from torch import Tensor, nn

from magnet.agents import losses
from magnet.agents.agent import Agent, Metrics
from magnet.agents.batch import Act, Batch, Discrimination
from magnet.agents.networks import generator_networks
from magnet.game.rewards import classification_reward, reward_function
from magnet.support.distributed import all_gather_rows


def image_logits(outputs: list[list[Discrimination]], index: int) -> Tensor:
    """G_c's action input: the logits (B, M) of all M discriminators on the images of generator `index`.

    MADDPG's critic knows the other agents' actions (Lowe et al. 2017, eq. 6). The reward depends on the image only
    through these logits. A G_c on D_a's features learned the reward's gradient too slowly (docs/results.md).

    outputs: for each discriminator its outputs on the real images, then on each generator's images.
    """
    return torch.stack([one[1 + index].logits for one in outputs], dim=1)


class GeneratorAgent(Agent):
    """G_a, G and G_c. Its action on a state is the latent vector z, which G turns into an image.

    A plain GAN (Goodfellow et al. 2014) has G alone: its actions are noise and ignore the state.
    """

    makers = staticmethod(generator_networks)
    # Recurrent states (R, 2, layers, hidden) from which sampling starts; only exported weights have them.
    mid_episode: Tensor | None = None

    @property
    def reward_critic(self) -> nn.Module | None:
        """Q_r, the critic of the extra reward; None without an extra reward."""
        return self.networks.get("reward_critic")

    def initial_recurrent_state(self, batch: int) -> Tensor:
        """The recurrent state at the start of an episode: zeros (B, 2, layers, hidden); (B, 0) in a plain GAN."""
        if "actor" not in self.networks:
            return torch.zeros(batch, 0, device=self.device)
        return self.networks["actor"].initial_recurrent_state(batch)

    def act(self, state: Tensor, recurrent: Tensor) -> Act:
        """Alg. 1, line 5, on states (B, 3, S, S). Exploration noise and random actions enter here."""
        noise = self.draw(torch.randn, len(state), self.config.nz)
        if "actor" not in self.networks:
            return Act(noise, None, recurrent, None)
        policy, recurrent, embedding = self.networks["actor"].act(state, recurrent)
        explored = losses.explore(policy, sigma=self.config.exploration, noise=noise)
        random = self.draw(torch.rand, len(state), 1) < self.config.epsilon
        return Act(torch.where(random, noise, explored), policy, recurrent.detach(), embedding.detach(), random)

    def update_reward_critic(self, batch: Batch) -> Metrics:
        """Alg. 1, lines 11 and 12, for Q_r."""
        rows, new_rows, next_value = batch.reward_batch, batch.new_rows, None
        state, image, reward = rows["state"], rows["image"][:, self.index], rows["reward"][:, self.index]
        if self.config.gamma:  # by the targets, as MADDPG.next_values
            with torch.no_grad():
                _, recurrent, _ = self.targets["actor"].act(state, rows["recurrent"][:, self.index])
                action, _, _ = self.targets["actor"].act(rows["next_state"], recurrent)
                next_value = self.targets["reward_critic"](rows["next_state"], self.targets["generator"](action))
        metrics = self.update_critic(state, image, reward, next_value, "reward_critic", new_rows, batch.with_metrics)
        return metrics | {"extra_reward": rows["extra"][-new_rows:, self.index].mean()}

    def extra_value(self, batch: Batch) -> Tensor:
        """Q_r at the states and images of this step: (B,), with the graph of the images."""
        return self.reward_critic(batch.state, batch.policy_images[self.index])

    def extra_objective(self, batch: Batch) -> Tensor:
        """The mean of Q_r, 0 in rows with random actions: a scalar that G_a and G ascend, or G_a alone."""
        act = batch.acts[self.index]
        value = self.extra_value(batch).masked_fill(act.is_noise.squeeze(1), 0.0).mean()
        if self.config.extra_to == "both":
            return value
        # This scalar has the same gradient in z, and none in G's weights.
        (gradient,) = torch.autograd.grad(self.scaler.scale(value), act.action, retain_graph=True)
        return (gradient / self.scaler.scale(torch.ones_like(value)) * act.action).sum()

    def update(self, batch: Batch, discriminators: list[nn.Module]) -> Metrics:
        """Alg. 1, lines 12 and 13: the critics, then the actor. G_a and G ascend Q and Q_r at the explored actions.

        Without a critic they ascend the reward instead of Q. Rows with random actions train G alone and without Q_r,
        because their images do not depend on the state. discriminators: the M D_a's, which have learned from `batch`.
        """
        config, metrics, rewards = self.config, {}, reward_function(self.config.reward_function)
        policy, embedding = batch.acts[self.index].policy, batch.acts[self.index].embedding
        if self.critic:
            played = image_logits(batch.outputs, self.index).detach()
            reward, next_value = batch.rewards[self.name], batch.next_values[self.name]
            metrics = self.update_critic(embedding, played, reward, next_value, with_metrics=batch.with_metrics)
        if batch.reward_batch:
            metrics |= self.update_reward_critic(batch)
        outputs = [discriminator.discriminate(batch.policy_images[self.index]) for discriminator in discriminators]
        _, logits, classes = zip(*outputs, strict=True)
        real_logits = None  # by D_a after its own step; only paired rewards need them
        if rewards.paired:
            with torch.no_grad():
                real_logits = torch.stack([discriminator(batch.real) for discriminator in discriminators])
        if not self.critic or batch.with_metrics:
            objective = reward = rewards.generator(torch.stack(logits), real_logits).mean(dim=0)
        if self.critic:
            action = torch.stack(logits, dim=1)
            if batch.with_metrics:
                action.retain_grad()
                gradients = torch.autograd.grad(reward.sum(), logits, retain_graph=True)
            objective = self.critic(embedding, action)
        loss = -objective.mean()
        if config.specialise:
            classified = torch.stack([classification_reward(c, self.index) for c in classes]).mean()
            loss = loss - config.specialise * classified
            metrics["classification"] = classified.detach()
        if self.reward_critic and config.extra_weight:
            loss = loss - config.extra_weight * self.extra_objective(batch)
        if policy is not None:
            policy = all_gather_rows(policy)
            diversity = losses.diversity_objective(policy)
            loss = loss - config.diversity_weight * diversity
        inputs = self.parameters(*(key for key in ("generator", "actor") if key in self.networks))
        inputs += [action] if self.critic and batch.with_metrics else []
        self.scaler.scale(loss).backward(inputs=inputs)  # Alg. 1, line 13
        metrics |= self.descend("generator", batch.with_metrics)
        if policy is not None:
            metrics |= self.descend("actor", batch.with_metrics) | {"diversity": diversity.detach()}
        self.scaler.update()
        if not batch.with_metrics:
            return metrics
        if self.critic:
            gradient = torch.stack(gradients, dim=1)
            metrics["gradient_cosine"] = losses.gradient_cosine(
                all_gather_rows(-action.grad), all_gather_rows(gradient)
            )
        if policy is None:
            return metrics
        policy = policy.detach()
        return metrics | {
            "z_correlation": losses.mean_correlation(policy),
            # The deviation before the normalisation, after which it is always 1, shows a collapse.
            "z_deviation": self.networks["actor"].normalise.running_var.sqrt().mean(),
        }
