"""Variety is counted rightly, on samples made by hand on faces of known factors, and by the whole program."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import CPU, small_config, small_faces, trainer_on
from PIL import Image

from experiments import factors, runs, variety
from magnet.agents.networks import Generator, PointGenerator
from magnet.config import Config, check, complete
from magnet.data.gaussians import PointDataset, draw_points, mixture
from magnet.data.synthetic import FACTORS, render_faces, sample_factors
from magnet.run import checkpoint, command_line
from magnet.support.errors import UserError

# Factors of synthetic faces


def test_each_combination_has_a_number_of_its_own():
    levels = [torch.arange(FACTORS[name]) for name in factors.NAMES]
    numbers = factors.combination(torch.cartesian_prod(*levels))
    assert sorted(numbers.tolist()) == list(range(180)) and factors.COMBINATIONS == 180


def test_a_combination_is_covered_by_its_share_of_the_samples_and_kl_is_to_uniform():
    found = torch.tensor([7] * 4981 + [3] * 10 + [5] * 9)  # 10 of 5,000 are enough
    entropy = -sum(n / 5000 * math.log(n / 5000) for n in (4981, 10, 9))
    assert factors.count_combinations(found) == {"modes": 2, "kl": pytest.approx(math.log(180) - entropy)}
    assert factors.count_combinations(torch.arange(180)) == {"modes": 180, "kl": pytest.approx(0, abs=1e-6)}
    one = factors.count_combinations(torch.full((50,), 179))
    assert one == {"modes": 1, "kl": pytest.approx(math.log(180))}


def test_drawn_faces_come_with_their_factors_and_every_other_one_is_mirrored():
    for seed in (1, 2):
        pixels, values = factors.drawn(3, seed)
        expected = sample_factors(3, seed)
        assert values.tolist() == np.stack([expected[name] for name in factors.NAMES], axis=1).tolist()
        plain = torch.from_numpy(render_faces(expected, 32))
        assert torch.equal(pixels[::2], plain[::2]) and torch.equal(pixels[1], plain[1].flip(2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of a network that has learned from few faces, what it finds them to be, and what is known of it."""
    path = tmp_path_factory.mktemp("factors") / "factors.pt"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FACES", 1000), ("UNSEEN", 200), ("EPOCHS", 8), ("BATCH", 50)):
            patch.setattr(factors, name, value)
        return path, *factors.trained_reader(path)


def test_drawn_faces_of_known_factors_are_counted_as_these(trained):
    """300 faces of three combinations, half of them mirrored, whatever the other factors."""
    _, reader, _ = trained
    wanted = {"hair_style": [0, 4, 4], "hair_colour": [4, 0, 4], "glasses": [1, 0, 1], "beard": [0, 2, 0]}
    values = sample_factors(300, seed=5) | {name: np.repeat(some, 100) for name, some in wanted.items()}
    pixels = torch.from_numpy(render_faces(values, 32))
    pixels[1::2] = pixels[1::2].flip(3)
    numbers = factors.combination(torch.tensor(list(wanted.values())).T)
    found = reader(pixels).view(3, 100)
    assert ((found == numbers[:, None]).float().mean(dim=1) > 0.5).all()  # it has learned for seconds


def test_how_good_the_reader_is_stands_beside_it(trained, monkeypatch):
    path, _, known = trained
    assert known["accuracy"].keys() == set(factors.NAMES) and known["accuracy"]["glasses"] > 0.95
    assert 1 / 180 < known["all"] <= min(known["accuracy"].values())
    assert 0 <= known["fewest"] <= 200 / 180 and 0 < known["drawn"]["kl"] < math.log(180)

    class Blind(torch.nn.Module):  # for it all faces are bald and black-haired, without glasses or beard
        def forward(self, images):
            return torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0]).expand(len(images), 16)

    monkeypatch.setattr(factors, "UNSEEN", 300)
    said = factors.discriminated(Blind())
    _, values = factors.drawn(factors.UNSEEN, seed=2)
    assert said["accuracy"]["beard"] == pytest.approx((values[:, 3] == 0).double().mean().item())
    assert said["drawn"]["modes"] == 1 and said["fewest"] == 0
    right = (values == 0).all(dim=1).sum().item()
    assert said["most_mistaken"] == factors.UNSEEN - right and said["all"] == pytest.approx(right / factors.UNSEEN)


def test_the_reader_is_trained_once(trained, monkeypatch, tmp_path):
    path, reader, known = trained
    monkeypatch.setattr(factors, "learn", lambda: pytest.fail("it was trained again"))
    again, known_again = factors.trained_reader(path)
    pixels, _ = factors.drawn(20, seed=4)
    assert torch.equal(again(pixels), reader(pixels)) and known_again == known
    (tmp_path / "factors.pt").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="factors.pt holds no network of factors; delete it"):
        factors.trained_reader(tmp_path / "factors.pt")


# The table of settings


@pytest.mark.parametrize("world", variety.WORLDS)
@pytest.mark.parametrize("setting", variety.SETTINGS)
def test_every_setting_is_a_run_of_train_in_every_world(setting, world):
    _, base = variety.parse(["--world", world])
    flags = base | variety.SETTINGS[setting][1] | {"seed": 1}
    given, _ = command_line.parse(runs.words(flags))
    assert given == flags and given["data"] == world
    check(Config(**given))


def test_the_large_generator_is_as_large_as_four():
    def size(network):
        return sum(p.numel() for p in network.parameters())

    flags = {"data": "synthetic", "image_size": 32, "width": 16, "nz": 64}
    width = variety.width_of_four(flags)
    assert size(Generator(32, width, 64)) == pytest.approx(4 * size(Generator(32, 16, 64)), rel=0.03)
    flags = {"data": "gaussians-8", "width": 32, "nz": 2}
    width = variety.width_of_four(flags)
    large, small = (PointGenerator(w, 2) for w in (width, 32))
    assert size(large) == pytest.approx(4 * size(small), rel=0.03)
    assert variety.size_of_generator(complete(flags)) == size(small)


@pytest.mark.parametrize("words", [["--data", "faces"], ["--image-size", "64"], ["--seed", "1"], ["--steps", "0"]])
def test_what_the_world_and_the_table_give_is_no_flag(words):
    with pytest.raises(SystemExit, match="2"):
        variety.parse(["--world", "synthetic", *words])


# Counting what a run covers


def a_run(folder, data, **changes):
    """The run folder of a new trainer, which has made no step, and the trainer."""
    config = small_config(data=data, device="cpu", **changes)
    faces = PointDataset(draw_points(data, 60), CPU) if config.points else small_faces()
    trainer = trainer_on(config, faces)
    (folder / "checkpoints").mkdir()
    save(folder, trainer)
    return folder, trainer


def save(folder, trainer):
    """Writes the trainer's checkpoint as train.py does."""
    state = {"config": dataclasses.asdict(trainer.config), "faces": trainer.dataset.fingerprint, "best": None}
    checkpoint.save(folder / "checkpoints" / "000000.pt", state | {"trainer": trainer.state_dict()})


def paint(trainer, centres):
    """Makes each generator's average put its own centre forward, whatever z."""
    for agent, centre in zip(trainer.generators, centres, strict=True):
        *_, last = agent.targets["generator"].parameters()
        for p in agent.targets["generator"].parameters():
            p.data.zero_()
        last.data.copy_(torch.from_numpy(centre))


def test_each_generator_has_an_equal_share_and_is_counted_alone(tmp_path):
    centres, _ = mixture("gaussians-8")
    folder, trainer = a_run(tmp_path, "gaussians-8", generators=3)
    paint(trainer, centres[[1, 4, 4]])
    save(folder, trainer)
    result = variety.scored(folder, variety.counter("gaussians-8", None)._replace(samples=30))
    assert [alone["modes"] for alone in result["alone"]] == [1, 1, 1]
    third = 1 / 3
    kl = math.log(8) + third * math.log(third) + 2 * third * math.log(2 * third)
    assert result["together"] == {"modes": 2, "high_quality": 1.0, "kl": pytest.approx(kl, rel=1e-5)}
    assert [len(part) for part in result["points"]] == [30] * 3
    assert result["points"][0][0] == pytest.approx(centres[1], abs=1e-3)
    assert (result["step"], result["minutes"]) == (0, 0)


def test_faces_are_read_as_pixels_and_the_size_is_of_all_agents_networks(tmp_path):
    seen = []

    def note(images):
        seen.append(images)
        return {}

    folder, trainer = a_run(tmp_path, "synthetic", generators=2, discriminators=2, specialise=1.0)
    result = variety.scored(folder, variety.Counter(9, note, note, {}, {}))
    assert [image.shape for image in seen] == [(9, 3, 32, 32)] * 4 and seen[0].dtype == torch.uint8
    assert len(result["alone"]) == 2 and result["points"] == []
    assert result["size_G"] == 2 * sum(p.numel() for p in Generator(32, 4, 6).parameters())
    discriminators = [agent.networks["actor"] for agent in trainer.discriminators]
    assert result["size_D"] == sum(p.numel() for network in discriminators for p in network.parameters())


def test_the_synthetic_world_counts_what_the_reader_finds_and_says_what_it_is_worth(trained, monkeypatch, tmp_path):
    path, reader, known = trained
    monkeypatch.setattr(variety, "FACES", 40)
    samples, count, quality, facts, protocol = variety.counter("synthetic", path)
    faces, _ = factors.drawn(40, seed=3)
    assert (samples, facts["reader"]) == (40, known) and protocol["count"] == 40
    assert facts["data"] == count(faces) | quality(faces) and count(faces) == factors.count_combinations(reader(faces))
    assert count(faces[:1].expand(40, -1, -1, -1))["modes"] == 1
    assert quality(255 - faces)["swd"] > 1.2 * quality(faces)["swd"]  # without it, noise could pass for variety


# The whole program

TINY = ["--width", "8", "--batch-size", "8", "--replay-size", "20", "--evaluate-every", "0"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with two settings' lines, of 4 steps each, and the command."""
    place = tmp_path_factory.mktemp("variety")
    command = ["--world", "gaussians-8", "--only", "2x1", "1x1", "--seeds", "0", "--steps", "4", "--jobs", "2", *TINY]
    command += ["--out", str(place / "v.jsonl"), "--models-dir", str(place / "models")]
    assert variety.main(command) == 0
    return place, command


def test_a_line_has_all_that_was_measured(measured):
    place, _ = measured
    lines = {line["setting"]: line for line in map(json.loads, (place / "v.jsonl").read_text().splitlines())}
    assert {name: len(line["alone"]) for name, line in lines.items()} == {"1x1": 1, "2x1": 2}
    for line in lines.values():
        assert line["step"] == line["flags"]["steps"] == 4 and line["flags"]["data"] == "gaussians-8"
        assert line["data"]["modes"] == 8 and line["data"]["high_quality"] > 0.97
    assert lines["2x1"]["size_G"] == 2 * lines["1x1"]["size_G"]


def test_the_same_command_trains_nothing_again_and_a_report_nothing_at_all(measured, capsys):
    pytest.importorskip("matplotlib")
    place, command = measured
    before = (place / "v.jsonl").read_bytes()
    figure = np.asarray(Image.open(place / "v.png"))
    assert figure.std() > 0
    assert variety.main(command) == 0
    said = capsys.readouterr().out
    assert "training" not in said and "| 1x1 | 1 |" in said and (place / "v.jsonl").read_bytes() == before
    assert variety.main([*command[:2], "--report", "--out", str(place / "v.jsonl")]) == 0
    assert capsys.readouterr().out == said


def test_a_report_of_no_lines_is_one_sentence(tmp_path, capsys):
    for text in (None, "", '{"setting": "gan", "diverged": false, "curve": []}\n'):
        if text is not None:
            (tmp_path / "v.jsonl").write_text(text)
        assert variety.main(["--world", "synthetic", "--report", "--out", str(tmp_path / "v.jsonl")]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert error.startswith("variety.py: ") and "v.jsonl" in error


def test_the_table_has_means_and_extents_over_seeds_and_the_data():
    def line(modes, alone, diverged=False):
        counts = [{"modes": m, "kl": 0.5, "swd": 20.0} for m in (modes, *alone)]
        sizes = {"size_G": 107_400, "size_D": 45_000, "minutes": 2.0, "data": {"modes": 180, "kl": 0.02, "swd": 2.0}}
        return {"together": counts[0], "alone": counts[1:], "diverged": diverged} | sizes

    found = {"1x1": [line(120, [120])], "2x1": [line(150, [80, 90]), line(160, [100, 70], diverged=True)]}
    assert variety.table(found).splitlines() == [
        "| setting | seeds | modes | KL | SWD | modes of one G | G | D_a | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 1x1 | 1 | 120.0 | 0.500 | 20.0 | 120.0 | 107 k | 45 k | 2.0 |",
        "| 2x1 | 2, 1 diverged | 155.0 (150.0-160.0) | 0.500 (0.500-0.500) | 20.0 (20.0-20.0) | 85.0 (70.0-100.0) "
        "| 107 k | 45 k | 2.0 (2.0-2.0) |",
        "| the data |  | 180.0 | 0.020 | 2.0 |  |  |  |  |",
    ]
