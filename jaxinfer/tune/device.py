"""What the device can do, measured in seconds: products by dtype, memory, the cost of a call.

Every program is compiled first, then all are called in turn until the time is up, and the
fastest call of each counts: a neighbour that disturbs one round does not disturb all. Rates are
of the default device, of one process; on a busy machine they are too low, so ``load`` is kept.

    matmul        [m, k] x [k, n]: float32 (at the highest precision), bfloat16, float16,
                  int8 (summed in int32), float8_e4m3fn; off CPUs also float32 as XLA likes it
    convolution   3 x 3, NHWC, one image: float32, bfloat16, int8
    matvec        one row: float32, bfloat16, int8 decoded before the product
    levels        [m, k] x [k, n] with quantized weights, as a quantized model computes it
    bandwidth     the fastest of a copy, a sum and a matrix-vector product beyond the caches
    openvino      matmul and convolution by OpenVINO, where it is installed: float32, int8

What it does not measure: collectives, other devices of the process, several calls at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib.version

from jaxinfer.tune._device_cache import cache_bytes
from jaxinfer.tune._device_measure import Bench

Rates = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
    """What was measured of a device.

    Attributes:
      platform, kind: of the default device, as JAX names them.
      cores: of the host.
      rates: FLOP/s by kind of product (see the module), then dtype or level, then shape.
      bandwidth: bytes per second to and from memory; 0 if it could not be measured.
      cache_bytes: how much the caches may hold, at most.
      dispatch_us: microseconds of a call that computes next to nothing (median).
      unsupported: what was left out, ``"matmul float16"``, and why.
      load: the host's load average when it began; None where the system does not tell.
      seconds, compile_s: spent on calls, and on compiling.
      versions: of jax and jaxlib.
    """

    platform: str
    kind: str
    cores: int
    rates: Rates
    bandwidth: float
    cache_bytes: int
    dispatch_us: float
    unsupported: Mapping[str, str] = dataclasses.field(default_factory=dict)
    load: float | None = None
    seconds: float = 0.0
    compile_s: float = 0.0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def matmul(self) -> dict[str, float]:
        """FLOP/s of the matrix product by dtype, at the shape where it is fastest."""
        return self._best("matmul")

    @property
    def convolution(self) -> dict[str, float]:
        """FLOP/s of the convolution by dtype, at the shape where it is fastest."""
        return self._best("convolution")

    @property
    def openvino(self) -> dict[str, float]:
        """FLOP/s of OpenVINO's products by dtype; empty if it is not installed."""
        return self._best("openvino")

    def _best(self, kind: str) -> dict[str, float]:
        return {name: max(shapes.values()) for name, shapes in self.rates.get(kind, {}).items()}

    def peak(self, dtype: str) -> float | None:
        """Return the highest FLOP/s that any product in a dtype reached; None: not measured.

        Off CPUs int8 and float8 count as at least twice bfloat16, which is what tensor cores
        have: XLA may compute a lone product otherwise than one in a model.
        """
        found = [self._best(kind).get(dtype, 0.0) for kind in ("matmul", "convolution")]
        if self.platform != "cpu" and dtype in ("int8", "float8_e4m3fn") and max(found):
            found.append(2 * self.matmul.get("bfloat16", 0.0))
        return max(found) or None

    def describe(self) -> list[str]:
        """Return lines for people."""
        lines = [f"{self.kind} ({self.platform}), {self.cores} cores"]
        for kind in ("matmul", "convolution", "matvec", "levels", "openvino"):
            each = ", ".join(f"{name} {rate / 1e9:.4g}" for name, rate in self._best(kind).items())
            if each:
                lines.append(f"{kind}, GFLOP/s: {each}")
        lines.append(
            f"memory {self.bandwidth / 1e9:.3g} GB/s, caches {self.cache_bytes / 2**20:.0f} MiB, "
            f"a call {self.dispatch_us:.1f} us"
        )
        lines += [f"left out: {name}: {why}" for name, why in self.unsupported.items()]
        if self.load is not None and self.load > self.cores / 2:
            lines.append(
                f"the machine was busy (load {self.load:.1f} on {self.cores} cores): "
                "rates may be too low, and bounds too high"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceProfile:
        """Rebuild a profile.

        Raises:
          TypeError: fields that are none, or missing.
        """
        return cls(**data)


def profile(seconds: float = 2.0) -> DeviceProfile:
    """Measure the default device.

    Args:
      seconds: for calls. Compiling, about thirty small programs, comes on top.

    Returns:
      A DeviceProfile. What fails, or is twenty times slower than float32, is in ``unsupported``.
      Memory: about 0.5 GB on CPUs, 5 GB on others.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    start = time.perf_counter()
    bench = Bench()
    device = bench.device
    accelerator = device.platform != "cpu"
    bench.prepare(accelerator)
    if not accelerator:
        bench.openvino()
    done = time.perf_counter()
    bench.run(seconds)
    rates = bench.rates()
    return DeviceProfile(
        platform=device.platform,
        kind=device.device_kind,
        cores=os.cpu_count() or 1,
        rates=rates,
        bandwidth=bench.bandwidth(),
        cache_bytes=cache_bytes(device.platform),
        dispatch_us=bench.dispatch() * 1e6,
        unsupported=bench.unsupported,
        load=load,
        seconds=round(time.perf_counter() - done, 3),
        compile_s=round(done - start, 3),
        versions={"jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
    )
