"""The reward functions: what each player earns by an image. Pure functions, tensors in and tensors out.

Logits l are D_a's; a high logit means real. Rewards and logits are (B,) float32; the caller takes means over the batch.
Each pair of the players' reward functions has a name and an entry in REWARD_FUNCTIONS:

    log            D earns log p on a real and log(1 - p) on a generated image, p = sigmoid(l); G earns log p. MAGNET's
                   own; G's is the non-saturating reward of Goodfellow et al. 2014 (section 3)
    minimax        D earns as above; G earns what D loses by its image (Goodfellow et al. 2014, eq. 1)
    hinge          D earns min(0, l - 1) on a real and min(0, -l - 1) on a generated image; G earns l (Lim and Ye 2017,
                   arXiv 1705.02894, in the form of Miyato et al. 2018, arXiv 1802.05957, eqs. 16 and 17)
    least-squares  D earns -(l - 1)^2 / 2 and -(l + 1)^2 / 2; G earns -(l - 1)^2 / 2 (Mao et al. 2017,
                   arXiv 1611.04076, eq. 2, with labels 1 and -1, so that 0 stays the border between real and generated)
    wasserstein    D earns l and -l; G earns l (Arjovsky et al. 2017, arXiv 1701.07875, section 3); D's gradient in the
                   image has to be bounded by other means
    relativistic   D earns log sigmoid(l - l') for a pair, with l' its logit on a generated image; G earns the same with
                   the images exchanged (Jolicoeur-Martineau 2018, arXiv 1807.00734; Huang et al. 2024, R3GAN,
                   arXiv 2501.05441, section 2, with a penalty on the gradients at real and at generated images)

Every log p is a logsigmoid of l, finite for every finite l.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

# (logits, the logits on the paired images) -> rewards, elementwise. Each real image is paired with a generated one of
# each generator, so the shapes may broadcast.
Reward = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RewardFunction:
    """What each player earns by an image with a logit."""

    real: Reward  # what a discriminator earns on a real image, by its logit and that on the generated one beside it
    fake: Reward  # on a generated image, by its logit and that on the real one beside it
    generator: Reward  # what a generator earns by its image; the second argument may be None unless `paired`
    paired: bool = False  # whether `real` and `fake` are one reward for a pair, instead of two
    relative: bool = False  # whether only differences of logits count

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What a discriminator earns by a real image and the generated one beside it: two (B,) -> (B,).

        Its mean is the game's value V(D, G): Goodfellow et al. 2014, eq. 1.
        """
        reward = self.real(real_logits, fake_logits)
        return reward if self.paired else reward + self.fake(fake_logits, real_logits)

    def border(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor | float:
        """The logit above which an image counts as real: 0, or half-way between the means where differences count."""
        return (real_logits.mean() + fake_logits.mean()) / 2 if self.relative else 0.0

    @property
    def equilibrium(self) -> float:
        """V(D, G) where the images have the distribution of the data, and D is optimal: all its logits are equal.

        It is -log 4 for "log": Goodfellow et al. 2014, theorem 1.
        """
        zero = torch.zeros(())
        return self.discriminator(zero, zero).item()


def _log(logits: Tensor, _) -> Tensor:
    return logsigmoid(logits)


def _log_not(logits: Tensor, _) -> Tensor:
    return logsigmoid(-logits)


REWARD_FUNCTIONS = {
    "log": RewardFunction(real=_log, fake=_log_not, generator=_log),
    "minimax": RewardFunction(real=_log, fake=_log_not, generator=lambda logits, _: -logsigmoid(-logits)),
    "hinge": RewardFunction(
        real=lambda logits, _: (logits - 1).clamp(max=0), fake=lambda logits, _: (-logits - 1).clamp(max=0),
        generator=lambda logits, _: logits,
    ),
    "least-squares": RewardFunction(
        real=lambda logits, _: -(logits - 1).square() / 2, fake=lambda logits, _: -(logits + 1).square() / 2,
        generator=lambda logits, _: -(logits - 1).square() / 2,
    ),
    "wasserstein": RewardFunction(
        real=lambda logits, _: logits, fake=lambda logits, _: -logits, generator=lambda logits, _: logits,
        relative=True,
    ),
    "relativistic": RewardFunction(
        real=lambda logits, fake: logsigmoid(logits - fake), fake=lambda logits, real: logsigmoid(real - logits),
        generator=lambda logits, real: logsigmoid(logits - real), paired=True, relative=True,
    ),
}  # fmt: skip


def reward_function(name: str) -> RewardFunction:
    """The entry `name`. Raises ValueError if there is none."""
    if name not in REWARD_FUNCTIONS:
        raise ValueError(f"there is no reward function {name!r}")
    return REWARD_FUNCTIONS[name]


def classification_reward(classes: Tensor, index: int) -> Tensor:
    """Log-probability that the classifier names generator `index`: classes (B, generators), logits -> (B,), below 0.

    Generators earn it when the classifier recognises them, discriminators when their classifier is right: Hoang et al.
    2018 (MGAN, arXiv 1708.02556, section 3); compare Ghosh et al. 2018 (MAD-GAN, arXiv 1704.02906).
    """
    return log_softmax(classes, dim=1)[:, index]
