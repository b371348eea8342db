"""What MAGNET wrote below --data is no image to learn from."""

import shutil
from pathlib import Path

import pytest
import torch
from test_image_files import folder_of

import train
from magnet.data.image_files import find_images

FLAGS = "--preset cpu --width 4 --nz 6 --batch-size 8 --steps 2 --sample-every 1 --precision fp32".split()


def learned(run: Path) -> str:
    """The fingerprint of the images that a run learned from."""
    return torch.load(max((run / "checkpoints").glob("0*.pt")), weights_only=True)["faces"]


def make_run(folder: Path, images: int = 3) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    folder_of(folder / "samples", images)


@pytest.mark.parametrize("flags", [[], ["--models-dir", "my/runs"]])
def test_a_second_run_within_a_folder_of_photos_learns_from_the_photos_alone(place, capsys, monkeypatch, flags):
    monkeypatch.chdir(place / "faces")
    names = [path.name for path in find_images(Path("."))]
    folder = Path(flags[-1] if flags else "models")
    for name in ("first", "second"):
        assert train.main([*FLAGS, "--data", ".", "--name", name, *flags]) == 0
        if name == "first":
            assert "left out" not in capsys.readouterr().err
            folder_of(folder / "loose", 2)  # as pictures that were sampled into the models folder
    assert learned(folder / "first") == learned(folder / "second")
    said = capsys.readouterr().err
    assert "that MAGNET wrote in data/cache" in said and f"that MAGNET wrote in {folder}" in said
    shutil.rmtree(folder / "loose")
    shutil.rmtree("data")
    assert [path.name for path in find_images(Path("."))] == names


@pytest.mark.parametrize("zipped", [False, True])
def test_run_folders_are_left_out_at_any_depth_and_counted(tmp_path, capsys, zipped):
    root = tmp_path / "photos"
    folder_of(root / "a", 4)
    folder_of(root / "settings", 1)
    (root / "settings" / "config.json").touch()  # somebody else's, without checkpoints
    folder_of(root / "b" / "checkpoints", 1)  # without a config.json
    for run in ("run", "a/old/run 2", "a/old/run 3/inner"):
        make_run(root / run)
        (root / run / "checkpoints" / "000001.pt").touch()
    source = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", root)) if zipped else root
    found = [path.relative_to(source).as_posix() for path in find_images(source, verbose=True)]
    expected = [*(f"a/00000{i}.jpg" for i in range(4)), "b/checkpoints/000000.jpg", "settings/000000.jpg"]
    assert found == expected
    said = capsys.readouterr().err.removesuffix(", 1 .json\n").removeprefix("16 of 22 files left out: ")
    folders = ("run", "a/old/run 2", "a/old/run 3/inner")
    assert sorted(said.split(", ")) == sorted(f"5 that MAGNET wrote in {folder}" for folder in folders)


def test_a_folder_that_is_named_itself_is_read(tmp_path):
    make_run(tmp_path / "models" / "run")
    samples = tmp_path / "models" / "run" / "samples"
    assert len(find_images(samples, outputs=[tmp_path / "models"])) == 3
    assert len(find_images(samples.parent, outputs=[tmp_path / "models"])) == 3
    folder_of(tmp_path / "models" / "photos", 2)
    assert len(find_images(tmp_path / "models", outputs=[tmp_path / "models"])) == 2
