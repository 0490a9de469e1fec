"""Objective and constraints: numbers of a measurement, lower is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.core.errors import InputError, listing
from jaxinfer.tune.measurement import Measurement

OBJECTIVES = ("latency", "p99", "throughput", "memory")
CONSTRAINTS = {
    "p50_ms": "most", "p99_ms": "most", "peak_bytes": "most", "weight_bytes": "most",
    "compile_s": "most", "first_call_ms": "most", "throughput": "least",
}  # fmt: skip
_BEFORE = ("peak_bytes", "weight_bytes", "compile_s", "first_call_ms")  # known without timing


@dataclasses.dataclass(frozen=True)
class Objective:
    """What to make small, and what to stay within.

    Attributes:
      of: ``latency`` (median milliseconds of a call), ``p99``, ``throughput`` (milliseconds of a
        sample), ``memory`` (peak bytes of a device), or a function of a Measurement.
      constraints: ``p50_ms``, ``p99_ms``, ``peak_bytes``, ``weight_bytes``, ``compile_s``,
        ``first_call_ms`` at most; ``throughput`` (samples per second) at least.

    Raises:
      InputError: names that there are not, numbers that nothing can meet; all at once.

    >>> Objective("latency", {"p99_ms": 20}).name
    'latency'
    """

    of: str | Callable[[Measurement], float] = "latency"
    constraints: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        if not callable(self.of) and self.of not in OBJECTIVES:
            have = ", ".join(OBJECTIVES)
            problems.append(f"objective: required {have} or a function, got {self.of!r}")
        for name, value in self.constraints.items():
            if name not in CONSTRAINTS:
                problems.append(f"constraints: there is no {name!r}; {', '.join(CONSTRAINTS)}")
            elif isinstance(value, bool) or not isinstance(value, (int, float)):
                problems.append(f"constraints: {name}: required a number, got {value!r}")
            elif not math.isfinite(value) or value <= 0:
                problems.append(f"constraints: {name}: required a number above 0, got {value!r}")
        if problems:
            raise InputError(listing("optimize:", problems))

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return "cost" if callable(self.of) else str(self.of)

    @property
    def is_time(self) -> bool:
        """Whether a lower bound on the time of a sample is a lower bound on it."""
        return self.of in ("latency", "p99", "throughput")

    def value(self, held: Measurement) -> float:
        """Return the number to make small; infinite where it is not known.

        Raises:
          InputError: the user's function fails, or gives no number.
        """
        if callable(self.of):
            return _cost(self.of, held)
        if self.of == "memory":
            # of equal memory the faster
            peak = held.peak_bytes if held.peak_bytes is not None else math.inf
            return peak
        if held.p50_ms is None or held.p99_ms is None:
            return math.inf
        if self.of == "throughput":
            return held.p50_ms / held.batch
        return held.p99_ms if self.of == "p99" else held.p50_ms

    def error(self, held: Measurement) -> float:
        """Return the standard error of a time: of a median, from the median deviation.

        Of normal noise: 1.2533 * 1.4826 * MAD / sqrt(n).
        """
        if held.spread_ms is None:
            return 0.0
        error = 1.2533 * 1.4826 * held.spread_ms / math.sqrt(len(held.times_ms))
        return error / held.batch if self.of == "throughput" else error

    def unfit(self, held: Measurement) -> str:
        """Return which constraint fails of what is known before timing; empty if none does."""
        return self._violated(held, _BEFORE)

    def violated(self, held: Measurement) -> str:
        """Return which constraint fails; empty if none does."""
        return self._violated(held, tuple(CONSTRAINTS))

    def _violated(self, held: Measurement, names: tuple[str, ...]) -> str:
        found = []
        for name, limit in self.constraints.items():
            value = getattr(held, name) if name in names else None
            if value is None:
                continue
            least = CONSTRAINTS[name] == "least"
            if value < limit if least else value > limit:
                found.append(f"{name} {value:.6g}, {'at least' if least else 'at most'} {limit:g}")
        return "; ".join(found)


def _cost(fn: Callable[[Any], Any], held: Measurement) -> float:
    if not len(held.times_ms):
        return math.inf
    try:
        value = float(fn(held))
    except Exception as error:
        raise InputError(
            f"optimize: the objective failed on {held.label}: {type(error).__name__}: {error}"
        ) from error
    if math.isnan(value):
        raise InputError(f"optimize: the objective is NaN for {held.label}")
    return value
