"""Results: all that a search found, as plain data: what tables, pictures and reports show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.tune.measurement import MEASURED, Measurement


@dataclasses.dataclass(frozen=True)
class Layer:
    """A group of layers in the chosen arrangement.

    Attributes:
      name: of the group, a prefix of parameter paths.
      parameters, flops: values of its parameters, and its arithmetic in one call.
      precision: its level.
      sensitivity: divergence of the outputs with this group alone at the lower precision (of
        ``sensitivity_level``); None if not measured.
      sensitivity_level: that precision.
      time_ms: its products alone, measured one by one; None if not measured.
      time_share: of the sum over all groups.
      bound_ms: no faster on this device (roofline).
      achieved: bound / time.
    """

    name: str
    parameters: int
    flops: int
    precision: str
    sensitivity: float | None = None
    sensitivity_level: str = ""
    time_ms: float | None = None
    time_share: float | None = None
    bound_ms: float | None = None
    achieved: float | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """What a search found.

    Attributes:
      model: in words.
      objective: ``latency``, ``throughput``, ``memory`` or ``cost``.
      metric: name of the metric; higher is better.
      reference: the metric of the float32 reference.
      max_drop: how much worse is allowed; ``drop_kind``: ``absolute`` or ``relative``.
      constraints: as given.
      measurements: every candidate; that at ``baseline`` is the float32 model as it came.
      baseline, chosen: places in ``measurements``; ``chosen`` is None if nothing is allowed.
      front: places of the Pareto front (time of a sample against drop), fastest first.
      layers: of the chosen arrangement.
      device: the micro-benchmark of the device.
      environment: versions, device, flags.
      seconds: spent, by stage.
      notes: what was left out and why, fallbacks, warnings.
      verdict: one sentence: what was won, or that nothing beat the baseline.
    """

    model: str
    objective: str
    metric: str
    reference: float
    max_drop: float
    drop_kind: str
    constraints: Mapping[str, float]
    measurements: Sequence[Measurement]
    baseline: int
    chosen: int | None
    front: Sequence[int] = ()
    layers: Sequence[Layer] = ()
    device: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    verdict: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["measurements"] = [each.to_json() for each in self.measurements]
        data["layers"] = [dataclasses.asdict(each) for each in self.layers]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Results:
        """Rebuild results.

        Raises:
          TypeError: fields that are none.
        """
        found = dict(data)
        found["measurements"] = tuple(map(Measurement.from_json, data["measurements"]))
        found["layers"] = tuple(Layer(**each) for each in data.get("layers", ()))
        return cls(**found)


def pareto(measurements: Sequence[Measurement]) -> list[int]:
    """Return the places of what nothing else beats in time of a sample and in drop, fastest first.

    What was not timed and judged is left out; of equals the earlier stays.
    """

    def point(each: Measurement) -> tuple[float, float]:
        assert each.p50_ms is not None
        assert each.drop is not None
        return each.p50_ms / max(1, each.batch), max(0.0, each.drop)

    known = [
        i
        for i, each in enumerate(measurements)
        if each.status == MEASURED and each.p50_ms is not None and each.drop is not None
    ]
    front: list[int] = []
    for i in sorted(known, key=lambda i: (*point(measurements[i]), i)):
        if not front or point(measurements[i])[1] < point(measurements[front[-1]])[1]:
            front.append(i)
    return front
