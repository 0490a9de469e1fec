"""Matplotlib figures as SVG: no pyplot, no global state left changed, the same bytes every time.

Colours are names. In the SVG they become variables of CSS, so one picture suits a light page and a
dark one; ``LIGHT`` and ``DARK`` are their values there.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxinfer.core.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT: Mapping[str, str] = {
    "ink": "#1b2330",
    "muted": "#5d6878",
    "line": "#d5dae1",
    "paper": "#ffffff",
    "chosen": "#0b7a4b",
    "base": "#b4540a",
    "front": "#2563c4",
    "point": "#8e9aab",
    "bad": "#c2334d",
    "wash": "#faeef0",
}
DARK: Mapping[str, str] = {
    "ink": "#e6eaf0",
    "muted": "#9aa6b6",
    "line": "#38424f",
    "paper": "#171c23",
    "chosen": "#3fca8a",
    "base": "#f0a04b",
    "front": "#6ea3f5",
    "point": "#75839a",
    "bad": "#f0708a",
    "wash": "#2a1d22",
}
_MARKS = {f"#0102{index:02x}": name for index, name in enumerate(LIGHT)}
COLOURS = {name: mark for mark, name in _MARKS.items()}
"""What figures are drawn with: colours that stand for names."""

_SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxinfer",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.grid": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
}
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def require_matplotlib() -> None:
    """Raise MissingExtraError if there is no matplotlib.

    Raises:
      MissingExtraError: with the extra's name.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "the pictures of a report need matplotlib: pip install 'jaxinfer[report]'; "
            "a report that is .json or .md needs none"
        ) from error


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw with matplotlib's defaults and the settings of this file, whatever the user has set."""
    require_matplotlib()
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context():
        # names in a script that the font lacks: the reader's fonts draw them
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        matplotlib.rcdefaults()
        for name, value in _SETTINGS.items():
            matplotlib.rcParams[name] = value  # pyright: ignore[reportArgumentType]
        yield


def figure(width: float, height: float) -> Figure:
    """Return an empty figure; the sizes are inches of 72 units."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    made = Figure((width, height), dpi=72, layout="constrained")
    FigureCanvasSVG(made)
    made.patch.set_alpha(0)
    return made


def svg(made: Figure, name: str, title: str, tips: Mapping[str, str] | None = None) -> str:
    """Return a figure as an ``<svg>`` element for a page.

    Args:
      made: a figure; drawn within ``style``.
      name: that ids inside begin with, so that several pictures can stand on one page.
      title: what it shows, for those who cannot see it.
      tips: text shown over the element that has this gid.
    """
    file = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    made.savefig(file, format="svg", metadata=empty, transparent=True)
    text = file.getvalue()
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    for gid, words in (tips or {}).items():
        tip = f'<g id="{gid}">'
        text = text.replace(tip, f"{tip}<title>{html.escape(words)}</title>", 1)
    for mark, colour in _MARKS.items():
        text = text.replace(mark, f"var(--{colour})")

    def inside(tag: re.Match[str]) -> str:
        found = re.sub(r'(\bid=")', rf"\g<1>{name}-", tag[0])
        found = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", found)
        return found.replace("'DejaVu Sans', sans-serif", _FONTS)

    text = re.sub(r"<[^>]+>", inside, text)
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    words = html.escape(title)
    return text.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1).strip()


Box = tuple[float, float, float, float]


def place_labels(
    axes: Axes,
    labels: Sequence[tuple[float, float, str, str, bool]],
    obstacles: Sequence[tuple[float, float]],
) -> int:
    """Write a text beside each point so that none covers another or a point.

    Args:
      axes: with limits and scales that are final.
      labels: x, y, text, colour, and whether it must be there, most important first.
      obstacles: all points.

    Returns:
      How many there was no room for.
    """
    made = axes.figure
    made.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    made.set_layout_engine("none")  # pyright: ignore[reportAttributeAccessIssue]  # sizes stay
    to_pixels = axes.transData.transform
    frame = axes.get_window_extent()
    points = [tuple(to_pixels(each)) for each in obstacles]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    left_out = 0
    for x, y, text, colour, needed in labels:
        px, py = to_pixels((x, y))
        drawn = axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", color=colour, fontsize=8.5
        )
        extent = drawn.get_window_extent()
        width, height = extent.width, extent.height
        best: tuple[float, Box] | None = None
        for distance in (8, 14, 22, 34, 48, 64):
            for dx, dy in _DIRECTIONS:
                left = px + dx * distance - (0 if dx > 0 else width if dx < 0 else width / 2)
                low = py + dy * distance - (0 if dy > 0 else height if dy < 0 else height / 2)
                box = (left, low, left + width, low + height)
                inside = (
                    box[0] >= frame.x0 and box[2] <= frame.x1
                    and box[1] >= frame.y0 and box[3] <= frame.y1
                )  # fmt: skip
                if not inside:
                    continue
                hit = sum(_overlap(box, other) for other in taken)
                if best is None or hit + distance / 100 < best[0]:
                    best = hit + distance / 100, box
            if best is not None and best[0] < 1:
                break
        if best is None or (best[0] >= 1 and not needed):
            drawn.remove()
            left_out += 1
            continue
        box = best[1]
        scale = 72 / made.dpi
        drawn.set_position(((box[0] - px) * scale, (box[1] - py) * scale))
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        if abs(centre[1] - py) > 12 + height / 2 or abs(centre[0] - px) > 12 + width / 2:
            near = min(max(px, box[0]), box[2]), min(max(py, box[1]), box[3])
            axes.annotate(
                "",
                (x, y),
                xytext=((near[0] - px) * scale, (near[1] - py) * scale),
                textcoords="offset points",
                arrowprops={
                    "arrowstyle": "-",
                    "color": COLOURS["point"],
                    "linewidth": 0.6,
                    "shrinkB": 4,
                },
            )
        taken.append(box)
    return left_out


_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
