"""What tables, pictures and pages show of ``Results``: order, marks, speed-ups, numbers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxinfer.tune.measurement import MEASURED, Measurement
from jaxinfer.tune.objective import CONSTRAINTS
from jaxinfer.tune.results import Results

NONE = "–"
"""Shown where nothing is known."""

SAME = 3
"""Reasons that differ in their numbers only are grouped from this many on."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A candidate as it is shown.

    Attributes:
      place: in ``Results.measurements``.
      number: by which tables and pictures call it: 1 is the best by the objective; those that were
        rejected follow.
      measurement: what was found.
      chosen, baseline, front: whether it is that one, or on the Pareto front.
      speedup: of the baseline's time by its own; None if either is unknown.
      gain: by the objective, above 1 is better.
    """

    place: int
    number: int
    measurement: Measurement
    chosen: bool
    baseline: bool
    front: bool
    speedup: float | None
    gain: float | None

    @property
    def mark(self) -> str:
        """Words for the table."""
        return self.word + (" *" if self.front else "")

    @property
    def word(self) -> str:
        """The same without the front."""
        found = [name for name in ("chosen", "baseline") if getattr(self, name)]
        if not found and not self.taken:
            return "not allowed"
        return ", ".join(found)

    @property
    def taken(self) -> bool:
        """Whether it was measured, and nothing speaks against it."""
        return self.measurement.status == MEASURED and not self.measurement.reason


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is made small or large.

    Attributes:
      name, unit: in words.
      value: of a measurement.
      larger: whether more is better.
    """

    name: str
    unit: str
    value: Callable[[Measurement], float | None]
    larger: bool = False


def sample_ms(measurement: Measurement) -> float | None:
    """Return the median time of a sample in milliseconds."""
    time = finite(measurement.p50_ms)
    return None if time is None else time / max(1, measurement.batch)


OBJECTIVES: Mapping[str, Objective] = {
    "latency": Objective("median time of a call", "ms", lambda each: each.p50_ms),
    "p99": Objective("99th percentile of a call", "ms", lambda each: each.p99_ms),
    "throughput": Objective("samples per second", "/s", lambda each: each.throughput, larger=True),
    "memory": Objective("peak memory", "bytes", lambda each: each.peak_bytes),
    "cost": Objective("a function of the caller's; sorted by time of a sample", "ms", sample_ms),
}


def objective_of(results: Results) -> Objective:
    """Return the objective of a search; one that is not known here is shown as a function."""
    return OBJECTIVES.get(results.objective, OBJECTIVES["cost"])


def limits(results: Results) -> list[str]:
    """Return the constraints in words."""
    words = {"least": "at least", "most": "at most"}
    return [
        f"{name} {words[CONSTRAINTS.get(name, 'most')]} {given(limit)}"
        for name, limit in results.constraints.items()
    ]


def rows(results: Results) -> list[Row]:
    """Return every candidate: what was measured, best first, then what was rejected, in order.

    The baseline and the chosen one are always among the first kind.
    """
    objective = objective_of(results)
    kept = {results.baseline, results.chosen}
    places = range(len(results.measurements))

    def shown(place: int) -> bool:
        return place in kept or results.measurements[place].status == MEASURED

    def order(place: int) -> tuple[bool, bool, float, int]:
        value = finite(objective.value(results.measurements[place]))
        known = value if value is not None else 0.0
        return not shown(place), value is None, -known if objective.larger else known, place

    ordered = sorted((place for place in places if shown(place)), key=order)
    ordered += [place for place in places if not shown(place)]
    return [_row(results, place, number) for number, place in enumerate(ordered, 1)]


def measured(results: Results) -> list[Row]:
    """Return what was measured, best first, the baseline among it."""
    kept = {results.baseline, results.chosen}
    return [row for row in rows(results) if row.place in kept or row.measurement.status == MEASURED]


def rejected(results: Results) -> list[Row]:
    """Return what was rejected or failed, or measured and not allowed, by number."""
    return [row for row in rows(results) if not row.taken]


def grouped(found: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return reasons with their candidates; many that differ in numbers only are one reason."""
    equal: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        stem = re.sub(r"\d[\d.,e+-]*", "#", row.measurement.reason)
        equal.setdefault((row.measurement.status, stem), []).append(row)
    groups: list[tuple[str, list[Row]]] = []
    for members in equal.values():
        reasons = list(dict.fromkeys(row.measurement.reason for row in members))
        if len(reasons) == 1:
            groups.append((reasons[0], members))
        elif len(members) >= SAME:
            groups.append((f"{reasons[0]} (the first of {len(members)} like it)", members))
        else:
            groups += [(row.measurement.reason, [row]) for row in members]
    return [(reason or "no reason was recorded", members) for reason, members in groups]


def row_at(results: Results, place: int | None) -> Row | None:
    """Return the row of a place in the measurements."""
    return next((row for row in rows(results) if row.place == place), None)


def won(results: Results) -> bool:
    """Whether something that is allowed beat the baseline."""
    return results.chosen is not None and results.chosen != results.baseline


def sentence(results: Results) -> str:
    """Return the verdict; where the search gave none, one made from the numbers."""
    if results.verdict.strip():
        return results.verdict.strip().splitlines()[0].removeprefix("optimize: ")
    objective = objective_of(results)
    row = row_at(results, results.chosen)
    if row is None:
        return "Nothing is allowed: no candidate keeps to the allowed drop and the constraints."
    if row.baseline:
        return "Nothing beat the baseline: the model is fastest as it came."
    known = row.gain if results.objective in OBJECTIVES and results.objective != "cost" else None
    gain = f"{times(known)} better" if known else "better"
    lost = drop_text(row.measurement.drop, results.drop_kind)
    return (
        f"{row.measurement.label}: {gain} than the baseline ({objective.name.partition(';')[0]}), "
        f"for a drop of {lost} in {results.metric}."
    )


def reasons(results: Results) -> list[str]:
    """Return what follows the verdict's first line: how near the search came."""
    more = [line.strip() for line in results.verdict.strip().splitlines()[1:] if line.strip()]
    return more or ([] if results.chosen is not None else reachable(results))


def reachable(results: Results) -> list[str]:
    """Return how near the search came to what was asked, for when nothing is allowed.

    One line for the drop and one for each constraint, the best that any candidate reached.
    """
    lines = []
    judged = [each for each in results.measurements if finite(each.drop) is not None]
    if judged:
        best = min(judged, key=lambda each: float(each.drop or 0))
        lines.append(
            f"smallest drop: {drop_text(best.drop, results.drop_kind)} ({best.label}), allowed "
            f"{given(results.max_drop, results.drop_kind)}"
        )
    for name, limit in results.constraints.items():
        values = [
            (value, each)
            for each in results.measurements
            if (value := finite(getattr(each, name, None))) is not None
        ]
        if not values:
            lines.append(f"{name}: measured of no candidate, required {given(limit)}")
            continue
        pick = max if CONSTRAINTS.get(name) == "least" else min
        value, best = pick(values, key=lambda pair: pair[0])
        lines.append(f"{name}: best {value:.6g} ({best.label}), required {given(limit)}")
    return lines


def _row(results: Results, place: int, number: int) -> Row:
    one, base = results.measurements[place], results.measurements[results.baseline]
    objective = objective_of(results)
    per_call = results.objective in ("latency", "p99")
    time: Callable[[Measurement], float | None] = (
        (lambda each: finite(each.p50_ms)) if per_call else sample_ms
    )
    gain = _ratio(finite(objective.value(base)), finite(objective.value(one)))
    return Row(
        place,
        number,
        one,
        chosen=place == results.chosen,
        baseline=place == results.baseline,
        front=place in results.front,
        speedup=_ratio(time(base), time(one)),
        gain=1 / gain if gain and objective.larger else gain,
    )


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def finite(value: Any) -> float | None:
    """Return a number, or None for what is none, NaN or infinite.

    >>> finite(2), finite(float("nan")), finite("inf"), finite(None)
    (2.0, None, None, None)
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def number(value: Any, digits: int = 3) -> str:
    """Return a number with so many digits that count, without exponents where they are short.

    >>> number(12.3456), number(0.5), number(123456), number(2e-7), number(None)
    ('12.3', '0.500', '123456', '2.00e-07', '–')
    """
    found = finite(value)
    if found is None:
        return NONE
    if found == 0:
        return "0"
    if not 1e-4 <= abs(found) < 1e7:
        return f"{found:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(found))))
    return f"{found:.{decimals}f}"


def drop_text(value: Any, kind: str) -> str:
    """Return a drop: in percent if it is relative to the reference, else in the metric's unit.

    >>> drop_text(0.005, "relative"), drop_text(0.005, "absolute")
    ('0.5 %', '0.00500')
    """
    found = finite(value)
    if found is None:
        return NONE
    return f"{100 * found:.3g} %" if kind == "relative" else number(found)


def given(value: Any, kind: str = "absolute") -> str:
    """Return a limit as it was given: no digits are added.

    >>> given(0.005), given(0.005, "relative"), given(2147483648)
    ('0.005', '0.5 %', '2147483648')
    """
    found = finite(value)
    if found is None:
        return NONE
    return f"{100 * found:.6g} %" if kind == "relative" else f"{found:.10g}"


def times(value: float | None) -> str:
    """Return a factor.

    >>> times(2.0), times(0.987), times(123.4), times(None)
    ('2.00x', '0.99x', '123x', '–')
    """
    if value is None:
        return NONE
    return f"{value:.2f}x" if 0.1 <= value < 10 else f"{number(value)}x"


def percent(value: Any) -> str:
    """Return a share in percent.

    >>> percent(0.1234)
    '12.3 %'
    """
    found = finite(value)
    return NONE if found is None else f"{100 * found:.3g} %"


def megabytes(value: Any) -> str:
    """Return bytes in MB (10^6)."""
    found = finite(value)
    return NONE if found is None else number(found / 1e6)


def count(value: Any) -> str:
    """Return a count with a decimal prefix.

    >>> count(590_000), count(12)
    ('590 k', '12')
    """
    found = finite(value)
    if found is None:
        return NONE
    for power, prefix in ((9, " G"), (6, " M"), (3, " k")):
        if abs(found) >= 10**power:
            return number(found / 10**power) + prefix
    return f"{found:g}"


def plain(value: Any) -> str:
    """Return text on one line: control characters are spelled out, and there is no lone surrogate.

    >>> plain("a\\x1b[31m\\n\\ud800b")
    'a\\\\x1b[31m\\\\n\\\\ud800b'
    """
    text = str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(value: Any, most: int) -> str:
    """Return text of at most so many characters, its middle left out.

    >>> shortened("encoder.layer.0.attention", 15)
    'encoder…tention'
    """
    text = plain(value)
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"


def without_common(names: Sequence[str]) -> list[str]:
    """Return dotted names without the parts that all begin with and all end with.

    >>> without_common(["encoder.layer.0.attention", "encoder.layer.1.attention"])
    ['0', '1']
    >>> without_common(["head"])
    ['head']
    """
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts), default=0)
    if len(set(names)) < 2:
        return list(names)
    front = next((i for i in range(shortest) if len({each[i] for each in parts}) > 1), shortest)
    front = min(front, shortest - 1)
    back = 0
    while back < shortest - 1 - front and len({each[-1 - back] for each in parts}) == 1:
        back += 1
    return [".".join(each[front : len(each) - back]) for each in parts]


def facts(data: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Return nested plain data as pairs of a dotted name and a value in words."""
    found: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found += facts(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            found.append((plain(name), ", ".join(map(plain, value)) or NONE))
        elif isinstance(value, float):
            found.append((plain(name), number(value)))
        else:
            found.append((plain(name), NONE if value is None else plain(value)))
    return found
