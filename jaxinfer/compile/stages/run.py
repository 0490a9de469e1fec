"""Runs micro-batches through stages: one host thread feeds each device.

A thread takes micro-batch j's values from the stages before it, puts them on its device,
dispatches its executable, and passes the results on without waiting for them. It waits only
for the result before the last ``WINDOW``, so that a device always has its next work, and for
the slowest stage when it is more than ``window + number of stages`` micro-batches ahead.

One thread for all stages would do where dispatch returns at once. On CPU it does not always
(an executable with a callback runs in the thread that dispatches it, jax 0.10.1: four stages
of 50 ms and 8 micro-batches took 1.03 s from one thread, 0.57 s from four).

Nothing here compiles: executables are called, buffers are moved.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from jaxinfer.compile.stages.build import Stage
from jaxinfer.core._compat import x64_scope

WINDOW = 2
"""Micro-batches whose results a stage's thread has not waited for."""


class Stamp(NamedTuple):
    """When a stage computed a micro-batch: seconds since the run began."""

    stage: int
    microbatch: int
    start: float
    end: float


class _Progress:
    """How far every stage is, and whether one failed."""

    def __init__(self, stages: int, ahead: int):
        self.done, self.ahead, self.failed = [0] * stages, ahead, False
        self.changed = threading.Condition()

    def wait(self, number: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.failed or number < min(self.done) + self.ahead)
            if self.failed:
                raise _Stopped

    def finish(self, stage: int) -> None:
        with self.changed:
            self.done[stage] += 1
            self.changed.notify_all()

    def fail(self) -> None:
        with self.changed:
            self.failed = True
            self.changed.notify_all()


class _Stopped(Exception):
    """Another stage failed."""


def run(
    stages: Sequence[Stage],
    microbatches: int,
    feed: Callable[[int, int], Any],
    *,
    timed: bool = False,
    x64: bool = False,
) -> tuple[list[dict[int, Any]], list[Stamp]]:
    """Compute every result of every micro-batch.

    Args:
      stages: in order.
      microbatches: how many.
      feed: ``feed(number of the input, micro-batch)``: a numpy array.
      timed: wait for each stage's inputs and for its results, in its own thread, and stamp
        both. The other stages go on; what is lost is that a stage's transfers no longer
        overlap its own work.
      x64: whether 64-bit types are on for the transfers.

    Returns:
      For every micro-batch the results by their number, on their stages' devices; the stamps.

    Raises:
      what the first stage that fails raises; the others stop.
    """
    edges = {
        (source, target): queue.SimpleQueue()
        for target, stage in enumerate(stages)
        for source, other in enumerate(stages[:target])
        if set(stage.plan.received) & set(other.plan.sent)
    }
    progress = _Progress(len(stages), len(stages) + WINDOW)
    results: list[dict[int, Any]] = [{} for _ in range(microbatches)]
    stamps: list[Stamp] = []
    began = time.perf_counter()

    def work(number: int) -> None:
        stage = stages[number]
        plan = stage.plan
        sources = [(source, q) for (source, target), q in edges.items() if target == number]
        targets = [(target, q) for (source, target), q in edges.items() if source == number]
        wanted = [set(stages[target].plan.received) for target, _ in targets]
        whole: dict[int, Any] = {}
        running: list[Any] = []
        try:
            for batch in range(microbatches):
                progress.wait(batch)
                values: dict[Any, Any] = {}
                for _, q in sources:
                    got = q.get()
                    if got is None:
                        raise _Stopped
                    values |= got
                inputs = [_input(feed, i, batch, stage.place.whole, whole) for i in plan.inputs]
                received = [jax.device_put(values[var], stage.place.whole) for var in plan.received]
                del values
                if timed:
                    jax.block_until_ready((inputs, received))
                start = time.perf_counter()
                outs = stage.run(stage.params, inputs, received)
                del received
                if timed:
                    jax.block_until_ready(outs)
                    end = time.perf_counter()
                    stamps.append(Stamp(number, batch, start - began, end - began))
                sent = dict(zip(plan.sent, outs, strict=False))
                for (_, q), want in zip(targets, wanted, strict=True):
                    q.put({var: value for var, value in sent.items() if var in want})
                results[batch] |= zip(plan.results, outs[len(plan.sent) :], strict=True)
                running.append(outs)
                if len(running) > WINDOW:
                    jax.block_until_ready(running.pop(0))
                    progress.finish(number)
            jax.block_until_ready(running)
        except BaseException:
            progress.fail()
            for _, q in targets:
                q.put(None)
            raise

    def guarded(number: int) -> BaseException | None:
        try:
            with x64_scope(x64):
                work(number)
        except BaseException as error:
            return error
        return None

    with ThreadPoolExecutor(len(stages)) as threads:
        errors = [error for error in threads.map(guarded, range(len(stages))) if error]
    for error in errors:
        if not isinstance(error, _Stopped):
            raise error
    return results, sorted(stamps)


def _input(
    feed: Callable[[int, int], Any], number: int, batch: int, where: Any, whole: dict[int, Any]
) -> Any:
    """Return an input on its devices; one that all micro-batches share is put there once."""
    value = feed(number, batch)
    if number in whole and whole[number][0] is value:
        return whole[number][1]
    placed = jax.device_put(value, where)
    whole[number] = (value, placed)
    return placed
