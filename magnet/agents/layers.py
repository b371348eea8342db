"""The networks' layers: convolutions in half or full precision, BatchNorm over all processes, stacks.

A stack turns an image (B, 3, S, S), or a point (B, 2), into features (B, F).
"""

import torch
from torch import nn
from torch.nn import functional as F

from magnet.support.distributed import all_gather_rows, world_size

SMALLEST_MAP = 4  # pixels: the stacks of convolutions end, and the generator begins, at 4x4


def feature_maps(image_size: int, width: int) -> list[int]:
    """The number of maps after each halving, from S/2 down to 4x4: 64, 128, 256, 512 at S = 64 and width 64."""
    halvings = (image_size // SMALLEST_MAP).bit_length() - 1
    return [min(width * 2**level, width * 8) for level in range(halvings)]


class Convolutions(nn.Sequential):
    """Layers that compute in `dtype`. Inputs and outputs are float32, and so are their gradients."""

    def __init__(self, *layers: nn.Module, dtype: torch.dtype):
        """dtype: bfloat16 or float16, by autocast; float32: without autocast, in the dtype of weights and inputs."""
        super().__init__(*layers)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Sequential."""
        if self.dtype == torch.float32:
            return super().forward(x)
        with torch.autocast(x.device.type, self.dtype):
            return super().forward(x).float()


def new_transposed_convolution(inputs: int, outputs: int, bias: bool) -> nn.ConvTranspose2d:
    """DCGAN's transposed convolution of 4x4, which doubles the side: (B, inputs, S, S) -> (B, outputs, 2 S, 2 S)."""
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)


class ResizeConvolution(nn.ConvTranspose2d):
    """A transposed convolution that equals nearest-neighbour upsampling and a 3x3 convolution (Odena et al. 2016).

    Its kernel of 4x4 is the sum of the 3x3 weights at four shifts. Free 4x4 weights leave a checkerboard in the images.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool):
        """From (B, inputs, S, S) to (B, outputs, 2 S, 2 S)."""
        super().__init__(inputs, outputs, 3, stride=2, padding=1, bias=bias)
        # On the meta device, where parameters are only counted, torch.eye would import PyTorch's compiler.
        one_hot_kernels = torch.eye(9, device="cpu").view(9, 1, 3, 3)
        sums = F.avg_pool2d(one_hot_kernels, 2, stride=1, padding=1, divisor_override=1).flatten(1)
        self.register_buffer("shift_matrix", sums.t().contiguous(), persistent=False)  # (16, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, inputs, S, S) -> (B, outputs, 2 S, 2 S)."""
        # A product is 6 times as fast on a CPU as a sum of padded weights, and this one keeps channels_last.
        kernel = self.shift_matrix @ self.weight.permute(0, 2, 3, 1).flatten(1, 2)  # (inputs, 16, outputs)
        kernel = kernel.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        return F.conv_transpose2d(x, kernel, self.bias, self.stride, self.padding)


class Normalise(torch.autograd.Function):
    """Mean 0 and variance 1 of each channel over all processes' rows (Ioffe and Szegedy 2015, arXiv 1502.03167).

    PyTorch's SyncBatchNorm runs on GPUs alone and cannot be differentiated twice, which R1 needs. This can, because its
    backward pass is computed from its outputs.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        """x (B, C, ...) float -> x normalised; and 1 / deviation, mean and variance, (C, ...) each."""
        ctx.dims = [0, *range(2, x.ndim)]
        mean = x.mean(ctx.dims, keepdim=True)
        centred = x - mean
        variance = centred.square().mean(ctx.dims, keepdim=True)
        means, variances = all_gather_rows(torch.cat([mean, variance])[None]).unbind(1)  # (processes, C, ...) each
        own_mean, mean, variance = mean, means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
        scale = (variance + eps).rsqrt()
        normalised = (centred + (own_mean - mean)) * scale
        ctx.save_for_backward(normalised, scale)
        ctx.mark_non_differentiable(mean, variance)
        return normalised, scale, mean, variance

    @staticmethod
    def backward(ctx, gradient: torch.Tensor, scale_gradient: torch.Tensor, *_) -> tuple[torch.Tensor, None]:
        """The gradient in x. scale_gradient is not 0 only where a backward pass is itself differentiated (R1)."""
        normalised, scale = ctx.saved_tensors
        sums = [one.sum(ctx.dims).view(scale.shape) for one in (gradient, gradient * normalised)]
        sums = all_gather_rows(torch.stack([*sums, scale_gradient])[None]).sum(dim=0)
        shift, along, scaled = sums / (world_size() * gradient.numel() / gradient.shape[1])
        return scale * (gradient - shift - normalised * (along + scale * scaled)), None


class WideLinear(nn.Linear):
    """nn.Linear for 2,048 inputs and 16 or 32 rows, where PyTorch's takes 2 to 3 times as long on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in) -> (B, out), as (W x^T + b)^T."""
        return torch.addmm(self.bias[:, None], self.weight, x.t()).t()


class SyncedBatchNorm:
    """Makes PyTorch's BatchNorm use the rows of all processes for its statistics in training."""

    alone = False  # whether its rows are this process's own, and not a part of a batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C) or (B, C, H, W) -> the same shape."""
        if self.momentum is None:
            return super().forward(x)  # a plain average needs the count of batches
        if self.alone or world_size() == 1 or not self.training:
            # R1's second derivative has 1 / deviation cubed, which would overflow in float16.
            exact = x.float() if x.dtype == torch.float16 else x
            statistics = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(exact, *statistics, self.training, self.momentum, self.eps).to(x.dtype)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        normalised, _, mean, variance = Normalise.apply(exact, self.eps)
        with torch.no_grad():
            count = world_size() * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * (count / (count - 1)), self.momentum)
        if self.affine:
            normalised = torch.addcmul(self.bias.view(mean.shape), normalised, self.weight.view(mean.shape))
        return normalised.to(x.dtype)


class BatchNorm1d(SyncedBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d over all processes' rows."""


class BatchNorm2d(SyncedBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d over all processes' rows."""


def image_stack(
    image_size: int, width: int, dtype: torch.dtype = torch.float32, batch_norm: bool = True, channels: int = 3,
    smooth: bool = False,
) -> tuple[Convolutions, int]:  # fmt: skip
    """Strided convolutions (B, channels, S, S) -> (B, F), and F, which is 16 x the last number of maps.

    smooth: SiLU instead of LeakyReLU, for critics, because actors follow their gradient.
    """
    layers = []
    for level, maps in enumerate(feature_maps(image_size, width)):
        normalised = batch_norm and level > 0
        layers.append(nn.Conv2d(channels, maps, 4, stride=2, padding=1, bias=not normalised))
        if normalised:
            layers.append(BatchNorm2d(maps))
        layers.append(nn.SiLU() if smooth else nn.LeakyReLU(0.2, inplace=True))
        channels = maps  # (B, maps, S / 2^(level + 1), S / 2^(level + 1))
    return Convolutions(*layers, nn.Flatten(), dtype=dtype), channels * SMALLEST_MAP**2


def point_stack(width: int) -> tuple[nn.Sequential, int]:
    """Linear layers, points (B, 2) -> (B, width), and width."""
    layers = [nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, width), nn.LeakyReLU(0.2)), width
