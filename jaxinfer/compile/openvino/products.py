"""OpenVINO's rule of matrix products.

dot_general   MatMul of [batch.., m, k] and [batch.., k, n], axes merged where there are several
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino import patterns
from jaxinfer.compile.openvino.attention import attention
from jaxinfer.compile.openvino.graph import (
    Graph,
    Operand,
    Refused,
    Value,
    float_dtype,
    is_const,
    rule,
)
from jaxinfer.compile.openvino.linear import as_shape, sizes_of
from jaxinfer.compile.openvino.moving import reshaped


@rule("dot_general")
def _dot_general(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    if not all(float_dtype(var.aval.dtype) for var in (*eqn.invars, *eqn.outvars)):
        raise Refused("of integers: give the float model, and quantize= to compile_jaxpr")
    contracting, batch = eqn.params["dimension_numbers"]
    x, y = values
    graph.products["weight" if any(map(is_const, values)) else "activation"] += 1
    left = _Side(x, contracting[0], batch[0])
    right = _Side(y, contracting[1], batch[1])
    shape = tuple(eqn.outvars[0].aval.shape)
    if not batch[0] and len(right.free) <= 1 and len(contracting[0]) == 1:
        if (made := _pointwise(graph, left, right)) is not None:
            return made
        return _by_rows(graph, left, right, shape)
    # [batch.., m, k] x [batch.., k, n], with m, k, n products of sizes
    k = math.prod(left.sizes[a] for a in contracting[0])
    lead = [left.sizes[a] for a in batch[0]]
    a = graph.full(x, (*batch[0], *left.free, *contracting[0]))
    m, n = (math.prod(side.sizes[a] for a in side.free) for side in (left, right))
    flip = bool(right.free) and _last(right, contracting[1])
    order = (*right.free, *contracting[1]) if flip else (*contracting[1], *right.free)
    b = graph.full(y, (*batch[1], *order))
    a = as_shape(graph, a, (*lead, m, k))
    b = as_shape(graph, b, (*lead, n, k) if flip else (*lead, k, n))
    if (made := _attention(graph, a, b, flip, (*lead, m, n))) is not None:
        return made if made.shape == shape else reshaped(graph, graph.full(made), shape)
    out = graph.names.product(graph.op.matmul(a, b, False, flip), x, y).output(0)
    return Value(as_shape(graph, out, shape), shape)


def _attention(graph: Graph, a: Any, b: Any, flip: bool, shape: tuple[int, ...]) -> Value | None:
    """Return attention for weights @ values, or for values^T @ weights^T."""
    order = list(range(len(shape)))
    if flip:
        order[-2:] = order[:-3:-1]
        a, b = b, graph.op.transpose(a, graph.ints(order)).output(0)
    if (made := attention(graph, a, b)) is None:
        return None
    out, axes = made
    perm = [order[axis] for axis in axes]
    return Value(out, shape, None if perm == sorted(perm) else tuple(perm))


class _Side:
    """An operand of a product: its sizes, and its axes that are neither summed nor batched."""

    def __init__(self, value: Operand, contracting: Sequence[int], batch: Sequence[int]):
        self.value, self.sizes = value, sizes_of(value)
        self.contracting = tuple(contracting)
        used = {*contracting, *batch}
        self.free = tuple(axis for axis in range(len(self.sizes)) if axis not in used)


def _last(side: _Side, contracting: Sequence[int]) -> bool:
    return tuple(contracting) == tuple(range(len(side.sizes)))[-len(contracting) :]


def _pointwise(graph: Graph, left: _Side, right: _Side) -> Value | None:
    """[b, h, w, k] x [k, n] whose left side is channels-first inside, as a convolution has it.

    A convolution of 1 x 1 then: OpenVINO has the layout of its neighbours for it, and adds what
    follows in the same kernel. A stride that was a slice is the convolution's again.
    """
    x, (axis,), (by,) = left.value, left.contracting, right.contracting
    if is_const(x) or not is_const(right.value) or len(right.free) != 1 or len(left.sizes) < 4:
        return None
    if x.perm != (0, axis, *range(1, axis)) or axis != len(left.sizes) - 1:
        return None
    count = len(left.sizes) - 2
    out, steps = _unstrided(graph.full(x, x.perm), count)
    weight = np.asarray(right.value).T if by == 0 else np.asarray(right.value)
    kernel = graph.constant(np.ascontiguousarray(weight).reshape(*weight.shape, *[1] * count))
    none = [0] * count
    made = graph.op.convolution(out, kernel, steps, none, none, [1] * count)
    graph.names.product(made, right.value)
    return Value(made.output(0), (*left.sizes[:-1], weight.shape[0]), x.perm)


def _unstrided(out: Any, count: int) -> tuple[Any, list[int]]:
    """Return what every n-th element is taken of along the spatial axes, and these steps."""
    none = [1] * count
    if patterns.kind(out) != "Slice":
        return out, none
    x, *rest = patterns.args(out)
    numbers = [patterns.values(each) for each in rest]
    found = list(none)
    for start, stop, step, axis in zip(
        *(n.tolist() for n in numbers if n is not None), strict=True
    ):
        size = int(x.shape[axis])
        if start != 0 or axis < 2 or step < 1 or (stop - 1) // step != (size - 1) // step:
            return out, none
        found[axis - 2] = step
    return x, found


def _by_rows(graph: Graph, left: _Side, right: _Side, shape: tuple[int, ...]) -> Value:
    """[.., k] x [k, n] or [n, k]: a weight in its own order, no axes merged."""
    (axis,) = left.contracting
    a = graph.full(left.value, (*left.free, axis))
    (by,) = right.contracting
    if by == 0 and right.free and is_const(right.value):
        b, by = graph.transposed(right.value), 1  # as OpenVINO wants it
    else:
        b = graph.full(right.value)
    if not left.free:
        a = as_shape(graph, a, (1, left.sizes[axis]))
    if not right.free:
        b, by = as_shape(graph, b, (right.sizes[by], 1)), 0
    made = graph.op.matmul(a, b, False, by == 1)
    out = graph.names.product(made, left.value, right.value).output(0)
    return Value(as_shape(graph, out, shape), shape)
