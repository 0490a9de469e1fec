"""What is launched, and the variables by which its processes find each other."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxinfer.core.errors import InputError
from jaxinfer.sharding._cluster import ADDRESS, COUNT, INDEX
from jaxinfer.sharding.distributed import TIMEOUTS

_LATER = 10  # seconds after --apart until JAX would end the processes, less clearly


class Settings(NamedTuple):
    """How to launch.

    Attributes:
      processes: how many.
      devices: per process.
      platform: ``cpu``, or ``cuda``, whose devices are divided by CUDA_VISIBLE_DEVICES.
      log_dir: folder for ``process-0.log``, ...; None: no files.
      plain: print process 0's stdout as it is, and all other output on stderr.
      timeout: seconds for the whole run; None: no end.
      apart: seconds that the first process to end, with code 0, may be ahead of the last.
      grace: seconds between SIGTERM and SIGKILL.
    """

    processes: int
    devices: int = 1
    platform: str = "cpu"
    log_dir: Path | None = None
    plain: bool = False
    timeout: float | None = None
    apart: float = 300.0
    grace: float = 5.0


def free_port() -> int:
    """Return a port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(
    settings: Settings, index: int, port: int, base: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of one process.

    Raises:
      InputError: fewer CUDA devices are visible than are asked for.
    """
    address = f"127.0.0.1:{port}"
    made = dict(base)
    made |= {
        ADDRESS: address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # else JAX listens on every interface
        COUNT: str(settings.processes),
        INDEX: str(index),
        "JAX_PLATFORMS": settings.platform,
        "PYTHONUNBUFFERED": "1",
    }
    made.setdefault("JAX_ENABLE_PREEMPTION_SERVICE", "false")  # it would ignore SIGTERM
    made.setdefault(TIMEOUTS["initialization_timeout"], "60")
    made.setdefault(TIMEOUTS["shutdown_timeout_seconds"], str(int(settings.apart) + _LATER))
    if settings.platform == "cpu":
        made |= {
            "JAX_NUM_CPU_DEVICES": str(settings.devices),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        }
        flags = made.get("XLA_FLAGS", "").split()
        kept = [f for f in flags if not f.startswith("--xla_force_host_platform_device_count")]
        if flags != kept:  # JAX takes one of the two
            made["XLA_FLAGS"] = " ".join(kept)
    else:
        made["CUDA_VISIBLE_DEVICES"] = ",".join(_cuda_devices(settings, index, base))
    if any("_proxy" in name.lower() for name in base):  # gRPC would go through it
        for name in ("no_proxy", "NO_PROXY"):
            made[name] = ",".join(filter(None, (base.get(name), "127.0.0.1,localhost")))
        made["JAX_CHECK_PROXY_ENVS"] = "false"
    return made


def _cuda_devices(settings: Settings, index: int, base: Mapping[str, str]) -> list[str]:
    count = settings.processes * settings.devices
    text = base.get("CUDA_VISIBLE_DEVICES")
    visible = (
        [str(i) for i in range(count)] if text is None else list(filter(None, text.split(",")))
    )
    if len(visible) < count:
        raise InputError(
            f"launch: {settings.processes} processes of {settings.devices} devices need {count}, "
            f"CUDA_VISIBLE_DEVICES={text} has {len(visible)}"
        )
    return visible[index * settings.devices : (index + 1) * settings.devices]
