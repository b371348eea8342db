"""make demo: which PyTorch it installs. The python of this test notes what it is asked for and installs nothing."""

import os
import shutil
import subprocess
import sys

import pytest
from test_documents import ROOT

PYTHON = f"""#!{sys.executable}
import os, shutil, sys
words = sys.argv[1:]
with open("commands", "a") as file:
    print(*words, file=file)
if words[:2] == ["-m", "venv"]:
    os.makedirs(".venv/bin")
    shutil.copy(__file__, ".venv/bin/python")
elif words[0] == "-c":
    if words[1] == "import torchvision":
        sys.exit(os.environ["CPUS"] == "mixed")
    exec(words[1])
elif "--index-url" in words and os.environ["CPUS"] == "out of reach":
    sys.exit(1)
"""


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize(
    ("gpu", "cpus"),  # mixed: pip took a torch from elsewhere, for which this torchvision was not built
    [(True, "reachable"), (False, "reachable"), (False, "out of reach"), (False, "mixed")],
)
def test_without_a_gpu_the_packages_for_cpus_are_tried_first(tmp_path, gpu, cpus):
    said, commands = make(".venv/ready", tmp_path, gpu, cpus)
    installed = [command for command in commands if "install" in command]
    assert installed[-1][-2:] == ["-r", "requirements.txt"] and len(installed) == (1 if gpu else 2)
    if not gpu:
        assert installed[0][-2:] == ["torch", "torchvision"] and "https://download.pytorch.org/whl/cpu" in installed[0]
    falls_back = cpus != "reachable"
    assert ("No PyTorch from" in said) == falls_back and any("uninstall" in one for one in commands) == falls_back
    assert (tmp_path / ".venv" / "ready").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_the_tests_get_the_pytorch_that_can_pretend_a_gpu(tmp_path):
    _, commands = make(".venv/tests", tmp_path, False, "reachable")
    assert [one[-2:] for one in commands if "install" in one] == [["-r", "requirements-dev.txt"]]


def make(target: str, folder, gpu: bool, cpus: str) -> tuple[str, list[list[str]]]:
    """What `make target` says in `folder`, and the commands that it gives to Python."""
    (folder / "bin").mkdir()
    for name in ["python", "nvidia-smi"] if gpu else ["python"]:
        (folder / "bin" / name).write_text(PYTHON)
        (folder / "bin" / name).chmod(0o755)
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, folder)
    words = [shutil.which("make"), "-f", str(ROOT / "Makefile"), target, f"PYTHON={folder / 'bin' / 'python'}"]
    environment = os.environ | {"PATH": str(folder / "bin"), "CPUS": cpus}
    said = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    return said, [command.split() for command in (folder / "commands").read_text().splitlines()]
