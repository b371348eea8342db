"""The networks of MAGNET, in the manner of DCGAN (Radford et al. 2015, arXiv 1511.06434).

    G_a  GeneratorActor      state, recurrent state -> action z, the latent vector of the next image
    G    Generator           action z               -> image
    G_c  Critic              state, logit of G(z)   -> value Q(s, l)
    D_a  DiscriminatorActor  image                  -> logit l; sigmoid(l) is the probability that the image is real
    D_c  Critic              image, l, label        -> value Q(x, l)
    Q_r  RewardCritic        state, G(z)            -> value Q_r(s, G(z)), only with an extra reward

Images are (B, 3, S, S) float in [-1, 1] with S = 32, 64 or 128. A network builds its layers and runs forward, no more.
The two actors begin with a stack of layers (layers.py) that turns an image into features (B, F). Everything is float32;
only the convolutions compute in the dtype of `convolution_dtype`.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn

from magnet.agents.batch import Discrimination
from magnet.agents.layers import (
    BatchNorm1d,
    BatchNorm2d,
    Convolutions,
    ResizeConvolution,
    WideLinear,
    feature_maps,
    image_stack,
    new_transposed_convolution,
    point_stack,
)


def initialise(module: nn.Module) -> None:
    """DCGAN's first weights: convolutions N(0, 0.02), BatchNorm gains N(1, 0.02). Other layers keep PyTorch's."""
    if any(p.is_meta for p in module.parameters(recurse=False)):
        return  # its parameters are only counted, and filling them would import PyTorch's compiler
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class GeneratorActor(nn.Module):
    """G_a, the generator's policy: state and recurrent state -> action, the latent vector z of the next image.

    The recurrent state of the LSTM is one tensor (B, 2, layers, hidden), h and c: an input and an output.
    """

    def __init__(self, stack: nn.Module, features: int, nz: int, layers: int = 2, hidden: int = 128):
        super().__init__()
        self.stack = stack
        self.embed = nn.Linear(features, nz)
        self.lstm = nn.ModuleList(nn.LSTMCell(hidden if layer else nz, hidden) for layer in range(layers))
        self.action = nn.Linear(hidden, nz)
        # Without gain and bias each coordinate of z has mean 0 and variance 1 over the batch, as noise N(0, I) has.
        # Before it, the deviation starts at about 0.003 on images and at 2e-5 on points, so eps is small.
        self.normalise = BatchNorm1d(nz, eps=1e-12, affine=False)
        self.recurrent_state_shape = (2, layers, hidden)
        self.apply(initialise)

    def initial_recurrent_state(self, batch: int) -> torch.Tensor:
        """The recurrent state at the start of an episode: zeros (B, 2, layers, hidden)."""
        return self.action.weight.new_zeros(batch, *self.recurrent_state_shape)

    def forward(self, state: torch.Tensor, recurrent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """state (B, 3, S, S), recurrent (B, 2, layers, hidden) -> z (B, nz), the next recurrent state, shaped alike."""
        return self.act(state, recurrent)[:2]

    def act(self, state: torch.Tensor, recurrent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `forward`, and also the embedding of the state (B, nz), which is the input of the LSTM and of G_c."""
        h = embedding = self.embed(self.stack(state))
        memory = []
        for layer, cell in enumerate(self.lstm):
            h, c = cell(h, recurrent[:, :, layer].unbind(dim=1))  # each (B, hidden)
            memory += [h, c]
        memory = torch.stack(memory, dim=1).unflatten(1, (-1, 2)).transpose(1, 2)
        return self.normalise(self.action(h)), memory, embedding


class Generator(nn.Module):
    """G, from the latent vector to the image: transposed convolutions, nz -> 512x4x4 -> ... -> 3xSxS."""

    def __init__(
        self, image_size: int, width: int, nz: int, dtype: torch.dtype, *, new_layer: Callable[..., nn.Module]
    ):
        """new_layer: (inputs, outputs, bias) -> a layer that doubles the side."""
        super().__init__()
        maps = feature_maps(image_size, width)[::-1]
        layers = [nn.ConvTranspose2d(nz, maps[0], 4, stride=1, padding=0, bias=False)]  # (B, 8 width, 4, 4)
        for channels, wider in zip(maps[1:], maps[:-1], strict=True):  # each doubles the side
            layers += [BatchNorm2d(wider), nn.ReLU(inplace=True)]
            layers.append(new_layer(wider, channels, bias=False))
        layers += [BatchNorm2d(maps[-1]), nn.ReLU(inplace=True)]
        layers += [new_layer(maps[-1], 3, bias=True), nn.Tanh()]  # (B, 3, S, S)
        self.layers = Convolutions(*layers, dtype=dtype)
        self.apply(initialise)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, nz), about N(0, I) -> images (B, 3, S, S) in [-1, 1]."""
        return self.layers(z[:, :, None, None])


class PointGenerator(nn.Module):
    """G for points in the plane: linear layers, nz -> width -> width -> width -> 2."""

    def __init__(self, width: int, nz: int):
        super().__init__()
        layers = [nn.Linear(nz, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, nz), about N(0, I) -> points (B, 2), without bounds."""
        return self.layers(z)


class DiscriminatorActor(nn.Module):
    """D_a, the discriminator's policy: an image -> the logit of the probability that it is real.

    With spectral_norm every layer has spectral norm 1 (Miyato et al. 2018, arXiv 1802.05957).
    """

    def __init__(self, stack: nn.Module, features: int, spectral_norm: bool = False, classes: int = 0):
        """classes: the number of generators that a classifier distinguishes; 0: there is no classifier."""
        super().__init__()
        self.stack = stack
        self.logit = nn.Linear(features, 1)
        self.classifier = nn.Linear(features, classes) if classes else None
        self.apply(initialise)
        if spectral_norm:
            for layer in list(self.modules()):
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.utils.parametrizations.spectral_norm(layer)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, S, S) in [-1, 1] -> logits (B,); above 0 means real."""
        return self.discriminate(images).logits

    def discriminate(self, images: torch.Tensor) -> Discrimination:
        """images (B, 3, S, S) in [-1, 1] -> features, logits and, where there is a classifier, its logits."""
        features = self.stack(images)
        classes = self.classifier(features) if self.classifier else None
        return Discrimination(features, self.logit(features).squeeze(1), classes)


class Critic(nn.Module):
    """Q(observation, action). It has no convolutions: its observation is features that an actor has computed.

    G_c takes G_a's embedding of the state, and D_a's logit of G(z). D_c takes D_a's features of an image, and the pair
    (label * logit, label). Both inputs are embedded at one width, so that the action weighs as much as the features.
    SiLU is smooth, because an actor follows dQ/da.
    """

    def __init__(self, observation: int, action: int, hidden: int = 128):
        """observation, action: the number of features of each."""
        super().__init__()
        self.embed = WideLinear(observation, hidden)
        self.embed_action = nn.Sequential(WideLinear(action, hidden), nn.SiLU())
        self.head = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """observation (B, O), action (B, A) -> values (B,)."""
        return self.head(torch.cat([self.embed(observation), self.embed_action(action)], dim=1)).squeeze(1)


class RewardCritic(nn.Module):
    """Q_r(state, image): the value of an extra reward, learned from samples of it.

    It has convolutions of its own on both images, as six channels, because D_a's features say little about the relation
    of image and state (docs/extra-rewards.md). It has no BatchNorm, which would mix the rows.
    """

    def __init__(self, stack: nn.Module, features: int, hidden: int = 128):
        """stack: from six channels to features."""
        super().__init__()
        self.stack = stack
        self.head = nn.Sequential(WideLinear(features, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, state: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """state and image (B, 3, S, S) in [-1, 1] -> values (B,), in standard deviations of the reward."""
        return self.head(self.stack(torch.cat([state, image], dim=1))).squeeze(1)


# A new architecture needs an entry of one name in both tables, and the name among the choices of Config.architecture.
# If only G or only D_a is new, repeat an existing entry in the other table. `dcgan` is the published one.
#
# GENERATORS: (image_size, width, nz, dtype) -> nn.Module, z (B, nz) -> images (B, 3, S, S) in [-1, 1].
# DISCRIMINATORS: (image_size, width, dtype, batch_norm) -> an nn.Module, images -> features (B, F), and F, which must
# be Config.features. D_a's logit and D_c stand on these features. G_a has the same stack with half of the width.
# Both compute in `dtype`, but take and return float32, as layers.Convolutions does. They use layers.BatchNorm2d, whose
# statistics include the rows of all processes. Checkpoints need no change: they hold the networks' state dicts.
GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "resize": functools.partial(Generator, new_layer=ResizeConvolution),
    "dcgan": functools.partial(Generator, new_layer=new_transposed_convolution),
}
DISCRIMINATORS: dict[str, Callable[..., tuple[nn.Module, int]]] = {"resize": image_stack, "dcgan": image_stack}


def convolution_dtype(config) -> torch.dtype:
    """The dtype of the convolutions; float32 for `auto`, until the config is settled."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)


def encoder(config, width: int, batch_norm: bool = True) -> tuple[nn.Module, int]:
    """The first layers of an actor, from an image or a point to features (B, F), and F."""
    if config.points:
        return point_stack(width)
    return DISCRIMINATORS[config.architecture](config.image_size, width, convolution_dtype(config), batch_norm)


def generator_networks(config) -> dict[str, Callable[[], nn.Module]]:
    """Functions that make G_a, G, G_c (by --critics) and Q_r (with an extra reward); in a plain GAN only G."""
    if config.points:
        networks = {"generator": lambda: PointGenerator(config.width, config.nz)}
    else:
        dtype = convolution_dtype(config)
        new_generator = GENERATORS[config.architecture]
        networks = {"generator": lambda: new_generator(config.image_size, config.width, config.nz, dtype)}
    if config.algorithm == "gan":
        return networks
    networks["actor"] = lambda: GeneratorActor(*encoder(config, config.width // 2), config.nz)
    if config.critics in ("both", "generator"):
        networks["critic"] = lambda: Critic(config.nz, config.discriminators)
    if config.extra_reward:
        # It is float32, since it is so small that half precision saves less than its conversions cost.
        stack = functools.partial(image_stack, batch_norm=False, channels=6, smooth=True)
        networks["reward_critic"] = lambda: RewardCritic(*stack(config.image_size, config.width // 2))
    return networks


def discriminator_networks(config) -> dict[str, Callable[[], nn.Module]]:
    """Functions that make D_a and D_c (by --critics); in a plain GAN only D_a."""

    def actor() -> nn.Module:
        # Spectral normalisation replaces BatchNorm, whose gains would undo it.
        stack, features = encoder(config, config.width, batch_norm=not config.spectral_norm)
        return DiscriminatorActor(stack, features, config.spectral_norm, config.generators if config.specialise else 0)

    if config.algorithm == "gan" or config.critics in ("generator", "none"):
        return {"actor": actor}
    return {"actor": actor, "critic": lambda: Critic(config.features, 2)}
