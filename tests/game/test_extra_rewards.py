"""Extra rewards: the shipped ones, the faults of a user's function, and the running mean and variance."""

import io

import numpy as np
import pytest
import torch
from conftest import CPU, pictures
from PIL import Image

from magnet.data.image_dataset import to_uint8
from magnet.game.extra_rewards import (
    EXTRA_REWARDS,
    ExtraReward,
    RewardNormaliser,
    incompressible,
    jpeg,
    load_extra_reward,
    resemble,
)
from magnet.support.errors import UserError

STATES, IMAGES = to_uint8(pictures(0, 4)), to_uint8(pictures(1, 4))


def flat(value, side=32):
    return np.full((1, 3, side, side), value, np.uint8)


@pytest.mark.parametrize("side", [32, 64])
def test_resemble_by_hand(side):
    black, other = flat(0, side), flat(0, side)
    other[0, 1, : side // 8, : side // 8] = 51  # one of 192 averages, by a fifth
    assert resemble(black, flat(255, side)) == pytest.approx([-1])
    assert resemble(black, black) == pytest.approx([0])
    assert resemble(black, other) == pytest.approx([-0.2 / 192])


def test_resemble_compares_averages_and_no_pixels():
    state, image = flat(0), flat(0)
    state[0, 0, 0, 0] = image[0, 0, 3, 3] = 160  # in the same square of 4 x 4
    assert resemble(state, image) == pytest.approx([0])


def test_jpeg_and_incompressible_are_the_files_kilobytes():
    file = io.BytesIO()
    Image.fromarray(IMAGES[2].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    images = torch.cat([IMAGES, torch.from_numpy(flat(90))]).numpy()
    sizes = incompressible(images, images)
    assert sizes[2] == len(file.getvalue()) / 1000 and sizes[4] < sizes[:4].min() / 2
    assert (jpeg(images, images) == -sizes).all()


@pytest.mark.parametrize("name", EXTRA_REWARDS)
def test_shipped_rewards_give_a_number_an_image_and_change_nothing(name):
    reward = load_extra_reward(name)
    values = reward(STATES, IMAGES)
    assert values.shape == (4,) and values.dtype == torch.float32 and values.unique().numel() == 4
    assert torch.equal(values.flip(0), reward(STATES.flip(0), IMAGES.flip(0)))


class Silent(Exception):
    """An exception without a text."""

    def __str__(self):
        raise ValueError


def raise_silent(states, images):
    raise Silent


FAULTS = {
    "one number for all": (lambda states, images: 1.0, r"gave an array \(\) for 4 images"),
    "a column": (lambda states, images: np.zeros((4, 1)), r"gave an array \(4, 1\)"),
    "no number": (lambda states, images: None, "gave an array|raised TypeError"),
    "NaN": (lambda states, images: np.array([1, 2, np.nan, 4]), "gave nan"),
    "infinite": (lambda states, images: np.array([1, 2, 3, -np.inf]), "gave -inf"),
    "too large": (lambda states, images: np.array([1, 2, 3, 1e20]), r"gave 1e\+20"),
    "raises": (lambda states, images: 1 / 0, r"raised ZeroDivisionError.*division by zero"),
    "exits": (lambda states, images: exit(3), "raised SystemExit"),
    "raises without a text": (raise_silent, "raised Silent"),
    "writes": (lambda states, images: images.fill(7) or np.zeros(4), "changed the images"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_function_is_named_in_one_sentence(name):
    function, fault = FAULTS[name]
    with pytest.raises(UserError, match=fault) as caught:
        ExtraReward("my_reward.py", function, "")(STATES, IMAGES)
    assert "my_reward.py" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_is_executed_once_and_its_line_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("count = 0\n\n\ndef reward(states, images):\n    return images.mean((1, 2, 3)) / states.min()\n")
    reward = load_extra_reward(str(path))
    path.write_text("def reward(states, images):\n    pass\n    raise ValueError('no\\nface')\n")
    assert torch.allclose(reward(STATES + 1 - STATES, IMAGES), IMAGES.float().mean((1, 2, 3)))
    other = load_extra_reward(str(path))
    assert other.digest != reward.digest and other.digest == load_extra_reward(str(path)).digest
    with pytest.raises(UserError, match="raised ValueError in line 3"):
        other(STATES, IMAGES)


def test_a_file_imports_its_neighbours_and_leaves_pytorch_as_it_was(tmp_path):
    (tmp_path / "beside_my_reward.py").write_text("FACTOR = 3")
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\nfrom beside_my_reward import FACTOR\n\ntorch.set_default_dtype(torch.float64)\n\n\n"
        "def reward(states, images):\n    torch.set_grad_enabled(False)\n    torch.set_default_dtype(torch.float64)\n"
        "    return FACTOR * images.mean((1, 2, 3))\n"
    )
    reward = load_extra_reward(str(path))
    assert torch.allclose(reward(STATES, IMAGES), 3 * IMAGES.float().mean((1, 2, 3)))
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("text", "fault"),
    [(None, "cannot read"), ("def f(:\n", "SyntaxError"), ("import nothing_of_that_name", "ModuleNotFoundError"),
     ("open('gone.txt')", "cannot run .FileNotFoundError"),
     ("rewards = 3", "no function `reward`"), ("raise SystemExit(0)", "SystemExit")],
)  # fmt: skip
def test_a_file_without_a_reward_is_refused(text, fault, tmp_path):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=fault):
        load_extra_reward(str(tmp_path / "mine.py"))


def test_an_unknown_name_is_refused_with_the_shipped_ones():
    with pytest.raises(UserError, match="resemble, jpeg, incompressible, smile"):
        load_extra_reward("resembles")


# The running mean and variance


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rewards_are_standardised_by_all_before(offset):
    random, normaliser, history = torch.Generator().manual_seed(0), RewardNormaliser(CPU), []
    for _ in range(90):
        history.append(offset + 3 * torch.randn(12, 2, generator=random))
        normaliser.update(history[-1])
    last, values = history[-1], torch.stack(history)
    assert torch.allclose(normaliser.standardise(last), (last - values.mean()) / values.std(), atol=0.05)


def test_older_rewards_are_forgotten():
    normaliser = RewardNormaliser(CPU)
    for value, count in ((0.0, 200), (5.0, 800)):
        for _ in range(count):
            normaliser.update(torch.tensor([value - 1, value + 1]))
    assert normaliser.standardise(torch.tensor([5.0, 6.0])).tolist() == pytest.approx([0, 1], abs=0.05)


@pytest.mark.parametrize("values", [[0.1] * 12, [1e15, -1e15, 0.0]])
def test_equal_and_huge_rewards_stay_finite(values):
    normaliser = RewardNormaliser(CPU)
    for _ in range(3):
        normaliser.update(torch.tensor(values))
        assert normaliser.standardise(torch.tensor(values)).isfinite().all()


def test_a_normaliser_goes_on_from_a_saved_state():
    normalisers = RewardNormaliser(CPU), RewardNormaliser(CPU)
    normalisers[0].update(torch.tensor([1.0, 4.0]))
    normalisers[1].load_state_dict(normalisers[0].state_dict())
    for normaliser in normalisers:
        normaliser.update(torch.tensor([2.0, 9.0]))
    assert torch.equal(*(normaliser.standardise(torch.arange(5.0)) for normaliser in normalisers))
