"""The pictures of a report, as SVG elements for a page; None where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinfer.tune.report import _figure, _summary
from jaxinfer.tune.report._figure import COLOURS
from jaxinfer.tune.report._summary import Row, finite, number
from jaxinfer.tune.results import Layer, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEADING = 6
"""Candidates whose single times are shown."""

_WIDTH = 9.6


def pareto(results: Results) -> str | None:
    """Return the picture of all candidates: time of a sample against drop.

    Time is logarithmic. The drop is linear up to what is allowed, or to less where all that is
    allowed is far below it, and logarithmic above.

    Raises:
      MissingExtraError: no matplotlib.
    """
    with _figure.style():
        made = pareto_figure(results)
        if made is None:
            return None
        tips = {
            f"candidate-{row.number}": _tip(row, results)
            for row in _summary.rows(results)
            if _point(row) is not None
        }
        return _figure.svg(made, "pareto", "Time of a sample against drop", tips)


def distribution(results: Results) -> str | None:
    """Return the picture of every single time of the leading candidates.

    Raises:
      MissingExtraError: no matplotlib.
    """
    with _figure.style():
        made = distribution_figure(results)
        return made and _figure.svg(made, "times", "Times of single calls")


def layers(results: Results) -> str | None:
    """Return the picture of the groups of layers: time, and achieved share of the roofline.

    Raises:
      MissingExtraError: no matplotlib.
    """
    with _figure.style():
        made = layers_figure(results)
        return made and _figure.svg(made, "layers", "Time and roofline of groups of layers")


def sensitivity(results: Results) -> str | None:
    """Return the picture of sensitivity against time share of the groups of layers.

    Raises:
      MissingExtraError: no matplotlib.
    """
    with _figure.style():
        made = sensitivity_figure(results)
        return made and _figure.svg(made, "sensitivity", "Sensitivity against share of the time")


def _point(row: Row) -> tuple[float, float] | None:
    time, drop = _summary.sample_ms(row.measurement), finite(row.measurement.drop)
    return None if time is None or drop is None or time <= 0 else (time, drop)


def _tip(row: Row, results: Results) -> str:
    each = row.measurement
    return _summary.plain(
        f"{row.number}: {each.label}: {number(each.p50_ms)} ms, "
        f"{_summary.times(row.speedup)}, drop {_summary.drop_text(each.drop, results.drop_kind)}"
    )


def pareto_figure(results: Results) -> Figure | None:
    """Return the figure of ``pareto``; within ``_figure.style``."""
    found = {row.place: row for row in _summary.rows(results)}
    points = {place: at for place, row in found.items() if (at := _point(row)) is not None}
    if not points:
        return None
    made = _figure.figure(_WIDTH, 5.0)
    axes = made.add_subplot()
    base = points.get(results.baseline)
    _time_axis(axes, [x for x, _ in points.values()], "median time of a sample, ms")
    _drop_axis(axes, [y for _, y in points.values()], results)
    if base is not None:
        axes.axvline(base[0], color=COLOURS["base"], linewidth=0.8, linestyle=(0, (4, 3)))
        _speedups(axes, base[0])
    front = [points[place] for place in results.front if place in points]
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        axes.step(xs, ys, where="post", color=COLOURS["front"], linewidth=1.3, zorder=2)
    for place, (x, y) in points.items():
        row = found[place]
        colour, size, marker = _look(row)
        hollow = not (row.chosen or row.baseline or row.taken)
        axes.scatter(
            [x], [y], s=size, marker=marker, zorder=4 if row.chosen else 3,
            facecolors=COLOURS["paper"] if hollow else colour,
            edgecolors=colour, linewidths=1.2, gid=f"candidate-{row.number}",
        )  # fmt: skip
    _figure.place_labels(axes, _pareto_labels(found, points), list(points.values()))
    return made


def _look(row: Row) -> tuple[str, float, str]:
    if row.chosen:
        return COLOURS["chosen"], 150, "*"
    if row.baseline:
        return COLOURS["base"], 48, "s"
    if row.front:
        return COLOURS["front"], 34, "o"
    return COLOURS["point" if row.taken else "bad"], 22, "o"


def _pareto_labels(
    found: Mapping[int, Row], points: Mapping[int, tuple[float, float]]
) -> list[tuple[float, float, str, str, bool]]:
    """Return texts by importance: the chosen and the baseline in words, the others by number."""

    def rank(row: Row) -> tuple[bool, bool, bool, int]:
        return not row.chosen, not row.baseline, not row.front, row.number

    made = []
    for row in sorted((found[place] for place in points), key=rank):
        text = str(row.number)
        if row.chosen:
            gain = f", {_summary.times(row.speedup)} as fast" if row.speedup else ""
            text = f"{row.number} chosen{', the baseline' if row.baseline else gain}"
        elif row.baseline:
            text = f"{row.number} baseline"
        must = row.chosen or row.baseline
        made.append((*points[row.place], text, _look(row)[0], must))
    return made


def _time_axis(axes: Axes, values: Sequence[float], label: str, least: float = 1.6) -> None:
    """Make x logarithmic, with plain numbers, and at least a factor ``least`` wide."""
    low, high = min(values), max(values)
    pad = max((high / low) ** 0.08, math.sqrt(max(1.0, least * low / high)), 1.04)
    axes.set_xscale("log")
    axes.set_xlim(low / pad, high * pad)
    _plain_ticks(axes, low / pad, high * pad)
    axes.set_xlabel(label)


def _plain_ticks(axes: Any, low: float, high: float, suffix: str = "") -> None:
    """Put round numbers on a logarithmic x axis."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    if high / low > 5:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        wide = high / low
        steps = (1, 1.5, 2, 3, 4, 5, 7) if wide < 12 else (1, 2, 3, 5) if wide < 60 else (1, 2, 5)
        steps = steps if wide < 500 else (1,)
        ticks = [step * 10.0**power for power in decades for step in steps]
    else:
        ticks = list(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:.10g}{suffix}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def _speedups(axes: Axes, base: float) -> None:
    """Put a second axis above: how many times as fast as the baseline."""
    above = axes.twiny()
    low, high = axes.get_xlim()
    above.set_xscale("log")
    above.set_xlim(base / low, base / high)
    _plain_ticks(above, base / high, base / low, "x")
    above.set_xlabel("times as fast as the baseline (left is faster)")
    above.grid(False)
    above.spines["top"].set_visible(True)


def _drop_axis(axes: Axes, values: Sequence[float], results: Results) -> None:
    """Make y linear near zero and logarithmic above; shade what is not allowed."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    allowed = finite(results.max_drop) or 0.0
    linear = _linear_part(values, max(0.0, allowed))
    low, high = min(0.0, allowed, *values), max(0.0, allowed, *values)
    above = high > 1.02 * linear
    # decades above the linear part, and its height in decades: the linear part is half or more
    decades = max(math.log10(high / linear), 0.3) if above else 0.3
    axes.set_yscale("symlog", linthresh=linear, linscale=max(1.0, decades * 1.1))
    bottom = low * 1.15 - 0.06 * linear if low >= -linear else low * 2
    top = high * 10 ** (0.08 * decades) if above else linear * 1.12
    axes.set_ylim(bottom, top)
    ticks = [0.0, *(_linear_ticks(MaxNLocator, linear))]
    if above:
        ticks += [10.0**p for p in range(math.floor(math.log10(linear)) + 1, 40) if 10.0**p <= top]
    if low < -linear:
        ticks += [-(10.0**p) for p in range(-12, 40) if linear < 10.0**p <= -bottom]
    elif low < -0.25 * linear:
        ticks += [-tick for tick in ticks if 0 < tick <= -bottom]
    ticks = sorted(set(ticks))
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([_drop_tick(t, results) for t in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhspan(allowed, top, color=COLOURS["wash"], zorder=0, linewidth=0)
    axes.axhline(allowed, color=COLOURS["bad"], linewidth=1)
    axes.annotate(
        f"allowed drop {_summary.given(allowed, results.drop_kind)}",
        (1, allowed), xycoords=("axes fraction", "data"), xytext=(-4, 3),
        textcoords="offset points", ha="right", color=COLOURS["bad"], fontsize=8,
    )  # fmt: skip
    kind = ", relative" if results.drop_kind == "relative" else ""
    axes.set_ylabel(f"drop in {_summary.shortened(results.metric, 40)}{kind}")


def _linear_part(values: Sequence[float], allowed: float) -> float:
    """Return up to where drops are linear: what is allowed, or less if all that is, is far below.

    >>> _linear_part([0.0, 0.004, 0.1], 0.005), _linear_part([0.0, 2e-5], 0.01)
    (0.005, 1e-05)
    """
    size = sorted(abs(value) for value in values if value)
    if not allowed:
        return size[len(size) // 2] if size else 1e-6
    highest = max((value for value in size if value <= allowed), default=0.0)
    if not highest or highest > allowed / 4:
        return allowed
    # below a ten thousandth of what is allowed nothing is worth a picture
    return max(10.0 ** math.floor(math.log10(highest)), allowed * 1e-4)


def _linear_ticks(locator: Callable[..., Any], linear: float) -> list[float]:
    found = locator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(0, linear)
    return [float(tick) for tick in found if 0 < tick <= linear * 1.0001]


def _drop_tick(value: float, results: Results) -> str:
    if results.drop_kind == "relative":
        return f"{100 * value:.3g} %"
    return f"{value:.3g}"


def distribution_figure(results: Results) -> Figure | None:
    """Return the figure of ``distribution``; within ``_figure.style``."""
    found = leading(results)
    if not found:
        return None
    made = _figure.figure(_WIDTH, 0.9 + 0.62 * len(found))
    axes = made.add_subplot()
    everything = [float(t) for row in found for t in row.measurement.times_ms if finite(t)]
    _time_axis(
        axes,
        everything,
        "time of a call, ms  (each point one call; bar: quartiles, black: median, red: p99)",
        1.2,
    )
    rng = np.random.default_rng(0)
    for index, row in enumerate(found):
        y = len(found) - 1 - index
        times = np.asarray([float(t) for t in row.measurement.times_ms if finite(t)])
        colour = _look(row)[0]
        spread = rng.uniform(-0.16, 0.16, len(times))
        axes.scatter(times, y + spread, s=7, color=colour, alpha=0.45, linewidths=0, zorder=2)
        low, middle, high, far = np.percentile(times, (25, 50, 75, 99))
        axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.55, zorder=3,
                  solid_capstyle="butt")  # fmt: skip
        axes.plot(
            [middle, middle], [y - 0.26, y + 0.26], color=COLOURS["ink"], linewidth=1.6, zorder=4
        )
        axes.plot([far], [y], marker="|", markersize=12, color=COLOURS["bad"], zorder=4)
        axes.annotate(
            f"{row.number}  {_summary.shortened(row.measurement.label, 64)}"
            f"{f' – {row.word}' if row.word else ''}, {len(times)} calls",
            (0, y + 0.3), xycoords=("axes fraction", "data"), xytext=(4, 1),
            textcoords="offset points", va="bottom", color=colour, fontsize=8.5,
        )  # fmt: skip
    axes.set_ylim(-0.5, len(found) - 0.2)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return made


def leading(results: Results) -> list[Row]:
    """Return the candidates whose times are shown: the best, and the baseline always."""
    found = [
        row for row in _summary.measured(results)
        if any(finite(t) for t in row.measurement.times_ms)
    ]  # fmt: skip
    kept = [row for row in found if row.chosen or row.baseline]
    others = [row for row in found if row not in kept]
    others.sort(key=lambda row: (not row.front, row.number))
    kept += others[: max(0, LEADING - len(kept))]
    return sorted(kept, key=lambda row: row.number)


def _levels(found: Sequence[Layer]) -> dict[str, str]:
    """Return a colour for each precision."""
    names = list(dict.fromkeys(each.precision for each in found))
    order = ("front", "chosen", "base", "bad", "point", "muted")
    return {name: COLOURS[order[i % len(order)]] for i, name in enumerate(names)}


def layers_figure(results: Results) -> Figure | None:
    """Return the figure of ``layers``; within ``_figure.style``."""
    found = [each for each in results.layers if finite(each.time_ms) is not None]
    if not found:
        return None
    made = _figure.figure(_WIDTH, 1.1 + 0.24 * len(found))
    left, right = made.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colours = _levels(found)
    places = range(len(found))[::-1]
    for place, each in zip(places, found, strict=True):
        time = finite(each.time_ms) or 0.0
        left.barh(place, time, height=0.72, color=colours[each.precision])
        left.annotate(
            _summary.percent(each.time_share), (time, place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=COLOURS["muted"],
        )  # fmt: skip
        achieved = finite(each.achieved)
        if achieved is None:
            right.annotate(
                "not measured", (0, place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=7.5, color=COLOURS["muted"],
            )  # fmt: skip
            continue
        right.barh(place, 100, height=0.72, color=COLOURS["line"])
        right.barh(place, 100 * min(1.0, achieved), height=0.72, color=colours[each.precision])
        right.annotate(
            f"{100 * achieved:.0f} %", (102, place), va="center", fontsize=7.5,
            color=COLOURS["muted"], annotation_clip=False,
        )  # fmt: skip
    left.set_yticks(list(places), [_summary.shortened(each.name, 34) for each in found])
    left.set_ylim(-0.6, len(found) - 0.4)
    longest = max(finite(each.time_ms) or 0.0 for each in found)
    left.set_xlim(0, (longest or 1.0) * 1.16)
    right.set_xlim(0, 112)
    left.set_xlabel("time of its products, ms, and share")
    right.set_xlabel("achieved share of the roofline, %")
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    _level_legend(made, colours)
    return made


def sensitivity_figure(results: Results) -> Figure | None:
    """Return the figure of ``sensitivity``; within ``_figure.style``."""
    found = [
        each
        for each in results.layers
        if finite(each.time_share) is not None and finite(each.sensitivity) is not None
    ]
    if not found:
        return None
    from matplotlib.ticker import NullLocator

    made = _figure.figure(_WIDTH, 4.4)
    axes = made.add_subplot()
    colours = _levels(found)
    xs = [100 * float(each.time_share or 0) for each in found]
    ys = [float(each.sensitivity or 0) for each in found]
    positive = [y for y in ys if y > 0]
    axes.set_xlim(0, (max(xs) or 1.0) * 1.12)
    if positive and max(positive) / min(positive) > 20:
        floor = min(positive) / 3
        axes.set_yscale("log")
        axes.set_ylim(floor / 1.5, max(positive) * 3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.yaxis.set_minor_locator(NullLocator())
        ys = [max(y, floor) for y in ys]
    else:
        axes.set_ylim(0, (max(ys) or 1.0) * 1.18)
    for each, x, y in zip(found, xs, ys, strict=True):
        axes.scatter([x], [y], s=34, color=colours[each.precision], zorder=3)
    short = _summary.without_common([each.name for each in found])
    labels = [
        (x, y, _summary.shortened(name, 30), COLOURS["ink"], False)
        for name, x, y in sorted(
            zip(short, xs, ys, strict=True), key=lambda item: (-item[1], -item[2])
        )
    ]
    level = next((each.sensitivity_level for each in found if each.sensitivity_level), "")
    axes.set_xlabel("share of the time, %  (right: more to win)")
    axes.set_ylabel(f"divergence alone in {level or 'the lower precision'}")
    _level_legend(made, colours)
    _figure.place_labels(axes, labels, list(zip(xs, ys, strict=True)))
    return made


def _level_legend(made: Figure, colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=colour, label=_summary.shortened(name, 24)) for name, colour in colours.items()
    ]
    made.legend(
        handles=handles, loc="outside upper left", ncols=6, frameon=False, fontsize=8.5,
        handlelength=1.2,
    )  # fmt: skip
