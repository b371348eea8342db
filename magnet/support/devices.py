"""Which device a run computes on, in which precision and with how many threads, where its config leaves it open."""

import dataclasses
import re

from magnet.support.errors import UserError


def settle(config):
    """`config`, a Config, with `auto` replaced by what this machine has. Raises UserError if it lacks the device."""
    import torch  # here: --help and a mistyped option are immediate

    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device is {config.device!r}, but must be auto, cpu, cuda or cuda:N.")
    if name != "cpu" and (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {config.device}: PyTorch sees {torch.cuda.device_count()} GPUs; try `--device cpu`.")
    precision = config.precision
    if precision == "auto":
        if config.points:
            fast = False  # there are no convolutions
        elif name == "cpu":  # older releases of PyTorch cannot tell
            fast = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
        else:
            fast = torch.cuda.get_device_capability(name) >= (8, 0)  # before Ampere bfloat16 is emulated
        precision = "bf16" if fast else "fp32"
    threads = str(torch.get_num_threads()) if config.threads == "auto" else config.threads
    return dataclasses.replace(config, device=name, precision=precision, threads=threads)
