"""What the agents learn by: targets and losses, exploration, and measures for the log. Pure functions.

Values and rewards are (B,) float32, actions (B, A) float32.
"""

import torch
from torch import Tensor


def td_target(reward: Tensor, next_value: Tensor | None, gamma: float) -> Tensor:
    """y = r + gamma * Q'(s', a') (Lowe et al. 2017, algorithm 1): (B,). `next_value` is needed only if gamma > 0.

    Every state bootstraps, because nothing ends the game: an episode's end is a time limit.
    """
    return reward if gamma == 0 else reward + gamma * next_value


def gradient_cosine(gradient: Tensor, reference: Tensor) -> Tensor:
    """The cosine of dQ/da with dr/da over the whole batch: two (B, A) -> a scalar in [-1, 1]. 1: the critic is right.

    It is taken over the batch and not per sample, since the actor's step adds the samples up.
    """
    gradient, reference = gradient.flatten(), reference.flatten()
    return torch.dot(gradient, reference) / (gradient.norm() * reference.norm()).clamp_min(1e-8)


def gradient_penalty(gradient: Tensor, norm: float) -> Tensor:
    """Mean over the batch of (|dl/dx| - norm)^2, for D_a's gradients dl/dx (B, 3, S, S) in images, or (B, 2) in
    points: a scalar.

    norm 0 at real images: R1 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9). norm 1 between real and fake images: the
    gradient penalty of Gulrajani et al. 2017 (arXiv 1704.00028, eq. 3).
    """
    # The small number keeps the penalty's gradient finite where dl/dx is 0.
    return (gradient.square().sum(dim=tuple(range(1, gradient.ndim))).add(1e-12).sqrt() - norm).square().mean()


def explore(policy: Tensor, *, sigma: float, noise: Tensor) -> Tensor:
    """sqrt(1 - sigma^2) * policy + sigma * noise: exploration that keeps the policy's unit variance.

    policy, noise (B, nz), each coordinate N(0, 1) or near; sigma in [0, 1]: 0 is the policy, 1 is noise alone.
    """
    return (1 - sigma**2) ** 0.5 * policy + sigma * noise


def correlation(z: Tensor) -> Tensor:
    """Correlation matrix (nz, nz) of the coordinates of z (B, nz) over the batch."""
    centred = z - z.mean(dim=0)
    scaled = centred / centred.square().mean(dim=0).add(1e-5).sqrt()
    return scaled.mT @ scaled / len(z)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The square matrix with zeros on its diagonal."""
    return matrix - torch.diag(matrix.diagonal())


def diversity_objective(z: Tensor) -> Tensor:
    """Minus the sum of squared off-diagonal covariances of z (B, nz), divided by nz: a scalar that G_a ascends.

    Without it all coordinates of the policy's actions follow one factor, and its images are all alike. It is minus the
    covariance term of VICReg (Bardes et al. 2022, arXiv 2105.04906, eq. 4), for z with mean 0 over the batch.
    """
    return -off_diagonal(z.mT @ z / len(z)).square().sum() / z.shape[1]


def mean_correlation(z: Tensor) -> Tensor:
    """Mean absolute off-diagonal correlation of z (B, nz): a scalar in [0, 1], for the log."""
    nz = z.shape[1]
    return off_diagonal(correlation(z)).abs().sum() / (nz * (nz - 1))
