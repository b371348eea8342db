"""What a run needs: counts that agree with the tensors themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import overhear, small_config, small_faces, trainer_on
from torch import nn

from magnet.agents.networks import discriminator_networks, generator_networks
from magnet.run.process_memory import read_resident_peak
from magnet.run.summary import MIB, count, kept_bytes, summary


def test_kept_bytes_by_hand():
    x = torch.empty(5, 3, device="meta")
    linear = nn.Linear(3, 2, device="meta")
    assert kept_bytes(linear, x) == 4 * 5 * 3  # its input, for the weight's gradient
    assert kept_bytes(nn.Sequential(linear, nn.Tanh()), x) == 4 * (5 * 3 + 5 * 2)  # and tanh's output
    assert kept_bytes(nn.Sequential(linear, nn.Identity()), x) == 4 * 5 * 3
    second = nn.Linear(2, 7, device="meta")  # the pass keeps its weight too, for its input's gradient
    assert kept_bytes(nn.Sequential(linear, second), x) == 4 * (5 * 3 + 5 * 2)


def test_the_parameters_are_those_that_the_agents_hold():
    config = small_config(replay_fraction=0.25, replay_size=30)
    parameters, _ = count(config, images=20)
    trainer = trainer_on(config, small_faces())
    generator, discriminator = trainer.generators[0].networks, trainer.discriminators[0].networks
    networks = [
        generator["actor"],
        generator["generator"],
        generator["critic"],
        discriminator["actor"],
        discriminator["critic"],
    ]
    assert list(parameters.values()) == [sum(p.numel() for p in network.parameters()) for network in networks]


def test_the_ring_and_the_array_are_counted_to_the_byte():
    trainer = trainer_on(small_config(replay_fraction=0.25, replay_size=10), small_faces())
    ring = sum(tensor.numel() * tensor.element_size() for tensor in trainer.replay.storage.values()) / 10 * 10**6
    _, needs = count(small_config(replay_fraction=0.25, replay_size=10**6), 10**6)
    assert needs["replay"] == ring and needs["1,000,000 images"] == 3 * 32**2 * 10**6


def test_the_summary_is_two_lines_of_sums_and_parts():
    config = small_config(replay_fraction=0.25, replay_size=10**6, generators=2)
    networks, memory = summary(config, 10**6).splitlines()
    parameters, needs = count(config, 10**6)
    assert networks.startswith(
        f"Networks: {sum(parameters.values()):,} parameters (G_a x 2 {parameters['G_a x 2']:,}, "
    )
    assert memory.startswith(f"Memory: {sum(needs.values()) / MIB:,.0f} MiB (")
    assert f"1,000,000 images 2,930, replay {needs['replay'] / MIB:,.0f})" in memory


def test_several_agents_are_all_counted():
    config = small_config(
        replay_fraction=0.25, replay_size=10, generators=3, discriminators=2, specialise=1.0, width=16
    )
    trainer = trainer_on(config, small_faces())
    parameters, needs = count(config, images=20)
    held = sum(p.numel() for agent in trainer.agents for net in agent.networks.values() for p in net.parameters())
    assert sum(parameters.values()) == held
    assert next(iter(needs.values())) == 4 * 5 * held  # with targets, gradients and Adam's moments
    assert list(parameters) == ["G_a x 3", "G x 3", "G_c x 3", "D_a x 2", "D_c x 2"]
    ring = sum(tensor.numel() * tensor.element_size() for tensor in trainer.replay.storage.values()) / 10 * 10**6
    config = small_config(replay_fraction=0.25, replay_size=10**6, generators=3)
    assert count(config, 20)[1]["replay"] == pytest.approx(ring)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, ["G_a", "G", "G_c", "D_a", "D_c"]),
        ({"critics": "discriminator"}, ["G_a", "G", "D_a", "D_c"]),
        ({"critics": "generator"}, ["G_a", "G", "G_c", "D_a"]),
        ({"algorithm": "gan"}, ["G", "D_a"]),
    ],
)
def test_the_table_has_the_networks_that_there_are_and_no_others(changes, rows):
    config = small_config(**changes)
    parameters, needs = count(config, images=20)
    assert [name.split()[0] for name in parameters] == rows
    trainer = trainer_on(config, small_faces())
    held = sum(p.numel() for agent in trainer.agents for net in agent.networks.values() for p in net.parameters())
    assert sum(parameters.values()) == held and needs["weights with their copies"] == 4 * 5 * held


def test_nothing_is_computed_for_the_count():
    with torch.device("meta"):
        for makers in (generator_networks(small_config()), discriminator_networks(small_config())):
            assert all(p.is_meta for make in makers.values() for p in make().parameters())


def kept(**changes) -> float:
    return count(small_config(batch_size=64, width=16, **changes), images=20)[1]["one step's activations"]


def test_more_agents_keep_more_and_spectral_norm_can_be_counted():
    assert kept(generators=4) > 1.5 * kept() and kept(discriminators=4) > 1.5 * kept()
    assert kept(critics="none") < kept()
    assert kept(spectral_norm=True) > 0


def test_what_critics_keep_is_counted_at_the_size_of_what_the_trainer_shows_them():
    config = {"generators": 3, "discriminators": 2, "replay_fraction": 0.25}
    trainer = trainer_on(small_config(batch_size=64, width=16, **config), small_faces(130))
    trainer.step()
    heard = {agent.name: overhear(agent) for agent in trainer.agents}
    trainer.step()
    taken = 0
    for agent in trainer.agents:
        (critic_batch,) = heard[agent.name]
        taken += kept_bytes(agent.critic, critic_batch["features"], critic_batch["actions"])
    without = kept(critics="none", **config)
    assert kept(**config) - without == taken


ROOT = Path(__file__).resolve().parents[2]
TRIED_AND_RUN = """
import contextlib, io, json, sys, train
from magnet.evaluation import scores as evaluation
from magnet.data import image_dataset as faces
from magnet.run import logger as logbook
from magnet.evaluation import sampling
from magnet import maddpg
from magnet.run.process_memory import read_resident_peak

words = sys.argv[1:]
peaks, told = [read_resident_peak()], io.StringIO()
with contextlib.redirect_stdout(told):
    assert train.main([*words, "--dry-run"]) == 0
    assert train.main([*words, "--steps", "40"]) == 0
print(json.dumps([read_resident_peak(), peaks[0], told.getvalue()]))
"""


@pytest.mark.skipif(read_resident_peak() is None, reason="the system does not tell what a process takes")
def test_a_dry_run_tells_within_15_percent_what_a_run_takes(place):
    words = "--preset cpu --width 8 --data faces --batch-size 16 --replay-size 50000".split()
    child = subprocess.run(
        [sys.executable, "-c", TRIED_AND_RUN, *words],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    peak, before, logged = json.loads(child.stdout.splitlines()[-1])
    (line,) = [line for line in logged.splitlines() if line.startswith("Memory in all")]
    predicted = float(line.split()[-2].replace(",", "")) * MIB
    assert predicted <= peak <= 1.15 * predicted + MIB
    ring = 50_000 * (3 * 32**2 + 4 * (64 + 2 * 2 * 128) + 24)
    assert predicted > before + ring, "the whole ring is counted, which a short run does not fill"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_half_the_bytes(precision):
    full, half = (count(small_config(precision=one), 20)[1] for one in ("fp32", precision))
    name = "one step's activations"
    assert half.pop(name) == full.pop(name) / 2 and half == full
