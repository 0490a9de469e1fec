"""The results of a search as a table for terminals; nothing is left out without a word."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxinfer.tune.report import _summary as summary
from jaxinfer.tune.report._summary import number
from jaxinfer.tune.results import Results

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

WIDTH = 160
"""Characters of a line where nothing else is known."""

_LABEL = 24
"""Characters of a candidate's name below which columns are left out."""

Column = tuple[str, int, Callable[[Any], str]]


def table(results: Results) -> Terminal:
    """Return the results for a terminal.

    Args:
      results: of a search.

    Returns:
      What rich prints, at the terminal's width; ``print`` and ``str`` give plain text.
    """
    return Terminal(results)


def text(results: Results, width: int = WIDTH) -> str:
    """Return the results as plain text.

    Args:
      results: of a search.
      width: of a line, in characters; the columns that count least are left out where they do
        not fit, and named below the table.
    """
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file, width=width, color_system=None, highlight=False, legacy_windows=False
    )
    console.print(Terminal(results))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class Terminal:
    """Results as rich prints them: candidates, rejected, layers, notes, environment, verdict."""

    def __init__(self, results: Results):
        self._results = results

    def __str__(self) -> str:
        return text(self._results)

    __repr__ = __str__

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        width, results = options.max_width, self._results
        yield from _candidates(results, width)
        yield from _rejected(results)
        yield from _layers(results, width)
        yield from _rest(results)


def _columns(results: Results) -> list[Column]:
    """Return header, weight (the least is left out first) and cell of the columns."""
    digits = 6 if results.metric == "cosine" else 4
    found: list[Column] = [
        ("p50 ms", 100, lambda row: number(row.measurement.p50_ms)),
        ("p99 ms", 80, lambda row: number(row.measurement.p99_ms)),
        ("MAD ms", 30, lambda row: number(row.measurement.spread_ms)),
        ("samples/s", 70, lambda row: number(row.measurement.throughput)),
        ("peak MB", 60, lambda row: summary.megabytes(row.measurement.peak_bytes)),
        ("weight MB", 40, lambda row: summary.megabytes(row.measurement.weight_bytes)),
        ("compile s", 20, lambda row: number(row.measurement.compile_s)),
        ("first ms", 10, lambda row: number(row.measurement.first_call_ms)),
        (
            summary.shortened(results.metric, 12),
            50,
            lambda row: number(row.measurement.metric, digits),
        ),
        ("drop", 90, lambda row: summary.drop_text(row.measurement.drop, results.drop_kind)),
        ("speed-up", 95, lambda row: summary.times(row.speedup)),
    ]
    if results.objective == "memory":
        found.append(("smaller", 99, lambda row: summary.times(row.gain)))
    return found


def _candidates(results: Results, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    found = summary.measured(results)
    objective = summary.objective_of(results)
    kind = "of the reference" if results.drop_kind == "relative" else "absolute"
    asked = [
        f"objective {results.objective} ({objective.name})",
        f"metric {results.metric}, reference {number(results.reference, 4)}",
        f"allowed drop {summary.given(results.max_drop, results.drop_kind)} {kind}",
        *summary.limits(results),
    ]
    yield Text(summary.plain(results.model), style="bold")
    yield Text(summary.plain("; ".join(asked)))
    yield Text("")
    marks = max([0, *(len(row.mark) for row in found)])
    room = width - (_LABEL + 2) - (marks + 2) - (len(str(len(found))) + 2)
    columns, left_out = _fitting(_columns(results), found, room)
    made = _table(
        ("#", True),
        ("", False),
        ("candidate", False),
        *((name, True) for name, _, _ in columns),
    )
    for row in found:
        style = "bold green" if row.chosen else "bold" if row.baseline else ""
        cells = [str(row.number), row.mark, summary.plain(row.measurement.label)]
        made.add_row(*map(Text, [*cells, *(cell(row) for *_, cell in columns)]), style=style)
    yield made
    yield Text("* on the Pareto front: nothing is both faster per sample and nearer.", style="dim")
    if left_out:
        yield Text(f"left out at this width: {', '.join(left_out)}", style="dim")


def _fitting(
    columns: Sequence[Column], found: Sequence[Any], room: int
) -> tuple[list[Column], list[str]]:
    """Return the columns for which there is room, and the names of the others."""

    def needed(column: Column) -> int:
        name, _, cell = column
        return 2 + max([len(name), *(len(cell(each)) for each in found)])

    kept = sorted(columns, key=lambda column: -column[1])
    while len(kept) > 1 and sum(map(needed, kept)) > room:
        kept.pop()
    names = {name for name, *_ in kept}
    return (
        [column for column in columns if column[0] in names],
        [column[0] for column in columns if column[0] not in names],
    )


def _rejected(results: Results) -> Iterator[RenderableType]:
    from rich.text import Text

    found = summary.rejected(results)
    if not found:
        return
    yield Text("")
    title = f"rejected, or not allowed ({len(found)} of {len(results.measurements)})"
    yield Text(title, style="bold")
    made = _table(("#", True), ("stage", False), ("candidate", False), ("why", False))
    for reason, members in summary.grouped(found):
        names = [summary.plain(row.measurement.label) for row in members]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        made.add_row(
            Text(str(members[0].number) + ("…" if len(members) > 1 else "")),
            Text(summary.plain(members[0].measurement.stage)),
            Text("; ".join(names[:3]) + more),
            Text(summary.plain(reason)),
        )
    yield made


def _layers(results: Results, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    if not results.layers:
        return
    yield Text("")
    yield Text("layers of the chosen arrangement", style="bold")
    level = next((each.sensitivity_level for each in results.layers if each.sensitivity_level), "")
    every: list[Column] = [
        ("precision", 100, lambda each: summary.plain(each.precision)),
        ("parameters", 30, lambda each: summary.count(each.parameters)),
        ("MFLOP", 40, lambda each: number(each.flops / 1e6)),
        (f"sensitivity ({level})" if level else "sensitivity", 80, lambda e: number(e.sensitivity)),
        ("ms", 70, lambda each: number(each.time_ms)),
        ("share", 90, lambda each: summary.percent(each.time_share)),
        ("bound ms", 20, lambda each: number(each.bound_ms)),
        ("of roofline", 60, lambda each: summary.percent(each.achieved)),
    ]
    longest = max(len(summary.plain(each.name)) for each in results.layers)
    room = width - min(longest, 2 * _LABEL) - 2
    columns, left_out = _fitting(every, results.layers, room)
    made = _table(("group", False), *((name, name != "precision") for name, *_ in columns))
    for each in results.layers:
        made.add_row(*map(Text, (summary.plain(each.name), *(cell(each) for *_, cell in columns))))
    yield made
    if left_out:
        yield Text(f"left out at this width: {', '.join(left_out)}", style="dim")


def _rest(results: Results) -> Iterator[RenderableType]:
    from rich.text import Text

    if results.notes:
        yield Text("")
        yield Text("notes", style="bold")
        for note in results.notes:
            yield Text(f"- {summary.plain(note)}")
    yield Text("")
    if results.environment:
        known = (f"{name} {value}" for name, value in summary.facts(results.environment))
        yield Text("; ".join(known), style="dim")
    if results.seconds:
        spent = ", ".join(f"{name} {number(s)} s" for name, s in results.seconds.items())
        yield Text(f"spent: {summary.plain(spent)}", style="dim")
    style = "bold green" if summary.won(results) else "bold yellow"
    yield Text(summary.plain(summary.sentence(results)), style=style)
    for line in summary.reasons(results):
        yield Text(f"  {summary.plain(line)}")


def _table(*columns: tuple[str, bool]) -> Any:
    """Return an empty table of columns: (header, whether it holds numbers)."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, is_number in columns:
        if is_number:
            made.add_column(Text(name), justify="right", no_wrap=True)
        else:
            made.add_column(Text(name), overflow="fold")
    return made
