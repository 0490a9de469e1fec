"""The process of one side: opens it, compiles it, and times calls, as the parent asks over pipes.

Run as ``python -P _worker.py REQUESTS ANSWERS PARENT`` with two file descriptors and the parent's
process id. Requests and answers are JSON lines. What is printed goes to stderr. It imports numpy
alone, so that a side that needs neither JAX nor torch has neither in its memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def main(argv: list[str]) -> None:
    """Answer requests until there are no more."""
    requests, answers, parent = map(int, argv)
    _die_with(parent)
    os.dup2(2, 1)  # nothing that a package prints is to be read as an answer
    worker = Worker()
    with os.fdopen(requests, "r") as incoming, os.fdopen(answers, "w") as outgoing:
        for line in incoming:
            request = json.loads(line)
            try:
                answer = getattr(worker, request.pop("do"))(**request)
            except (Exception, KeyboardInterrupt) as error:
                answer = {"error": _explained(error)}
            outgoing.write(json.dumps(answer) + "\n")
            outgoing.flush()


def _die_with(parent: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
        if os.getppid() != parent:
            sys.exit(1)


def _explained(error: BaseException) -> str:
    """Return an error in one line; the whole goes to stderr."""
    traceback.print_exception(error, file=sys.stderr)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines)[:600]
    if isinstance(error, MemoryError):
        return f"out of memory: {text}".rstrip(": ")
    ours = any(base.__name__ == "JaxinferError" for base in type(error).__mro__)
    return text if ours else f"{type(error).__name__}: {text}".rstrip(": ")


class Worker:
    """What a side's process can do; each method is a request."""

    def __init__(self) -> None:
        self._adapter: Any = None
        self._prepared: Any = None
        self._result: Any = None

    def open(
        self, factory: str, settings: Mapping[str, Any], path: list[str], cpus: list[int]
    ) -> dict[str, Any]:
        """Import the side and open its model."""
        if cpus:
            os.sched_setaffinity(0, cpus)
        sys.path += [entry for entry in path if entry not in sys.path]
        started = time.perf_counter()
        module, _, name = factory.partition(":")
        make = getattr(importlib.import_module(module), name)
        imported = resident_mb()
        self._adapter = make(settings)
        # what packages take is known to those that import them before they read the model
        base = float(getattr(self._adapter, "base_mb", 0.0)) or imported
        reset_peak()
        seconds = time.perf_counter() - started
        return {"load_s": seconds, "base_mb": base, "facts": self._facts()}

    def _facts(self) -> dict[str, Any]:
        return dict(getattr(self._adapter, "facts", {}))

    def prepare(self, inputs: str, outputs: str) -> dict[str, Any]:
        """Compile for the inputs of a file, run once, write the outputs to another."""
        arrays = read_arrays(Path(inputs))
        started = time.perf_counter()
        self._prepared = self._adapter.prepare(arrays)
        compiled = time.perf_counter()
        self._result = self._prepared.run()
        called = time.perf_counter()
        write_arrays(Path(outputs), self._prepared.outputs(self._result))
        known, first = self._prepared.compile_s, self._prepared.first_call_ms
        return {
            "compile_s": compiled - started if known is None else known,
            "first_call_ms": (called - compiled) * 1e3 if first is None else first,
            "notes": list(self._prepared.notes),
            "facts": self._facts(),
        }

    def run(self, calls: int) -> dict[str, Any]:
        """Time so many calls, after one that is not timed."""
        run, times = self._prepared.run, []
        self._result = None
        gc.collect()
        gc.disable()
        whole = time.process_time()
        try:
            run()
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        finally:
            gc.enable()
        whole = time.process_time() - whole
        return {"times_ms": times, "wall_s": wall, "cpu_s": cpu, "all_cpu_s": whole}

    def memory(self) -> dict[str, Any]:
        """Return the most memory since the model was opened."""
        return {"peak_mb": peak_mb()}

    def trace(self, folder: str, calls: int) -> dict[str, Any]:
        """Write a trace of some calls by JAX's profiler."""
        import jax

        jax.profiler.start_trace(folder, create_perfetto_trace=True)
        try:
            for place in range(calls):
                with jax.profiler.StepTraceAnnotation("call", step_num=place):
                    self._prepared.run()
        finally:
            jax.profiler.stop_trace()
        return {}


def write_arrays(path: Path, arrays: Sequence[Any]) -> None:
    """Write arrays in order to an .npz file; dtypes that numpy cannot name as their bits."""
    given = [np.asarray(array) for array in arrays]
    names = np.asarray(json.dumps([array.dtype.name for array in given]))
    plain: dict[str, Any] = {f"a{place}": _bits(array) for place, array in enumerate(given)}
    np.savez(path, allow_pickle=False, **plain, dtypes=names)


def read_arrays(path: Path) -> list[np.ndarray]:
    """Read what ``write_arrays`` wrote, into memory that is aligned as XLA on CPUs wants it."""
    found = []
    with np.load(path, allow_pickle=False) as archive:
        for place, name in enumerate(json.loads(str(archive["dtypes"]))):
            array = archive[f"a{place}"].view(_dtype(name))
            padded = np.empty(math.prod(array.shape) * array.itemsize + 64, np.uint8)
            start = -padded.ctypes.data % 64
            buffer = padded[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(buffer, array)
            found.append(buffer)
    return found


def _bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.type.__module__ != "ml_dtypes":
        return array
    bits = {1: np.uint8, 2: np.uint16}[array.dtype.itemsize]
    return np.ascontiguousarray(array).view(bits).reshape(array.shape)


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


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


def reset_peak() -> None:
    """Start ``peak_mb`` anew, where the system can."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_mb(name: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


if __name__ == "__main__":
    main(sys.argv[1:])
