"""What each primitive makes the same, and what it does along an axis (``_auto_flow``).

A rule gets the walk, the equation and its operands; it returns the results' axes and records what
the equation would have to communicate. A primitive without a rule is elementwise if its operands
have its result's sizes, or 1; else it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jaxinfer.sharding._auto_factors import Axis, axis, regroup, unify
from jaxinfer.sharding._auto_values import Value, fresh, whole


class Recorder(Protocol):
    """What a rule needs of the walk."""

    tags: list[tuple[str, Axis]]

    def use(self, kind: str, over: Axis, var: Any, path: str = "") -> None:
        """Record that an equation does something along an axis."""
        ...


Rule = Callable[[Recorder, Any, list[Value]], list[Value]]


def _dot(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    (over, batch) = eqn.params["dimension_numbers"]
    lhs, rhs = given[0], given[1]
    path = lhs.path or rhs.path
    for a, b in zip(*over, strict=True):
        unify(lhs.axes[a], rhs.axes[b])
        flow.use("contract", lhs.axes[a], eqn.outvars[0], path)
    for a, b in zip(*batch, strict=True):
        unify(lhs.axes[a], rhs.axes[b])
        if bool(lhs.path) != bool(rhs.path):
            flow.tags.append(("experts", lhs.axes[a]))
        elif not lhs.path:
            flow.tags.append(("heads", lhs.axes[a]))
    return [
        Value(
            (
                *(lhs.axes[a] for a in batch[0]),
                *(each for i, each in enumerate(lhs.axes) if i not in (*over[0], *batch[0])),
                *(each for i, each in enumerate(rhs.axes) if i not in (*over[1], *batch[1])),
            )
        )
    ]


def _ragged(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    over, batch = numbers.dot_dimension_numbers
    lhs, rhs = given[0], given[1]
    groups = tuple(numbers.rhs_group_dimensions)
    for a, b in zip(*over, strict=True):
        unify(lhs.axes[a], rhs.axes[b])
        flow.use("contract", lhs.axes[a], eqn.outvars[0], rhs.path)
    for a, b in zip(*batch, strict=True):
        unify(lhs.axes[a], rhs.axes[b])
    for a in groups:
        flow.tags.append(("experts", rhs.axes[a]))
        flow.use("contract", rhs.axes[a], eqn.outvars[0], rhs.path)
    if not groups:  # the ragged axis is summed: one result a group
        return [Value(fresh(eqn.outvars[0]))]
    out = (
        *(lhs.axes[a] for a in batch[0]),
        *(each for i, each in enumerate(lhs.axes) if i not in (*over[0], *batch[0])),
        *(each for i, each in enumerate(rhs.axes) if i not in (*over[1], *batch[1], *groups)),
    )
    return [Value(out)]


def _conv(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    lhs, rhs = given[0], given[1]
    out = list(fresh(eqn.outvars[0]))
    where = numbers.out_spec
    groups = params["feature_group_count"]
    features = lhs.axes[numbers.lhs_spec[1]]
    if params["batch_group_count"] == 1:
        out[where[0]] = lhs.axes[numbers.lhs_spec[0]]
    if groups == 1:
        out[where[1]] = rhs.axes[numbers.rhs_spec[0]]
        unify(features, rhs.axes[numbers.rhs_spec[1]])
        flow.use("contract", features, eqn.outvars[0], rhs.path)
    else:  # the groups lead both: (groups, channels of a group)
        made = rhs.axes[numbers.rhs_spec[0]]
        size = eqn.outvars[0].aval.shape[where[1]]
        parts = axis(groups), axis(size // groups)
        unify(made, (*parts[0], *parts[1]))
        channels = eqn.invars[0].aval.shape[numbers.lhs_spec[1]]
        unify(features, (*parts[0], *axis(channels // groups)))
        out[where[1]] = made
    for at in numbers.lhs_spec[2:]:
        flow.use("break", lhs.axes[at], eqn.invars[0])
    return [Value(tuple(out))]


def _gather(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    numbers = eqn.params["dimension_numbers"]
    operand, indices = given[0], given[1]
    sizes, shape = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    out = list(fresh(eqn.outvars[0]))
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [a for a in range(len(shape)) if a not in gone]
    for at, a in zip(numbers.offset_dims, kept, strict=True):
        if sizes[a] == shape[a]:
            out[at] = operand.axes[a]
    batch = [at for at in range(len(out)) if at not in numbers.offset_dims]
    for at, each in zip(batch, indices.axes[:-1], strict=False):
        out[at] = each
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    for a, b in pairs:
        unify(operand.axes[a], indices.axes[b])
    for a in numbers.start_index_map:
        if sizes[a] != shape[a]:
            flow.use("index", operand.axes[a], eqn.outvars[0], operand.path)
            if operand.path:
                kind = "experts" if len(shape) > 2 else "vocabulary"
                flow.tags.append((kind, operand.axes[a]))
    return [Value(tuple(out))]


def _reshape(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    if eqn.params.get("dimensions") is not None or len(given) > 1:
        return [Value(fresh(eqn.outvars[0]))]
    made = regroup(given[0].axes, [whole(size) for size in eqn.outvars[0].aval.shape])
    return [Value(tuple(made), given[0].path)]


def _broadcast(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    out = list(fresh(eqn.outvars[0]))
    shape = eqn.outvars[0].aval.shape
    for a, at in enumerate(eqn.params["broadcast_dimensions"]):
        if eqn.invars[0].aval.shape[a] == shape[at]:
            out[at] = given[0].axes[a]
    return [Value(tuple(out), given[0].path)]


def _transpose(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    axes = tuple(given[0].axes[a] for a in eqn.params["permutation"])
    return [Value(axes, given[0].path)]


def _squeeze(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    gone = eqn.params["dimensions"]
    axes = tuple(each for a, each in enumerate(given[0].axes) if a not in gone)
    return [Value(axes, given[0].path)]


def _same(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    return [given[0]]


def _resized(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    """Slices, pads, windows: an axis of unchanged size is the same, another is new."""
    outs = []
    before = eqn.invars[0].aval.shape
    for var in eqn.outvars:
        made = list(fresh(var))
        for a, size in enumerate(var.aval.shape):
            if size == before[a]:
                made[a] = given[0].axes[a]
        outs.append(Value(tuple(made), given[0].path))
    for a, each in enumerate(given[0].axes):
        if any(var.aval.shape[a] != before[a] for var in eqn.outvars) and not given[0].path:
            flow.use("break", each, eqn.invars[0])
    return outs


def _concatenate(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    at = eqn.params["dimension"]
    out = list(given[0].axes)
    out[at] = fresh(eqn.outvars[0])[at]
    for value, var in zip(given, eqn.invars, strict=True):
        for a, each in enumerate(value.axes):
            if a != at:
                unify(out[a], each)
        flow.use("break", value.axes[at], var)
    return [Value(tuple(out))]


def _update(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    """``dynamic_update_slice``: the operand, with an update along some axes."""
    for a, (size, part) in enumerate(
        zip(eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, strict=True)
    ):
        if size == part:
            unify(given[0].axes[a], given[1].axes[a])
        else:
            flow.use("break", given[0].axes[a], eqn.invars[1])
    return [Value(given[0].axes)]


def _scatter(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = given
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [a for a in range(len(operand.axes)) if a not in gone]
    shape, window = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    for at, a in zip(numbers.update_window_dims, kept, strict=True):
        if window[at] == shape[a]:
            unify(operand.axes[a], updates.axes[at])
    for a in numbers.scatter_dims_to_operand_dims:
        flow.use("break", operand.axes[a], eqn.invars[2])
    pairs = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    for a, b in pairs:
        unify(operand.axes[a], indices.axes[b])
    return [Value(operand.axes)]


def _reduce(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    gone = eqn.params.get("axes", eqn.params.get("dimensions", ()))
    for a in gone:
        flow.use("reduce", given[0].axes[a], eqn.outvars[0])
    axes = tuple(each for a, each in enumerate(given[0].axes) if a not in gone)
    return [Value(axes)] * len(eqn.outvars)


def _cumulative(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    flow.use("break", given[0].axes[eqn.params["axis"]], eqn.invars[0])
    return [Value(given[0].axes)]


def _iota(flow: Recorder, eqn: Any, given: list[Value]) -> list[Value]:
    return [Value(fresh(var)) for var in eqn.outvars]


def _names(text: str) -> list[str]:
    return text.split()


RULES: dict[str, Rule] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "dynamic_update_slice": _update,
    "iota": _iota,
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-mul", "scatter_add", "scatter_mul"), _scatter
    ),
    **dict.fromkeys(
        _names(
            """convert_element_type stop_gradient copy sharding_constraint reshard pvary pcast
            optimization_barrier reduce_precision"""
        ),
        _same,
    ),
    **dict.fromkeys(
        _names(
            """slice dynamic_slice pad split reduce_window_sum reduce_window_max
            reduce_window_min"""
        ),
        _resized,
    ),
    **dict.fromkeys(
        _names(
            """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor
            argmax argmin"""
        ),
        _reduce,
    ),
    **dict.fromkeys(_names("cumsum cumprod cummax cummin cumlogsumexp"), _cumulative),
}
