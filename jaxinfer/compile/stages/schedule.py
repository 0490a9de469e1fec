"""Schedule: which stage computed which micro-batch when, its bubble, and its picture.

    makespan   = last end - first start
    busy       = sum over cells of (end - start)
    bubble     = 1 - busy / (k * makespan)              k stages
    ideal      = (k - 1) / (m + k - 1)                  m micro-batches, equal stages
    attainable = 1 - m * sum(t) / (k * (sum(t) + (m - 1) * max(t)))
    efficiency = m * sum(t) / (k * makespan)

where t[s] is stage s's time with the machine to itself. ``ideal`` is the bubble of k equal
stages that hand over in no time (Huang et al., GPipe, 2019, https://arxiv.org/abs/1811.06965);
``attainable`` is that of these stages, unequal as they are: the slowest sets the pace. A busy
device may still be a slow one: where devices share cores, cells stretch, the bubble looks
small and the efficiency says what was lost.
"""

from __future__ import annotations

import dataclasses
import pathlib
import string
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

from jaxinfer.compile.stages.run import Stamp

_MARKS = string.digits + string.ascii_letters
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#eeca3b")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cells of (stage, micro-batch, start, end), in seconds since the run began.

    Attributes:
      cells: one for every stage and micro-batch.
      alone: each stage's seconds with the machine to itself; empty if not measured.
      wall: seconds of the same call as it is usually run, without stamps; None if not measured.
      labels: a name for each stage (its device).

    Example:
      >>> cells = [Stamp(0, 0, 0, 1), Stamp(0, 1, 1, 2), Stamp(1, 0, 1, 2), Stamp(1, 1, 2, 3)]
      >>> print(Schedule(tuple(cells)).text(width=6))
      stage 0  0011..
      stage 1  ..0011
      2 stages, 2 micro-batches: 3 s, bubble 33.3 % (ideal 33.3 %)
    """

    cells: tuple[Stamp, ...]
    alone: tuple[float, ...] = ()
    wall: float | None = None
    labels: tuple[str, ...] = ()

    @property
    def stages(self) -> int:
        """How many stages, k."""
        return 1 + max((cell.stage for cell in self.cells), default=-1)

    @property
    def microbatches(self) -> int:
        """How many micro-batches, m."""
        return 1 + max((cell.microbatch for cell in self.cells), default=-1)

    @property
    def start(self) -> float:
        """When the first cell began."""
        return min((cell.start for cell in self.cells), default=0.0)

    @property
    def makespan(self) -> float:
        """Seconds from the first start to the last end."""
        return max((cell.end for cell in self.cells), default=0.0) - self.start

    @property
    def busy(self) -> tuple[float, ...]:
        """Seconds that each stage computed."""
        return tuple(
            sum(cell.end - cell.start for cell in self.cells if cell.stage == stage)
            for stage in range(self.stages)
        )

    @property
    def bubble(self) -> float:
        """Share of the devices' time in which they waited."""
        span = self.stages * self.makespan
        return 1 - sum(self.busy) / span if span else 0.0

    @property
    def ideal(self) -> float:
        """The bubble of as many equal stages and micro-batches."""
        return ideal_bubble(self.stages, self.microbatches)

    @property
    def attainable(self) -> float | None:
        """The least bubble of stages that take ``alone``; None if that was not measured."""
        if not self.alone or not sum(self.alone):
            return None
        work, m = sum(self.alone), self.microbatches
        least = work + (m - 1) * max(self.alone)
        return 1 - m * work / (self.stages * least)

    @property
    def efficiency(self) -> float | None:
        """Work of one device after another over k times the makespan; None without ``alone``."""
        span = self.stages * self.makespan
        return self.microbatches * sum(self.alone) / span if self.alone and span else None

    def summary(self) -> str:
        """Return the figures in one line."""
        if not self.cells:
            return "nothing was computed"
        line = (
            f"{self.stages} stages, {self.microbatches} micro-batches: {self.makespan:.4g} s, "
            f"bubble {self.bubble:.1%} (ideal {self.ideal:.1%}"
        ).replace("%", " %")
        attainable, efficiency = self.attainable, self.efficiency
        if attainable is not None and efficiency is not None:
            line += (
                f", attainable with these stages {attainable:.1%}), efficiency {efficiency:.1%}"
            ).replace("%", " %")
            return line
        return line + ")"

    def text(self, width: int = 72) -> str:
        """Return a picture for a terminal: a line for each stage, a column for a span of time.

        A column shows the micro-batch (0-9, a-z, A-Z, then again) that the stage computes for
        most of it; ``.`` is waiting.
        """
        if width < 1:
            raise ValueError(f"width must be 1 or more, got {width}")
        lines = []
        names = self._names()
        pad = max(map(len, names), default=0)
        step = self.makespan / width
        for stage, name in enumerate(names):
            own = [cell for cell in self.cells if cell.stage == stage]
            row = ""
            for column in range(width):
                low = self.start + column * step
                row += _mark(own, low, low + step)
            lines.append(f"{name:<{pad}}  {row}")
        return "\n".join([*lines, self.summary()])

    def svg(self, path: Any = None, *, width: int = 960) -> str:
        """Return the picture as SVG, and write it to ``path`` if one is given.

        One row for each stage; a box for each cell, coloured and numbered by micro-batch, with
        its times as a tooltip.
        """
        names = self._names()
        left, row, top = 16 + 7 * max(map(len, names), default=0), 34, 34
        height = top + row * self.stages + 36
        scale = (width - left - 16) / (self.makespan or 1.0)
        root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {width} {height}",
                "width": str(width),
                "height": str(height),
                "font-family": "sans-serif",
                "font-size": "12",
            },
        )
        _add(root, "rect", width=width, height=height, fill="white")
        _add(root, "text", self.summary(), x=16, y=20, fill="#222")
        for stage, name in enumerate(names):
            y = top + row * stage
            _add(root, "text", name, x=8, y=y + 20, fill="#222")
            _add(root, "rect", x=left, y=y + 2, width=width - left - 16, height=row - 6,
                 fill="#eeeeee")  # fmt: skip
        for cell in self.cells:
            x = left + (cell.start - self.start) * scale
            wide = max((cell.end - cell.start) * scale, 0.5)
            y = top + row * cell.stage
            box = _add(root, "rect", x=round(x, 2), y=y + 2, width=round(wide, 2), height=row - 6,
                       fill=_COLOURS[cell.microbatch % len(_COLOURS)], stroke="white")  # fmt: skip
            span = f"{cell.start - self.start:.4g} to {cell.end - self.start:.4g} s"
            _add(box, "title", f"{names[cell.stage]}, micro-batch {cell.microbatch}: {span}")
            if wide >= 8 * len(str(cell.microbatch)):
                _add(root, "text", str(cell.microbatch), x=round(x + wide / 2, 2), y=y + 20,
                     fill="white", **{"text-anchor": "middle"})  # fmt: skip
        bottom = top + row * self.stages + 16
        for tick in range(5):
            seconds = self.makespan * tick / 4
            anchor = "end" if tick == 4 else "middle" if tick else "start"
            _add(root, "text", f"{seconds:.3g} s", x=round(left + seconds * scale, 2), y=bottom,
                 fill="#666", **{"text-anchor": anchor})  # fmt: skip
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode") + "\n"
        if path is not None:
            pathlib.Path(path).write_text(text, encoding="utf-8")
        return text

    def _names(self) -> list[str]:
        labels = self.labels or ("",) * self.stages
        return [
            f"stage {stage}" + (f" ({label})" if label else "")
            for stage, label in zip(range(self.stages), labels, strict=False)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the cells and the figures."""
        return {
            "cells": [list(cell) for cell in self.cells],
            "alone_s": list(self.alone),
            "wall_s": self.wall,
            "labels": list(self.labels),
            "makespan_s": self.makespan,
            "bubble": self.bubble,
            "ideal": self.ideal,
            "attainable": self.attainable,
            "efficiency": self.efficiency,
        }


def ideal_bubble(stages: int, microbatches: int) -> float:
    """Return (k - 1) / (m + k - 1).

    >>> ideal_bubble(4, 8)
    0.2727272727272727
    """
    return (stages - 1) / (microbatches + stages - 1) if stages and microbatches else 0.0


def _mark(cells: Sequence[Stamp], low: float, high: float) -> str:
    overlaps = [(min(cell.end, high) - max(cell.start, low), cell.microbatch) for cell in cells]
    longest, batch = max(overlaps, default=(0.0, 0))
    return _MARKS[batch % len(_MARKS)] if longest > (high - low) / 2 else "."


def _add(parent: Any, tag: str, text: str = "", **attributes: Any) -> Any:
    element = ElementTree.SubElement(parent, tag, {k: str(v) for k, v in attributes.items()})
    if text:
        element.text = text
    return element
