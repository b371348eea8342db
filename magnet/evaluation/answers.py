"""How well a policy answers: what an extra reward says of its images beside their own states and beside others."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity

from magnet.agents.generator import GeneratorAgent
from magnet.data.image_dataset import ImageDataset, to_uint8
from magnet.evaluation.drawing import draw
from magnet.evaluation.sampling import GRID_BATCH, Sampler, in_float32
from magnet.game.extra_rewards import CELLS, EXTRA_REWARDS, ExtraReward

CANDIDATES = 100  # states among which an answer's own should score best


def score_answers(extra: ExtraReward, states: Tensor, answers: Tensor) -> dict[str, float]:
    """states, answers uint8 (N, 3, S, S) on the CPU -> "extra_reward", the mean reward with the own state, and "gap",
    that less the mean reward with another state. The gap is about 0 if the answers ignore the states.
    """
    own, other = extra(states, answers).mean(), extra(states.roll(1, dims=0), answers).mean()
    return {"extra_reward": own.item(), "gap": (own - other).item()}


def share_of_firsts(extra: ExtraReward, states: Tensor, answers: Tensor) -> float:
    """How often an answer scores better beside its own state than beside each of the 99 others, in [0, 1].

    states, answers: uint8 (N, 3, S, S) on the CPU; each 100 are compared with each other, which takes 100 N rewards.
    Chance: 0.01. Raises ValueError if there are fewer than 100.
    """
    firsts = []
    for state, answer in zip(states.split(CANDIDATES), answers.split(CANDIDATES), strict=True):
        if len(state) == CANDIDATES:
            own = extra(state, answer)
            others = torch.stack([extra(state.roll(shift, dims=0), answer) for shift in range(1, CANDIDATES)])
            firsts.append((own > others.max(dim=0).values).float().mean())
    if not firsts:
        raise ValueError(f"{len(states)} states are too few: an answer is compared beside {CANDIDATES}")
    return torch.stack(firsts).mean().item()


def score_policy(extra: ExtraReward, sampler: Sampler, states: Tensor) -> dict[str, float]:
    """The mean reward of as many prior samples and of the answers to uint8 states (N, 3, S, S) on the CPU, and the gap.

    With 100 states or more also the share of firsts among the first 100.
    """
    given, (images, _) = sampler.answer(states), draw([sampler], "prior", len(states))
    scores = score_answers(extra, states, given)
    found = {"prior": extra(states, images).mean().item(), "policy": scores["extra_reward"], "gap": scores["gap"]}
    if len(states) >= CANDIDATES:
        found[f"first_of_{CANDIDATES}"] = share_of_firsts(extra, states[:CANDIDATES], given[:CANDIDATES])
    return found


def differentiable_resemble(states: Tensor, images: Tensor) -> Tensor:
    """The shipped reward `resemble` with a gradient: (B, 3, S, S) in [-1, 1], two -> (B,); for `critic_cosines`."""
    means = [adaptive_avg_pool2d(one.float(), CELLS) for one in (states, images)]
    return -(means[0] - means[1]).abs().mean(dim=(1, 2, 3)) / 2


def critic_cosines(
    agent: GeneratorAgent, states: Tensor, recurrent: Tensor, true: Callable = differentiable_resemble
) -> dict:
    """The cosine between the reward critic's gradient and the true one, with respect to z ("reward_cosine_z") and to
    G's first layer ("reward_cosine_weights"): what G_a and G follow.

    states (B, 3, S, S) in [-1, 1], recurrent (B, 2, layers, hidden), on the device. Copies of the networks are asked.
    """
    actor, generator, critic = (in_float32(agent.networks[key]) for key in ("actor", "generator", "reward_critic"))
    first = next(generator.parameters())
    z = actor(states, recurrent)[0].detach().requires_grad_()
    images = generator(z)
    pairs = [
        torch.autograd.grad(value(states, images).mean(), (z, first), retain_graph=True) for value in (critic, true)
    ]
    names = ("reward_cosine_z", "reward_cosine_weights")
    both = ([gradient.double().flatten() for gradient in pair] for pair in zip(*pairs, strict=True))
    return {name: cosine_similarity(*pair, dim=0, eps=1e-30).item() for name, pair in zip(names, both, strict=True)}


def log_answers(agents: list[GeneratorAgent], faces: ImageDataset, states: Tensor, extra: ExtraReward) -> dict:
    """The numbers of a run's log, "NAME/gap" and so on for each generator's name: `score_answers` and `critic_cosines`.

    states: (B, 3, S, S) in [-1, 1]; faces: whose images G_a's statistics are taken over.
    """
    found = {}
    for agent in agents:
        sampler = Sampler(agent, faces, batch=max(GRID_BATCH, len(states)))
        scores = score_answers(extra, to_uint8(states).cpu(), sampler.answer(to_uint8(states)))
        scores = {"gap": scores["gap"], "answer_reward": scores["extra_reward"]}
        if extra.function is EXTRA_REWARDS["resemble"]:
            scores |= critic_cosines(agent, states, sampler.mid_episode[: len(states)])
        found |= {f"{agent.name}/{name}": value for name, value in scores.items()}
    return found
