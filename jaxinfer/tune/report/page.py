"""The results of a search as one HTML page that needs nothing else: no network, no other file.

It reads the same without scripts; with them tables are sorted by a click on a header and the
recipe is copied by one. Every text of the results is escaped.
"""

from __future__ import annotations

import html as _html
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxinfer.tune.device import DeviceProfile
from jaxinfer.tune.report import _summary, pictures
from jaxinfer.tune.report._json import dumps
from jaxinfer.tune.report._style import SCRIPT, STYLE
from jaxinfer.tune.report._summary import Row, finite, given, number
from jaxinfer.tune.results import Results

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_TIME, _MORE, _SIZE = "faster slower", "more less", "smaller larger"


def html(results: Results, recipe_json: str | Mapping[str, Any] | None = None) -> str:
    """Return a report as a page.

    Args:
      results: of a search.
      recipe_json: the recipe, to copy from the page; None: the chosen candidate alone.

    Returns:
      A whole HTML document, a few hundred kB.

    Raises:
      MissingExtraError: no matplotlib.
    """
    parts = [
        _head(results),
        _key_figures(results),
        _pareto(results),
        _candidates(results),
        _rejected(results),
        _distribution(results),
        _layers(results),
        _spent(results),
        _device(results.device),
        _facts("Environment", "", results.environment),
        _notes(results),
        _recipe(results, recipe_json),
    ]
    title = escape(f"{results.model}: {results.objective}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def escape(value: Any) -> str:
    """Return text that is safe in an element and in an attribute."""
    return _html.escape(_summary.plain(value))


def _section(title: str, body: str, about: str = "") -> str:
    lead = f'<p class="about">{escape(about)}</p>' if about else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


Cell = str | tuple[str, float | None]
"""Text, or text with the number by which its column is sorted."""


def _table(
    header: Sequence[str],
    body: Sequence[Sequence[Cell]],
    *,
    classes: Sequence[str] = (),
    texts: int = 1,
    long: Sequence[int] = (),
) -> str:
    """Return a table; the cells are HTML.

    The first ``texts`` columns hold text; those in ``long`` break their lines.
    """
    head = "".join(
        f'<th scope="col"{" class=text" if i < texts else ""}>{escape(name)}</th>'
        for i, name in enumerate(header)
    )
    lines = []
    for index, cells in enumerate(body):
        made = []
        for i, cell in enumerate(cells):
            text, key = cell if isinstance(cell, tuple) else (cell, None)
            sort = f' data-key="{key!r}"' if key is not None else ""
            kind = "text long" if i in long else "text" if i < texts else ""
            made.append(f'<td class="{kind}"{sort}>{text}</td>')
        name = f' class="{classes[index]}"' if classes and classes[index] else ""
        lines.append(f"<tr{name}>{''.join(made)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _num(value: Any, shown: Callable[[Any], str] = number) -> Cell:
    return escape(shown(value)), finite(value)


def _head(results: Results) -> str:
    objective = _summary.objective_of(results)
    kind = "relative to the reference" if results.drop_kind == "relative" else "absolute"
    asked = [
        f"objective: {results.objective} ({objective.name})",
        f"metric: {results.metric}, {number(results.reference, 4)} in float32",
        f"allowed drop: {given(results.max_drop, results.drop_kind)} ({kind})",
        *_summary.limits(results),
    ]
    state = "won" if _summary.won(results) else "none" if results.chosen is None else "kept"
    verdict = f'<p class="verdict {state}">{escape(_summary.sentence(results))}</p>'
    if results.chosen is None:
        reached = "".join(f"<li>{escape(line)}</li>" for line in _summary.reasons(results))
        verdict += f'<ul class="reached">{reached}</ul>'
    return (
        f"<header><h1>{escape(results.model)}</h1>{verdict}"
        f'<p class="about">{escape("; ".join(asked))}</p></header>'
    )


def _key_figures(results: Results) -> str:
    base = results.measurements[results.baseline]
    row = _summary.row_at(results, results.chosen)
    if row is None or row.baseline:
        return ""
    one = row.measurement
    cards = [
        _card("median of a call", "ms", base.p50_ms, one.p50_ms, _TIME),
        _card("99th percentile", "ms", base.p99_ms, one.p99_ms, _TIME),
        _card("samples per second", "", base.throughput, one.throughput, _MORE),
        _card("peak memory", "MB", base.peak_bytes, one.peak_bytes, _SIZE, scale=1e-6),
        _card("weights", "MB", base.weight_bytes, one.weight_bytes, _SIZE, scale=1e-6),
        _drop_card(row, results),
    ]
    about = f"{row.number}: {one.label}, against the float32 model as it came"
    return _section("What was chosen", f'<div class="cards">{"".join(cards)}</div>', about)


def _card(name: str, unit: str, before: Any, after: Any, words: str, *, scale: float = 1.0) -> str:
    """Return a card of a figure; words: for better and for worse ("faster slower")."""
    old, new = finite(before), finite(after)
    shown = number(new * scale) if new is not None else _summary.NONE
    factor, bar = "", ""
    if old and new:
        gain = new / old if words == _MORE else old / new
        state = "better" if gain > 1.005 else "worse" if gain < 0.995 else ""
        word = words.split()[gain < 1]
        times = _summary.times(max(gain, 1 / gain))
        factor = (
            f'<span class="{state}">{times} {word}</span>' if state else "<span>the same</span>"
        )
        longest = max(old, new)
        bar = (
            f'<div class="bar base"><i style="width:{100 * old / longest:.1f}%"></i></div>'
            f'<div class="bar chosen"><i style="width:{100 * new / longest:.1f}%"></i></div>'
        )
    from_ = f"from {number(old * scale)} {unit}" if old is not None else ""
    return (
        f'<div class="card"><h3>{escape(name)}</h3><b>{escape(shown)} <small>{unit}</small></b>'
        f"<p>{escape(from_)} {factor}</p>{bar}</div>"
    )


def _drop_card(row: Row, results: Results) -> str:
    drop, allowed = finite(row.measurement.drop), finite(results.max_drop)
    bar = ""
    if drop is not None and allowed:
        share = min(100.0, max(0.0, 100 * drop / allowed))
        bar = f'<div class="bar limit"><i style="width:{share:.1f}%"></i></div>'
    return (
        f'<div class="card"><h3>{escape(_summary.shortened(results.metric, 40))}</h3>'
        f"<b>{escape(number(row.measurement.metric, 4))}</b>"
        f"<p>drop {escape(_summary.drop_text(drop, results.drop_kind))} of "
        f"{escape(given(allowed, results.drop_kind))} allowed</p>{bar}</div>"
    )


def _pareto(results: Results) -> str:
    picture = pictures.pareto(results)
    if picture is None:
        return _section("Time against accuracy", "<p>Nothing was both timed and judged.</p>")
    rows = _summary.rows(results)
    legend = "".join(
        f"<li><b>{row.number}</b> {escape(row.measurement.label)}"
        f"{f' ({escape(row.word)})' if row.word else ''}</li>"
        for row in rows
        if row.front or row.chosen or row.baseline
    )
    hidden = sum(
        _summary.sample_ms(row.measurement) is None or finite(row.measurement.drop) is None
        for row in rows
    )
    about = (
        "Each point is a candidate, numbered as in the table. Left is faster, low is nearer to the "
        "reference; the scale of the drop is linear near zero and logarithmic above. The line is "
        "the Pareto front; hollow points are not allowed."
    )
    if hidden:
        about += f" Not in the picture, for they were not timed or not judged: {hidden}."
    body = f'<figure>{picture}</figure><ul class="legend">{legend}</ul>'
    return _section("Time against accuracy", body, about)


def _candidates(results: Results) -> str:
    header = ["#", "", "candidate", "speed-up"]
    extra = ["smaller"] if results.objective == "memory" else []
    near = [] if results.metric == "cosine" else ["cosine"]
    header += [
        *(*extra, "p50 ms", "p99 ms", "MAD ms", "samples/s", "drop"),
        *(_summary.shortened(results.metric, 24), *near, "peak MB", "weight MB"),
        *("compile s", "first call ms", "bound ms", "calls"),
    ]
    found = _summary.measured(results)
    body: list[list[Cell]] = []
    classes = []
    for row in found:
        one = row.measurement
        label = escape(one.label)
        if one.reason:
            label += f"<div class=reason>{escape(one.reason)}</div>"
        if one.notes:
            notes = "".join(f"<li>{escape(note)}</li>" for note in one.notes)
            label += f"<details><summary>notes</summary><ul>{notes}</ul></details>"
        gains = [row.speedup, row.gain] if extra else [row.speedup]
        body.append([
            _num(row.number, lambda value: f"{value:g}"),
            escape(row.mark),
            label,
            *(_num(value, _summary.times) for value in gains),
            *map(_num, (one.p50_ms, one.p99_ms, one.spread_ms, one.throughput)),
            _drop_cell(row, results),
            _num(one.metric, lambda value: number(value, 4 if near else 6)),
            *(_num(one.similarity.get(name), lambda value: number(value, 6)) for name in near),
            *(_num(value, _summary.megabytes) for value in (one.peak_bytes, one.weight_bytes)),
            *map(_num, (one.compile_s, one.first_call_ms, one.bound_ms)),
            _num(len(one.times_ms), _summary.count),
        ])  # fmt: skip
        classes.append("chosen" if row.chosen else "base" if row.baseline else "")
    about = (
        "Best first. * is on the Pareto front. MAD: median distance from the median. "
        "bound: no call can be faster on this device. calls: how many were timed. A drop in red is "
        "more than allowed."
    )
    return _section("Candidates", _table(header, body, classes=classes, texts=3, long=(2,)), about)


def _drop_cell(row: Row, results: Results) -> Cell:
    text = escape(_summary.drop_text(row.measurement.drop, results.drop_kind))
    value = finite(row.measurement.drop)
    over = value is not None and value > (finite(results.max_drop) or 0.0)
    return (f'<span class="worse">{text}</span>' if over else text), value


def _rejected(results: Results) -> str:
    found = _summary.rejected(results)
    if not found:
        return ""
    body = [
        [
            _num(row.number, lambda value: f"{value:g}"),
            escape(row.measurement.stage),
            escape(row.measurement.status),
            escape(row.measurement.label),
            escape(row.measurement.reason or "no reason was recorded"),
            _num(row.measurement.p50_ms),
            _num(row.measurement.bound_ms),
            _num(row.measurement.drop, lambda v: _summary.drop_text(v, results.drop_kind)),
        ]
        for row in found
    ]
    header = ("#", "stage", "status", "candidate", "why", "p50 ms", "bound ms", "drop")
    lines = [
        f"<li><b>{len(members)}</b> {escape(reason)}</li>"
        for reason, members in _summary.grouped(found)
    ]
    short = f'<ul class="legend">{"".join(lines)}</ul>' if len(found) > 12 else ""
    about = (
        f"{len(found)} of {len(results.measurements)} candidates. Those in the table above were "
        "measured; the others were not, or not to the end."
    )
    return _section(
        "Rejected, or not allowed", short + _table(header, body, texts=5, long=(3, 4)), about
    )


def _distribution(results: Results) -> str:
    picture = pictures.distribution(results)
    if picture is None:
        return ""
    about = (
        "Every single call of the leading candidates and of the baseline, after warming up. "
        "They were measured in turn, a few calls of each at a time."
    )
    return _section("Times of single calls", f"<figure>{picture}</figure>", about)


def _layers(results: Results) -> str:
    if not results.layers:
        return ""
    level = next((each.sensitivity_level for each in results.layers if each.sensitivity_level), "")
    header = (
        *("group", "precision", "parameters", "MFLOP"),
        f"sensitivity{f' ({level})' if level else ''}",
        *("ms", "share", "", "bound ms", "of roofline"),
    )
    body: list[list[Cell]] = []
    for each in results.layers:
        share = finite(each.time_share)
        width = f"{100 * min(1.0, max(0.0, share)):.1f}" if share is not None else "0"
        body.append([
            escape(each.name),
            escape(each.precision),
            _num(each.parameters, _summary.count),
            _num(finite(each.flops) and each.flops / 1e6),
            _num(each.sensitivity),
            _num(each.time_ms),
            _num(each.time_share, _summary.percent),
            f'<div class="bar front"><i style="width:{width}%"></i></div>',
            _num(each.bound_ms),
            _num(each.achieved, _summary.percent),
        ])  # fmt: skip
    shown = [pictures.layers(results), pictures.sensitivity(results)]
    figures = "".join(f"<figure>{each}</figure>" for each in shown if each)
    about = (
        "Of the chosen arrangement. Sensitivity: divergence of the outputs with this group alone "
        "at the lower precision. Time: its products alone, one by one, so fusion is not in it. "
        "Roofline: what this device's measured peaks allow. In the second picture names are "
        "without the parts that all have."
    )
    return _section("Layers", figures + _table(header, body, texts=2, long=(0,)), about)


def _spent(results: Results) -> str:
    known = {name: s for name, value in results.seconds.items() if (s := finite(value)) is not None}
    if not known:
        return ""
    total = known.pop("total", None) or sum(known.values())
    body: list[list[Cell]] = [
        [
            escape(name),
            _num(value),
            _num(value / total if total else None, _summary.percent),
            f'<div class="bar front"><i style="width:{min(100, 100 * value / (total or 1)):.1f}%">'
            "</i></div>",
        ]
        for name, value in known.items()
    ]
    table = _table(("stage", "s", "share", ""), body)
    return _section("Where the search spent its time", table, f"{number(total)} s altogether.")


def _device(data: Mapping[str, Any]) -> str:
    """Return what was measured of the device: in words if it is a DeviceProfile."""
    about = "Measured before the search, with small programs; lower bounds rest on it."
    try:
        known = DeviceProfile.from_json(data)
        lines = [f"<li>{escape(line)}</li>" for line in known.describe()]
        body: list[list[Cell]] = [
            [escape(kind), escape(dtype), escape(shape), _num(finite(rate) and rate / 1e9)]
            for kind, dtypes in known.rates.items()
            for dtype, shapes in dtypes.items()
            for shape, rate in shapes.items()
        ]
    except (TypeError, ValueError, AttributeError, LookupError):
        return _facts("Device", about, data)
    table = _table(("product", "dtype or level", "shape", "GFLOP/s"), body, texts=3)
    more = f"<details><summary>All rates</summary>{table}</details>" if body else ""
    return _section("Device", f"<ul>{''.join(lines)}</ul>{more}", about)


def _facts(title: str, about: str, data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _summary.facts(data)
    )
    return _section(title, f"<dl>{lines}</dl>", about)


def _notes(results: Results) -> str:
    lines = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return _section("Notes", f"<ul>{lines}</ul>") if lines else ""


def _recipe(results: Results, recipe_json: str | Mapping[str, Any] | None) -> str:
    about = "ji.apply_recipe applies it without a search, on another machine too."
    if recipe_json is None:
        if results.chosen is None:
            return ""
        recipe_json = {"candidate": dict(results.measurements[results.chosen].candidate)}
        about = "The arrangement that was chosen, as data."
    elif isinstance(recipe_json, str):
        recipe_json = json.loads(recipe_json)
    text = _html.escape(dumps(recipe_json))
    body = f'<button type="button" id="copy">Copy</button><pre id="recipe">{text}</pre>'
    return _section("Recipe", body, about)
