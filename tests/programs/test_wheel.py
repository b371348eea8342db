"""MAGNET where pip installed it: everything that the programs need is in the wheel, and nothing of the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from test_documents import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel, installed in its site/, and an empty work/."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "work").mkdir()
    places = f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n"  # not the checkout
    (folder / "places.cfg").write_text(places)
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(folder / "places.cfg")}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", folder, ROOT], env=environment, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", folder / "site", wheel], check=True)
    return folder


def run(folder: Path, *words: str) -> str:
    """What a program prints that runs in work/ and finds MAGNET in site/ alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAGNET", "XDG"))}
    environment |= {"PYTHONPATH": str(folder / "site"), "HOME": str(folder)}
    said = subprocess.run(words, cwd=folder / "work", env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_the_wheel_has_all_modules_and_takes_no_common_name(installed):
    (wheel,) = installed.glob("*.whl")
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    modules = {path.relative_to(ROOT) for path in (ROOT / "magnet").rglob("*.py")}
    programs = {Path("magnet_programs", path.name) for path in ROOT.glob("*.py")}
    assert {name for name in names if name.suffix == ".py"} == modules | programs
    assert {name.parts[0] for name in names if ".dist-info" not in name.parts[0]} == {"magnet", "magnet_programs"}


def test_the_commands_run_from_any_folder(installed):
    train, sample, evaluate = (str(installed / "site" / "bin" / f"magnet-{x}") for x in ("train", "sample", "evaluate"))
    for program in (train, sample, evaluate):
        assert "usage: " in run(installed, sys.executable, program, "--help")
    weights = str(ROOT / "models" / "synthetic-32.pt")
    run(installed, sys.executable, sample, weights, "--count", "2", "--out", "two.png")
    with Image.open(installed / "work" / "two.png") as picture:
        assert picture.size == (2 * 32 + 6, 32 + 4)


def test_from_python_weights_rewards_and_cache_are_those_of_the_installation(installed):
    code = """if True:
        import magnet, numpy, torch
        from magnet.data.cache import list_cache_folders
        from magnet.game.smile import smile
        from magnet.run.logger import describe_environment
        from magnet.support.paths import command_of
        print(magnet.__file__, *list_cache_folders())
        print(*magnet.load().sample(1).shape, *smile(*numpy.zeros((2, 1, 3, 32, 32), numpy.uint8)).shape)
        print(describe_environment(torch.device("cpu"))["git_commit"], command_of("download_celeba"))
    """
    lines = run(installed, sys.executable, "-c", code).splitlines()
    assert lines[0] == f"{installed / 'site' / 'magnet' / '__init__.py'} {installed / '.cache' / 'magnet'}"
    assert lines[1:] == ["1 3 64 64 1", "None magnet-download-celeba"]
