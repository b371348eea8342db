"""What a user would write: a DCGAN, and MAGNET's five networks step by step, with DataLoaders. To be compared with.

Both are plain loops in float32 over the same actors and G as MAGNET's, fed by torchvision's ImageFolder, which decodes
and resizes each image when it is its turn. Critics are the textbook's: each has convolutions of its own.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from magnet.agents.layers import image_stack
from magnet.agents.networks import discriminator_networks, generator_networks, initialise
from magnet.config import Config

NOISE = 0.1  # of exploration: the published value, as are gamma and tau
GAMMA, TAU = 0.95, 0.01


class Critic(nn.Module):
    """Q(image, action): a stack of convolutions, then linear layers over its features and the action."""

    def __init__(self, config: Config, actions: int, hidden: int = 256):
        super().__init__()
        self.stack, features = image_stack(config.image_size, config.width)
        self.head = nn.Sequential(
            nn.Linear(features + actions, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        self.apply(initialise)

    def forward(self, images: Tensor, actions: Tensor) -> Tensor:
        """images (B, 3, S, S), actions (B, A) -> values (B,)."""
        return self.head(torch.cat([self.stack(images), actions], dim=1)).squeeze(1)


def loader(folder: Path, config: Config, workers: int) -> Iterator[Tensor]:
    """Random batches (B, 3, S, S) in [-1, 1], of the images in the folders inside `folder`.

    Without end: epochs of so few images would end, and workers begin anew, more often than CelebA's do.
    """
    prepare = transforms.Compose([
        transforms.Resize(config.image_size),
        transforms.CenterCrop(config.image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ])  # fmt: skip
    images = ImageFolder(folder, prepare)
    chosen = RandomSampler(images, replacement=True, num_samples=10**9)
    batches = DataLoader(
        images, config.batch_size, sampler=chosen, num_workers=workers, pin_memory=config.device != "cpu"
    )
    for batch, _ in batches:
        yield batch.to(config.device)


def adam(network: nn.Module, config: Config) -> torch.optim.Adam:
    """DCGAN's optimizer, in the form that PyTorch chooses."""
    return torch.optim.Adam(network.parameters(), config.lr, (config.beta1, config.beta2))


def dcgan(folder: Path, config: Config, workers: int) -> Callable[[], float]:
    """One step of a DCGAN (Radford et al. 2015): D on real and on fake images, then G, by binary cross-entropy."""
    generator = generator_networks(config)["generator"]().to(config.device)
    discriminator = discriminator_networks(config)["actor"]().to(config.device)
    optimizer_g, optimizer_d = adam(generator, config), adam(discriminator, config)
    loss, images = nn.BCELoss(), loader(folder, config, workers)
    ones = torch.ones(config.batch_size, device=config.device)

    def step() -> float:
        real = next(images)
        fake = generator(torch.randn(config.batch_size, config.nz, device=config.device))
        discriminator.zero_grad()
        loss_real = loss(discriminator(real).sigmoid(), ones)
        loss_real.backward()
        loss_fake = loss(discriminator(fake.detach()).sigmoid(), 0 * ones)
        loss_fake.backward()
        optimizer_d.step()
        generator.zero_grad()
        loss_g = loss(discriminator(fake).sigmoid(), ones)
        loss_g.backward()
        optimizer_g.step()
        return loss_real.item() + loss_fake.item() + loss_g.item()

    return step


def five_networks(folder: Path, config: Config, workers: int) -> Callable[[], float]:
    """One step of MAGNET's five networks in the published order, each update with passes of its own.

    Three DataLoaders, each of which draws for itself: states, the real images that come next, and those that come after
    them. Act with noise; then D's critic, D, G's critic, G_a and G; then all targets. There is no replay buffer.
    """
    made = generator_networks(config)
    networks = {
        "actor": made["actor"](), "generator": made["generator"](), "G's critic": Critic(config, config.nz),
        "discriminator": discriminator_networks(config)["actor"](), "D's critic": Critic(config, 1),
    }  # fmt: skip
    networks = {key: net.to(config.device) for key, net in networks.items()}
    targets = {key: copy.deepcopy(net) for key, net in networks.items()}
    optimizers = {key: adam(net, config) for key, net in networks.items()}
    states, following, later = (loader(folder, config, workers) for _ in range(3))
    actor, generator, critic_g, discriminator, critic_d = networks.values()
    target_actor, target_generator, target_critic_g, target_discriminator, target_critic_d = targets.values()
    recurrent, played = actor.initial_recurrent_state(config.batch_size), 0
    squared, entropy = nn.MSELoss(), nn.BCELoss()
    ones = torch.ones(config.batch_size, device=config.device)

    def learn(key: str, loss: Tensor) -> float:
        optimizers[key].zero_grad()
        loss.backward()
        optimizers[key].step()
        return loss.item()

    def step() -> float:
        nonlocal recurrent, played
        if played % config.episode_length == 0:
            recurrent = actor.initial_recurrent_state(config.batch_size)
        state, real, after = next(states), next(following), next(later)
        with torch.no_grad():
            z, next_memory = actor(state, recurrent)
            z = z + NOISE * torch.randn_like(z)
            fake = generator(z)
            p_real, p_fake = discriminator(real).sigmoid(), discriminator(fake).sigmoid()
            shown, discriminated = torch.cat([real, fake]), torch.cat([p_real, p_fake])[:, None]
            reward_g, reward_d = p_fake.log(), torch.cat([p_real.log(), (1 - p_fake).log()])
            next_z, _ = target_actor(real, next_memory)
            next_shown = torch.cat([after, target_generator(next_z)])
            value_d = target_critic_d(next_shown, target_discriminator(next_shown).sigmoid()[:, None])
            value_g = target_critic_g(real, next_z)

        total = learn("D's critic", squared(critic_d(shown, discriminated), reward_d + GAMMA * value_d))
        policy = torch.cat([discriminator(real).sigmoid(), discriminator(fake).sigmoid()])
        loss = entropy(policy, torch.cat([ones, 0 * ones]))
        total += learn("discriminator", loss - critic_d(shown, policy[:, None]).mean())
        total += learn("G's critic", squared(critic_g(state, z), reward_g + GAMMA * value_g))
        total += learn("actor", -critic_g(state, actor(state, recurrent)[0]).mean())
        total += learn("generator", entropy(discriminator(generator(z)).sigmoid(), ones))
        with torch.no_grad():
            for key, target in targets.items():
                for old, new in zip(target.parameters(), networks[key].parameters(), strict=True):
                    old.copy_(TAU * new + (1 - TAU) * old)
        recurrent, played = next_memory, played + 1
        return total

    return step
