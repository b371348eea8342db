"""Bad settings: every parameter at its edges and beyond, and in any company, is refused in a sentence or trains."""

import dataclasses
import random
import re

import hypothesis
import hypothesis.strategies as some
import pytest
from conftest import (
    CPU,
    SEED,
    cases,
    differing,
    new_trainer,
    run,
    same,
    saved,
    small_config,
    small_faces,
    trainer_on,
    weights,
)
from test_train import TINY

import train
from magnet.config import Config, check, complete
from magnet.data.gaussians import PointDataset, draw_points
from magnet.run.checkpoint_validation import find_networks_fault, find_trainer_fault
from magnet.run.summary import describe_networks, find_idle_flags, refuse_too_large
from magnet.support.errors import UserError

FIELDS = dataclasses.fields(Config)
BEYOND = {
    int: ["0", "-1", "1.5", "1e3", "1000000000000000000000000000000", "nan", "many", ""],
    float: ["0", "-1", "1e30", "1e-30", "nan", "inf", "-inf", "some", ""],
    str: ["", "a b", "\u00fc\u4eba\U0001f600", "a\nb", "x" * 300, "-", "faces/00.png"],
    bool: ["1", "no", ""],
}
EDGES = [(field, value) for field in FIELDS for value in BEYOND[field.type]]


@cases(short=12, long=len(EDGES))
def test_every_parameter_at_its_edges_is_refused_in_a_sentence_or_trains(place, capsys, count):
    for field, value in random.Random(SEED).sample(EDGES, count):
        flag = f"--{field.name.replace('_', '-')}={value}"
        before = set(place.rglob("*.pt"))
        try:
            status = train.main([*TINY, "--epochs", "1", "--steps", "1", flag])
        except SystemExit as stopped:  # argparse's own
            status = stopped.code
        error, made = capsys.readouterr().err.strip(), set(place.rglob("*.pt")) - before
        assert status in (0, 2), (flag, error)
        assert not made if status else len(made) == 2, flag
        if status == 2:
            *other, sentence = error.splitlines()
            assert sentence.startswith("train.py: ") and all("usage" in x or "image" in x for x in other), (flag, error)


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/tmp/x", "a/b", "a\\b", "C:x", "a b", "\u00fc", "x" * 65, "a\n", "-\0"]
)
def test_a_name_that_is_no_plain_folder_is_refused(place, capsys, name):
    assert train.main([*TINY, "--steps", "1", f"--name={name}"]) == 2
    assert "--name is" in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["faces"]


@pytest.mark.parametrize("images", [0, 1, 7, 11])
def test_fewer_images_than_two_states_are_named(place, capsys, images):
    for path in sorted((place / "faces").iterdir())[images:]:
        path.unlink()
    assert train.main([*TINY, "--steps", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "faces" in error and ("too few" in error if images else "--data" in error)
    assert not (place / "models").exists()
    if advice := re.search(r"give `(--batch-size) (\d+)` or more images", error):
        assert train.main([*TINY, "--steps", "1", *advice.groups()]) == 0
    assert bool(advice) == (images > 5)


def values(field):
    """Values of a field that keep a game small; a little beyond the edge now and then."""
    if field.metadata["choices"]:
        return some.sampled_from(field.metadata["choices"])
    if field.type is bool:
        return some.booleans()
    low = field.metadata["low"]
    if field.type is float:
        high = min(field.metadata["high"], 100)
        return some.sampled_from([float(low), float(high), field.default]) | some.floats(low, high)
    return some.integers(int(low), int(low) + 3)


LEFT_OUT = ("image_size", "width", "seed", "precision", "patience", "skip_bad_images", "hold_out")  # slow, or for files
SMALL = {f.name: values(f) for f in FIELDS if f.name not in LEFT_OUT and (f.type is not str or f.metadata["choices"])}
SMALL |= {"data": some.sampled_from(["faces", "faces", "gaussians-8"]), "batch_size": some.integers(4, 12)}


def accepted(config) -> bool:
    """Whether these values can go together."""
    try:
        check(config)
    except UserError:
        return False
    return True


@cases(short=6, long=300)
def test_any_parameters_together_are_refused_or_train_and_go_on(count):
    """Every game saves what checkpoint_validation.py expects, and goes on with what it loads."""
    trained = []

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(some.fixed_dictionaries({}, optional=SMALL))
    def play(flags):
        config = complete(dataclasses.asdict(small_config(data="faces", device="cpu")) | flags)
        hypothesis.assume(accepted(config))
        refuse_too_large(config)
        assert "D_a" in describe_networks(config)
        faces = PointDataset(draw_points(config.data, 40), CPU) if config.points else small_faces(40)
        first, second = (trainer_on(config, faces) for _ in range(2))
        assert find_trainer_fault(saved(first), second) is None
        run(first, 2)
        state = saved(first)
        broken = [name for name, value in run(first, 1)[0].items() if value != value]
        fault = find_trainer_fault(state, second)
        if fault:  # the wildest settings do diverge
            assert fault.endswith("is not finite")
            return
        assert find_networks_fault(state, config) is None
        second.load_state_dict(state)
        assert same(saved(second), state)
        assert [name for name, value in run(second, 1)[0].items() if value != value] == broken
        trained.append(config)

    play()
    assert len(trained) >= count / 2


# What has no effect


@pytest.mark.parametrize(
    ("changes", "idle"),
    [({}, set()), ({"r1": 0.0}, {"r1_every"}), ({"replay_fraction": 0.0}, {"replay_size"}),
     ({"data": "gaussians-8"}, {"image_size", "architecture"}), ({"data": "synthetic"}, {"skip_bad_images"}),
     ({"device": "cpu"}, {"cuda_graphs", "deterministic"}), ({"device": "cuda"}, set()),
     ({"extra_reward": "jpeg", "replay_fraction": 0.0}, set()), ({"gamma": 0.5}, {"average"}),
     ({"algorithm": "gan"}, {"critics", "exploration", "epsilon", "diversity_weight", "episode_length"})],
)  # fmt: skip
def test_settings_without_effect_are_known_by_the_game(changes, idle):
    of_the_reward = {"extra_weight", "extra_to"}
    assert find_idle_flags(Config(**changes)) == idle | (of_the_reward if "extra_reward" not in changes else set())


GAN_IGNORES = {"exploration": 0.2, "epsilon": 0.2, "diversity_weight": 3.0, "critics": "generator", "episode_length": 2}


@pytest.mark.parametrize("name", GAN_IGNORES)
def test_what_a_plain_gan_is_said_to_ignore_it_ignores(name):
    trainers = [new_trainer(algorithm="gan", **some) for some in ({}, {name: GAN_IGNORES[name]})]
    for trainer in trainers:
        run(trainer, 4)
    assert not differing(*(weights(trainer.agents) for trainer in trainers))


def test_the_start_names_flags_without_effect(place, capsys):
    words = "--data faces --image-size 32 --width 4 --nz 6 --batch-size 8 --algorithm gan --dry-run".split()
    assert train.main([*words, "--exploration", "0.5", "--episode-length", "3"]) == 0
    assert "Without effect in this game: --episode-length, --exploration" in capsys.readouterr().out
    assert train.main(words) == 0
    assert "Without effect" not in capsys.readouterr().out
