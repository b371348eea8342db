#!/usr/bin/env python3
"""A small discriminator learns the game through PettingZoo alone, against a generator that acts at random.

    python3 examples/random_agents.py        a few seconds on one core

It uses none of MAGNET's agents and gradients. The discriminator draws its logits from N(mean, 1) and learns the mean by
REINFORCE (Williams 1992, doi 10.1007/BF00992696) from its rewards. The real images are synthetic faces, the generator's
are noise. The program prints the mean reward of an action without exploration: -1.386 (-log 4) for a discriminator that
knows nothing, at best 0. It exits with 2 if PettingZoo is missing.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402


def make_env(seed: int):
    """Makes the game on 512 synthetic faces of 32x32, with 16 images a state and 25 states an episode."""
    from magnet.data.image_dataset import ImageDataset
    from magnet.data.synthetic import draw_faces
    from magnet.game.environment import Environment
    from magnet.game.parallel_env import ParallelEnvironment

    dataset = ImageDataset(draw_faces(512, 32, seed)[0], "cpu")
    env = ParallelEnvironment(Environment(dataset, 16, 25, ["generator"], ["discriminator"]))
    env.reset(seed=seed)
    env.action_space("generator").seed(seed)
    return env


def play(env, network, optimizer=None) -> float:
    """Plays an episode and returns the discriminator's mean reward. With an optimizer it explores and learns."""
    import torch

    (observations, _), episode_rewards = env.reset(), []
    while env.agents:
        images = torch.from_numpy(observations["discriminator"])  # (2, B, 3, S, S): real, generated
        policy = torch.distributions.Normal(network(images.flatten(0, 1)).view(images.shape[:2]), 1.0)
        logits = policy.sample() if optimizer else policy.mean.detach()
        actions = {"generator": env.action_space("generator").sample(), "discriminator": logits.numpy()}
        observations, rewards, _, _, infos = env.step(actions)
        if not infos["discriminator"]:
            continue  # the first step has nothing to classify
        episode_rewards.append(rewards["discriminator"])
        if optimizer:
            reward = torch.from_numpy(infos["discriminator"]["rewards"])  # (B,), of a real and a generated image each
            advantage = reward - reward.mean()
            loss = -(policy.log_prob(logits).sum(dim=0) * advantage).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return sum(episode_rewards) / len(episode_rewards)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20, help="to learn from, 25 updates each (default 20)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam (default 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="of faces, noise and weights (default 0)")
    options = parser.parse_args(arguments)
    import torch
    from torch import nn

    try:
        env = make_env(options.seed)
    except UserError as error:
        print(f"random_agents.py: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(options.seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=options.lr)
    print(f"before learning: {play(env, network):.3f}")
    for _ in range(options.episodes):
        play(env, network, optimizer)
    print(f"after {options.episodes} episodes: {play(env, network):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
