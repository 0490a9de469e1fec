"""How much the caches of a device may hold: what need not come from memory in every call."""

from __future__ import annotations

from pathlib import Path

OF_ACCELERATORS = 256 << 20
"""More than any has today: 256 MB of Infinity Cache, https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html."""

UNKNOWN = 2 << 30
"""Where the system does not tell; more than the 1.1 GB of the largest processors today."""

_FACTORS = {"K": 2**10, "M": 2**20, "G": 2**30}


def cache_bytes(platform: str, root: str = "/sys/devices/system/cpu") -> int:
    """Return how many bytes the caches hold, or may hold where nothing says it.

    On CPUs the second and third levels of all cores together (a victim cache holds other
    lines than those below it), as Linux gives them.

    Args:
      platform: of the device, as JAX names it.
      root: where Linux describes the processors.
    """
    if platform != "cpu":
        return OF_ACCELERATORS
    found: dict[tuple[str, str], int] = {}
    for folder in Path(root).glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, shared, size = (
                (folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size")
            )
            if level in ("2", "3", "4"):
                found[level, shared] = int(size[:-1]) * _FACTORS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            return UNKNOWN
    return sum(found.values()) or UNKNOWN
