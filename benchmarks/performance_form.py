"""Names of sides and models, and the forms of docs/performance.md: text, tables, bars."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import performance_goals as goals
from benchmarks.performance_goals import Result

NAMES = {
    goals.OWN: "jaxinfer, as converted",
    goals.LOSSLESS: "**jaxinfer, lossless**",
    goals.TUNED: "**jaxinfer, tuned**",
    goals.BF16: "**jaxinfer, bf16**",
    goals.FP8: "**jaxinfer, FP8**",
    "torch": "torch eager",
    "torch-compile": "torch.compile",
    "torch-compile-max-autotune": "torch.compile, max-autotune",
    "torch-bf16": "torch eager, bf16",
    "torch-compile-bf16": "torch.compile, bf16",
    "torch-compile-max-autotune-bf16": "torch.compile, max-autotune, bf16",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-int8": "ONNX Runtime, int8",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO, int8",
}

SHORT = {
    "minilm": "MiniLM",
    "resnet50": "ResNet-50",
    "vit_b16": "ViT-B/16",
    "digits": "digits",
    "language_model": "language model",
}


def sides_of(results: Sequence[Result]) -> list[str]:
    """Return the sides that any of the results has, in the order of ``NAMES``."""
    have = {row["side"] for result in results for row in result["bench"]["rows"]}
    return [side for side in NAMES if side in have]


def side_row(result: Result, side: str) -> Mapping[str, Any] | None:
    """Return the row of a side, measured or not."""
    return next((row for row in result["bench"]["rows"] if row["side"] == side), None)


def ms(value: float) -> str:
    """Return milliseconds in three digits; more for thousands."""
    places = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{places}f}"


def paragraph(words: str) -> str:
    """Return a paragraph in lines of 100."""
    return textwrap.fill(" ".join(words.split()), 100, break_on_hyphens=False) + "\n"


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


# Pictures.

COLOURS = {"own": "#0b7a4b", "peer": "#8e9aab", "void": "#e3c9cf"}


def picture(results: Sequence[Result], path: pathlib.Path) -> None:
    """Draw the medians of one model, a panel for each batch size; SVG, or as the suffix says."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    sides = sides_of(results)
    settings: dict[str, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "jaxinfer", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    }  # fmt: skip
    with matplotlib.rc_context(settings):  # pyright: ignore[reportArgumentType]
        height = 0.9 + 0.27 * len(sides)
        made = Figure((10.5, height), dpi=72, layout="constrained")
        FigureCanvasSVG(made)
        panels = made.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, result in zip(panels, results, strict=True):
            _panel(axes, result, sides)
        panels[0].set_yticks(range(len(sides)), [NAMES[side].strip("*") for side in sides])
        panels[0].invert_yaxis()
        for label, side in zip(panels[0].get_yticklabels(), sides, strict=True):
            label.set_fontweight("bold" if NAMES[side].startswith("*") else "normal")
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        made.savefig(
            path, format=path.suffix[1:], metadata=empty if path.suffix == ".svg" else None
        )
    if path.suffix == ".svg":
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _panel(axes: Any, result: Result, sides: Sequence[str]) -> None:
    rows = {side: side_row(result, side) for side in sides}
    known = {s: row for s, row in rows.items() if row is not None and row["status"] == "measured"}
    longest = max((row["median_ms"] for row in known.values()), default=1.0)
    for place, side in enumerate(sides):
        row = known.get(side)
        if row is None:
            absent = rows[side]
            axes.text(0.01 * longest, place, absent["status"] if absent else "", va="center",
                      color="#5d6878", fontsize=8)  # fmt: skip
            continue
        counts = not row["wrong"] and goals.keeps(result, side) is not False
        colour = COLOURS["void" if not counts else "own" if "jaxinfer" in side else "peer"]
        axes.barh(place, row["median_ms"], color=colour, height=0.72, xerr=row["mad_ms"],
                  error_kw={"ecolor": "#1b2330", "elinewidth": 0.8})  # fmt: skip
        mark = "" if counts else " (does not count)"
        axes.text(row["median_ms"] + row["mad_ms"] + 0.015 * longest, place,
                  f"{ms(row['median_ms'])}{mark}", va="center", fontsize=8)  # fmt: skip
    axes.set_xlim(0, 1.28 * longest)
    axes.set_title(f"batch {result['batch']}", fontsize=9.5)
    axes.set_xlabel("ms a call")
    axes.tick_params(axis="y", length=0)
