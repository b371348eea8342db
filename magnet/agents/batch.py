"""What passes between the trainer and its agents: actions, D_a's outputs, and the batch of a step."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Act(NamedTuple):
    """A generator agent's action on states. Of a plain GAN there is neither a policy nor an embedding."""

    action: Tensor  # z (B, nz), with exploration
    policy: Tensor | None  # mu(s, h) (B, nz), the policy's own action
    recurrent: Tensor  # the next recurrent state, without a graph
    embedding: Tensor | None  # of the states (B, nz), as the LSTM takes them, without a graph
    is_noise: Tensor | None = None  # (B, 1) bool, whether the action is noise alone


class Discrimination(NamedTuple):
    """What D_a makes of images."""

    features: Tensor  # (B, F)
    logits: Tensor  # (B,), above 0 means real
    classes: Tensor | None  # (B, generators), the classifier's logits, where there is one


@dataclass
class Batch:
    """What one step learns from: B rows, the first of them of this step, the others from the replay buffer.

    (Of several processes each has a share of either.) Lists have one entry a generator, `outputs` one a discriminator.
    Graphs are kept: G_a and G do not run again for the update, D_a does after its own.
    """

    new: int  # how many rows are of this step
    transitions: dict[str, Tensor]  # what the environment says of the rows, (B, ...) once it has stepped
    state: Tensor  # s_t (B, 3, S, S)
    real: Tensor  # x_t = s_{t+1} (B, 3, S, S), a leaf
    r1: float  # weight of R1 in this step; unless it is 0, `real` requires a gradient
    measured: bool = True  # whether agents compute the metrics that take time: norms, cosines, correlations
    recurrent: Tensor | None = None  # h_t of each generator (B, generators, 2, layers, hidden)
    replayed: Tensor | None = None  # images of the replayed rows (R, generators, 3, S, S), as the buffer keeps them
    # What the reward critics learn from, R rows whose extra rewards are known, the last `new` of them of the last step:
    # "state" (R, 3, S, S), "image" (R, generators, 3, S, S), "extra" and, standardised, "reward" (R, generators); with
    # gamma > 0 "next_state" and "recurrent". Empty without an extra reward, and in a run's first step.
    rewarded: dict[str, Tensor] = field(default_factory=dict)
    following: tuple[Tensor, Tensor] | None = None  # s_{t+1} and x_{t+1} (B, 3, S, S), once played; None if gamma = 0
    acts: list[Act] = field(default_factory=list)  # G_a's, by the present policy
    policy_images: list[Tensor] = field(default_factory=list)  # G(z) of these actions (B, 3, S, S)
    played_images: list[Tensor] = field(default_factory=list)  # their new rows, detached; then the replayed images
    outputs: list[list[Discrimination]] = field(default_factory=list)  # on real, then on each of played_images
    rewards: dict[str, Tensor] = field(default_factory=dict)  # by agent (B,), before any agent learns; for G_c
    next_values: dict[str, Tensor | None] = field(default_factory=dict)  # by agent Q'(s', a'); None if none is needed
