"""The programs of examples/: that what they show is so."""

import re
import sys

import pytest

from examples import random_agents


def rewards(capsys, *options):
    """The two numbers that the program prints: before and after learning."""
    assert random_agents.main([*options]) == 0
    return [float(number) for number in re.findall(r": (-?\d+\.\d+)", capsys.readouterr().out)]


def test_a_discriminator_learns_through_pettingzoo_alone(capsys):
    pytest.importorskip("pettingzoo")
    before, after = rewards(capsys, "--episodes", "5")
    assert before == pytest.approx(-1.386, abs=0.1)
    assert after > -0.3


def test_without_learning_its_reward_stays(capsys):
    pytest.importorskip("pettingzoo")
    before, after = rewards(capsys, "--episodes", "2", "--lr", "0")
    assert after == pytest.approx(before, abs=0.02)


def test_without_pettingzoo_the_sentence_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    monkeypatch.delitem(sys.modules, "magnet.game.parallel_env", raising=False)
    assert random_agents.main([]) == 2
    assert capsys.readouterr().err == (
        "random_agents.py: magnet/game/parallel_env.py needs PettingZoo: `pip3 install pettingzoo` installs it.\n"
    )
