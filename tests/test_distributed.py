"""Two processes that share a batch play the game of one: the trainer to the last digits, and the whole program."""

import pytest
import torch
from conftest import CPU, leaves, run, saved, small_config, small_faces

from magnet.faces import Faces
from magnet.maddpg import MADDPG

FULL = {
    "gamma": 0.9, "replay_fraction": 0.25, "lambda_generator": 0.5, "lambda_discriminator": 0.5, "r1": 0.1,
    "answers": 2, "latent_step": 0.9,
}  # fmt: skip
GAMES = {
    "magnet": FULL,
    "gan": {"algorithm": "gan", "replay_fraction": 0.25, "r1": 0.1, "answers": 2, "latent_step": 0.9},
    "teams": FULL | {
        "generators": 2, "discriminators": 2, "critic": "joint", "specialise": 1.0, "share": True,
        "returns": "relativistic", "r2": 0.1, "pool": "softmax",
    },
    "wasserstein": FULL | {
        "returns": "wasserstein", "spectral_norm": True, "gradient_penalty": 10.0, "discriminator_steps": 2,
    },
}  # fmt: skip
BEFORE, AFTER = 4, 2  # steps, before and after a checkpoint: the first are longer than an episode


class DoubleFaces(Faces):
    """Faces in float64."""

    unpack = staticmethod(lambda pixels: Faces.unpack(pixels).double())

    def batch(self, indices):
        return super().batch(indices).double()


def double_trainer(game):
    """A trainer of tiny networks that computes in float64, if that is the default: rounding is out of the way."""
    faces = small_faces()
    faces.__class__ = DoubleFaces
    trainer = MADDPG(small_config(**GAMES[game]), faces, CPU)
    for name in ("z", "memory"):
        trainer.replay.ring[name] = trainer.replay.ring[name].double()
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
    torch.set_default_dtype(torch.float64)
    meeting = (folder / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for game in GAMES:
        play(game, folder, f"rank{rank}")
        play(game, folder, f"rank{rank}", start="alone")
    torch.distributed.destroy_process_group()


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
        torch.testing.assert_close(found[path], value, rtol=1e-9, atol=1e-7, msg=lambda m, path=path: f"{path}: {m}")


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
