"""The parent's end of a side's process: started, asked with a time limit, paused, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HINTS = {
    "SIGKILL": "somebody killed it, or the system had no memory left",
    "SIGSEGV": "it read memory that is not its own: a fault of native code",
    "SIGABRT": "it ended itself",
    "SIGILL": "an instruction that this processor does not have",
}


class SideFailed(Exception):
    """A side raised, ended, or did not answer in time; the message says which."""


class Process:
    """One side's process. It leads a process group of its own, which is paused between its turns.

    A paused process (SIGSTOP) uses no processor, whatever its thread pools do while they wait.
    """

    def __init__(self, log: Path, environment: Mapping[str, str]):
        self._log = log
        asks, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        command = [sys.executable, "-P", str(Path(__file__).with_name("_worker.py"))]
        try:
            with log.open("wb") as out:
                self._process = subprocess.Popen(
                    [*command, str(asks), str(answers), str(os.getpid())],
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=(asks, answers),
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._requests)
            os.close(self._answers)
            raise
        finally:
            os.close(asks)
            os.close(answers)
        self._buffer = b""
        self._paused = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, do: str, timeout: float, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer; the process is paused after it.

        Raises:
          SideFailed: it raised, ended, or did not answer within ``timeout`` seconds; in the last
            two cases it is gone then.
        """
        self._resume()
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, json.dumps({"do": do, **request}).encode() + b"\n")
        line = self._line(time.monotonic() + timeout)
        if line is None:
            self.end()
            raise SideFailed(f"{do}: no answer within {timeout:g} s; it was ended")
        if not line:
            raise SideFailed(f"{do}: {self._death()}")
        self._pause()
        answer = json.loads(line)
        if "error" in answer:
            raise SideFailed(f"{do}: {answer['error']}")
        return answer

    def _line(self, until: float) -> bytes | None:
        """Return a line, nothing if the process has ended, or None if the time is over."""
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0:
                return None
            if not select.select([self._answers], [], [], min(left, 0.5))[0]:
                if self._process.poll() is not None:
                    return b""  # what it has started may keep the pipe open
                continue
            more = os.read(self._answers, 1 << 16)
            if not more:
                return b""
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> str:
        """Return how it ended, and its last lines."""
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(10)
        self.end()
        if code is None:
            return "it closed its pipe"
        if code >= 0:
            text = f"the process ended with code {code}"
        else:
            known = -code in set(signal.Signals)
            name = signal.Signals(-code).name if known else f"signal {-code}"
            hint = _HINTS.get(name)
            text = f"the process was ended by {name}" + (f" ({hint})" if hint else "")
        last = [line.strip() for line in self.log().splitlines() if line.strip()][-3:]
        return text + (f"; its last lines: {' | '.join(last)}"[:500] if last else "")

    def log(self) -> str:
        """Return what it printed."""
        try:
            return self._log.read_text(errors="replace")
        except OSError:
            return ""

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self._paused = True

    def _resume(self) -> None:
        if self._paused:
            self._signal(signal.SIGCONT)
            self._paused = False

    def end(self) -> None:
        """End it and what it started; waits until it is gone."""
        if self._process.returncode is None or self._requests >= 0:
            self._signal(signal.SIGKILL)
            self._process.wait()
        if self._requests >= 0:
            os.close(self._requests)
            os.close(self._answers)
            self._requests = self._answers = -1


def machine_busy_s() -> float | None:
    """Return the processor time that the machine has spent since it started; None if unknown."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def usable_cpus() -> list[int]:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def side_environment(threads: int, extra: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return the variables of a side's process: threads for every library, no caches.

    ``scratch`` takes what TorchInductor compiles, so that nothing of an earlier run is found.
    """
    count = str(threads)
    return {
        **os.environ,
        **dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"), count
        ),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share a GPU's memory
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **extra,
    }


def import_path() -> Sequence[str]:
    """Return where this process finds modules, for the sides to find the same."""
    return [entry or os.getcwd() for entry in sys.path]
