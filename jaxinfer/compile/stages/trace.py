"""A model as one flat list of equations, ready to be cut.

The function takes the arrays of its parameters by part name (a quantized weight is its integers
and its scales) and the arrays of its inputs, at the sizes of a micro-batch. Calls are inlined
(``jit``, ``closed_call``, custom derivatives, ``remat``: this is for inference); ``while``,
``cond`` and ``shard_map`` stay whole. A scan stays whole or is split by its length into several
scans over slices of what it scans; slices of a parameter become parameters of their own, so
that a device holds its own layers and no others.

Nothing here constructs a jaxpr: equations are evaluated again while JAX traces.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from jaxinfer.compile.stages.inputs import Inputs
from jaxinfer.core._bodies import Body
from jaxinfer.core._compat import scan_counts, x64_scope
from jaxinfer.core.interpret import ENTERING, Equation, Interpreter
from jaxinfer.core.leaves import leaves, map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.parts import join, split
from jaxinfer.core.program import x64_of
from jaxinfer.core.provenance import Address
from jaxinfer.core.trace import flat_run

INLINED = frozenset(
    ("jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
    + ("remat2", "checkpoint")
)


class Source(NamedTuple):
    """Where an array that a stage is given for good comes from.

    Attributes:
      name: of the part, with the slice of it if it is one: ``layers.*.w.qvalue[0:6]``.
      part: of the part without.
      value: the array; ``None`` while only shapes are known.
    """

    name: str
    part: str
    value: Any


class Program(NamedTuple):
    """A function in equations.

    Attributes:
      eqns: those that a result needs, in program order.
      params: what stands for good, by variable: parameters, slices of them, large constants.
      inputs: variables of the arrays of the inputs, in order.
      outs: variables or literals of the flat results.
      consts: small closed-over arrays, by variable.
      tree: of the flat results.
      scans: for every equation that is a scan, its address in the trace.
    """

    eqns: list[Any]
    params: dict[Any, Source]
    inputs: list[Any]
    outs: list[Any]
    consts: dict[Any, Any]
    tree: Any
    scans: dict[int, Address]


class Traced(NamedTuple):
    """A traced model before it is flattened."""

    closed: Any
    names: tuple[str, ...]
    arrays: Mapping[str, Any]
    tree: Any


CONSTANT = 1 << 16
"""Closed-over arrays of more bytes are given to their stages; smaller are compiled in."""


def flat_function(model: Model, inputs: Inputs) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return ``fn(arrays of parameters, arrays of inputs)``, and the former by name."""
    arrays, types = split(leaves(model.params))
    names = list(arrays)
    run = flat_run(model)

    def fn(values: Sequence[Any], given: Sequence[Any]) -> Any:
        whole = join(dict(zip(names, values, strict=True)), types)
        params = map_leaves(lambda path, _: whole[path], model.params)
        filled = iter(given)
        full = [next(filled) if leaf.is_array else leaf.value for leaf in inputs.leaves]
        return run(params, full, None)

    return fn, arrays


def trace(model: Model, inputs: Inputs, microbatch: int) -> Traced:
    """Trace a model at the sizes of a micro-batch; shapes only."""
    fn, arrays = flat_function(model, inputs)
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arrays.values()]
    with x64_scope(x64_of(model.program)):
        closed, out = jax.make_jaxpr(fn, return_shape=True)(shapes, inputs.structs(microbatch))
    return Traced(closed, tuple(arrays), arrays, jax.tree.structure(out))


def result_shapes(model: Model, inputs: Inputs, size: int) -> list[Any]:
    """Return the flat results' shapes at one size of the batch."""
    fn, arrays = flat_function(model, inputs)
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arrays.values()]
    with x64_scope(x64_of(model.program)):
        return jax.tree.leaves(jax.eval_shape(fn, shapes, inputs.structs(size)))


def flatten(traced: Traced, splits: Mapping[Address, Sequence[int]] | None = None) -> Program:
    """Return the equations of a trace, calls inlined and unused ones left out.

    Args:
      traced: the trace.
      splits: lengths of the scans that a scan, by its address, becomes.
    """
    closed = traced.closed
    interpreter = _Flattener(splits or {})
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    flat = jax.make_jaxpr(lambda *xs: interpreter.run(closed.jaxpr, closed.consts, xs))(*avals)
    jaxpr = flat.jaxpr
    at_scans = (i for i, eqn in enumerate(jaxpr.eqns) if eqn.primitive.name == "scan")
    addresses = dict(zip(at_scans, interpreter.scans, strict=True))
    kept = _needed(jaxpr)
    count = len(traced.names)
    params = {
        var: Source(name, name, traced.arrays[name])
        for var, name in zip(jaxpr.invars[:count], traced.names, strict=True)
    }
    consts: dict[Any, Any] = {}
    for number, (var, value) in enumerate(zip(jaxpr.constvars, flat.consts, strict=True)):
        if getattr(value, "nbytes", 0) > CONSTANT:
            params[var] = Source(f"constant {number}", "", value)
        else:
            consts[var] = value
    eqns = [jaxpr.eqns[index] for index in kept]
    scans = {
        position: addresses[index] for position, index in enumerate(kept) if index in addresses
    }
    taken = _take_slices(eqns, params)
    places = [position for position in range(len(eqns)) if position not in taken]
    return Program(
        [eqns[position] for position in places],
        params,
        list(jaxpr.invars[count:]),
        list(jaxpr.outvars),
        consts,
        traced.tree,
        {new: scans[old] for new, old in enumerate(places) if old in scans},
    )


def _needed(jaxpr: Any) -> list[int]:
    """Return the equations that a result needs, or that have an effect."""
    wanted = {var for var in jaxpr.outvars if not hasattr(var, "val")}
    kept = []
    for index in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[index]
        if eqn.effects or wanted.intersection(eqn.outvars):
            kept.append(index)
            wanted.update(var for var in eqn.invars if not hasattr(var, "val"))
    return kept[::-1]


def _take_slices(eqns: Sequence[Any], params: dict[Any, Source]) -> set[int]:
    """Make parameters of the slices of parameters; returns the equations that this replaces."""
    taken = set()
    for position, eqn in enumerate(eqns):
        source = _source(eqn, params)
        if eqn.primitive.name == "slice" and source is not None:
            limits = eqn.params["start_indices"], eqn.params["limit_indices"]
            strides = eqn.params["strides"] or (1,) * len(limits[0])
            at = tuple(map(slice, *limits, strides))
            shape = eqn.invars[0].aval.shape
            params[eqn.outvars[0]] = Source(
                f"{source.name}[{_slice_text(at, shape)}]", source.part, _sliced(source.value, at)
            )
            taken.add(position)
    return taken


def _source(eqn: Any, params: Mapping[Any, Source]) -> Source | None:
    first = eqn.invars[0] if eqn.invars else None
    return None if first is None or hasattr(first, "val") else params.get(first)


def _sliced(value: Any, at: tuple[slice, ...]) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        shape = tuple(len(range(*s.indices(n))) for s, n in zip(at, value.shape, strict=True))
        return jax.ShapeDtypeStruct(shape, value.dtype)
    return np.asarray(value)[at]


def _slice_text(at: Sequence[slice], shape: Sequence[int]) -> str:
    texts = [
        ":"
        if (s.start, s.stop, s.step) == (0, size, 1)
        else f"{s.start}:{s.stop}" + (f":{s.step}" if s.step != 1 else "")
        for s, size in zip(at, shape, strict=True)
    ]
    while len(texts) > 1 and texts[-1] == ":":
        texts.pop()
    return ", ".join(texts)


class _Flattener(Interpreter):
    """Evaluates a jaxpr with every call inlined, and some scans in pieces.

    Attributes:
      scans: the address of every scan equation of the result, in order.
    """

    def __init__(self, splits: Mapping[Address, Sequence[int]]):
        super().__init__(lambda equation, values: None, self._enters)
        self.splits = splits
        self.scans: list[Address] = []
        inline = ENTERING["closed_call"]
        self.entering = {
            **ENTERING,
            "remat2": inline,
            "checkpoint": inline,
            "scan": self._scan,
        }
        self._depth = 0

    def _enters(self, equation: Equation) -> bool:
        if equation.name == "scan" and not self._depth:
            if equation.address in self.splits:
                return True
            self.scans.append(equation.address)
        return equation.name in INLINED

    def _scan(
        self, own: Interpreter, equation: Equation, inside: Sequence[Body], values: Sequence[Any]
    ) -> Sequence[Any]:
        """Evaluate a scan as several, one after the other, over slices of what it scans."""
        params = equation.params
        consts, carry = scan_counts(params)
        state = list(values[consts : consts + carry])
        xs = values[consts + carry :]
        fn = own.body(equation, 0, inside[0])

        def step(state: Any, x: Any) -> tuple[Any, Any]:
            self._depth += 1
            outs = fn(*values[:consts], *state, *x)
            self._depth -= 1
            return outs[:carry], outs[carry:]

        ends = list(itertools.accumulate(self.splits[equation.address]))
        pieces = list(zip([0, *ends[:-1]], ends, strict=True))
        stacked: dict[int, Any] = {}
        for start, end in reversed(pieces) if params["reverse"] else pieces:
            part = [lax.slice_in_dim(x, start, end) for x in xs]
            options = {name: params[name] for name in ("reverse", "unroll")}
            state, stacked[start] = lax.scan(step, state, part, length=end - start, **options)
            self.scans.append(equation.address)
        columns = zip(*(stacked[start] for start, _ in pieces), strict=True)
        return [*state, *(lax.concatenate(list(column), 0) for column in columns)]
