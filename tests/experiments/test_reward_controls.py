"""experiments/rewards.py: what its controls follow, its references, and that lines are made once."""

import json

import pytest
import torch
from conftest import new_trainer, pictures, run, step_and_batch

from experiments import rewards
from magnet.data.image_dataset import to_uint8
from magnet.evaluation.sampling import Sampler
from magnet.game.extra_rewards import load_extra_reward

TINY = [
    *("--width", "4", "--nz", "4", "--batch-size", "8", "--replay-size", "20", "--episode-length", "4"),
    *("--data", "faces", "--hold-out", "0.3", "--seeds", "3", "--steps", "3", "--count", "28"),
]


def test_the_true_gradient_is_that_of_the_reward_in_deviations():
    trainer = new_trainer(extra_reward="resemble")
    rewards.follow_truth(trainer)
    run(trainer, 2)
    _, batch = step_and_batch(trainer)
    assert not trainer.generators[0].extra_value(batch).any()
    trainer.steps = rewards.TRUTH_FROM
    value = trainer.generators[0].extra_value(batch)
    paid = trainer.environment.extra(to_uint8(batch.state), to_uint8(batch.policy_images[0]))
    expected = trainer.environment.normaliser.standardise(paid)
    torch.testing.assert_close(value, expected, atol=0.05, rtol=0.05)  # grey levels
    assert value.requires_grad


def test_an_answer_is_first_if_no_other_state_earns_more():
    reward, states = load_extra_reward("resemble"), to_uint8(pictures(0, 150))
    answers = states.clone()
    answers[7] = states[8]
    assert rewards.measure_firsts(reward, states, answers) == pytest.approx(0.99)  # 100 of them: the rest are too few
    assert rewards.measure_firsts(reward, states[:100], states[:1].expand(100, -1, -1, -1)) <= 0.02
    with pytest.raises(ValueError, match="too few"):
        rewards.measure_firsts(reward, states[:99], answers[:99])


def test_a_critic_that_is_the_truth_points_as_the_truth_does():
    trainer = new_trainer(extra_reward="resemble")
    run(trainer, 3)
    agent, states = trainer.generators[0], trainer.dataset.batch(torch.arange(16))
    memory = Sampler(agent, trainer.dataset).mid_episode[:16]
    assert all(-1 <= value < 0.999 for value in rewards.measure_critic_cosines(agent, states, memory).values())
    critic = agent.networks["reward_critic"]
    for sign in (1, -1):
        cosines = rewards.measure_critic_cosines(agent, states, memory, lambda s, x, sign=sign: sign * critic(s, x))
        assert list(cosines.values()) == pytest.approx([sign, sign], abs=1e-4)


def test_the_score_function_is_the_reward_times_the_gradient_of_the_actions_log_density():
    trainer = new_trainer(extra_reward="resemble", exploration=0.3, replay_fraction=0.25)
    rewards.follow_score_function(trainer)
    run(trainer, 2)
    agent = trainer.generators[0]
    batch = trainer.collect(trainer.sample_replay())
    trainer.act(batch)
    act = batch.acts[0]
    density = torch.distributions.Normal((1 - 0.3**2) ** 0.5 * act.policy, 0.3).log_prob(act.action.detach()).sum(dim=1)
    paid = trainer.environment.extra(to_uint8(batch.state[:6]), to_uint8(batch.policy_images[0][:6]))
    earned = torch.cat([trainer.environment.normaliser.standardise(paid), torch.zeros(2)])  # of replayed rows nothing
    expected, found = (
        torch.autograd.grad(value.sum(), act.policy, retain_graph=True)[0]
        for value in (earned * density, agent.extra_value(batch))
    )
    torch.testing.assert_close(found, expected)
    assert expected[:6].abs().sum() > 0


def test_lines_are_made_once_and_more_tries_earn_more(place, thumbnail, capsys, monkeypatch):
    pytest.importorskip("torch_fidelity")
    threads = []
    words = [*TINY, "--out", "lines.jsonl", "--features", str(thumbnail), "--keep", "kept", "--threads", "1"]
    words += ["--only", "critic", "weight 0"]
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for _ in range(2):
        (place / "kept").mkdir(exist_ok=True)
        assert rewards.main(words) == 0
    lines = {one["setting"]: one for one in map(json.loads, (place / "lines.jsonl").read_text().splitlines())}
    assert list(lines) == ["critic", "weight 0", "best of 4", "best of 16", "best of 64", "nearest real face"]
    assert len((place / "lines.jsonl").read_text().splitlines()) == 6
    tries = [lines[f"best of {k}"]["extra_reward"] for k in (4, 16, 64)]
    assert tries == sorted(tries) and tries[0] > lines["weight 0"]["prior"]["extra_reward"]
    assert lines["critic"]["flags"].items() >= {"width": 4, "architecture": "resize"}.items()  # the defaults too
    assert lines["critic"]["images"] == 24 and {"fd", "recall"} <= lines["critic"]["answers"].keys()
    assert len(list((place / "kept").glob("*.pt"))) == 2 and threads == [1, 1]
    assert rewards.main([*words, "--algorithm", "gan"]) == 2
    assert "plain GAN" in capsys.readouterr().err
    (place / "lines.jsonl").write_text("{}\n")
    assert rewards.main(words) == 2
    assert "lines.jsonl holds other lines" in capsys.readouterr().err


def test_runs_begin_with_trained_networks_of_their_own_architecture(place, thumbnail, capsys):
    pytest.importorskip("torch_fidelity")
    words = [*TINY, "--features", str(thumbnail), "--only", "critic"]
    (place / "kept").mkdir()
    assert rewards.main([*words, "--out", "first.jsonl", "--keep", "kept", "--architecture", "dcgan"]) == 0
    (kept,) = (place / "kept").glob("*.pt")
    assert rewards.main([*words, "--out", "second.jsonl", "--init", str(kept)]) == 0
    assert "New: nothing." in capsys.readouterr().out


def test_what_a_setting_cannot_do_is_said_before_any_training(place, thumbnail, capsys):
    words = [*TINY, "--features", str(thumbnail), "--out", "lines.jsonl", "--extra-reward", "jpeg"]
    assert rewards.main([*words, "--only", "critic", "true gradient"]) == 2
    assert "known for resemble alone" in capsys.readouterr().err and not (place / "lines.jsonl").exists()
