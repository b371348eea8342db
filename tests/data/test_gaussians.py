"""Points instead of pictures: the mixtures, what is counted of them, and the same game, trainer and run on them."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import CPU, FULL, differing, small_config, trainer_on, weights
from PIL import Image

import evaluate
import sample
import train
from magnet.data.gaussians import BLUE, GREY, WHITE, PointDataset, count_modes, draw_points, get_mixture, paint
from magnet.evaluation.sampling import FixedGrids
from magnet.evaluation.scores import Evaluation
from magnet.run import checkpoint

NAMES = pytest.mark.parametrize(("name", "modes"), [("gaussians-8", 8), ("gaussians-25", 25)])
PENALTIES = {"r1": 0.1, "r1_every": 2, "gradient_penalty": 10.0}


def new_trainer(count=60, **changes):
    config = small_config(data="gaussians-25", **changes)
    return trainer_on(config, PointDataset(draw_points(config.data, count), CPU))


# The mixtures


@NAMES
def test_the_points_have_the_mixtures_modes_in_equal_shares_and_its_deviation(name, modes):
    centres, deviation = get_mixture(name)
    points = draw_points(name, 50_000)
    assert points.shape == (50_000, 2) and points.dtype == np.float32 and len(np.unique(centres, axis=0)) == modes
    offsets = points[:, None] - centres
    nearest = np.linalg.norm(offsets, axis=2).argmin(axis=1)
    shares = np.bincount(nearest, minlength=modes) / len(points)
    assert abs(shares * modes - 1).max() < 0.12  # four standard deviations of a share of 1/25
    noise = offsets[np.arange(len(points)), nearest]
    assert noise.std(axis=0) == pytest.approx([deviation] * 2, rel=0.02)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0, abs=0.02)
    assert points.mean(axis=0) == pytest.approx([0, 0], abs=0.02)
    assert points.var(axis=0) == pytest.approx([0.5, 0.5], rel=0.02)


def test_the_mixtures_have_the_proportions_of_the_literature():
    ring, deviation = get_mixture("gaussians-8")
    assert np.linalg.norm(ring, axis=1) == pytest.approx(1) and deviation == 0.01
    assert np.diff(np.unwrap(np.arctan2(ring[:, 1], ring[:, 0]))) == pytest.approx(np.pi / 4)
    grid, deviation = get_mixture("gaussians-25")
    expected = {(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)}  # there with deviation 0.05
    assert {tuple(centre) for centre in grid * 0.05 / deviation} == expected


def test_a_seed_draws_the_same_points_again_and_another_others():
    assert np.array_equal(draw_points("gaussians-8", 9), draw_points("gaussians-8", 9))
    assert not np.array_equal(draw_points("gaussians-8", 9), draw_points("gaussians-8", 9, seed=1))


@NAMES
def test_mirrored_points_are_of_the_same_mixture(name, modes):
    points = PointDataset(draw_points(name, 20_000), CPU)
    plain, mirrored = points.batch(torch.arange(40_000)).chunk(2)
    assert torch.equal(plain, torch.from_numpy(draw_points(name, 20_000)))
    assert torch.equal(mirrored, plain * torch.tensor([-1.0, 1.0]))
    counted = count_modes(mirrored, name)
    assert counted["modes"] == modes and counted["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.004)


# What is counted


@NAMES
def test_modes_by_hand(name, modes):
    centres, deviation = map(torch.as_tensor, get_mixture(name))
    assert count_modes(centres.repeat(3, 1), name) == {
        "modes": modes, "high_quality": 1.0, "kl": pytest.approx(0, abs=1e-6)
    }  # fmt: skip
    one = centres[2] + deviation * torch.tensor([[2.9, 0.0], [0.0, -2.9], [2.2, 2.2], [3.1, 0.0]])
    assert count_modes(one, name) == {"modes": 1, "high_quality": 0.5, "kl": pytest.approx(math.log(modes))}
    two = torch.cat([centres[[0, 0, 0, 5]], torch.full((4, 2), 9.0)])  # points far from all centres do not count
    kl = 0.75 * math.log(0.75 * modes) + 0.25 * math.log(0.25 * modes)
    assert count_modes(two, name) == {"modes": 2, "high_quality": 0.5, "kl": pytest.approx(kl)}
    nothing = count_modes(two[4:], name)
    assert nothing == {"modes": 0, "high_quality": 0.0, "kl": pytest.approx(math.log(modes))}


def test_a_picture_shows_each_point_in_its_place_over_those_behind():
    picture = paint(torch.tensor([[0.0, 1.0], [9.0, 0.0]]), background=torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert picture.shape == (3, 256, 256) and picture.min() >= -1 and picture.max() <= 1
    for colour, row, column in ((BLUE, 25, 128), (BLUE, 128, 255), (GREY, 128, 25), (WHITE, 0, 0)):  # y points up
        assert picture[:, row, column].tolist() == pytest.approx(colour)
    assert ((picture < 1).any(dim=0)).sum() == 3


# The game on points


@pytest.mark.parametrize("changes", [FULL, PENALTIES | {"spectral_norm": True}, PENALTIES | {"algorithm": "gan"}])
def test_every_network_learns_from_points_and_all_metrics_are_finite(changes, every_step):
    trainer = new_trainer(**changes)
    assert trainer.observations["generator"].shape == (trainer.environment.batch, 2)
    for _ in range(3):
        before = weights(trainer.agents)
        metrics = trainer.step()
        assert differing(before, weights(trainer.agents)) == set(before)
        assert all(value.isfinite() for value in metrics.values())


def test_the_ring_keeps_points_to_the_last_bit():
    trainer = new_trainer(replay_fraction=0.25)
    shown, play = [], trainer.play
    trainer.play = lambda batch: shown.append(batch.played_images[0][:6].clone()) or play(batch)
    trainer.step()
    assert torch.equal(trainer.dataset.unpack(trainer.replay.storage["image"][:6, 0]), shown[0])
    old = trainer.replay.sample(50)
    assert {tuple(point) for point in old["image"][:, 0].tolist()} <= {tuple(point) for point in shown[0].tolist()}


def test_grids_are_pictures_of_many_points_and_draw_nothing_from_the_run():
    trainer, other = new_trainer(3000), new_trainer(3000)
    for agent in (trainer.generators[0], other.generators[0]):
        with torch.no_grad():
            agent.targets["generator"].layers[-1].weight.mul_(50)  # or all its points lie on few pixels
    pictures = FixedGrids(trainer.generators, trainer.dataset, seed=0).draw()
    assert pictures.keys() == {"prior", "policy"}
    for picture in pictures.values():
        assert picture.shape == (1, 3, 256, 256)
        assert (picture[0].permute(1, 2, 0) == torch.tensor(GREY)).all(dim=2).sum() > 500
        assert (picture[0].permute(1, 2, 0) == torch.tensor(BLUE)).all(dim=2).sum() > 100
    trainer.step(), other.step()
    assert differing(weights(trainer.agents), weights(other.agents)) == set()


def test_scores_are_the_modes_of_the_averaged_generators_samples():
    trainer = new_trainer(evaluate_every=1)
    scoring = Evaluation(trainer.generators, trainer.dataset, trainer.config)
    with torch.no_grad():
        for network in (trainer.generators[0].networks["generator"], trainer.generators[0].targets["generator"]):
            network.layers[-1].weight.zero_()
            network.layers[-1].bias.zero_()
    assert scoring.score(1) == {"modes": 1, "high_quality": 1.0, "kl": pytest.approx(math.log(25))}
    assert scoring.best == {"kl": pytest.approx(math.log(25)), "step": 1, "worse_since": 0}
    with torch.no_grad():
        trainer.generators[0].targets["generator"].layers[-1].bias.fill_(7.0)
    assert scoring.score(2)["modes"] == 0 and scoring.best["step"] == 1


# The whole program


def test_the_preset_trains_from_the_command_line_and_counts_modes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--preset gaussians --width 8 --batch-size 8 --replay-size 20 --sample-every 5 --evaluate-every 4".split()
    assert train.main([*words, "--steps", "9", "--name", "r"]) == 0
    run = tmp_path / "models" / "r"
    config = json.loads((run / "config.json").read_text())
    assert config["data"] == "gaussians-25" and config["precision"] == "fp32"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "kl" in line]
    assert [line["step"] for line in scores] == [4, 8] and all(0 <= line["modes"] <= 25 for line in scores)
    assert checkpoint.load(run / "checkpoints" / "best.pt")["best"]["kl"] == min(line["kl"] for line in scores)
    grids = sorted(path.name for path in (run / "samples").iterdir())
    assert grids == sorted(f"{step:06d}{kind}.png" for step in (0, 5, 9) for kind in ("", "-policy"))
    assert Image.open(run / "samples" / "000009.png").size == (256, 256)
    assert Image.open(run / "progress.gif").n_frames == 2, "the average moves in step 8: step 5 looks as step 0"
    for program, arguments, sentence in (
        (train, ["--resume", "r", "--steps", "12", "--data", "gaussians-8"], "gaussians-8 are not those"),
        (sample, ["models/r"], "points, not pictures"),
        (evaluate, ["models/r", "--no-features"], "points, not pictures"),
    ):
        capsys.readouterr()
        assert program.main(arguments) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert sentence in error


@pytest.mark.parametrize("flags", ["--hold-out 0.1", "--skip-bad-images", "--precision bf16", "--precision fp16"])
def test_what_points_do_not_have_is_refused(capsys, flags):
    assert train.main(["--preset", "gaussians", "--dry-run", *flags.split()]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "gaussians-25" in error and flags.split()[0] in error
