"""The memory of this process."""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path


def resident_mb() -> float:
    """Return the memory of this process now, in 1e6 bytes; 0 where the system does not tell."""
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """Return the most memory that this process has had, since ``reset_peak`` where that works."""
    if peak := _status_mb("VmHWM"):
        return peak
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def _status_mb(name: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def reset_peak() -> None:
    """Start ``peak_mb`` anew, where the system can."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
