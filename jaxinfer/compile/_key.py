"""What native code depends on: versions, flags, device, topology, the processor's instructions.

Code that was compiled under one key is loaded under the same key only.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxinfer.core._compat import setting, x64_enabled

FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Environment variables that change what XLA compiles."""


def environment(devices: Any = None) -> dict[str, Any]:
    """Return the key of this process for code on some devices (default: the first one).

    Args:
      devices: those of the mesh, in its order.
    """
    chosen = list(devices) if devices is not None else jax.devices()[:1]
    first = chosen[0]
    return {
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "platform": first.platform,
        "platform_version": str(getattr(first.client, "platform_version", "")),
        "device_kind": first.device_kind,
        "devices": [device.id for device in chosen],
        "processes": sorted({device.process_index for device in chosen}),
        "flags": {name: os.environ[name] for name in FLAGS if os.environ.get(name)},
        "x64": x64_enabled(),
        "matmul_precision": str(setting("jax_default_matmul_precision")),
        "machine": platform.machine(),
        "instructions": _instructions(),
    }


def _instructions() -> str:
    """Return a digest of what the processor can do, where the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features")
    flags = next((line for line in lines if line.split("\t")[0].strip() in names), "")
    words = " ".join(sorted(flags.partition(":")[2].split()))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def differences(found: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return what differs between two keys, as lines for people.

    >>> differences({"jaxlib": "0.10.0", "x64": False}, {"jaxlib": "0.10.1", "x64": False})
    ['jaxlib: it was compiled with 0.10.0, here is 0.10.1']
    """
    names = sorted({*found, *here})
    return [
        f"{name}: it was compiled with {_short(found.get(name))}, here is {_short(here.get(name))}"
        for name in names
        if found.get(name) != here.get(name)
    ]


def _short(value: Any) -> str:
    return str(value if value not in (None, "", {}) else "none")[:120].replace("\n", " ")
