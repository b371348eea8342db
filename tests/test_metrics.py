"""Metrics: closed forms, and what each of them sees and does not see."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from magnet.faces import from_uint8, to_uint8
from magnet.metrics import blurred, descriptors, enlarged, laplacian_pyramid, sliced, sliced_wasserstein
from magnet.randomness import stream
from magnet.synthetic import draw_faces


@pytest.fixture(scope="module")
def faces():
    """Two disjoint sets of drawn faces (100, 3, 32, 32)."""
    return torch.from_numpy(draw_faces(200, 32, seed=0)[0]).split(100)


def score(a, b):
    return sliced_wasserstein(a, b, stream(0, "test"))


def blur(images):
    smooth = avg_pool2d(pad(from_uint8(images), (1, 1, 1, 1), mode="reflect"), 3, 1)
    return to_uint8(smooth)


def test_the_distance_of_two_sets_on_a_line_by_hand():
    a, b = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[6.0], [-1.0], [2.0]])
    # sorted 0 1 5 and -1 2 6: |1| + |1| + |1|, over 3; the direction's sign does not matter
    assert sliced(a, b, torch.tensor([[1.0]])) == sliced(a, b, torch.tensor([[-1.0]])) == pytest.approx(1.0)
    assert sliced(a, a.flip(0), torch.ones(1, 1)) == 0


def test_the_distance_of_shifted_gaussians_has_a_closed_form():
    """Along a unit u two sets that differ by a shift m are |u . m| apart; its mean over the sphere of d dimensions is
    |m| gamma(d/2) / (sqrt(pi) gamma((d+1)/2))."""
    d, random = 5, stream(0, "test")
    points, shift = torch.randn(3000, d, generator=random), torch.tensor([3.0, 0.0, -4.0, 0.0, 0.0])
    directions = torch.randn(d, 4000, generator=random)
    found = sliced(points, (points + shift)[torch.randperm(3000)], directions / directions.norm(dim=0))
    assert found == pytest.approx(5 * math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2)), rel=0.03)


def test_the_pyramid_holds_the_image(faces):
    images = from_uint8(torch.from_numpy(draw_faces(3, 64, seed=1)[0]))
    finest, middle, coarsest = laplacian_pyramid(images)
    assert [band.shape[-1] for band in (finest, middle, coarsest)] == [64, 32, 16]
    torch.testing.assert_close(finest + enlarged(middle + enlarged(coarsest)), images)


def test_a_band_holds_what_the_coarser_one_cannot():
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)  # smooth: no detail, but where the edges mirror it
    detail, coarse = laplacian_pyramid(ramp)
    assert detail[..., 4:-4].abs().max() < 1e-6 and coarse.std() > 0.5
    stripes = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 3, 32, 32)  # the finest there is
    detail, coarse = laplacian_pyramid(stripes)
    torch.testing.assert_close(detail, stripes)
    assert coarse.abs().max() < 1e-6


def test_the_filter_is_the_binomial_one():
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[..., 4, 4] = 256
    row = torch.tensor([0.0, 0, 1, 4, 6, 4, 1, 0, 0])
    torch.testing.assert_close(blurred(impulse)[0, 0], torch.outer(row, row))


def test_patches_are_normalised_by_channel_and_are_patches(faces):
    columns = torch.arange(16, dtype=torch.uint8).expand(8, 3, 16, 16) * torch.tensor([1, 2, 3])[:, None, None]
    found = descriptors(columns.to(torch.uint8), 0, stream(0, "test")).float()
    assert found.shape == (8 * 128, 147)
    by_channel = found.view(-1, 3, 7, 7)
    torch.testing.assert_close(by_channel.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(by_channel.std(dim=(0, 2, 3)), torch.ones(3), atol=2e-3, rtol=0)
    steps = by_channel.diff(dim=3)  # a column further to the right is one step brighter
    assert steps.std() < 0.02 * steps.mean() and by_channel.diff(dim=2).abs().max() == 0
    starts = by_channel[:, 0, 0, 0].unique()
    assert len(starts) == 10, "patches begin in all 16 - 7 + 1 columns"


def test_halves_of_one_distribution_are_near_and_spoiled_ones_far(faces):
    one, other = faces
    floor = score(one, other)
    assert floor.keys() == {"swd_32", "swd_16", "swd"}
    assert floor["swd"] == pytest.approx((floor["swd_32"] + floor["swd_16"]) / 2)
    assert score(one, one)["swd"] < floor["swd"]
    noise = 0.1 * torch.randn(other.shape, generator=stream(0, "noise"))
    for spoiled in (blur(other), to_uint8(from_uint8(other) + noise), other[:, [1, 2, 0]]):
        assert score(one, spoiled)["swd"] > 1.5 * floor["swd"]


def test_blur_shows_at_the_finest_level(faces):
    one, other = faces
    floor, found = score(one, other), score(one, blur(other))
    assert found["swd_32"] > 3 * floor["swd_32"]
    assert found["swd_16"] < 1.5 * floor["swd_16"]


def test_a_channel_stretched_alike_in_all_images_is_not_seen(faces):
    """As published; sliced_wasserstein's docstring warns of it."""
    one, other = faces
    assert score(one, other // 2 + 60)["swd"] == pytest.approx(score(one, other)["swd"], rel=0.1)


def test_the_same_seed_gives_the_same_score(faces):
    assert score(*faces) == score(*faces) != sliced_wasserstein(*faces, stream(1, "test"))


def test_images_of_one_colour_have_a_finite_distance(faces):
    assert math.isfinite(score(torch.full_like(faces[0], 7), faces[1])["swd"])


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),  # fewer
        torch.zeros(2, 3, 32, 32),  # floats
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),  # smaller
        torch.zeros(2, 1, 32, 32, dtype=torch.uint8),  # grey
    ],
)
def test_sets_that_cannot_be_compared(other):
    with pytest.raises(ValueError, match="uint8"):
        score(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), other)


@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (2, 3, 8, 8), (2, 3, 32, 64), (0, 3, 32, 32)])
def test_shapes_that_have_no_pyramid(shape):
    images = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match="16, 32, 64"):
        score(images, images)
