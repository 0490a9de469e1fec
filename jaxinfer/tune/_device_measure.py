"""Calls the programs of the micro-benchmark in turn, and keeps the fastest call of each."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core.errors import MissingExtraError
from jaxinfer.tune import _device_kernels as kernels
from jaxinfer.tune._device_openvino import openvino_kernels

ABSURD = 20
"""What is so many times slower than float32 is not measured on."""

LONG = 2e-3
"""Seconds that the largest product should take: calls of accelerators are asynchronous."""

LARGEST = 16384
SHAPES = ((128, 768, 768), (1024, 384, 1536))
IMAGES = ((28, 128), (56, 64))
LEVELS = ("W8A16", "W8A8", "W4A16", "FP8")


@dataclasses.dataclass
class Entry:
    """A compiled program and its fastest call."""

    kind: str
    name: str
    shape: str
    flops: int
    bytes: int
    call: Callable[[], Any]
    best: float = math.inf

    def time(self, seconds: float = 0.0) -> None:
        """Call it twice at least, and for so many seconds."""
        began = time.perf_counter()
        for _ in range(20):
            start = time.perf_counter()
            jax.block_until_ready(self.call())
            now = time.perf_counter()
            self.best = min(self.best, now - start)
            if now - began > seconds and _ > 0:
                return


class Bench:
    """The programs of one device.

    Attributes:
      device: the default device.
      unsupported: what was left out, and why.
    """

    def __init__(self) -> None:
        (self.device,) = jnp.zeros(1).devices()
        self.entries: list[Entry] = []
        self.unsupported: dict[str, str] = {}

    def prepare(self, accelerator: bool) -> None:
        """Compile all programs, and call each once or twice."""
        size = 4096 if accelerator else 1024
        dtypes = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn")
        for dtype in dtypes:
            self._matmul(dtype, dtype, size)
        if accelerator:
            self._matmul("float32_default", "float32", size, jax.lax.Precision.DEFAULT)
        for dtype in ("float32", "bfloat16", "int8"):
            for image in IMAGES:
                pixels, channels = image if not accelerator else (image[0] * 4, image[1] * 2)
                flops = 18 * (pixels * channels) ** 2
                made = kernels.convolution(pixels, channels, dtype)
                if not self._add("convolution", dtype, (pixels, channels), flops, 0, made):
                    break
        rows = 4096 * (4 if accelerator else 1)
        for dtype, width in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
            made = kernels.matvec(4096, rows, dtype)
            self._add("matvec", dtype, (1, 4096, rows), 8192 * rows, width * 4096 * rows, made)
        for level in LEVELS:
            shape, made = SHAPES[0], kernels.quantized(*SHAPES[0], level)
            self._add("levels", level, shape, 2 * math.prod(shape), 0, made)
        count = 2 ** (27 if accelerator else 24)
        self._add("copy", "float32", (count,), 0, 8 * count, kernels.copy(count))
        self._add("sum", "float32", (count,), 0, 4 * count, kernels.total(count))

    def _matmul(self, name: str, dtype: str, size: int, precision: Any = None) -> None:
        for shape in SHAPES:
            made = kernels.matmul(*shape, dtype, precision)
            if not self._add("matmul", name, shape, 2 * math.prod(shape), 0, made):
                return
        while True:
            shape = (size, size, size)
            made = kernels.matmul(*shape, dtype, precision)
            entry = self._add("matmul", name, shape, 2 * size**3, 0, made)
            if entry is None or entry.best > LONG or 2 * size > LARGEST:
                return
            size *= 2

    def _add(
        self, kind: str, name: str, shape: tuple[int, ...], flops: int, size: int, make: Any
    ) -> Entry | None:
        """Compile a program and call it; None if that fails or takes absurdly long."""
        title = "x".join(map(str, shape))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fn, args = make()
                compiled = jax.jit(fn).lower(*args).compile()
                entry = Entry(kind, name, title, flops, size, lambda: compiled(*args))
                entry.time()
        except Exception as error:  # whatever a platform has to say about a dtype
            self.unsupported[f"{kind} {name}"] = f"at {title}: {_first_line(error)}"
            return None
        known = [e.best for e in self.entries if e.shape == title and e.name == "float32"]
        if known and entry.best > ABSURD * known[0]:
            ratio = entry.best / known[0]
            self.unsupported[f"{kind} {name}"] = (
                f"{ratio:.0f} times slower than float32, at {title}"
            )
            return None
        self.entries.append(entry)
        return entry

    def openvino(self) -> None:
        """Prepare OpenVINO's matrix product and convolution, where it is installed."""
        try:
            made = openvino_kernels(SHAPES[0], IMAGES[1])
        except MissingExtraError:
            self.unsupported["openvino"] = "not installed"
            return
        except Exception as error:  # whatever it has to say about this machine
            self.unsupported["openvino"] = _first_line(error)
            return
        for name, shape, flops, call in made:
            entry = Entry("openvino", name, shape, flops, 0, call)
            entry.time()
            self.entries.append(entry)

    def run(self, seconds: float) -> None:
        """Call all programs in turn, four times at least, until the time is up."""
        end = time.perf_counter() + seconds
        for round_ in range(50):
            for entry in self.entries:
                entry.time(min(0.01, 2 * entry.best))
                if round_ > 3 and time.perf_counter() > end:
                    return

    def dispatch(self) -> float:
        """Return the median seconds of a call that computes next to nothing."""
        x = jnp.zeros(8, jnp.float32)
        compiled = jax.jit(lambda x: x + 1)
        times = []
        for _ in range(201):
            start = time.perf_counter()
            jax.block_until_ready(compiled(x))
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))

    def rates(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return FLOP/s by kind, name and shape."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for entry in self.entries:
            if entry.flops:
                shapes = found.setdefault(entry.kind, {}).setdefault(entry.name, {})
                shapes[entry.shape] = float(f"{entry.flops / entry.best:.4g}")
        return found

    def bandwidth(self) -> float:
        """Return the highest rate at which anything read or wrote memory, in bytes per second."""
        rates = [entry.bytes / entry.best for entry in self.entries if entry.bytes]
        return float(f"{max(rates, default=0.0):.4g}")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160] if text else ''}"
