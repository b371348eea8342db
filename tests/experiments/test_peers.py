"""experiments/peers.py: the clock stops a training, all samples are scored alike, and finished lines stay."""

import json

import numpy as np
import pytest

from experiments import peers

pytest.importorskip("torch_fidelity")
pytest.importorskip("efficientnet_lite_pytorch")

TINY = ["--width", "4", "--nz", "4", "--batch-size", "4", "--replay-size", "20", "--data", "faces"]
FEW = ["--seconds", "2", "--seeds", "3", "--count", "8"]
SCORES = {f"{network} {score}" for network in ("face", "ImageNet") for score in ("frechet", "precision", "recall")}

# As main.py of pytorch/examples: the same words, the same names, and a loop that only the clock ends.
DCGAN = """
import argparse
import torch
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

parser = argparse.ArgumentParser()
for flag in ("dataset", "dataroot", "outf"):
    parser.add_argument(f"--{flag}", required=True)
for flag in ("workers", "imageSize", "niter", "manualSeed"):
    parser.add_argument(f"--{flag}", type=int, required=True)
opt = parser.parse_args()
assert opt.dataset == "folder" and opt.workers == 0 and opt.manualSeed == 3 and torch.get_num_threads() == 1
dataset = datasets.ImageFolder(opt.dataroot, transforms.ToTensor())
assert dataset[0][0].shape == (3, opt.imageSize, opt.imageSize)
dataloader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=opt.workers)
nz = 5
netG = nn.Sequential(nn.ConvTranspose2d(nz, 3, opt.imageSize), nn.Tanh())
optimizer = optim.Adam(netG.parameters(), lr=1e-2)
for epoch in range(opt.niter):
    for real, _ in dataloader:
        netG.zero_grad()
        (netG(torch.randn(len(real), nz, 1, 1)).mean(dim=0) - real.mean(dim=0)).square().mean().backward()
        optimizer.step()
        while SLOW:
            pass
"""


@pytest.fixture(autouse=True)
def checkout(place):
    """A stand-in of the checkout of dcgan."""
    (place / "dcgan").mkdir()
    (place / "dcgan" / "main.py").write_text(DCGAN.replace("SLOW", "False"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_programs_are_trained_for_the_time_and_scored_once(place, capsys, monkeypatch):
    pytest.importorskip("torchvision")
    scored, compute = [], peers.metrics.compute_features
    monkeypatch.setattr(peers.metrics, "compute_features", lambda *a: scored.append(len(a[1])) or compute(*a))
    monkeypatch.setitem(peers.MAX_SAMPLES, "ImageNet", 6)
    words = [*TINY, *FEW, "--only", "magnet", "gan", "dcgan", "--dcgan", "dcgan"]
    assert peers.main(words) == 0
    found = lines(place / "peers.jsonl")
    assert [line["program"] for line in found] == ["magnet", "gan", "dcgan"]
    assert scored == [8, 6] * 4  # of the real pictures and of each program
    for line in found:
        assert line["images"] > 0 and line["seed"] == 3 and line["seconds"] == 2
        assert all(np.isfinite(line[score]) for score in SCORES) and SCORES < line.keys()
        assert line["protocol"]["count"] == 8 and line["machine"]["threads"] == 1
        assert line["protocol"]["flags"]["threads"] == "1"
    assert found[0]["images"] % 4 == 0 and found[0]["images"] < found[1]["images"]  # a plain GAN's steps cost less
    assert found[2]["version"] == "unknown"  # no git

    capsys.readouterr()
    assert peers.main(words) == 0  # nothing is left to do
    assert "training" not in capsys.readouterr().out and lines(place / "peers.jsonl") == found
    assert peers.main([*words, "--lr", "0.001"]) == 2
    assert "name another --out" in capsys.readouterr().err

    (place / "other.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*found, found[1] | {"seed": 4, "images": found[1]["images"] + 8}])
    )
    assert peers.main(["--table", "other.jsonl"]) == 0
    head, rule, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert head.startswith("| program | CPU seconds | seeds | images | face frechet | face recall | ImageNet frechet |")
    assert [row.split(" | ")[0] for row in rows] == ["| magnet", "| gan", "| dcgan"]
    assert {row.count("|") for row in (head, rule, *rows)} == {10}
    n = found[1]["images"]
    assert f"| gan | 2 | 2 | {n + 4:,} [{n:,}, {n + 8:,}] |" in rows[1]


def test_failures_are_told_and_tried_again(place, capsys):
    pytest.importorskip("torchvision")
    words = [*TINY, *FEW, "--only", "dcgan", "gan", "--dcgan", "dcgan"]
    (place / "dcgan" / "main.py").write_text("raise ValueError('no | luck')\n")
    assert peers.main([*words, "--seconds", "3"]) == 0
    assert [line.get("failed") for line in lines(place / "peers.jsonl")] == ["ValueError: no | luck", None]
    (place / "dcgan" / "main.py").write_text("import sys\nsys.exit('no such word')\n")
    assert peers.main([*words, "--seconds", "3"]) == 0
    (place / "dcgan" / "main.py").write_text(DCGAN.replace("SLOW", "True"))
    assert peers.main([*words, "--seconds", "3"]) == 0
    found = lines(place / "peers.jsonl")
    assert len(found) == 4 and found[2]["failed"] == "no such word"
    assert "Its first step did not end within 3 seconds" in found[3]["failed"]
    assert peers.main(["--table", "peers.jsonl"]) == 0
    assert "| dcgan | 3 | 0 | failed: Its first step did not end" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--only", "dcgan"], "dcgan is missing"),
        (["--only", "gan", "mimicry", "--mimicry", "faces"], "mimicry is missing"),
        (["--image-size", "32"], "pictures of 64x64"),
        (["--init", "models/celeba-64.pt"], "leave out --init"),
        (["--threads", "2"], "in one thread: leave out --threads"),
        (["--device", "cuda"], "leave out --threads and --device"),
        (["--table", "faces/00.png"], "other lines"),
        (["--table", "none.jsonl"], "none.jsonl"),
    ],
)
def test_mistakes_are_said_in_a_sentence(place, capsys, words, sentence):
    assert peers.main([*TINY, *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and "training" not in said


def test_what_is_missing_is_named_and_the_others_run(place, capsys, monkeypatch):
    monkeypatch.setattr(peers, "find_version", lambda program, checkout: "1" if program == "gan" else None)
    monkeypatch.setattr(peers, "run_child", lambda job: (40, np.zeros((8, 3, 64, 64), np.uint8) + job["seed"]))
    assert peers.main([*TINY, *FEW, "--seeds", "5", "6"]) == 0
    said = capsys.readouterr().out
    assert said.count("is missing: get it with") == 4
    assert [(line["program"], line["seed"]) for line in lines(place / "peers.jsonl")] == [("gan", 5), ("gan", 6)]
