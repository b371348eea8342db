"""examples/colab.ipynb: its cells run one after another, without Jupyter, on the CPU with tiny settings."""

import io
import json
import os
import re
from pathlib import Path

import pytest
from test_documents import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "colab.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TINY = "--device cpu --image-size 32 --width 4 --nz 6 --batch-size 8 --precision fp32 --r1 0".split()


def settings(cell) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def test_it_is_a_notebook_without_outputs():
    assert NOTEBOOK["nbformat"] == 4 and NOTEBOOK["nbformat_minor"] >= 5
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
    assert [settings(cell) for cell in CODE].count(True) == 1 and settings(CODE[0])


def test_its_cells_run(place, monkeypatch, capsys):
    """From the folder examples/, as a notebook starts; the training ends by the clock."""
    for name in ("train.py", "benchmarks"):
        (place / name).symlink_to(ROOT / name)  # so that the cache of images stays out of the repository
    (place / "examples").mkdir()
    monkeypatch.chdir(place / "examples")
    training = [*TINY, "--data", str(place / "faces"), "--models-dir", str(place / "models"), "--name", "run"]
    tiny = {
        "MINUTES": 0.01, "TRAINING": [*training, "--sample-every", "1"], "REPORT": ["--help"],
    }  # fmt: skip
    names = {}
    for cell in CODE:
        exec("".join(cell["source"]), names)
        if settings(cell):
            assert names.keys() >= tiny.keys() and names["MINUTES"] == 10 and names["TRAINING"][1] == "synthetic"
            names |= tiny
    shown = capsys.readouterr().out
    stopped = int(re.search(r"^Stopped and saved at step (\d+);", shown, re.M)[1])
    grids = re.findall(r"^(.*/samples/\d+(?:-policy)?\.png)$", shown, re.M)[::2]
    assert [Path(grid).name for grid in grids] == [f"{stopped:06d}.png", f"{stopped:06d}-policy.png"]
    assert names["faces"].shape == (16, 3, 32, 32) and names["faces"].float().std() > 0
    assert (place / "models" / "run" / "samples.png").exists()
    assert "usage: gpu.py" in shown and os.getcwd() == str(place)


GITHUB = "https%3A//github.com/someone/a-fork/blob/main/examples/colab.ipynb"


@pytest.mark.parametrize("opened", [GITHUB, "1AbCdEf", None], ids=["from GitHub", "from Drive", "outside Colab"])
def test_elsewhere_it_clones_the_repository_that_colab_opened_it_from(tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLAB_JUPYTER_IP", raising=False)
    if opened:  # as Colab answers
        monkeypatch.setenv("COLAB_JUPYTER_IP", "172.28.0.12")
        sessions = json.dumps([{"name": "colab.ipynb", "path": f"fileId={opened}"}]).encode()
        monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(sessions))
    monkeypatch.setattr("subprocess.run", lambda words, check: pytest.fail(" ".join(words)))
    names = {}
    exec("".join(CODE[0]["source"]), names)
    expected = {GITHUB: (pytest.fail.Exception, "git clone https://github.com/someone/a-fork magnet-repository")}
    kind, sentence = expected.get(opened, (RuntimeError, "Fill in REPOSITORY above."))
    with pytest.raises(kind, match=sentence):
        exec("".join(CODE[1]["source"]), names)
