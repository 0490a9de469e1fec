"""Measurement: what is known of one candidate, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MEASURED, REJECTED, FAILED = "measured", "rejected", "failed"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was found of a candidate.

    Attributes:
      candidate: ``Candidate.to_json()``.
      label: its short name.
      stage: of the search, where it was proposed.
      status: ``measured``: it was judged and timed, and is not allowed if there is a ``reason``;
        ``rejected``: not timed (bounds, memory, wrong numbers, accuracy, budget);
        ``failed``: it could not be made.
      reason: why it was rejected or failed, with numbers.
      times_ms: of single calls, in milliseconds, in the order measured.
      batch: samples in a call.
      bound_ms: no call can be faster on this device (roofline); None if unknown.
      peak_bytes: of one device: arguments + results + temporaries - aliased.
      weight_bytes: of the parameters.
      compile_s: seconds to trace, transform and compile.
      first_call_ms: of the first call after compiling.
      metric: on the data that judge; None if it was not judged.
      drop: how much worse than the reference, in the metric's unit (or relative to it).
      similarity: to the float32 outputs: ``cosine``, ``max``, ``top1``, ``kl`` where they apply.
      notes: fallbacks, blocked parameters and the like.
    """

    candidate: Mapping[str, Any]
    label: str
    stage: str = ""
    status: str = MEASURED
    reason: str = ""
    times_ms: Sequence[float] = ()
    batch: int = 1
    bound_ms: float | None = None
    peak_bytes: int | None = None
    weight_bytes: int | None = None
    compile_s: float | None = None
    first_call_ms: float | None = None
    metric: float | None = None
    drop: float | None = None
    similarity: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    def percentile_ms(self, q: float) -> float | None:
        """Return a percentile of the times, or None without times."""
        return float(np.percentile(self.times_ms, q)) if len(self.times_ms) else None

    @property
    def p50_ms(self) -> float | None:
        """The median time of a call in milliseconds."""
        return self.percentile_ms(50)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile; of fewer than a hundred calls it is near the largest."""
        return self.percentile_ms(99)

    @property
    def spread_ms(self) -> float | None:
        """The median distance from the median (MAD)."""
        if not len(self.times_ms):
            return None
        times = np.asarray(self.times_ms)
        return float(np.median(np.abs(times - np.median(times))))

    @property
    def throughput(self) -> float | None:
        """Samples per second, by the median time."""
        return self.batch * 1e3 / self.p50_ms if self.p50_ms else None

    def replace(self, **changes: Any) -> Measurement:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**dataclasses.asdict(self), "times_ms": [round(t, 5) for t in self.times_ms]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Rebuild a measurement.

        Raises:
          TypeError: fields that are none.
        """
        return cls(**data)
