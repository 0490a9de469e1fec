"""Adaptive: several arrangements of a model held ready; each call takes the best that fits.

Points are ordered by accuracy; those that are no worse than the reference are equal, and of equals
the fastest comes first. A call takes the most accurate point that fits all its limits:

    deadline  m + 3 d <= deadline           the point's p99, from the times of real calls
    load      load < (i + 1) / k            point i of k, the slowest first; the fastest always fits
    memory    peak bytes <= limit

``m`` and ``d`` are running means of a call's time and of its distance from ``m`` (V. Jacobson,
"Congestion avoidance and control", 1988; RFC 6298): ``m <- (1 - a) m + a t``,
``d <- (1 - a) d + a |t - m|``. They start at the plan's p50 and (p99 - p50) / 3; three mean
deviations are the 99th percentile of a normal distribution. Points that did not run move towards
their plan's times, scaled as the one that ran: all are slowed by the same neighbours, and a point
that was once slow gets another chance.

A point that does not fit is left at once. A more accurate one is taken only after it has fitted
with a margin in several calls running. All code is compiled beforehand; a change costs nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxinfer.core.errors import InputError, listing
from jaxinfer.tune._adaptive_points import Point as Point
from jaxinfer.tune._adaptive_points import is_number, points_of, problems_of

DEVIATIONS = 3.0


class Record(NamedTuple):
    """What one call did.

    Attributes:
      call: its number, from 0.
      point: that ran.
      reason: why.
      fits: whether the point fitted all limits when it was chosen.
      switched: whether another point ran before.
      ms: that it took, until its results were ready.
      met: whether it kept its deadline; None without one.
      error: what it raised, in words; "" if nothing.
    """

    call: int
    point: str
    reason: str
    fits: bool
    switched: bool
    ms: float
    met: bool | None
    error: str = ""


class Limits(NamedTuple):
    """What a call demands; None is no limit."""

    deadline_ms: float | None = None
    load: float | None = None
    memory_bytes: float | None = None


@dataclasses.dataclass
class _State:
    """What is known of a point by now."""

    point: Point
    rank: int  # among all, the slowest is 0
    mean: float
    deviation: float
    calls: int = 0
    missed: int = 0

    @property
    def p99(self) -> float:
        return self.mean + DEVIATIONS * self.deviation

    @property
    def deviation_planned(self) -> float:
        return max(0.0, self.point.p99_ms - self.point.p50_ms) / DEVIATIONS

    def observe(self, ms: float, alpha: float) -> None:
        self.deviation += alpha * (abs(ms - self.mean) - self.deviation)
        self.mean += alpha * (ms - self.mean)

    def follow(self, slowdown: float, alpha: float) -> None:
        self.mean += alpha * (self.point.p50_ms * slowdown - self.mean)
        self.deviation += alpha * (self.deviation_planned * slowdown - self.deviation)


@dataclasses.dataclass(frozen=True)
class AdaptiveReport:
    """What the calls did so far; ``print`` it.

    Attributes:
      points: name, calls, p50 and p99 by now in ms, drop, deadlines missed; most accurate first.
      calls, switches, unfit: of all calls; ``unfit``: nothing fitted, and the fastest ran.
      weight_bytes: of all points together; they are all held. None if one is unknown.
      notes: points that were left out, and why.
    """

    points: tuple[tuple[str, int, float, float, float, int], ...]
    calls: int
    switches: int
    unfit: int
    weight_bytes: int | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        width = max(len(name) for name, *_ in self.points)
        head = f"{'point':{width}}  {'calls':>7}  {'p50 ms':>8}  {'p99 ms':>8}  {'drop':>9}  missed"
        rows = [
            f"{name:{width}}  {calls:7d}  {p50:8.3f}  {p99:8.3f}  {drop:9.3g}  {missed:6d}"
            for name, calls, p50, p99, drop, missed in self.points
        ]
        held = "" if self.weight_bytes is None else f"; {self.weight_bytes / 2**20:.1f} MiB weights"
        total = f"{self.calls} calls, {self.switches} switches, {self.unfit} fitted nothing{held}"
        return "\n".join([head, *rows, total, *self.notes])


class Adaptive:
    """A model that runs the most accurate of several arrangements that a call has time for.

    Args:
      plan: of ``ji.optimize``; points are taken from its Pareto front: the fastest, the most
        accurate, and those between.
      keep: how many points at most. All are held in memory, each with its own weights.
      alpha: weight of the newest call in the running means.
      margin: a more accurate point must fit with this share of a limit to spare.
      patience: in how many calls running; 0: every call is decided by itself, for callers whose
        deadlines differ from call to call.
      full_queue: the queue that counts as a load of 1 (``report_load``).
      remember: how many records ``history`` keeps.
      clock: seconds, for tests.

    Calls are thread-safe and run at the same time; a call returns when its results are ready, for
    its time is measured. Compiled in the constructor; calls compile nothing.

    Raises:
      InputError: settings or points that do not fit; all at once.

    Example:
      >>> slow = Point("f32", lambda x: x / 3, p50_ms=9.0, p99_ms=9.5)
      >>> fast = Point("int8", lambda x: round(x / 3, 1), p50_ms=2.0, p99_ms=2.2, drop=0.01)
      >>> adaptive = Adaptive.of([slow, fast], patience=0)
      >>> adaptive(1.0, deadline_ms=20), adaptive(1.0, deadline_ms=5), adaptive(1.0)
      (0.3333333333333333, 0.3, 0.3333333333333333)
      >>> [record.point for record in adaptive.history], adaptive.report().switches
      (['f32', 'int8', 'f32'], 2)
    """

    def __init__(self, plan: Any, *, keep: int = 3, **settings: Any):
        points, notes = points_of(plan, keep)
        self._start(points, notes, **settings)

    @classmethod
    def of(cls, points: Sequence[Point], **settings: Any) -> Adaptive:
        """Return an Adaptive of points that are there already; settings as for the class.

        Raises:
          InputError: no points, names that are there twice, times that are none, or batches of
            different sizes (a call could not go to each of them).
        """
        made = cls.__new__(cls)
        made._start(points, (), **settings)
        return made

    def _start(
        self,
        points: Sequence[Point],
        notes: Sequence[str],
        *,
        alpha: float = 0.1,
        margin: float = 0.2,
        patience: int = 8,
        full_queue: int = 16,
        remember: int = 1000,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        problems = problems_of(points)
        if not 0 < alpha <= 1:
            problems.append(f"alpha: required above 0, at most 1, got {alpha!r}")
        if not 0 <= margin < 1:
            problems.append(f"margin: required 0 or more, below 1, got {margin!r}")
        for name, value, least in (
            ("patience", patience, 0), ("full_queue", full_queue, 1), ("remember", remember, 1),
        ):  # fmt: skip
            if not isinstance(value, int) or value < least:
                problems.append(f"{name}: required an integer of {least} or more, got {value!r}")
        if problems:
            raise InputError(listing("Adaptive:", problems))
        slowest = sorted(points, key=lambda point: -point.p50_ms)
        self._states = [
            _State(
                point,
                slowest.index(point),
                point.p50_ms,
                max(0.0, point.p99_ms - point.p50_ms) / DEVIATIONS,
            )
            for point in sorted(points, key=lambda each: (max(0.0, each.drop), each.p50_ms))
        ]
        self._alpha, self._margin, self._patience = alpha, margin, patience
        self._full_queue, self._clock, self._notes = full_queue, clock, tuple(notes)
        self._lock = threading.Lock()
        self._history: collections.deque[Record] = collections.deque(maxlen=remember)
        self._current: int | None = None
        self._streak, self._goal = 0, 0
        self._calls = self._switches = self._unfit = 0
        self._queue = 0.0
        for point in points:
            warm_up = getattr(getattr(point.model, "executable", point.model), "warm_up", None)
            if warm_up is not None:
                warm_up()

    @property
    def points(self) -> tuple[Point, ...]:
        """The points, the most accurate first."""
        return tuple(state.point for state in self._states)

    @property
    def history(self) -> list[Record]:
        """The newest records, in the order in which calls ended."""
        with self._lock:
            return list(self._history)

    def report_load(self, queue_length: float) -> None:
        """Say how many calls wait; it counts until the next report, for calls without ``load``.

        Raises:
          InputError: below 0, or no number.
        """
        if not is_number(queue_length) or queue_length < 0:
            raise InputError(f"queue_length: required a number of 0 or more, got {queue_length!r}")
        with self._lock:
            self._queue = min(1.0, queue_length / self._full_queue)

    def __call__(
        self,
        *args: Any,
        deadline_ms: float | None = None,
        load: float | None = None,
        memory_bytes: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the inputs on the most accurate point that fits.

        Args:
          *args, **kwargs: inputs, as the models take them. Inputs that are called as one of the
            limits go by position.
          deadline_ms: by when results must be ready, in milliseconds from now.
          load: 0 (idle) to 1 (full); None: by the last ``report_load``.
          memory_bytes: that the device has for this call, parameters included.

        Returns:
          The results, ready. If nothing fits, those of the fastest point; the record says so.

        Raises:
          InputError: limits that are none. What the model raises comes through.
        """
        limits = Limits(deadline_ms, load, memory_bytes)
        _check_limits(limits)
        with self._lock:
            number = self._calls
            self._calls += 1
            if load is None and self._queue:
                limits = limits._replace(load=self._queue)
            chosen, reason, fits = self._choose(limits)
            switched = self._current is not None and chosen != self._current
            self._current = chosen
            self._switches += switched
            self._unfit += not fits
            state = self._states[chosen]
        start, error = self._clock(), ""
        try:
            return jax.block_until_ready(state.point.model(*args, **kwargs))
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            ms = (self._clock() - start) * 1e3
            met = None if deadline_ms is None else (not error and ms <= deadline_ms)
            record = Record(number, state.point.name, reason, fits, switched, ms, met, error)
            with self._lock:
                self._learn(state, record)

    def _learn(self, state: _State, record: Record) -> None:
        self._history.append(record)
        if record.error:
            return  # says nothing of its time
        state.calls += 1
        state.missed += record.met is False
        state.observe(record.ms, self._alpha)
        slowdown = state.mean / state.point.p50_ms
        for other in self._states:
            if other is not state:
                other.follow(slowdown, self._alpha)

    def _choose(self, limits: Limits) -> tuple[int, str, bool]:
        """Return a point, why, and whether it fits."""
        count = len(self._states)
        fitting = [i for i in range(count) if not self._why_not(i, limits, 0.0)]
        if not fitting:
            self._streak = 0
            fastest = min(range(count), key=lambda i: self._states[i].mean)
            why = self._why_not(fastest, limits, 0.0)
            return fastest, f"nothing fits ({why}): the fastest", False
        best, current = fitting[0], self._current
        if current is None or not self._patience:
            return best, self._because(best, limits), True
        if current not in fitting:
            self._streak = 0
            why = self._why_not(current, limits, 0.0)
            return best, f"{self._states[current].point.name} does not fit: {why}", True
        easy = [i for i in fitting if i < current and not self._why_not(i, limits, self._margin)]
        if not easy:
            self._streak = 0
            return current, self._because(current, limits), True
        self._goal = max(self._goal, easy[0]) if self._streak else easy[0]
        self._streak += 1
        name = self._states[self._goal].point.name
        if self._streak < self._patience:
            return current, f"{name} fits in {self._streak} of {self._patience} calls", True
        goal, self._streak = self._goal, 0
        if goal not in easy:
            return current, self._because(current, limits), True
        return goal, f"{name} has fitted in {self._patience} calls running", True

    def _because(self, chosen: int, limits: Limits) -> str:
        if not chosen:
            return "the most accurate fits" if any(x is not None for x in limits) else "no limit"
        better = self._states[chosen - 1].point.name
        why = self._why_not(chosen - 1, limits, 0.0)
        return f"{better} does not fit: {why}" if why else f"{better} fits without the margin"

    def _why_not(self, place: int, limits: Limits, margin: float) -> str:
        """Return why a point does not fit; empty if it does."""
        state, count = self._states[place], len(self._states)
        if limits.deadline_ms is not None and state.p99 > limits.deadline_ms * (1 - margin):
            return f"p99 {state.p99:.3g} ms, deadline {limits.deadline_ms:g} ms"
        last = state.rank == count - 1
        if limits.load is not None and not last:
            most = (state.rank + 1 - margin) / count
            if limits.load >= most:
                return f"load {limits.load:.2f}, up to {most:.2f}"
        if limits.memory_bytes is not None:
            peak = state.point.peak_bytes
            if peak is None:
                return "its memory is not known"
            if peak > limits.memory_bytes:
                return f"{peak} bytes, {limits.memory_bytes:g} allowed"
        return ""

    def report(self) -> AdaptiveReport:
        """Return what the calls did so far."""
        with self._lock:
            weights = [state.point.weight_bytes for state in self._states]
            known = [each for each in weights if each is not None]
            return AdaptiveReport(
                tuple(
                    (s.point.name, s.calls, s.mean, s.p99, s.point.drop, s.missed)
                    for s in self._states
                ),
                *(self._calls, self._switches, self._unfit),
                sum(known) if len(known) == len(weights) else None,
                self._notes,
            )


def _check_limits(limits: Limits) -> None:
    problems = []
    allowed: Mapping[str, float] = {"deadline_ms": math.inf, "load": 1.0, "memory_bytes": math.inf}
    for name, high in allowed.items():
        value = getattr(limits, name)
        if value is not None and not (is_number(value) and 0 <= value <= high):
            upper = " to 1" if high == 1 else " or more"
            problems.append(f"{name}: required a number of 0{upper}, got {value!r}")
    if problems:
        raise InputError(listing("Adaptive:", problems))
