"""How much memory a program has had."""

import re
from pathlib import Path

import torch


def resident_peak() -> int | None:
    """The most bytes that this process has had in memory; None where the system is not Linux."""
    try:
        status = Path("/proc/self/status").read_text()  # resource.getrusage tells the parent's peak, if that was higher
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


def peak(device: torch.device) -> int | None:
    """The most bytes that this process has had: of a GPU what PyTorch took of it, else of the computer's memory.

    None where the system does not tell.
    """
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else resident_peak()
