"""What a run needs: counts that agree with the tensors themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_config, small_faces, trainer_on
from torch import nn

from magnet.run.process_memory import read_resident_peak
from magnet.run.summary import (
    MIB,
    build_on_meta,
    count_kept_bytes,
    count_parameters,
    describe_networks,
    estimate_memory,
)


def test_kept_bytes_by_hand():
    x = torch.empty(5, 3, device="meta")
    linear = nn.Linear(3, 2, device="meta")
    assert count_kept_bytes(linear, x) == 4 * 5 * 3  # its input, for the weight's gradient
    assert count_kept_bytes(nn.Sequential(linear, nn.Tanh()), x) == 4 * (5 * 3 + 5 * 2)  # and tanh's output
    assert count_kept_bytes(nn.Sequential(linear, nn.Identity()), x) == 4 * 5 * 3
    second = nn.Linear(2, 7, device="meta")  # the pass keeps its weight too, for its input's gradient
    assert count_kept_bytes(nn.Sequential(linear, second), x) == 4 * (5 * 3 + 5 * 2)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["G_a", "G", "G_c", "D_a", "D_c"]),
        ({"critics": "discriminator"}, ["G_a", "G", "D_a", "D_c"]),
        ({"critics": "generator", "extra_reward": "resemble"}, ["G_a", "G", "G_c", "Q_r", "D_a"]),
        ({"algorithm": "gan", "generators": 3, "specialise": 1.0}, ["G x 3", "D_a"]),
    ],
)
def test_the_networks_are_those_that_the_agents_hold(changes, names):
    config = small_config(**changes)
    counts = count_parameters(config)
    assert list(counts) == names
    trainer = trainer_on(config, small_faces())
    held = sum(p.numel() for agent in trainer.agents for net in agent.networks.values() for p in net.parameters())
    assert sum(counts.values()) == held
    assert describe_networks(config).startswith(f"Networks: {held:,} parameters ({names[0]} {counts[names[0]]:,}, ")
    assert all(p.is_meta for network in build_on_meta(config).values() for p in network.parameters())


@pytest.mark.parametrize("changes", [{}, {"generators": 2}, {"algorithm": "gan"}], ids=str)
def test_the_replay_buffer_is_counted_to_the_byte_of_its_images_and_states(changes):
    small, large = ({"replay_fraction": 0.25, "replay_size": size} | changes for size in (10, 30))
    storage = trainer_on(small_config(**small), small_faces()).replay.storage
    grown = estimate_memory(small_config(**large)) - estimate_memory(small_config(**small))
    assert grown == 2 * sum(storage[name].nbytes for name in ("image", "recurrent"))


def need(**changes) -> float:
    """The memory beside the weights with their copies."""
    config = small_config(batch_size=64, width=16, replay_fraction=0.0, **changes)
    return estimate_memory(config) - 4 * 5 * sum(count_parameters(config).values())


def test_activations_grow_with_agents_and_halve_in_half_precision():
    assert need(generators=4) > 2 * need() and need(discriminators=4) > 2 * need() and need(spectral_norm=True) > 0
    assert need(precision="bf16") == need(precision="fp16") == need() / 2
    assert 0 < need(data="gaussians-8") < need(algorithm="gan") < need()


ROOT = Path(__file__).resolve().parents[2]
TRIED_AND_RUN = """
import contextlib, io, json, sys, train
from magnet.evaluation import sampling, scores
from magnet.data import image_dataset
from magnet.run import logger, recorder
from magnet import maddpg
from magnet.run.process_memory import read_resident_peak

words = sys.argv[1:]
before, output = read_resident_peak(), io.StringIO()
with contextlib.redirect_stdout(output):
    assert train.main([*words, "--dry-run"]) == 0
    assert train.main([*words, "--steps", "40"]) == 0
print(json.dumps([read_resident_peak(), before, output.getvalue()]))
"""


@pytest.mark.skipif(read_resident_peak() is None, reason="the system does not tell what a process takes")
def test_a_dry_run_tells_within_15_percent_what_a_run_takes(place):
    words = "--preset cpu --width 8 --data faces --batch-size 16 --replay-size 50000".split()
    child = subprocess.run(
        [sys.executable, "-c", TRIED_AND_RUN, *words],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    peak, before, output = json.loads(child.stdout.splitlines()[-1])
    (line,) = [line for line in output.splitlines() if line.startswith("Memory in all")]
    predicted = float(line.split()[-2].replace(",", "")) * MIB
    assert predicted <= peak <= 1.15 * predicted + MIB
    ring = 50_000 * (3 * 32**2 + 4 * (64 + 2 * 2 * 128) + 24)
    assert predicted > before + ring, "the whole ring is counted, which a short run does not fill"
