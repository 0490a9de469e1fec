"""Which axes of a program are one dimension, and what splitting that dimension would communicate.

Every equation of a jaxpr is read once, those of bodies as well: what axes it makes the same
(``_auto_factors``), and what it has to do if one of them is split.

    contract   a product that sums over it:             all-reduce of the result
    reduce     a reduction over it:                     all-reduce of the result
    index      a gather that picks along it:            all-reduce of the result
    break      anything that needs the axis whole:      all-gather of the operand
    output     a result of the program along it:        gathered by who reads it

Bytes are those of whole values (other mesh axes divide them), times the trips of the scans
around. Nothing is guessed by shape: two axes are the same only where an equation says so.

What it does not do: see through loops of unknown length more than once, or through primitives
that it does not know (``custom_call``, kernels): their results are new dimensions, and what
goes in is needed whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxinfer.core._bodies import bodies
from jaxinfer.core._compat import scan_counts
from jaxinfer.core.provenance import SITES, Address
from jaxinfer.sharding._auto_factors import Axis, Factor, axis, expand, lead, regroup, unify

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


class Product(NamedTuple):
    """An equation that multiplies by a parameter, or picks from one.

    Attributes:
      path: of the parameter.
      side: which operand it is.
      operand, other, result: axes of the parameter, of what it is multiplied with, and of both.
      bytes: of the result, all trips of scans around.
      operand_bytes: of the operand, all trips.
    """

    path: str
    side: int
    operand: Axes
    other: Axes
    result: Axes
    bytes: int
    operand_bytes: int


class Flow:
    """The dimensions of one or more jaxprs over the same parameters.

    Attributes:
      params: axes of each parameter, by path.
      inputs: axes of each array input, for each jaxpr in the order of ``add``.
      uses: what equations do along axes.
      seen: axes and bytes of every value.
      tags: kinds of dimensions, with an axis that they lead.
      products: by where the equation is (``provenance.Address``), for each jaxpr.
    """

    def __init__(self) -> None:
        self.params: dict[str, Axes] = {}
        self.inputs: list[list[Axes]] = []
        self.uses: list[Use] = []
        self.seen: list[tuple[Axes, int]] = []
        self.tags: list[tuple[str, Axis]] = []
        self.products: list[dict[Address, Product]] = []
        self.times = 1

    def add(self, jaxpr: Any, paths: Sequence[str]) -> None:
        """Read a jaxpr whose first inputs are the parameters."""
        given: list[Value] = []
        for path, var in zip(paths, jaxpr.invars, strict=False):
            if path not in self.params:
                self.params[path] = fresh(var)
            given.append(Value(self.params[path], path))
        rest = [Value(fresh(var)) for var in jaxpr.invars[len(paths) :]]
        self.inputs.append([value.axes for value in rest])
        self.products.append({})
        for value, var in zip(self.walk(jaxpr, [*given, *rest], ()), jaxpr.outvars, strict=True):
            for each in value.axes:
                self.use("output", each, var)

    def walk(self, jaxpr: Any, given: Sequence[Value], address: Address) -> list[Value]:
        """Read the equations of a jaxpr; returns what its outputs are."""
        env: dict[Any, Value] = {var: Value(fresh(var)) for var in jaxpr.constvars}
        env |= zip(jaxpr.invars, given, strict=True)

        def read(var: Any) -> Value:
            return Value(fresh(var)) if hasattr(var, "val") else env[var]

        for index, eqn in enumerate(jaxpr.eqns):
            outs = self._equation(eqn, [read(var) for var in eqn.invars], (*address, index))
            for var, out in zip(eqn.outvars, outs, strict=True):
                env[var] = out
                self.seen.append((out.axes, size_of(var) * self.times))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, given: list[Value], address: Address) -> list[Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, given, address)
        if name == "while":
            return self._while(eqn, given, address)
        if name != "shard_map" and (inside := bodies(eqn)):
            return self._call(eqn, inside, given, address)
        rule = RULES.get(name)
        outs = rule(self, eqn, given) if rule else self._other(eqn, given)
        if len(outs) != len(eqn.outvars):
            outs = [Value(fresh(var)) for var in eqn.outvars]
        held = [side for side, value in enumerate(given) if value.path]
        if name in SITES and len(held) == 1:
            (side,) = held
            sizes = [size_of(v) * self.times for v in (eqn.outvars[0], eqn.invars[side])]
            of, other = given[side], given[1 - side].axes
            axes = (of.axes, other, outs[0].axes)
            self.products[-1][address] = Product(of.path, side, *axes, *sizes)
        return outs

    def _call(
        self, eqn: Any, inside: Sequence[Any], given: list[Value], address: Address
    ) -> list[Value]:
        outs: list[Value] = []
        for number, body in enumerate(inside):
            values = [given[operand] for operand in body.operands]
            found = self.walk(body.jaxpr, values, (*address, number))
            if not outs:
                outs = found
            else:
                for one, other in zip(outs, found, strict=True):
                    same(one.axes, other.axes)
                outs = [
                    a if a.path == b.path else Value(a.axes)
                    for a, b in zip(outs, found, strict=True)
                ]
        return outs

    def _scan(self, eqn: Any, given: list[Value], address: Address) -> list[Value]:
        consts, carry = scan_counts(eqn.params)
        (body,) = bodies(eqn)
        stacked = given[consts + carry :]
        for value in stacked:
            self.tags.append(("scan", value.axes[0]))
        state = [Value(value.axes) for value in given[consts : consts + carry]]
        sliced = [Value(value.axes[1:], value.path) for value in stacked]
        before, self.times = self.times, self.times * int(eqn.params["length"])
        outs = self.walk(body.jaxpr, [*given[:consts], *state, *sliced], (*address, 0))
        self.times = before
        for start, end in zip(state, outs[:carry], strict=True):
            same(start.axes, end.axes)
        over = axis(eqn.params["length"])
        return [*state, *(Value((over, *value.axes)) for value in outs[carry:])]

    def _while(self, eqn: Any, given: list[Value], address: Address) -> list[Value]:
        first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond, body = bodies(eqn)
        state = [Value(value.axes) for value in given[first + second :]]
        self.walk(cond.jaxpr, [*given[:first], *state], (*address, 0))
        outs = self.walk(body.jaxpr, [*given[first : first + second], *state], (*address, 1))
        for start, end in zip(state, outs, strict=True):
            same(start.axes, end.axes)
        return state

    def _other(self, eqn: Any, given: list[Value]) -> list[Value]:
        """Elementwise if every operand has the result's sizes, or 1, or no axes; else unknown."""
        out = eqn.outvars[0].aval.shape if eqn.outvars else ()
        pairs = [(v.axes, var.aval.shape) for v, var in zip(given, eqn.invars, strict=True)]
        pairs = [(axes, shape) for axes, shape in pairs if shape]
        alike = all(len(shape) == len(out) for _, shape in pairs) and all(
            size in (1, whole) for _, shape in pairs for size, whole in zip(shape, out, strict=True)
        )
        if (
            eqn.primitive.name in OPAQUE
            or not alike
            or not pairs
            or len({var.aval.shape for var in eqn.outvars}) != 1
        ):
            for value, var in zip(given, eqn.invars, strict=True):
                for each in value.axes:
                    self.use("break", each, var)
            return [Value(fresh(var)) for var in eqn.outvars]
        made = []
        for a, size in enumerate(out):
            own = [axes[a] for axes, shape in pairs if shape[a] == size]
            for other in own[1:]:
                unify(own[0], other)
            made.append(own[0] if own else axis(_int(size)))
        return [Value(tuple(made))] * len(eqn.outvars)

    def use(self, kind: str, over: Axis, var: Any, path: str = "") -> None:
        """Record that an equation does something along an axis."""
        self.uses.append(Use(kind, over, size_of(var) * self.times, path))


def fresh(var: Any) -> Axes:
    """Return axes that are like no others."""
    return tuple(axis(_int(size)) for size in getattr(var.aval, "shape", ()))


def _int(size: Any) -> int:
    return size if isinstance(size, int) else 1


def size_of(var: Any) -> int:
    """Return the bytes of a variable; 0 for one that is no array."""
    dtype = getattr(var.aval, "dtype", None)
    if dtype is None:
        return 0
    size = getattr(dtype, "itemsize", 4)
    return math.prod(map(_int, var.aval.shape)) * int(size)


def same(one: Axes, other: Axes) -> None:
    """Make the axes of two values the same, where they are."""
    for a, b in zip(one, other, strict=False):
        unify(a, b)


def _names(text: str) -> list[str]:
    return text.split()


OPAQUE = _names("sort fft shard_map custom_call pure_callback io_callback pallas_call")

Rule = Callable[[Flow, Any, list[Value]], list[Value]]


def _dot(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
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


def _ragged(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
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


def _conv(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
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


def _gather(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
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


def _reshape(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    if eqn.params.get("dimensions") is not None or len(given) > 1:
        return [Value(fresh(eqn.outvars[0]))]
    made = regroup(given[0].axes, [_int(size) for size in eqn.outvars[0].aval.shape])
    return [Value(tuple(made), given[0].path)]


def _broadcast(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    out = list(fresh(eqn.outvars[0]))
    shape = eqn.outvars[0].aval.shape
    for a, at in enumerate(eqn.params["broadcast_dimensions"]):
        if eqn.invars[0].aval.shape[a] == shape[at]:
            out[at] = given[0].axes[a]
    return [Value(tuple(out), given[0].path)]


def _transpose(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    axes = tuple(given[0].axes[a] for a in eqn.params["permutation"])
    return [Value(axes, given[0].path)]


def _squeeze(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    gone = eqn.params["dimensions"]
    axes = tuple(each for a, each in enumerate(given[0].axes) if a not in gone)
    return [Value(axes, given[0].path)]


def _same(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    return [given[0]]


def _resized(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
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


def _concatenate(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    at = eqn.params["dimension"]
    out = list(given[0].axes)
    out[at] = fresh(eqn.outvars[0])[at]
    for value, var in zip(given, eqn.invars, strict=True):
        for a, each in enumerate(value.axes):
            if a != at:
                unify(out[a], each)
        flow.use("break", value.axes[at], var)
    return [Value(tuple(out))]


def _update(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    """``dynamic_update_slice``: the operand, with an update along some axes."""
    for a, (whole, part) in enumerate(
        zip(eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, strict=True)
    ):
        if whole == part:
            unify(given[0].axes[a], given[1].axes[a])
        else:
            flow.use("break", given[0].axes[a], eqn.invars[1])
    return [Value(given[0].axes)]


def _scatter(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
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


def _reduce(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    gone = eqn.params.get("axes", eqn.params.get("dimensions", ()))
    for a in gone:
        flow.use("reduce", given[0].axes[a], eqn.outvars[0])
    axes = tuple(each for a, each in enumerate(given[0].axes) if a not in gone)
    return [Value(axes)] * len(eqn.outvars)


def _cumulative(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    flow.use("break", given[0].axes[eqn.params["axis"]], eqn.invars[0])
    return [Value(given[0].axes)]


def _iota(flow: Flow, eqn: Any, given: list[Value]) -> list[Value]:
    return [Value(fresh(var)) for var in eqn.outvars]


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


@dataclasses.dataclass
class Dimension:
    """A class of factors: one dimension of the program.

    Attributes:
      size: its size.
      params: (path, axis) of every parameter axis that it leads.
      inside: paths of parameters that have it behind another factor of an axis.
      weight: paths' bytes, filled in by the one who knows them.
      wire: bytes that would be communicated if it were split, all uses.
      kinds: ``heads``, ``experts``, ``vocabulary``, ``scan``.
      summed: paths of parameters whose products sum over it.
      apart: dimensions that lead another axis of a value that it leads an axis of.
      inputs: (jaxpr, input, axis) of every input axis that it leads.
    """

    size: int
    number: int
    params: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    inside: set[str] = dataclasses.field(default_factory=set)
    wire: int = 0
    kinds: set[str] = dataclasses.field(default_factory=set)
    summed: set[str] = dataclasses.field(default_factory=set)
    apart: set[Factor] = dataclasses.field(default_factory=set)
    inputs: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


def dimensions(flow: Flow) -> dict[Factor, Dimension]:
    """Return the dimensions of a program, by the factor that stands for each."""
    found: dict[Factor, Dimension] = {}

    def of(factor: Factor) -> Dimension:
        return found.setdefault(factor, Dimension(factor.size, factor.number))

    for path, axes in flow.params.items():
        for a, each in enumerate(axes):
            factors = expand(each)
            if factors:
                of(factors[0]).params.append((path, a))
            for factor in factors[1:]:
                of(factor).inside.add(path)
    for number, inputs in enumerate(flow.inputs):
        for index, axes in enumerate(inputs):
            for a, each in enumerate(axes):
                if factor := lead(each):
                    of(factor).inputs.append((number, index, a))
    values = [*((axes, 0) for axes in flow.params.values()), *flow.seen]
    for axes, size in values:
        expanded = [expand(each) for each in axes]
        leads = [factors[0] for factors in expanded if factors]
        for factor in leads:
            if leads.count(factor) > 1:
                of(factor).wire += size
            of(factor).apart |= {other for other in leads if other is not factor}
        for factors in expanded:
            for factor in factors[1:]:
                of(factor).wire += size  # behind another factor: the axis cannot be split along it
    for use in flow.uses:
        if factor := lead(use.axis):
            dimension = of(factor)
            dimension.wire += use.bytes * (1 if use.kind in ("break", "output") else 2)
            if use.kind == "contract" and use.path:
                dimension.summed.add(use.path)
    for kind, each in flow.tags:
        if factor := lead(each):
            of(factor).kinds.add(kind)
    return found


def bytes_of(shape: Sequence[int], dtype: Any) -> int:
    """Return the bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize
