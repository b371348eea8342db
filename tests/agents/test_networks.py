"""The five networks: shapes and ranges at every image size, norms, precision, and the LSTM.

tests/programs/test_one_file.py compares first weights and all outputs with a second implementation, bit for bit.
"""

import dataclasses
import functools

import pytest
import torch
from conftest import new_trainer, pictures, run, same, saved, small_config
from torch import nn
from torch.nn import functional as F

from magnet.agents import networks as modules
from magnet.agents.layers import (
    BatchNorm1d,
    BatchNorm2d,
    Convolutions,
    ResizeConvolution,
    WideLinear,
    feature_maps,
    image_stack,
)
from magnet.agents.networks import DiscriminatorActor
from magnet.config import Config

B, NZ = 8, 6
SIZES = pytest.mark.parametrize("size", [32, 64, 128])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def networks(**changes):
    """The five of a game of two generators and two discriminators, by the names in networks.py."""
    config = small_config(**{"generators": 2, "discriminators": 2, "specialise": 1.0} | changes)
    generator, discriminator = modules.generator_networks(config), modules.discriminator_networks(config)
    names = {"G_a": "actor", "G": "generator", "G_c": "critic"}
    five = {name: generator[key]() for name, key in names.items()}
    return five | {"D_a": discriminator["actor"](), "D_c": discriminator["critic"]()}


def compute_outputs(five, size=32):
    """z, recurrent state, embedding, images, features, logits, classes, and the two critics' values."""
    state = torch.rand(B, 3, size, size) * 2 - 1
    z, recurrent, embedding = five["G_a"].act(state, five["G_a"].initial_recurrent_state(B))
    images = five["G"](z)
    features, logits, classes = five["D_a"].discriminate(images)
    q_g = five["G_c"](embedding, torch.stack([logits, logits], dim=1))
    q_d = five["D_c"](features, torch.stack([logits, torch.ones(B)], dim=1))
    return z, recurrent, embedding, images, features, logits, classes, q_g, q_d


@SIZES
def test_shapes_and_ranges(size):
    five = networks(image_size=size)
    outputs, features = compute_outputs(five, size), small_config(image_size=size).features
    shapes = (NZ,), (2, 2, 128), (NZ,), (3, size, size), (features,), (), (2,), (), ()
    assert [tuple(one.shape) for one in outputs] == [(B, *shape) for shape in shapes]
    assert outputs[3].abs().max() <= 1
    assert not five["G_a"].initial_recurrent_state(B).any()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_only_the_convolutions_compute_in_half_precision(precision, dtype):
    five, dtypes = networks(precision=precision), set()

    def note(layer, inputs, out):
        dtypes.add((type(layer), (out[0] if isinstance(out, tuple) else out).dtype))

    kinds = nn.Conv2d, nn.ConvTranspose2d, ResizeConvolution, nn.Linear, WideLinear, nn.LSTMCell, BatchNorm1d
    for network in five.values():
        for layer in network.modules():
            if isinstance(layer, kinds):
                layer.register_forward_hook(note)
    assert {tensor.dtype for tensor in compute_outputs(five)} == {torch.float32}
    assert dtypes == {(kind, dtype) for kind in kinds[:3]} | {(kind, torch.float32) for kind in kinds[3:]}


@pytest.mark.parametrize(
    ("size", "maps"), [(32, [64, 128, 256]), (64, [64, 128, 256, 512]), (128, [64, 128, 256, 512, 512])]
)
def test_feature_maps_double_with_each_halving_up_to_eight_widths(size, maps):
    assert feature_maps(size, 64) == maps
    with torch.device("meta"):
        five = networks(image_size=size, width=64)
    channels = {
        name: [layer.out_channels for layer in five[name].modules() if isinstance(layer, nn.Conv2d)]
        for name in ("G_a", "D_a")
    }
    assert channels == {"G_a": [count // 2 for count in maps], "D_a": maps}
    rising = [layer.in_channels for layer in five["G"].modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert rising == [NZ, *maps[::-1]]


@pytest.mark.parametrize("bias", [False, True])
def test_a_resize_convolution_is_upsampling_and_a_convolution_and_learns_as_they_do(bias):
    layer, x = ResizeConvolution(5, 3, bias), torch.randn(B, 5, 4, 4, requires_grad=True)
    weight = layer.weight.flip(2, 3).transpose(0, 1)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
    inputs, cotangent = [x, *layer.parameters()], torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, inputs, cotangent, retain_graph=True) for out in (layer(x), expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_published_generator_has_free_kernels_of_4x4():
    for architecture, side in (("resize", 3), ("dcgan", 4)):
        layers = [one for one in networks(architecture=architecture)["G"].modules() if hasattr(one, "stride")]
        assert [one.weight.shape[-1] for one in layers] == [4, side, side, side]


def nested_actor():
    """A D_a of layers within layers, whose weights are large."""
    inner = nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=8), nn.LeakyReLU(0.2), nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    )
    actor = DiscriminatorActor(nn.Sequential(inner, nn.LeakyReLU(0.2)), 8, spectral_norm=True, classes=3)
    with torch.no_grad():
        for layer in actor.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight = torch.randn_like(layer.weight)
    return actor


@pytest.mark.parametrize(
    ("new_actor", "count"),
    [
        (lambda: networks(spectral_norm=True)["D_a"], 5),
        (lambda: networks(spectral_norm=True, precision="bf16", specialise=0.0)["D_a"], 4),
        (nested_actor, 4),
    ],
    ids=["fp32", "bf16", "nested"],
)
def test_with_spectral_norm_every_layer_of_d_a_has_norm_1(new_actor, count):
    actor, images = new_actor(), pictures(0)
    for _ in range(150):  # one power iteration a pass
        actor.discriminate(images)
    actor.eval()
    layers = [layer for layer in actor.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == count and not any(isinstance(layer, nn.BatchNorm2d) for layer in actor.modules())
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_actions_have_zero_mean_and_unit_variance_over_the_batch():
    actor = networks()["G_a"]
    z, recurrent = actor(pictures(0, 16), actor.initial_recurrent_state(16))
    for seed in (1, 2):  # whatever the recurrent state
        torch.testing.assert_close(z.mean(dim=0), torch.zeros(NZ), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.var(dim=0, unbiased=False), torch.ones(NZ), atol=1e-2, rtol=0)
        z, recurrent = actor(pictures(seed, 16), recurrent)


def test_g_as_recurrent_state_is_that_of_torchs_lstm():
    """So the state of each row has its own h and c for both layers, and all of them affect the action."""
    actor, state, recurrent = networks()["G_a"].eval(), pictures(0), torch.randn(B, 2, 2, 128)
    lstm = nn.LSTM(NZ, 128, 2)
    lstm.load_state_dict({f"{n}_l{i}": p for i, cell in enumerate(actor.lstm) for n, p in cell.named_parameters()})
    action, next_recurrent, embedding = actor.act(state, recurrent)
    assert torch.equal(embedding, actor.embed(actor.stack(state)))
    out, (h, c) = lstm(embedding[None], tuple(one.transpose(0, 1).contiguous() for one in recurrent.unbind(dim=1)))
    torch.testing.assert_close(action, actor.normalise(actor.action(out[0])))
    torch.testing.assert_close(next_recurrent.unbind(dim=1), (h.transpose(0, 1), c.transpose(0, 1)))
    assert (action - actor(state, torch.zeros_like(recurrent))[0]).abs().max() > 0.1


def test_d_as_logits_and_classes_are_linear_in_the_features_that_critics_take():
    actor, images = networks(generators=3)["D_a"], pictures(0)
    features, logits, classes = actor.discriminate(images)
    assert torch.equal(features, actor.stack(images)) and torch.equal(logits, actor(images))
    for head, outputs in ((actor.logit, logits[:, None]), (actor.classifier, classes)):
        torch.testing.assert_close(outputs, features @ head.weight.T + head.bias)
    assert networks(specialise=0.0)["D_a"].discriminate(images).classes is None


class Bilinear(nn.Module):
    """A G of another architecture, as a user would add it: bilinear upsampling and 3x3 convolutions."""

    def __init__(self, image_size, width, nz, dtype):
        super().__init__()
        self.first = nn.Linear(nz, width * 16)
        layers = [nn.Unflatten(1, (width, 4, 4))]
        for _ in range((image_size // 4).bit_length() - 1):
            layers += [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(width, width, 3, padding=1)]
            layers += [BatchNorm2d(width), nn.ReLU()]
        self.layers = Convolutions(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh(), dtype=dtype)

    def forward(self, z):
        return self.layers(self.first(z))


def test_a_second_architecture_is_a_class_and_an_entry(monkeypatch):
    monkeypatch.setitem(modules.GENERATORS, "other", Bilinear)
    monkeypatch.setitem(modules.DISCRIMINATORS, "other", functools.partial(image_stack, smooth=True))
    whole, restored = (new_trainer(architecture="other", replay_fraction=0.25, r1=0.1, seed=seed) for seed in (0, 7))
    assert isinstance(whole.generators[0].networks["generator"], Bilinear)
    run(whole, 2)
    restored.load_state_dict(saved(whole))
    assert run(restored, 2) == run(whole, 2) and same(saved(restored), saved(whole))


def test_the_architectures_are_those_of_the_command_line():
    (choices,) = [one.metadata["choices"] for one in dataclasses.fields(Config) if one.name == "architecture"]
    assert tuple(modules.GENERATORS) == tuple(modules.DISCRIMINATORS) == choices
