"""The reward `smile`: what it ranks, what it does not depend on, and what happens without its weights."""

import numpy as np
import pytest
import torch

import magnet
from experiments.smile import save, train_classifier
from magnet.game import smile as module
from magnet.game.smile import WEIGHTS, SmileClassifier, load_classifier, smile
from magnet.support.errors import UserError


def draw_mouths(count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces uint8 (N, 3, S, S) of any colour with a mouth, an arc, and bool (N,): whether its ends point upwards.

    The same seed gives the same faces at each side.
    """
    random = np.random.default_rng(seed)
    smiling, skins = random.random(count) < 0.5, random.integers(120, 256, (count, 3, 1, 1))
    centres, noise = random.uniform(0.55, 0.75, (count, 1, 1)), np.random.default_rng(seed)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    bend = np.where(smiling, -1, 1)[:, None, None] * (3 * (x - 0.5) ** 2 - 0.1)
    mouth = (abs(y - centres - bend) < 0.05) & (abs(x - 0.5) < 0.3)
    pixels = np.where(mouth[:, None], skins // 3, skins) + noise.normal(0, 5, (count, 3, side, side))
    return pixels.clip(0, 255).astype(np.uint8), smiling


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """The file of a classifier that has learned from 600 such faces."""
    pixels, smiling = draw_mouths(600, 32, seed=0)
    classifier = train_classifier(torch.from_numpy(pixels), torch.from_numpy(smiling).float(), epochs=4, seed=0)
    path = tmp_path_factory.mktemp("smile") / "smile.pt"
    save(classifier, torch.from_numpy(pixels[:50]), torch.from_numpy(smiling[:50]).float(), path)
    return path


@pytest.fixture
def faces(weights_file, monkeypatch):
    """100 other faces and their labels; the reward has the weights of `weights_file`."""
    monkeypatch.setattr(module, "WEIGHTS", weights_file)
    return draw_mouths(100, 32, seed=1)


def test_smiles_earn_more_than_other_faces_and_have_logits_above_0(faces):
    pixels, smiling = faces
    rewards = smile(pixels, pixels)
    assert rewards.shape == (100,) and rewards.dtype == np.float32
    assert ((rewards > 0) == smiling).mean() > 0.95
    assert (rewards[smiling][:, None] > rewards[~smiling]).mean() > 0.98  # the share of pairs in the right order
    # Neither the state matters nor the rest of the batch.
    assert np.array_equal(smile(255 - pixels[::-1], pixels), rewards)
    np.testing.assert_allclose(smile(pixels[:1], pixels[5:6]), rewards[5:6], atol=1e-4)


def test_other_sizes_are_resized(faces):
    small, _ = faces
    large, _ = draw_mouths(100, 64, seed=1)
    rewards = smile(small, small)
    assert np.corrcoef(smile(large, large), rewards)[0, 1] > 0.95
    repeated = small.repeat(2, axis=2).repeat(2, axis=3)  # each pixel four times: nearly the same image
    assert np.corrcoef(smile(repeated, repeated), rewards)[0, 1] > 0.98


def test_it_reads_its_weights_once_and_changes_no_state_of_the_caller(faces, monkeypatch):
    pixels, _ = faces
    expected, frozen, before = smile(pixels, pixels), pixels.copy(), torch.random.get_rng_state()
    frozen.flags.writeable = False
    load_classifier.cache_clear()
    loads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: loads.append(options) or load(*args, **options))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
            rewards = smile(frozen, frozen)
            assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        assert np.array_equal(rewards, expected), "whatever the precision of the training"
    assert np.array_equal(frozen, pixels) and torch.equal(torch.random.get_rng_state(), before)
    assert [options["weights_only"] for options in loads] == [True]


def test_the_shipped_weights_rank_generated_faces_alike_at_both_sizes_and_mirrored():
    faces = np.asarray(magnet.load(WEIGHTS.parents[1] / "models" / "celeba-64.pt").sample(16, seed=0))
    rewards = smile(faces, faces)
    small = faces.reshape(16, 3, 32, 2, 32, 2).mean((3, 5)).round().astype(np.uint8)
    assert rewards.std() > 0.5 and min((rewards > 0).sum(), (rewards < 0).sum()) >= 3  # faces differ
    assert np.corrcoef(smile(small, small), rewards)[0, 1] > 0.95
    assert np.corrcoef(smile(faces, faces[..., ::-1]), rewards)[0, 1] > 0.8


def test_the_shipped_file_is_small_and_states_its_accuracy():
    saved = torch.load(WEIGHTS, weights_only=True)
    assert WEIGHTS.stat().st_size < 150_000
    assert saved["held_out"] == 878 and saved["accuracy"] > 0.87
    assert saved["network"].keys() == SmileClassifier().state_dict().keys()


@pytest.mark.parametrize("fault", ["missing", "cut short", "no weights", "other weights"])
def test_without_its_weights_the_reward_names_file_and_command(faces, weights_file, tmp_path, monkeypatch, fault):
    pixels, _ = faces
    path = tmp_path / "smile.pt"
    if fault == "cut short":
        path.write_bytes(weights_file.read_bytes()[:5000])
    elif fault == "no weights":
        path.write_text("<html>\nQuota exceeded")
    elif fault == "other weights":
        torch.save({"network": torch.nn.Linear(2, 1).state_dict()}, path)
    monkeypatch.setattr(module, "WEIGHTS", path)
    with pytest.raises(UserError) as caught:
        smile(pixels, pixels)
    assert str(path) in str(caught.value) and "`python3 experiments/smile.py`" in str(caught.value)
    assert ("is missing" in str(caught.value)) == (fault == "missing")
    path.write_bytes(weights_file.read_bytes())  # a failure is not cached
    assert smile(pixels, pixels).shape == (100,)


@pytest.mark.parametrize("images", [np.zeros((2, 3, 32, 32), np.float32), np.zeros((2, 1, 32, 32), np.uint8)])
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match="uint8"):
        smile(images, images)
