"""The five networks: shapes and ranges at every image size, how they start, and what the LSTM remembers."""

import dataclasses
import functools

import pytest
import torch
from conftest import new_trainer, run, same, saved, small_config
from torch import nn

from magnet.agents import networks as modules
from magnet.agents.layers import BatchNorm2d, Convolutions, WideLinear
from magnet.agents.networks import Critic, DiscriminatorActor, Generator, GeneratorActor, feature_maps, image_stack
from magnet.config import Config

B, WIDTH, NZ = 4, 4, 6
HALF = [torch.bfloat16, torch.float16]
SIZES = pytest.mark.parametrize("size", [32, 64, 128])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pictures(size=32, count=B):
    return torch.rand(count, 3, size, size) * 2 - 1


def networks(size, width, dtype=torch.float32):
    """The five of a game of two generators and two discriminators, by the names in networks.py."""
    stack, features = image_stack(size, width, dtype)
    return {
        "G_a": GeneratorActor(*image_stack(size, width, dtype), NZ),
        "G": Generator(size, width, NZ, dtype),
        "G_c": Critic(NZ, 2),
        "D_a": DiscriminatorActor(stack, features, classes=2),
        "D_c": Critic(features, 2),
    }


@SIZES
def test_shapes_dtypes_and_ranges(size):
    five = networks(size, WIDTH)
    state, recurrent = pictures(size), five["G_a"].initial_recurrent_state(B)
    z, next_memory, seen = five["G_a"].act(state, recurrent)
    images = five["G"](z)
    features, logits, classes = five["D_a"].discriminate(images)
    values = (
        five["G_c"](seen, torch.stack([logits, logits], dim=1)),
        five["D_c"](features, torch.stack([logits, torch.ones(B)], dim=1)),
    )

    assert z.shape == seen.shape == (B, NZ)
    assert recurrent.shape == next_memory.shape == (B, 2, 2, 128)
    assert images.shape == (B, 3, size, size) and images.abs().max() <= 1
    assert features.shape == (B, small_config(image_size=size, width=WIDTH).features)
    assert logits.shape == (B,) and classes.shape == (B, 2)
    assert all(value.shape == (B,) for value in values)
    assert {t.dtype for t in (z, next_memory, seen, images, features, logits, classes, *values)} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_with_spectral_norm_no_layer_of_d_a_stretches_its_input(dtype):
    actor = DiscriminatorActor(*image_stack(32, WIDTH, dtype, batch_norm=False), spectral_norm=True)
    for _ in range(60):  # one power iteration a pass
        actor(pictures())
    actor.eval()
    layers = [layer for layer in actor.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in actor.modules())


@pytest.mark.parametrize("classes", [0, 3])
def test_spectral_norm_reaches_nested_layers_and_the_classifier(classes):
    inner = nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=8), nn.LeakyReLU(0.2), nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    )
    actor = DiscriminatorActor(nn.Sequential(inner, nn.LeakyReLU(0.2)), 8, spectral_norm=True, classes=classes)
    with torch.no_grad():
        for layer in actor.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight = torch.randn_like(layer.weight)
    for _ in range(200):
        actor.discriminate(pictures())
    actor.eval()
    layers = [layer for layer in actor.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 3 + bool(classes)
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.01)


@SIZES
def test_images_stay_in_range_whatever_the_weights(size):
    generator = Generator(size, WIDTH, NZ)
    for p in generator.parameters():
        p.data.mul_(1000)
    assert generator(torch.randn(B, NZ)).abs().max() == 1


@pytest.mark.parametrize(
    ("size", "maps"),
    [(32, [64, 128, 256]), (64, [64, 128, 256, 512]), (128, [64, 128, 256, 512, 512])],
)
def test_feature_maps_double_with_each_halving_up_to_eight_widths(size, maps):
    assert feature_maps(size, 64) == maps
    with torch.device("meta"):
        five = networks(size, 64)
    for network in (five["G_a"], five["D_a"]):
        assert [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)] == maps
    rising = [layer.in_channels for layer in five["G"].modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert rising == [NZ, *maps[::-1]]


def test_batchnorm_follows_each_convolution_but_the_first():
    kinds = [type(layer).__name__ for layer in DiscriminatorActor(*image_stack(64, WIDTH)).stack]
    assert kinds == [
        "Conv2d", "LeakyReLU", *3 * ["Conv2d", "BatchNorm2d", "LeakyReLU"], "Flatten",
    ]  # fmt: skip


@SIZES
def test_weights_start_as_dcgans(size):
    for network in networks(size, 32).values():
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                count = layer.weight.numel()
                assert abs(layer.weight.mean()) < 5 * 0.02 / count**0.5
                assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * count) ** 0.5)
            if isinstance(layer, nn.BatchNorm2d):
                count = layer.weight.numel()
                assert layer.weight.mean().item() == pytest.approx(1, abs=5 * 0.02 / count**0.5)
                assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * count) ** 0.5)
                assert not layer.bias.any()


def test_actions_have_zero_mean_and_unit_variance_over_the_batch():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ)
    z, recurrent = actor(pictures(count=16), actor.initial_recurrent_state(16))
    for _ in range(2):  # whatever the memory
        torch.testing.assert_close(z.mean(dim=0), torch.zeros(NZ), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.var(dim=0, unbiased=False), torch.ones(NZ), atol=1e-2, rtol=0)
        z, recurrent = actor(pictures(count=16), recurrent)


def test_an_episode_starts_with_memory_of_zeros():
    recurrent = GeneratorActor(*image_stack(32, WIDTH), NZ).initial_recurrent_state(3)
    assert recurrent.shape == (3, 2, 2, 128) and not recurrent.any()


def test_the_action_depends_on_the_memory_and_the_memory_on_the_state():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, zeros = pictures(), actor.initial_recurrent_state(B)
    z, recurrent = actor(state, zeros)
    assert torch.equal(actor(state, zeros)[0], z)  # it remembers nothing on its own
    assert not torch.allclose(actor(state, recurrent)[0], z)
    assert not torch.allclose(actor(pictures(), zeros)[1], recurrent)


def test_h_and_c_of_both_layers_are_remembered():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, zeros = pictures(), actor.initial_recurrent_state(B)
    z, recurrent = actor(state, zeros)
    for part in range(2):
        for layer in range(2):
            assert recurrent[:, part, layer].abs().max() > 0
            one = zeros.clone()
            one[:, part, layer] = 1
            assert not torch.allclose(actor(state, one)[0], z)


def test_each_row_has_its_own_memory():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, zeros = pictures(), actor.initial_recurrent_state(B)
    other = zeros.clone()
    other[1] = 1
    differs = (actor(state, other)[0] - actor(state, zeros)[0]).abs().amax(dim=1) > 1e-6
    assert differs.tolist() == [False, True, False, False]


def test_memory_is_that_of_torchs_lstm():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, recurrent = pictures(), torch.randn(B, 2, 2, 128)
    lstm = nn.LSTM(NZ, 128, 2)
    lstm.load_state_dict({f"{n}_l{i}": p for i, cell in enumerate(actor.lstm) for n, p in cell.named_parameters()})
    seen = actor.embed(actor.stack(state))[None]
    out, (h, c) = lstm(
        seen, (recurrent[:, 0].transpose(0, 1).contiguous(), recurrent[:, 1].transpose(0, 1).contiguous())
    )
    action, returned = actor(state, recurrent)
    torch.testing.assert_close(action, actor.normalise(actor.action(out[0])))
    torch.testing.assert_close(returned[:, 0].transpose(0, 1), h)
    torch.testing.assert_close(returned[:, 1].transpose(0, 1), c)


def test_what_g_a_sees_is_what_its_lstm_is_shown():
    actor, shown = GeneratorActor(*image_stack(32, WIDTH), NZ), []
    actor.lstm[0].register_forward_hook(lambda _, inputs, __: shown.append(inputs[0]))
    *others, seen = actor.act(pictures(), actor.initial_recurrent_state(B))
    assert torch.equal(seen, shown[0]) and len(others) == 2


def test_a_wide_linear_layer_is_a_linear_one_with_its_gradients():
    wide, plain = WideLinear(7, 3), nn.Linear(7, 3)
    plain.load_state_dict(wide.state_dict())
    found = []
    for layer in (wide, plain):
        x = torch.linspace(-1, 1, 28).view(4, 7).requires_grad_()
        out = layer(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append((out, gradient, x.grad, layer.weight.grad, layer.bias.grad))
    torch.testing.assert_close(found[0], found[1])


def test_d_as_logits_and_classes_are_linear_in_the_features_that_critics_see():
    actor, images = DiscriminatorActor(*image_stack(32, WIDTH), classes=3), pictures()
    features, logits, classes = actor.discriminate(images)
    assert torch.equal(features, actor.stack(images)) and torch.equal(logits, actor(images))
    for head, outputs in ((actor.logit, logits[:, None]), (actor.classifier, classes)):
        torch.testing.assert_close(outputs, features @ head.weight.T + head.bias)
    assert DiscriminatorActor(*image_stack(32, WIDTH)).discriminate(images)[2] is None


@pytest.mark.parametrize(("features", "actions"), [(NZ, 256), (256, 2)])
def test_a_critics_value_by_hand(features, actions):
    critic = Critic(features, actions)
    assert {type(layer) for layer in critic.modules()} == {Critic, nn.Sequential, nn.Linear, WideLinear, nn.SiLU}
    w = dict(critic.named_parameters())
    seen, action = torch.randn(B, features), torch.randn(B, actions)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(x):
        return x / (1 + (-x).exp())

    both = torch.cat([linear("embed", seen), silu(linear("embed_action.0", action))], dim=1)
    assert both.shape == (B, 2 * 128), "either is embedded at one width"
    expected = linear("head.4", silu(linear("head.2", silu(linear("head.0", both)))))
    torch.testing.assert_close(critic(seen, action), expected[:, 0])


@pytest.mark.parametrize("dtype", HALF)
def test_what_follows_the_convolutions_is_float32(dtype):
    """Outputs equal those that float32 gives for the features of the convolutions, to the last bit."""
    five = {name: network.eval() for name, network in networks(32, WIDTH, dtype).items()}
    state, recurrent, z = pictures(), torch.randn(B, 2, 2, 128), torch.randn(B, NZ)
    action, next_memory, seen = five["G_a"].act(state, recurrent)
    discriminated, logits, classes = five["D_a"].discriminate(state)
    assert five["G"](z).dtype == torch.float32
    features = {name: five[name].stack(state) for name in ("G_a", "D_a")}
    assert all(torch.equal(f, f.to(dtype).float()) for f in features.values()), "computed in it"

    assert torch.equal(seen, five["G_a"].embed(features["G_a"]))
    first, second = five["G_a"].lstm
    one = first(seen, (recurrent[:, 0, 0], recurrent[:, 1, 0]))
    two = second(one[0], (recurrent[:, 0, 1], recurrent[:, 1, 1]))
    assert torch.equal(action, five["G_a"].normalise(five["G_a"].action(two[0])))
    assert torch.equal(next_memory, torch.stack([torch.stack(one, dim=1), torch.stack(two, dim=1)], dim=2))
    assert torch.equal(discriminated, features["D_a"])
    assert torch.equal(logits, five["D_a"].logit(discriminated).squeeze(1))
    assert torch.equal(classes, five["D_a"].classifier(discriminated))


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
