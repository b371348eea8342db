"""How much memory a program has had."""

import re
from pathlib import Path


def read_resident_peak() -> int | None:
    """The most bytes that this process has had in memory; None where the system is not Linux."""
    try:
        status = Path("/proc/self/status").read_text()  # resource.getrusage tells the parent's peak, if that was higher
    except OSError:
        return None
    line = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(line[1]) * 1024 if line else None
