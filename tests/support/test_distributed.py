"""Two processes that share a batch play the game of one: the trainer to the last digits, and the whole program."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import leaves, run, saved, small_config, small_faces, trainer_on
from test_train import ROOT, TINY, finish, state, wait_for

import train
from magnet.data.image_dataset import ImageDataset
from magnet.run.signals import should_continue
from magnet.support import distributed
from magnet.support.errors import UserError

FULL = {
    "gamma": 0.9, "replay_fraction": 0.25, "r1": 0.1,
    "r1_every": 2,
}  # fmt: skip
GAMES = {
    "magnet": FULL,
    "extra reward": FULL | {"extra_reward": "resemble"},
    "gan": {"algorithm": "gan", "replay_fraction": 0.25, "r1": 0.1, "r1_every": 2},
    "teams": FULL | {
        "generators": 2, "discriminators": 2, "specialise": 1.0, "reward_function": "relativistic", "r2": 0.1,
        "critics": "both",
    },
    "wasserstein": FULL | {
        "reward_function": "wasserstein", "spectral_norm": True, "gradient_penalty": 10.0, "critics": "discriminator",
    },
}  # fmt: skip
BEFORE, AFTER = 4, 2  # steps, before and after a checkpoint: the first are longer than an episode


class DoubleFaces(ImageDataset):
    """ImageDataset in float64."""

    unpack = staticmethod(lambda pixels: ImageDataset.unpack(pixels).double())

    def batch(self, indices):
        return super().batch(indices).double()


def double_trainer(game):
    """A trainer of tiny networks that computes in float64, if that is the default: rounding is out of the way."""
    faces = small_faces()
    faces.__class__ = DoubleFaces
    trainer = trainer_on(small_config(**GAMES[game]), faces)
    trainer.replay.storage["recurrent"] = trainer.replay.storage["recurrent"].double()
    return trainer


def play(game, folder, player, start=None):
    """Plays BEFORE steps, or goes on from the checkpoint `start`, then AFTER steps; leaves checkpoints and metrics."""
    trainer, seen = double_trainer(game), []
    if start:
        trainer.load_state_dict(torch.load(folder / f"{game}-{start}.pt", weights_only=True))
    else:
        seen = run(trainer, BEFORE)
        torch.save(saved(trainer), folder / f"{game}-{player}.pt")
    seen += run(trainer, AFTER)
    torch.save({"state": saved(trainer), "metrics": seen}, folder / f"{game}-{player}-from-{start}.pt")


def play_together(rank, folder):
    """What each of the two processes does: every game from the start, and from one process's checkpoint."""
    warnings.simplefilter("error")  # pytest's own filter is not here
    torch.set_default_dtype(torch.float64)
    meeting = (folder / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for game in GAMES:
        play(game, folder, f"rank{rank}")
        play(game, folder, f"rank{rank}", start="alone")
    stop, evaluation = SimpleNamespace(signal=signal.SIGTERM if rank else 0), SimpleNamespace(is_over=False)
    further = should_continue(SimpleNamespace(steps=1), evaluation, 2, stop)
    distributed.require_equal(seed=0)
    try:
        distributed.require_equal(seed=0, images=str(rank))
        refused = ""
    except UserError as error:
        refused = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps([further, stop.signal, refused]))
    torch.distributed.destroy_process_group()
    distributed.leave_after(lambda: 0)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A folder with what one process and two have played."""
    folder = tmp_path_factory.mktemp("played")
    torch.set_default_dtype(torch.float64)
    try:
        for game in GAMES:
            play(game, folder, "alone")
        torch.multiprocessing.spawn(play_together, (folder,), nprocs=2)
        for game in GAMES:
            play(game, folder, "alone", start="rank0")
    finally:
        torch.set_default_dtype(torch.float32)
    return folder


def assert_same_but_for_rounding(found, expected):
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, str):
            assert found[path] == value
            continue
        # BatchNorm subtracts G_a's last bias as a part of the mean. So its gradient is rounding, which Adam scales up.
        atol = 1e-4 if path[-1] in ("action.bias", "normalise.running_mean") else 1e-7
        torch.testing.assert_close(found[path], value, rtol=1e-9, atol=atol, msg=lambda m, path=path: f"{path}: {m}")


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize(
    ("player", "start"), [("rank0", None), ("rank1", None), ("rank0", "alone"), ("rank1", "alone"), ("alone", "rank0")]
)
def test_two_processes_play_the_game_of_one_and_go_on_from_each_others_checkpoints(played, game, player, start):
    expected, found = (
        torch.load(played / f"{game}-{name}.pt", weights_only=True)
        for name in ("alone-from-None", f"{player}-from-{start}")
    )
    expected["metrics"] = expected["metrics"][-len(found["metrics"]) :]
    assert_same_but_for_rounding(found, expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_ends_both_and_other_images_are_refused_by_both(played, rank):
    further, number, refused = json.loads((played / f"rank{rank}.json").read_text())
    assert (further, number) == (False, signal.SIGTERM)  # only the second had it
    assert "same images:" in refused


def torchrun(place, *arguments):
    """train.py in two processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_processes_go_on_with_a_run_of_one_stop_at_a_signal_and_one_goes_on_with_theirs(place):
    flags, shared = [*TINY, "--precision", "fp32", "--evaluate-every", "8"], place / "models" / "shared"
    flags += ["--gamma", "0", "--r1", "0", "--extra-reward", "resemble"]  # the first two mean fewer messages
    assert train.main([*flags, "--steps", "6", "--name", "shared"]) == 0
    process = torchrun(place, "--resume", "models/shared", "--steps", "0", "--epochs", "1000")
    try:
        wait_for(shared / "samples" / "000010.png", process)
    finally:
        process.terminate()  # torchrun hands the signal on
    _, output = finish(process)
    assert output.count("Stopped and saved at step") == 1 and not re.search("^Error|train.py: ", output, re.MULTILINE)
    total = state(shared)["steps"] + 2
    assert train.main(["--resume", "models/shared", "--steps", str(total)]) == 0
    assert train.main([*flags, "--steps", str(total), "--name", "straight"]) == 0

    assert sorted(path.name for path in (place / "models").iterdir()) == ["shared", "straight"]
    shared, straight = (
        [json.loads(line) for line in (place / "models" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("shared", "straight")
    )
    assert sum(line["steps"] for line in shared) == total  # none twice
    together, alone = ({line["step"]: line for line in lines}[8] for lines in (shared, straight))
    for name in together.keys() - {"images_per_second"}:
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-3), name


def test_a_mistake_is_told_once_with_status_2(place):
    status, output = finish(torchrun(place, *TINY, "--batch-size", "9"))
    assert output.count("train.py: ") == 1 and "give --batch-size 10." in output
    assert "exitcode  : 2" in output and status != 0  # torchrun tells it, and has its own
    assert output.count("Traceback") == 1  # torchrun's own
    assert not (place / "models").exists()


@pytest.mark.parametrize(
    ("processes", "batch", "fraction", "fits"),
    [(2, 8, 0.25, True), (2, 64, 0.25, True), (3, 64, 0.25, False), (4, 8, 0.25, False), (8, 64, 0.9, False)],
)
def test_processes_have_equal_shares_of_fresh_and_replayed_rows(monkeypatch, processes, batch, fraction, fits):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    config = small_config(batch_size=batch, replay_fraction=fraction, device="cpu")
    if fits:
        distributed.require_even_shares(config)
        return
    with pytest.raises(UserError, match=f"{processes} processes") as refused:
        distributed.require_even_shares(config)
    batch = int(re.search(r"give --batch-size (\d+)", str(refused.value))[1])
    assert batch % processes == round(batch * fraction) % processes == 0
    distributed.require_even_shares(small_config(batch_size=batch, replay_fraction=fraction, device="cpu"))


@pytest.mark.parametrize(("device", "local_rank"), [("cuda", 1), ("cuda:0", 0)])
def test_each_process_has_a_gpu_of_its_own(monkeypatch, device, local_rank):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(UserError, match=f"{device}: .*--nproc-per-node 1"):
        distributed.require_even_shares(small_config(device=device))
    monkeypatch.setenv("LOCAL_RANK", "0")
    distributed.require_even_shares(small_config(device="cuda"))
