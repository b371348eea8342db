"""The tensors of the pretended GPU (pretended_gpu.py), and replacements of cuDNN, CUDA's LSTM cell and its checks."""

import torch
from torch import Tensor, nn

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class Pretended(Tensor):
    """A tensor on the pretended GPU; `host` has its numbers."""

    gpu = None  # the present PretendedGPU

    @staticmethod
    def __new__(cls, host: Tensor):
        """host: on the CPU; shared, not copied."""
        return Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=CUDA
        )

    def __init__(self, host: Tensor):
        self.host = host

    def __deepcopy__(self, memo: dict):
        if id(self) not in memo:
            new = Pretended(self.host.clone(memory_format=torch.preserve_format)).requires_grad_(self.requires_grad)
            if isinstance(self, nn.Parameter):
                new._is_param = True
            memo[id(self)] = new
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int):  # as torch.save writes CUDA tensors: their numbers
        return self.host.detach().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"Pretended({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Pretended.gpu.dispatch(func, args, kwargs or {})


def check_fused(args) -> None:
    """Raises RuntimeError unless CUDA's fused Adam takes these parameters, gradients, moments and step counters."""
    params, grads, averages, squares, _, counters = args[:6]
    for p, *others, counter in zip(params, grads, averages, squares, counters, strict=True):
        for one in (p, *others, counter):
            if not isinstance(one, Pretended):
                raise RuntimeError(f"fused Adam: a tensor of shape {tuple(one.shape)} lies on the CPU")
        for one in others:
            if (one.dtype, one.shape, strides(one)) != (p.dtype, p.shape, strides(p)):
                raise RuntimeError(
                    "params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout: "
                    f"{p.dtype} {tuple(p.shape)} {p.stride()}, {one.dtype} {tuple(one.shape)} {one.stride()}"
                )


def strides(tensor: Tensor) -> list[int]:
    """Its strides without those of sides of 1, which foreach ignores (ATen/native/ForeachUtils.h)."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


# Replacements of operations and methods


def module_to(module: nn.Module, *args, **kwargs) -> nn.Module:
    """nn.Module.to, by swapping parameters: the objects stay the same, as with `param.data =`."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return REAL_TO(module, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


REAL_TO = nn.Module.to


def lstm_cell(func, input_gates, hidden_gates, cx, input_bias, hidden_bias):
    """aten._thnn_fused_lstm_cell, which the CPU lacks: h, c, and the gates for the backward pass."""
    i, f, g, o = (input_gates + input_bias + hidden_gates + hidden_bias).chunk(4, dim=1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * cx + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], dim=1)


def lstm_cell_backward(func, h_gradient, c_gradient, cx, c, gates, has_bias):
    """aten._thnn_fused_lstm_cell_backward_impl: the gradients with respect to the gates' sums, cx and a bias."""
    i, f, g, o = gates.chunk(4, dim=1)
    h_gradient = torch.zeros_like(c) if h_gradient is None else h_gradient
    along = h_gradient * o * (1 - c.tanh().square()) + (0 if c_gradient is None else c_gradient)
    inner = [along * g * i * (1 - i), along * cx * f * (1 - f), along * i * (1 - g * g)]
    gradient = torch.cat([*inner, h_gradient * c.tanh() * o * (1 - o)], dim=1)
    return gradient, along * f, gradient.sum(dim=0)


def batch_norm(func, x, weight, bias, mean, variance, training, momentum, eps):
    """aten.cudnn_batch_norm."""
    return *aten.native_batch_norm.default(x, weight, bias, mean, variance, training, momentum, eps), torch.empty(0)


def batch_norm_backward(func, x, gradient, weight, mean, variance, save_mean, save_var, eps, reserve):
    """aten.cudnn_batch_norm_backward."""
    return aten.native_batch_norm_backward.default(
        gradient, x, weight, mean, variance, save_mean, save_var, True, eps, [True, True, True]
    )


EMULATED = {
    "_thnn_fused_lstm_cell": lstm_cell, "_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
    "cudnn_batch_norm": batch_norm, "cudnn_batch_norm_backward": batch_norm_backward,
}  # fmt: skip
