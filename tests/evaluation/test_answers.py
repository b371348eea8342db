"""Scores of a policy's answers, by hand for images that copy their state, or that do not know it."""

import pytest
import torch
from conftest import pictures

from magnet.data.image_dataset import to_uint8
from magnet.evaluation.answers import measure_firsts, score_answers
from magnet.game.extra_rewards import load_extra_reward

REWARD = load_extra_reward("resemble")


def states(count=200):
    """Flat pictures (count, 3, 32, 32) uint8 of different greys."""
    return torch.linspace(0, 255, count).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()


def test_answers_that_copy_their_state_are_always_first():
    shown = to_uint8(pictures(0, 200))
    result = score_answers(REWARD, shown, shown)
    others = REWARD(shown.roll(1, dims=0), shown).mean().item()
    assert result == {"extra_reward": 0, "gap": pytest.approx(-others)}
    assert measure_firsts(REWARD, shown, shown) == 1


def test_answers_that_do_not_know_their_state_have_no_gap():
    same = states(1).expand(200, -1, -1, -1)
    result = score_answers(REWARD, states(), same)
    assert result["gap"] == pytest.approx(0, abs=1e-6) and measure_firsts(REWARD, states(), same) <= 0.02


def test_one_answer_that_is_wrong_is_counted():
    shown = to_uint8(pictures(0, 150))
    answers = shown.clone()
    answers[7] = shown[8]
    assert measure_firsts(REWARD, shown, answers) == pytest.approx(0.99)  # of the first 100; the others are too few
    with pytest.raises(ValueError, match="too few"):
        measure_firsts(REWARD, shown[:99], answers[:99])
