"""Memory of this process and of the machine."""

import sys
from contextlib import suppress
from pathlib import Path

import psutil


def reset_peak_memory() -> None:
    """Reset the value that :func:`peak_memory` returns. Works on Linux; elsewhere the peak is that of the whole process."""
    with suppress(OSError):  # not Linux, or not permitted
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest resident size of this process, in bytes: since the last reset on Linux, since its start elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_memory() -> int:
    """Main memory of the machine, in bytes."""
    return int(psutil.virtual_memory().total)


def available_memory() -> int:
    """Main memory that programs can still take without swapping, in bytes."""
    return int(psutil.virtual_memory().available)
