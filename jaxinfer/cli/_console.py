"""What the commands share in talking to people: stages with times, JSON, sizes in words.

Results go to stdout, progress to stderr: bars and spinners on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


def out() -> Console:
    """Return a console on stdout; off a terminal lines are not wrapped to 80 columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = (), title: str = "") -> Table:
    """Return a plain table; cells are shown as they are, not as markup."""
    made = Table(
        title=title or None,
        title_justify="left",
        show_header=bool(header),
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index in range(len(rows[0]) if rows else len(header)):
        made.add_column(header[index] if header else "", overflow="fold")
    for row in rows:
        made.add_row(*(plain(cell) for cell in row))
    return made


def plain(value: Any) -> Text:
    """Return text as it is: no markup, and control characters spelled out."""
    text = str(value)
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def echo_json(data: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become text."""
    click.echo(json.dumps(_finite(data), indent=2, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def in_bytes(count: float) -> str:
    """Return a byte count in words.

    >>> in_bytes(1023), in_bytes(90_873_856)
    ('1023 B', '90.9 MB')
    """
    return _scaled(count, "B") if count >= 1024 else f"{int(count)} B"


def in_units(count: float, unit: str = "") -> str:
    """Return a count with a decimal prefix.

    >>> in_units(22_713_216), in_units(4.1e9, "FLOPs")
    ('22.7 M', '4.1 GFLOPs')
    """
    return _scaled(count, unit)


def _scaled(count: float, unit: str) -> str:
    for power, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {prefix}{unit}"
    return f"{count:g} {unit}".rstrip()


class Stages:
    """Times the stages of a command and shows which one runs."""

    def __init__(self, *, quiet: bool = False):
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, highlight=False, quiet=quiet)

    @contextlib.contextmanager
    def stage(self, name: str, text: str, what: str = "weights") -> Iterator[Any]:
        """Run a stage; yields ``progress(leaf, done, total)``, which shows a bar of ``what``."""
        started = time.perf_counter()
        try:
            if self._console.is_terminal:
                with self._bar(text, what) as progress:
                    yield progress
            else:
                self._console.print(f"{text} ...", markup=False)
                yield self._lines(what)
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 3)

    @contextlib.contextmanager
    def _bar(self, text: str, what: str) -> Iterator[Any]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[leaf]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(text, total=None, leaf="")
            words = "reading weights" if what == "weights" else f"{text}: {what}"
            yield lambda leaf, done, total: bar.update(
                task,
                description=words,
                completed=done,
                total=total,
                leaf=leaf[-60:],
            )

    def _lines(self, what: str) -> Any:
        shown = -1

        def progress(leaf: str, done: int, total: int) -> None:
            nonlocal shown
            quarter = 4 * done // max(total, 1)
            if quarter != shown:
                shown = quarter
                self._console.print(f"  {what}: {done} of {total} ({leaf})", markup=False)

        return progress
