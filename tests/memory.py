"""The peak memory of this process since its own start: `ru_maxrss` begins with its parent's at the fork."""

from pathlib import Path


def peak_kib() -> int:
    """The high-water mark of resident memory, in KiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
