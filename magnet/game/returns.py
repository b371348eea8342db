"""What the agents earn, and what their critics learn: pure functions, tensors in and tensors out.

A return is the reward r of one step of the game; with gamma = 0 nothing later counts. Logits l are D_a's; high means
real. Values, rewards and logits are (B,) float32, actions (B, A) float32; means over the batch are the caller's, unless
said. Each pair of players' returns has a name, its `kind`, and a record in RETURNS:

    log            D earns log p on a real and log(1 - p) on a fake image, p = sigmoid(l); G earns log p. MAGNET's own;
                   G's is the non-saturating return of Goodfellow et al. 2014 (section 3)
    minimax        D's as above; G earns what D loses by its image (Goodfellow et al. 2014, eq. 1)
    hinge          D earns min(0, l - 1) on a real and min(0, -l - 1) on a fake image; G earns l (Lim and Ye 2017,
                   arXiv 1705.02894, in the form of Miyato et al. 2018, arXiv 1802.05957, eqs. 16 and 17)
    least-squares  D earns -(l - 1)^2 / 2 and -(l + 1)^2 / 2; G earns -(l - 1)^2 / 2 (Mao et al. 2017,
                   arXiv 1611.04076, eq. 2, with labels 1 and -1, so that 0 stays the border between real and fake)
    wasserstein    D earns l and -l; G earns l (Arjovsky et al. 2017, arXiv 1701.07875, section 3); D's gradient in the
                   image has to be bounded by other means
    relativistic   D earns log sigmoid(l - l'), with l' its logit on a fake image, for a pair; G earns the same with the
                   images changed over (Jolicoeur-Martineau 2018, arXiv 1807.00734; Huang et al. 2024, R3GAN,
                   arXiv 2501.05441, section 2, with a penalty on the gradients at real and at fake images)

Every log p is a logsigmoid of l, finite for every finite l.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

# Of logits, and of those on the images beside them: a fake one beside each real one. Shaped alike, elementwise.
Reward = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Return:
    """A kind of return: what each player earns by an image with a logit."""

    real: Reward  # what a discriminator earns on a real image, by its logit and that on the fake one beside it
    fake: Reward  # on a fake image, by its logit and that on the real one beside it
    generator: Reward  # what a generator earns by its image, by its logit and that on the real one beside it
    paired: bool = False  # whether `real` and `fake` are one reward, for a pair, instead of two
    relative: bool = False  # whether only differences of logits count
    probability: bool = False  # whether sigmoid(l) of the best D is the chance that the image is real

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What a discriminator earns by a real image and the fake one beside it: two (B,) -> (B,).

        Its mean is the game's value V(D, G): Goodfellow et al. 2014, eq. 1.
        """
        reward = self.real(real_logits, fake_logits)
        return reward if self.paired else reward + self.fake(fake_logits, real_logits)

    def border(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor | float:
        """The logit above which an image counts as real: 0, or half-way between the means where differences count."""
        return (real_logits.mean() + fake_logits.mean()) / 2 if self.relative else 0.0

    @property
    def equilibrium(self) -> float:
        """V(D, G) where the generator's images are the data's and D is the best there can be: its logits are 0 (or, of
        relative kinds, all alike). -log 4 for "log": Goodfellow et al. 2014, theorem 1.
        """
        zero = torch.zeros(())
        return self.discriminator(zero, zero).item()


def _log(logits: Tensor, _) -> Tensor:
    return logsigmoid(logits)


def _log_not(logits: Tensor, _) -> Tensor:
    return logsigmoid(-logits)


RETURNS = {
    "log": Return(real=_log, fake=_log_not, generator=_log, probability=True),
    "minimax": Return(
        real=_log, fake=_log_not, generator=lambda logits, _: -logsigmoid(-logits), probability=True
    ),
    "hinge": Return(
        real=lambda logits, _: (logits - 1).clamp(max=0), fake=lambda logits, _: (-logits - 1).clamp(max=0),
        generator=lambda logits, _: logits,
    ),
    "least-squares": Return(
        real=lambda logits, _: -(logits - 1).square() / 2, fake=lambda logits, _: -(logits + 1).square() / 2,
        generator=lambda logits, _: -(logits - 1).square() / 2,
    ),
    "wasserstein": Return(
        real=lambda logits, _: logits, fake=lambda logits, _: -logits, generator=lambda logits, _: logits,
        relative=True,
    ),
    "relativistic": Return(
        real=lambda logits, fake: logsigmoid(logits - fake), fake=lambda logits, real: logsigmoid(real - logits),
        generator=lambda logits, real: logsigmoid(logits - real), paired=True, relative=True,
    ),
}  # fmt: skip


def return_of(kind: str) -> Return:
    """The record of a kind. Raises ValueError if there is none."""
    if kind not in RETURNS:
        raise ValueError(f"there are no returns of the kind {kind!r}")
    return RETURNS[kind]


def classification_return(classes: Tensor, index: int) -> Tensor:
    """log chance that images are said to be generator `index`'s: classes (B, generators), logits -> (B,), below 0.

    Generators earn it for being told apart, discriminators' classifiers for telling: Hoang et al. 2018 (MGAN, arXiv
    1708.02556, section 3); compare Ghosh et al. 2018 (MAD-GAN, arXiv 1704.02906).
    """
    return log_softmax(classes, dim=1)[:, index]


def td_target(reward: Tensor, next_value: Tensor | None, gamma: float) -> Tensor:
    """y = r + gamma * Q'(s', a') (Lowe et al. 2017, algorithm 1): (B,). `next_value` is needed only if gamma > 0.

    Nothing ends the game (an episode's end is a time limit), so every state bootstraps.
    """
    return reward if gamma == 0 else reward + gamma * next_value


def gradient_cosine(gradient: Tensor, reference: Tensor) -> Tensor:
    """How true dQ/da points: the cosine with dr/da over the whole batch. Two (B, A) -> a scalar in [-1, 1].

    Over the batch and not per sample: the actor's step adds the samples up, those with steep slopes counting more.
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
    """Correlation matrix (..., nz, nz) of the coordinates of z (..., B, nz) over the batch."""
    centred = z - z.mean(dim=-2, keepdim=True)
    scaled = centred / centred.square().mean(dim=-2, keepdim=True).add(1e-5).sqrt()
    return scaled.mT @ scaled / z.shape[-2]


def off_diagonal(matrix: Tensor) -> Tensor:
    """The square matrix with zeros on its diagonal."""
    return matrix - torch.diag(matrix.diagonal())


def diversity_return(z: Tensor) -> Tensor:
    """Minus the summed squared off-diagonal correlation of z (B, nz), divided by nz: a scalar, 0 on average where
    coordinates are independent.

    Without it all coordinates of the policy's actions follow one factor, and its images are one image. The square is
    the product of the correlations over the even and over the odd rows: unlike the square of one estimate over B rows,
    which is 1 / (B - 1) on average for independent coordinates, it has no bias that the actor would chase.
    """
    halves = z[: len(z) // 2 * 2].unflatten(0, (-1, 2)).transpose(0, 1)  # (2, B / 2, nz): the even rows, the odd ones
    even, odd = correlation(halves)
    return -off_diagonal(even * odd).sum() / z.shape[1]


def mean_correlation(z: Tensor) -> Tensor:
    """Mean absolute off-diagonal correlation of z (B, nz): a scalar in [0, 1], for the log."""
    nz = z.shape[1]
    return off_diagonal(correlation(z)).abs().sum() / (nz * (nz - 1))
