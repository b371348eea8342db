"""The cache of decoded images: where it lies, and that a read-only checkout can be used from anywhere."""

import os
import tempfile
from pathlib import Path

import pytest
from test_bad_images import not_root
from test_image_files import folder_of

import train
from magnet.data import cache
from magnet.data.image_dataset import load_faces

FLAGS = "--preset cpu --width 4 --nz 6 --batch-size 4 --steps 1 --precision fp32 --data photos".split()


@pytest.fixture
def checkout(monkeypatch):
    """A repository folder of its own, a home, and a working folder with photos, where other users may go too."""
    with tempfile.TemporaryDirectory() as folder:
        yield arrange(Path(folder), monkeypatch)


def arrange(tmp_path: Path, monkeypatch) -> Path:
    tmp_path.chmod(0o777)
    monkeypatch.delenv("MAGNET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("repository", "home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(cache, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "work")
    folder_of(Path("photos"), 12)
    for name in ("home", "work"):
        (tmp_path / name).chmod(0o777)
    return tmp_path


def arrays(folder: Path) -> list[str]:
    """The folders below `folder` that hold arrays."""
    return sorted({path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.npy")})


def test_it_lies_beside_the_programs_whatever_folder_one_works_from(checkout, monkeypatch):
    assert train.main(FLAGS) == 0
    monkeypatch.chdir(checkout / "home")
    assert train.main([*FLAGS, "--data", "../work/photos"]) == 0
    assert arrays(checkout) == ["repository/data/cache"] and not (checkout / "home" / "data").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("xdg", [None, "xdg"])
def test_a_read_only_checkout_uses_the_cache_of_the_user(checkout, monkeypatch, xdg):
    (checkout / "repository").chmod(0o555)
    if xdg:
        monkeypatch.setenv("XDG_CACHE_HOME", str(checkout / "work" / xdg))
    with not_root():
        assert train.main(FLAGS) == 0
        assert arrays(checkout) == ["work/xdg/magnet" if xdg else "home/.cache/magnet"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_an_array_in_a_read_only_checkout_is_used(checkout):
    whole = load_faces("photos", 16)
    for folder in (checkout / "repository" / "data" / "cache", checkout / "repository"):
        folder.chmod(0o555)
    with not_root():
        assert (load_faces("photos", 16) == whole).all()
    assert arrays(checkout) == ["repository/data/cache"]


@pytest.mark.parametrize("words", [["--cache-dir", "mine"], ["--cache-dir=~/mine"], []])
def test_a_flag_and_a_variable_name_another_folder(checkout, monkeypatch, words):
    monkeypatch.setenv("MAGNET_CACHE", "theirs")
    assert train.main([*FLAGS, *words]) == 0
    assert arrays(checkout) == ["home/mine" if "~" in str(words) else "work/mine" if words else "work/theirs"]
