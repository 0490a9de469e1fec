"""Where the channels of a value are, and the two orders in which its axes may be stored.

A value of shape (a, ..., c, ..., z) with its channels c at axes ``start .. start + width`` is
stored either as

    channels first:  (a, c, ..., z)      the first other axis, the channels, the other axes
    channels last:   (a, ..., z, c)      the other axes, the channels

An order is a permutation: ``stored.shape[i] == value.shape[order[i]]``. For torch's NCHW the
first is (0, 1, 2, 3) and the second (0, 2, 3, 1); for the NHWC that a model made itself by
``permute(0, 2, 3, 1)`` they are (0, 3, 1, 2) and (0, 1, 2, 3): the same two orders in memory,
which is why such a permute is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Order = tuple[int, ...]
Shape = tuple[int, ...]


class Track(NamedTuple):
    """The axes of a value that hold its channels: ``start .. start + width``."""

    start: int
    width: int = 1

    def others(self, rank: int) -> list[int]:
        """Return the other axes."""
        return [a for a in range(rank) if not self.start <= a < self.start + self.width]

    def axes(self) -> list[int]:
        """Return the axes of the channels."""
        return list(range(self.start, self.start + self.width))


CHANNELS = Track(1)
"""Where torch's convolutions, pools and norms have them."""


def order(track: Track | None, rank: int, last: bool) -> Order:
    """Return the order of storage, channels last or first; without channels as they are.

    >>> order(CHANNELS, 4, True), order(Track(3), 4, False)
    ((0, 2, 3, 1), (0, 3, 1, 2))
    """
    if track is None:
        return tuple(range(rank))
    others, axes = track.others(rank), track.axes()
    return tuple([*others, *axes] if last else [*others[:1], *axes, *others[1:]])


def inverse(perm: Order) -> Order:
    """Return the order that undoes an order: where each axis is stored."""
    return tuple(perm.index(axis) for axis in range(len(perm)))


def between(have: Order, want: Order) -> Order:
    """Return the dims of the permute that takes a value stored as ``have`` to ``want``."""
    place = inverse(have)
    return tuple(place[axis] for axis in want)


def moves(dims: Sequence[int], shape: Sequence[int | str]) -> bool:
    """Return whether a permute moves data: axes of size 1 may go anywhere.

    >>> moves((0, 3, 1, 2), (8, 1, 1, 16)), moves((0, 3, 1, 2), (8, 7, 1, 16))
    (False, True)
    """
    kept = [axis for axis in dims if shape[axis] != 1]
    return kept != sorted(kept)


def removed(track: Track, gone: Sequence[int]) -> Track | None:
    """Return where the channels are once axes are gone; None if none of them is left."""
    before = sum(axis < track.start for axis in gone)
    width = track.width - sum(axis in track.axes() for axis in gone)
    return Track(track.start - before, width) if width else None


def through_view(track: Track, old: Shape, new: Shape) -> Track | None:
    """Return where the channels are after a reshape; None if it mixes them with other axes.

    The first axis must stay, so that both orders of storage are reshapes too.

    >>> through_view(CHANNELS, (2, 6, 5, 7), (2, 6, 35))
    Track(start=1, width=1)
    >>> through_view(CHANNELS, (2, 6, 5, 7), (2, 3, 2, 5, 7))
    Track(start=1, width=2)
    >>> through_view(CHANNELS, (2, 6, 5), (2, 30)) is None
    True
    """
    if not (track.start and len(new) > 1 and old[0] == new[0]):
        return None
    before = math.prod(old[1 : track.start])
    size = math.prod(old[axis] for axis in track.axes())
    after = math.prod(old[track.start + track.width :])
    for start in range(1, len(new)):
        if math.prod(new[1:start]) != before:
            continue
        for stop in range(start + 1, len(new) + 1):
            if math.prod(new[start:stop]) == size and math.prod(new[stop:]) == after:
                return Track(start, stop - start)
    return None
