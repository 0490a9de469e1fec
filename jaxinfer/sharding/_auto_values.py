"""What the walk over a program keeps of a value, and small helpers on variables."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxinfer.sharding._auto_factors import Axis, axis, unify

Axes = tuple[Axis, ...]


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value: its axes, and the parameter that it is, rearranged (or none)."""

    axes: Axes
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Use:
    """What an equation does along an axis: kind, axis, bytes that would be communicated."""

    kind: str
    axis: Axis
    bytes: int
    path: str = ""


def fresh(var: Any) -> Axes:
    """Return axes that are like no others."""
    return tuple(axis(whole(size)) for size in getattr(var.aval, "shape", ()))


def whole(size: Any) -> int:
    return size if isinstance(size, int) else 1


def size_of(var: Any) -> int:
    """Return the bytes of a variable; 0 for one that is no array."""
    dtype = getattr(var.aval, "dtype", None)
    if dtype is None:
        return 0
    size = getattr(dtype, "itemsize", 4)
    return math.prod(map(whole, var.aval.shape)) * int(size)


def same(one: Axes, other: Axes) -> None:
    """Make the axes of two values the same, where they are."""
    for a, b in zip(one, other, strict=False):
        unify(a, b)
