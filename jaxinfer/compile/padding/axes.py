"""What is known of a padded value: for every axis, the factors that it is made of.

A factor is a run of an axis with a real length: ``Factor(size=16, length=batch)`` are 16 places
of which the first ``batch`` are real. An axis made by merging others has several, outermost
first: ``reshape(x, [batch*seq])`` has real elements at ``i * 512 + j``, i < batch, j < seq.
``uniform`` factors hold one value repeated (a broadcast), so their padding is as good as the rest.

Canonical: no factors of one place; a whole factor after another factor is merged into it, for
the first ``n`` of 16 rows of 3 are the first ``3 n`` of 48.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jaxinfer.compile.padding.sizes import Length


@dataclasses.dataclass(frozen=True)
class Factor:
    """A run of an axis: its places, how many of them are real (None: all), one value or many."""

    size: int
    length: Length | None = None
    uniform: bool = False


Axis = tuple[Factor, ...]
State = tuple[Axis, ...]


class Refusal(Exception):
    """An equation that cannot be padded, and why."""


def canonical(factors: Iterable[Factor]) -> Axis:
    """Return the factors of an axis in their one form."""
    out: list[Factor] = []
    for factor in factors:
        if factor.size == 1 and factor.length is None:
            continue
        if out and factor.length is None:
            last = out[-1]
            longer = None if last.length is None else last.length.times(factor.size)
            both = last.uniform and factor.uniform
            out[-1] = Factor(last.size * factor.size, longer, both)
        else:
            out.append(factor)
    return tuple(out)


def whole(size: int) -> Axis:
    """Return an axis without padding."""
    return canonical([Factor(size)])


def wholes(shape: Sequence[int]) -> State:
    """Return the state of a value without padding."""
    return tuple(map(whole, shape))


def is_padded(axis: Axis) -> bool:
    """Whether part of the axis may be padding."""
    return any(factor.length is not None for factor in axis)


def any_padded(state: State) -> bool:
    """Whether any axis is padded."""
    return any(map(is_padded, state))


def is_uniform(axis: Axis) -> bool:
    """Whether the value is one and the same along the axis."""
    return all(factor.uniform for factor in axis)


def prefix(axis: Axis) -> Length | None:
    """Return the real length of an axis whose real part is its beginning; else None."""
    return axis[0].length if len(axis) == 1 else None


def varied(axis: Axis) -> Axis:
    """Return the axis as one of values that may differ along it."""
    return tuple(dataclasses.replace(factor, uniform=False) for factor in axis)


def join(a: Axis, b: Axis) -> Axis:
    """Return the axis of what is computed from two values element by element.

    Raises:
      Refusal: their padding is in different places.
    """
    if varied(a) == varied(b):
        return tuple(
            dataclasses.replace(x, uniform=x.uniform and y.uniform)
            for x, y in zip(a, b, strict=True)
        )
    if is_uniform(a):
        return b
    if is_uniform(b):
        return a
    raise Refusal(f"its operands are padded in different places: {show(a)} and {show(b)}")


def show(axis: Axis) -> str:
    """Describe an axis: the real length of each factor, of its places.

    >>> show((Factor(4), Factor(16, Length(1, ("n",)))))
    '4 x (n of 16)'
    """
    parts = [str(f.size) if f.length is None else f"({f.length} of {f.size})" for f in axis]
    return " x ".join(parts) or "1"


def reshape(state: State, shape: Sequence[int]) -> State:
    """Return the state after a reshape: factors are regrouped, and split where they divide.

    Raises:
      Refusal: the real elements would not be a box any more.
    """
    left = [factor for axis in state for factor in axis]
    left.reverse()
    out: list[Axis] = []
    for size in shape:
        taken: list[Factor] = []
        need = size
        while need > 1:
            if not left:
                raise Refusal("the sizes of the reshape do not fit the padded ones")
            factor = left.pop()
            if factor.size > need:
                tail, rest = divmod(factor.size, need)
                length = factor.length and factor.length.over(tail)
                if rest or (factor.length is not None and length is None):
                    raise Refusal(
                        f"it splits an axis of which {factor.length or factor.size} of "
                        f"{factor.size} are real into runs of {need}"
                    )
                left.append(Factor(tail, None, factor.uniform))
                factor = Factor(need, length, factor.uniform)
            if need % factor.size:
                raise Refusal(f"it cuts across an axis with padding: {show((factor,))} into {size}")
            taken.append(factor)
            need //= factor.size
        out.append(canonical(taken))
    if left:
        raise Refusal("the sizes of the reshape do not fit the padded ones")
    return tuple(out)
