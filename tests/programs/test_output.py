"""What programs print: any name in any encoding, and one word after Ctrl-C."""

import ast
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import SEED, cases
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import ROOT, TINY

import download_celeba
import evaluate
import export
import sample
import train
from magnet.run.saved_runs import load_checkpoint

ENCODINGS = ["ascii", "cp1252", "koi8-r", "shift_jis", "utf-8", "utf-16", "cp037"]
LETTERS = ["a", "é", "ф", "写", "😀", "€", " ", "\n", "\t", "\x1b[31m", "\u202e", "'", '"', "\\", "$", "%", "{", "~"]
PROGRAMS = [
    path
    for folder in (".", "experiments", "benchmarks", "examples")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8") and path.name != "magnet_in_one_file.py"  # it stands alone
]


def any_name(pick: random.Random) -> str:
    """A name that a file system allows, now and then in bytes that are no UTF-8."""
    letters = [os.fsencode(pick.choice(LETTERS)) for _ in range(pick.randint(1, 8))]
    letters += [bytes([pick.randint(128, 255)])] * pick.randint(0, 2)
    pick.shuffle(letters)
    return os.fsdecode(b"x" + b"".join(letters))


@cases(short=4, long=60)
def test_no_name_ends_a_program_whatever_the_encoding_of_its_output(place, monkeypatch, count):
    for case in range(count):
        pick = random.Random(f"{SEED}/{case}")
        encoding, folder = pick.choice(ENCODINGS), place / str(case)
        photos, models, out = (folder / any_name(pick) for _ in range(3))
        photos.mkdir(parents=True)
        out.mkdir(exist_ok=True)
        for path in (place / "faces").iterdir():
            os.link(path, photos / f"{any_name(pick)}-{path.name}")
        (photos / f"{any_name(pick)}.txt").write_text("no image")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", strict(encoding))
            patch.setattr(sys, "stderr", strict(encoding))
            play(photos, models, out, any_name(pick))


def strict(encoding: str) -> io.TextIOWrapper:
    """A stream that raises an exception for a character that `encoding` lacks."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


def end_well(program, *words) -> None:
    """Runs a program."""
    status = program.main([str(word) for word in words])
    sys.stderr.flush()
    assert status == 0, sys.stderr.buffer.getvalue().decode(sys.stderr.encoding)


def play(photos, models, out, name: str) -> None:
    """All that a run is made for, with these names."""
    end_well(train, *TINY, f"--data={photos}", f"--models-dir={models}", "--steps=2", "--name=r", "--hold-out=0.1")
    run = models / "r"
    end_well(train, "--resume", run, "--steps", 3)
    assert json.loads((run / "config.json").read_text())["data"] == str(photos)
    assert load_checkpoint(run)[1]["config"]["models_dir"] == str(models)
    assert len(list(run.glob("events*"))) == 2, "TensorBoard's files lie there too"
    end_well(evaluate, run, "--no-features", "--count", 32, "--nearest", out / "nearest.png")
    end_well(evaluate, run, "--no-features", "--count", 32, "--json", "--data", photos)
    end_well(export, run, "--out", out / "weights.pt")
    end_well(sample, out / "weights.pt", "--out", out / f"{name}.png")
    end_well(sample, run, "--kind", "policy", "--out", out / "walk.png", "--images", out / name)


def test_tensorboard_takes_a_run_on_a_folder_whose_name_is_no_utf8(place):
    photos = os.fsdecode(b"faces\xff")
    (place / "faces").rename(photos)
    assert train.main([*TINY, "--data", photos, "--steps", "1", "--name", "r"]) == 0
    assert EventAccumulator(str(place / "models" / "r")).Reload().Tags()["images"]


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda settings: " ".join(settings.values()),
)
def test_programs_end_well_where_output_is_no_utf8(place, settings):
    (place / "faces").rename("фото")
    (place / "Модели").mkdir()

    def run(program, *words):
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | settings
        done = subprocess.run([sys.executable, str(ROOT / program), *words], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    said = run("train.py", *TINY, "--data=фото", "--models-dir=Модели", "--steps=2", "--name=r")
    assert said.isascii() and b"\\u" in said or b"\\xd0" in said or b"\\udcd0" in said
    run("sample.py", "Модели/r", "--out", "Модели/фото.png")
    assert Image.open("Модели/фото.png").size[0] > 100
    assert b"fingerprint" in run("evaluate.py", "Модели/r", "--no-features", "--count", "32")
    assert run("export.py", "Модели/r", "--out", "Модели/фото.pt").endswith(b" MB)\n")


def test_a_download_ends_well_where_output_is_no_utf8(place, monkeypatch):
    monkeypatch.setattr(sys, "stderr", strict("ascii"))
    monkeypatch.setattr(sys, "stdout", strict("ascii"))
    (place / "фото.zip").write_bytes(b"no archive")
    assert download_celeba.main(["--from-zip", "фото.zip", "--data-dir", "данные"]) == 1


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_prints_resiliently_and_expands_paths(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert [ast.unparse(one) for one in main.decorator_list] == ["as_program"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and ast.unparse(node) == "type=Path"]


@pytest.mark.parametrize(
    ("program", "words", "module"),
    [
        ("train.py", ["--data", "synthetic"], "torch"),
        ("sample.py", [], "torch"),
        ("evaluate.py", ["models"], "torch"),
        ("export.py", ["models", "--out", "x.pt"], "torch"),
        ("download_celeba.py", ["--url", "http://127.0.0.1:9/x.zip"], "gdown"),
    ],
)
@pytest.mark.parametrize("fate", ["raise", "raise ImportError", "pass"])
def test_ctrl_c_while_a_library_is_imported_is_one_word(tmp_path, program, words, module, fate):
    (tmp_path / module).mkdir()  # in place of the library: one whose import takes long, and may hide the exception
    (tmp_path / module / "__init__.py").write_text(
        "import time\nfrom pathlib import Path\nPath('began').touch()\n"
        f"try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    {fate}\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / program), *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output and output.splitlines()[-1].lower().count("stopped") == 1
