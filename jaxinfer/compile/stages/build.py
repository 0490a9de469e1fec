"""Stages: the equations between two cuts as a function, compiled for its own devices.

A stage takes its parameters (placed on its device once) and the values that it reads: inputs
straight from the caller, boundary values straight from the stages that computed them. What a
later stage or the caller needs is what it returns.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.compile.stages.cut import Costs, nbytes
from jaxinfer.compile.stages.place import Place
from jaxinfer.compile.stages.trace import Program
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.interpret import Interpreter


class Segment(NamedTuple):
    """Equations with what goes in and out: as much of a jaxpr as the interpreter reads."""

    constvars: Sequence[Any]
    invars: Sequence[Any]
    eqns: Sequence[Any]
    outvars: Sequence[Any]


class Plan(NamedTuple):
    """What a stage computes.

    Attributes:
      eqns: indices of its equations, shared ones first.
      consts: variables of the small constants that it reads.
      params: variables of the parameters that it reads.
      inputs: numbers of the inputs that it reads.
      received: variables that it gets from other stages.
      sent: variables that other stages get from it.
      results: numbers of the results that it computes.
    """

    eqns: tuple[int, ...]
    consts: tuple[Any, ...]
    params: tuple[Any, ...]
    inputs: tuple[int, ...]
    received: tuple[Any, ...]
    sent: tuple[Any, ...]
    results: tuple[int, ...]


class Stage(NamedTuple):
    """A compiled stage.

    Attributes:
      plan: what it computes.
      place: where.
      run: ``run(params, inputs, received) -> list``: the values sent, then the results.
      params: its parameters on its device.
      compile_s: seconds of lowering and compiling.
      aliased: bytes of received values whose buffers its results take over.
    """

    plan: Plan
    place: Place
    run: Callable[..., Any]
    params: list[Any]
    compile_s: float
    aliased: int


def plan_stages(program: Program, measured: Costs, positions: Sequence[int]) -> list[Plan]:
    """Return what each stage computes, takes and returns, for cuts at ``positions``."""
    edges = [0, *positions, len(measured.order)]
    spans = [measured.order[a:b] for a, b in itertools.pairwise(edges)]
    maker = {
        var: stage
        for stage, span in enumerate(spans)
        for index in span
        for var in program.eqns[index].outvars
    }
    shared = {var: i for i in measured.shared for var in program.eqns[i].outvars}
    results: list[list[int]] = [[] for _ in spans]
    for number, var in enumerate(program.outs):
        if not hasattr(var, "val") and (var in maker or var in shared):
            results[maker.get(var, len(spans) - 1)].append(number)
    at_input = {var: number for number, var in enumerate(program.inputs)}
    plans = []
    for stage, span in enumerate(spans):
        own = _with_shared(program, span, shared, [program.outs[n] for n in results[stage]])
        made = {var for index in own for var in program.eqns[index].outvars}
        read = dict.fromkeys(
            var
            for index in own
            for var in program.eqns[index].invars
            if not hasattr(var, "val") and var not in made
        )
        plans.append(
            Plan(
                tuple(own),
                tuple(var for var in read if var in program.consts),
                tuple(var for var in read if var in program.params),
                tuple(at_input[var] for var in read if var in at_input),
                tuple(var for var in read if var in maker),
                (),
                tuple(results[stage]),
            )
        )
    needed = [set(plan.received) for plan in plans]
    for stage, plan in enumerate(plans):
        sent = (
            var
            for index in plan.eqns
            for var in program.eqns[index].outvars
            if maker.get(var) == stage and any(var in later for later in needed[stage + 1 :])
        )
        plans[stage] = plan._replace(sent=tuple(dict.fromkeys(sent)))
    return plans


def _with_shared(
    program: Program, span: Sequence[int], shared: dict[Any, int], outs: Sequence[Any]
) -> list[int]:
    """Return the equations of a stage with the shared ones that it needs, in order."""
    needed: set[int] = set()
    waiting = [*outs, *(var for index in span for var in program.eqns[index].invars)]
    while waiting:
        var = waiting.pop()
        index = None if hasattr(var, "val") else shared.get(var)
        if index is not None and index not in needed:
            needed.add(index)
            waiting += program.eqns[index].invars
    return [*sorted(needed), *span]


def build(
    program: Program,
    plans: Sequence[Plan],
    places: Sequence[Place],
    *,
    x64: bool,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Stage]:
    """Place the parameters and compile every stage, in threads.

    Raises:
      what JAX raises while it compiles.
    """
    done: list[int] = []

    def one(number: int) -> Stage:
        with x64_scope(x64):
            stage = _stage(program, plans[number], number, places)
        done.append(number)
        if progress is not None:
            progress(f"stage {number}", len(done), len(plans))
        return stage

    with ThreadPoolExecutor(len(plans)) as threads:
        return list(threads.map(one, range(len(plans))))


def _stage(program: Program, plan: Plan, number: int, places: Sequence[Place]) -> Stage:
    place = places[number]
    outvars = [*plan.sent, *(program.outs[result] for result in plan.results)]
    held = [_constant(program.consts[var]) for var in plan.consts]
    groups = (plan.params, [program.inputs[i] for i in plan.inputs], plan.received)
    segment = Segment(
        plan.consts,
        [var for group in groups for var in group],
        [program.eqns[index] for index in plan.eqns],
        outvars,
    )
    alone = place.apart([*places[:number], *places[number + 1 :]])
    kept, given = donations(plan.received, outvars) if alone else (plan.received, ())
    order = {var: place for place, var in enumerate((*kept, *given))}

    def fn(params: Any, inputs: Any, kept: Any, given: Any) -> list[Any]:
        both = [*kept, *given]
        received = [both[order[var]] for var in plan.received]
        interpreter = Interpreter(lambda equation, values: None)
        return interpreter.run(segment, held, [*params, *inputs, *received])

    fn.__name__ = f"stage_{number}"
    shardings = [
        [place.sharding(program.params[v].part, v.aval.shape) for v in plan.params],
        *([place.whole] * len(group) for group in (groups[1], kept, given)),
    ]
    structs = [
        [
            jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, sharding=sharding)
            for v, sharding in zip(group, own, strict=True)
        ]
        for group, own in zip((groups[0], groups[1], kept, given), shardings, strict=True)
    ]
    started = time.perf_counter()
    compiled = jax.jit(fn, donate_argnums=(3,), out_shardings=place.whole).lower(*structs).compile()
    seconds = time.perf_counter() - started
    analysis = compiled.memory_analysis()
    at_kept = [plan.received.index(var) for var in kept]
    at_given = [plan.received.index(var) for var in given]

    def run(params: Any, inputs: Any, received: Any) -> Any:
        return compiled(
            params, inputs, [received[i] for i in at_kept], [received[i] for i in at_given]
        )

    params = [
        jax.device_put(program.params[var].value, sharding)
        for var, sharding in zip(plan.params, shardings[0], strict=True)
    ]
    aliased = int(getattr(analysis, "alias_size_in_bytes", 0) or 0)
    return Stage(plan, place, run, params, seconds, aliased)


def donations(received: Sequence[Any], outvars: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the received values to keep, and those that a result of their type can replace."""
    free = [(var.aval.shape, var.aval.dtype) for var in outvars]
    kept, given = [], []
    for var in received:
        kind = (var.aval.shape, var.aval.dtype)
        if kind in free:
            free.remove(kind)
            given.append(var)
        else:
            kept.append(var)
    return kept, given


def _constant(value: Any) -> Any:
    """Return a constant as one that no device holds."""
    return value if jax.numpy.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def boundary_bytes(vars: Sequence[Any]) -> int:
    """Return the bytes of some values."""
    return sum(nbytes(var.aval) for var in vars)


def bytes_by_device(arrays: Sequence[Any], devices: Sequence[Any]) -> list[int]:
    """Return the bytes of some arrays on each device."""
    found = dict.fromkeys(devices, 0)
    for array in arrays:
        for shard in array.addressable_shards:
            found[shard.device] += shard.data.nbytes
    return [found[device] for device in devices]
