"""Timing of several callables in turn, so that what disturbs one disturbs all of them.

Sides take turns in blocks, after an untimed call: in a steady state a side has its weights in the
caches, which the side before has emptied. The order is turned by one in each round. A side that
has surely lost is not called any more: once it has ``SURE`` calls or more and its fastest quarter
is slower than the slowest quarter of the best by ``MARGIN``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

SURE = 5
MARGIN = 1.1
BLOCK = 5


def interleave(
    sides: Mapping[str, Callable[[int], Any]],
    calls: int,
    *,
    weights: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    keep: frozenset[str] = frozenset(),
) -> dict[str, list[float]]:
    """Time sides in turn; returns milliseconds of each call.

    Args:
      sides: ``side(i)`` runs the i-th call, and may return before its result is there.
      calls: how many of each, at most.
      weights: by what to divide a side's time when sides are compared (samples in a call).
      clock: seconds.
      keep: sides that are never stopped early.
    """
    names = list(sides)
    weights = weights or {}
    times: dict[str, list[float]] = {name: [] for name in names}
    lost: set[str] = set()
    block = min(BLOCK, max(1, calls))
    for turn in range(-(-calls // block)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name in lost:
                continue
            side, count = sides[name], min(block, calls - len(times[name]))
            jax.block_until_ready(side(0))
            for _ in range(count):
                number = len(times[name])
                start = clock()
                jax.block_until_ready(side(number))
                times[name].append((clock() - start) * 1e3)
        lost |= _losers(times, weights) - keep
    return times


def _losers(times: Mapping[str, list[float]], weights: Mapping[str, float]) -> set[str]:
    known = {
        name: np.asarray(values) / weights.get(name, 1)
        for name, values in times.items()
        if len(values) >= SURE
    }
    if not known:
        return set()
    best = min(known, key=lambda name: float(np.median(known[name])))
    limit = float(np.percentile(known[best], 75)) * MARGIN
    return {
        name
        for name, values in known.items()
        if name != best and float(np.percentile(values, 25)) > limit
    }
