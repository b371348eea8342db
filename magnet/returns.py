"""What the agents earn, and what their critics are taught: pure functions, tensors in and tensors out.

A return is what one step earns, the reward r of the game; with gamma = 0 that is all there is to earn.
Logits l are D_a's; high means real, p = sigmoid(l). Every log p is a logsigmoid of l, finite for every finite l.
Values, returns and logits are (B,) float32, actions (B, A) float32; means over the batch are the caller's, unless said.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, logsigmoid

EQUILIBRIUM = -math.log(4)  # V(D, G) where the generator's images are the data's: Goodfellow et al. 2014, theorem 1


def generator_return(fake_logits: Tensor, kind: str = "log") -> Tensor:
    """What the generator earns by images with these logits (B,) -> (B,).

    log: log D(G(z)), below 0, whose slope is steepest where D is sure that the image is fake (the non-saturating return
    of Goodfellow et al. 2014, section 3). minimax: -log(1 - D(G(z))), above 0, exactly what the discriminator loses by
    the image (there, eq. 1).
    """
    return -logsigmoid(-fake_logits) if kind == "minimax" else logsigmoid(fake_logits)


def discriminator_return(*, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """log D(x) + log(1 - D(G(z))): two (B,) -> (B,), below 0. Its mean is V(D, G) (Goodfellow et al. 2014, eq. 1)."""
    return logsigmoid(real_logits) + logsigmoid(-fake_logits)


def judgement_return(logits: Tensor, real: Tensor) -> Tensor:
    """One judgement's share of the discriminator's return: log D on a real image, log(1 - D) on a fake one.

    logits (B,), real (B,) with 1 for real and -1 for fake -> (B,), below 0.
    """
    return logsigmoid(real * logits)


def judgement_slope(logits: Tensor, real: Tensor) -> Tensor:
    """d judgement_return / d logit: sigmoid(-l) on real, -sigmoid(l) on fake images. Shapes as there."""
    return real * torch.sigmoid(-real * logits)


def td_target(reward: Tensor, next_value: Tensor | None, gamma: float) -> Tensor:
    """y = r + gamma * Q'(s', a') (Lowe et al. 2017, algorithm 1): (B,). `next_value` is needed only if gamma > 0.

    Nothing ends the game (an episode's end is a time limit), so every state bootstraps.
    """
    return reward if gamma == 0 else reward + gamma * next_value


def critic_loss(*, value: Tensor, target: Tensor, slope: Tensor, target_slope: Tensor, weight: float) -> Tensor:
    """Squared TD error plus `weight` times the squared distance of dQ/da from dr/da, a scalar mean over the batch.

    value, target (B,); slope, target_slope (B, A). Sobolev training (Czarnecki et al. 2017, equation 1), for actor and
    critic: D'Oro and Jaskowski 2020. The target's slope is the return's: the environment ignores the actions, so
    what follows does not change with them.
    """
    return (value - target).square().mean() + weight * (slope - target_slope).square().sum(dim=1).mean()


def slope_cosine(slope: Tensor, target_slope: Tensor) -> Tensor:
    """How true dQ/da points: the cosine with dr/da over the whole batch. Two (B, A) -> a scalar in [-1, 1].

    Over the batch and not per sample: the actor's step adds the samples up, those with steep slopes counting more.
    """
    return cosine_similarity(slope.flatten(), target_slope.flatten(), dim=0)


def ascent_direction(return_slope: Tensor, value_slope: Tensor, lam: float) -> Tensor:
    """The gradient that an actor follows: lambda * dr/da + (1 - lambda) * dQ/da. Shapes (B, A) or (B,), all equal.

    lambda 0 is DDPG through the critic alone (Lillicrap et al. 2015, equation 6), lambda 1 the pathwise gradient of
    the return, SVG(1) of Heess et al. 2015 in a game whose next state ignores the action.
    """
    return lam * return_slope + (1 - lam) * value_slope


def slope_penalty(slope: Tensor, norm: float) -> Tensor:
    """Mean over the batch of (|dl/dx| - norm)^2, for D_a's slopes dl/dx (B, 3, S, S) in images, or (B, 2) in
    points: a scalar.

    norm 0 at real images: R1 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9). norm 1 between real and fake images: the
    gradient penalty of Gulrajani et al. 2017 (arXiv 1704.00028, eq. 3).
    """
    # The small number keeps the gradient finite where the slope is 0.
    return (slope.square().sum(dim=tuple(range(1, slope.ndim))).add(1e-12).sqrt() - norm).square().mean()


def explore(policy: Tensor, *, sigma: Tensor, noise: Tensor) -> Tensor:
    """sqrt(1 - sigma^2) * policy + sigma * noise: exploration that keeps the policy's unit variance.

    policy, noise (B, nz), each coordinate N(0, 1) or near; sigma (B, 1) in [0, 1]: 0 is the policy, 1 is noise alone.
    """
    return (1 - sigma.square()).sqrt() * policy + sigma * noise


def latent_step(slope: Tensor, step: float, damping: float = 0.1) -> Tensor:
    """How far z moves up a slope (B, nz) of D's logit before the players learn from it: (B, nz).

    step * slope / (damping + |slope|^2), row by row: the damped natural gradient of LOGAN (Wu et al. 2019,
    arXiv 1912.00953), never longer than step / (2 sqrt(damping)), 1.4 at the defaults; noise is sqrt(nz) long.
    """
    return step * slope / (damping + slope.square().sum(dim=1, keepdim=True))


def correlation(z: Tensor) -> Tensor:
    """Correlation matrix (nz, nz) of the coordinates of z (B, nz) over the batch."""
    centred = z - z.mean(dim=0)
    scaled = centred / centred.square().mean(dim=0).add(1e-5).sqrt()
    return scaled.T @ scaled / len(z)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The square matrix with zeros on its diagonal."""
    return matrix - torch.diag(matrix.diagonal())


def diversity_return(z: Tensor) -> Tensor:
    """Minus the summed squared off-diagonal correlation of z (B, nz), divided by nz: a scalar, at most 0.

    Without it all coordinates of the policy's actions follow one factor, and its pictures are one picture.
    """
    return -off_diagonal(correlation(z)).square().sum() / z.shape[1]


def mean_correlation(z: Tensor) -> Tensor:
    """Mean absolute off-diagonal correlation of z (B, nz): a scalar in [0, 1], for the log."""
    nz = z.shape[1]
    return off_diagonal(correlation(z)).abs().sum() / (nz * (nz - 1))
