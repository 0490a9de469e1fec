"""Branches as products: whether f(x, k a) = f(x, k) a for a scale ``a`` along an axis of k.

A convolution that is lowered in different ways on different platforms is a ``cond``, each branch
a convolution, or sums of products, of one kernel. The axis is followed through each branch:
every value on the way must be linear in the kernel, and hold the whole axis as one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer

from jaxinfer.core._bodies import bodies
from jaxinfer.core.provenance import LAYOUT
from jaxinfer.transforms._fold_flat import Flat, Node, flatten

_VIEWS = ("transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "copy")


def scaled_axes(eqn: Any, operand: int) -> dict[int, int]:
    """Return, for the axes of an operand of a ``cond`` that are output channels, where they end.

    Args:
      eqn: with one result.
      operand: index of the operand, counted from the index of the branch.

    Returns:
      Axis of the operand -> axis of the result, the same in all branches.
    """
    found: dict[int, int] = {}
    if len(eqn.outvars) != 1 or operand == 0:
        return found
    flats = [flatten(body.jaxpr, body.consts) for body in bodies(eqn)]
    for axis, size in enumerate(eqn.invars[operand].aval.shape):
        if size == 1:
            continue
        ends = {_follow(flat, flat.inputs[operand - 1], axis) for flat in flats}
        end = ends.pop()
        if not ends and end is not None:
            found[axis] = end
    return found


def _follow(flat: Flat, kernel: int, axis: int) -> int | None:
    """Return the axis of the result that an axis of the kernel becomes, or None."""
    size = flat.shape(kernel)[axis]
    where = {kernel: axis}
    for node in flat.nodes:
        held = [side for side, value in enumerate(node.inputs) if value in where]
        if not held:
            continue
        rule = _RULES.get(node.name, _view if node.name in _VIEWS else None)
        axes = [where[node.inputs[side]] for side in held]
        if rule is None or len(node.outputs) != 1:
            return None
        (output,) = node.outputs
        end = rule(flat, node, held, axes)
        if end is None or flat.shape(output)[end] != size:
            return None
        where[output] = end
    return where.get(flat.outputs[0])


Rule = Callable[[Flat, Node, "list[int]", "list[int]"], "int | None"]
"""Equation, the operands that are linear in the kernel, their axes -> axis of the result."""


def _is_zero(flat: Flat, value: int) -> bool:
    """Whether a value is zeros, and so linear in anything."""
    made = flat.made_by(value)
    while made is not None and made.name in _VIEWS and len(made.inputs) == 1:
        (value,) = made.inputs
        made = flat.made_by(value)
    known = flat.known.get(value)
    return known is not None and not isinstance(known, Tracer) and not np.any(np.asarray(known))


def _view(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    if held != [0]:
        return None
    rank = len(flat.shape(node.inputs[0]))
    marks = tuple(frozenset({0} if axis == axes[0] else ()) for axis in range(rank))
    moved = LAYOUT[node.name](node.eqn, marks)
    ends = [] if moved is None else [axis for axis, group in enumerate(moved) if group]
    return ends[0] if len(ends) == 1 else None


def _slice(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    del flat
    strides = node.eqn.params["strides"]
    return axes[0] if held == [0] and (strides is None or strides[axes[0]] == 1) else None


def _rev(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    del flat, held
    return axes[0] if axes[0] not in node.eqn.params["dimensions"] else None


def _pad(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    if held != [0] or not _is_zero(flat, node.inputs[1]):
        return None
    return axes[0] if tuple(node.eqn.params["padding_config"][axes[0]]) == (0, 0, 0) else None


def _mul(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    ranks = {len(flat.shape(value)) for value in (node.inputs[held[0]], node.outputs[0])}
    return axes[0] if len(held) == 1 and len(ranks) == 1 else None  # axes of size 1 broadcast


def _div(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    return _mul(flat, node, held, axes) if held == [0] else None


def _add(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    others = [value for side, value in enumerate(node.inputs) if side not in held]
    linear = all(_is_zero(flat, value) for value in others)
    return axes[0] if linear and len(set(axes)) == 1 else None


def _sum(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    del flat, held
    gone = node.eqn.params["axes"]
    return None if axes[0] in gone else axes[0] - sum(axis < axes[0] for axis in gone)


def _join(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    same = _add(flat, node, held, axes)
    return same if same != node.eqn.params["dimension"] else None


def _dot(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    if len(held) != 1:
        return None
    (side,), (axis,) = held, axes
    contracting, batch = node.eqn.params["dimension_numbers"]
    if axis in contracting[side]:
        return None
    if axis in batch[side]:
        return list(batch[side]).index(axis)
    free = [
        [
            a
            for a in range(len(flat.shape(node.inputs[s])))
            if a not in contracting[s] and a not in batch[s]
        ]
        for s in (0, 1)
    ]
    return len(batch[0]) + (len(free[0]) if side else 0) + free[side].index(axis)


def _conv(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    del flat
    numbers = node.eqn.params["dimension_numbers"]
    if held != [1] or node.eqn.params["batch_group_count"] > 1:
        return None
    return numbers.out_spec[1] if axes[0] == numbers.rhs_spec[0] else None


def _cond(flat: Flat, node: Node, held: list[int], axes: list[int]) -> int | None:
    del flat
    return scaled_axes(node.eqn, held[0]).get(axes[0]) if len(held) == 1 else None


_RULES: dict[str, Rule] = {
    "slice": _slice,
    "rev": _rev,
    "pad": _pad,
    "mul": _mul,
    "div": _div,
    "neg": _add,
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "reduce_sum": _sum,
    "concatenate": _join,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "cond": _cond,
}
