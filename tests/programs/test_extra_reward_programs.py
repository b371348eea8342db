"""Extra rewards through the programs: a file runs only where the command line names it, and going on asks for it."""

import json
from pathlib import Path

import pytest
import torch
from test_train import TINY

import evaluate
import export
import magnet
import sample
import train

REWARD = """
from pathlib import Path

Path("executed").touch()


def reward(states, images):
    return images.mean(axis=(1, 2, 3)) - states.mean(axis=(1, 2, 3))
"""


def executed():
    """Whether the file has run since this was last asked."""
    there = Path("executed").exists()
    Path("executed").unlink(missing_ok=True)
    return there


@pytest.fixture
def run(place):
    """A run with a reward of its own in my_reward.py, of 6 steps."""
    Path("my_reward.py").write_text(REWARD)
    arguments = [*TINY, "--extra-reward", "my_reward.py", "--name", "mine", "--hold-out", "0.2"]
    assert train.main([*arguments, "--steps", "6"]) == 0 and executed()
    return Path("models/mine")


def test_the_log_has_the_reward_the_gap_and_the_critics_r2(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "generator/gap" in line]
    assert [line["step"] for line in scored] == [5]
    assert {"generator/answer_reward", "generator/extra_reward", "generator/reward_critic_r2"} <= scored[0].keys()


def test_no_program_executes_the_file_that_a_checkpoint_names(run, capsys):
    export_to = ["--out", "weights.pt", "--onnx", "g.onnx"]
    assert sample.main([str(run), "--kind", "policy", "--count", "4"]) == 0
    assert evaluate.main([str(run), "--no-features", "--count", "32", "--data", "faces"]) == 0
    assert export.main([str(run), *export_to]) == 0
    assert magnet.load(run).answer(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 3, 32, 32)
    assert "my_reward" not in str(torch.load("weights.pt", weights_only=True)["config"])
    assert sample.main(["weights.pt", "--count", "4"]) == 0
    assert not executed()
    capsys.readouterr()
    for again in (["--resume", str(run), "--steps", "9"], ["--config", str(run / "config.json")]):
        assert train.main(again) == 2
        assert "add `--extra-reward my_reward.py`" in capsys.readouterr().err
    assert train.main([*TINY, "--init", str(run), "--steps", "2"]) == 0  # without the reward
    assert not executed()


def test_going_on_wants_the_same_function_wherever_it_lies(run, capsys):
    again = ["--resume", str(run), "--steps"]
    assert train.main([*again, "9", "--extra-reward", "my_reward.py"]) == 0
    Path("moved.py").write_text(REWARD)
    assert train.main([*again, "12", "--extra-reward", "moved.py"]) == 0
    Path("moved.py").write_text(REWARD + "\n")
    capsys.readouterr(), executed()
    assert train.main([*again, "15", "--extra-reward", "moved.py"]) == 2
    assert "not the extra reward that the run learned" in capsys.readouterr().err and not executed()
    assert train.main([*again, "15", "--extra-reward", ""]) == 2
    assert train.main([*again, "15", "--extra-reward", "jpeg"]) == 2
    assert train.main([*again, "15", "--extra-reward", "my_reward.py", "--extra-weight", "2"]) == 2
    assert train.main([*TINY, "--init", str(run), "--extra-reward", "moved.py", "--steps", "2"]) == 0


def test_a_run_without_extra_reward_does_not_go_on_with_one(place, capsys):
    assert train.main([*TINY, "--name", "plain", "--steps", "2"]) == 0
    assert train.main(["--resume", "models/plain", "--steps", "4", "--extra-reward", "resemble"]) == 2
    assert "--extra-reward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "fault"),
    [(["--extra-reward", "nothing"], "must be one of resemble"), (["--extra-reward", "gone.py"], "cannot read gone.py"),
     (["--extra-reward", "jpeg", "--algorithm", "gan", "--gamma", "0"], "plain GAN"),
     (["--extra-reward", "jpeg", "--data", "gaussians-8"], "judges pictures"),
     (["--init", "gone"], "no run or checkpoint gone"), (["--init", "weights", "--width", "4"], "")],
)  # fmt: skip
def test_mistakes_are_one_sentence(flags, fault, place, capsys):
    assert train.main([*TINY, *flags, "--steps", "1"]) == 2
    output = capsys.readouterr().err
    assert fault in output and output.count("\n") == 1


def test_a_reward_that_fails_in_the_middle_ends_the_run_with_a_sentence(place, capsys):
    lines = ["calls = []", "def reward(states, images):", "    calls.append(1)"]
    Path("late.py").write_text("\n".join([*lines, "    return images[:, 0, 0, 0] / (4 - len(calls))"]))
    with pytest.warns(RuntimeWarning):  # numpy's
        assert train.main([*TINY, "--extra-reward", "late.py", "--name", "late"]) == 2
    assert "The extra reward late.py gave" in capsys.readouterr().err
    assert (Path("models/late/checkpoints") / "000000.pt").exists()


def test_evaluate_scores_answers_to_held_out_faces_and_weights_too(run, capsys):
    words = ["--no-features", "--count", "32", "--data", "faces", "--extra-reward", "my_reward.py"]
    assert evaluate.main([str(run), *words, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["extra_reward"]
    assert executed() and scores["states"].endswith(" held-out images") and int(scores["states"].split()[0]) < 20
    assert -255 < scores["policy"] < 255 and scores["policy"] != scores["prior"]
    assert abs(scores["gap"]) < 1e-4, "this reward pays the same beside every state, on average"
    assert evaluate.main([str(run), *words]) == 0
    assert "extra reward, gap" in capsys.readouterr().out
    assert train.main([*TINY, "--algorithm", "gan", "--gamma", "0", "--name", "gan", "--steps", "1"]) == 0
    assert evaluate.main(["models/gan", *words]) == 2


def test_a_shipped_reward_goes_on_without_being_named_after_any_step(place):
    assert train.main([*TINY, "--extra-reward", "resemble", "--name", "r", "--steps", "1"]) == 0
    for steps in ("2", "6", "8"):  # after one step the reward critic has not learned yet
        assert train.main(["--resume", "models/r", "--steps", steps]) == 0
