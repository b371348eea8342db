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
    exec(words[1])
elif "--index-url" in words and os.environ["REACHABLE"] == "False":
    sys.exit(1)
"""


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize(("gpu", "reachable"), [(True, True), (False, True), (False, False)])
def test_without_a_gpu_the_packages_for_cpus_are_tried_first(tmp_path, gpu, reachable):
    (tmp_path / "bin").mkdir()
    for name in ["python", "nvidia-smi"] if gpu else ["python"]:
        (tmp_path / "bin" / name).write_text(PYTHON)
        (tmp_path / "bin" / name).chmod(0o755)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    words = [shutil.which("make"), "-f", str(ROOT / "Makefile"), ".venv/ready", f"PYTHON={tmp_path / 'bin' / 'python'}"]
    environment = os.environ | {"PATH": str(tmp_path / "bin"), "REACHABLE": str(reachable)}
    said = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    commands = (tmp_path / "commands").read_text().splitlines()
    installed = [command.split() for command in commands if command.startswith("-m pip install")]
    assert installed[-1][-2:] == ["-r", "requirements.txt"] and len(installed) == (1 if gpu else 2)
    if not gpu:
        assert installed[0][-2:] == ["torch", "torchvision"] and "https://download.pytorch.org/whl/cpu" in installed[0]
    assert ("No PyTorch from" in said) == (not reachable) and (tmp_path / ".venv" / "ready").exists()
