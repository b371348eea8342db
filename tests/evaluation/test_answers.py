"""Scores of a policy's answers, by hand for images that copy their state, or that do not know it."""

import pytest
import torch
from conftest import pictures

from magnet.data.image_dataset import to_uint8
from magnet.evaluation.answers import score_answers
from magnet.game.extra_rewards import load_extra_reward

REWARD = load_extra_reward("resemble")


def test_answers_that_copy_their_state_earn_the_gap_to_others():
    states = to_uint8(pictures(0, 200))
    others = REWARD(states.roll(1, dims=0), states).mean().item()
    assert score_answers(REWARD, states, states) == {"extra_reward": 0, "gap": pytest.approx(-others)}


def test_answers_that_do_not_know_their_state_have_no_gap():
    states = torch.linspace(0, 255, 200).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()
    scores = score_answers(REWARD, states, states[:1].expand(200, -1, -1, -1))
    assert scores["gap"] == pytest.approx(0, abs=1e-6)
