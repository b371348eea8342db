"""Samples in pieces: the same as all at once, in files that are whole or absent; moving pictures."""

import io
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import new_trainer
from PIL import Image
from torchvision.utils import make_grid

from magnet.evaluation import comparison, pictures
from magnet.evaluation.drawing import POINTS, WAY, draw, draw_pieces, draw_walks, interpolate
from magnet.evaluation.metrics import compute_features
from magnet.evaluation.pictures import write, write_animation
from magnet.evaluation.sampling import Guide, Sampler
from magnet.support.errors import UserError

KINDS = ["prior", "policy", "guided"]


@pytest.fixture(scope="module")
def trainer():
    trainer = new_trainer()
    trainer.step()
    return trainer


def draw_samples(trainer, kind, count, of=draw_pieces):
    sampler = Sampler(trainer.generators[0], trainer.dataset if kind == "policy" else None)
    return of([sampler], kind, count, Guide(trainer.discriminators))


@pytest.mark.parametrize("kind", KINDS)
def test_more_samples_begin_with_the_fewer(trainer, kind):
    (few, states), (many, more_states) = (draw_samples(trainer, kind, count, draw) for count in (11, 30))
    assert torch.equal(few, many[:11]) and len(few.flatten(1).unique(dim=0)) == 11
    assert kind != "policy" or torch.equal(states, more_states[:11])


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_is_larger_than_a_batch(trainer, kind):
    sizes = [len(images) for images, _ in draw_samples(trainer, kind, 21)]
    assert sizes == [8, 8, 5]


def test_the_array_is_what_numpy_would_write_and_a_grid_comes_before_the_end(trainer, tmp_path):
    images, states = draw_samples(trainer, "policy", 75, draw)

    def watched():
        for piece in draw_samples(trainer, "policy", 75):
            seen.append((tmp_path / "grid.png").exists())
            yield piece

    seen = []
    write(watched(), (75, 32, 32), tmp_path / "grid.png", tmp_path / "each", tmp_path / "a.npz")
    expected = io.BytesIO()
    np.savez(expected, arr_0=images.permute(0, 2, 3, 1).numpy())
    assert (tmp_path / "a.npz").read_bytes() == expected.getvalue()
    assert seen == [False] * 8 + [True] * 2, "64 are shown"
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (8 * 34 + 2, 8 * 34 + 2, 3)
    for x, image in enumerate((states[0], images[0])):
        assert np.array_equal(grid[2:34, 2 + 34 * x : 34 + 34 * x], image.permute(1, 2, 0))
    assert len(list((tmp_path / "each").iterdir())) == 75


def test_an_interrupted_job_leaves_no_half_file(trainer, tmp_path):
    def interrupted():
        yield from draw_samples(trainer, "prior", 16)
        raise KeyboardInterrupt

    (tmp_path / "a.npz").write_text("older")
    with pytest.raises(KeyboardInterrupt):
        write(interrupted(), (24, 32, 32), None, tmp_path / "each", tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_text() == "older"
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".npz", ".png"}
    assert len(list((tmp_path / "each").iterdir())) == 16


def test_a_disk_that_is_too_small_is_a_sentence_before_anything_is_drawn(tmp_path, monkeypatch):
    def forbidden():
        raise AssertionError("drawn")
        yield

    npz = 10**8 * 32 * 32 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=npz))
    with pytest.raises(UserError, match=r"needs 307\.20 GB and has 307\.20 GB: make room, or lower --count"):
        write(forbidden(), (10**8, 32, 32), None, None, tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"needs 409\.60 GB"):  # a PNG in a block of 4 kB
        write(forbidden(), (10**8, 32, 32), None, tmp_path / "each")
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_no_png_is_larger_than_is_looked_for(tmp_path, monkeypatch, size):
    asked = []
    monkeypatch.setattr(pictures, "require_space", lambda place, needed, otherwise: asked.append(needed))
    noise = torch.randint(256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write([(noise, None)], (1, size, size), None, tmp_path / "each")
    (path,) = (tmp_path / "each").iterdir()
    assert path.stat().st_size <= asked[0] <= 4096 * math.ceil(path.stat().st_size / 4096) + 4096


MEASURED = """
import sys
from pathlib import Path
import torch
from magnet.config import Config
from magnet.evaluation.drawing import draw_pieces
from magnet.evaluation.pictures import write
from magnet.evaluation.sampling import Sampler
from magnet.maddpg import new_agents
from magnet.run.process_memory import read_resident_peak
count = int(sys.argv[1])
sampler = Sampler(new_agents(Config(image_size=32, width=4, nz=4, batch_size=64), torch.device("cpu"))[0][0], None)
write(draw_pieces([sampler], "prior", count), (count, 32, 32), None, None, Path(sys.argv[2]))
print(read_resident_peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_large_job_takes_the_memory_of_a_small_one(tmp_path):
    def peak(count):
        program = f"import sys; sys.path[:0] = {[*sys.path]!r}\n{MEASURED}"
        command = [sys.executable, "-c", program, str(count), str(tmp_path / "a.npz")]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    small, large = peak(2_000), peak(30_000)
    data = (tmp_path / "a.npz").stat().st_size
    assert data > 90e6 and large - small < data / 5


def test_the_arc_keeps_the_length_of_noise_and_ends_at_its_points():
    a, b = torch.randn(2, 5, 400)
    assert torch.allclose(interpolate(a, b, 0.0), a, atol=1e-4) and torch.allclose(interpolate(a, b, 1.0), b, atol=1e-4)
    middle = interpolate(a, b, 0.5)
    assert torch.allclose(middle.norm(dim=1), torch.stack([a, b]).norm(dim=2).mean(dim=0), rtol=0.05)
    assert ((a + b) / 2).norm(dim=1).max() < 0.8 * middle.norm(dim=1).min(), "a straight line cuts the corner"


def test_walks_are_side_by_side_of_all_generators_and_closed():
    trainer = new_trainer(2)
    frames = list(draw_walks([Sampler(agent, None) for agent in trainer.generators], 5))
    assert len(frames) == POINTS * WAY and {frame.shape for frame in frames} == {(5, 3, 32, 32)}
    for first, agent, share in ((0, trainer.generators[0], 3), (3, trainer.generators[1], 2)):
        sampler = Sampler(agent, None)
        corners = sampler.draw_noise(share * POINTS).unflatten(0, (share, POINTS))
        for point in range(POINTS):
            expected = ((sampler.generate(corners[:, point]) + 1) * 127.5).round()
            torch.testing.assert_close(frames[point * WAY][first : first + share].float(), expected, atol=1, rtol=0)
    loop = torch.stack(frames).float()
    steps = (loop - loop.roll(-1, 0)).abs().mean(dim=(1, 2, 3, 4))
    assert steps[-1] <= steps[:-1].max() and len(loop.flatten(1).unique(dim=0)) == len(loop)


@pytest.mark.parametrize(("count", "width"), [(1, 512), (16, 4 * 130 + 2)])
def test_an_animation_is_about_512_pixels_wide_and_loops(trainer, tmp_path, count, width):
    frames = list(draw_walks([Sampler(trainer.generators[0], None)], count))[::8]
    write_animation(frames, tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as result:
        assert result.width == width and result.n_frames == len(frames) and result.info["loop"] == 0
        result.seek(3)
        shown = np.asarray(result.convert("RGB")).astype(float)
    expected = pictures.grid(frames[3], math.isqrt(count), 16 // math.isqrt(count))
    assert np.abs(shown - expected).mean() < 9, "but for the palette's rounding"


def test_a_video_has_the_same_frames(trainer, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    write_animation(draw_walks([Sampler(trainer.generators[0], None)], 4), tmp_path / "walk.mp4")
    result, seconds = ffmpeg.count_frames_and_secs(str(tmp_path / "walk.mp4"))
    assert result == POINTS * WAY and seconds == pytest.approx(POINTS * WAY * pictures.FRAME / 1000, abs=0.1)
    assert next(ffmpeg.read_frames(str(tmp_path / "walk.mp4")))["size"] == (2 * 258 + 2, 2 * 258 + 2)
    assert [path.name for path in tmp_path.iterdir()] == ["walk.mp4"]


def test_without_the_encoder_the_sentence_names_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=re.escape("`pip3 install imageio-ffmpeg`")):
        write_animation(iter(()), tmp_path / "walk.mp4")


def test_what_is_scored_in_parts_has_the_features_of_the_whole_and_keeps_a_spread_of_images(monkeypatch):
    monkeypatch.setattr(comparison, "MAX_IMAGES", 40)
    images = torch.randint(256, (130, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    embedded = []

    def embed(group):
        embedded.append(len(group))
        return group.float().mean(dim=(2, 3))

    result = comparison.collect_set(images.split(48), 130, embed)
    assert embedded == [44, 43, 43] and result["count"] == 130
    assert torch.equal(result["features"], compute_features(embed, images))
    assert torch.equal(result["images"], images[comparison.choose_evenly(130)]) and len(result["images"]) == 40
    assert comparison.choose_evenly(130)[-1] > 120 and comparison.choose_evenly(7).tolist() == list(range(7))


@pytest.mark.parametrize("count", [1, 5, 8, 19])
def test_a_grid_is_the_picture_of_torchvision(count):
    images = torch.randint(256, (count, 3, 6, 4), dtype=torch.uint8)
    expected = make_grid(images, nrow=8, padding=pictures.GAP).permute(1, 2, 0)
    assert np.array_equal(pictures.grid(images, 8), expected)
