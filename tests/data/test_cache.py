"""The cache of decoded images: where it lies, and that a read-only checkout can be used from anywhere."""

import tempfile
from pathlib import Path

import pytest
from test_bad_images import no_modes, not_root
from test_image_files import folder_of

import train
from magnet.data import cache
from magnet.data.image_dataset import load_faces

FLAGS = "--preset cpu --width 4 --nz 6 --batch-size 4 --steps 1 --precision fp32 --data photos".split()


@pytest.fixture
def checkout(monkeypatch):
    """A repository folder of its own, a home, and a working folder with photos, where other users may go too."""
    monkeypatch.delenv("MAGNET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("repository", "home", "work"):
            (place / name).mkdir()
        monkeypatch.setenv("HOME", str(place / "home"))
        monkeypatch.setattr(cache, "ROOT", place / "repository")
        monkeypatch.chdir(place / "work")
        folder_of(Path("photos"), 12)
        for path in (place, place / "home", place / "work"):
            path.chmod(0o777)
        yield place


def arrays(folder: Path) -> list[str]:
    """The folders below `folder` that hold arrays."""
    return sorted({path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.npy")})


def test_it_lies_beside_the_programs_whatever_folder_one_works_from(checkout, monkeypatch):
    assert train.main(FLAGS) == 0
    monkeypatch.chdir(checkout / "home")
    assert train.main([*FLAGS, "--data", "../work/photos"]) == 0
    assert arrays(checkout) == ["repository/data/cache"] and not (checkout / "home" / "data").exists()


@no_modes
@pytest.mark.parametrize("xdg", [None, "xdg"])
def test_a_read_only_checkout_uses_the_cache_of_the_user(checkout, monkeypatch, xdg):
    (checkout / "repository").chmod(0o555)
    if xdg:
        monkeypatch.setenv("XDG_CACHE_HOME", str(checkout / "work" / xdg))
    with not_root():
        assert train.main(FLAGS) == 0
        assert arrays(checkout) == ["work/xdg/magnet" if xdg else "home/.cache/magnet"]


@no_modes
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


@no_modes
def test_a_cache_that_cannot_be_written_says_how_to_name_another(checkout, capsys, monkeypatch):
    (checkout / "work" / "locked").mkdir(mode=0o555)
    monkeypatch.setenv("MAGNET_CACHE", "locked")
    with not_root():
        assert train.main([*FLAGS, "--dry-run"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "cannot write locked/" in said and "`--cache-dir FOLDER` or MAGNET_CACHE" in said
        assert train.main([*FLAGS, "--dry-run", "--cache-dir", "mine"]) == 0
    assert arrays(checkout) == ["work/mine"]
