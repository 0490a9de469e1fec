"""OpenVINO rules of convolutions, pooling, gathers and scatters.

convolution   channels-first inside; what comes out keeps that order until it is needed
gather        one axis by OpenVINO's Gather; else by the linear index of every element
scatter       by linear indices, those out of bounds into one element more, cut off again
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino.graph import (
    Graph,
    Operand,
    Refused,
    Value,
    float_dtype,
    is_const,
    rule,
)
from jaxinfer.compile.openvino.moving import reshaped


def sizes_of(value: Operand) -> tuple[int, ...]:
    """Return the shape of an operand."""
    return tuple(np.shape(value)) if is_const(value) else value.shape


def as_shape(graph: Graph, out: Any, shape: Sequence[int]) -> Any:
    """Return an output in a shape, as it is if it has that."""
    return out if tuple(out.shape) == tuple(shape) else reshaped(graph, out, shape).out


@rule("conv_general_dilated")
def _conv(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    params, op = eqn.params, graph.op
    if not all(float_dtype(var.aval.dtype) for var in (*eqn.invars, *eqn.outvars)):
        raise Refused("of integers: give the float model, and quantize= to compile_jaxpr")
    if params["batch_group_count"] != 1:
        raise Refused("with groups of the batch: has no counterpart here")
    x, kernel = values
    lhs, rhs, out_spec = params["dimension_numbers"]
    count = len(lhs) - 2
    if not 1 <= count <= 3:
        raise Refused(f"over {count} axes: 1 to 3 are taken")
    groups, padding = params["feature_group_count"], params["padding"]
    low, high = ([pair[side] for pair in padding] for side in (0, 1))
    spread = list(params["lhs_dilation"])
    a, w = graph.full(x, tuple(lhs)), graph.full(kernel, tuple(rhs))
    if any(n > 1 for n in spread):
        a = _dilated(graph, a, spread)
    if any(n < 0 for n in (*low, *high)):
        a, low, high = _cut(graph, a, low, high)
    if groups > 1:
        sizes = list(w.shape)
        w = as_shape(graph, w, (groups, sizes[0] // groups, *sizes[1:]))
    name = op.group_convolution if groups > 1 else op.convolution
    made = name(a, w, list(params["window_strides"]), low, high, list(params["rhs_dilation"]))
    graph.names.product(made, x, kernel)
    # axis i of the result is at out_spec.index(i) of [batch, features, spatial..]
    perm = tuple(out_spec)
    perm = None if perm == tuple(sorted(perm)) else perm
    return Value(made.output(0), tuple(eqn.outvars[0].aval.shape), perm)


def _dilated(graph: Graph, out: Any, steps: Sequence[int]) -> Any:
    """Put ``step - 1`` zeros between the elements of each spatial axis."""
    op = graph.op
    for axis, step in enumerate(steps, 2):
        if step == 1:
            continue
        sizes = list(out.shape)
        out = as_shape(graph, out, (*sizes[: axis + 1], 1, *sizes[axis + 1 :]))
        after = [0] * (len(sizes) + 1)
        after[axis + 1] = step - 1
        zeros = graph.ints([0] * len(after))
        out = op.pad(out, zeros, graph.ints(after), "constant", op.constant(np.float32(0)))
        sizes[axis] *= step
        out = as_shape(graph, out.output(0), sizes)
        stop = graph.ints([sizes[axis] - step + 1])
        out = op.slice(out, graph.ints([0]), stop, graph.ints([1]), graph.ints([axis])).output(0)
    return out


def _cut(
    graph: Graph, out: Any, low: Sequence[int], high: Sequence[int]
) -> tuple[Any, list[int], list[int]]:
    """Cut what a negative padding takes away."""
    sizes = list(out.shape)[2:]
    first = [max(-n, 0) for n in low]
    last = [size - max(-n, 0) for size, n in zip(sizes, high, strict=True)]
    if any(b <= a for a, b in zip(first, last, strict=True)):
        raise Refused("with a padding that cuts all of an axis")
    axes = graph.ints(list(range(2, len(sizes) + 2)))
    ones = graph.ints([1] * len(sizes))
    out = graph.op.slice(out, graph.ints(first), graph.ints(last), ones, axes).output(0)
    return out, [max(n, 0) for n in low], [max(n, 0) for n in high]


# Windows.


def _window(name: str) -> None:
    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        return _pooled(graph, eqn, values[0], name)

    rule(name)(apply)


for _name in ("reduce_window_max", "reduce_window_min", "reduce_window_sum"):
    _window(_name)


def _pooled(graph: Graph, eqn: Any, x: Value, name: str) -> Value:
    """Pool over at most three axes: of the others, the last two are made batch and channels."""
    params, op = eqn.params, graph.op
    if not float_dtype(eqn.invars[0].aval.dtype):
        raise Refused("of integers: computed for floats only")
    rank = len(x.shape)
    dims, padding = params["window_dimensions"], params["padding"]
    if any(n != 1 for n in params["base_dilation"]):
        raise Refused("with a dilated operand: has no counterpart here")
    spatial = [
        a
        for a in range(rank)
        if (dims[a], params["window_strides"][a], *padding[a]) != (1, 1, 0, 0)
    ]
    if not spatial:
        return x
    if len(spatial) > 3:
        raise Refused(f"over {len(spatial)} axes: 1 to 3 are taken")
    if any(n < 0 for pair in padding for n in pair):
        raise Refused("with a negative padding")
    rest = [a for a in range(rank) if a not in spatial]
    order = tuple(x.perm) if x.perm and set(x.perm[:2]) == set(rest) else (*rest, *spatial)
    rest, spatial = list(order[: len(rest)]), list(order[len(rest) :])
    shape = tuple(eqn.outvars[0].aval.shape)
    out = graph.full(x, order)
    batch = [x.shape[a] for a in rest]
    lead = batch if len(batch) == 2 else [1, math.prod(batch)]
    out = as_shape(graph, out, (*lead, *(x.shape[a] for a in spatial)))
    pick = lambda given: [given[a] for a in spatial]
    low, high = (pick([pair[side] for pair in padding]) for side in (0, 1))
    strides, window = pick(params["window_strides"]), pick(dims)
    dilation = pick(params["window_dilation"])
    if name == "reduce_window_sum":
        out = _sum_pool(graph, out, window, strides, low, high, dilation)
    else:
        out = op.negative(out).output(0) if name == "reduce_window_min" else out
        wide = [(n - 1) * step for n, step in zip(window, dilation, strict=True)]
        if any(n > most for pair in (low, high) for n, most in zip(pair, wide, strict=True)):
            out = _filled(graph, out, low, high, -np.inf)  # a window may hold padding alone
            low = high = [0] * len(window)
        out = op.max_pool(out, strides, dilation, low, high, window, "floor").output(0)
        out = op.negative(out).output(0) if name == "reduce_window_min" else out
    out = as_shape(graph, out, tuple(shape[a] for a in order))
    return Value(out, shape, None if order == tuple(range(rank)) else order)


def _sum_pool(
    graph: Graph,
    out: Any,
    window: list[int],
    strides: list[int],
    low: list[int],
    high: list[int],
    dilation: list[int],
) -> Any:
    """Sums as means times the number of elements; a dilated window by a convolution of ones."""
    op = graph.op
    if any(n > 1 for n in dilation):
        channels = list(out.shape)[1]
        ones = graph.constant(np.ones((channels, 1, 1, *window), np.float32))
        return op.group_convolution(out, ones, strides, low, high, dilation).output(0)
    out = _filled(graph, out, low, high, 0.0)
    none = [0] * len(window)
    mean = op.avg_pool(out, strides, none, none, window, False, "floor")
    return op.multiply(mean, op.constant(np.float32(math.prod(window)))).output(0)


def _filled(graph: Graph, out: Any, low: Sequence[int], high: Sequence[int], value: float) -> Any:
    if not any((*low, *high)):
        return out
    fill = graph.op.constant(np.float32(value))
    before, after = graph.ints([0, 0, *low]), graph.ints([0, 0, *high])
    return graph.op.pad(out, before, after, "constant", fill).output(0)


# Gathers and scatters.


@rule("gather", moves=True)
def _gather(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    x, indices = values
    if str(eqn.invars[1].aval.dtype) != "int32":
        raise Refused(f"by indices of {eqn.invars[1].aval.dtype}: int32 is taken")
    if np.prod(sizes_of(x), dtype=np.int64) >= 2**31:
        raise Refused("of an array of 2^31 elements or more")
    spec, mode = eqn.params["dimension_numbers"], _mode(eqn)
    sizes, shape = eqn.params["slice_sizes"], tuple(eqn.outvars[0].aval.shape)
    starts, valid = _starts(graph, indices, spec, [sizes_of(x)[d] for d in spec.start_index_map],
                            [sizes[d] for d in spec.start_index_map], mode)  # fmt: skip
    offsets, batch = spec.offset_dims, sizes_of(indices)[:-1]
    if _is_take(spec, sizes, sizes_of(x)):
        (axis,) = spec.start_index_map
        one = reshaped(graph, starts[0], batch).out
        made = graph.op.gather(graph.full(x), one, graph.ints(axis))
        out = graph.names.product(made, x).output(0)
        # the gathered axes stand at ``axis``; in the result they are those that are no offsets
        made = [*offsets[:axis], *(a for a in range(len(shape)) if a not in offsets)]
        made += offsets[axis:]
        perm = None if made == sorted(made) else tuple(made)
        found = Value(out, shape, perm)
    else:
        linear = _linear(graph, spec, sizes, sizes_of(x), starts, batch, shape)
        flat = reshaped(graph, graph.full(x), (math.prod(sizes_of(x)),)).out
        made = graph.op.gather(flat, linear, graph.ints(0))
        found = Value(graph.names.product(made, x).output(0), shape)
    if valid is None:
        return found
    return _masked(graph, eqn, found, valid, [a for a in range(len(shape)) if a not in offsets])


def _masked(graph: Graph, eqn: Any, found: Value, valid: Any, at: Sequence[int]) -> Value:
    """Put the fill value where an index was out of bounds."""
    dtype, given = np.dtype(eqn.outvars[0].aval.dtype), eqn.params["fill_value"]
    if float_dtype(dtype):
        fill: Any = np.float32(np.nan if given is None else given)
    elif given is not None:
        fill = dtype.type(given)
    elif dtype.kind == "b":
        fill = np.bool_(True)
    else:
        fill = dtype.type(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)
    sizes = [1] * len(found.shape)
    for axis in at:
        sizes[axis] = found.shape[axis]
    mask = Value(reshaped(graph, valid, sizes).out, found.shape)
    select = lambda mask, value: graph.select(mask, value, graph.op.constant(fill))
    return graph.elementwise(select, [mask, found])


def _mode(eqn: Any) -> str:
    return str(eqn.params["mode"].name if eqn.params["mode"] is not None else "FILL_OR_DROP")


def _is_take(spec: Any, sizes: Sequence[int], whole: Sequence[int]) -> bool:
    if len(spec.start_index_map) != 1 or spec.start_index_map != spec.collapsed_slice_dims:
        return False
    (axis,) = spec.start_index_map
    return not spec.operand_batching_dims and all(
        size == n for a, (size, n) in enumerate(zip(sizes, whole, strict=True)) if a != axis
    )


def _starts(
    graph: Graph,
    indices: Operand,
    spec: Any,
    whole: Sequence[int],
    sizes: Sequence[int],
    mode: str,
) -> tuple[list[Any], Any]:
    """Return the first index along each axis, within bounds, and where they were (None: always).

    Each is [batch.., 1].
    """
    op = graph.op
    out, rank = graph.full(indices), len(sizes_of(indices))
    starts, valid = [], None
    for number, (n, size) in enumerate(zip(whole, sizes, strict=True)):
        one = op.gather(out, graph.ints([number]), graph.ints(rank - 1)).output(0)
        held = op.minimum(op.maximum(one, graph.ints(0)), graph.ints(n - size)).output(0)
        if mode == "FILL_OR_DROP":
            fits = op.equal(held, one).output(0)
            valid = fits if valid is None else op.logical_and(valid, fits).output(0)
        starts.append(held)
    return starts, valid


def _linear(
    graph: Graph,
    spec: Any,
    sizes: Sequence[int],
    whole: Sequence[int],
    starts: Sequence[Any],
    batch: Sequence[int],
    shape: Sequence[int],
) -> Any:
    """Return the linear index of every element of the result: i32[shape].

    sum_d stride_d (start_d[batch] + offset_d), with a batching axis's own number for its start.
    """
    op = graph.op
    strides = [math.prod(whole[d + 1 :]) for d in range(len(whole))]
    skipped = {*spec.collapsed_slice_dims, *spec.operand_batching_dims}
    window = [d for d in range(len(whole)) if d not in skipped]
    rest = [a for a in range(len(shape)) if a not in spec.offset_dims]
    fixed = np.zeros((1,) * len(shape), np.int32)
    for axis, d in zip(spec.offset_dims, window, strict=True):
        steps = (strides[d] * np.arange(sizes[d])).astype(np.int32)
        fixed = fixed + steps.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    for d, at in zip(spec.operand_batching_dims, spec.start_indices_batching_dims, strict=True):
        steps = (strides[d] * np.arange(whole[d])).astype(np.int32)
        axis = rest[at]
        fixed = fixed + steps.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    total = graph.ints(fixed)
    spread = [1] * len(shape)
    for axis, size in zip(rest, batch, strict=True):
        spread[axis] = size
    for d, start in zip(spec.start_index_map, starts, strict=True):
        moved = reshaped(graph, start, spread).out
        total = op.add(total, op.multiply(moved, graph.ints(strides[d]))).output(0)
    want = tuple(shape)
    if tuple(total.shape) == want:
        return total
    return op.broadcast(total, graph.ints(want)).output(0)


class _AsGather:
    """A scatter's numbers as those of the gather that reads what it writes."""

    def __init__(self, spec: Any):
        self.offset_dims = spec.update_window_dims
        self.collapsed_slice_dims = spec.inserted_window_dims
        self.start_index_map = spec.scatter_dims_to_operand_dims
        self.operand_batching_dims = spec.operand_batching_dims
        self.start_indices_batching_dims = spec.scatter_indices_batching_dims


def _scatter_rule(name: str, reduction: str, moves: bool = False) -> None:
    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        return _scattered(graph, eqn, values, reduction)

    rule(name, moves=moves)(apply)


for _name, _reduction, _moves in (
    ("scatter", "none", True),
    ("scatter-add", "sum", False),
    ("scatter_add", "sum", False),
    ("scatter-mul", "prod", False),
    ("scatter_mul", "prod", False),
    ("scatter-min", "min", False),
    ("scatter_min", "min", False),
    ("scatter-max", "max", False),
    ("scatter_max", "max", False),
):
    _scatter_rule(_name, _reduction, _moves)


def _scattered(graph: Graph, eqn: Any, values: Sequence[Operand], reduction: str) -> Value:
    x, indices, updates = values
    op, whole = graph.op, sizes_of(x)
    if str(eqn.invars[1].aval.dtype) != "int32":
        raise Refused(f"by indices of {eqn.invars[1].aval.dtype}: int32 is taken")
    count = math.prod(whole)
    if count >= 2**31 - 1:
        raise Refused("into an array of 2^31 elements or more")
    if 0 in sizes_of(updates):
        return Value(graph.full(x), whole)
    spec = _AsGather(eqn.params["dimension_numbers"])
    skipped = {*spec.collapsed_slice_dims, *spec.operand_batching_dims}
    shape = sizes_of(updates)
    windows = iter(spec.offset_dims)
    sizes = [1 if d in skipped else shape[next(windows)] for d in range(len(whole))]
    mode = _mode(eqn)
    starts, valid = _starts(graph, indices, spec, [whole[d] for d in spec.start_index_map],
                            [sizes[d] for d in spec.start_index_map], mode)  # fmt: skip
    batch = sizes_of(indices)[:-1]
    linear = _linear(graph, spec, sizes, whole, starts, batch, shape)
    flat = reshaped(graph, graph.full(x), (count,)).out
    if valid is not None:
        rest = [a for a in range(len(shape)) if a not in spec.offset_dims]
        spread = [shape[a] if a in rest else 1 for a in range(len(shape))]
        valid = reshaped(graph, valid, spread).out
        linear = graph.select(valid, linear, graph.ints(count)).output(0)
        zero = np.zeros(1, np.float32 if float_dtype(eqn.invars[0].aval.dtype) else
                        eqn.invars[0].aval.dtype)  # fmt: skip
        flat = op.concat([flat, op.constant(zero)], 0).output(0)
    total = math.prod(shape)
    made = op.scatter_elements_update(
        flat,
        reshaped(graph, linear, (total,)).out,
        reshaped(graph, graph.full(updates), (total,)).out,
        graph.ints(0),
        reduction,
    ).output(0)
    if valid is not None:
        one = graph.ints([1])
        made = op.slice(made, graph.ints([0]), graph.ints([count]), one).output(0)
    return Value(as_shape(graph, made, whole), whole)


@rule("dynamic_slice", moves=True)
def _dynamic_slice(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    x, *starts = values
    sizes = eqn.params["slice_sizes"]
    out = graph.full(x)
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size == sizes_of(x)[axis]:
            continue
        places = _range(graph, start, size, sizes_of(x)[axis] - size)
        out = graph.op.gather(out, places, graph.ints(axis)).output(0)
    return Value(out, tuple(sizes))


def _range(graph: Graph, start: Operand, size: int, most: int) -> Any:
    """Return start, start + 1, .., with the start held between 0 and ``most``: i32[size]."""
    op, first = graph.op, graph.full(start)
    held = op.minimum(op.maximum(first, graph.ints(0)), graph.ints(most))
    return op.add(held, graph.ints(np.arange(size))).output(0)


@rule("dynamic_update_slice", moves=True)
def _dynamic_update_slice(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    x, update, *starts = values
    whole, sizes = sizes_of(x), sizes_of(update)
    if 0 in sizes:
        return x
    axes = [a for a in range(len(whole)) if sizes[a] != whole[a]]
    places = {a: _range(graph, starts[a], sizes[a], whole[a] - sizes[a]) for a in axes}

    def put(out: Any, left: Sequence[int]) -> Any:
        """Replace along the first axis what was replaced along the others."""
        if not left:
            return graph.full(update)
        axis, *rest = left
        number = graph.ints(axis)
        inner = graph.op.gather(out, places[axis], number).output(0) if rest else out
        inner = put(inner, rest)
        return graph.op.scatter_update(out, places[axis], inner, number).output(0)

    return Value(put(graph.full(x), axes), whole)
