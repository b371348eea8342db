"""How a run begins: the algorithms that PyTorch uses on a GPU, and the parameters of older runs."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from conftest import small_config
from test_train import TINY

import train
from magnet.config import Config
from magnet.run import session
from magnet.run.checkpoint_validation import restore_config
from magnet.run.session import prepare_device
from magnet.support.errors import UserError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def switches() -> dict:
    """What decides on a GPU which algorithms run, as it stands."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "TF32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "cuBLAS": os.environ.get(CUBLAS),
    }


@pytest.fixture
def before(monkeypatch):
    """The switches, which are put back afterwards."""
    monkeypatch.setenv(CUBLAS, "")  # is restored, whatever happens to it
    monkeypatch.delenv(CUBLAS)
    result = switches()
    yield result
    torch.use_deterministic_algorithms(result["deterministic"], warn_only=result["warn_only"])
    torch.utils.deterministic.fill_uninitialized_memory = result["filled"]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = result["cudnn"], result["benchmark"]


def test_a_gpu_is_asked_for_fast_algorithms_unless_deterministic_ones_are_wanted(before):
    prepare_device(small_config(device="cuda", deterministic=True))
    asked = {"deterministic": True, "warn_only": True, "filled": False, "cudnn": True, "benchmark": False}
    assert switches() == before | asked | {"cuBLAS": ":4096:8"}
    os.environ.pop(CUBLAS)
    prepare_device(small_config(device="cuda"))
    fast = {"deterministic": False, "filled": False, "cudnn": False, "benchmark": True}
    assert switches() == before | fast | {"warn_only": True}
    assert before["TF32"] == (True, False), "PyTorch's own: in convolutions, not in other products"


def test_the_gpu_that_is_named_is_the_current_one(before, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    for device in ("cpu", "cuda", "cuda:1"):
        prepare_device(small_config(device=device))
    assert asked == ["cuda:1"]


@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_cpu_nothing_changes(before, deterministic):
    prepare_device(small_config(device="cpu", deterministic=deterministic))
    assert switches() == before


def test_a_dry_run_begins_as_the_run_that_it_tries(place, capsys):
    assert train.main([*TINY, "--steps", "1", "--name", "first"]) == 0
    assert train.main([*TINY, "--init", "models/first", "--steps", "2", "--name", "second"]) == 0
    (place / "models" / "first").rename(place / "moved")
    words = ["--resume", "models/second", "--steps", "4", "--dry-run"]
    capsys.readouterr()
    assert train.main(words) == 0
    output = capsys.readouterr().out
    assert "; 2 are made" in output and "models/first after" not in output
    (place / "faces" / "00.png").unlink()
    assert train.main(words) == 2
    assert "not those that the run learned from" in capsys.readouterr().err


def test_the_choice_is_made_once_before_anything_is_on_the_device(place, monkeypatch):
    seen, images = [], session.ImageDataset
    monkeypatch.setattr(session, "prepare_device", lambda config: seen.append(config.deterministic))
    monkeypatch.setattr(session, "ImageDataset", lambda *args: seen.append("images") or images(*args))
    assert train.main([*TINY, "--dry-run", "--deterministic"]) == 0
    assert seen == [True, "images"]


@pytest.mark.parametrize(
    ("weights", "critics"),
    [((0.0, 0.0), "both"), ((0, 1), "generator"), ((1.0, 0.0), "discriminator"), ((1, 1), "none")],
)
def test_an_older_run_has_its_parameters_under_their_present_names(weights, critics):
    older = dataclasses.asdict(Config(reward_function="hinge"))
    older["returns"] = older.pop("reward_function")
    del older["critics"]
    older |= dict(zip(("lambda_generator", "lambda_discriminator"), weights, strict=True))
    assert restore_config(Path("config.json"), older) == Config(reward_function="hinge", critics=critics)
    with pytest.raises(UserError, match="lambda_discriminator, lambda_generator"):  # a mixture, since removed
        restore_config(Path("config.json"), older | {"lambda_generator": 0.5})
