"""The process of one side: opens it, compiles it, and times calls, as the parent asks over pipes.

Run as ``python -m jaxinfer.tune.bench._worker REQUESTS ANSWERS PARENT`` with two file descriptors
and the parent's process id. Requests and answers are JSON lines. What is printed goes to stderr.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import JaxinferError
from jaxinfer.tune.bench._memory import peak_mb, reset_peak, resident_mb


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
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines)[:600]
    if isinstance(error, MemoryError):
        return f"out of memory: {text}".rstrip(": ")
    return text if isinstance(error, JaxinferError) else f"{type(error).__name__}: {text}"


class Worker:
    """What a side's process can do; each method is a request."""

    def __init__(self) -> None:
        self._adapter: Any = None
        self._prepared: Any = None
        self._result: Any = None
        self._base = 0.0

    def open(
        self, factory: str, settings: Mapping[str, Any], path: list[str], cpus: list[int]
    ) -> dict[str, Any]:
        """Import the side and open its model."""
        if cpus:
            os.sched_setaffinity(0, cpus)
        sys.path += [entry for entry in path if entry not in sys.path]
        started = time.perf_counter()
        module, _, name = factory.partition(":")
        made = getattr(importlib.import_module(module), name)
        self._adapter = made(settings)
        # what the model's packages take is known to those that import them before they read it
        self._base = float(getattr(self._adapter, "base_mb", 0.0)) or resident_mb()
        facts = dict(getattr(self._adapter, "facts", {}))
        reset_peak()
        return {"load_s": time.perf_counter() - started, "base_mb": self._base, "facts": facts}

    def prepare(self, inputs: str, outputs: str) -> dict[str, Any]:
        """Compile for the inputs of a file, run once, write the outputs to another."""
        from jaxinfer.tune.bench._arrays import read_arrays, write_arrays

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
            "facts": dict(getattr(self._adapter, "facts", {})),
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


if __name__ == "__main__":
    main(sys.argv[1:])
