"""OpenVINO rules of loops and branches.

scan    unrolled up to ``UNROLLED`` steps, else OpenVINO's Loop
while   Loop; its condition is evaluated before the first step and after every one
cond    every branch is computed, and one is selected; by platform: that of the CPU
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino.graph import (
    Graph,
    Operand,
    Refused,
    Value,
    is_const,
    load_openvino,
    rule,
)
from jaxinfer.compile.openvino.moving import reshaped, sliced
from jaxinfer.core._bodies import Body, bodies
from jaxinfer.core._compat import scan_counts, subjaxprs

UNROLLED = 32
"""Steps up to which a scan is unrolled: repeated layers are, recurrences over time are not."""


@rule("cond", moves=True)
def _cond(graph: Graph, eqn: Any, values: Sequence[Operand]) -> list[Operand]:
    index, *operands = values
    inside = bodies(eqn)
    platforms = eqn.params.get("branches_platforms")
    if platforms is not None:
        inside, index = [_by_platform(inside, platforms)], np.int32(0)
    if is_const(index):
        body = inside[int(np.clip(int(index), 0, len(inside) - 1))]
        return graph.run(body.jaxpr, body.consts, operands)
    if any(_loops(body.jaxpr) for body in inside):
        raise Refused("with a loop of unknown length in a branch: all branches would be run")
    outs = [graph.run(body.jaxpr, body.consts, operands) for body in inside]
    as_int = lambda i: graph.op.convert(i, "i32")
    if str(eqn.invars[0].aval.dtype) == "bool":
        index = graph.elementwise(as_int, [index])
    chosen: list[Operand] = []
    for var, each in zip(eqn.outvars, zip(*outs, strict=True), strict=True):
        if 0 in var.aval.shape:
            chosen.append(each[0])
            continue
        found = graph.full(each[-1])
        for number in reversed(range(len(each) - 1)):
            below = graph.op.less_equal(graph.full(index), graph.ints(number))
            found = graph.select(below, graph.full(each[number]), found).output(0)
        chosen.append(Value(found, tuple(var.aval.shape)))
    return chosen


def _by_platform(inside: Sequence[Body], platforms: Sequence[Any]) -> Body:
    """Return the CPU's branch, or the default one if that is one convolution and less work.

    A depthwise convolution as shifted products is faster in XLA, and slower here (MobileNetV3:
    13.7 against 9.1 ms); NNCF quantizes only the convolution.
    """
    own = [body for body, names in zip(inside, platforms, strict=True) if names and "cpu" in names]
    rest = [body for body, names in zip(inside, platforms, strict=True) if names is None]
    if not own and not rest:
        raise Refused("by platform, without a branch for the CPU")
    if own and rest:
        names = [eqn.primitive.name for eqn in _flattened(rest[0].jaxpr)]
        if names.count("conv_general_dilated") == 1 and len(names) < len(
            list(_flattened(own[0].jaxpr))
        ):
            return rest[0]
    return (own or rest)[0]


def _flattened(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of those inside, without the calls themselves."""
    for eqn in jaxpr.eqns:
        within = subjaxprs(eqn.params)
        if not within:
            yield eqn
        for each in within:
            yield from _flattened(each)


def _loops(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name == "while" or any(map(_loops, subjaxprs(eqn.params)))
        for eqn in jaxpr.eqns
    )


@rule("scan", moves=True)
def _scan(graph: Graph, eqn: Any, values: Sequence[Operand]) -> list[Operand]:
    params, (body,) = eqn.params, bodies(eqn)
    consts, carry = scan_counts(params)
    length, reverse = params["length"], params["reverse"]
    shared, state, xs = values[:consts], values[consts : consts + carry], values[consts + carry :]
    if length == 0:
        empty = [np.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[carry:]]
        return [*state, *empty]
    if length <= UNROLLED:
        return _unrolled(graph, body, shared, state, xs, length, reverse)
    loop = _Loop(graph, length)
    given = [*map(loop.shared, shared), *map(loop.carried, state)]
    given += [loop.sliced(x, reverse) for x in xs]
    outs = loop.inner.run(body.jaxpr, body.consts, given)
    new, ys = outs[:carry], outs[carry:]
    return loop.finish(new, None, ys, reverse, eqn.outvars)


def _unrolled(
    graph: Graph,
    body: Any,
    shared: Sequence[Operand],
    state: Sequence[Operand],
    xs: Sequence[Operand],
    length: int,
    reverse: bool,
) -> list[Operand]:
    rows: dict[int, Sequence[Operand]] = {}
    for step in reversed(range(length)) if reverse else range(length):
        outs = graph.run(
            body.jaxpr, body.consts, [*shared, *state, *(_row(graph, x, step) for x in xs)]
        )
        state, rows[step] = outs[: len(state)], outs[len(state) :]
    return [*state, *(_stacked(graph, [rows[t][i] for t in range(length)])
                      for i in range(len(rows[0])))]  # fmt: skip


def _row(graph: Graph, x: Operand, step: int) -> Operand:
    if is_const(x):
        return graph.names.mark(np.asarray(np.asarray(x)[step]), graph.names.of(x))
    shape, rest = x.shape, x.shape[1:]
    row = sliced(graph, x, [step, *[0] * len(rest)], [step + 1, *rest], [1] * len(shape),
                 (1, *rest))  # fmt: skip
    return reshaped(graph, graph.full(row), rest)


def _stacked(graph: Graph, parts: Sequence[Operand]) -> Operand:
    if all(map(is_const, parts)):
        return np.stack([np.asarray(part) for part in parts])
    shape = next(part.shape for part in parts if not is_const(part))
    rows = [reshaped(graph, graph.full(part), (1, *shape)).out for part in parts]
    return Value(graph.op.concat(rows, 0).output(0), (len(parts), *shape))


@rule("while", moves=True)
def _while(graph: Graph, eqn: Any, values: Sequence[Operand]) -> list[Operand]:
    cond, body = bodies(eqn)
    first, second = (eqn.params[f"{name}_nconsts"] for name in ("cond", "body"))
    of_cond, of_body, state = (
        values[:first],
        values[first : first + second],
        values[first + second :],
    )
    (before,) = graph.run(cond.jaxpr, cond.consts, [*of_cond, *state])
    if not _scalar(before):
        raise Refused("with a condition for each row (vmap of while_loop)")
    loop = _Loop(graph, -1, graph.full(before))
    of_cond, of_body = ([loop.shared(v) for v in group] for group in (of_cond, of_body))
    given = [loop.carried(value) for value in state]
    new = loop.inner.run(body.jaxpr, body.consts, [*of_body, *given])
    # what the condition sees must be what the next step sees
    new = [v if is_const(v) else Value(loop.inner.full(v), v.shape) for v in new]
    (after,) = loop.inner.run(cond.jaxpr, cond.consts, [*of_cond, *new])
    return loop.finish(new, after, [], False, eqn.outvars)


def _scalar(value: Operand) -> bool:
    return (np.shape(value) if is_const(value) else value.shape) == ()


class _Loop:
    """OpenVINO's Loop around a graph of its own."""

    def __init__(self, graph: Graph, trips: int, condition: Any = None):
        self.outer, self.inner = graph, Graph(graph)
        self.trips, self.condition = trips, condition
        self._ready: list[Callable[[Any], None]] = []
        self._state: list[tuple[Any, Operand]] = []  # parameter (or None), initial value

    def shared(self, value: Operand) -> Operand:
        """Return an outer value as the body sees it."""
        if is_const(value):
            return value
        out = self.outer.full(value)
        made = self._parameter(out, value.shape)
        node = made.out.get_node()
        self._ready.append(lambda loop: loop.set_invariant_input(node, out))
        return made

    def carried(self, value: Operand) -> Operand:
        """Return a value of the state as the body sees it."""
        shape = tuple(np.shape(value)) if is_const(value) else value.shape
        if 0 in shape:
            self._state.append((None, value))
            return value
        made = self._parameter(self.outer.full(value), shape)
        self._state.append((made.out.get_node(), value))
        return made

    def sliced(self, value: Operand, reverse: bool) -> Operand:
        """Return a row of a value, that of the step."""
        shape = tuple(np.shape(value)) if is_const(value) else value.shape
        if 0 in shape:  # a constant
            return np.asarray(value)[0]
        out = _flipped(self.outer, self.outer.full(value), shape[0], reverse)
        row = self._parameter(out, (1, *shape[1:]))
        node = row.out.get_node()
        self._ready.append(lambda loop: loop.set_sliced_input(node, out, 0, 1, 1, -1, 0))
        return reshaped(self.inner, row.out, shape[1:])

    def _parameter(self, out: Any, shape: Sequence[int]) -> Value:
        made = self.inner.op.parameter(list(shape), out.element_type)
        self.inner.parameters.append(made)
        return Value(made.output(0), tuple(shape))

    def finish(
        self,
        new: Sequence[Operand],
        condition: Operand | None,
        stacked: Sequence[Operand],
        reverse: bool,
        outvars: Sequence[Any],
    ) -> list[Operand]:
        """Close the loop; returns the last state, and the stacked rows."""
        inner, op = self.inner, self.outer.op
        true = np.asarray(True)
        after = inner.full(true if condition is None else condition)
        results = [op.result(after)]
        nodes = []
        for value, (node, _) in zip(new, self._state, strict=True):
            nodes.append(None if node is None else op.result(inner.full(value)))
        rows = []
        for value, var in zip(stacked, outvars[len(new) :], strict=True):
            rest = tuple(var.aval.shape[1:])
            if 0 in rest:
                rows.append(None)
                continue
            rows.append(op.result(reshaped(inner, inner.full(value), (1, *rest)).out))
        results += [node for node in nodes if node is not None]
        results += [*(row for row in rows if row is not None)]
        if inner.refused:  # of the whole program: the body may hold what stands in for it
            return [self.outer._stand_in(var.aval) for var in outvars]
        body = load_openvino().Model(results, inner.parameters, "body")
        start = self.condition if self.condition is not None else self.outer.full(true)
        loop = op.loop(op.constant(np.int64(self.trips)).output(0), start)
        loop.set_function(body)
        loop.set_special_body_ports([-1, 0])
        for attach in self._ready:
            attach(loop)
        for (node, value), result in zip(self._state, nodes, strict=True):
            if node is not None:
                loop.set_merged_input(node, self.outer.full(value), result.input_value(0))
        outs: list[Operand] = []
        for (node, value), result, var in zip(self._state, nodes, outvars, strict=False):
            if node is None:
                outs.append(value)
            else:
                out = loop.get_iter_value(result.input_value(0), -1)
                outs.append(Value(out, tuple(var.aval.shape)))
        for result, var in zip(rows, outvars[len(new) :], strict=True):
            if result is None:
                outs.append(np.zeros(var.aval.shape, var.aval.dtype))
                continue
            out = loop.get_concatenated_slices(result.input_value(0), 0, 1, 1, -1, 0)
            shape = tuple(var.aval.shape)
            outs.append(Value(_flipped(self.outer, out, shape[0], reverse), shape))
        return outs


def _flipped(graph: Graph, out: Any, length: int, reverse: bool) -> Any:
    if not reverse:
        return out
    order = graph.ints(np.arange(length)[::-1])
    return graph.op.gather(out, order, graph.ints(0)).output(0)
