"""benchmarks/gpu.py: its report has every part, with what was measured; what fails is a row, and the others go on."""

import json
import os
import re
from pathlib import Path

import pytest
from conftest import small_config
from PIL import Image

from benchmarks import gpu, gpu_work, measure

WORDS = "--image-size 32 --width 4 --nz 6 --batch-size 16 --precision fp32 --device cpu --r1-every 2".split()


def rows(part: str) -> list[list[str]]:
    """The cells of a Markdown table below its two first lines."""
    table = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def median(cell: str) -> float:
    """Of "1.5 (1.2-1.9)"; fails for another form, or if it does not lie between the others."""
    middle, low, high = map(float, re.fullmatch(r"(\S+) \((\S+)-(\S+)\)", cell).groups())
    assert 0 < low <= middle <= high
    return middle


def test_the_report_has_every_part(place, capsys, monkeypatch):
    monkeypatch.setattr(gpu_work.Worker, "__call__", lambda self, work, *given: gpu_work.attempt(work, given))
    monkeypatch.setattr(measure, "MEASURE_EVERY", 1)
    monkeypatch.setattr(measure, "TARGETS_EVERY", 1)
    # The replay buffer is too small for the batches of 64 and 128.
    words = [*WORDS, "--replay-size", "20", "--data", "faces", "--minutes", "0.01", "--out", "report.md"]
    assert gpu.main(words) == 0
    parts = dict(re.findall(r"^#+ (.*?)\n\n(.*?)(?=^#|\Z)", (place / "report.md").read_text(), re.M | re.S))
    assert list(parts) == [
        "MAGNET on a CPU", "Machine", "Steps", "Where the images lie", "Resuming", "Training", "Sending it"
    ]  # fmt: skip
    assert {"torch", "python", "platform", "git_commit"} <= {name for name, _ in rows(parts["Machine"])}

    steps = {tuple(cells[:3]): cells for cells in rows(parts["Steps"])}
    batches = {("MAGNET", batch) for batch in ("16", "64", "128")} | {("plain GAN", "16")}
    assert steps.keys() == {(*game, precision) for game in batches for precision in gpu.PRECISIONS}
    for game in ("MAGNET", "plain GAN"):
        *_, place_, time, rate, peak, turns = steps[game, "16", "fp32"]
        assert (place_, peak, turns) == ("memory", "not known", "1")
        rounding = 0.5 + 0.006 * median(rate) / median(time)  # to whole images and hundredths of a millisecond
        assert median(rate) == pytest.approx(16e3 / median(time), abs=rounding)
    assert steps["MAGNET", "64", "fp32"][5].startswith("failed: --replay-size is 20, but one step stores 48")

    held = [cells for cells in rows(parts["Where the images lie"]) if cells[1] == "16"]
    assert len(held) == 2 and held[0] == steps["MAGNET", "16", "fp32"] and median(held[1][5]) > 0
    equal = "equal bit for bit"
    assert rows(parts["Resuming"]) == [["no", equal, equal], ["yes", equal, equal]]

    logged = json.loads(re.search(r"^\{.*\}$", parts["Training"], re.M)[0])
    assert logged["step"] >= 2 and "generator/reward" in logged
    assert f"--steps {logged['step']}`" in parts["Training"]
    assert median(re.search(r"in its log: (.*)\.$", parts["Training"], re.M)[1]) > 0
    with Image.open(place / "report.png") as grid:
        assert grid.width > 8 * 32
    assert "(report.png)" in parts["Training"]
    assert "`python3 benchmarks/gpu.py --image-size 32" in parts["Sending it"]
    form = Path(gpu.ROOT, ".github/ISSUE_TEMPLATE/gpu-report.md").read_text()
    assert "name: GPU report\n" in form and '"GPU report"' in parts["Sending it"]
    assert "turn 1 of at most 5: | MAGNET | 16 |" in capsys.readouterr().out


def test_after_a_process_that_dies_or_fails_the_next_begins_anew():
    with gpu_work.Worker(1) as call:
        assert call(os._exit, 1).startswith("failed: BrokenProcessPool: ")
        assert call(gpu_work.describe, "cpu")["device"] == "cpu"
        assert call(json.loads, "a|b\nc").startswith("failed: JSONDecodeError: Expecting value: line 1")
        assert call.pool is None
    cell = gpu_work.failure(RuntimeError("CUDA error: a | b\nCompile with more\n" + "x" * 1000))
    assert cell == "failed: RuntimeError: CUDA error: a / b"
    assert len(gpu_work.failure(RuntimeError("x" * 1000))) < 200


@pytest.mark.parametrize(("capability", "precisions"), [((7, 5), {"fp16", "fp32"}), ((8, 0), set(gpu.PRECISIONS))])
def test_a_gpu_is_measured_with_and_without_graphs_in_what_it_can(capability, precisions, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    config = small_config(device="cuda", batch_size=16, precision="fp32")
    settings = gpu.list_settings(config)
    assert len(settings) == len(set(settings)) == 2 * len(precisions) * (3 + 1) + 2
    assert {one.config.precision for one in settings} == precisions
    assert {one.config.cuda_graphs for one in settings if not one.in_memory} == {"auto", "off"}
    assert [one.config.batch_size for one in settings if one.in_memory] == [16, 128] and gpu.Setting(config) in settings


def test_weights_that_differ_are_seen():
    trainers = [measure.new_trainer(small_config(device="cpu")) for _ in range(2)]
    assert gpu_work.difference(*trainers) == 0
    weight = next(trainers[1].agents[0].networks["generator"].parameters())
    weight.data *= 1.5
    assert gpu_work.difference(*trainers) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "auto"], "PyTorch sees no GPU: "),
        (["--minutes", "0"], "--minutes is 0, but must be above 0 and below a million."),
        (["--data", "gaussians-8"], "--data gaussians-8 has no images"),
        (["--out", "nowhere/report.md"], "cannot write nowhere/report.md (No such file or directory): "),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, sentence, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([*WORDS, *words]) == 2
    assert capsys.readouterr().err.startswith(f"gpu.py: {sentence}")
