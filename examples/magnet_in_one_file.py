#!/usr/bin/env python3
"""MAGNET in one file: a generator agent and a discriminator agent play on synthetic faces, and learn by MADDPG.

    python3 examples/magnet_in_one_file.py        trains on the CPU and writes one_file.png

A state s is a set of real images. The generator agent (G_a, G, G_c) observes it and makes images, its guess of the
next state x. The discriminator agent (D_a, D_c) observes x and the generated images. Its action on an image is a logit
l: sigmoid(l) is the chance that the image is real. The generator's reward is log D_a(G(z)), the discriminator's is
log D_a(x) + log(1 - D_a(G(z))). The critics G_c and D_c learn the rewards, and the actors follow their gradients.

The lines in the comments are those of Algorithm 1 in Lowe et al. 2017 (MADDPG, arXiv 1706.02275). The game is that of
`train.py --preset cpu --data synthetic --precision fp32`: with one thread both give the same weights, bit for bit.
"""

import argparse
import copy
import random
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv_transpose2d, logsigmoid, mse_loss

FACES, EPISODE_LENGTH = 10_000, 25  # images in the data set, 32x32; states in an episode
NEW, REPLAYED, REPLAY_SIZE = 12, 4, 8192  # B = 16 rows of a batch: new ones, and from the replay buffer; its capacity
WIDTH, NZ, HIDDEN = 32, 64, 128  # W maps of the first convolution, Z numbers in an action, H units of LSTM and critics
EXPLORATION, EPSILON = 0.1, 0.5  # sigma of the noise in z; the chance that an action z is noise alone
LR, BETAS, DIVERSITY_WEIGHT = 2e-4, (0.5, 0.999), 1.0  # of every Adam; of the objective for uncorrelated z
R1, R1_EVERY = 0.1, 8  # weight of the penalty on D_a's gradients; every 8th step has it, with 8 times the weight
TAU, AVERAGE, TARGETS_EVERY = 0.003, 0.05, 8  # how far and how often the targets move (line 15)


def image_stack(w: int) -> nn.Sequential:
    """The layers with which both actors begin: images (B, 3, 32, 32) -> features (B, 64 w)."""
    return nn.Sequential(  # kernel 4, stride 2, padding 1
        nn.Conv2d(3, w, 4, 2, 1), nn.LeakyReLU(0.2, True),  # (B, w, 16, 16)
        nn.Conv2d(w, 2 * w, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * w), nn.LeakyReLU(0.2, True),  # (B, 2 w, 8, 8)
        nn.Conv2d(2 * w, 4 * w, 4, 2, 1, bias=False), nn.BatchNorm2d(4 * w), nn.LeakyReLU(0.2, True), nn.Flatten(),
    )  # fmt: skip


class GeneratorActor(nn.Module):
    """G_a, the generator's policy: state -> z, the latent vector of the next image. Its LSTM remembers the episode."""

    def __init__(self):
        super().__init__()
        self.stack, self.embed = image_stack(WIDTH // 2), nn.Linear(32 * WIDTH, NZ)
        self.lstm_1, self.lstm_2 = nn.LSTMCell(NZ, HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)
        self.action = nn.Linear(HIDDEN, NZ)
        self.normalise = nn.BatchNorm1d(NZ, eps=1e-12, affine=False)  # mean 0 and variance 1, as noise N(0, I) has

    def forward(self, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """state (B, 3, 32, 32), LSTM's memory (B, 4, H) -> z (B, Z), next memory, embedding of the state (B, Z)."""
        embedding = self.embed(self.stack(state))
        h1, c1, h2, c2 = memory.unbind(dim=1)
        h1, c1 = self.lstm_1(embedding, (h1, c1))
        h2, c2 = self.lstm_2(h1, (h2, c2))
        return self.normalise(self.action(h2)), torch.stack([h1, c1, h2, c2], dim=1), embedding.detach()


class ResizeConvolution(nn.ConvTranspose2d):  # nearest-neighbour upsampling and a 3x3 convolution, in one
    def forward(self, x: Tensor) -> Tensor:
        shifted = avg_pool2d(torch.eye(9).view(9, 1, 3, 3), 2, 1, 1, divisor_override=1).flatten(1).t()  # (16, 9)
        kernel = (shifted @ self.weight.permute(0, 2, 3, 1).flatten(1, 2)).unflatten(1, (4, 4))  # sums of four shifts
        return conv_transpose2d(x, kernel.permute(0, 3, 1, 2), self.bias, 2, 1)


def new_generator(w: int) -> nn.Sequential:
    """G: z (B, Z) -> images (B, 3, 32, 32) in [-1, 1]."""
    return nn.Sequential(
        nn.Unflatten(1, (NZ, 1, 1)), nn.ConvTranspose2d(NZ, 4 * w, 4, bias=False),  # (B, 4 w, 4, 4)
        nn.BatchNorm2d(4 * w), nn.ReLU(True), ResizeConvolution(4 * w, 2 * w, 3, bias=False),  # (B, 2 w, 8, 8)
        nn.BatchNorm2d(2 * w), nn.ReLU(True), ResizeConvolution(2 * w, w, 3, bias=False),  # (B, w, 16, 16)
        nn.BatchNorm2d(w), nn.ReLU(True), ResizeConvolution(w, 3, 3), nn.Tanh(),
    )  # fmt: skip


class WideLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias[:, None], self.weight, x.t()).t()  # as nn.Linear; faster on a CPU


class Critic(nn.Module):
    """Q(observation, action): (B, O), (B, A) -> (B,). The observation is features that an actor has computed."""

    def __init__(self, observation: int, action: int, h: int = HIDDEN):
        super().__init__()
        self.embed = WideLinear(observation, h)
        self.embed_action = nn.Sequential(WideLinear(action, h), nn.SiLU())  # smooth, because an actor follows dQ/da
        self.head = nn.Sequential(nn.Linear(2 * h, h), nn.SiLU(), nn.Linear(h, h), nn.SiLU(), nn.Linear(h, 1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.head(torch.cat([self.embed(observation), self.embed_action(action)], dim=1)).squeeze(1)


def initialise(layer: nn.Module) -> None:
    """Draws DCGAN's first weights (Radford et al. 2015, arXiv 1511.06434). Other layers keep PyTorch's own."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02)


def draw_states(images: int, rng: torch.Generator):
    """Yields states without end: indices (NEW,) in shuffled order. Index images + i is image i mirrored."""
    order, end = torch.empty(0, dtype=torch.int64), 0
    while True:
        if end + NEW > len(order):  # the next pass over all images begins; the last state's images come last
            last_state, order = order[end - NEW : end], torch.randperm(images, generator=rng)
            latest = torch.isin(order, last_state % images)
            order, end = torch.cat([order[~latest], order[latest]]), 0
            order += images * torch.randint(2, (images,), generator=rng)
        end += NEW
        yield order[end - NEW : end]


def diversity_objective(z: Tensor) -> Tensor:
    """Minus the summed squared covariances between coordinates of z (B, Z), which has mean 0, divided by Z."""
    squares = (z.mT @ z / len(z)).square()
    return -(squares.sum() - squares.trace()) / NZ


def descend(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    """Takes one step on `loss`. Only the optimizer's parameters get a gradient."""
    optimizer.zero_grad()
    loss.backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()


def train(pixels: Tensor, steps: int, seed: int = 0) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Trains on pixels (N, 3, 32, 32) uint8, and writes one_file.png. Returns the networks and the targets."""
    makers = {
        "generator/actor": GeneratorActor, "generator/generator": lambda: new_generator(WIDTH),
        "generator/critic": lambda: Critic(NZ, 1),  # Q(embedding of s, logit of G(z))
        "discriminator/actor": lambda: nn.Sequential(image_stack(WIDTH), nn.Linear(64 * WIDTH, 1)),  # logits (B, 1)
        "discriminator/critic": lambda: Critic(64 * WIDTH, 2),  # Q(D_a's features, (label * logit, label))
    }  # fmt: skip
    names = ("environment", "replay", "generator", "discriminator", "grid")  # each draws from its own stream
    seeds = {name: random.Random(f"{seed}/{name}").getrandbits(63) for name in (*makers, *names)}
    rng = {name: torch.Generator().manual_seed(seeds[name]) for name in names}
    networks = nn.ModuleDict()
    for name, make in makers.items():
        torch.manual_seed(seeds[name])
        networks[name] = make().apply(initialise).to(memory_format=torch.channels_last)  # faster on a CPU
    targets = copy.deepcopy(networks).requires_grad_(False)
    G_a, G, G_c, D_a, D_c = networks.values()
    actors = nn.ModuleList([G_a, G])  # both follow G_c
    adam = {net: torch.optim.Adam(net.parameters(), LR, BETAS, fused=True) for net in (actors, G_c, D_a, D_c)}
    fixed_noise = torch.randn(64, NZ, generator=rng["grid"])
    images = torch.cat([pixels, pixels.flip(3)])  # image N + i is image i mirrored
    states = draw_states(len(pixels), rng["environment"])
    s, x = next(states), next(states)  # line 3: the indices of s_t and x_t = s_{t+1}, (NEW,) each
    index = torch.zeros(REPLAY_SIZE, dtype=torch.int64)  # the buffer's fields: s_t, x_t, G_a's memory, image
    replay = (index, index.clone(), torch.zeros(REPLAY_SIZE, 4, HIDDEN), torch.zeros(REPLAY_SIZE, 3, 32, 32).byte())

    for step in range(steps):
        if step % EPISODE_LENGTH == 0:  # line 1: a new episode, for which G_a's memory is empty
            memory = torch.zeros(NEW, 4, HIDDEN)
        # Line 10: the batch is the new state and rows from the replay buffer, which is empty at first.
        rows = torch.randint(max(min(step * NEW, REPLAY_SIZE), 1), (REPLAYED if step else 0,), generator=rng["replay"])
        old_s, old_x, old_memory, old_fake = (part[rows] for part in replay)
        state, real = images[torch.cat([s, old_s, x, old_x])].div(127.5).sub(1).chunk(2)  # (B, 3, 32, 32) each

        # Line 5: the actions. In replayed rows G_a acts anew, but D_a observes the image that was stored.
        policy, next_memory, embedding = G_a(state, torch.cat([memory, old_memory]))
        noise = torch.randn(policy.shape, generator=rng["generator"])
        explored = (1 - EXPLORATION**2) ** 0.5 * policy + EXPLORATION * noise
        z = torch.where(torch.rand(len(noise), 1, generator=rng["generator"]) < EPSILON, noise, explored)  # (B, Z)
        image = G(z)  # (B, 3, 32, 32)
        fake = torch.cat([image.detach()[:NEW], old_fake.div(127.5).sub(1)])
        real.requires_grad_(step % R1_EVERY == 0)
        real_features, fake_features = D_a[0](real), D_a[0](fake)  # (B, 64 W)
        real_logit, fake_logit = D_a[1](real_features), D_a[1](fake_features)  # (B, 1)

        # Lines 6 to 8: store the transitions. The next state does not depend on the actions, therefore gamma is 0.
        places = torch.arange(step * NEW, (step + 1) * NEW) % REPLAY_SIZE
        for part, new in zip(replay, (s, x, memory, fake[:NEW].add(1).mul(127.5).round().byte()), strict=True):
            part[places] = new
        s, x, memory = x, next(states), next_memory[:NEW].detach()

        # The discriminator. An image's reward is log sigmoid(label * l). D_c learns it around D_a's own logits.
        features = torch.cat([real_features, fake_features]).detach()
        label = torch.cat([torch.ones_like(real_logit), -torch.ones_like(fake_logit)])  # (2B, 1)
        right_logit = label * torch.cat([real_logit, fake_logit])  # the logit of the right class
        trial = right_logit.detach() + torch.randn(right_logit.shape, generator=rng["discriminator"])
        reward = logsigmoid(trial).squeeze(1)  # line 11: the TD target
        descend(adam[D_c], mse_loss(D_c(features, torch.cat([trial, label], dim=1)), reward))  # line 12
        loss = -2 * D_c(features, torch.cat([right_logit, label], dim=1)).mean()  # times 2: the mean on real + on fake
        if real.requires_grad:  # R1 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9)
            (gradient,) = torch.autograd.grad(real_logit.sum(), real, create_graph=True)
            length = gradient.square().sum(dim=(1, 2, 3)).add(1e-12).sqrt()
            loss = loss + R1_EVERY * R1 / 2 * length.square().mean()
        descend(adam[D_a], loss)  # line 13

        # The generator. Its reward is log sigmoid(l), and its critic knows the other agent's action, the logit l.
        reward = logsigmoid(fake_logit.detach()).squeeze(1)  # line 11
        descend(adam[G_c], mse_loss(G_c(embedding, fake_logit.detach()), reward))  # line 12
        value = G_c(embedding, D_a(image))  # by D_a after its step
        descend(adam[actors], -value.mean() - DIVERSITY_WEIGHT * diversity_objective(policy))  # line 13

        # Line 15. The targets are running averages; their half-life grows to a share AVERAGE of all steps so far.
        if (step + 1) % TARGETS_EVERY == 0:
            tau = min(TAU, 1 - 0.5 ** (1 / (AVERAGE * (step + 1))))
            for target, weights in zip(targets.parameters(), networks.parameters(), strict=True):
                target.lerp_(weights.detach(), 1 - (1 - tau) ** TARGETS_EVERY)

        if step % 100 == 99 or step == steps - 1:  # BatchNorm uses the statistics of the grid's 64 images
            print(f"step {step + 1}: reward of G {reward.mean():.2f}, of D {2 * logsigmoid(right_logit).mean():.2f}")
            grid = targets["generator/generator"](fixed_noise).add(1).mul(127.5).byte().view(8, 8, 3, 32, 32)
            Image.fromarray(grid.permute(0, 3, 1, 4, 2).reshape(256, 256, 3).numpy()).save("one_file.png")
    return networks, targets


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from magnet.data.synthetic import draw_faces

    parser = argparse.ArgumentParser(description="Trains MAGNET on synthetic faces; writes one_file.png.")
    parser.add_argument("--steps", type=int, default=3000, help="of 16 images (default 3000)")
    train(steps=parser.parse_args().steps, pixels=torch.from_numpy(draw_faces(FACES, 32, seed=0)[0]))
