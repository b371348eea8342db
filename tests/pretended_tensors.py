"""The tensors of the pretended GPU (pretended_gpu.py), and what stands in there for cuDNN and for CUDA's own checks."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class Pretended(Tensor):
    """A tensor on the pretended GPU; `host` has its numbers."""

    gpu = None  # the PretendedGPU that is present

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


def kernels(name: str, args) -> int:
    """About how many kernels CUDA launches for an operation."""
    if name == "convolution_backward":
        return sum(bool(x) for x in args[-1])
    if name in ("native_batch_norm", "cudnn_batch_norm", "native_batch_norm_backward", "cudnn_batch_norm_backward"):
        return 2
    if name == "_cudnn_rnn":
        return 8
    if name == "_cudnn_rnn_backward":
        return 16
    if name == "_foreach_norm":
        return 2
    if name == "_fused_adam_":
        return -(-len(args[0]) // 36)
    if name.startswith("_foreach"):
        return -(-len(args[0]) // 48)
    return 1


def check_fused(args) -> None:
    """What CUDA's fused Adam asks of parameters, gradients, moments and step counters. Raises RuntimeError."""
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
    """Its strides, but for sides of 1, at which foreach does not look (ATen/native/ForeachUtils.h)."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


# What stands in for operations and methods


def module_to(module: nn.Module, *args, **kwargs) -> nn.Module:
    """nn.Module.to, by swapping parameters: the objects stay the same, as by `param.data =`."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return REAL_TO(module, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


REAL_TO = nn.Module.to


def flatten_parameters(rnn: nn.RNNBase) -> None:
    """RNNBase.flatten_parameters: the weights lie in one block."""
    weights = rnn._flat_weights
    if all(isinstance(w, Pretended) for w in weights):
        block = torch.cat([w.host.flatten() for w in weights]).split([w.numel() for w in weights])
        for w, part in zip(weights, block, strict=True):
            w.host = part.view(w.shape)


def chosen_lstm(x, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first):
    """torch._VF.lstm: cuDNN's where CUDA would choose it (the choice itself asks the driver)."""
    words = (x, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first)
    if not isinstance(x, Pretended) or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return REAL_LSTM(*words)
    return aten._cudnn_rnn.default(
        x, weights, 4 if has_biases else 2, None, *state, 2, state[0].shape[2], 0, layers, batch_first, dropout, train,
        bidirectional, [], None,
    )[:3]  # fmt: skip


REAL_LSTM = torch._VF.lstm


def lstm(weights, weight_stride0, x, h, c, layers, batch_first, dropout, train, bidirectional):
    """An LSTM on the CPU: output, h and c."""
    has_biases = weight_stride0 == 4
    return REAL_LSTM(x, (h, c), weights, has_biases, layers, dropout, train, bidirectional, batch_first)


def cudnn_rnn(
    func, x, weights, weight_stride0, weight_buf, h, c, mode, hidden, proj, layers, batch_first, dropout, train,
    bidirectional, batch_sizes, dropout_state,
):  # fmt: skip
    """aten._cudnn_rnn."""
    if len({w.untyped_storage()._cdata for w in weights}) > 1:
        warnings.warn("RNN module weights are not part of single contiguous chunk of memory.", stacklevel=2)
    for one in (x, h, c):
        if not one.is_contiguous():
            raise RuntimeError("rnn: hx is not contiguous")
    out, h, c = lstm(weights, weight_stride0, x, h, c, layers, batch_first, dropout, train, bidirectional)
    return out, h, c, torch.empty(0, dtype=torch.uint8), torch.empty(0)


def cudnn_rnn_backward(
    func, x, weights, weight_stride0, weight_buf, h, c, out, gradient, h_gradient, c_gradient, mode, hidden, proj,
    layers, batch_first, dropout, train, bidirectional, batch_sizes, dropout_state, reserve, mask,
):  # fmt: skip
    """aten._cudnn_rnn_backward."""
    if not train:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")

    def gradients() -> tuple[Tensor, ...]:
        inputs = [one.detach().requires_grad_() for one in (x, h, c, *weights)]
        outs = lstm(inputs[3:], weight_stride0, *inputs[:3], layers, batch_first, dropout, train, bidirectional)
        above = zip(outs, (gradient, h_gradient, c_gradient), strict=True)
        return torch.autograd.grad(outs, inputs, [torch.zeros_like(o) if s is None else s for o, s in above])

    with ThreadPoolExecutor(1) as elsewhere:  # a thread that has neither modes nor autograd's present state
        found = elsewhere.submit(gradients).result()
    return found[0], found[1], found[2], list(found[3:])


def batch_norm(func, x, weight, bias, mean, variance, training, momentum, eps):
    """aten.cudnn_batch_norm."""
    return *aten.native_batch_norm.default(x, weight, bias, mean, variance, training, momentum, eps), torch.empty(0)


def batch_norm_backward(func, x, gradient, weight, mean, variance, save_mean, save_var, eps, reserve):
    """aten.cudnn_batch_norm_backward."""
    return aten.native_batch_norm_backward.default(
        gradient, x, weight, mean, variance, save_mean, save_var, True, eps, [True, True, True]
    )


EMULATED = {
    "_cudnn_rnn": cudnn_rnn, "_cudnn_rnn_backward": cudnn_rnn_backward, "cudnn_batch_norm": batch_norm,
    "cudnn_batch_norm_backward": batch_norm_backward,
}  # fmt: skip
