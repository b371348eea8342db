"""What passes between the trainer and its agents: actions, D_a's outputs, and the batch of a step."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Act(NamedTuple):
    """A generator agent's action on states. A plain GAN has neither a policy nor an embedding."""

    action: Tensor  # z (B, nz), with exploration
    policy: Tensor | None  # mu(s, h) (B, nz), the policy's own action
    recurrent: Tensor  # the next recurrent state, without a graph
    embedding: Tensor | None  # of the states (B, nz), the LSTM's input, without a graph
    is_noise: Tensor | None = None  # (B, 1) bool, whether the action is noise alone


class Discrimination(NamedTuple):
    """D_a's outputs on images."""

    features: Tensor  # (B, F)
    logits: Tensor  # (B,), above 0 means real
    classes: Tensor | None  # (B, generators), the classifier's logits, where there is one


@dataclass
class Batch:
    """What one step learns from: B rows, first the new ones of this step, then those from the replay buffer.

    With several processes, each has its share of both. Lists have one entry for each generator, `outputs` one for each
    discriminator. The graphs of acts, policy_images and outputs are kept, so that the updates need not repeat them.
    """

    new_rows: int  # how many rows are of this step
    transitions: dict[str, Tensor]  # the replayed rows (R, ...); all rows (B, ...) once the environment has stepped
    state: Tensor  # s_t (B, 3, S, S)
    real: Tensor  # x_t = s_{t+1} (B, 3, S, S), a leaf
    r1: float  # weight of R1 in this step; unless it is 0, `real` requires a gradient
    with_metrics: bool = True  # whether agents compute the metrics that take time: norms, cosines, correlations
    recurrent: Tensor | None = None  # h_t of each generator (B, generators, 2, layers, hidden)
    # Generated images of the replayed rows (R, generators, 3, S, S), as the buffer stores them.
    replayed_images: Tensor | None = None
    # What the reward critics learn from: R rows whose extra rewards are known, the last `new_rows` of them from the
    # last step. "state" (R, 3, S, S), "image" (R, generators, 3, S, S), "extra" and, standardised, "reward"
    # (R, generators); with gamma > 0 "next_state" and "recurrent". Empty without an extra reward and in the first step.
    reward_batch: dict[str, Tensor] = field(default_factory=dict)
    # s_{t+1} and x_{t+1} (B, 3, S, S), once the environment has stepped; None if gamma = 0.
    next_observations: tuple[Tensor, Tensor] | None = None
    acts: list[Act] = field(default_factory=list)  # G_a's actions on all rows, by the present policy
    policy_images: list[Tensor] = field(default_factory=list)  # G(z) of these actions (B, 3, S, S)
    played_images: list[Tensor] = field(default_factory=list)  # policy_images' new rows, detached; then replayed ones
    outputs: list[list[Discrimination]] = field(default_factory=list)  # on real, then on each of played_images
    rewards: dict[str, Tensor] = field(default_factory=dict)  # of each agent (B,), before any agent learns; for G_c
    next_values: dict[str, Tensor | None] = field(default_factory=dict)  # Q'(s', a') of each agent; None if not needed
