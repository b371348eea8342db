"""Scores of a policy's answers: what an extra reward pays for its images beside their own states and beside others."""

import torch
from torch import Tensor

from magnet.agents.generator import GeneratorAgent
from magnet.data.image_dataset import ImageDataset, to_uint8
from magnet.evaluation.drawing import draw
from magnet.evaluation.sampling import GRID_BATCH, Sampler
from magnet.game.extra_rewards import ExtraReward

CANDIDATES = 100  # states among which an answer's own should score best


def score_answers(extra: ExtraReward, states: Tensor, answers: Tensor) -> dict[str, float]:
    """The mean reward of answers beside their own states, and the gap: that minus the mean beside other states.

    states, answers: uint8 (N, 3, S, S) on the CPU. The gap is about 0 if the answers ignore the states.
    """
    own, other = extra(states, answers).mean(), extra(states.roll(1, dims=0), answers).mean()
    return {"extra_reward": own.item(), "gap": (own - other).item()}


def measure_firsts(extra: ExtraReward, states: Tensor, answers: Tensor) -> float:
    """How often an answer scores better beside its own state than beside each of the 99 others, in [0, 1].

    states, answers: uint8 (N, 3, S, S) on the CPU. Each 100 are compared with one another, which takes 100 N rewards.
    By chance it is 0.01. Raises ValueError if there are fewer than 100.
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
    """The mean reward of prior samples and of the answers to `states`, and the gap.

    states: uint8 (N, 3, S, S) on the CPU; there are N prior samples. With 100 states or more the share of firsts among
    the first 100 follows.
    """
    answers, (images, _) = sampler.answer(states), draw([sampler], "prior", len(states))
    own = score_answers(extra, states, answers)
    scores = {"prior": extra(states, images).mean().item(), "policy": own["extra_reward"], "gap": own["gap"]}
    if len(states) >= CANDIDATES:
        scores[f"first_of_{CANDIDATES}"] = measure_firsts(extra, states[:CANDIDATES], answers[:CANDIDATES])
    return scores


def log_answers(agents: list[GeneratorAgent], faces: ImageDataset, states: Tensor, extra: ExtraReward) -> dict:
    """`score_answers` for a run's log: "NAME/gap" and "NAME/answer_reward" for each generator's name.

    states: (B, 3, S, S) in [-1, 1]; faces: the images over which G_a's statistics are taken.
    """
    line, states = {}, to_uint8(states)
    for agent in agents:
        sampler = Sampler(agent, faces, batch=max(GRID_BATCH, len(states)))
        scores = score_answers(extra, states.cpu(), sampler.answer(states))
        line |= {f"{agent.name}/gap": scores["gap"], f"{agent.name}/answer_reward": scores["extra_reward"]}
    return line
