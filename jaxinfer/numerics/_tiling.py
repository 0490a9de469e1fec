"""Shape arithmetic of scales: which elements share one, and what a reshape does to that.

Along each axis, ``groups`` scales serve ``size`` elements in runs of ``size / groups``. Only
integers are handled here, no arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]


class Split(NamedTuple):
    """Shapes under which values and scales broadcast against each other."""

    values: Shape
    scale: Shape
    shared: Shape
    """Axes of ``values`` along which one scale serves all elements."""


def split(sizes: Sequence[int], groups: Sequence[int]) -> Split:
    """Split each axis that holds several runs in (groups, run).

    >>> split((6, 4, 5), (3, 1, 5))
    Split(values=(3, 2, 4, 5), scale=(3, 1, 1, 5), shared=(1, 2))
    """
    values: list[int] = []
    scale: list[int] = []
    shared: list[int] = []
    for size, count in zip(sizes, groups, strict=True):
        run = size // count if count else 1
        if count != 1 and run != 1:
            values.append(count)
            scale.append(count)
            count, size = 1, run
        if count == 1:
            shared.append(len(values))
        values.append(size)
        scale.append(count)
    return Split(tuple(values), tuple(scale), tuple(shared))


class Regrouped(NamedTuple):
    """How the scales of a block of axes follow a reshape."""

    parts: Shape
    """Shape to give the scale first."""
    spread: Shape
    """Shape to broadcast it to."""
    groups: Shape
    """Its shape after the reshape."""


def regroup(sizes: Sequence[int], groups: Sequence[int], new: Sequence[int]) -> Regrouped | None:
    """Return how scales follow the reshape of ``sizes`` to ``new``; None where they cannot.

    All axes are cut in parts at every boundary of an old axis, of a run, and of a new axis, so
    that along each part either every element has its own scale or all share one. A new axis
    then has one scale for the last parts that share, and scales for each element of those
    before. It fails where the boundaries are no chain of divisors, as in (4, 6) to (6, 4).

    Args:
      sizes: old sizes, each at least 2.
      groups: number of scales along each old axis, a divisor of its size.
      new: new sizes of the same product.

    >>> regroup((4, 6), (1, 3), (24,))
    Regrouped(parts=(1, 3, 1), spread=(4, 3, 1), groups=(12,))
    >>> regroup((4, 6), (4, 1), (2, 2, 2, 3)).groups
    (2, 2, 1, 1)
    >>> regroup((4, 6), (4, 1), (6, 4)) is None
    True
    """
    total = math.prod(sizes)
    points = {1, total}
    varying: list[tuple[int, int]] = []  # ranges of strides with a scale for each element
    stride = 1
    below = True  # whether the axis after this one has one scale
    for size, count in zip(reversed(sizes), reversed(groups), strict=True):
        if not (below and count == 1):
            points.add(stride)
        end = stride * size
        if count != 1:
            points |= {end // count, end}
            varying.append((end // count, end))
        stride, below = end, count == 1
    points |= set(_strides(new))
    cuts = sorted(points)
    pairs = list(itertools.pairwise(cuts))
    if any(high % low for low, high in pairs):
        return None
    own = {low: any(a <= low < b for a, b in varying) for low, _ in pairs}
    parts = [high // low if own[low] else 1 for low, high in pairs]
    spread, counts = list(parts), []
    stride = 1
    for size in reversed(new):
        end = stride * size
        inside = [n for n, (low, _) in enumerate(pairs) if stride <= low < end]
        first = next((n for n in inside if own[pairs[n][0]]), None)
        for n in inside:
            if first is not None and n > first:
                spread[n] = pairs[n][1] // pairs[n][0]
        counts.append(math.prod(spread[n] for n in inside))
        stride = end
    return Regrouped(tuple(parts[::-1]), tuple(spread[::-1]), tuple(counts[::-1]))


def _strides(sizes: Sequence[int]) -> list[int]:
    return [math.prod(sizes[n + 1 :]) for n in range(len(sizes))]


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Pair the smallest runs of axes that a reshape maps to each other.

    Args:
      old: sizes, each at least 2.
      new: sizes of the same product, each at least 2.

    >>> blocks((6, 4, 5), (2, 3, 20))
    [(range(0, 1), range(0, 2)), (range(1, 3), range(2, 3))]
    """
    found = []
    i = j = 0
    while i < len(old):
        a, b, start = old[i], new[j], (i, j)
        while a != b:
            if a < b:
                i += 1
                a *= old[i]
            else:
                j += 1
                b *= new[j]
        i, j = i + 1, j + 1
        found.append((range(start[0], i), range(start[1], j)))
    return found
