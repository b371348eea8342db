"""The device, precision and number of threads of a run."""

import dataclasses
import re

from magnet.support.errors import UserError


def settle(config):
    """Replaces `auto` in `config`, a Config, by what this machine has. Raises UserError if it lacks the device."""
    import torch  # here: --help and a mistyped option answer at once

    device, precision = config.device, config.precision
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device is {config.device!r}, but must be auto, cpu, cuda or cuda:N.")
    if device != "cpu" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {config.device}: PyTorch sees {torch.cuda.device_count()} GPUs; try `--device cpu`.")
    if precision == "auto":  # bfloat16 where it is fast
        if device == "cpu":  # older releases of PyTorch lack get_capabilities
            is_fast = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
        else:
            is_fast = torch.cuda.get_device_capability(device) >= (8, 0)  # before Ampere it is emulated
        precision = "bf16" if is_fast and not config.points else "fp32"  # points need no convolutions
    threads = str(torch.get_num_threads()) if config.threads == "auto" else config.threads
    return dataclasses.replace(config, device=device, precision=precision, threads=threads)
