"""Points of Adaptive: arrangements that are ready to run, and how a plan gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxinfer.core.errors import InputError, JaxinferError, listing


class Point(NamedTuple):
    """One arrangement, ready to run.

    Attributes:
      name: unique, for the record.
      model: called with the inputs (a TunedModel, an Executable, any function).
      p50_ms, p99_ms: of a call, in milliseconds.
      batch: samples that a call takes.
      drop: how much worse than the reference; lower is more accurate.
      weight_bytes: of its parameters; None if unknown.
      peak_bytes: that one call needs of a device; None if unknown: it fits no memory limit.
    """

    name: str
    model: Callable[..., Any]
    p50_ms: float
    p99_ms: float
    batch: int = 1
    drop: float = 0.0
    weight_bytes: int | None = None
    peak_bytes: int | None = None


def points_of(plan: Any, keep: int) -> tuple[list[Point], list[str]]:
    """Build points of a plan's Pareto front, all of the batch of the plan's choice.

    Args:
      plan: has ``results`` (``Results``), ``front`` (places in ``results.measurements``, fastest
        first) and ``candidate(place)``.
      keep: how many: the fastest, the most accurate, and between them at equal steps.

    Returns:
      Points, fastest first; and why others were left out.

    Raises:
      InputError: nothing to choose from.
    """
    if not isinstance(keep, int) or keep < 1:
        raise InputError(f"keep: required an integer of 1 or more, got {keep!r}")
    results = plan.results
    notes: list[str] = []
    held = results.measurements
    front = [i for i in plan.front if held[i].p50_ms is not None and held[i].drop is not None]
    if not front:
        raise InputError("Adaptive: this plan has no candidate that was measured and judged")
    chosen = results.chosen if results.chosen is not None else front[-1]
    batch = held[chosen].batch
    same = [place for place in front if held[place].batch == batch]
    notes += [
        f"left out: {held[place].label}: takes batches of {held[place].batch}, not {batch}"
        for place in front
        if place not in same
    ]
    if not same:
        same = [chosen]
    picked = spread(same, keep)
    notes += [
        f"left out: {held[place].label}: keep={keep}" for place in same if place not in picked
    ]
    points: list[Point] = []
    for place in picked:
        found = held[place]
        try:
            model = plan.candidate(place)
        except JaxinferError as error:
            notes.append(f"left out: {found.label}: {error}")
            continue
        name = (
            found.label
            if found.label not in {p.name for p in points}
            else f"{found.label} #{place}"
        )
        points.append(
            Point(
                *(name, model, found.p50_ms, found.p99_ms, found.batch, found.drop),
                *(found.weight_bytes, found.peak_bytes),
            )
        )
    if not points:
        raise InputError(listing("Adaptive: no candidate could be built:", notes))
    return points, notes


def spread(places: Sequence[int], keep: int) -> list[int]:
    """Return some places: both ends, and between them at equal steps.

    >>> spread([4, 7, 1, 9, 2], 3), spread([4, 7], 3), spread([4, 7], 1)
    ([4, 1, 2], [4, 7], [7])
    """
    if len(places) <= keep:
        return list(places)
    if keep == 1:
        return [places[-1]]
    step = (len(places) - 1) / (keep - 1)
    return [places[round(i * step)] for i in range(keep)]


def problems_of(points: Sequence[Point]) -> list[str]:
    """Return why points cannot stand for one another; empty if they can."""
    if not points:
        return ["required at least one point"]
    problems = []
    names = [point.name for point in points]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"points that are there twice: {', '.join(doubled)}")
    if len(batches := {point.batch for point in points}) > 1:
        sizes = ", ".join(map(str, sorted(batches)))
        problems.append(f"points take batches of {sizes}; a call must fit all of them")
    for point in points:
        times = (point.p50_ms, point.p99_ms)
        if not all(is_number(each) and each > 0 for each in times) or times[1] < times[0]:
            problems.append(f"{point.name}: required 0 < p50_ms <= p99_ms, got {times}")
        if not is_number(point.drop):
            problems.append(f"{point.name}: required a number for drop, got {point.drop!r}")
        if not callable(point.model):
            problems.append(f"{point.name}: its model cannot be called")
    return problems


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return (
        not isinstance(value, (bool, str)) and hasattr(value, "__float__") and math.isfinite(value)
    )
