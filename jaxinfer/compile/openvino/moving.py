"""OpenVINO rules of primitives that convert and move values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino import patterns
from jaxinfer.compile.openvino.graph import (
    Graph,
    Operand,
    Refused,
    Value,
    float_dtype,
    is_const,
    rule,
)


def dtype_of(eqn: Any, side: int = 0) -> str:
    """Return the name of the dtype of an operand."""
    return str(eqn.invars[side].aval.dtype)


def f32(op: Any, value: float) -> Any:
    """Return a float32 constant."""
    return op.constant(np.float32(value))


# Conversions.


@rule("convert_element_type", moves=True)
def _convert(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    (x,) = values
    old, new = dtype_of(eqn), str(eqn.params["new_dtype"])
    if old == new or (float_dtype(old) and float_dtype(new)):
        return x
    op = graph.op
    if new == "bool":
        zero = op.constant(np.zeros((), np.float32 if float_dtype(old) else old))
        return graph.elementwise(lambda v: op.not_equal(v, zero), values)
    if float_dtype(new):
        return graph.elementwise(lambda v: op.convert(v, "f32"), values)
    if float_dtype(old):
        if new != "int32":
            raise Refused(f"{old} to {new}: out of range it is not what JAX gives")
        return graph.elementwise(lambda v: _to_int(graph, v), values)
    if old == "bool" or (new == "int32"):
        return graph.elementwise(lambda v: op.convert(v, np.dtype(new)), values)
    raise Refused(f"{old} to {new}: it would not wrap around as JAX does")


def _to_int(graph: Graph, v: Any) -> Any:
    """Towards zero, held to the ends of int32; NaN is 0.

    The largest float below 2^31 is 127 from the end: the last bits are set by themselves, since
    a chain of arithmetic on integers may run in float32.
    """
    op = graph.op
    number = op.select(op.is_nan(v), f32(op, 0), v)
    held = op.minimum(op.maximum(number, f32(op, -(2**31))), f32(op, 2**31 - 128))
    beyond = op.select(op.greater_equal(number, f32(op, 2**31)), graph.ints(127), graph.ints(0))
    return op.bitwise_or(op.convert(held, "i32"), beyond)


@rule("reduce_precision")
def _reduce_precision(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    bits = (eqn.params["exponent_bits"], eqn.params["mantissa_bits"])
    needed = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}[dtype_of(eqn)]
    if bits[0] < needed[0] or bits[1] < needed[1]:
        raise Refused(f"to {bits[0]} exponent and {bits[1]} mantissa bits: has no counterpart")
    return values[0]


@rule(
    "copy",
    "copy_p",
    "stop_gradient",
    "device_put",
    "optimization_barrier",
    "sharding_constraint",
    "reshard",
    "mesh_cast",
    "pvary",
    "pcast",
    moves=True,
)
def _same(graph: Graph, eqn: Any, values: Sequence[Operand]) -> list[Operand]:
    return list(values)


# Moving values.


@rule("reshape", moves=True)
def _reshape(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    if eqn.params.get("dimensions") is not None:
        raise Refused("with an order of dimensions: transpose first")
    shape = tuple(eqn.outvars[0].aval.shape)
    (x,) = values
    if isinstance(x, Value) and x.shape == shape:
        return x
    return reshaped(graph, graph.full(x), shape)


def reshaped(graph: Graph, out: Any, shape: Sequence[int]) -> Value:
    """Return an output in another shape."""
    if not shape:  # an empty list of sizes is no constant for OpenVINO
        return Value(graph.op.squeeze(out).output(0) if list(out.shape) else out, ())
    if (made := patterns.keeping(graph.op, out, shape)) is not None:
        return Value(made, tuple(shape))
    sizes = graph.op.constant(np.asarray(shape, np.int64))
    return Value(graph.op.reshape(out, sizes, False).output(0), tuple(shape))


@rule("squeeze", "expand_dims", moves=True)
def _squeeze(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    (x,), shape = values, tuple(eqn.outvars[0].aval.shape)
    gone = eqn.params.get("dimensions")
    if x.perm is None or eqn.primitive.name != "squeeze" or not gone:
        return reshaped(graph, graph.full(x), shape)
    # in the order in which the axes are: what is transposed afterwards has fewer of them
    gone = {axis % len(x.shape) for axis in gone}
    left = [axis for axis in x.perm if axis not in gone]
    kept = sorted(left)
    perm = tuple(kept.index(axis) for axis in left)
    out = reshaped(graph, graph.full(x, x.perm), [x.shape[axis] for axis in left]).out
    return Value(out, shape, None if perm == tuple(sorted(perm)) else perm)


@rule("transpose", moves=True)
def _transpose(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    (x,) = values
    order = eqn.params["permutation"]
    if is_const(x):
        return np.asarray(x).transpose(order)
    # axis i of the result is axis order[i] of x: where it stands in the output stays
    held = x.perm or tuple(range(len(x.shape)))
    where = [order.index(axis) for axis in held]
    perm = None if where == sorted(where) else tuple(where)
    return Value(x.out, tuple(x.shape[axis] for axis in order), perm)


@rule("broadcast_in_dim", moves=True)
def _broadcast(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    if len(values) > 1:
        raise Refused("to sizes that are computed")
    (x,) = values
    shape, where = eqn.params["shape"], tuple(eqn.params["broadcast_dimensions"])
    if x.shape == tuple(shape):
        return x
    out = graph._ordered(x, None)
    sizes = [1] * len(shape)
    for axis, at in enumerate(where):
        sizes[at] = list(out.shape)[axis]
    if list(out.shape) != sizes:
        out = reshaped(graph, out, sizes).out
    return Value(out, tuple(shape))


@rule("slice", moves=True)
def _slice(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    params, (x,) = eqn.params, values
    start, stop = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(start)
    return sliced(graph, x, start, stop, steps, eqn.outvars[0].aval.shape)


def sliced(
    graph: Graph,
    x: Value,
    start: Sequence[int],
    stop: Sequence[int],
    steps: Sequence[int],
    shape: Sequence[int],
) -> Value:
    """Return a slice; axes that are whole are left out."""
    held = x.perm or tuple(range(len(x.shape)))
    axes = [a for a in range(len(x.shape)) if (start[a], stop[a], steps[a]) != (0, x.shape[a], 1)]
    if not axes:
        return x
    places = [held.index(a) for a in axes]
    sizes = list(x.out.shape)
    if any(sizes[at] != x.shape[a] for a, at in zip(axes, places, strict=True)):
        x = Value(graph.full(x), x.shape)  # an axis that only repeats
        places = axes
    pick = lambda given: graph.ints([given[a] for a in axes])
    out = graph.op.slice(x.out, pick(start), pick(stop), pick(steps), graph.ints(places))
    return Value(out.output(0), tuple(shape), x.perm)


@rule("rev", moves=True)
def _rev(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    (x,) = values
    out = graph.full(x)
    for axis in eqn.params["dimensions"]:
        order = graph.ints(np.arange(x.shape[axis])[::-1])
        out = graph.op.gather(out, order, graph.ints(axis)).output(0)
    return Value(out, x.shape)


@rule("concatenate", moves=True)
def _concatenate(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    axis, shape = eqn.params["dimension"], tuple(eqn.outvars[0].aval.shape)
    parts = [v for v in values if 0 not in np.shape(v if is_const(v) else np.empty(v.shape, bool))]
    if len(parts) == 1:
        return parts[0]
    perms = [v.perm for v in parts if not is_const(v)]
    perm = perms[0] if perms and all(p == perms[0] for p in perms) else None
    place = perm.index(axis) if perm else axis
    out = graph.op.concat([graph.full(v, perm) for v in parts], place)
    return Value(out.output(0), shape, perm)


@rule("stack", moves=True)
def _stack(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    shape, axis = tuple(eqn.outvars[0].aval.shape), eqn.params["axis"]
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    outs = [reshaped(graph, graph.full(value), one).out for value in values]
    return Value(graph.op.concat(outs, axis).output(0), shape)


@rule("split", moves=True)
def _split(graph: Graph, eqn: Any, values: Sequence[Operand]) -> list[Operand]:
    (x,) = values
    axis, start, made = eqn.params["axis"], 0, []
    for size, var in zip(eqn.params["sizes"], eqn.outvars, strict=True):
        first, last = [0] * len(x.shape), list(x.shape)
        first[axis], last[axis] = start, start + size
        shape = tuple(var.aval.shape)
        start += size
        if size == 0:
            made.append(np.zeros(shape, var.aval.dtype))
        else:
            made.append(sliced(graph, x, first, last, [1] * len(shape), shape))
    return made


@rule("pad", moves=True)
def _pad(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    x, fill = values
    config, shape = eqn.params["padding_config"], tuple(eqn.outvars[0].aval.shape)
    if is_const(x) and x.size == 0:
        return Value(graph.full(fill), shape)
    if any(inner for _, _, inner in config):
        raise Refused("between the elements (a dilation): has no counterpart here")
    perm = None if is_const(x) else x.perm  # all in the order in which the axes are
    order = perm or tuple(range(len(shape)))
    low, high = ([config[axis][side] for axis in order] for side in (0, 1))
    if not any((*low, *high)) and not is_const(x):
        return x
    op, out = graph.op, graph.full(x, perm)
    if any(n < 0 for n in (*low, *high)):  # cut first: what is cut is not there to be kept
        sizes = list(out.shape)
        first = [max(-n, 0) for n in low]
        last = [size - max(-n, 0) for size, n in zip(sizes, high, strict=True)]
        if any(b <= a for a, b in zip(first, last, strict=True)):
            raise Refused("that cuts all of an axis, and more")
        ones = graph.ints([1] * len(first))
        out = op.slice(out, graph.ints(first), graph.ints(last), ones).output(0)
    low, high = ([max(n, 0) for n in pair] for pair in (low, high))
    if not any((*low, *high)):
        return Value(out, shape, perm)
    given = graph.ints(low), graph.ints(high)
    dtype = np.dtype(eqn.outvars[0].aval.dtype)
    if is_const(fill):
        return Value(op.pad(out, *given, "constant", graph.full(fill)).output(0), shape, perm)
    zero = op.constant(np.zeros((), np.float32 if float_dtype(dtype) else dtype))
    out = op.pad(out, *given, "constant", zero).output(0)  # it takes constants only
    whole = [shape[axis] for axis in order]
    inside = np.zeros(whole, bool)
    inside[tuple(slice(a, n - b) for a, b, n in zip(low, high, whole, strict=True))] = True
    out = graph.select(graph.constant(inside), out, graph.full(fill)).output(0)
    return Value(out, shape, perm)
