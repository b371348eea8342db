"""The five networks of MAGNET, in the manner of DCGAN (Radford et al. 2015, arXiv 1511.06434).

    G_a  GeneratorActor      state and memory -> action z         "which hidden state for the next picture"
    G    Generator           action z         -> image            "the picture that is put forward"
    G_c  Critic              state, G(z)      -> value Q(s, z)
    D_a  DiscriminatorActor  image            -> logit l          "the chance that it is real is sigmoid(l)"
    D_c  Critic              image, l, label  -> value Q(x, l)

Images are (B, 3, S, S) float in [-1, 1] with S = 32, 64 or 128. A network builds its layers and runs forward, no more.
The two actors begin with a stack of layers that turns an image into features (B, F).
All is float32; with bf16 the convolutions, and they alone, compute in bfloat16.
"""

import torch
from torch import nn

from magnet.distributed import size, whole

SMALLEST_MAP = 4  # pixels: the stacks of convolutions end, and the generator begins, at 4x4


def feature_maps(image_size: int, width: int) -> list[int]:
    """Number of maps after each halving, from S/2 down to 4x4: 64-128-256-512 at S = 64 and width 64."""
    halvings = (image_size // SMALLEST_MAP).bit_length() - 1
    return [min(width * 2**level, width * 8) for level in range(halvings)]


class Convolutions(nn.Sequential):
    """Layers that compute in bfloat16 if so told; float32 goes in and comes out, forward and backward."""

    def __init__(self, *layers: nn.Module, bf16: bool):
        super().__init__(*layers)
        self.bf16 = bf16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Sequential."""
        if not self.bf16:
            return super().forward(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().forward(x).float()


class Normalise(torch.autograd.Function):
    """Mean 0 and variance 1 of each channel over all processes' rows (Ioffe and Szegedy 2015, arXiv 1502.03167).

    PyTorch's SyncBatchNorm runs on GPUs alone, and cannot be differentiated twice, as R1 asks for. This can, because
    its backward pass is made of its outputs.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        """x (B, C, ...) float -> normalised; and, (C, ...) each, 1 / deviation, mean and variance."""
        ctx.dims = [0, *range(2, x.ndim)]
        mean = x.mean(ctx.dims, keepdim=True)
        centred = x - mean
        variance = centred.square().mean(ctx.dims, keepdim=True)
        means, variances = whole(torch.cat([mean, variance])[None]).unbind(1)  # (processes, C, ...) each
        own_mean, mean, variance = mean, means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
        scale = (variance + eps).rsqrt()
        normalised = (centred + (own_mean - mean)) * scale
        ctx.save_for_backward(normalised, scale)
        ctx.mark_non_differentiable(mean, variance)
        return normalised, scale, mean, variance

    @staticmethod
    def backward(ctx, slope: torch.Tensor, scale_slope: torch.Tensor, *_) -> tuple[torch.Tensor, None]:
        """The slope at x. scale_slope is other than 0 only when a backward pass is itself differentiated (R1)."""
        normalised, scale = ctx.saved_tensors
        sums = [one.sum(ctx.dims).view(scale.shape) for one in (slope, slope * normalised)]
        sums = whole(torch.stack([*sums, scale_slope])[None]).sum(dim=0)
        shift, along, scaled = sums / (size() * slope.numel() / slope.shape[1])
        return scale * (slope - shift - normalised * (along + scale * scaled)), None


class WholeBatchNorm:
    """What makes a BatchNorm of PyTorch's one whose statistics in training are of all processes' rows."""

    alone = False  # whether this process shows it rows that are no share of a batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C) or (B, C, H, W), shaped alike."""
        if self.alone or size() == 1 or not self.training:
            return super().forward(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        normalised, _, mean, variance = Normalise.apply(exact, self.eps)
        with torch.no_grad():
            count = size() * x.numel() / x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * (count / (count - 1)), self.momentum)
        if self.affine:
            normalised = torch.addcmul(self.bias.view(mean.shape), normalised, self.weight.view(mean.shape))
        return normalised.to(x.dtype)


class BatchNorm1d(WholeBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d over all processes' rows."""


class BatchNorm2d(WholeBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d over all processes' rows."""


def image_stack(image_size: int, width: int, bf16: bool = False, batch_norm: bool = True) -> tuple[Convolutions, int]:
    """Strided convolutions (B, 3, S, S) -> (B, F), and F, which is 16 x the last number of maps."""
    layers, channels = [], 3
    for level, maps in enumerate(feature_maps(image_size, width)):
        normalised = batch_norm and level > 0
        layers.append(nn.Conv2d(channels, maps, 4, stride=2, padding=1, bias=not normalised))
        if normalised:
            layers.append(BatchNorm2d(maps))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        channels = maps  # (B, maps, S / 2^(level + 1), S / 2^(level + 1))
    return Convolutions(*layers, nn.Flatten(), bf16=bf16), channels * SMALLEST_MAP**2


def point_stack(width: int) -> tuple[nn.Sequential, int]:
    """Linear layers, points (B, 2) -> (B, width), and width."""
    layers = [nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, width), nn.LeakyReLU(0.2)), width


def initialise(module: nn.Module) -> None:
    """DCGAN's start: convolutions N(0, 0.02), BatchNorm gains N(1, 0.02). Linear and LSTM layers keep PyTorch's own."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class GeneratorActor(nn.Module):
    """G_a, the generator's policy: what it sees and remembers -> its action, the hidden state z for the next picture.

    The LSTM's memory goes in and comes out as one tensor (B, 2, layers, hidden), its h and c; zero starts an episode.
    """

    def __init__(self, stack: nn.Module, features: int, nz: int, layers: int = 2, hidden: int = 128):
        super().__init__()
        self.stack = stack
        # BatchNorm brings what tells states apart to unit deviation, by which policy samples win (docs/results.md).
        self.embed = nn.Sequential(nn.Linear(features, nz), BatchNorm1d(nz))
        self.lstm = nn.LSTM(nz, hidden, layers)
        self.action = nn.Linear(hidden, nz)
        # No gain and no bias: each coordinate of z has mean 0 and variance 1 over the batch, as noise N(0, I) has.
        self.normalise = BatchNorm1d(nz, eps=1e-8, affine=False)  # eps: deviations start at about 0.01
        self.memory_shape = (2, layers, hidden)
        self.apply(initialise)

    def first_memory(self, batch: int) -> torch.Tensor:
        """The memory at the start of an episode: zeros (B, 2, layers, hidden)."""
        return self.action.weight.new_zeros(batch, *self.memory_shape)

    def forward(self, state: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """state (B, 3, S, S), memory (B, 2, layers, hidden) -> z (B, nz) and the next memory, shaped alike."""
        return self.act(state, memory)[:2]

    def act(self, state: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `forward`; and what the LSTM is shown of the state, (B, nz), which G_c sees as well."""
        h, c = memory.permute(1, 2, 0, 3).contiguous()  # each (layers, B, hidden)
        seen = self.embed(self.stack(state))
        out, (h, c) = self.lstm(seen.unsqueeze(0), (h, c))  # a sequence of one state
        z = self.normalise(self.action(out.squeeze(0)))
        return z, torch.stack([h, c]).permute(2, 0, 1, 3), seen


class Generator(nn.Module):
    """G, from the hidden state to the picture: transposed convolutions, nz -> 512x4x4 -> ... -> 3xSxS."""

    def __init__(self, image_size: int, width: int, nz: int, bf16: bool = False):
        super().__init__()
        maps = feature_maps(image_size, width)[::-1]
        layers = [nn.ConvTranspose2d(nz, maps[0], 4, stride=1, padding=0, bias=False)]  # (B, 8 width, 4, 4)
        for channels, wider in zip(maps[1:], maps[:-1], strict=True):  # each doubles the side
            layers += [BatchNorm2d(wider), nn.ReLU(inplace=True)]
            layers.append(nn.ConvTranspose2d(wider, channels, 4, stride=2, padding=1, bias=False))
        layers += [BatchNorm2d(maps[-1]), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(maps[-1], 3, 4, stride=2, padding=1), nn.Tanh()]  # (B, 3, S, S)
        self.layers = Convolutions(*layers, bf16=bf16)
        self.apply(initialise)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, nz), about N(0, I) -> images (B, 3, S, S) in [-1, 1]."""
        return self.layers(z[:, :, None, None])


class PointGenerator(nn.Module):
    """G of points in the plane: linear layers, nz -> width -> width -> width -> 2."""

    def __init__(self, width: int, nz: int):
        super().__init__()
        layers = [nn.Linear(nz, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, nz), about N(0, I) -> points (B, 2), without bounds."""
        return self.layers(z)


class DiscriminatorActor(nn.Module):
    """D_a, the discriminator's policy: an image -> the logit of the chance that it is real.

    With spectral_norm every layer has spectral norm 1 (Miyato et al. 2018, arXiv 1802.05957).
    """

    def __init__(self, stack: nn.Module, features: int, spectral_norm: bool = False, classes: int = 0):
        """classes: how many generators a classifier beside the logit tells apart; 0: there is none."""
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
        return self.discriminate(images)[1]

    def discriminate(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """images (B, 3, S, S) -> features (B, F), logits (B,), and the classifier's logits (B, classes) or None."""
        features = self.stack(images)
        return features, self.logit(features).squeeze(1), self.classifier(features) if self.classifier else None


class Critic(nn.Module):
    """Q(observation, action), of features that actors have of either: a critic has no convolutions of its own.

    G_c: what G_a sees of the state (B, nz), and D_a's features of G(z). D_c: D_a's features of an image, and the pair
    (label * logit, label). Both are embedded at one width, or D's one logit is lost among the features. SiLU,
    because an actor follows dQ/da.
    """

    def __init__(self, features: int, actions: int, hidden: int = 128):
        super().__init__()
        self.embed = nn.Linear(features, hidden)
        self.embed_action = nn.Sequential(nn.Linear(actions, hidden), nn.SiLU())
        self.head = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """features (B, F), actions (B, A) -> values (B,)."""
        return self.head(torch.cat([self.embed(features), self.embed_action(actions)], dim=1)).squeeze(1)
