"""Run names of a suite in worker processes, each isolated from the others' crashes and hangs.

A worker takes names one at a time through a pipe. One that dies, or needs longer than the
suite's ``TIMEOUT``, is replaced; its name becomes a failed case that says how it ended. A worker
that has grown beyond ``MEMORY`` is replaced after its name.
"""

from __future__ import annotations

import gc
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.coverage.common import Case, failed

MEMORY = 4 << 30
START = 300.0  # seconds for a worker to import its suite


def run_all(
    suite: str, names: Sequence[str], workers: int, timeout: float
) -> Iterator[tuple[str, list[Case]]]:
    """Yield each name's cases as they are done, in no particular order.

    Raises:
      RuntimeError: a worker cannot import its suite.
    """
    queue, crew = list(reversed(names)), []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in range(min(workers, len(names))):
                crew.append(_Worker(suite, timeout, pathlib.Path(folder) / str(number)))
            while queue or any(worker.name for worker in crew):
                for worker in crew:
                    if worker.ready and queue:
                        worker.send(queue.pop())
                multiprocessing.connection.wait([worker.pipe for worker in crew], timeout=1)
                for worker in crew:
                    done = worker.poll()
                    if done is not None:
                        yield done
        finally:
            for worker in crew:
                worker.stop()


class _Worker:
    """A process, the pipe to it, and the name that it is working on ('' for none)."""

    def __init__(self, suite: str, timeout: float, output: pathlib.Path):
        self.suite, self.timeout, self.output = suite, timeout, output
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.suite, theirs, str(self.output)))
        self.process.start()
        theirs.close()
        self.name, self.ready, self.since = "", False, time.monotonic()

    def send(self, name: str) -> None:
        self.name, self.ready, self.since = name, False, time.monotonic()
        self.pipe.send(name)

    def poll(self) -> tuple[str, list[Case]] | None:
        """Return what was finished, or what the process died of; None if neither."""
        if self.ready:
            return None
        try:
            if self.pipe.poll():
                last, cases = self.pipe.recv()
                name, self.name, self.ready = self.name, "", True
                if last:
                    self.stop()
                    self.start()
                return (name, cases) if name else None
        except (EOFError, ConnectionError):
            return self._lost(self._death())
        limit = self.timeout if self.name else START
        if time.monotonic() - self.since > limit:
            return self._lost(f"no result after {limit:.0f} s")
        return None

    def _lost(self, why: str) -> tuple[str, list[Case]]:
        name, seconds = self.name, round(time.monotonic() - self.since, 2)
        if not name:
            raise RuntimeError(f"a worker of suite {self.suite} did not start: {why}")
        self.stop()
        self.start()
        return name, [Case(name, "fail", why, seconds=seconds)]

    def _death(self) -> str:
        self.process.join(10)
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = self.output.read_text(errors="replace").strip().splitlines()
        return f"the process died ({how}): {lines[-1][:200] if lines else 'no message'}"

    def stop(self) -> None:
        self.pipe.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _serve(suite: str, pipe: Any, output: str) -> None:
    """Answer names with lists of cases until the pipe closes; prints go to ``output``."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    module = importlib.import_module(f"benchmarks.coverage.{suite}")
    import jax
    import torch

    torch.set_num_threads(1)
    pipe.send((False, []))
    while True:
        try:
            name = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        os.ftruncate(descriptor, 0)
        torch.manual_seed(0)
        started = time.perf_counter()
        try:
            cases = module.run(name)
        except Exception as error:
            cases = [failed(name, error, seconds=round(time.perf_counter() - started, 2))]
        jax.clear_caches()
        gc.collect()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY
        try:
            pipe.send((grown, cases))
        except BrokenPipeError:
            return
