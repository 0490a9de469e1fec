"""Memory that an executable needs, and what there is: errors that say both, and what would help."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import JaxinferError

ADVICE = (
    "what would help: a smaller largest bucket, a mesh over more devices "
    '(sharding="fsdp" or "tensor"), narrower weights (ji.cast, ji.quantize), '
    "donated inputs, or a device with nothing else on it"
)


class DeviceMemoryError(JaxinferError, MemoryError):
    """An executable needs more memory than a device has."""


def available(device: Any) -> int | None:
    """Return the bytes that are free on a device; None where the platform does not say."""
    stats = None
    with contextlib.suppress(Exception):  # not every plugin implements it
        stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    if device.platform == "cpu":
        with contextlib.suppress(OSError, ValueError, AttributeError):
            text = Path("/proc/meminfo").read_text()
            found = re.search(r"MemAvailable:\s+(\d+) kB", text)
            return int(found[1]) * 1024 if found else None
    return None


def require(what: str, needed: int, devices: Any, resident: int = 0) -> None:
    """Raise DeviceMemoryError if an executable cannot run.

    Args:
      what: the executable, for the message.
      needed: bytes for one device: arguments, temporaries and results.
      devices: those it runs on. Devices that are the host's processor share its memory.
      resident: bytes of ``needed`` that are on the device already (parameters).
    """
    local = [device for device in devices if device.process_index == _process()]
    if not local:
        return
    sharing = len(local) if local[0].platform == "cpu" else 1
    there = available(local[0])
    wanted = (needed - resident) * sharing
    if there is not None and wanted > there:
        raise DeviceMemoryError(
            f"{what}: out of memory: it needs {in_words(wanted)} more on {local[0].device_kind} "
            f"({in_words(needed)} for each of {len(devices)} device(s)), "
            f"{in_words(there)} are free; {ADVICE}"
        )


@contextlib.contextmanager
def explained(what: str, needed: int | None, device: Any) -> Iterator[None]:
    """Turn XLA's own report of exhausted memory into one that says what would help."""
    try:
        yield
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).strip().splitlines()[0][:300]
        need = "" if needed is None else f"it needs {in_words(needed)} for each device, "
        there = available(device)
        free = "" if there is None else f"{in_words(there)} are free; "
        raise DeviceMemoryError(f"{what}: out of memory: {need}{free}{first}; {ADVICE}") from error


def in_words(count: int) -> str:
    """Return bytes as people write them.

    >>> in_words(512), in_words(3 << 30)
    ('512 B', '3.00 GiB')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return f"{count} B"


def _process() -> int:
    import jax

    return jax.process_index()
