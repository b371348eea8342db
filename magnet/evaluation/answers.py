"""Scores of a policy's answers: what an extra reward pays for its images beside their own states and beside others."""

from torch import Tensor

from magnet.agents.generator import GeneratorAgent
from magnet.data.image_dataset import ImageDataset, to_uint8
from magnet.evaluation.drawing import draw
from magnet.evaluation.sampling import GRID_BATCH, Sampler
from magnet.game.extra_rewards import ExtraReward


def score_answers(extra: ExtraReward, states: Tensor, answers: Tensor) -> dict[str, float]:
    """The mean reward of answers beside their own states, and the gap: that minus the mean beside other states.

    states, answers: uint8 (N, 3, S, S) on the CPU. The gap is about 0 if the answers ignore the states.
    """
    own, other = extra(states, answers).mean(), extra(states.roll(1, dims=0), answers).mean()
    return {"extra_reward": own.item(), "gap": (own - other).item()}


def score_policy(extra: ExtraReward, sampler: Sampler, states: Tensor) -> dict[str, float]:
    """The mean reward of prior samples and of the answers to `states`, and the gap.

    states: uint8 (N, 3, S, S) on the CPU; there are N prior samples.
    """
    scores = score_answers(extra, states, sampler.answer(states))
    images, _ = draw([sampler], "prior", len(states))
    return {"prior": extra(states, images).mean().item(), "policy": scores["extra_reward"], "gap": scores["gap"]}


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
