"""Drawn faces: reproducible, every factor known, independent and visible."""

import numpy as np
import pytest

from magnet.data.synthetic import CHUNK, FACTORS, draw_faces, render_faces, sample_factors

# One plain face, on which every factor's effect can be seen.
PLAIN = {name: np.array([0.5], np.float32) if levels == 0 else np.array([0]) for name, levels in FACTORS.items()}


def test_shapes_types_and_ranges():
    images, factors = draw_faces(5, 32, seed=0)
    assert images.shape == (5, 3, 32, 32) and images.dtype == np.uint8
    assert draw_faces(0, 32, seed=0)[0].shape == (0, 3, 32, 32)
    assert len(factors) >= 8 and set(factors) == set(FACTORS)
    many = sample_factors(2000, seed=0)
    for name, levels in FACTORS.items():
        assert many[name].shape == (2000,)
        if levels:
            assert many[name].dtype == np.int64 and set(many[name]) == set(range(levels)), name
        else:
            assert many[name].dtype == np.float32
            assert 0 <= many[name].min() < 0.01 and 0.99 < many[name].max() <= 1, name


def test_a_face_depends_on_its_seed_and_not_on_how_many_are_drawn_with_it():
    count = CHUNK + 5
    whole, factors = draw_faces(count, 32, seed=1)
    parts = [draw_faces(size, 32, seed=1, start=start) for start, size in ((0, 3), (3, 1), (4, count - 4))]
    assert np.array_equal(whole, np.concatenate([images for images, _ in parts]))
    assert np.array_equal(factors["turn"], np.concatenate([part["turn"] for _, part in parts]))
    others, _ = draw_faces(4, 32, seed=2)
    assert all((image != other).any() for image, other in zip(whole, others, strict=False))


def test_factors_are_independent():
    factors = sample_factors(4000, seed=0)
    correlation = np.corrcoef(np.stack([factors[name] for name in FACTORS]))
    assert np.abs(correlation - np.eye(len(FACTORS))).max() < 0.07  # 4.4 standard errors


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", FACTORS)
def test_each_factor_alone_changes_the_picture(name, size):
    values = np.arange(FACTORS[name]) if FACTORS[name] else np.array([0.0, 0.25, 0.5, 0.75], np.float32)
    factors = {other: np.repeat(value, len(values)) for other, value in PLAIN.items()} | {name: values}
    images = render_faces(factors, size).astype(int)
    for i in range(len(values)):
        for j in range(i):
            difference = np.abs(images[i] - images[j]).max(axis=0)
            assert (difference > 8).sum() >= 3, f"{name} {values[i]} looks like {values[j]}"


def test_an_upright_face_is_symmetric_and_has_eyes_where_celeba_has_them():
    """Aligned CelebA: eyes at (69, 111) and (109, 111) of 178 x 218: (25, 33) and (39, 33) of the 64 x 64 crop."""
    image = render_faces(PLAIN | {"skin": np.array([0.0], np.float32)}, 64)[0].astype(int)
    face = image[:, 20:52, 16:48]
    assert np.abs(face - face[:, :, ::-1]).mean() < 2
    grey = image.mean(axis=0)
    for x in (25, 39):  # the pupil, over a bright cheek
        assert abs(grey[32:34, x - 6 : x + 7].mean(axis=0).argmin() - 6) <= 1
        assert grey[32:34, x].min() < 90 < grey[42:44, x].min()
