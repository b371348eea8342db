"""The five networks: shapes and ranges at every image size, how they start, and what the LSTM remembers."""

import pytest
import torch
from torch import nn

from magnet.networks import Critic, DiscriminatorActor, Generator, GeneratorActor, feature_maps, image_stack

B, WIDTH, NZ = 4, 4, 6
SIZES = pytest.mark.parametrize("size", [32, 64, 128])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pictures(size=32, count=B):
    return torch.rand(count, 3, size, size) * 2 - 1


def networks(size, width, bf16=False):
    """The five, by the names of the table that opens magnet/networks.py."""
    return {
        "G_a": GeneratorActor(*image_stack(size, width, bf16), NZ),
        "G": Generator(size, width, NZ, bf16),
        "G_c": Critic(*image_stack(size, width, bf16), NZ),
        "D_a": DiscriminatorActor(*image_stack(size, width, bf16)),
        "D_c": Critic(*image_stack(size, width, bf16), 1),
    }


@SIZES
def test_shapes_dtypes_and_ranges(size):
    five = networks(size, WIDTH)
    state, memory = pictures(size), five["G_a"].first_memory(B)
    z, next_memory = five["G_a"](state, memory)
    images, logits = five["G"](z), five["D_a"](state)
    values = five["G_c"](state, z), five["D_c"](state, logits[:, None])

    assert z.shape == (B, NZ)
    assert memory.shape == next_memory.shape == (B, 2, 2, 128)
    assert images.shape == (B, 3, size, size) and images.abs().max() <= 1
    assert logits.shape == (B,)
    assert all(value.shape == (B,) for value in values)
    assert {t.dtype for t in (z, next_memory, images, logits, *values)} == {torch.float32}


@pytest.mark.parametrize("bf16", [False, True])
def test_with_spectral_norm_no_layer_of_d_a_stretches_its_input(bf16):
    actor = DiscriminatorActor(*image_stack(32, WIDTH, bf16, batch_norm=False), spectral_norm=True)
    for _ in range(60):  # one power iteration a pass
        actor(pictures())
    actor.eval()
    layers = [layer for layer in actor.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in actor.modules())


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
    for network in (five["G_a"], five["G_c"], five["D_a"], five["D_c"]):
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
    z, memory = actor(pictures(count=16), actor.first_memory(16))
    for _ in range(2):  # whatever the memory
        torch.testing.assert_close(z.mean(dim=0), torch.zeros(NZ), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.var(dim=0, unbiased=False), torch.ones(NZ), atol=1e-2, rtol=0)
        z, memory = actor(pictures(count=16), memory)


def test_an_episode_starts_with_memory_of_zeros():
    memory = GeneratorActor(*image_stack(32, WIDTH), NZ).first_memory(3)
    assert memory.shape == (3, 2, 2, 128) and not memory.any()


def test_the_action_depends_on_the_memory_and_the_memory_on_the_state():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, zeros = pictures(), actor.first_memory(B)
    z, memory = actor(state, zeros)
    assert torch.equal(actor(state, zeros)[0], z)  # it remembers nothing on its own
    assert not torch.allclose(actor(state, memory)[0], z)
    assert not torch.allclose(actor(pictures(), zeros)[1], memory)


def test_h_and_c_of_both_layers_are_remembered():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, zeros = pictures(), actor.first_memory(B)
    z, memory = actor(state, zeros)
    for part in range(2):
        for layer in range(2):
            assert memory[:, part, layer].abs().max() > 0
            one = zeros.clone()
            one[:, part, layer] = 1
            assert not torch.allclose(actor(state, one)[0], z)


def test_each_row_has_its_own_memory():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, zeros = pictures(), actor.first_memory(B)
    other = zeros.clone()
    other[1] = 1
    differs = (actor(state, other)[0] - actor(state, zeros)[0]).abs().amax(dim=1) > 1e-6
    assert differs.tolist() == [False, True, False, False]


def test_memory_goes_through_torchs_own_lstm():
    actor = GeneratorActor(*image_stack(32, WIDTH), NZ).eval()
    state, memory = pictures(), torch.randn(B, 2, 2, 128)
    seen = actor.embed(actor.stack(state))[None]
    _, (h, c) = actor.lstm(seen, (memory[:, 0].transpose(0, 1).contiguous(), memory[:, 1].transpose(0, 1).contiguous()))
    returned = actor(state, memory)[1]
    torch.testing.assert_close(returned[:, 0].transpose(0, 1), h)
    torch.testing.assert_close(returned[:, 1].transpose(0, 1), c)


@pytest.mark.parametrize("actions", [NZ, 1])
def test_values_of_one_encode_are_those_of_forward(actions):
    critic = Critic(*image_stack(32, WIDTH), actions)
    images, first, second = pictures(), torch.randn(B, actions), torch.randn(B, actions)
    encoded = critic.encode(images)
    for action in (first, second):
        torch.testing.assert_close(critic.value(encoded, action), critic(images, action))
    assert not torch.allclose(critic.value(encoded, first), critic.value(encoded, second), atol=1e-6)


def test_a_critics_value_depends_on_the_image():
    critic, action = Critic(*image_stack(32, WIDTH), 1).eval(), torch.zeros(B, 1)
    assert not torch.allclose(critic(pictures(), action), critic(pictures(), action), atol=1e-7)


def test_what_follows_the_convolutions_is_float32():
    """Outputs equal those that float32 gives for the features of bfloat16 convolutions, to the last bit."""
    five = {name: network.eval() for name, network in networks(32, WIDTH, bf16=True).items()}
    state, memory, z = pictures(), torch.randn(B, 2, 2, 128), torch.randn(B, NZ)
    action, next_memory = five["G_a"](state, memory)
    logits = five["D_a"](state)
    encoded = five["G_c"].encode(state)
    value = five["G_c"].value(encoded, z)
    assert five["G"](z).dtype == torch.float32
    features = {name: five[name].stack(state) for name in ("G_a", "D_a", "G_c")}
    assert all(torch.equal(f, f.bfloat16().float()) for f in features.values()), "computed in bfloat16"

    h, c = memory.permute(1, 2, 0, 3).contiguous()
    out, (h, c) = five["G_a"].lstm(five["G_a"].embed(features["G_a"])[None], (h, c))
    assert torch.equal(action, five["G_a"].normalise(five["G_a"].action(out[0])))
    assert torch.equal(next_memory, torch.stack([h, c]).permute(2, 0, 1, 3))
    assert torch.equal(logits, five["D_a"].logit(features["D_a"]).squeeze(1))
    assert torch.equal(encoded, five["G_c"].embed(features["G_c"]))
    assert torch.equal(value, five["G_c"].value(encoded, z))
