"""Axes of values as products of factors, and which of them are the same dimension of a program.

An axis of size 384 that a reshape splits into 12 heads of 32 is the product of two factors, 12
and 32, major first. Equations make factors equal: ``x @ w`` those of the axes that are summed,
``a + b`` those of each axis. What remains are classes of factors, the dimensions of the program:
the heads of one layer, its hidden units, the batch. To split a class over a mesh axis is to
split every axis that it leads, and that is what a partition of the whole program is.

Union-find over factors; a factor is refined where a reshape or another value splits it.
"""

from __future__ import annotations

from collections.abc import Sequence


class Factor:
    """A factor of an axis.

    Attributes:
      size: its size.
      same: the factor that it was found equal to; None for the one that stands for its class.
      parts: what it was split into, major first; empty if it is whole.
      number: order of making, for a deterministic order.
    """

    __slots__ = ("number", "parts", "same", "size")
    _made = 0

    def __init__(self, size: int):
        self.size = int(size)
        self.same: Factor | None = None
        self.parts: tuple[Factor, ...] = ()
        Factor._made += 1
        self.number = Factor._made

    def root(self) -> Factor:
        """Return the factor that stands for the class."""
        top = self
        while top.same is not None:
            top = top.same
        walk = self
        while walk.same is not None:
            walk.same, walk = top, walk.same
        return top

    def split(self, major: int) -> None:
        """Split a whole root into ``major`` and the rest."""
        self.parts = (Factor(major), Factor(self.size // major))


Axis = tuple[Factor, ...]
"""An axis: its factors, major first."""


def axis(size: int) -> Axis:
    """Return an axis that is like no other."""
    return (Factor(size),)


def expand(factors: Sequence[Factor]) -> list[Factor]:
    """Return the whole roots that factors stand for, without those of size 1."""
    found: list[Factor] = []
    stack = list(reversed(factors))
    while stack:
        root = stack.pop().root()
        if root.parts:
            stack.extend(reversed(root.parts))
        elif root.size != 1:
            found.append(root)
    return found


def lead(factors: Sequence[Factor]) -> Factor | None:
    """Return the factor that an axis is split along; None for an axis of size 1."""
    found = expand(factors)
    return found[0] if found else None


def unify(one: Sequence[Factor], other: Sequence[Factor]) -> bool:
    """Make two axes the same; False where their factors do not divide each other.

    >>> a, b = axis(12), (Factor(3), Factor(4))
    >>> unify(a, b), [f.size for f in expand(a)]
    (True, [3, 4])
    """
    left, right = expand(one)[::-1], expand(other)[::-1]
    while left and right:
        a, b = left.pop().root(), right.pop().root()
        if a.parts or b.parts:  # split meanwhile, by an equal factor further left
            left += expand([a])[::-1]
            right += expand([b])[::-1]
        elif a is b:
            continue
        elif not a.size or not b.size:
            return False
        elif a.size == b.size:
            first, second = sorted((a, b), key=lambda factor: factor.number)
            second.same = first
        elif a.size % b.size == 0:
            a.split(b.size)
            left += expand([a])[::-1]
            right.append(b)
        elif b.size % a.size == 0:
            b.split(a.size)
            right += expand([b])[::-1]
            left.append(a)
        else:
            return False
    return not left and not right


def regroup(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Return the axes of a reshaped value: the same factors, grouped to the new sizes.

    An axis whose size does not fall on the boundary of factors, nor splits one, is new.
    """
    if any(size == 0 for size in shape):
        return [axis(size) for size in shape]
    queue = [factor for one in axes for factor in expand(one)][::-1]
    found: list[Axis] = []
    for size in shape:
        group: list[Factor] = []
        left = int(size)
        while left > 1 and queue:
            factor = queue.pop()
            if factor.parts:
                queue += expand([factor])[::-1]
            elif left % factor.size == 0:
                group.append(factor)
                left //= factor.size
            elif factor.size % left == 0:
                factor.split(left)
                queue += expand([factor])[::-1]
            else:
                return [*found, *(axis(s) for s in shape[len(found) :])]
        if left != 1:
            return [*found, *(axis(s) for s in shape[len(found) :])]
        found.append(tuple(group) or axis(1))
    return found
