"""examples/magnet_in_one_file.py: it plays the package's game bit for bit, and it is short and stands alone."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import trainer_on
from PIL import Image
from test_architecture import imported

from examples import magnet_in_one_file as one_file
from magnet.config import PRESETS, Config
from magnet.data import synthetic
from magnet.data.image_dataset import ImageDataset

FILE = Path(one_file.__file__)
# In 26 steps R1 counts four times, the targets move three times, a second episode begins, and the faces are passed over
# three times.
STEPS, FACES = 26, 100
# With the default settings the buffer fills up, and the targets' half-life grows, only after many more steps.
SOONER = {"replay_size": 40, "tau": 0.6}


def differing_networks(**changes) -> set[str]:
    """Trains the example and the package's trainer from the same seed. Returns which networks and targets differ."""
    pixels, _ = synthetic.draw_faces(FACES, 32, seed=0)
    trainer = trainer_on(Config(**PRESETS["cpu"] | {"precision": "fp32"} | changes), ImageDataset(pixels, "cpu"))
    for _ in range(STEPS):
        trainer.step()
    networks, targets = one_file.train(torch.from_numpy(pixels), STEPS)
    assert len(networks) == len(targets) == sum(len(agent.networks) for agent in trainer.agents) == 5
    return {
        f"{agent.name}/{key} {kind}"
        for agent in trainer.agents
        for kind, own, packaged in (("network", networks, agent.networks), ("target", targets, agent.targets))
        for key in packaged
        for pair in zip(own[f"{agent.name}/{key}"].parameters(), packaged[key].parameters(), strict=True)
        if not torch.equal(*pair)
    }


@pytest.mark.parametrize("changes", [{}, SOONER], ids=["defaults", "sooner"])
def test_it_learns_the_package_s_weights_bit_for_bit(tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    assert one_file.REPLAY_SIZE == Config().replay_size
    for name, value in changes.items():
        monkeypatch.setattr(one_file, name.upper(), value)
    assert not differing_networks(**changes)


def test_the_program_writes_a_grid(tmp_path, monkeypatch, capsys):
    draw_faces = synthetic.draw_faces
    monkeypatch.setattr(synthetic, "draw_faces", lambda count, *others, **named: draw_faces(FACES, *others, **named))
    monkeypatch.setattr(sys, "argv", [str(FILE), "--steps", "2"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FILE), run_name="__main__")
    assert capsys.readouterr().out.startswith("step 2: ")
    grid = np.asarray(Image.open("one_file.png")).reshape(8, 32, 8, 32, 3).swapaxes(1, 2).reshape(64, -1)
    assert len(np.unique(grid, axis=0)) == 64


def test_it_is_short_and_imports_nothing_but_the_data_set():
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 220
    assert {name for name in imported(FILE) if name.startswith("magnet")} == {
        "magnet.data.synthetic", "magnet.data.synthetic.draw_faces",
    }  # fmt: skip
